"""Which latents are active: top-k of each token, or of the whole batch (BatchTopK, arXiv 2412.06410).

The encoder's dense product is most of a training step on a CPU, so it runs in chunks that stay in cache, and may run in
bfloat16 as a *screen*: more candidates than needed are taken from the bfloat16 product, then ranked by their exact
float32 pre-activations. Only the choice can differ from float32 (when rounding moves a true member out of twice as many
candidates), never a value or a gradient.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .sparse import Support, rows_dot

CHUNK = 1024  # tokens a product: [1024, F] stays near the cache, and no [batch, F] array is allocated
GROUP = 16  # latents a group in `top_columns`
SCREEN = 2  # candidates per place when the product is screened in bfloat16

Encoder = tuple[Float[Tensor, "width d"], Float[Tensor, "width"]]  # W_enc, b_enc


def top_columns(pre: Float[Tensor, "batch width"], k: int) -> Int[Tensor, "batch k"]:
    """Columns of the k largest of every row, in no order.

    Exact: the k largest lie in the k groups with the largest maxima (any other group is beaten by k group maxima), so
    two small selections replace one over the whole row.
    """
    batch, width = pre.shape
    groups = width // GROUP
    if width % GROUP or groups <= k * 2:
        return pre.topk(k, sorted=False).indices
    grouped = pre.view(batch, GROUP, groups)  # group g holds columns g, g + groups, g + 2·groups, ...
    best = grouped.amax(1).topk(k, sorted=False).indices
    candidates = grouped.gather(2, best[:, None, :].expand(-1, GROUP, -1)).flatten(1)
    place = candidates.topk(k, sorted=False).indices
    return (place // k) * groups + best.gather(1, place % k)


def _products(x: Tensor, encoder: Encoder, dtype: torch.dtype) -> Iterator[Tensor]:
    """Pre-activations chunk by chunk, in one reused buffer."""
    weight, bias, x = encoder[0].to(dtype).T, encoder[1].to(dtype), x.to(dtype)
    buffer = x.new_empty(min(CHUNK, len(x)), weight.shape[1])
    for chunk in x.split(CHUNK):
        yield torch.addmm(bias, chunk, weight, out=buffer[: len(chunk)])


def _candidates(x: Tensor, encoder: Encoder, n: int, screen: bool) -> tuple[Tensor, Tensor]:
    """Columns and exact float32 pre-activations [batch, n] of the n largest of every token."""
    width = len(encoder[1])
    if screen and SCREEN * n < width:
        columns = torch.cat([top_columns(pre, SCREEN * n) for pre in _products(x, encoder, torch.bfloat16)])
        exact = rows_dot(Support.of(columns, width), x, encoder[0]).view_as(columns) + encoder[1][columns]
        values, place = exact.topk(n, sorted=False)
        return columns.gather(1, place), values
    found = [(top := top_columns(pre, n), pre.gather(1, top)) for pre in _products(x, encoder, x.dtype)]
    return torch.cat([columns for columns, _ in found]), torch.cat([values for _, values in found])


def select_topk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Support:
    """The k largest pre-activations of each token."""
    return Support.of(_candidates(centred, encoder, k, screen)[0], len(encoder[1]))


def select_batchtopk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Support:
    """The k·batch largest positive pre-activations of the whole batch; how many a token gets varies.

    Exact: candidates are the n largest of each token. If some token had all its candidates chosen, others of its
    latents might belong, and n is doubled.
    """
    batch, width = len(centred), len(encoder[1])
    n = min(4 * k, width)
    while True:
        columns, pre = _candidates(centred, encoder, n, screen)
        chosen = torch.zeros(pre.numel(), dtype=torch.bool, device=pre.device)
        chosen[pre.flatten().topk(min(k * batch, pre.numel()), sorted=False).indices] = True
        chosen = chosen.view_as(pre) & (pre > 0)
        if n == width or not chosen.all(1).any():
            break
        n = min(2 * n, width)
    counts = chosen.sum(1)
    return Support(columns[chosen], counts.cumsum(0) - counts, width)


SELECTIONS: dict[str, Callable[[Tensor, Encoder, int, bool], Support]] = {
    "topk": select_topk,
    "batchtopk": select_batchtopk,
}
