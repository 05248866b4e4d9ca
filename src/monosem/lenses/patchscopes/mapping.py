"""Maps between residual streams: what a patchscope sends an activation through on its way to another place or model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, Mismatch
from ...models import Model

# [*batch d_source] -> [*batch d_target]; one for all layers, or one for each source layer
Map = Callable[[Tensor], Tensor]
MapLike = Map | Mapping[int, Map] | None


@dataclass(frozen=True, eq=False)
class Affine:
    """x @ weight + bias, in float32; right-multiplied as all matrices here.

    Attributes:
        weight: `d_source d_target`.
        bias: `d_target`.
    """

    weight: Float[Tensor, "d_source d_target"]
    bias: Float[Tensor, "d_target"]

    def __call__(self, x: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_target"]:
        return x.float() @ self.weight.to(x.device) + self.bias.to(x.device)

    @classmethod
    def fit(cls, x: Float[Tensor, "n d_source"], y: Float[Tensor, "n d_target"], ridge: float = 1e-3) -> Self:
        """The least-squares map from rows of x to rows of y.

        Args:
            ridge: penalty on the weight in units of the mean variance of x, so that its meaning does not depend on
                the scale of the stream; the bias is free. 0 is plain least squares and needs n > d_source.

        Raises:
            BadInput: fewer than two rows, rows that do not pair up, a negative ridge.
        """
        if len(x) != len(y) or len(x) < 2 or ridge < 0:
            raise BadInput(f"an affine fit needs 2 or more pairs and ridge >= 0; got {len(x)}, {len(y)}, ridge {ridge}")
        x, y = x.double(), y.double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        gram = x.T @ x
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        weight = (
            torch.linalg.lstsq(gram, x.T @ y, driver="gelsd").solution
            if ridge == 0
            else torch.linalg.solve(gram, x.T @ y)
        )
        return cls(weight.float(), (mean_y - mean_x @ weight).float())


def affine_between(
    source: Model,
    target: Model,
    texts: Any,
    layer: int,
    target_layer: int,
    site: str = "resid_post",
    ridge: float = 1e-3,
    skip_first: int = 1,
) -> Affine:
    """The affine map from one model's stream to another's, fitted on the same tokens of the same texts.

    Args:
        texts: anything that `Model.run` takes; some thousands of tokens, more than the source's d_model.
        skip_first: leading tokens of each text to leave out: attention sinks there have norms 100 times the median's.

    Raises:
        Mismatch: the two tokenizers split the texts differently, so that tokens do not pair up.
    """
    ours, theirs = source.tokens(texts), target.tokens(texts)
    if ours.rows() != theirs.rows():
        raise Mismatch(
            f"{source.name} and {target.name} split these texts into different tokens; fit Affine.fit(x, y) on "
            "activations that you pair up yourself"
        )
    rows = []
    for model, tokens, at in ((source, ours, layer), (target, theirs, target_layer)):
        name = f"{site}.{at}"
        value = model.run(tokens, capture=name, logits=False)[name]
        rows.append(value[(tokens.mask & (tokens.positions >= skip_first)).to(value.device)].cpu())
    return Affine.fit(rows[0], rows[1], ridge)


def mapped(h: Float[Tensor, "*batch d_source"], mapping: MapLike, layer: int, d_target: int) -> Tensor:
    """h of a source layer, sent through the mapping.

    Raises:
        Mismatch: what comes out has not the width of the target's stream; without a mapping, the two models differ.
        BadInput: no map for this layer in a table of maps.
    """
    if isinstance(mapping, Mapping):
        if layer not in mapping:
            raise BadInput(f"no map for layer {layer}; there are maps for layers {sorted(mapping)}")
        mapping = mapping[layer]
    out = h if mapping is None else mapping(h)
    if out.shape != (*h.shape[:-1], d_target):
        what = "without a mapping" if mapping is None else f"the mapping returned {tuple(out.shape)} and"
        raise Mismatch(
            f"{what} an activation of width {h.shape[-1]} does not fit a stream of width {d_target}; "
            "give mapping=, for example monosem.lenses.affine_between(source, target, texts, ...)"
        )
    return out
