"""A block's branches, by what its modules read and write in one forward pass.

A branch is a child of the block that reads the stream, or a norm of it, and whose output is added to the stream. What
it computes is tried in an order, from the kind that shows most to the one that shows nothing inside ("other").
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import permutations, product, takewhile
from math import isclose
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..places.families import BranchRow
from ..places.mixers import Mixer
from ..sizes import widths
from .constants import constant, ratio
from .finding import NotFound, first, recorded_class
from .tracing import Call, is_linear, same

# what a branch is called, by its path in the block and the name of its class without what that shares with the block's
_NAMES = {
    "linear": re.compile(r"linear_?att|delta_?net|deltaatt|lightning|kda", re.I),
    "ssm": re.compile(r"mamba|ssm", re.I),
    "conv": re.compile(r"conv", re.I),
    "recurrent": re.compile(r"rglru|recurrent|rwkv|lstm", re.I),
    "mlp": re.compile(
        r"^\S*(mlp|ffn|feed_?forward|moe|expert|mixture)|(mlp|ffn|feedforward|moe|moeblock|experts?)$", re.I
    ),
    "attn": re.compile(r"att", re.I),
}
_LETTERS = {"q": r"(w?q$|q_|query)", "k": r"(w?k$|k_|key)", "v": r"(w?v$|v_|value)"}


@dataclass(frozen=True)
class Found:
    """A branch of one block.

    Attributes:
        mixers: what it may compute, the most telling kind first; the last is "other".
        row: the branch with none of them.
        of: name of the class of its module.
    """

    mixers: tuple[Mixer, ...]
    row: BranchRow
    of: str

    @property
    def name(self) -> str:
        return self.row.name


# ---------------------------------------------------------------------- one block
def branches_of(hf: PreTrainedModel, calls: list[Call], block: Call) -> list[Found]:
    """The branches of a block in the order in which they write.

    Raises:
        NotFound: no branch, or a stream that is not what the branches add up to.
    """
    if block.read.shape != block.wrote.shape or block.read.ndim != 3:
        shapes = f"{tuple(block.read.shape)} and {tuple(block.wrote.shape)}"
        raise NotFound(f"one residual stream: a block reads and writes {shapes} (several streams?)")
    inside = [c for c in calls if c.within(block.path)]
    children = [c for c in inside if not any(c.within(other.path) for other in inside)]
    norms = [c for c in children if _is_norm(c.module)]
    writers = [c for c in children if c not in norms and list(c.module.children())]
    writers = [c for c in writers if c.wrote.shape == block.read.shape]
    if not writers:
        names = ", ".join(str(c.within(block.path)) for c in children) or "none"
        raise NotFound(f"a module of the block that writes into the stream (its modules: {names})")
    steps = _steps(block, norms, writers)
    found: list[Found] = []
    for number, step in enumerate(steps):
        end = steps[number + 1].stream if number + 1 < len(steps) else block.wrote
        scale = _scale(hf, end - step.stream, [_written(norms, c) for c in step.writers], block)
        for writer in step.writers:
            found.append(_branch(hf, inside, block, norms, writer, len(found), scale, writer is not step.writers[0]))
    return _with_own_names(found)


@dataclass
class _Step:
    """A stream, and the branches that read it."""

    stream: Tensor
    writers: list[Call]


def _steps(block: Call, norms: list[Call], writers: list[Call]) -> list[_Step]:
    steps = [_Step(block.read, [])]
    for writer in writers:
        before = next((n for n in norms if same(n.wrote, writer.read)), None)
        stream = writer.read if before is None else before.read
        if stream.shape != block.read.shape:
            path = writer.within(block.path)
            raise NotFound(f"the stream that {path} reads: what it is given has the shape {tuple(stream.shape)}")
        step = next((one for one in steps if same(one.stream, stream)), None)
        if step is None:
            step = _Step(stream, [])
            steps.append(step)
        step.writers.append(writer)
    return steps


def _written(norms: list[Call], writer: Call) -> Tensor:
    return next((n.wrote for n in norms if same(n.read, writer.wrote)), writer.wrote)


def _scale(hf: PreTrainedModel, added: Tensor, written: list[Tensor], block: Call) -> str | None:
    """The config's name of what the outputs are multiplied by; None where they are added as they are."""
    scale = ratio(added, sum(written)) if written else None  # type: ignore[arg-type]
    if scale is None or isclose(scale, 1.0, rel_tol=1e-2):
        return None
    return constant(hf, scale, block.wrote)


