"""One prompt's run with attention patterns and norms' sizes frozen: from there on the stream is a linear function.

    what a branch adds = share_out( Σ over keys of pattern · (frozen norm(stream) W_V) W_O ) + a constant

So a gradient through it needs no graph and no second pass: a cotangent is pulled back from branch to branch by matrix
products (`Frozen.descend`), and its memory does not depend on the size of the model.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput
from ..models import Branch, Model, Norm, Run, Site, TokenBatch
from ..models.places.points import added_to
from ..models.places.weights import bias_of, weight_from

TOGETHER = 24  # targets from which on more at once save little
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # of what a frozen branch adds; else 3e-2 (bf16, fp16)


@dataclass(frozen=True, eq=False)
class Targets:
    """Read-outs of the stream at one depth.

    Attributes:
        vectors: what reads the stream (norms pulled through). positions: of which token. depth: `Model.depth`.
        constants: what is added to the read-out that no part of the stream gives.
        sums: the read-out in the run.
    """

    vectors: Float[Tensor, "target d_model"]
    positions: Int[Tensor, "target"]
    depth: int
    constants: Float[Tensor, "target"]
    sums: Float[Tensor, "target"]

    def __len__(self) -> int:
        return len(self.vectors)

    def chunks(self, size: int) -> Iterator[tuple[slice, "Targets"]]:
        """At most so many at a time. Few of them share a pass: it is as long as the last position that they read."""
        size = min(size, max(TOGETHER, len(self) // 8))
        for first in range(0, len(self), size):
            some = slice(first, min(first + size, len(self)))
            yield (
                some,
                Targets(self.vectors[some], self.positions[some], self.depth, self.constants[some], self.sums[some]),
            )


class Written:
    """Between a branch's raw output and the stream: a norm of frozen size, and a multiplier."""

    def __init__(self, branch: Branch, run: Run, dtype: torch.dtype):
        self.branch = branch
        self.norm: Norm = branch.model.norm(branch.norm_out, dtype)
        self.size: Tensor | None = None if branch.norm_out is None else self.norm.scale(run[branch.raw][0])  # pos 1
        added = added_to(branch.model, branch.layer, branch.slot)
        self.constant = self.norm.bias * branch.scale + (0 if added is None else added.to(dtype))

    def pull(self, stream: Float[Tensor, "... pos d_model"]) -> Float[Tensor, "... pos d_model"]:
        """From the stream to the raw output."""
        if self.size is None:
            return stream if self.branch.scale == 1 else stream * self.branch.scale
        return self.norm.pull(stream) * self.branch.scale / self.size[: stream.shape[-2]]

    def push(self, raw: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """What parts of the raw output add to the stream."""
        return (raw if self.size is None else self.norm.frozen(raw, self.size)) * self.branch.scale


class Reading:
    """Between the stream and what a branch's modules are given: a norm of frozen size."""

    def __init__(self, branch: Branch, run: Run, dtype: torch.dtype):
        self.norm = branch.reading(dtype)
        self.size: Float[Tensor, "pos 1"] = self.norm.scale(run[branch.reads][0])

    def pull_at(self, given: Float[Tensor, "n d_model"], positions: Int[Tensor, "n"]) -> Float[Tensor, "n d_model"]:
        return self.norm.pull(given) / self.size[positions]


class Path(Protocol):
    """A linear map from the stream, as it is at a depth, to what a branch adds to the stream.

    Attributes:
        reads: the stream's site. depth: of it.
    """

    reads: Site
    depth: int

    def push(self, stream: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """What is added for a part of the stream, without what is constant."""

    def pull(self, stream: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_model"]:
        """A cotangent of what is added to one of the stream that is read."""


class Attention:
    """An attention branch as a linear map of the stream, its pattern and its norms' sizes frozen.

    Gains and sizes of norms are parts of the weights and of the pattern, and heads lie in the groups that share keys
    and values: so a cotangent goes through three products, and hardly anything is copied in between.

    Attributes:
        read: what each key-value head reads. write: what the heads of a group write. mixed: the pattern, by keys.
    """

    def __init__(self, branch: Branch, depth: int, run: Run, reading: Reading, written: Written):
        model, layer, dtype = branch.model, branch.layer, reading.size.dtype
        self.reads, self.depth = branch.reads, depth
        v = branch.site("v")
        W_V = weight_from(model, v).to(dtype).mT  # kv_head d_v d_model
        W_O = branch.weight().to(dtype)  # head d_v d_model
        n_kv, n_heads = len(W_V), len(W_O)
        pattern = run[Site("pattern", layer)][0].to(dtype)  # head query key
        values = (W_V @ reading.norm.bias + bias_of(model, v).to(dtype)).repeat_interleave(n_heads // n_kv, 0)
        constant = torch.einsum("hqk,hv,hvd->qd", pattern, values, W_O) + branch.bias().to(dtype)
        self.constant: Float[Tensor, "pos d_model"] = written.push(constant) + written.constant
        self.read: Float[Tensor, "kv_head d_v d_model"] = reading.norm.pull(W_V)
        W_O = written.norm.frozen(W_O, torch.ones_like(W_O[..., :1])) * branch.scale
        self.write: Float[Tensor, "kv_head d_model group*d_v"] = W_O.unflatten(0, (n_kv, -1)).flatten(1, 2).mT
        pattern = pattern / reading.size.T if written.size is None else pattern / reading.size.T / written.size
        self.mixed: Float[Tensor, "kv_head key query group"] = pattern.unflatten(0, (n_kv, -1)).permute(0, 3, 2, 1)

    def push(self, stream: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        values = stream @ self.read.mT  # kv_head key d_v
        z = torch.einsum("gkqh,gkv->gqhv", self.mixed, values).flatten(2)
        return (z @ self.write.mT).sum(0)

    def pull(self, stream: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_model"]:
        targets, length, _ = stream.shape
        n_kv, d_v, _ = self.read.shape
        z = torch.bmm(stream.flatten(0, 1).expand(n_kv, -1, -1), self.write)
        z = z.view(n_kv, targets, -1, d_v)  # query*group d_v
        mixed = self.mixed[:, :length, :length].flatten(2)
        keys = torch.matmul(mixed[:, None], z).permute(1, 2, 0, 3).flatten(2)
        return keys @ self.read.flatten(0, 1)


@dataclass
class Frozen:
    """The run of one prompt, and its stream as a sum of what was written.

    Attributes:
        linear: the branches through which a cotangent is pulled: attentions, and skip connections of transcoders.
        constants: what these add whatever the stream is.
    """

    model: Model
    batch: TokenBatch
    run: Run
    dtype: torch.dtype
    start: Site
    end: Site
    branches: list[Branch]
    linear: dict[int, list[Path]] = field(default_factory=dict)
    constants: dict[int, Float[Tensor, "pos d_model"]] = field(default_factory=dict)

    @staticmethod
    def of(model: Model, x: object, sites: Iterable[Site] = ()) -> "Frozen":
        """Raises `BadInput` for several prompts, or inside `model.editing`; and what `Model.written_before` refuses."""
        batch = model.tokens(x)
        if model.ambient_edits:
            raise BadInput(
                f"{model.ambient_edits[0]}, of model.editing(...): a graph is of the model as it is; leave it"
            )
        if len(batch) != 1 or batch.padded:
            raise BadInput(f"a graph is of one prompt, not {len(batch)}: make one graph for each")
        start, end = Site("resid_pre", 0), Site("resid_post", model.cfg.n_layers - 1)
        branches = model.written_before(end)
        asked = {start, end, *sites}
        for branch in branches:
            asked |= {branch.reads, branch.out, *([branch.raw] if branch.norm_out is not None else [])}
            asked |= {Site("pattern", branch.layer)} if _mixes(model, branch) else set()
        run = model.run(batch, sorted(asked, key=str), logits="last")
        dtype = torch.promote_types(model.dtype, torch.float32)
        frozen = Frozen(model, batch, run, dtype, start, end, branches)
        for number, branch in enumerate(branches):
            if _mixes(model, branch) and (attention := frozen._attention(number)) is not None:
                frozen.linear[number] = [attention]
                frozen.constants[number] = attention.constant
        return frozen

    def _attention(self, number: int) -> Attention | None:
        """None where its output is another one than pattern times values (gates and norms on the way)."""
        branch = self.branches[number]
        depth = self.model.depth(branch.reads)
        attention = Attention(branch, depth, self.run, self.readings[number], self.written[number])
        out = self.at(branch.out)
        made = attention.push(self.at(branch.reads)) + attention.constant
        wrong = (made - out).abs().max() > TOLERANCE.get(self.model.dtype, 3e-2) * out.abs().max()
        return None if bool(wrong) else attention

    def at(self, site: Site) -> Float[Tensor, "pos d_model"]:
        """What the run had at a site, in the precision of the graph."""
        return self.run[site][0].to(self.dtype)

    @property
    def length(self) -> int:
        return int(self.batch.ids.shape[1])

    @property
    def tokens(self) -> list[str]:
        return [self.model.str_token(int(token)) for token in self.batch.ids[0]]

    @cached_property
    def written(self) -> list[Written]:
        return [Written(branch, self.run, self.dtype) for branch in self.branches]

    @cached_property
    def readings(self) -> list[Reading]:
        return [Reading(branch, self.run, self.dtype) for branch in self.branches]

    def descend(self, targets: Targets) -> Iterator[tuple[int, Float[Tensor, "target pos d_model"]]]:
        """The cotangent of what each branch adds to the stream, the last branch before the targets first; then of what
        entered the first block (number -1). Positions: up to the last one that a target reads."""
        model, length = self.model, int(targets.positions.max()) + 1
        stream = torch.zeros(len(targets), length, model.cfg.d_model, dtype=self.dtype, device=model.device)
        stream[torch.arange(len(targets)), targets.positions] = targets.vectors
        waiting, layer = list[tuple[int, Tensor]](), len(model.anatomy)
        for number in range(len(self.branches) - 1, -2, -1):
            branch = self.branches[number] if number >= 0 else None
            writes = -1 if branch is None else model.depth(branch.out)
            while layer > (0 if branch is None else branch.layer):  # the end of a block may multiply the stream
                layer -= 1
                end, factor = model.depth(Site("resid_post", layer)), model.anatomy[layer].factor
                if factor != 1 and targets.depth >= end:
                    waiting = self._joined(stream, waiting, end - 1)
                    stream *= factor
            if writes > targets.depth:
                continue
            waiting = self._joined(stream, waiting, writes)
            yield number, stream
            waiting += [(path.depth, path.pull(stream)) for path in self.linear.get(number, ())]

    @staticmethod
    def _joined(stream: Tensor, waiting: list[tuple[int, Tensor]], depth: int) -> list[tuple[int, Tensor]]:
        """Adds what is read above a depth; returns what is read below."""
        for at, part in waiting:
            if at > depth:
                stream += part
        return [one for one in waiting if one[0] <= depth]


def _mixes(model: Model, branch: Branch) -> bool:
    """Whether a branch has a pattern and values, by its sites; whether that is all, `_attention` checks."""
    row = branch.slot.mixer.row
    sites = [Site("pattern", branch.layer), Site("v", branch.layer)]
    return row.attends and branch.slot.mixer.kind == "attention" and all(model.has(site) for site in sites)
