"""What `precision` says of a run's matrix products. Weights, Adam's moments and sums are float32 in every row."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """A row of `PRECISIONS`."""

    tf32: bool = False  # products of float32 matrices, on a GPU
    bf16: bool = False  # dense products read bfloat16, add up in float32 and give bfloat16

    def products(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """While it lasts, dense products are as this row says. Sparse products stay float32."""
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


PRECISIONS = {"exact": Precision(), "fast": Precision(tf32=True), "bf16": Precision(tf32=True, bf16=True)}


@contextlib.contextmanager
def precision_of(names: Iterable[str], device: torch.device) -> Iterator[None]:
    """What torch has as one setting for all: TF32 where every dictionary of a run allows it, and sums in float32."""
    if device.type != "cuda":
        yield
        return
    tf32, matmul = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul
    reduced = matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("high" if all(PRECISIONS[name].tf32 for name in names) else "highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(tf32)
        matmul.allow_bf16_reduced_precision_reduction = reduced
