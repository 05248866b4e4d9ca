"""Linear maps of what is written: I + left · right, of low rank, so that a weight's change is one thin product."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ..along import orthonormal


@dataclass(frozen=True, eq=False)
class WriteMap:
    """What is written becomes (I + left · right) of it.

    Attributes:
        removes: it leaves nothing along the rows of `right`.
    """

    left: Float[Tensor, "d rank"]
    right: Float[Tensor, "rank d"]
    removes: bool = False

    @staticmethod
    def along(basis: Float[Tensor, "rank d"], amount: float) -> "WriteMap":
        """I - amount · RᵀR with orthonormal R: 1 removes what is along the basis, 2 reflects it."""
        return WriteMap(-amount * basis.T, basis, removes=amount == 1)

    @staticmethod
    def turning(source: Float[Tensor, "d"], target: Float[Tensor, "d"]) -> "WriteMap":
        """The rotation in the plane of two directions that takes the first to the second (Rodrigues): with unit s and t
        and A = t sᵀ - s tᵀ, it is I + A + A² / (1 + s · t). Raises `BadInput` where they span no plane."""
        basis = orthonormal(torch.stack([source, target]), "a rotation").double()
        s, t = (v.double() / v.double().norm() for v in (source, target))
        s, t = basis @ s, basis @ t  # within the plane
        A = torch.outer(t, s) - torch.outer(s, t)
        turn = A + A @ A / (1 + s @ t)
        return WriteMap((basis.T @ turn).float(), basis.float())

    def delta(self, weight: Tensor, axis: int) -> Tensor:
        """How much a weight whose outputs lie along `axis` changes, float32."""
        flat = weight.float().movedim(axis, 0)
        left, right = self.left.to(weight.device), self.right.to(weight.device)
        return (left @ (right @ flat.reshape(len(flat), -1))).reshape(flat.shape).movedim(0, axis)

    def of(self, written: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """What becomes of something written."""
        left, right = self.left.to(written.device), self.right.to(written.device)
        return written.float() + (written.float() @ right.T) @ left.T


def with_old_norms(new: Tensor, old: Tensor, axis: int) -> Tensor:
    """Every column (what one input, token or neuron writes) with the norm that it had. What was removed stays removed;
    with norms of rows instead, a part of it would come back. A column of which nothing is left stays zero."""
    sizes = torch.linalg.vector_norm(new, dim=axis, keepdim=True)
    wanted = torch.linalg.vector_norm(old.float(), dim=axis, keepdim=True)
    return new * torch.where(sizes > 1e-6 * wanted, wanted / sizes.clamp(min=1e-30), 0.0)


def projected(direction: Float[Tensor, "d"], mean: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
    """The direction without its part along a mean, at length 1: what is removed is then not what every text has, such
    as the mean of harmless prompts. Raises `BadInput` where nothing else is left."""
    unit = mean.double() / mean.double().norm()
    left = direction.double() - (direction.double() @ unit) * unit
    if not bool(left.norm() > 1e-6 * direction.double().norm()):
        raise BadInput("the direction lies along the mean: nothing is left of it without the mean")
    return (left / left.norm()).float()


def biprojected(
    direction: Float[Tensor, "d"], means: Mapping[int, Float[Tensor, "d"]]
) -> dict[int, Float[Tensor, "d"]]:
    """For each layer, the direction without its part along that layer's mean: `orthogonalise(model, biprojected(...))`
    edits the layers named here, each with its own."""
    if not means:
        raise BadInput("biprojected needs a mean for each layer to edit: {10: mean, 11: mean}")
    return {layer: projected(direction, mean) for layer, mean in means.items()}
