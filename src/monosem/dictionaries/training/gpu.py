"""The sparse products of `sparse.py` as Triton kernels, for CUDA tensors where Triton is installed.

A program takes one row of the result and adds up in the order of the places, so that results do not change from run to
run: a latent that is active everywhere makes one program long. Tested with Triton's interpreter on a CPU; not run on a
GPU yet.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

WARPS = 4


@triton.jit
def _sum_kernel(out, columns, offsets, values, weight, rows, places, d, D: tl.constexpr, SUMS: tl.constexpr):
    """out[row] = Σ over its places of value · weight[column]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, D)
    start = tl.load(offsets + row)
    end = tl.load(offsets + row + 1, mask=row + 1 < rows, other=places)
    total = tl.zeros([D], SUMS)
    for place in range(start, end):
        column = tl.load(columns + place).to(tl.int64)
        value = tl.load(values + place).to(SUMS)
        total += value * tl.load(weight + column * d + at, mask=at < d, other=0).to(SUMS)
    tl.store(out + row * d + at, total, mask=at < d)


@triton.jit
def _dot_kernel(out, columns, offsets, a, weight, rows, places, d, D: tl.constexpr, SUMS: tl.constexpr):
    """out[place] = a[row] · weight[column] for all places of a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, D)
    start = tl.load(offsets + row)
    end = tl.load(offsets + row + 1, mask=row + 1 < rows, other=places)
    own = tl.load(a + row * d + at, mask=at < d, other=0).to(SUMS)
    for place in range(start, end):
        column = tl.load(columns + place).to(tl.int64)
        other = tl.load(weight + column * d + at, mask=at < d, other=0).to(SUMS)
        tl.store(out + place, tl.sum(own * other, axis=0))


def summed(
    columns: Int[Tensor, "places"],
    offsets: Int[Tensor, "rows"],
    values: Float[Tensor, "places"],
    weight: Float[Tensor, "n d"],
) -> Float[Tensor, "rows d"]:
    """Σ over a row's places of value · weight[column], for every row."""
    weight, d = weight.contiguous(), weight.shape[1]
    out = weight.new_empty(len(offsets), d)
    _launch(_sum_kernel, out, columns, offsets, values.contiguous(), weight)
    return out


def dotted(
    columns: Int[Tensor, "places"],
    offsets: Int[Tensor, "rows"],
    a: Float[Tensor, "rows d"],
    weight: Float[Tensor, "n d"],
) -> Float[Tensor, "places"]:
    """a[row] · weight[column] at every place."""
    out = weight.new_empty(len(columns))
    _launch(_dot_kernel, out, columns, offsets, a.contiguous(), weight.contiguous())
    return out


def _launch(
    kernel: triton.JITFunction, out: Tensor, columns: Tensor, offsets: Tensor, left: Tensor, weight: Tensor
) -> None:
    if not len(offsets):
        return
    d, sums = weight.shape[1], tl.float64 if weight.dtype == torch.float64 else tl.float32
    shape = (len(offsets), len(columns), d, triton.next_power_of_2(d), sums)
    kernel[(len(offsets),)](out, columns, offsets, left, weight, *shape, num_warps=WARPS)
