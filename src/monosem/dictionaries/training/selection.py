"""Which latents are active: top-k of each token, or of the whole batch (BatchTopK, arXiv 2412.06410).

The encoder's dense product is most of a training step on a CPU, so it runs in chunks that stay in cache. Where the CPU
multiplies bfloat16 in hardware, the product is a *screen*: more candidates than needed are taken from it, and ranked by
their float32 pre-activations. Float32 would choose the same, which is proved: by Cauchy and Schwarz

    |x·w − x̃·w̃| ≤ ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖        x̃, w̃: x and w rounded to bfloat16

so that no latent outside the candidates can be above the last one chosen. A token without a proof is done in float32.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...models.loading.precision import has_native_bf16
from .sparse import Support, rows_dot

CHUNK = 1024  # tokens a product: [1024, F] stays near the cache, and no [batch, F] array is allocated
GROUP = 16  # latents a group in `top_columns`
SCREEN = 2  # candidates per place when the product is screened in bfloat16: enough of a proof for nearly every token
BOUND_TOKENS = 64  # tokens from which BatchTopK guesses its threshold
BOUND_SHARE = 0.8  # of that guess, for the candidates
ROUNDING = 2.0**-8  # of a number to bfloat16 twice, after the product and after the bias

Encoder = tuple[Float[Tensor, "width d"], Float[Tensor, "width"]]  # W_enc, b_enc
Chosen = tuple[Support, Float[Tensor, "places"]]  # where latents are active, and their pre-activations there


def screens(device: torch.device) -> bool:
    """Whether a screen is faster than float32. It needs the CPU's answer token by token: a GPU would have to wait."""
    return device.type == "cpu" and has_native_bf16(device)


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


