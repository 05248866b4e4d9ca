"""The translators of a tuned lens: one affine map a layer, in float32."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import BadInput, UnknownName
from ...models import Site


class Translator(nn.Module):
    """h + h A + b in float32, right-multiplied. A is a full matrix, a product of two thin ones, or nothing."""

    def __init__(self, d_model: int, rank: int | None):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d_model))
        if rank is None:
            self.A = nn.Parameter(torch.zeros(d_model, d_model))
        elif rank:
            # down is random and up is zero: A starts at zero and still has a gradient
            self.down = nn.Parameter(torch.randn(d_model, rank) / math.sqrt(d_model))
            self.up = nn.Parameter(torch.zeros(rank, d_model))
        self.rank = rank

    def forward(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        h = h.float()
        moved = h + self.bias
        if self.rank is None:
            return moved + h @ self.A
        return moved + (h @ self.down) @ self.up if self.rank else moved

    @property
    def matrix(self) -> Float[Tensor, "d_model d_model"]:
        """A, whatever its form."""
        if self.rank is None:
            return self.A
        return self.down @ self.up if self.rank else torch.zeros(len(self.bias), len(self.bias)).to(self.bias)

    def begin_at(self, matrix: Float[Tensor, "d_model d_model"], bias: Float[Tensor, "d_model"]) -> None:
        """Set A (of this form's rank) and b."""
        with torch.no_grad():
            self.bias.copy_(bias)
            if self.rank is None:
                self.A.copy_(matrix)
            elif self.rank:
                u, s, v = torch.linalg.svd(matrix, full_matrices=False)
                root = s[: self.rank].sqrt()
                self.down.copy_(u[:, : self.rank] * root)
                self.up.copy_(root[:, None] * v[: self.rank])


class Translators(nn.ModuleList):
    """One translator a layer; translator i reads `resid_pre.i`.

    Raises:
        BadInput: a rank below 0 or above the width.
    """

    def __init__(self, n_layers: int, d_model: int, rank: int | None = None):
        if rank is not None and not 0 <= rank <= d_model:
            raise BadInput(f"rank {rank} is not within 0 (bias alone) and {d_model} (full: leave it None)")
        super().__init__(Translator(d_model, rank) for _ in range(n_layers))
        self.d_model, self.rank = d_model, rank

    def __getitem__(self, layer: int) -> Translator:  # type: ignore[override]
        return super().__getitem__(layer)  # type: ignore[return-value]

    def __iter__(self) -> Iterator[Translator]:
        return super().__iter__()  # type: ignore[return-value]

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]:
        """States at `resid_pre.L` or `resid_post.L`, as the last layer would hold them.

        Raises:
            UnknownName: another site.
        """
        if site.layer is None or site.name not in ("resid_pre", "resid_post"):
            raise UnknownName(f"a tuned lens reads resid_pre or resid_post, not {site}")
        number = site.layer + (site.name == "resid_post")
        return h.float() if number == len(self) else self[number](h)
