"""Reading states out into token distributions, without ever holding the vocabulary for more than a few cells.

Every lens is a map from a state to the basis of the last residual stream, followed by the model's own final norm,
unembedding and soft caps. Lenses differ in the map and share everything here: `states_of` collects the states of one
run, `read_out` turns states into distributions a few cells at a time, and keeps only the numbers that were asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput, UnknownName, did_you_mean
from ..models import Layers, Model, Positions, Site, TokenBatch
from ..models.running.moment import EditLike
from ..models.running.run import edits_of
from ..models.running.selection import at_positions
from ..progress import Meter
from .measures import Distribution, Measure, View

# a state at a site to a state in the basis of the last residual stream
Translate = Callable[[Site, Float[Tensor, "cell d_model"]], Float[Tensor, "cell d_model"]]
Logits = Callable[[slice], Float[Tensor, "part vocab"]]  # the logits of some of the cells

ELEMENTS = 1 << 22  # logits held at once, 16 MB in float32: as fast as more, and it stays in the processor's cache


@dataclass(frozen=True, eq=False)
class ReadOut:
    """What `read_out` kept, on the CPU.

    Shapes: `measures[name]` is `layer cell`; `top_ids` and `top_probabilities` are `layer cell k`, likeliest first.
    """

    measures: dict[Any, Float[Tensor, "layer cell"]]
    top_ids: Int[Tensor, "layer cell k"]
    top_probabilities: Float[Tensor, "layer cell k"]


@torch.no_grad()
def read_out(
    lens: Sequence[Logits],
    reference: Logits | Sequence[Logits],
    cells: int,
    vocab: int,
    measures: Mapping[Any, Measure],
    top: int = 0,
    quiet: bool = True,
) -> ReadOut:
    """Distributions of every layer and cell, in chunks of cells; only the measures and the top tokens are kept.

    Args:
        lens: for each layer, the logits of some cells.
        reference: what the lens is compared with: one for all layers (the model's prediction), or one for each.
        measures: what to keep, under any names.
        top: how many of the likeliest tokens to keep.
    """
    layers, top = len(lens), min(top, vocab)
    kept = {name: torch.empty(layers, cells) for name in measures}
    ids = torch.empty(layers, cells, top, dtype=torch.long)
    probabilities = torch.empty(layers, cells, top)
    with Meter("read out", layers * cells, "cell", quiet) as meter:
        for part in chunks(cells, vocab):
            shared = None if isinstance(reference, Sequence) else Distribution(reference(part))
            for layer, logits in enumerate(lens):
                other = shared or Distribution(reference[layer](part))  # type: ignore[index]
                view = View(Distribution(logits(part)), other, part)
                for name, measure in measures.items():
                    kept[name][layer, part] = measure(view).cpu()
                if top:
                    best = view.lens.log.topk(top)
                    ids[layer, part], probabilities[layer, part] = best.indices.cpu(), best.values.exp().cpu()
                meter.advance(part.stop - part.start)
    return ReadOut(kept, ids, probabilities)


def chunks(cells: int, vocab: int) -> Iterator[slice]:
    """Slices of cells whose logits are about `ELEMENTS` numbers."""
    size = max(1, ELEMENTS // vocab)
    for start in range(0, cells, size):
        yield slice(start, min(start + size, cells))


@dataclass(frozen=True, eq=False)
class States:
    """The states of one run at some sites, of the chosen cells only.

    Attributes:
        tokens: the batch; `chosen`: which of its tokens are cells, `batch pos`.
        by_site: `cell d_model` for each site, in order.
        final: what the unembedding read, after the final norm, `cell d_model`.
    """

    model: Model
    tokens: TokenBatch
    chosen: Bool[Tensor, "batch pos"]
    by_site: dict[Site, Float[Tensor, "cell d_model"]]
    final: Float[Tensor, "cell d_model"]

    def __len__(self) -> int:
        return len(self.final)

    def check_rows(self) -> None:
        """Raises `BadInput` when a prompt has no cell, because its mean would be a mean of nothing."""
        if bool((empty := ~self.chosen.any(1)).any()):
            row = int(empty.nonzero()[0])
            raise BadInput(f"prompt {row} has {int(self.tokens.lengths[row])} tokens and none at these positions")

    def prediction(self, part: slice) -> Float[Tensor, "part vocab"]:
        """The model's own logits."""
        return self.model.unembed(self.final[part], norm=False)

    def lens(self, translate: Translate | None = None) -> list[Logits]:
        """For each site, the logits of some cells, seen through `translate` (None: the logit lens)."""

        def at(site: Site, states: Tensor) -> Logits:
            if translate is None:
                return lambda part: self.model.unembed(states[part])
            return lambda part: self.model.unembed(translate(site, states[part].float()))

        return [at(site, states) for site, states in self.by_site.items()]

    def read_out(
        self, translate: Translate | None, measures: Mapping[Any, Measure], top: int = 0, quiet: bool = True
    ) -> ReadOut:
        """`read_out` of these states through a lens, against the model's own prediction."""
        return read_out(self.lens(translate), self.prediction, len(self), self.model.cfg.d_vocab, measures, top, quiet)

    def next_ids(self) -> Int[Tensor, "cell"]:
        """The token that really follows each cell; -1 after the last token of a row."""
        following = torch.full_like(self.tokens.ids, -1)
        both = self.tokens.mask[:, :-1] & self.tokens.mask[:, 1:]
        following[:, :-1] = torch.where(both, self.tokens.ids[:, 1:], -1)
        return following[self.chosen]

    def spread(self, values: Float[Tensor, "layer cell *more"]) -> Float[Tensor, "layer batch pos *more"]:
        """Cells back to their places; NaN (for whole numbers -1) where there is no cell."""
        empty = float("nan") if values.is_floating_point() else -1
        shape = (values.shape[0], *self.chosen.shape, *values.shape[2:])
        out = torch.full(shape, empty, dtype=values.dtype)
        out[:, self.chosen.cpu()] = values
        return out


def states_of(
    model: Model,
    x: Any,
    sites: Sequence[Site],
    positions: Positions | None = None,
    edits: EditLike | Iterable[EditLike] = (),
) -> States:
    """One run, stopped before the unembedding.

    Args:
        positions: as in `Edit.at`: token indices in a row (negative from its end), a slice, "last", None for all.

    Raises:
        UnknownName: a site that the model does not have. BadInput: no row has a token at the positions; edits of the
            logits, which a lens does not see.
    """
    late = [edit for edit in edits_of(model, edits) if edit.site.shape[-1] == "vocab"]
    if late:
        raise BadInput(
            f"{late[0]} acts behind what a lens reads, so it would be left out; leave it out, or use model.run"
        )
    run = model.run(x, capture=[*sites, "final_norm"], edits=edits, logits=False)
    tokens = run.tokens
    chosen = tokens.mask
    if positions is not None:
        chosen = chosen & at_positions(positions, tokens.positions, tokens.lengths[:, None])
    if not bool(chosen.any()):
        raise BadInput(f"no token at positions {positions!r}; the longest prompt has {int(tokens.lengths.max())}")
    by_site = {site: run[site][chosen.to(run[site].device)] for site in sites}
    return States(model, tokens, chosen, by_site, run["final_norm"][chosen.to(run["final_norm"].device)])


def sites_at(model: Model, site: str, layers: Layers = None) -> list[Site]:
    """One place in the stream at some layers (see `Model.layers`): a stream site, or what a branch adds.

    Raises:
        UnknownName: not a place whose state has the model's width, a layer that does not exist, or `resid_mid` of
            parallel blocks. BadInput: no layer.
    """
    wanted = model.layers(layers)
    branches = [branch for layer in wanted for branch in model.branches(layer)]
    read_or_written = (place.name for branch in branches for place in (branch.reads, branch.out))
    known = list(dict.fromkeys(["resid_pre", *read_or_written, "resid_post"]))
    if site not in known:
        model.site((site, wanted[0]))  # says why, where the model does not have it
        near = did_you_mean(site, known) or f"; known: {', '.join(known)}"
        raise UnknownName(
            f"a lens reads a place of the residual stream by its name without a layer, not {site!r}{near}"
        )
    at = model.layers_with(site) if layers is None else wanted
    return [model.site((site, layer)) for layer in at]
