"""A dictionary in the form in which it is trained, and what keeps its decoder rows at unit norm."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

CACHED = 512  # rows that stay in the cache between two passes


class TrainingForm(nn.Module):
    """pre = (x − centre) W_encᵀ + b_enc, y = codes W_dec + b_dec, for x and y already divided by the run's scales.

    Of an SAE, x and y are one activation and the centre is b_dec, which is learned. Of a transcoder the centre is
    `b_in`, which stays as it is, and with a skip connection (x − b_in) W_skipᵀ is added to y.

    Of a crosscoder, x and y are the activations of all its sites side by side, `parts` wide each.

    Both large matrices are [width, d]: a latent's row is contiguous, which the sparse products need. `own` holds what
    only some kinds have, such as thresholds.
    """

    W_enc: Float[Tensor, "width d_in"]
    b_enc: Float[Tensor, "width"]
    W_dec: Float[Tensor, "width d_out"]
    b_dec: Float[Tensor, "d_out"]
    b_in: Float[Tensor, "d_in"] | None
    W_skip: Float[Tensor, "d_out d_in"] | None

    def __init__(
        self,
        width: int,
        b_dec: Float[Tensor, "d_out"],
        seed: int,
        *,
        b_in: Float[Tensor, "d_in"] | None = None,
        skip: bool = False,
        own: Mapping[str, Float[Tensor, "width"]] | None = None,
        parts: Sequence[int] = (),
    ):
        super().__init__()
        self.parts = [*parts] or [len(b_dec)]
        generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device starts the same
        rows = _unit_rows(width, len(b_dec if b_in is None else b_in), generator).to(b_dec)
        written = rows if b_in is None else _unit_rows(width, len(b_dec), generator).to(b_dec)
        self.W_enc = nn.Parameter(rows.clone())  # tied start of SAEs: Gao et al., arXiv 2406.04093, section 2.4
        self.b_enc = nn.Parameter(b_dec.new_zeros(width))
        self.W_dec = nn.Parameter(written)
        self.b_dec = nn.Parameter(b_dec.clone())
        self.register_buffer("b_in", b_in)
        self.W_skip = nn.Parameter(b_dec.new_zeros(len(b_dec), rows.shape[1])) if skip else None
        self.own = nn.ParameterDict({name: nn.Parameter(value.to(b_dec)) for name, value in (own or {}).items()})

    @property
    def width(self) -> int:
        return len(self.b_enc)

    @property
    def layers(self) -> "list[Layer]":
        return [Layer(self, slice(None), slice(None))]

    @property
    def centre(self) -> Float[Tensor, "d_in"]:
        """What the encoder subtracts from its input."""
        return self.b_dec if self.b_in is None else self.b_in

    def offset(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "d_out"] | Float[Tensor, "batch d_out"]:
        """What a reconstruction holds beside the latents' part."""
        if self.W_skip is None:
            return self.b_dec
        return torch.addmm(self.b_dec, x - self.centre, self.W_skip.T)

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Take out of each decoder row's gradient the part along the row, which the norm constraint would undo."""
        grad = self.W_dec.grad
        assert grad is not None
        for part, rows in zip(grad.split(CACHED), self.W_dec.split(CACHED)):
            along = torch.linalg.vecdot(part, rows)[:, None]
            if len(self.parts) > 1:  # rows have no unit norm
                along /= torch.linalg.vecdot(rows, rows)[:, None]
            part.addcmul_(along, rows, value=-1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """The norms of a row's parts sum to 1: a code is then the activation times the sum of its decoder norms."""
        self.W_dec.div_(self.decoder_norms())

    def decoder_norms(self) -> Float[Tensor, "width 1"]:
        norms = [torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in self.W_dec.split(self.parts, dim=1)]
        return norms[0] if len(norms) == 1 else torch.stack(norms).sum(0)


class Layer(NamedTuple):
    """A form, and the columns of x and y that are its own."""

    form: TrainingForm
    reads: slice
    writes: slice


class CrossLayerForm(nn.Module):
    """A form a layer: layer s reads `x[s]` and writes to `y[s]` and all later ones. The first one's b_dec is of all.

    x and y are the activations of all layers side by side, as wide as `d_in` and `d_out` say.
    """

    def __init__(self, forms: Sequence[TrainingForm], d_in: Sequence[int], d_out: Sequence[int]):
        super().__init__()
        self.forms = nn.ModuleList(forms)
        self.d_in, self.d_out = [*d_in], [*d_out]
        for form in forms[1:]:
            form.b_dec.requires_grad_(False)

    @property
    def layers(self) -> list[Layer]:
        reads, writes = ([0, *accumulate(widths)] for widths in (self.d_in, self.d_out))
        spans = zip(self.forms, reads, reads[1:], writes)
        return [Layer(form, slice(start, end), slice(first, None)) for form, start, end, first in spans]  # type: ignore[arg-type]

    @property
    def centre(self) -> Float[Tensor, "d_in"]:
        return torch.cat([layer.form.centre for layer in self.layers])

    @property
    def b_dec(self) -> Float[Tensor, "d_out"]:
        return self.layers[0].form.b_dec

    def summed(self, written: Sequence[Float[Tensor, "batch d"]]) -> Float[Tensor, "batch d_out"]:
        """What all layers write together; `written` is what each writes, to its own output and all later ones."""
        totals: list[Tensor] = [*written[0].split(self.d_out, dim=1)]
        for source, rows in enumerate(written[1:], start=1):
            for to, part in enumerate(rows.split(self.d_out[source:], dim=1), start=source):
                totals[to] = totals[to] + part
        return torch.cat(totals, 1)


Form = TrainingForm | CrossLayerForm


def _unit_rows(width: int, d: int, generator: torch.Generator) -> Float[Tensor, "width d"]:
    rows = torch.randn(width, d, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)
