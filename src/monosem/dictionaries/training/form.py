"""The autoencoder in the form in which it is trained, and what keeps its decoder rows at unit norm."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TrainingForm(nn.Module):
    """pre = (x − b_dec) W_encᵀ + b_enc, y = codes W_dec + b_dec, for x already divided by the run's scale.

    Both matrices are [width, d]: a latent's row is contiguous, which the sparse products need.
    """

    W_enc: Float[Tensor, "width d"]
    b_enc: Float[Tensor, "width"]
    W_dec: Float[Tensor, "width d"]
    b_dec: Float[Tensor, "d"]

    def __init__(self, width: int, b_dec: Float[Tensor, "d"], seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device starts the same
        rows = torch.randn(width, len(b_dec), generator=generator)
        rows = (rows / rows.norm(dim=1, keepdim=True)).to(b_dec)
        self.W_enc = nn.Parameter(rows.clone())  # tied start: Gao et al., arXiv 2406.04093, section 2.4
        self.b_enc = nn.Parameter(b_dec.new_zeros(width))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(b_dec.clone())

    @property
    def width(self) -> int:
        return len(self.b_enc)

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Take out of each decoder row's gradient the part along the row, which the norm constraint would undo."""
        grad = self.W_dec.grad
        assert grad is not None
        grad.addcmul_((grad * self.W_dec).sum(1, keepdim=True), self.W_dec, value=-1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))
