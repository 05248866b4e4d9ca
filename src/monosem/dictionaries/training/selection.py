"""Which latents are active: top-k of each token, or of the whole batch (BatchTopK, arXiv 2412.06410).

The encoder's dense product is most of a training step on a CPU, so it runs in chunks that stay in cache. Where the CPU
has the instructions, it gives way to a look in 8 bits (`screen.py`), and to float32 at the few places that this leaves.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .screen import CHUNK, Encoder, evenly, near_above, near_top, true_places
from .sparse import Support, rows_dot

GROUP = 16  # latents a group in `top_columns`
BOUND_SHARE = 0.9  # of the threshold that a few tokens suggest, for BatchTopK's candidates

Chosen = tuple[Support, Float[Tensor, "places"]]  # where latents are active, and their pre-activations there


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


def _products(x: Tensor, encoder: Encoder) -> Iterator[Tensor]:
    """Pre-activations chunk by chunk, in one reused buffer."""
    weight, bias = encoder
    buffer = x.new_empty(min(CHUNK, len(x)), len(weight))
    for chunk in x.split(CHUNK):
        yield torch.addmm(bias, chunk, weight.T, out=buffer[: len(chunk)])


def _plain(
    x: Tensor, encoder: Encoder, k: int, signed: bool
) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    columns, values = [], []
    for pre in _products(x, encoder):
        columns.append(top_columns(pre.abs() if signed else pre, k))
        values.append(pre.gather(1, columns[-1]))
    return torch.cat(columns), torch.cat(values)


def _exact(x: Tensor, encoder: Encoder, support: Support) -> Float[Tensor, "places"]:
    """Pre-activations in float32 at these places."""
    return rows_dot(support, x, encoder[0]) + encoder[1][support.columns]


def _best(support: Support, pre: Tensor, k: int) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """The k largest of every token among candidates, of which it has k or more."""
    most = int(support.counts.amax())
    inside = torch.arange(len(pre)) - support.offsets[support.rows]
    padded = pre.new_full((len(support.offsets), most), -torch.inf).index_put_((support.rows, inside), pre)
    best = padded.topk(k)  # sorted: sums then run in an order that other candidates do not change
    return support.columns[support.offsets[:, None] + best.indices], best.values


def select_topk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Chosen:
    """The k largest pre-activations of each token."""
    candidates = near_top(centred, encoder, k) if screen else None
    if candidates is None:
        columns, values = _plain(centred, encoder, k, signed=False)
    else:
        columns, values = _best(candidates, _exact(centred, encoder, candidates), k)
    return Support.of(columns, len(encoder[1])), values.flatten()


def select_abstopk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Chosen:
    """The k largest magnitudes of each token. Bytes have no sign, so there is no screen."""
    columns, values = _plain(centred, encoder, k, signed=True)
    return Support.of(columns, len(encoder[1])), values.flatten()


def select_batchtopk(centred: Float[Tensor, "batch d"], encoder: Encoder, k: int, screen: bool) -> Chosen:
    """The k·batch largest positive pre-activations of the whole batch; how many a token gets varies.

    Candidates are all pre-activations above a bound that a few tokens suggest. Were they too few, the bound was too
    high and is lowered.
    """
    batch, width = len(centred), len(encoder[1])
    bound = _bound(centred, encoder, k)
    while True:
        candidates, pre = _above(centred, encoder, bound, k if screen else 0)
        largest = pre.topk(min(k * batch, len(pre)), sorted=False)
        # what is no candidate is not above the bound; screened candidates may be below it
        enough = len(pre) >= k * batch and bool(largest.values.amin() >= bound)
        if enough or bound == 0:
            break
        bound = bound / 2 if bound > 1e-3 * float(centred.abs().amax()) else 0.0
    chosen = torch.zeros_like(pre, dtype=torch.bool)
    chosen[largest.indices] = True
    chosen &= pre > 0
    counts = torch.bincount(candidates.rows[chosen], minlength=batch)
    return Support.from_counts(candidates.columns[chosen], counts, width), pre[chosen]


def _bound(x: Tensor, encoder: Encoder, k: int) -> float:
    """A little below where the threshold of the batch lies among some evenly taken tokens; never negative."""
    some = evenly(x)
    pre = torch.addmm(encoder[1], some, encoder[0].T).flatten()
    return max(BOUND_SHARE * float(pre.topk(min(k * len(some), len(pre)), sorted=False).values.amin()), 0.0)


def select_above(
    centred: Float[Tensor, "batch d"], encoder: Encoder, bound: Float[Tensor, "width"] | float, most: float
) -> Support | None:
    """All places with a pre-activation above their latent's bound; None where they are more than the share `most` of
    all, as some evenly taken tokens say: a dense product is then faster."""
    if float((torch.addmm(encoder[1], evenly(centred), encoder[0].T) > bound).float().mean()) > most:
        return None
    return _dense_above(centred, encoder, bound)[0]


def _above(x: Tensor, encoder: Encoder, bound: float, k: int) -> Chosen:
    """At least all places with a pre-activation above the bound; `k`: about so many a token, 0 without a screen."""
    candidates = near_above(x, encoder, bound, k) if k and bound > 0 else None
    if candidates is None:
        return _dense_above(x, encoder, bound)
    return candidates, _exact(x, encoder, candidates)


def _dense_above(x: Tensor, encoder: Encoder, bound: Tensor | float) -> Chosen:
    """All places with a pre-activation above the bound."""
    columns, counts, values = [], [], []
    for pre in _products(x, encoder):
        places = true_places(pre > bound)
        columns.append(places % pre.shape[1])
        counts.append(torch.bincount(places // pre.shape[1], minlength=len(pre)))
        values.append(pre.flatten()[places])
    return Support.from_counts(torch.cat(columns), torch.cat(counts), len(encoder[1])), torch.cat(values)


SELECTIONS: dict[str, Callable[[Tensor, Encoder, int, bool], Chosen]] = {
    "topk": select_topk,
    "batchtopk": select_batchtopk,
    "abstopk": select_abstopk,
}
