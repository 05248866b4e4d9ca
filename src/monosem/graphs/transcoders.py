"""Latents of transcoders as nodes: of one layer, or of a cross-layer transcoder that writes to all later ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..dictionaries import CrossLayer, Dictionary
from ..dictionaries.encoders import ENCODERS
from ..dictionaries.trained_on import TrainedOn
from ..errors import BadInput
from ..models import Branch, Model, Norm, Site
from .frozen import Frozen, Reading, Written
from .units import Units

Transcoders = Dictionary | CrossLayer


@dataclass(frozen=True, eq=False)
class Place:
    """How a transcoder reads the stream: through a norm of frozen size, or as it is.

    Attributes:
        stream: the stream's site. depth: of it.
        reading: the norm. gain: whether the norm's gain and bias are in what it reads.
    """

    stream: Site
    depth: int
    reading: Reading | None
    gain: bool = True

    @staticmethod
    def of(frozen: Frozen, site: Site) -> "Place":
        """Raises `BadInput` for a site that is no linear function of the stream."""
        model = frozen.model
        if site.in_stream:
            return Place(site, model.depth(site), None)
        branch, gain = read_behind(model, site)
        reading = next(r for r, one in zip(frozen.readings, frozen.branches) if one.out == branch.out)
        return Place(branch.reads, model.depth(branch.reads), reading, gain)

    def vectors(self, rows: Float[Tensor, "n d"], positions: Int[Tensor, "n"]) -> Float[Tensor, "n d"]:
        """Encoder rows as they read the stream."""
        return rows if self.reading is None else self._norm.pull(rows) / self.reading.size[positions]

    def pull(self, given: Float[Tensor, "target pos d"]) -> Float[Tensor, "target pos d"]:
        """A cotangent of what is read to one of the stream, at every position."""
        return given if self.reading is None else self._norm.pull(given) / self.reading.size[: given.shape[1]]

    def push(self, stream: Float[Tensor, "pos d"]) -> Float[Tensor, "pos d"]:
        """What is read of a part of the stream, without the norm's bias."""
        return stream if self.reading is None else self._norm.frozen(stream, self.reading.size)

    @property
    def bias(self) -> Float[Tensor, "d"] | float:
        return 0.0 if self.reading is None else self._norm.bias

    @property
    def _norm(self) -> Norm:
        assert self.reading is not None
        norm = self.reading.norm
        if self.gain:
            return norm
        return replace(norm, gain=torch.ones_like(norm.gain), bias=torch.zeros_like(norm.bias))


def read_behind(model: Model, site: Site) -> tuple[Branch, bool]:
    """The branch behind whose norm a site lies, and whether the norm's gain and bias are in it. Raises `BadInput` for
    one that is no linear function of the stream."""
    for branch in model.branches() if site.layer is None else model.branches(site.layer):
        names = {f"{branch.name}_input": True, f"{branch.norm}_output": True, f"{branch.norm}_normalized": False}
        if site.name in names:
            return branch, names[site.name]
    raise BadInput(
        f"a dictionary that reads {site} cannot be followed back: nodes read the stream (resid_mid) or what an MLP is "
        "given (mlp_input)"
    )


