"""A block's branches, by what its modules read and write in one forward pass."""

import re
from math import isclose
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..sizes import widths
from .constants import constant, ratio
from .finding import NotFound, first, recorded_class
from .tracing import Call, is_linear, same


def block_of(hf: PreTrainedModel, calls: list[Call], block: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `families.attn` and `families.mlp` are called with."""
    inside = [c for c in calls if c.within(block.path)]
    children = [c for c in inside if "." not in (c.within(block.path) or ".")]
    attention = _attention_of(hf, inside, children, block)
    norms = [c for c in children if _is_norm(c.module)]
    others = [c for c in children if c not in norms and c is not attention and list(c.module.children())]
    others = [c for c in others if attention.within(c.path) is None]
    if len(others) != 1:
        names = ", ".join(str(c.within(block.path)) for c in others) or "none"
        raise NotFound(f"a block's one MLP module (candidates: {names})")
    feed = others[0]
    for_attn, for_mlp = _norm_roles(block, norms, attention, feed)
    for_attn |= _attention(inside, attention) | {"path": attention.within(block.path)}
    for_mlp |= _mlp(inside, feed) | {"path": feed.within(block.path)}
    added = sum(_output_of(norms, c) for c in (attention, feed))
    assert isinstance(added, Tensor)
    scale = ratio(block.wrote - block.read, added)
    if scale is not None and not isclose(scale, 1.0, rel_tol=1e-2):
        for_attn["scale"] = for_mlp["scale"] = constant(hf, scale, block.wrote)
    return for_attn, for_mlp


def _attention_of(hf: PreTrainedModel, inside: list[Call], children: list[Call], block: Call) -> Call:
    recorded = recorded_class(hf, "attentions")
    for c in inside:
        if recorded is not None and isinstance(c.module, recorded):
            return c
    named = [c for c in children if "att" in str(c.within(block.path)) and list(c.module.children())]
    return first(named, f"no attention module in {block.path} ({type(block.module).__name__})")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _output_of(norms: list[Call], branch: Call) -> Tensor:
    return next((n.wrote for n in norms if same(n.read, branch.wrote)), branch.wrote)


def _norm_roles(block: Call, norms: list[Call], attention: Call, feed: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """The norms of attention and MLP, by what the norms read and who reads them."""

    def around(branch: Call) -> dict[str, Any]:
        before = (norm.within(block.path) for norm in norms if same(norm.wrote, branch.read))
        after = (norm.within(block.path) for norm in norms if same(norm.read, branch.wrote))
        return {"before": next(before, None), "after": next(after, None)}

    read_by_mlp = next((norm.read for norm in norms if same(norm.wrote, feed.read)), feed.read)
    return around(attention), around(feed) | {"parallel": same(read_by_mlp, block.read)}


def _attention(inside: list[Call], attention: Call) -> dict[str, Any]:
    linears = [c for c in inside if c.within(attention.path) and is_linear(c.module)]
    out = first([c for c in linears if same(c.wrote, attention.wrote)], "attention's output projection")
    reads = {str(c.within(attention.path)): c for c in linears if same(c.read, attention.read) and c is not out}
    if len(reads) == 1:
        name = next(iter(reads))
        return {"qkv": name, "out": out.within(attention.path)}
    roles = {}
    for role, pattern in (("q", r"(w?q$|q_|query)"), ("k", r"(w?k$|k_|key)"), ("v", r"(w?v$|v_|value)")):
        named = [name for name in reads if re.match(pattern, name.rsplit(".", 1)[-1])]
        if len(named) != 1:
            raise NotFound(f"one {role} projection that reads what attention reads (candidates: {', '.join(reads)})")
        roles[role] = named[0]
    return {**roles, "out": out.within(attention.path)}


def mlps_of(calls: list[Call], blocks: list[Call], path: str) -> dict[str, Any]:
    """What the other blocks have there: often the first ones are dense, and the others mixtures."""
    found: dict[str, Any] = {}
    for block in blocks:
        inside = [c for c in calls if c.within(block.path)]
        feeds = [c for c in inside if c.within(block.path) == path]
        found = (_mlp(inside, feeds[0]) | found) if feeds else found
    return found


def _mlp(inside: list[Call], feed: Call) -> dict[str, Any]:
    parts = [c for c in inside if c.within(feed.path)]
    if routers := [c for c in parts if c.outputs == 3]:
        return {"router": routers[0].within(feed.path)}
    linears = [c for c in parts if is_linear(c.module)]
    down = first([c for c in linears if same(c.wrote, feed.wrote)], "the MLP's down projection")
    reads = [c for c in linears if same(c.read, feed.read)]
    parts_of = {"down": down.within(feed.path)}
    width = widths(down.module)[0]
    if len(reads) == 1:
        name, wide = reads[0].within(feed.path), widths(reads[0].module)[1]
        if wide not in (width, 2 * width):
            raise NotFound(f"an MLP whose first layer is as wide as its second, or twice ({wide} and {width})")
        return parts_of | {"pre": name, "pre_linear": name if wide == 2 * width else None}
    if len(reads) != 2:
        raise NotFound(f"an MLP with one or two layers that read its input, not {len(reads)}")
    activated = [c for c in parts if not is_linear(c.module) and any(same(c.read, r.wrote) for r in reads)]
    gates = [r for r in reads if any(same(c.read, r.wrote) for c in activated)]
    gate = first(gates or [r for r in reads if "gate" in r.path], "which of the MLP's two first layers is the gate")
    up = reads[1 - reads.index(gate)]
    return parts_of | {"pre": gate.within(feed.path), "pre_linear": up.within(feed.path)}
