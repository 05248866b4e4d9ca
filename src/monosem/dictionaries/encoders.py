"""Encoder kinds: how pre-activations become sparse codes. A new kind is a new row of `ENCODERS`.

| kind | activation | needs | source |
|---|---|---|---|
| relu | max(pre, 0) | | Bricken et al. 2023, Towards Monosemanticity |
| jumprelu | max(pre, 0) where pre > threshold | threshold | Rajamanoharan et al. 2024, arXiv 2407.14435 |
| topk | the k largest of each token, then max(., 0) | k | Gao et al. 2024, arXiv 2406.04093 |
| abstopk | the k largest magnitudes of each token, sign kept | k | SAELens `abstopk` |

BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) selects over a whole training batch (`batch_topk`) and has no such
meaning for a single token: at inference it IS a jumprelu with one threshold for all latents, and is stored as that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Selected = tuple[Float[Tensor, "n slots"], Int[Tensor, "n slots"]]


@dataclass(frozen=True)
class Encoder:
    """One kind. Exactly one of `each` and `select` is set.

    each: `(pre [..., F], threshold [F] | None) -> acts [..., F]`, each latent from its own pre-activation only.
    select: `(pre [n, F], k) -> (values [n, k], indices [n, k])`, where latents compete for k places.
    """

    each: Callable[[Tensor, Tensor | None], Tensor] | None = None
    select: Callable[[Tensor, int], Selected] | None = None
    needs: str | None = None  # "k", "threshold" or nothing


def _relu(pre: Tensor, threshold: Tensor | None) -> Tensor:
    return pre.relu()


def _jumprelu(pre: Tensor, threshold: Tensor | None) -> Tensor:
    assert threshold is not None
    # a product, not torch.where: NaN then stays NaN instead of looking like an inactive latent
    return pre.relu() * (pre > threshold)


def _topk(pre: Float[Tensor, "n width"], k: int) -> Selected:
    values, indices = pre.topk(min(k, pre.shape[-1]), dim=-1)
    return _without_zeros(values.relu(), indices)


def _abstopk(pre: Float[Tensor, "n width"], k: int) -> Selected:
    indices = pre.detach().abs().topk(min(k, pre.shape[-1]), dim=-1).indices
    return _without_zeros(pre.gather(-1, indices), indices)


ENCODERS = {
    "relu": Encoder(each=_relu),
    "jumprelu": Encoder(each=_jumprelu, needs="threshold"),
    "topk": Encoder(select=_topk, needs="k"),
    "abstopk": Encoder(select=_abstopk, needs="k"),
}


def encode(pre: Float[Tensor, "n width"], kind: str, k: int | None, threshold: Tensor | None) -> Selected:
    """Pre-activations to padded sparse values and indices."""
    encoder = ENCODERS[kind]
    if encoder.select is not None:
        assert k is not None
        return encoder.select(pre, k)
    assert encoder.each is not None
    acts = encoder.each(pre, threshold)
    return pack(acts, acts.detach() != 0)


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
