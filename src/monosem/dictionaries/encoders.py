"""Encoder kinds: how pre-activations become sparse codes. A new kind is a new row of `ENCODERS`.

| kind | activation | needs | source |
|---|---|---|---|
| relu | max(pre, 0) | | Bricken et al. 2023, Towards Monosemanticity |
| jumprelu | max(pre, 0) where pre > threshold | threshold | Rajamanoharan et al. 2024, arXiv 2407.14435 |
| jump | pre where pre > threshold, also below 0 | threshold | circuit-tracer's JumpReLU, of a negative threshold |
| absjump | pre where \\|pre\\| > threshold | threshold | prefscope's signed BatchTopK at inference |
| topk | the k largest of each token, then max(., 0) | k | Gao et al. 2024, arXiv 2406.04093 |
| jumptopk | the k largest of each token's jumprelu | k, threshold | latentsae's BatchTopK and JumpReLU |
| abstopk | the k largest magnitudes of each token, sign kept | k | SAELens `abstopk`, arXiv 2510.00404 |
| groupmax | the largest of each of k groups of neighbours, then max(., 0) | k | sparsify `groupmax` |
| matching_pursuit | one latent after the other, of what is left | see `pursuit` | SAELens `matching_pursuit` |
| temporal | topk of what earlier tokens do not predict | see `temporal` | arXiv 2511.01836 |

BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) selects over a whole training batch (`batch_topk`) and has no such
meaning for a single token: at inference it IS a jumprelu with one threshold for all latents, and is stored as that.
A gated linear unit (`W_glu`, `b_glu`) is no kind: it makes other pre-activations, for any kind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .pursuit import pursue
from .temporal import novel_codes, temporal_shapes

DENSE_ELEMENTS = 2**26  # pre-activations held at once: 256 MiB of float32
Selected = tuple[Float[Tensor, "n slots"], Int[Tensor, "n slots"]]
Found = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Encoder:
    """One kind. Exactly one of `each`, `select` and `find` is set.

    each: `(pre [..., F], threshold [F] | None) -> acts [..., F]`, each latent from its own pre-activation only.
    silent: of the same, where `each` is surely 0; quicker to say.
    select: `(pre [n, F], k) -> (values [n, k], indices [n, k])`, where latents compete for k places; with a threshold,
        of `jumprelu(pre)`.
    find: `(z, tensors, k, options) -> (values, indices, predicted)`, from the input and all tensors by name;
        `predicted [..., d_out]` is what the reconstruction holds beside the codes (None: nothing).
    needs: "k", "threshold", both or neither.
    options: what else it is told (`DictionaryParts.options`), and the type of each.
    extra: d_in and width to names and shapes of further tensors (`DictionaryTensors.extra`); -1 is any size.
    whole_texts: `find` reads `[batch, pos, d_in]`: codes of a token depend on those before it.
    """

    each: Callable[[Tensor, Tensor | None], Tensor] | None = None
    silent: Callable[[Tensor, Tensor | None], Tensor] | None = None
    select: Callable[[Tensor, int], Selected] | None = None
    find: Callable[[Tensor, Mapping[str, Tensor], int | None, Mapping[str, Any]], Found] | None = None
    needs: tuple[str, ...] = ()
    options: Mapping[str, type] = field(default_factory=dict)
    extra: Callable[[int, int], Mapping[str, tuple[int, ...]]] = lambda d_in, width: {}
    whole_texts: bool = False


def _relu(pre: Tensor, threshold: Tensor | None) -> Tensor:
    return pre.relu()


def _below(pre: Tensor, threshold: Tensor | None) -> Tensor:
    assert threshold is not None
    return pre <= threshold


def _jumprelu(pre: Tensor, threshold: Tensor | None) -> Tensor:
    assert threshold is not None
    # a product, not torch.where: NaN then stays NaN instead of looking like an inactive latent
    return pre.relu() * (pre > threshold)


def _jump(pre: Tensor, threshold: Tensor | None) -> Tensor:
    assert threshold is not None
    return pre * (pre > threshold)


def _absjump(pre: Tensor, threshold: Tensor | None) -> Tensor:
    assert threshold is not None
    return pre * (pre.abs() > threshold)


def _topk(pre: Float[Tensor, "n width"], k: int) -> Selected:
    values, indices = pre.topk(min(k, pre.shape[-1]), dim=-1)
    return _without_zeros(values.relu(), indices)


def _abstopk(pre: Float[Tensor, "n width"], k: int) -> Selected:
    indices = pre.detach().abs().topk(min(k, pre.shape[-1]), dim=-1).indices
    return _without_zeros(pre.gather(-1, indices), indices)


def _groupmax(pre: Float[Tensor, "n width"], k: int) -> Selected:
    values, places = pre.relu().unflatten(-1, (k, -1)).max(-1)
    first = torch.arange(0, pre.shape[-1], pre.shape[-1] // k, device=pre.device)
    return _without_zeros(values, places + first)


ENCODERS = {
    "relu": Encoder(each=_relu, silent=lambda pre, threshold: pre <= 0),
    "jumprelu": Encoder(each=_jumprelu, silent=_below, needs=("threshold",)),
    "jump": Encoder(each=_jump, silent=_below, needs=("threshold",)),
    "absjump": Encoder(each=_absjump, silent=lambda pre, threshold: _below(pre.abs(), threshold), needs=("threshold",)),
    "topk": Encoder(select=_topk, needs=("k",)),
    "jumptopk": Encoder(select=_topk, needs=("k", "threshold")),
    "abstopk": Encoder(select=_abstopk, needs=("k",)),
    "groupmax": Encoder(select=_groupmax, needs=("k",)),
    "matching_pursuit": Encoder(find=pursue, options={"steps": int, "tolerance": float, "stop_at_repeat": bool}),
    "temporal": Encoder(
        find=novel_codes, needs=("k",), options={"heads": int, "eps": float}, extra=temporal_shapes, whole_texts=True
    ),
}


def encode(pre: Float[Tensor, "n width"], kind: str, k: int | None, threshold: Tensor | None) -> Selected:
    """Pre-activations to padded sparse values and indices, of a kind that needs no more than these."""
    encoder = ENCODERS[kind]
    if encoder.select is not None:
        assert k is not None
        return encoder.select(pre if threshold is None else _jumprelu(pre, threshold), k)
    assert encoder.each is not None
    acts = encoder.each(pre, threshold)
    return pack(acts, acts.detach() != 0)


def firings(
    pre: Float[Tensor, "n width"], kind: str, k: int | None, threshold: Tensor | None
) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m"]]:
    """Row, latent and activation of every code that is not 0, in the order of rows: as `encode`, without padding."""
    encoder = ENCODERS[kind]
    if encoder.each is None or encoder.silent is None:
        values, indices = encode(pre, kind, k, threshold)
        rows, places = (values != 0).nonzero(as_tuple=True)
        return rows, indices[rows, places], values[rows, places]
    # NumPy finds the few places of a large array many times as fast
    places = torch.from_numpy(np.flatnonzero(~encoder.silent(pre, threshold).cpu().numpy())).to(pre.device)
    latents = places % pre.shape[-1]
    values = encoder.each(pre.flatten()[places], None if threshold is None else threshold[latents])
    active = values != 0
    return (places // pre.shape[-1])[active], latents[active], values[active]


def stacked(parts: Sequence[Selected]) -> Selected:
    """Codes of several groups of rows as one: all as wide as the widest."""
    slots = max(values.shape[-1] for values, _ in parts)
    padded = [[F.pad(column, (0, slots - column.shape[-1])) for column in part] for part in parts]
    values, indices = padded[0] if len(parts) == 1 else map(torch.cat, zip(*padded))
    return values, indices


def batch_topk(pre: Float[Tensor, "n width"], k: float) -> Selected:
    """The `k * n` largest positive pre-activations of the whole batch (for training; k is the mean a token)."""
    acts = pre.relu()
    flat = acts.detach().flatten()
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.topk(min(int(k * pre.shape[0]), flat.numel())).indices] = True
    return pack(acts, kept.view_as(acts) & (acts.detach() > 0))


def pack(acts: Float[Tensor, "n width"], kept: Bool[Tensor, "n width"]) -> Selected:
    """Dense activations to sparse rows, as wide as the fullest row; padded with value 0 at index 0."""
    counts = kept.sum(-1)
    slots = int(counts.max()) if len(counts) else 0
    rows, columns = kept.nonzero(as_tuple=True)
    place = torch.arange(len(rows), device=acts.device) - (counts.cumsum(0) - counts)[rows]
    indices = columns.new_zeros(acts.shape[0], slots).index_put((rows, place), columns)
    values = acts.new_zeros(acts.shape[0], slots).index_put((rows, place), acts[rows, columns])
    return values, indices


def _without_zeros(values: Tensor, indices: Tensor) -> Selected:
    return values, torch.where(values.detach() != 0, indices, 0)
