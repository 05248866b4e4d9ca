"""A dictionary in the form in which it is trained, and what keeps its decoder rows at unit norm."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TrainingForm(nn.Module):
    """pre = (x − centre) W_encᵀ + b_enc, y = codes W_dec + b_dec, for x and y already divided by the run's scales.

    Of an SAE, x and y are one activation and the centre is b_dec, which is learned. Of a transcoder the centre is
    `b_in`, which stays as it is, and with a skip connection (x − b_in) W_skipᵀ is added to y.

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
    ):
        super().__init__()
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
        grad.addcmul_((grad * self.W_dec).sum(1, keepdim=True), self.W_dec, value=-1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))


def _unit_rows(width: int, d: int, generator: torch.Generator) -> Float[Tensor, "width d"]:
    rows = torch.randn(width, d, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)
