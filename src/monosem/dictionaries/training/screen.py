"""A look at all pre-activations in 8 bits: which latents can be active at all. Only these are computed in float32.

Where the CPU multiplies 8-bit numbers in hardware (VNNI), such a product takes less than a third of float32's time.
Each token and each latent have a step of their own, dimensions are evened out first, and the encoder's bias is one more
dimension. Rounding moves a product by independent amounts, each uniform over a step, so that its error has the variance

    σ² = step(x)²/12 · ‖w‖² + step(w)²/12 · ‖x‖²

and is sub-Gaussian: more than `CERTAIN` σ happens with a probability below 2·exp(-CERTAIN²/2), about 1e-14. All latents
that close to being chosen are candidates, and float32 decides among them. The k-th largest is read off the same look:
it is one of many numbers near it, and moves less than one of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ...models.loading.precision import has_vnni
from .sparse import Support

Encoder = tuple[Float[Tensor, "width d"], Float[Tensor, "width"]]  # W_enc, b_enc

CHUNK = 1024  # tokens a product: what it gives stays near the cache, and no [batch, width] array is allocated
ROWS = 512  # latents that are rounded at a time
ALIGNED = 4  # dimensions that the 8-bit product takes together
LEVELS = 127  # of a rounded number, to either side
CERTAIN = 8.0  # standard deviations of the rounding error
WORTH = 64  # latents per place from which the look is faster than the dense product
MOST = 8  # candidates per place above which a dense product is as fast
SOME = 64  # tokens that suggest where thresholds lie
FEW = 16  # tokens that suggest a unit


def screens(device: torch.device, width: int, k: int) -> bool:
    """Whether a look in 8 bits is faster than float32. It needs the CPU's answer at once: a GPU would have to wait."""
    return device.type == "cpu" and width >= WORTH * k and has_vnni()


