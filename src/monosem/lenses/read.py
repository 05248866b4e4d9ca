"""Reading a run through a lens: one call, and the logit lens and the tuned lens as its two common cases.

Source of the logit lens: nostalgebraist, "interpreting GPT: the logit lens" (2020). A state is read as if it were the
last one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from ..models import Layers, Model, Positions
from ..models.running.moment import EditLike
from ..results import analysis
from .lookup import LensLike, sight
from .measures import MEASURES, Measure, log_probability, measures_of, rank
from .results import LensResult, followed
from .states import States, Translate, read_out, states_of

Targets = Sequence[str | int] | str | int | None


class ReadOptions(TypedDict, total=False):
    """The options that every lens of the stream shares; see `read`."""

    site: str
    layers: Layers
    positions: Positions | None
    top: int
    targets: Targets
    measures: Iterable[str]
    edits: EditLike | Iterable[EditLike]
    quiet: bool


@analysis
def read(
    model: Model,
    x: Any,
    *,
    lens: LensLike = None,
    name: str | None = None,
    site: str = "resid_post",
    layers: Layers = None,
    positions: Positions | None = None,
    top: int = 5,
    targets: Targets = None,
    measures: Iterable[str] = tuple(MEASURES),
    edits: EditLike | Iterable[EditLike] = (),
    quiet: bool = False,
) -> LensResult:
    """What each layer would predict if the model ended there: final norm, unembedding, soft caps and scales applied.

    Args:
        x: prompt, prompts, ids, or a `TokenBatch`.
        lens: None for the logit lens, "tuned" for the tuned lens shipped for the model, a lens of this room or the file
            of one, or a function `(site, states) -> states` from `cell d_model` in float32 to the basis of
            the last stream.
        name: what tables and figures call the lens; its own name by default.
        site: "resid_post", "resid_pre", "resid_mid", or what a branch adds, "attn_out", "mlp_out". A branch is
            normalised by its own size here; for its exact share in a logit use `monosem.components`.
        layers: None for all (that the lens was fitted for); negative ones count from the last.
        positions: None for all tokens, "last", indices (negative from the end of each row), or a slice.
        top: likeliest tokens to keep a cell.
        targets: tokens to follow through the layers (text of one token, or ids), besides "next" and "final".
        measures: numbers to compute (`monosem.lenses.MEASURES`); fewer are faster.
        edits: applied to the run that is read.

    Raises:
        UnknownName: no such site, measure, or tuned lens. Mismatch: the lens belongs to another model.
        BadInput: no such layer or position, a target that is not one token.
    """
    wanted = measures_of(measures)
    constant = followed(model, targets)
    model.refuse_streams("a lens reads one")
    seen = sight(model, lens, site, layers)
    states = states_of(model, x, seen.sites, positions, edits)
    ids = _followed_ids(states, constant)
    numbers = _numbers(states, seen.translate, wanted, ids, max(top, 1), quiet)
    return LensResult(model=model, lens=name or seen.lens, sites=seen.sites, tokens=states.tokens, **numbers)


def _numbers(
    states: States,
    translate: Translate | None,
    wanted: dict[str, Measure],
    ids: dict[str, Int[Tensor, "cell"]],
    top: int,
    quiet: bool,
) -> dict[str, Any]:
    """What a `LensResult` holds of every cell: measures, the likeliest tokens, and how the targets fare."""
    every: dict[tuple[str, str], Measure] = {("measure", name): measure for name, measure in wanted.items()}
    every |= {("log_probability", target): log_probability(tokens) for target, tokens in ids.items()}
    every |= {("rank", target): rank(tokens) for target, tokens in ids.items()}
    seen = states.read_out(translate, every, top, quiet)
    grids = {key: states.spread(values) for key, values in seen.measures.items()}
    pick = lambda kind: {key[1]: grid for key, grid in grids.items() if key[0] == kind}  # noqa: E731
    return {
        "measures": pick("measure"),
        "top_ids": states.spread(seen.top_ids),
        "top_probabilities": states.spread(seen.top_probabilities),
        "targets": {target: states.spread(tokens[None])[0] for target, tokens in ids.items()},
        "log_probabilities": pick("log_probability"),
        "ranks": pick("rank"),
    }


def _followed_ids(states: States, constant: dict[str, int]) -> dict[str, Int[Tensor, "cell"]]:
    """The token of every target at each cell: "next", "final", and the tokens that were asked for."""
    n = len(states)
    final = read_out([states.prediction], states.prediction, n, states.model.cfg.d_vocab, {}, top=1).top_ids[0, :, 0]
    return {"next": states.next_ids().cpu(), "final": final} | {
        target: torch.full((n,), token) for target, token in constant.items()
    }


def logit(model: Model, x: Any, **options: Unpack[ReadOptions]) -> LensResult:
    """The logit lens: every layer read as if it were the last. Options and errors as `read`."""
    return read(model, x, lens=None, **options)


def tuned(model: Model, x: Any, lens: LensLike = "tuned", **options: Unpack[ReadOptions]) -> LensResult:
    """What each layer already knows of the model's prediction; `lens`: a tuned lens, or the file of one; by default the
    one that is shipped for this model. Options and errors as `read`; the site is resid_post or resid_pre."""
    return read(model, x, lens=lens, **options)
