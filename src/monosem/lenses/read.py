"""The logit lens, and the call that every lens of the stream is a case of.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020). A state is read as if it were the last one.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..models import Model, Positions
from ..models.running.moment import EditLike
from .results import LensResult, followed
from .states import MEASURES, Measure, Translate, capture, log_probability, measures_of, rank, sites_at, stream

Targets = Sequence[str | int] | str | int | None


def logit(
    model: Model,
    x: Any,
    site: str = "resid_post",
    layers: Sequence[int] | int | None = None,
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
        site: "resid_post", "resid_pre", "resid_mid", or what a branch adds, "attn_out", "mlp_out". A branch is
            normalised by its own size here; for its exact share in a logit use `monosem.components`.
        layers: None for all; negative ones count from the last.
        positions: None for all tokens, "last", indices (negative from the end of each row), or a slice.
        top: likeliest tokens to keep a cell.
        targets: tokens to follow through the layers (text of one token, or ids), besides "next" and "final".
        measures: numbers to compute (`monosem.lenses.MEASURES`); fewer are faster.
        edits: applied to the run that is read.

    Raises:
        UnknownName: no such site, layer or measure. BadInput: a target that is not one token, no such position.
    """
    return look(
        model,
        x,
        None,
        "logit lens",
        site=site,
        layers=layers,
        positions=positions,
        top=top,
        targets=targets,
        measures=measures,
        edits=edits,
        quiet=quiet,
    )


def look(
    model: Model,
    x: Any,
    translate: Translate | None,
    name: str,
    *,
    site: str = "resid_post",
    layers: Sequence[int] | int | None = None,
    positions: Positions | None = None,
    top: int = 5,
    targets: Targets = None,
    measures: Iterable[str] = tuple(MEASURES),
    edits: EditLike | Iterable[EditLike] = (),
    quiet: bool = False,
) -> LensResult:
    """Any lens: `translate(site, states)` maps states, `cell d_model` in float32, to the basis of the last stream.

    Arguments and errors as `logit`; `name` is what figures call the lens.
    """
    wanted = measures_of(measures)
    constant = followed(model, targets)
    sites = sites_at(model, site, layers)
    states = capture(model, x, sites, positions, edits)
    n, vocab = len(states), model.cfg.d_vocab
    final = stream([states.prediction], states.prediction, n, vocab, {}, top=1).top_ids[0, :, 0]
    ids = {"next": states.next_ids().cpu(), "final": final}
    ids |= {name: torch.full((n,), token) for name, token in constant.items()}
    every: dict[tuple[str, str], Measure] = {("measure", name): measure for name, measure in wanted.items()}
    every |= {("log_probability", name): log_probability(tokens) for name, tokens in ids.items()}
    every |= {("rank", name): rank(tokens) for name, tokens in ids.items()}
    seen = stream(states.lens(translate), states.prediction, n, vocab, every, max(top, 1), quiet)
    grids = {key: states.spread(values) for key, values in seen.measures.items()}
    pick = lambda kind: {key[1]: grid for key, grid in grids.items() if key[0] == kind}  # noqa: E731
    return LensResult(
        model=model,
        lens=name,
        sites=sites,
        tokens=states.tokens,
        measures=pick("measure"),
        top_ids=states.spread(seen.top_ids),
        top_probabilities=states.spread(seen.top_probabilities),
        targets={name: states.spread(tokens[None])[0] for name, tokens in ids.items()},
        log_probabilities=pick("log_probability"),
        ranks=pick("rank"),
    )
