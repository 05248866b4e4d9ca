"""What a latent does to the next tokens of a text: the model with and without it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionaries import Dictionary
from ..dictionaries.codes import latent_ids
from ..edits import ablate_latent
from ..errors import BadInput
from ..models import Model
from ..models.numbers import count
from ..results import Tabled, analysis
from ..statistics import standard_error
from .effects import reaches_logits, stream_rows
from .index import Index


@dataclass(frozen=True)
class Removal(Tabled):
    """`table`, one row a token of the text: position, token, activation; loss of the next token (nats; NaN at the end);
    loss_change, what removing the latent everywhere in the text adds to it (positive: the latent helped); kl, from the
    model's prediction to the one without (nats); direct_loss_change, the same as loss_change with what the latent
    writes at this token alone taken out of the last state (NaN where there is no direct path); raised and lowered,
    tokens whose log-probability the latent raises or lowers most: [(token, change), ...]."""

    ranked_by: ClassVar[str | None] = "kl"


@analysis
@torch.no_grad()
def removal(model: Model, dictionary: Dictionary, latent: int, x: Any, *, n: int = 5) -> Removal:
    """The model with and without a latent on a text, the dictionary's error term kept.

    The text is read as it is given: an example of an index lacks what stood before it, so that activations can differ
    from the index's. Tokens that the dictionary was not trained on (the first, special ones, outliers) stay as they
    are.

    Args:
        x: one text, or its token ids (`Example.ids`). n: tokens in raised and lowered.

    Raises:
        BadInput: not one text, or one without a token that counts. UnknownName: no such latent.
        Mismatch: a dictionary of another model.
    """
    dictionary.check(model)
    (number,) = latent_ids(latent, dictionary.width).tolist()
    n = min(count(n, "n"), model.cfg.d_vocab)
    tokens, site = model.tokens([x] if isinstance(x, list) and x and isinstance(x[0], int) else x), dictionary.site
    if len(tokens) != 1:
        raise BadInput(f"removal reads one text at a time, not {len(tokens)}")
    last = f"resid_post.{model.cfg.n_layers - 1}"
    direct = reaches_logits(model, dictionary)
    clean = model.run(tokens, capture=[site, last] if direct else [site])
    counted = dictionary.skipper(model).counted(clean.tokens, {str(site): clean[site]})[0]
    if not counted.any():
        raise BadInput("this text has no token that counts: all are the first, special, or outliers in norm")
    activation = torch.where(counted, dictionary.encode(clean[site]).of([number])[0, :, 0].float(), 0)
    without = model.run(tokens, edits=ablate_latent(dictionary, number))
    assert clean.logits is not None
    assert without.logits is not None
    ids = clean.tokens.ids[0]
    before, after = (run[0].double().log_softmax(-1) for run in (clean.logits, without.logits))
    change = before - after
    columns: dict[str, Any] = {
        "position": range(len(ids)),
        "token": [model.str_token(int(i)) for i in ids],
        "activation": activation.tolist(),
        "loss": _loss(before, ids).tolist(),
        "loss_change": (_loss(after, ids) - _loss(before, ids)).tolist(),
        "kl": (before.exp() * change).sum(-1).clamp_min(0).tolist(),
        "direct_loss_change": [float("nan")] * len(ids),
    }
    if direct:
        scale = dictionary.token_scale(clean[site])
        amount = activation if scale is None else activation * scale[0, :, 0]
        (row,) = stream_rows(model, dictionary, torch.tensor([number]))
        state = clean[last][0].float() - amount[:, None] * row
        taken = model.unembed(state[None].to(clean[last].dtype))[0].double().log_softmax(-1)
        columns["direct_loss_change"] = (_loss(taken, ids) - _loss(before, ids)).tolist()
    for name, sign in (("raised", 1), ("lowered", -1)):
        best = (sign * change).topk(n)
        pairs = zip(best.indices.tolist(), best.values.tolist())
        columns[name] = [[(model.str_token(i), sign * v) for i, v in zip(*row)] for row in pairs]
    return Removal(pd.DataFrame(columns))


def ablation(index: Index, latent: int, *, model: Model, n: int = 10) -> dict[str, float]:
    """Mean kl and loss_change of `removal` at the anchors of a latent's n strongest examples, with standard errors.

    Each example is read as it is kept, without the text before it. `examples` says how many there were; `silent`, at
    how many of the anchors the latent is silent without that text (they count as 0).

    Raises:
        BadInput: an index opened without its dictionary, or a latent that never fired. Others as `removal`.
    """
    if index.dictionary is None:
        raise BadInput("the latent is removed with its dictionary; open the index with it: Index(path, dictionary)")
    rows = []
    for example in index.evidence(latent).examples[: count(n, "n")]:
        rows.append(removal(model, index.dictionary, latent, example.ids).table.iloc[example.anchor])
    if not rows:
        raise BadInput(f"latent {latent} never fired, so there is nothing to remove")
    table = pd.DataFrame(rows)[["activation", "kl", "loss_change"]].astype(float)
    found: dict[str, float] = {"examples": len(table), "silent": int((table["activation"] == 0).sum())}
    for name in ("kl", "loss_change"):
        values = torch.tensor(table[name].dropna().to_numpy())
        found[name] = float(values.mean()) if len(values) else float("nan")
        found[f"{name}_se"] = float(standard_error(values))
    return found


def _loss(log_p: Float[Tensor, "pos vocab"], ids: Tensor) -> Float[Tensor, "pos"]:
    """Of the next token; NaN at the last one."""
    out = log_p.new_full((len(ids),), torch.nan)
    out[:-1] = -log_p[:-1].gather(1, ids[1:, None].to(log_p.device))[:, 0]
    return out