def true_places(mask: Bool[Tensor, "batch width"]) -> Int[Tensor, "places"]:
    """Where a mask is true, counted row by row. Few places are: eight are looked at as one number."""
    if mask.shape[1] % 8:
        return mask.flatten().nonzero().flatten()
    words = mask.view(torch.int64).flatten().nonzero().flatten()
    inside = mask.view(-1, 8)[words].flatten().nonzero().flatten()
    return words[inside // 8] * 8 + inside % 8


def _products(x: Tensor, encoder: Encoder) -> Iterator[Tensor]:
    """Pre-activations chunk by chunk, in one reused buffer."""
    weight, bias = encoder
    buffer = x.new_empty(min(CHUNK, len(x)), len(weight))
    for chunk in x.split(CHUNK):
        yield torch.addmm(bias, chunk, weight.T, out=buffer[: len(chunk)])


def _screen(x: Float[Tensor, "batch d"], encoder: Encoder) -> tuple[Iterator[Tensor], Float[Tensor, "batch"]]:
    """Pre-activations in bfloat16, and by how much any pre-activation of a token may be wrong before they are
    rounded. Float32's own rounding of a sum of d products, and the bias's, are in it."""
    weight, bias = encoder
    near, near_weight = x.bfloat16(), weight.bfloat16()
    norm, moved = x.norm(dim=1), near.float().sub_(x).norm(dim=1)
    largest, largest_moved = weight.norm(dim=1).amax(), near_weight.float().sub_(weight).norm(dim=1).amax()
    sums = 2 * x.shape[1] * torch.finfo(torch.float32).eps
    wrong = moved * largest + (norm + moved) * (largest_moved + sums * largest)
    margin = 1.01 * wrong + ROUNDING * bias.abs().amax()
    return _products(near, (near_weight, bias.bfloat16())), margin


def _sizes(pre: Tensor, signed: bool) -> Tensor:
    return pre.abs() if signed else pre


def _plain(
    x: Tensor, encoder: Encoder, k: int, signed: bool
) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    columns, values = [], []
    for pre in _products(x, encoder):
        columns.append(top_columns(_sizes(pre, signed), k))
        values.append(pre.gather(1, columns[-1]))
    return torch.cat(columns), torch.cat(values)


def _screened(x: Tensor, encoder: Encoder, k: int, signed: bool) -> tuple[Tensor, Tensor]:
    """`_plain` by a screen in bfloat16, with a proof for every token; those without are done again."""
    columns, last = [], []  # the smallest candidate of every token: what is no candidate is not above it
    products, margin = _screen(x, encoder)
    for rough in products:
        rough = rough.abs_() if signed else rough
        columns.append(top_columns(rough, SCREEN * k))
        last.append(rough.gather(1, columns[-1]).amin(1).float())
    candidates, below = torch.cat(columns), torch.cat(last)
    exact = rows_dot(Support.of(candidates, len(encoder[1])), x, encoder[0]).view_as(candidates)
    exact += encoder[1][candidates]
    best = _sizes(exact, signed).topk(k, sorted=False)
    found, values = candidates.gather(1, best.indices), exact.gather(1, best.indices)
    proved = best.values.amin(1) >= below + ROUNDING * below.abs() + margin
    if not proved.all():
        rest = (~proved).nonzero().flatten()  # a row with NaN, too
        found[rest], values[rest] = _plain(x[rest], encoder, k, signed)
    return found, values


def _largest(x: Tensor, encoder: Encoder, k: int, screen: bool, signed: bool = False) -> Chosen:
    """The k largest pre-activations of every token; `signed`: the k of largest magnitude."""
    width = len(encoder[1])
    columns, values = (_screened if screen and SCREEN * k < width else _plain)(x, encoder, k, signed)
    return Support.of(columns, width), values.flatten()


def select_topk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Chosen:
    """The k largest pre-activations of each token."""
    return _largest(centred, encoder, k, screen)


def select_abstopk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Chosen:
    """The k largest magnitudes of each token."""
    return _largest(centred, encoder, k, screen, signed=True)


def select_batchtopk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Chosen:
    """The k·batch largest positive pre-activations of the whole batch; how many a token gets varies.

    Candidates are all pre-activations above a bound that a few tokens suggest. Were they too few, the bound was too
    high and is lowered.
    """
    batch, width = len(centred), len(encoder[1])
    bound = _bound(centred, encoder, k)
    while True:
        screened = screen and bound > 0  # above 0 are too many to rank one by one
        candidates, pre = (above_screened if screened else _above)(centred, encoder, bound)
        largest = pre.topk(min(k * batch, len(pre)), sorted=False)
        # what is no candidate is not above the bound; screened candidates may be below it
        enough = len(pre) >= k * batch and (not screened or bool(largest.values.amin() >= bound))
        if enough or bound == 0:
            break
        bound = bound / 2 if bound > 1e-3 * float(centred.abs().amax()) else 0.0
    chosen = torch.zeros_like(pre, dtype=torch.bool)
    chosen[largest.indices] = True
    chosen &= pre > 0
    counts = torch.bincount(candidates.rows[chosen], minlength=batch)
    return Support(candidates.columns[chosen], counts.cumsum(0) - counts, width), pre[chosen]


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
    return _above(centred, encoder, bound)[0]


def _above(x: Tensor, encoder: Encoder, bound: Tensor | float) -> Chosen:
    """All places with a pre-activation above the bound."""
    columns, counts, values = [], [], []
    for pre in _products(x, encoder):
        places = true_places(pre > bound)
        columns.append(places % pre.shape[1])
        counts.append(torch.bincount(places // pre.shape[1], minlength=len(pre)))
        values.append(pre.flatten()[places])
    return _support(columns, counts, len(encoder[1])), torch.cat(values)


def above_screened(x: Tensor, encoder: Encoder, bound: float) -> Chosen:
    """At least all places with a pre-activation above the bound."""
    products, margin = _screen(x, encoder)
    lowered = bound - margin
    lowered = (lowered - 2.02 * ROUNDING * lowered.abs()).bfloat16()  # once more for its own rounding
    columns, counts = [], []
    for rough, least in zip(products, lowered.split(CHUNK)):
        places = true_places(rough > least[:, None])
        columns.append(places % rough.shape[1])
        counts.append(torch.bincount(places // rough.shape[1], minlength=len(rough)))
    support = _support(columns, counts, len(encoder[1]))
    return support, rows_dot(support, x, encoder[0]) + encoder[1][support.columns]


def _support(columns: list[Tensor], counts: list[Tensor], width: int) -> Support:
    count = torch.cat(counts)
    return Support(torch.cat(columns), count.cumsum(0) - count, width)


SELECTIONS: dict[str, Callable[[Tensor, Encoder, int, bool], Chosen]] = {
    "topk": select_topk,
    "batchtopk": select_batchtopk,
    "abstopk": select_abstopk,
}
