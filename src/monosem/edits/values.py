"""Values that edits write or add: tensors with named axes, which follow the tokens that they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import BadInput
from ..models import Generation, Moment, Run, Site, TokenBatch

TOKEN_AXES = ("batch", "position", "key")
# other names of axes, as tables of sites and TransformerLens write them
_SAME = {
    "pos": "position",
    "query": "position",
    "source": "position",
    "kv_head": "head",
    "d_mlp": "neuron",
    "d_vocab": "vocab",
}


def axes_of(site: Site) -> tuple[str, ...]:
    """The axes of a site's tensor: `("batch", "position", "head", "d_head")`; "1" where a token has a single number."""
    shape = tuple(_SAME.get(axis, axis) for axis in site.shape)
    return ("batch", *shape, "1") if shape == ("position",) else ("batch", *shape)


@dataclass(frozen=True, eq=False)
class Value:
    """A value for a site, of all its axes or of some; it is the same along the others.

    Attributes:
        tensor: its axes stand in the site's order. axes: their names.
        what: the edit, for messages.
        tokens: the batch whose tokens the value is of; None: of the batch that is edited, which must have no padding.
        columns: which columns of `tokens` the value has, `batch kept`; None for all.
        heads: which heads the value has; None for all.
        named: whether the axes were said; else they are checked once the sizes of the activation are known.
    """

    site: Site
    tensor: Tensor
    axes: tuple[str, ...]
    what: str
    tokens: TokenBatch | None = None
    columns: Int[Tensor, "batch kept"] | None = None
    heads: tuple[int, ...] | None = None
    named: bool = True

    @staticmethod
    def of(site: Site, value: Any, axes: str | None, what: str, tokens: TokenBatch | None = None) -> "Value":
        """Read a number, a tensor or a `Run`.

        Raises:
            BadInput: axes that the site does not have, or a tensor that can be read in several ways.
        """
        what = f"{what} at {site}"
        value = value.run if isinstance(value, Generation) else value
        if isinstance(value, Run):
            if axes is not None or tokens is not None:
                raise BadInput(f"{what}: a run knows its tokens and axes; leave out axes= and tokens=")
            tensor = value[site] if value.has_batch_dim else value[site][None]
            site = site.among(value.model.streams)
            heads = None if site.head_axis is None else value.heads
            tokens, columns = value.tokens, value.columns
            if site.in_source and tokens.source is not None:
                tokens, columns = tokens.source, None
            return Value(site, tensor, axes_of(site), what, tokens, columns, heads)
        if not isinstance(tokens, TokenBatch | None):
            raise BadInput(
                f"{what}: tokens= is a TokenBatch, as run.tokens or model.tokens(prompts), not {tokens!r:.40}"
            )
        tensor = numbers(value, what)
        if tensor.ndim == 4 or "stream" in str(axes).split():
            site = site.among(2)  # or more: the axes are the same
        if axes is None:
            return Value(site, tensor, _read(site, tensor, what), what, tokens, named=False)
        return Value(site, *_ordered(site, tensor, axes, what), what, tokens)

    def fit(self, x: Tensor, moment: Moment) -> Tensor:
        """The value for an activation, in a shape that broadcasts over it.

        Raises:
            BadInput: sizes that are not the activation's; tokens that the value has nothing for.
        """
        new, names = self.tensor.to(x.device), axes_of(self.site.among(x.ndim - 2))  # several streams: an axis more
        if new.ndim == 0:
            return new
        if not self.named:
            self._check_reading(x, moment)
        for axis, name in enumerate(names):
            if name not in self.axes:
                new = new.unsqueeze(axis)
            elif name not in TOKEN_AXES and name != "head":
                self._check_size(name, new.shape[axis], x.shape[axis])
        if "batch" in self.axes:
            self._check_size("batch", len(new), moment.size)
            new = new if moment.rows is None else new[moment.rows]
        if "position" in self.axes:
            new = self._taken(new, names.index("position"), moment.positions, moment.chosen, moment, self.columns)
        if "key" in self.axes:
            keys = moment.of_keys(x.shape[-1])
            source = self.tokens.source if moment.across and self.tokens is not None else self.tokens
            owner = replace(self, tokens=source)
            new = owner._taken(new, names.index("key"), keys.positions, _seen(moment), keys)
        return self._of_heads(new, x, moment) if "head" in self.axes else new

    def _check_size(self, name: str, size: int, wanted: int) -> None:
        if size != wanted:
            more = "; leave the axis out where all are to have the same" if size == 1 else ""
            raise BadInput(f"{self.what}: the value {self._shown} has {size} along {name!r}, not {wanted}{more}")

    @property
    def _shown(self) -> str:
        return f"{list(self.tensor.shape)} ({' '.join(self.axes)})"

    def _check_reading(self, x: Tensor, moment: Moment) -> None:
        """Raises `BadInput` where heads' features could be other axes: as many heads as `d_head`, as many rows."""
        if "head" not in axes_of(self.site) or self.tensor.ndim not in (1, 2):
            return
        sizes = dict(zip(axes_of(self.site), x.shape)) | {"batch": moment.size}
        others = [name for name in ("batch", "position", "head") if sizes[name] == self.tensor.shape[0]]
        others = [name for name in others if name not in self.axes and (self.tensor.ndim == 2 or name == "head")]
        if others and self.tensor.shape[-1] == sizes[axes_of(self.site)[-1]]:
            readings = [" ".join(self.axes), *(" ".join([name, *self.axes[1:]]) for name in others)]
            raise BadInput(
                f"{self.what}: a value {list(self.tensor.shape)} can be {' or '.join(map(repr, readings))}: say which "
                "with axes="
            )

    # ------------------------------------------------------------------ tokens
    def _taken(
        self,
        value: Tensor,
        axis: int,
        positions: Int[Tensor, "batch pos"],
        needed: Bool[Tensor, "batch pos"] | None,
        moment: Moment,
        columns: Int[Tensor, "batch kept"] | None = None,
    ) -> Tensor:
        """The value's entries along an axis for the tokens with these indices in their rows."""
        slots = self._slots(value.shape[axis], moment, columns)
        inside = positions < slots.shape[1]
        slot = slots.expand(len(positions), -1).gather(1, positions.clamp(max=slots.shape[1] - 1))
        found = inside & (slot >= 0)
        missing = moment.mask.new_zeros(1) if needed is None else needed & ~found
        if bool(missing.any()):
            row, column = missing.nonzero()[0].tolist()
            index, length = int(positions[row, column]), int(moment.prompt_lengths[row])
            hint = (
                "it is generated, so narrow the edit with .at(scope='prompt')"
                if index >= length
                else "narrow the edit to the positions that the run kept"
            )
            raise BadInput(
                f"{self.what}: the value {self._shown} has nothing for token {index} of row {moment.row(row)}; {hint}"
            )
        if slot.shape[1] == value.shape[axis] and bool((slot == torch.arange(slot.shape[1], device=slot.device)).all()):
            return value
        value, slot = value.expand(len(slot), *value.shape[1:]), slot.to(value.device)
        shape = (len(slot), *[1] * (axis - 1), slot.shape[1], *[1] * (value.ndim - axis - 1))
        where = slot.clamp(min=0).reshape(shape)
        return value.gather(axis, where.expand(*value.shape[:axis], -1, *value.shape[axis + 1 :]))

    def _slots(
        self, size: int, moment: Moment, columns: Int[Tensor, "batch kept"] | None
    ) -> Int[Tensor, "batch|1 index"]:
        """For each token index of a row, where along its axis the value has it; -1 where it does not."""
        lengths = moment.prompt_lengths
        if self.tokens is None:
            if bool((lengths != size).any()):
                self._refuse_layout(size, moment)
            return torch.arange(size, device=lengths.device)[None]
        tokens = self.tokens.to(lengths.device)
        if "batch" in self.axes:
            self._check_size("batch", len(tokens), moment.size)
            rows = slice(None) if moment.rows is None else moment.rows
        else:
            self._check_size("batch", len(tokens), 1)
            rows = slice(None)
        columns = None if columns is None else columns.to(lengths.device)[rows]
        mask, index = tokens.mask[rows], tokens.positions[rows]
        own = mask.sum(-1).expand_as(lengths)
        wrong = own != lengths
        if moment.room and bool(wrong.any()):  # the value may go on, of a run of this prompt with what was generated
            wrong &= ~torch.tensor(_continues(TokenBatch(tokens.ids[rows], mask), moment), device=lengths.device)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise BadInput(
                f"{self.what}: row {moment.row(row)} has {int(lengths[row])} tokens and the value's {int(own[row])}; "
                "take what you mean from it, such as run.last(site) with axes='batch d_model'"
            )
        if columns is not None:
            mask, index = mask.gather(1, columns), index.gather(1, columns)
        if size != index.shape[1]:
            raise BadInput(
                f"{self.what}: the value {self._shown} has {size} tokens, and tokens= {index.shape[1]} columns"
            )
        slots = torch.full((len(index), int(own.max()) + 1), -1, device=lengths.device)
        at = torch.arange(size, device=lengths.device).expand_as(index)
        return slots.scatter(1, torch.where(mask, index, slots.shape[1] - 1), at)[:, :-1]

    def _refuse_layout(self, size: int, moment: Moment) -> None:
        lengths = moment.prompt_lengths
        if len(set(lengths.tolist())) > 1:
            raise BadInput(
                f"{self.what}: the rows have {int(lengths.min())} to {int(lengths.max())} tokens, so columns of "
                "the value may be other tokens: give the run that it comes from (patch(site, run)), or tokens="
            )
        row = int((lengths != size).nonzero()[0, 0])
        raise BadInput(
            f"{self.what}: the value {self._shown} has {size} tokens, row {moment.row(row)} {int(lengths[row])}; "
            "cut it to the tokens that you mean"
        )

    def _of_heads(self, value: Tensor, x: Tensor, moment: Moment) -> Tensor:
        """The value with all heads, of which those that it lacks are as they were."""
        axis = axes_of(self.site).index("head")
        if self.heads is None:
            self._check_size("head", value.shape[axis], x.shape[axis])
            return value
        lacks = set(range(x.shape[axis]) if moment.heads is None else moment.heads) - set(self.heads)
        if lacks:
            raise BadInput(f"{self.what}: the run kept heads {list(self.heads)}, the edit reaches {min(lacks)}")
        index = torch.tensor(self.heads, device=x.device)
        return x.to(value.dtype).index_copy(
            axis, index, value.expand(*x.shape[:axis], len(index), *x.shape[axis + 1 :])
        )


