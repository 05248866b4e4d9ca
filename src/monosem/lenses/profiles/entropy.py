"""The entropy lens: how sure the model is at every layer, as a profile, a picture, and a feature vector.

Source: Ali, Caso et al., "Entropy-Lens: The Information Signature of Transformer Computations" (arXiv 2502.16570): the
entropies of the lens's distributions over layers and generated tokens, without a look at what the tokens are.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import BadInput
from ...files import write_result
from ...models import Model, Positions, Site, TokenBatch
from ...models.running.moment import EditLike
from ...plots import heatmap
from ..figures import as_numbers, axis, profile_figure, shown
from ..states import capture, renyi, sites_at, stream
from ..tuned.lens import LensLike, translate_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class EntropyProfile:
    """Entropies over layers and tokens, in nats.

    Attributes:
        entropies: Rényi order (1: Shannon) -> `layer batch pos`; NaN where nothing was read.
        chosen: which tokens were read, `batch pos`. After generation: those that a generated token was predicted from.
    """

    model: Model = field(repr=False)
    sites: list[Site]
    tokens: TokenBatch = field(repr=False)
    chosen: Bool[Tensor, "batch pos"] = field(repr=False)
    entropies: dict[float, Float[Tensor, "layer batch pos"]] = field(repr=False)

    def profile(self, order: float = 1.0) -> Float[Tensor, "batch layer"]:
        """Mean over each row's tokens."""
        return self._of(order).nanmean(-1).T

    def features(self) -> Float[Tensor, "batch feature"]:
        """A vector a row for classifiers: for each order and layer the mean and the standard deviation over tokens (0
        for a single token), in the order of `feature_names`."""
        parts = []
        for order in self.entropies:
            mean = self.profile(order)
            spread = (self._of(order) - mean.T[..., None]).square().nanmean(-1).sqrt().T
            parts += [mean, spread]
        return torch.cat(parts, -1)

    @property
    def feature_names(self) -> list[str]:
        return [
            f"{name} of H{order:g} at {site}"
            for order in self.entropies
            for name in ("mean", "sd")
            for site in self.sites
        ]

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell."""
        layers, rows, columns = self.chosen.cpu().expand(len(self.sites), -1, -1).nonzero(as_tuple=True)
        ids, positions = self.tokens.ids.cpu(), self.tokens.positions.cpu()
        data: dict[str, Any] = {
            "site": [str(self.sites[i]) for i in layers],
            "layer": [self.sites[i].layer for i in layers],
            "row": rows.tolist(),
            "position": positions[rows, columns].tolist(),
            "token": [self.model.str_token(int(i)) for i in ids[rows, columns]],
        }
        data |= {f"H{order:g}": grid[layers, rows, columns].tolist() for order, grid in self.entropies.items()}
        return pd.DataFrame(data)

    def plot(self, order: float = 1.0) -> "Figure":
        """Each row's mean over tokens, over layers, with the standard error over tokens."""
        grid = self._of(order)
        count = grid[0].isfinite().sum(-1)
        curves = {}
        for row in range(grid.shape[1]):
            cells = grid[:, row][:, grid[0, row].isfinite()]
            error = cells.std(-1) / count[row].sqrt() if count[row] > 1 else None
            name = shown(self.model.text(self.tokens.rows()[row])[:40])
            curves[f"{row}: {name}"] = (as_numbers(cells.mean(-1)), None if error is None else as_numbers(error))
        title = f"entropy of each layer's prediction, {self.model.name}"
        return profile_figure(curves, self.sites, f"H{order:g} (nats)", title)

    def plot_tokens(self, row: int = 0, order: float = 1.0) -> "Figure":
        """Layers on y, the tokens of one row on x."""
        columns = self.chosen[row].nonzero().flatten().cpu()
        labels, y_title = axis(self.sites)
        names = [shown(self.model.str_token(int(self.tokens.ids[row, c]))) for c in columns]
        grid = self._of(order)[:, row][:, columns]
        return heatmap(
            grid,
            names,
            labels,
            x_title="input token",
            y_title=y_title,
            unit="nats",
            diverging=False,
            title=f"entropy H{order:g} of each layer's prediction",
            limits=(0.0, float(grid.max())),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet)."""
        return write_result(path, self.table, self.plot)

    def _of(self, order: float) -> Float[Tensor, "layer batch pos"]:
        if order not in self.entropies:
            known = ", ".join(f"{o:g}" for o in self.entropies)
            raise BadInput(
                f"entropies of order {order:g} were not computed; there are {known}: name it in orders=[...]"
            )
        return self.entropies[order]


def entropy(
    model: Model,
    x: Any,
    site: str = "resid_post",
    layers: Sequence[int] | int | None = None,
    positions: Positions | None = None,
    orders: Sequence[float] = (1.0,),
    max_new_tokens: int = 0,
    lens: LensLike = None,
    edits: EditLike | Iterable[EditLike] = (),
    quiet: bool = False,
) -> EntropyProfile:
    """Entropies of every layer's prediction, of the tokens given, or of those that the model goes on to write.

    Args:
        orders: of the Rényi entropies; 1 is Shannon's, `float("inf")` is -log of the largest probability.
        max_new_tokens: above 0: continue greedily, then read the cells that the new tokens were predicted from
            (`positions` is not used).
        lens: None for the logit lens, "tuned", or any lens (`translate_of`).

    Raises:
        BadInput: no order, a negative one; with a generation: positions, or edits of some tokens only. Others as
            `logit`.
    """
    if not orders or min(orders) < 0:
        raise BadInput(f"orders must be at least 0, and one at least: {list(orders)}")
    if max_new_tokens and positions is not None:
        raise BadInput("give positions, or max_new_tokens, whose cells are chosen by themselves")
    edits = [edits] if hasattr(edits, "apply") else list(edits)  # type: ignore[list-item, arg-type]
    if max_new_tokens and any(
        getattr(edit, "scope", "all") != "all" or getattr(edit, "positions", None) is not None for edit in edits
    ):
        raise BadInput(
            "an edit at positions or with a scope would reach other tokens once the continuation is read as a whole; "
            "with max_new_tokens, edit all tokens"
        )
    sites = sites_at(model, site, layers)
    translate = translate_of(model, lens)
    written = None
    if max_new_tokens:
        generation = model.generate(x, edits=edits, max_new_tokens=max_new_tokens)
        x, lengths = generation.ids, generation.prompt.lengths
        index, ends = x.positions, x.lengths[:, None]
        # the token at position i was predicted at i - 1; the last one predicts nothing that was written
        written = x.mask.cpu() & (index.cpu() >= lengths.cpu()[:, None] - 1) & (index.cpu() < ends.cpu() - 1)
    states = capture(model, x, sites, positions, edits)
    measures = {float(order): renyi(order) for order in orders}
    seen = stream(states.lens(translate), states.prediction, len(states), model.cfg.d_vocab, measures, quiet=quiet)
    grids = {order: states.spread(values) for order, values in seen.measures.items()}
    chosen = states.chosen.cpu()
    if written is not None:
        chosen = chosen & written
        grids = {order: grid.masked_fill(~chosen, float("nan")) for order, grid in grids.items()}
    return EntropyProfile(model, sites, states.tokens, chosen, grids)