def _branch(
    hf: PreTrainedModel,
    inside: list[Call],
    block: Call,
    norms: list[Call],
    writer: Call,
    number: int,
    scale: str | None,
    parallel: bool,
) -> Found:
    before = next((n.within(block.path) for n in norms if same(n.wrote, writer.read)), None)
    after = next((n.within(block.path) for n in norms if same(n.read, writer.wrote)), None)
    mixers, name = _mixers(hf, inside, writer, block)
    row = BranchRow(name, (), f"ln{number + 1}", before, after, parallel, scale)
    return Found(mixers, row, type(writer.module).__name__)


def _with_own_names(found: list[Found]) -> list[Found]:
    """A second branch of a name is told by a number."""
    named: list[Found] = []
    for one in found:
        again = sum(other.name.rstrip("0123456789") == one.name for other in named)
        named.append(replace(one, row=replace(one.row, name=f"{one.name}{again + 1}")) if again else one)
    return named


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    if list(module.children()):  # with a gate or an adapter, but no more
        return name.endswith("norm") and not re.search("att|mlp|ffn", name)
    return "norm" in name


# ---------------------------------------------------------------------- what a branch computes
def _mixers(hf: PreTrainedModel, inside: list[Call], writer: Call, block: Call) -> tuple[tuple[Mixer, ...], str]:
    """What it may compute, the most telling kind first, and the name of such a branch."""
    recorded, path = recorded_class(hf, "attentions"), str(writer.within(block.path))
    own, whole = (type(one.module).__name__ for one in (writer, block))
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(own, whole))))
    told = f"{path} {own[shared:]}"
    name = next((name for name, pattern in _NAMES.items() if pattern.search(told)), "other")
    if recorded is not None and isinstance(writer.module, recorded):
        name = "attn"
    find = {"attn": _attention, "mlp": _mlp}.get(name)
    return (*(_or_nothing(find, hf, inside, writer, path) if find else ()), Mixer("other", path)), name


def _or_nothing(find: Any, *given: Any) -> tuple[Mixer, ...]:
    try:
        return tuple(find(*given))
    except NotFound:
        return ()


def _attention(hf: PreTrainedModel, inside: list[Call], attention: Call, path: str) -> Iterable[Mixer]:
    linears = [c for c in inside if c.within(attention.path) and is_linear(c.module)]
    out = first([c for c in linears if same(c.wrote, attention.wrote)], "attention's output projection")
    reads = {str(c.within(attention.path)): c for c in linears if same(c.read, attention.read) and c is not out}
    clip = "clip_qkv" if hasattr(hf.config.get_text_config(), "clip_qkv") else None
    ending = {"out": str(out.within(attention.path))}
    if len(reads) == 1:
        parts = dict.fromkeys("qkv", next(iter(reads))) | ending
        return [Mixer("attention", path, parts, fused, clip) for fused in ("stacked", "interleaved")]  # type: ignore[arg-type]
    roles = {}
    for role, pattern in _LETTERS.items():
        named = [name for name in reads if re.match(pattern, name.rsplit(".", 1)[-1])]
        if len(named) != 1:
            raise NotFound(f"one {role} projection that reads what attention reads (candidates: {', '.join(reads)})")
        roles[role] = named[0]
    return [Mixer("attention", path, roles | ending, clip=clip)]


