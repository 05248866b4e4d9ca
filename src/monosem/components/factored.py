"""Products of two thin matrices, never multiplied out: the QK and OV circuits of a head.

    QK(model, 5, 1)    x_query · (W_Q W_Kᵀ) · x_key: what the head attends to, `d_model d_model` of rank d_head
    OV(model, 5, 1)    x · (W_V W_O): what it writes when it attends to x

Everything is right-multiplied, as in "A Mathematical Framework for Transformer Circuits" (Elhage et al. 2021).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..errors import BadInput
from ..models import Branch, Model


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


# ---------------------------------------------------------------------- circuits of a model
def QK(model: Model, layer: int | None = None, head: int | None = None, folded: bool = False) -> FactoredMatrix:
    """W_Q W_Kᵀ, `[layer head] d_model d_model`, float32: scores before their scale are x_query QK x_keyᵀ.

    Rotation and qk-norm are left out: with rotation this is the score of a query and a key at the same position.
    `folded`: for x before the norm (up to its scale): ln1's gain, and the mean taken out by a LayerNorm, are in it.
    """
    W_Q, W_K = _heads(model.W_Q, layer, head), _heads(model.W_K, layer, head)
    if folded:
        W_Q, W_K = _read(model, W_Q, layer), _read(model, W_K, layer)
    return FactoredMatrix(W_Q, W_K.mT)


def OV(model: Model, layer: int | None = None, head: int | None = None, folded: bool = False) -> FactoredMatrix:
    """W_V W_O, `[layer head] d_model d_model`, float32: the head writes x OV for what it attends to.

    `folded`: from x before ln1 to what is added to the stream, both up to a norm's scale: ln1's gain (and a LayerNorm's
    mean) on the left; a post-norm's gain and the residual multiplier on the right.
    """
    W_V, W_O = _heads(model.W_V, layer, head), _heads(model.W_O, layer, head)
    if folded:
        W_V, W_O = _read(model, W_V, layer), _write(model, W_O, layer)
    return FactoredMatrix(W_V, W_O)


def full_OV(model: Model, layer: int, head: int) -> FactoredMatrix:
    """W_E OV W_U, `vocab vocab`: which logits a head raises when it attends to each token's embedding, up to norms'
    scales; all gains (ln1, post-norm, final norm) are folded in."""
    final = model.final_norm
    circuit = OV(model, layer, head, folded=True)
    return FactoredMatrix(model.W_E.float() @ circuit.A, (final.centred(circuit.B) * final.gain) @ model.W_U.float())


def full_QK(model: Model, layer: int, head: int) -> FactoredMatrix:
    """W_E QK W_Eᵀ, `vocab vocab`: how much each token (as an embedding) attends to each other one, up to scales."""
    circuit, W_E = QK(model, layer, head, folded=True), model.W_E.float()
    return FactoredMatrix(W_E @ circuit.A, circuit.B @ W_E.T)


def copying_scores(model: Model) -> Float[Tensor, "layer head"]:
    """Σλ / Σ|λ| over the eigenvalues of each head's full OV circuit: 1 is a head that only copies, -1 one that only
    suppresses what it attends to (Elhage et al. 2021, "copying / primarily positive eigenvalues")."""
    rows = []
    final = model.final_norm
    through = model.W_U.float() @ model.W_E.float()  # d_model d_model: from the normed stream to logits to embeddings
    for layer in range(model.cfg.n_layers):
        circuit = OV(model, layer, folded=True)
        small = (final.centred(circuit.B) * final.gain) @ through @ circuit.A
        values = torch.linalg.eigvals(small)
        rows.append((values.sum(-1) / values.abs().sum(-1)).real)
    return torch.stack(rows)


def _heads(weights: Any, layer: int | None, head: int | None) -> Tensor:
    index = (slice(None) if layer is None else layer, *(() if head is None else (head,)))
    return weights[index].float()


def _read(model: Model, W: Float[Tensor, "... d_model d_head"], layer: int | None) -> Tensor:
    """Through the norm in front: rows times its gain, less their mean over the input for a LayerNorm."""
    return _folded(model, W, layer, lambda one, w: one.pre.pull(w.mT).mT)


def _write(model: Model, W: Float[Tensor, "... d_head d_model"], layer: int | None) -> Tensor:
    """Through what is between the projection and the stream, up to the post-norm's scale."""
    return _folded(model, W, layer, lambda one, w: one.share(w, w.new_ones(())))


def _folded(model: Model, W: Tensor, layer: int | None, fold: Callable[[Branch, Tensor], Tensor]) -> Tensor:
    if layer is not None:
        return fold(model.branch("attn", layer), W)
    return torch.stack([fold(model.branch("attn", at), w) for at, w in enumerate(W)])