def _continues(tokens: TokenBatch, moment: Moment) -> list[bool]:
    """For each row of the moment whether the value's tokens begin with its prompt."""
    prompts = [row[:length] for row, length in zip(moment.tokens.rows(), moment.prompt_lengths.tolist())]
    rows = tokens.rows() * (len(prompts) if len(tokens) == 1 else 1)
    return [row[: len(prompt)] == prompt for row, prompt in zip(rows, prompts)]


def _seen(moment: Moment) -> Bool[Tensor, "batch key"] | None:
    """The keys that the chosen queries may see."""
    if moment.visible is None or moment.chosen is None:
        return None
    return (moment.visible & moment.chosen[:, None, :, None]).any(dim=1).any(dim=1)


def numbers(value: Any, what: str, dtype: torch.dtype | None = None) -> Tensor:
    """A number, or several, as a tensor. Raises `BadInput` for what is none."""
    try:
        tensor = torch.as_tensor(value)
        tensor = tensor if dtype is None else torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise BadInput(f"{what}: numbers or a tensor are needed, not a {type(value).__name__}") from None
    if tensor.is_complex() or tensor.is_meta or tensor.layout != torch.strided:
        raise BadInput(
            f"{what}: a dense tensor of real numbers is needed, not {tensor.dtype} ({tensor.layout}, {tensor.device})"
        )
    return tensor


