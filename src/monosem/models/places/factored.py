"""Products of two thin matrices, never multiplied out."""

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ...errors import BadInput


class FactoredMatrix:
    """A @ B with `A [..., m, r]` and `B [..., r, n]`; r is small. Leading axes are batches (layers, heads).

    `M.AB` multiplies out; `M[0, 3]` indexes batches; the last two indices are rows and columns: an integer there gives
    the dense vector or number, as `M.AB[...]` would, slices and lists keep a factored matrix.
    """

    def __init__(self, A: Float[Tensor, "... m r"], B: Float[Tensor, "... r n"]):
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise BadInput(f"A [..., m, r] and B [..., r, n] share r: got {list(A.shape)} and {list(B.shape)}")
        batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        self.A, self.B = A.expand(*batch, *A.shape[-2:]), B.expand(*batch, *B.shape[-2:])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.A.shape[:-1], self.B.shape[-1]))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def rank(self) -> int:
        """The inner width: no rank of the product is above it."""
        return self.A.shape[-1]

    def __repr__(self) -> str:
        return f"FactoredMatrix({list(self.shape)}, rank at most {self.rank})"

    @property
    def AB(self) -> Float[Tensor, "... m n"]:
        """The product, dense."""
        return self.A @ self.B

    @property
    def T(self) -> "FactoredMatrix":
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __matmul__(self, other: "Tensor | FactoredMatrix") -> "Tensor | FactoredMatrix":
        """With a vector: the dense result. With a matrix or factored matrix: factored, of the smaller inner width."""
        if isinstance(other, FactoredMatrix):
            middle = self.B @ other.A
            if self.rank <= other.rank:
                return FactoredMatrix(self.A, middle @ other.B)
            return FactoredMatrix(self.A @ middle, other.B)
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Tensor) -> "Tensor | FactoredMatrix":
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        return FactoredMatrix(other @ self.A, self.B)

    def __mul__(self, factor: float | Tensor) -> "FactoredMatrix":
        """Times a number (a tensor of numbers is one for each batch)."""
        number = torch.as_tensor(factor, dtype=self.A.dtype, device=self.A.device)
        return FactoredMatrix(self.A * number[..., None, None], self.B)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> "Tensor | FactoredMatrix":
        given = index if isinstance(index, tuple) else (index,)
        lead = self.ndim - 2
        if Ellipsis in [g for g in given if not isinstance(g, Tensor)]:
            at = next(i for i, g in enumerate(given) if g is Ellipsis)
            given = (*given[:at], *[slice(None)] * (self.ndim - len(given) + 1), *given[at + 1 :])
        if len(given) > self.ndim:
            raise BadInput(f"{len(given)} indices for a factored matrix of {self.ndim} axes")
        batch, rest = given[:lead], [*given[lead:], slice(None), slice(None)][:2]
        A, B = self.A[batch], self.B[batch]
        row, column = rest
        A = A[..., [row] if isinstance(row, int) else row, :]
        B = B[..., [column] if isinstance(column, int) else column]
        if isinstance(row, int) or isinstance(column, int):
            dense = A @ B
            dense = dense[..., 0] if isinstance(column, int) else dense
            axis = -1 if isinstance(column, int) else -2
            return dense.select(axis, 0) if isinstance(row, int) else dense
        return FactoredMatrix(A, B)

    def svd(self) -> tuple[Float[Tensor, "... m r"], Float[Tensor, "... r"], Float[Tensor, "... r n"]]:
        """(U, S, Vh) with U diag(S) Vh = A B, largest first: two thin QRs and the SVD of an r x r matrix."""
        Q_left, R_left = torch.linalg.qr(self.A)
        Q_right, R_right = torch.linalg.qr(self.B.mT)
        U, S, Vh = torch.linalg.svd(R_left @ R_right.mT, full_matrices=False)
        return Q_left @ U, S, Vh @ Q_right.mT

    @property
    def U(self) -> Float[Tensor, "... m r"]:
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "... r"]:
        return torch.linalg.svdvals(_reduced(self))

    @property
    def Vh(self) -> Float[Tensor, "... r n"]:
        return self.svd()[2]

    @property
    def eigenvalues(self) -> Complex[Tensor, "... r"]:
        """The eigenvalues of A B without the zeros that its rank implies: those that B A has. Square matrices only."""
        if self.shape[-1] != self.shape[-2]:
            raise BadInput(f"eigenvalues need a square matrix, this is {list(self.shape[-2:])}")
        return torch.linalg.eigvals(self.B @ self.A)

    def norm(self) -> Float[Tensor, "..."]:
        """Frobenius norm."""
        return _reduced(self).norm(dim=(-2, -1))


def _reduced(matrix: FactoredMatrix) -> Float[Tensor, "... r r"]:
    """A small matrix of the same singular values."""
    R_left = torch.linalg.qr(matrix.A, mode="r").R
    R_right = torch.linalg.qr(matrix.B.mT, mode="r").R
    return R_left @ R_right.mT