class Skip:
    """The skip connection of a transcoder: a linear map of the stream."""

    def __init__(self, place: Place, W_skip: Float[Tensor, "d_out d_in"], written: Written | None):
        self.place, self.W, self.written = place, W_skip, written
        self.reads, self.depth = place.stream, place.depth

    def pull(self, stream: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_model"]:
        raw = stream if self.written is None else self.written.pull(stream)
        return self.place.pull(raw @ self.W)

    def push(self, stream: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        raw = self.place.push(stream) @ self.W.T
        return raw if self.written is None else self.written.push(raw)


@dataclass(frozen=True, eq=False)
class Latents(Units):
    """Active latents of a transcoder of one layer, or of one layer of a cross-layer transcoder.

    Attributes:
        owner: the transcoder. number: its layer in a cross-layer transcoder. where: how it reads.
        outputs: the branches at which it writes, in the order of its outputs. is_raw: whether before a norm after them.
    """

    owner: Any = None
    number: int = 0
    where: Any = None
    outputs: tuple[int, ...] = ()
    is_raw: bool = False

    @property
    def writes(self) -> list[int]:
        return list(self.outputs)

    @property
    def raw(self) -> bool:
        return self.is_raw

    def rows(self, number: int, indices: Int[Tensor, "n"] | None) -> Float[Tensor, "n width"]:
        ids = torch.arange(self.owner.width) if indices is None else indices
        if isinstance(self.owner, Dictionary):
            rows = self.owner.decoder_rows(ids)
        else:
            rows = self.owner.rows(self.number, ids)[:, self.outputs.index(number)]
        return rows.to(self.values.device, self.frozen.dtype)

    def _read(self, positions: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        owner, dtype = self.owner, self.frozen.dtype
        W, b = (
            (owner.W_enc, owner.b_enc)
            if isinstance(owner, Dictionary)
            else (owner.W_enc[self.number], owner.b_enc[self.number])
        )
        rows, bias = W[:, indices].T.to(positions.device, dtype), b[indices].to(positions.device, dtype)
        given = self.frozen.at(site_of(owner, self.number))[positions]
        constants = (rows * self.where.bias).sum(-1) + bias
        return self.where.vectors(rows, positions), constants, (given * rows).sum(-1) + bias


def site_of(owner: Transcoders, number: int) -> Site:
    return owner.site if isinstance(owner, Dictionary) else owner.sites[number]


def sites_of(transcoders: Sequence[Transcoders]) -> list[Site]:
    """Where transcoders read and write."""
    found: list[Site] = []
    for one in transcoders:
        found += [one.site, one.site_out] if isinstance(one, Dictionary) else [*one.sites, *one.sites_out]
    return found


def check(model: Model, transcoders: Sequence[Transcoders]) -> None:
    """Raises `BadInput` for what is no transcoder, or one whose codes are no function of a linear read-out; `Mismatch`
    for another model's."""
    for one in transcoders:
        if not isinstance(one, Dictionary | CrossLayer):
            raise BadInput(f"transcoders= takes transcoders (load_dictionary), not {one!r:.60}")
        one.check(model)
        if isinstance(one, Dictionary):
            if not one.transcoder:
                raise BadInput(f"{one.name!r} is no transcoder: it rebuilds {one.site}; a graph replaces what MLPs do")
            if one.token_norm != "none" or one.W_glu is not None:
                raise BadInput(f"{one.name!r} normalises or gates what it reads, which a graph cannot take apart")
        if ENCODERS[one.kind].find is not None:
            raise BadInput(f"{one.name!r} is a {one.kind} dictionary, whose latents read no pre-activation")


def output_of(frozen: Frozen, site: Site) -> tuple[int, bool]:
    """The branch that a transcoder's output stands for, and whether before a norm after it. Raises `BadInput`."""
    for number, branch in enumerate(frozen.branches):
        if site in (branch.out, branch.raw) and number not in frozen.constants:
            return number, site == branch.raw
    raise BadInput(f"a transcoder that writes {site} cannot be put into a graph: nodes write what MLPs write (mlp_out)")


def counted(frozen: Frozen, owner: Transcoders, site: Site) -> Bool[Tensor, "pos"]:
    """The tokens that a transcoder was trained on; at others its codes mean nothing, and all of it is error."""
    rule: Any = owner if isinstance(owner, Dictionary) else TrainedOn(site)
    batch = frozen.batch
    left_out = rule.skipper(frozen.model).left_out(
        batch.ids.cpu(), batch.positions.cpu(), {str(site): frozen.run[site].cpu()}
    )
    return ~torch.stack([*left_out.values()]).any(0)[0]


def active(frozen: Frozen, owner: Transcoders, number: int, everywhere: bool) -> Latents:
    """The latents of a layer that are active, at tokens that the transcoder was trained on (`everywhere`: at all)."""
    site, single = site_of(owner, number), isinstance(owner, Dictionary)
    x = frozen.at(site)
    codes = owner.encode(x) if isinstance(owner, Dictionary) else owner.encode_layer(number, x)
    keep = codes.values != 0
    if not everywhere:
        keep &= counted(frozen, owner, site).to(keep.device)[:, None]
    positions = torch.arange(len(x), device=keep.device)[:, None].expand_as(keep)[keep]
    indices, values = codes.indices[keep], codes.values[keep]
    order = (positions * owner.width + indices).argsort()
    out = [owner.site_out] if isinstance(owner, Dictionary) else list(owner.sites_out[number:])
    outputs = [output_of(frozen, one) for one in out]
    where, device = Place.of(frozen, site), frozen.model.device
    return Latents(
        frozen,
        int(site.layer or 0),
        where.depth,
        positions[order].to(device),
        indices[order].to(device),
        values[order].to(device, frozen.dtype),
        owner=owner,
        number=0 if single else number,
        where=where,
        outputs=tuple(one for one, _ in outputs),
        is_raw=outputs[0][1],
    )


def baseline(frozen: Frozen, owner: Transcoders, number: int, at: int, raw: bool) -> Float[Tensor, "pos d_model"]:
    """What a layer of a transcoder adds to the stream whatever it reads: its bias. A skip connection of it becomes a
    linear map of the branch."""
    single, device, dtype = isinstance(owner, Dictionary), frozen.model.device, frozen.dtype
    constant = (owner.b_dec if single else owner.b_dec[number]).to(device, dtype).expand(frozen.length, -1)
    if owner.W_skip is not None:
        W = (owner.W_skip if single else owner.W_skip[number]).to(device, dtype)
        place = Place.of(frozen, site_of(owner, number))
        frozen.linear.setdefault(at, []).append(Skip(place, W, frozen.written[at] if raw else None))
        constant = constant + (W * place.bias).sum(-1)
    return frozen.written[at].push(constant) + frozen.written[at].constant if raw else constant
