"""Matryoshka BatchTopK (Bussmann et al. 2025, arXiv 2503.17547): the first latents alone have to rebuild, too.

The loss is the mean, over prefixes of the latents, of the error of what that prefix rebuilds with b_dec (and the skip
connection). Early latents become general ones and late ones special, with less absorption of the former by the latter.

No dense codes: a token's places are in order of latents, so that they fall into groups between two prefixes; one sparse
product gives each group's part, and sums over the groups before it are the prefixes.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from ..derivatives import PrefixErrors
from ..form import TrainingForm
from ..settings import DictionarySettings
from ..sparse import Support, decode_at
from .kind import Kind, Pass, counted
from .topk import chosen, dense_batch_codes

SHARES = (16, 8, 4, 2)  # of the width, for the prefixes where none are given


def widths_of(settings: DictionarySettings) -> list[int]:
    """The prefixes, each longer than the one before; the last is all latents."""
    given = settings.matryoshka_widths
    if given is None:
        given = [settings.width // share for share in SHARES if settings.width >= share]
    return sorted({*given, settings.width})


def _sparse(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    support, values = chosen(form, x, settings, "batchtopk")
    widths = torch.tensor(widths_of(settings), device=x.device)
    group = torch.searchsorted(widths, support.columns, right=True)  # the first prefix that each place is in
    counts = torch.bincount(support.rows * len(widths) + group, minlength=len(x) * len(widths))
    grouped = Support.from_counts(support.columns, counts, form.width)
    parts = decode_at(values, form.W_dec, grouped).view(len(x), len(widths), -1)
    return _pass(form, x, parts, support.columns, values)


def _dense(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    assert settings.k is not None
    codes, values, columns = dense_batch_codes(form, x, settings.k)
    ends = itertools.pairwise([0, *widths_of(settings)])
    parts = torch.stack([codes[:, start:end] @ form.W_dec[start:end] for start, end in ends], 1).to(form.W_dec.dtype)
    return _pass(form, x, parts, columns, values)


def _pass(
    form: TrainingForm, x: Tensor, parts: Float[Tensor, "batch groups d_out"], columns: Tensor, values: Tensor
) -> Pass:
    offset = form.offset(x)
    done = counted(parts.detach().sum(1) + offset.detach(), columns, values, form.width)
    done.parts, done.offset = parts, offset
    return done


def _error(done: Pass, y: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    assert done.parts is not None
    assert done.offset is not None
    return PrefixErrors.apply(done.parts, y - done.offset) / done.parts.shape[1]


def _complaint(settings: DictionarySettings) -> str | None:
    given = settings.matryoshka_widths
    if given is None or (given == sorted(set(given)) and given[-1:] <= [settings.width]):
        return None
    return f"matryoshka_widths must grow and be at most the width, {settings.width:,}: {given}"


MATRYOSHKA = Kind(
    use="as batchtopk, and the first latents rebuild alone: general latents first, special ones later",
    forward={"sparse": _sparse, "dense": _dense},
    saved="jumprelu",
    architecture="matryoshka_batchtopk",
    error=_error,
    plain=False,
    one_threshold=True,
    own=("k", "matryoshka_widths"),
    needed=("k",),
    complaint=_complaint,
    metadata=lambda settings: {"matryoshka_widths": widths_of(settings)},
)
