"""What a kind of dictionary is to the trainer, and what its forward pass gives. A kind is a file here and a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..form import TrainingForm
from ..settings import DictionarySettings


@dataclass
class Pass:
    """What the loop needs of a forward pass. Everything stays on the device."""

    reconstruction: Float[Tensor, "batch d"]
    fired: Bool[Tensor, "width"]
    active: Int[Tensor, ""]  # codes that are not 0 in the batch
    floor: Float[Tensor, ""]  # smallest positive activation; infinity when no activation is positive
    parts: Float[Tensor, "batch groups d"] | None = None  # what groups of latents add to it, where that matters
    offset: Tensor | None = None  # and what it holds beside them


Forward = Callable[[TrainingForm, Tensor, DictionarySettings], Pass]  # of x [batch, d_in]


def squared_error(done: Pass, y: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Summed over the batch."""
    return (y - done.reconstruction).square().sum()


@dataclass(frozen=True)
class Kind:
    """A row of `KINDS`.

    Attributes:
        use: when to choose it, one line.
        forward: "sparse", "dense" -> forward pass; both give the same numbers.
        error: what of a pass is to become small: (pass, target) -> squared error, summed over the batch.
        saved: kind of the canonical dictionary (a row of `ENCODERS`).
        architecture: SAELens' name of it in training.
        one_threshold: the file has one threshold for all latents: the smallest code of the last batches.
        own: names of settings that belong to this kind, not to every one.
        own_parameters: first values [width] of what is learned beside the matrices and biases that every kind has.
        complaint: what is wrong with the settings, None where nothing is.
    """

    use: str
    forward: Mapping[str, Forward]
    saved: str
    architecture: str
    error: Callable[[Pass, Tensor], Tensor] = squared_error
    one_threshold: bool = False
    own: tuple[str, ...] = ()
    complaint: Callable[[DictionarySettings], str | None] = lambda settings: None
    own_parameters: Callable[[DictionarySettings], dict[str, Tensor]] = lambda settings: {}
    metadata: Callable[[DictionarySettings], dict[str, object]] = lambda settings: {}


def counted(reconstruction: Tensor, columns: Tensor, values: Tensor, width: int) -> Pass:
    """The pass with these codes: values at columns, in no order."""
    values, positive = values.detach(), values.detach() > 0
    fired = torch.zeros(width, dtype=torch.int32, device=values.device)
    fired.index_add_(0, columns, positive.int())
    floor = torch.where(positive, values, torch.inf).amin() if values.numel() else values.new_tensor(torch.inf)
    return Pass(reconstruction, fired > 0, positive.sum(), floor)