# ---------------------------------------------------------------------- axes by name
def _read(site: Site, tensor: Tensor, what: str) -> tuple[str, ...]:
    """The axes of a tensor that nobody named: all of the site, or the last ones that are not of tokens."""
    names = axes_of(site)
    features = [name for name in names if name not in TOKEN_AXES]
    if tensor.ndim == len(names):
        return names
    if tensor.ndim <= len(features):
        return tuple(features[len(features) - tensor.ndim :])
    readings = [" ".join(some) for some in combinations(names, tensor.ndim)]
    if not readings:
        raise BadInput(f"{what}: a value of {tensor.ndim} axes, {site} has {len(names)}: {' '.join(names)}")
    raise BadInput(
        f"{what}: a value {list(tensor.shape)} can be {' or '.join(map(repr, readings))}: say which with axes="
    )


def _ordered(site: Site, tensor: Tensor, axes: str | Sequence[str], what: str) -> tuple[Tensor, tuple[str, ...]]:
    """The tensor with its axes in the site's order, without those named "1", and the names."""
    names = axes_of(site)
    if not isinstance(axes, str | list | tuple):
        raise BadInput(f"{what}: axes= names the axes in the tensor's order, as 'batch d_model', not {axes!r}")
    given = [_SAME.get(name, name) for name in (axes.split() if isinstance(axes, str) else axes)]
    kept = [name for name in given if name != "1"]
    known = [name for name in names if name != "1"]
    if len(given) != tensor.ndim or len(set(kept)) < len(kept) or not set(kept) <= set(known):
        raise BadInput(
            f"{what}: axes={axes!r} does not name the {tensor.ndim} axes of a value {list(tensor.shape)}; there are "
            f"{' '.join(known)}, and '1' for an axis of size 1"
        )
    for axis, name in enumerate(given):
        if name == "1" and tensor.shape[axis] != 1:
            raise BadInput(f"{what}: axes={axes!r} names '1' for an axis of size {tensor.shape[axis]}")
    tensor = tensor.reshape([size for size, name in zip(tensor.shape, given) if name != "1"])
    order = [name for name in names if name in kept]
    return tensor.permute([kept.index(name) for name in order]), tuple(order)