def evenly(x: Float[Tensor, "batch ..."], some: int = SOME) -> Float[Tensor, "n ..."]:
    """Some tokens, evenly taken."""
    return x[:: max(len(x) // some, 1)]


@dataclass
class Screen:
    """Tokens and an encoder in 8 bits. A pre-activation is about `unit · row` times the byte that `looks` gives for it;
    bytes end at 255, and 0 is all that is not positive."""

    tokens: UInt8[Tensor, "batch padded"]
    packed: Tensor  # the encoder, as oneDNN wants it
    steps: Float[Tensor, "width"]
    row: Float[Tensor, "batch"]  # what each token was divided by
    length: Float[Tensor, "batch"]  # of each token, in `row`
    lengths: Float[Tensor, "width"]  # of each latent

    @staticmethod
    def of(x: Float[Tensor, "batch d"], encoder: Encoder) -> "Screen | None":
        """None where these numbers have no scale: NaN, infinity, or all zero."""
        spread = evenly(x).square().mean(0).sqrt()
        even = (spread / spread.mean()).clamp(min=1e-3).sqrt()
        scaled = x / even
        loudest = scaled.abs().amax(1)
        constant = float(loudest.mean())  # the dimension of the bias
        if not 0 < constant < float("inf"):
            return None
        row = loudest.clamp(min=constant)
        scaled /= row[:, None]
        quiet = constant / row
        length = torch.hypot(torch.linalg.vector_norm(scaled, dim=1), quiet)
        padded = -(x.shape[1] + 1) % ALIGNED + x.shape[1] + 1
        tokens = torch.full((len(x), padded), LEVELS + 1, dtype=torch.uint8)
        tokens[:, : x.shape[1]] = scaled.mul_(LEVELS).add_(LEVELS + 1.5)  # cut off, which rounds it
        tokens[:, x.shape[1]] = (quiet * LEVELS).add_(LEVELS + 1.5)
        rounded, steps, lengths = _rounded(encoder, even, constant, padded)
        if not bool((length.sum() + lengths.sum()).isfinite()):
            return None
        packed = torch.ops.onednn.qlinear_prepack(rounded, [min(CHUNK, len(x)), padded])
        return Screen(tokens, packed, steps, row, length, lengths)

    def error(self) -> Float[Tensor, "batch"]:
        """σ of a token's pre-activations at most, in its `row`."""
        return torch.hypot(self.lengths.amax() / LEVELS, self.steps.amax() * self.length) / 12**0.5

    def error_at(self, places: Support) -> Float[Tensor, "places"]:
        """σ of single pre-activations, in the `row` of their token."""
        lengths, steps = self.lengths[places.columns] / LEVELS, self.steps[places.columns]
        return torch.hypot(lengths, steps.mul_(self.length[places.rows])).div_(12**0.5)

    def looks(self, unit: float) -> Iterator[UInt8[Tensor, "tokens width"]]:
        """Pre-activations in units of `unit` and of their row."""
        zeros = torch.zeros(len(self.steps), dtype=torch.int64)
        for chunk in self.tokens.split(CHUNK):
            yield torch.ops.onednn.qlinear_pointwise(
                chunk,
                1 / LEVELS,
                LEVELS + 1,
                self.packed,
                self.steps,
                zeros,
                None,
                unit,
                0,
                torch.uint8,
                "none",
                [],
                "",
            )


def _rounded(
    encoder: Encoder, even: Float[Tensor, "d"], constant: float, padded: int
) -> tuple[Int[Tensor, "width padded"], Float[Tensor, "width"], Float[Tensor, "width"]]:
    """The encoder in 8 bits, and of each latent the step and the length."""
    weight, bias = encoder
    rounded = torch.zeros(len(weight), padded, dtype=torch.int8)
    buffer, steps, lengths = weight.new_empty(min(ROWS, len(weight)), weight.shape[1] + 1), [], []
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        part = buffer[: len(weight[rows])]
        torch.mul(weight[rows], even, out=part[:, :-1])
        torch.div(bias[rows], constant, out=part[:, -1])
        lengths.append(torch.linalg.vector_norm(part, dim=1))
        steps.append((part.abs().amax(1) / LEVELS).clamp_(min=torch.finfo(part.dtype).tiny))
        rounded[rows, : part.shape[1]] = part.div_(steps[-1][:, None]).round_()
    return rounded, torch.cat(steps), torch.cat(lengths)


def near_top(x: Float[Tensor, "batch d"], encoder: Encoder, k: int) -> Support | None:
    """All latents that can be among the k largest of their token, at least k for each. None where this look is of no
    use: without a scale, or with so many candidates that a dense product is as fast."""
    screen = Screen.of(x, encoder)
    if screen is None:
        return None
    last = torch.addmm(encoder[1], evenly(x, FEW), encoder[0].T).topk(k, sorted=False).values.amin(1)
    unit = float((last / evenly(screen.row, FEW)).median()) / LEVELS
    if not unit > 0:
        return None
    return _gathered(screen, unit, k, ((look, _last(look, k) - 0.5) for look in screen.looks(unit)))


def near_above(x: Float[Tensor, "batch d"], encoder: Encoder, bound: float, k: int) -> Support | None:
    """All places where a pre-activation can be above a positive bound; about k a token are. None as of `near_top`."""
    screen = Screen.of(x, encoder)
    if screen is None:
        return None
    unit = bound / float(screen.row.median()) / LEVELS
    leasts = (bound / unit / screen.row).split(CHUNK)
    return _gathered(screen, unit, k, zip(screen.looks(unit), leasts))


def _last(look: UInt8[Tensor, "tokens width"], k: int) -> UInt8[Tensor, "tokens"]:
    """No more than the k-th largest of each token: the k-th largest among the largest of groups of latents."""
    size = max(look.shape[1] // (4 * k), 1)
    groups = look.shape[1] // size
    largest = look[:, : groups * size].unflatten(1, (size, groups)).amax(1)
    return largest.topk(k, sorted=False).values.amin(1)


def _gathered(
    screen: Screen, unit: float, k: int, looks: Iterable[tuple[Tensor, Float[Tensor, "tokens"]]]
) -> Support | None:
    """Where a pre-activation may be what is asked for its token, in units: first by the largest error that there is
    among latents, then by the error of each."""
    columns, counts, bytes_, wanted, total = [], [], [], [], 0
    width, batch = len(screen.steps), len(screen.row)
    buffer = torch.empty(min(CHUNK, batch), width, dtype=torch.bool)
    for (look, least), error in zip(looks, screen.error().split(CHUNK)):
        low = (least - CERTAIN / unit * error - 0.5).floor_().clamp_(0, 255).to(torch.uint8)
        # not below: `>=` of bytes is ten times slower in torch
        places = true_places(torch.eq(look, torch.maximum(look, low[:, None]), out=buffer[: len(look)]))
        total += len(places)
        if total > MOST * k * batch:
            return None
        rows = places // width
        columns.append(places - rows * width)
        counts.append(torch.bincount(rows, minlength=len(look)))
        bytes_.append(look.flatten()[places])
        wanted.append(least)
    near = Support.from_counts(torch.cat(columns), torch.cat(counts), width)
    above = torch.cat(bytes_) + 0.5 - torch.cat(wanted)[near.rows]
    kept = (above >= -CERTAIN / unit * screen.error_at(near)).logical_or_(torch.cat(bytes_) == 255)
    rows = near.rows[kept]
    return Support.from_counts(near.columns[kept], torch.bincount(rows, minlength=batch), width)


def true_places(mask: Bool[Tensor, "batch width"]) -> Int[Tensor, "places"]:
    """Where a mask is true, counted row by row. Few places are: eight are looked at as one number."""
    if mask.shape[1] % 8:
        return mask.flatten().nonzero().flatten()
    words = mask.view(torch.int64).flatten().nonzero().flatten()
    inside = mask.view(-1, 8)[words].flatten().nonzero().flatten()
    return words[inside // 8] * 8 + inside % 8
