"""Maps between residual streams: what a patchscope sends an activation through on its way to another place or model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, Mismatch
from ...models import Model
from ..fitted import Fitted, Header
from ..regression import NormalEquations

# [*batch d_source] -> [*batch d_target]; one for all layers, or one for each source layer
Map = Callable[[Tensor], Tensor]
MapLike = Map | Mapping[int, Map] | None


@dataclass(frozen=True)
class AffineHeader(Header):
    """Between which streams an affine map goes; names are empty and layers None for a map of rows (`Affine.of_rows`).

    Attributes:
        d_model: the width of the source, d_target of the target.
        tokens: rows that it was fitted on.
    """

    d_target: int
    ridge: float
    tokens: int
    target_name: str = ""
    site: str = ""
    layer: int | None = None
    target_layer: int | None = None


@dataclass(frozen=True, eq=False)
class Affine(Fitted):
    """x @ weight + bias, in float32; right-multiplied as all matrices here.

    Attributes:
        weight: `d_source d_target`. bias: `d_target`.
    """

    kind: ClassVar[str] = "affine"

    header: AffineHeader
    weight: Float[Tensor, "d_source d_target"] = field(repr=False)
    bias: Float[Tensor, "d_target"] = field(repr=False)

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        d_target = self.header.d_target
        return {"weight": (self.header.d_model, d_target), "bias": (d_target,)}

    def __call__(self, x: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_target"]:
        return x.float() @ self.weight.to(x.device) + self.bias.to(x.device)

    @classmethod
    def of_rows(cls, x: Float[Tensor, "n d_source"], y: Float[Tensor, "n d_target"], *, ridge: float = 1e-3) -> Self:
        """The least-squares map from rows of x to rows of y.

        Args:
            ridge: penalty on the weight in units of the mean variance of x, so that its meaning does not depend on
                the scale of the stream; the bias is free. 0 is plain least squares and needs n > d_source.

        Raises:
            BadInput: fewer than two rows, rows that do not pair up, a negative ridge.
        """
        if len(x) != len(y) or len(x) < 2 or ridge < 0:
            raise BadInput(f"an affine fit needs 2 or more pairs and ridge >= 0; got {len(x)}, {len(y)}, ridge {ridge}")
        sums = NormalEquations()
        sums.add(x.double(), y.double())
        weight, bias = sums.solve(ridge, "mean")
        return cls(AffineHeader("", x.shape[1], None, y.shape[1], ridge, len(x)), weight, bias)

    @classmethod
    def fit(
        cls,
        model: Model,
        texts: Any,
        target: Model,
        *,
        layer: int,
        target_layer: int,
        site: str = "resid_post",
        ridge: float = 1e-3,
        skip_first: int = 1,
    ) -> Self:
        """The affine map from one model's stream to another's, fitted on the same tokens of the same texts.

        Args:
            texts: anything that `Model.run` takes; some thousands of tokens, more than the source's d_model.
            ridge: as in `of_rows`.
            skip_first: leading tokens of each text to leave out: attention sinks there have norms 100 times the
                median's.

        Raises:
            Mismatch: the two tokenizers split the texts differently, so that tokens do not pair up.
        """
        tokens, other = model.tokens(texts), target.tokens(texts)
        if tokens.rows() != other.rows():
            raise Mismatch(
                f"{model.name} and {target.name} split these texts into different tokens; fit Affine.of_rows(x, y) on "
                "activations that you pair up yourself"
            )
        rows = []
        for side, batch, at in ((model, tokens, layer), (target, other, target_layer)):
            value = side.run(batch, capture=f"{site}.{at}", logits=False)[f"{site}.{at}"]
            rows.append(value[(batch.mask & (batch.positions >= skip_first)).to(value.device)].cpu())
        fitted = cls.of_rows(rows[0], rows[1], ridge=ridge)
        names = replace(fitted.header, model_name=model.name, target_name=target.name)
        return replace(fitted, header=replace(names, site=site, layer=layer, target_layer=target_layer))


def mapped(h: Float[Tensor, "*batch d_source"], mapping: MapLike, layer: int, d_target: int) -> Tensor:
    """h of a source layer, sent through the mapping.

    Raises:
        Mismatch: the result does not have the width of the target's stream (also without a mapping, when the two models
            differ). BadInput: no map for this layer in a table of maps.
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
            "give mapping=, for example monosem.lenses.Affine.fit(model, texts, target, ...)"
        )
    return out
