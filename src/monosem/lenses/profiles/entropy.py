"""The entropy lens: how sure the model is at every layer, as a profile, a picture, and a feature vector.

Source: Ali, Caso et al., "Entropy-Lens: The Information Signature of Transformer Computations" (arXiv 2502.16570): the
entropies of the lens's distributions over layers and generated tokens, without a look at what the tokens are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import BadInput
from ...models import Layers, Model, Positions, TokenBatch
from ...models.running.moment import EditLike
from ...models.running.run import edits_of, knows_the_prompt
from ...plots import Figure
from ...results import analysis
from ..lookup import LensLike, sight
from ..measures import renyi
from ..states import states_of
from .profile import TokenProfile


@dataclass(frozen=True, eq=False)
class EntropyProfile(TokenProfile):
    """Entropies over layers and tokens, in nats; `measures` has "H1" (Shannon's), "H2", ... by their Rényi order.

    After generation, `chosen` are the tokens that a generated token was predicted from.
    """

    orders: tuple[float, ...]

    def entropies(self, order: float = 1.0) -> Float[Tensor, "layer batch pos"]:
        """Raises `BadInput` for an order that was not computed."""
        if order not in self.orders:
            known = ", ".join(f"{one:g}" for one in self.orders)
            raise BadInput(
                f"entropies of order {order:g} were not computed; there are {known}: name it in orders=[...]"
            )
        return self.measures[f"H{order:g}"]

    def means(self, order: float = 1.0) -> Float[Tensor, "batch layer"]:
        """Mean over each row's tokens."""
        return self.entropies(order).nanmean(-1).T

    def features(self) -> Float[Tensor, "batch feature"]:
        """A vector a row for classifiers: for each order and layer the mean and the standard deviation over tokens (0
        for a single token), in the order of `feature_names`."""
        parts = []
        for order in self.orders:
            mean = self.means(order)
            spread = (self.entropies(order) - mean.T[..., None]).square().nanmean(-1).sqrt().T
            parts += [mean, spread]
        return torch.cat(parts, -1)

    @property
    def feature_names(self) -> list[str]:
        kinds = [(order, kind) for order in self.orders for kind in ("mean", "sd")]
        return [f"{kind} of H{order:g} at {site}" for order, kind in kinds for site in self.sites]

    def plot(self, order: float = 1.0) -> Figure:
        """Each row's mean over tokens, over layers, with the standard error over tokens."""
        self.entropies(order)
        title = self.title("entropy of each layer's prediction")
        return self.plot_lines(self.samples(f"H{order:g}"), f"H{order:g} (nats)", title)

    def plot_tokens(self, row: int = 0, order: float = 1.0) -> Figure:
        """Layers on y, the tokens of one row on x."""
        title = self.title(f"entropy H{order:g} of each layer's prediction")
        return self.grid.heatmap(self.entropies(order), row, unit="nats", title=title, less_is_better=True)


@analysis
def entropy_profile(
    model: Model,
    x: Any,
    *,
    site: str = "resid_post",
    layers: Layers = None,
    positions: Positions | None = None,
    orders: Sequence[float] = (1.0,),
    max_new_tokens: int = 0,
    lens: LensLike = None,
    edits: EditLike | Iterable[EditLike] = (),
    quiet: bool = False,
) -> EntropyProfile:
    """Entropies of every layer's prediction, of the tokens given, or of the tokens that the model goes on to write.

    Args:
        orders: of the Rényi entropies; 1 is Shannon's, `float("inf")` is -log of the largest probability.
        max_new_tokens: above 0: continue greedily, then read the cells that the new tokens were predicted from
            (`positions` is not used).
        lens: None for the logit lens, "tuned", or any lens (as in `read`).

    Raises:
        BadInput: no order, a negative one; with a generation: positions, or edits that depend on where the prompt
            ends (also of `model.editing`). Others as
            `read`.
    """
    edits = [edits] if hasattr(edits, "apply") else list(edits)  # type: ignore[list-item, arg-type]
    _check(orders, positions, max_new_tokens, edits_of(model, edits))
    through = sight(model, lens, site, layers)
    written = None
    if max_new_tokens:
        generation = model.generate(x, edits=edits, max_new_tokens=max_new_tokens)
        x, written = generation.ids, _written(generation.ids, generation.prompt.lengths)
    states = states_of(model, x, through.sites, positions, edits)
    orders = [float(order) for order in orders]
    seen = states.read_out(through.translate, {f"H{order:g}": renyi(order) for order in orders}, quiet=quiet)
    chosen = states.chosen.cpu() if written is None else states.chosen.cpu() & written
    grids = {name: states.spread(grid).masked_fill(~chosen, float("nan")) for name, grid in seen.measures.items()}
    return EntropyProfile(model, through.sites, through.lens, states.tokens, chosen, grids, tuple(orders))


def _written(tokens: TokenBatch, prompts: Tensor) -> Bool[Tensor, "batch pos"]:
    """The cells that written tokens were predicted from: the token at position i was predicted at i - 1, and the last
    one predicts nothing that was written."""
    index, ends = tokens.positions.cpu(), tokens.lengths.cpu()[:, None]
    return tokens.mask.cpu() & (index >= prompts.cpu()[:, None] - 1) & (index < ends - 1)


def _check(
    orders: Sequence[float], positions: Positions | None, max_new_tokens: int, edits: Iterable[EditLike]
) -> None:
    if not orders or min(orders) < 0:
        raise BadInput(f"orders must be at least 0, and one at least: {list(orders)}")
    if not max_new_tokens:
        return
    if positions is not None:
        raise BadInput("give positions, or max_new_tokens: a generation is read where its tokens were predicted")
    for edit in edits:
        if knows_the_prompt(edit):
            raise BadInput(
                f"{edit} has a scope, or positions from the end, and would reach other tokens once the continuation is "
                "read as a whole; with max_new_tokens, edit all tokens"
            )
