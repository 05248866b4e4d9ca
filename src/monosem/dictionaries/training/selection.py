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
BOUND_TOKENS = 64  # tokens from which BatchTopK guesses its threshold
BOUND_SHARE = 0.8  # of that guess, for the candidates
CLEAR = 1.05  # bfloat16 rounds to 1 part in 256, and its errors average out over a product

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


def _columns(x: Tensor, encoder: Encoder, n: int, screen: bool, signed: bool = False) -> Int[Tensor, "batch n"]:
    """Columns of the n largest pre-activations of every token; `signed`: of the largest magnitudes."""
    width = len(encoder[1])
    if screen and SCREEN * n < width:
        products = _products(x, encoder, torch.bfloat16)
        columns = torch.cat([top_columns(pre.abs_() if signed else pre, SCREEN * n) for pre in products])
        exact = rows_dot(Support.of(columns, width), x, encoder[0]).view_as(columns) + encoder[1][columns]
        place = (exact.abs_() if signed else exact).topk(n, sorted=False).indices
        return columns.gather(1, place)
    products = _products(x, encoder, x.dtype)
    return torch.cat([top_columns(pre.abs_() if signed else pre, n) for pre in products])


def select_topk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Support:
    """The k largest pre-activations of each token."""
    return Support.of(_columns(centred, encoder, k, screen), len(encoder[1]))


def select_abstopk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Support:
    """The k largest magnitudes of each token."""
    return Support.of(_columns(centred, encoder, k, screen, signed=True), len(encoder[1]))


def select_batchtopk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Support:
    """The k·batch largest positive pre-activations of the whole batch; how many a token gets varies.

    Exact: candidates are all pre-activations above a bound that a few tokens suggest. Were they too few, the bound was
    too high and is lowered.
    """
    batch, width = len(centred), len(encoder[1])
    bound = _bound(centred, encoder, k)
    while True:
        candidates, pre = _above(centred, encoder, bound, screen)
        largest = pre.topk(min(k * batch, len(pre)), sorted=False)
        # screened candidates near the bound may be incomplete (rounding), so the choice has to stay clear of it
        clear = len(pre) >= k * batch and (not screen or bool(largest.values.amin() > CLEAR * bound))
        if clear or bound == 0:
            break
        bound = bound / 2 if bound > 1e-3 * float(centred.abs().amax()) else 0.0
    chosen = torch.zeros_like(pre, dtype=torch.bool)
    chosen[largest.indices] = True
    chosen &= pre > 0
    counts = torch.bincount(candidates.rows[chosen], minlength=batch)
    return Support(candidates.columns[chosen], counts.cumsum(0) - counts, width)


def _bound(x: Tensor, encoder: Encoder, k: int) -> float:
    """A little below where the threshold of the batch lies among some evenly taken tokens; never negative."""
    some = x[:: max(len(x) // BOUND_TOKENS, 1)]
    pre = torch.addmm(encoder[1], some, encoder[0].T).flatten()
    return max(BOUND_SHARE * float(pre.topk(min(k * len(some), len(pre)), sorted=False).values.amin()), 0.0)


def select_above(
    centred: Float[Tensor, "batch d"], encoder: Encoder, bound: Float[Tensor, "width"] | float, most: float
) -> Support | None:
    """All places with a pre-activation above their latent's bound; None where they are more than the share `most` of
    all, as some evenly taken tokens say: a dense product is then faster."""
    some = centred[:: max(len(centred) // BOUND_TOKENS, 1)]
    if float((torch.addmm(encoder[1], some, encoder[0].T) > bound).float().mean()) > most:
        return None
    return _above(centred, encoder, bound, screen=False)[0]


def _above(x: Tensor, encoder: Encoder, bound: Tensor | float, screen: bool) -> tuple[Support, Tensor]:
    """All places with a pre-activation above the bound, and these pre-activations in float32."""
    columns, counts, values = [], [], []
    width = len(encoder[1])
    for pre in _products(x, encoder, torch.bfloat16 if screen else x.dtype):
        places = (pre > bound).flatten().nonzero().flatten()
        columns.append(places % width)
        counts.append(torch.bincount(places // width, minlength=len(pre)))
        values.append(pre.flatten()[places])
    count = torch.cat(counts)
    support = Support(torch.cat(columns), count.cumsum(0) - count, width)
    if screen:
        return support, rows_dot(support, x, encoder[0]) + encoder[1][support.columns]
    return support, torch.cat(values)


SELECTIONS: dict[str, Callable[[Tensor, Encoder, int, bool], Support]] = {
    "topk": select_topk,
    "batchtopk": select_batchtopk,
    "abstopk": select_abstopk,
}
