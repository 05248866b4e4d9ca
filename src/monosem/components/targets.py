"""What a contribution is measured along: a token's logit, the difference of two, or a direction in the stream."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput
from ..models import Model, Site, TokenBatch

Tokens = str | int | Sequence[str | int] | Int[Tensor, "batch"]


@dataclass(frozen=True, eq=False)
class Target:
    """A sum of read-outs of the stream, `weights` times `vectors`.

    Attributes:
        vectors: `read row d_model`, `row` is 1 where all rows of the batch share it.
        weights: +1 and -1.
        tokens: ids behind the vectors, `read row`; None for a direction.
        site: where the direction is read, as it stands; None: after the final norm.
        label: for tables and plots.
    """

    vectors: Float[Tensor, "read row d_model"]
    weights: tuple[float, ...]
    tokens: Int[Tensor, "read row"] | None
    site: Site | None
    label: str


def token_target(
    model: Model, tokens: Tokens, wrong: Tokens | None, prompts: TokenBatch, after: bool = False
) -> Target:
    """The logit of `tokens`, less the logit of `wrong`; one token for all rows, or one for each.

    Args:
        after: whether the tokens are read after the prompts, and go on their texts.

    Raises:
        BadInput: text that is not one token, an id outside the vocabulary, not one token a row.
    """
    given = [_ids(model, t, prompts, after) for t in ([tokens] if wrong is None else [tokens, wrong])]
    width = max(len(ids) for ids in given)
    ids = torch.stack([ids.expand(width) for ids in given])
    names = [_name(model, part) for part in given]
    label = f"logit of {names[0]}" + (f" - {names[1]}" if wrong is not None else "")
    return Target(model.W_U.T[ids.to(model.device)].float(), (1.0, -1.0)[: len(given)], ids, None, label)


def direction_target(model: Model, direction: Any) -> Target:
    """x · v̂ at the site of a `Direction`, or of a pair `(site, vector)`; sites `resid_pre`, `resid_mid`, `resid_post`.

    A pair with the site "final_norm" is read after the final norm, as the unembedding reads.
    """
    site, vector = direction if isinstance(direction, tuple) else (direction.site, direction.vector)
    site = model.site(site)
    if site.name not in ("resid_pre", "resid_mid", "resid_post", "final_norm"):
        raise BadInput(f"a direction is attributed in the stream (resid_pre, resid_mid, resid_post), not at {site}")
    vector = torch.as_tensor(vector).float().to(model.device)
    if vector.shape != (model.cfg.d_model,) or not bool(vector.norm() > 0):
        raise BadInput(f"the direction must be one vector of {model.cfg.d_model}, not {list(vector.shape)} or zero")
    unit = vector / vector.norm()
    return Target(unit[None, None], (1.0,), None, None if site.name == "final_norm" else site, f"direction at {site}")


def _ids(model: Model, tokens: Tokens, prompts: TokenBatch, after: bool) -> Int[Tensor, "row"]:
    listed = list(tokens) if isinstance(tokens, Iterable) and not isinstance(tokens, str) else [tokens]
    if len(listed) not in (1, len(prompts)):
        raise BadInput(f"{len(listed)} tokens for {len(prompts)} rows; give one, or one for each row")
    if not after:
        return torch.tensor([model.to_single_token(token) for token in listed])
    each = listed * len(prompts) if len(listed) == 1 else listed
    ids = [model.to_single_token(token, prompt) for token, prompt in zip(each, prompts.rows())]
    return torch.tensor(ids[:1] if len(listed) == 1 and len(set(ids)) == 1 else ids)


def _name(model: Model, ids: Tensor) -> str:
    return repr(model.str_token(int(ids[0]))) if len(ids) == 1 else f"{len(ids)} tokens"