def _mlp(hf: PreTrainedModel, inside: list[Call], feed: Call, path: str) -> Iterable[Mixer]:
    parts = [c for c in inside if c.within(feed.path)]
    if routers := [c for c in parts if c.outputs == 3]:
        return [Mixer("mixture", path, {"router": str(routers[0].within(feed.path))})]
    linears = [c for c in parts if is_linear(c.module)]
    down = first([c for c in linears if same(c.wrote, feed.wrote)], "the MLP's down projection")
    reads = [c for c in linears if same(c.read, feed.read)]
    ending, width = str(down.within(feed.path)), widths(down.module)[0]
    if len(reads) == 1:
        name, wide = str(reads[0].within(feed.path)), widths(reads[0].module)[1]
        if wide not in (width, 2 * width):
            raise NotFound(f"an MLP whose first layer is as wide as its second, or twice ({wide} and {width})")
        return [Mixer("mlp", path, {"pre": name, **({"pre_linear": name} if wide > width else {}), "down": ending})]
    if len(reads) != 2:
        raise NotFound(f"an MLP with one or two layers that read its input, not {len(reads)}")
    activated = [c for c in parts if not is_linear(c.module) and any(same(c.read, r.wrote) for r in reads)]
    gates = [r for r in reads if any(same(c.read, r.wrote) for c in activated)] or [
        r for r in reads if "gate" in r.path
    ]
    orders = [(gates[0], reads[1 - reads.index(gates[0])])] if gates else [tuple(reads), tuple(reads[::-1])]
    names = [[str(c.within(feed.path)) for c in order] for order in orders]
    return [Mixer("mlp", path, {"pre": gate, "pre_linear": up, "down": ending}) for gate, up in names]


# ---------------------------------------------------------------------- all blocks together
def merged(modules: list[nn.Module], blocks: list[list[Found]]) -> list[list[Found]]:
    """The branches that blocks have, in one order; of each the forms in which it was found.

    Raises:
        NotFound: blocks whose branches follow each other in different orders, or cannot be told apart.
    """
    names: list[str] = []
    blocks = [[_told_apart(one, blocks) for one in found] for found in blocks]
    for found in blocks:
        at = 0
        for one in found:
            if one.name not in names:
                names.insert(at, one.name)
            elif names.index(one.name) < at:
                raise NotFound("one order of branches in all blocks")
            at = names.index(one.name) + 1
    forms: dict[str, list[Found]] = {name: [] for name in names}
    for one in (one for found in blocks for one in found):
        if one not in forms[one.name]:
            forms[one.name].append(one)
    return [_in_order(modules, blocks, branch) for branch in forms.values()]


def _in_order(modules: list[nn.Module], blocks: list[list[Found]], branch: list[Found]) -> list[Found]:
    """The forms of a branch so that each block takes its own: it takes the first whose modules it has."""

    def taken(order: Iterable[Found], module: nn.Module) -> BranchRow | None:
        rows = (replace(one.row, mixers=one.mixers[-1:]) for one in order)
        return next((replace(row, mixers=()) for row in rows if row.mixer(module) is not None), None)

    own = [next((one.row for one in found if one.name == branch[0].name), None) for found in blocks]
    for order in permutations(branch) if len(branch) < 5 else [branch]:
        if all(taken(order, module) == row for module, row in zip(modules, own)):
            return list(order)
    raise NotFound(f"blocks whose {branch[0].name} can be told apart by their modules")


def _told_apart(found: Found, blocks: list[list[Found]]) -> Found:
    """With the name of the class, where blocks have modules of several classes at its path."""
    path = found.mixers[-1].path
    classes = {one.of for others in blocks for one in others if one.mixers[-1].path == path}
    if len(classes) == 1:
        return found
    return replace(found, mixers=tuple(replace(mixer, of=found.of) for mixer in found.mixers))


def choices(forms: list[list[Found]]) -> list[tuple[tuple[BranchRow, ...], tuple[int, ...]]]:
    """Rows of branches to try: the most telling mixers first. With each, how far every branch was weakened."""
    depth = [max(len(one.mixers) for one in branch) for branch in forms]
    levels = sorted(product(*(range(n) for n in depth)), key=lambda level: (sum(level), level[::-1]))
    return [(tuple(row for branch, at in zip(forms, level) for row in _rows(branch, at)), level) for level in levels]


def _rows(branch: list[Found], level: int) -> list[BranchRow]:
    """A branch's rows: one for each way in which blocks put norms around it, with the mixers found there."""
    rows: dict[BranchRow, list[Mixer]] = {}
    for one in branch:
        mixer = one.mixers[min(level, len(one.mixers) - 1)]
        rows.setdefault(one.row, [])
        if mixer not in rows[one.row]:
            rows[one.row].append(mixer)
    telling = {"mixture": 0, "other": 2}
    return [
        replace(row, mixers=tuple(sorted(mixers, key=lambda mixer: telling.get(mixer.kind, 1))))
        for row, mixers in rows.items()
    ]
