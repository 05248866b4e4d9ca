"""Before the first block and after the last one: embedding, positions, final norm, what follows the unembedding."""

import itertools
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from ..language import text_config
from ..native import device_of
from ..places.families import LOGIT_STEPS
from ..turns import turn
from .constants import attribute, constant, distance, limit, ratio
from .finding import NotFound, first, path_of
from .tracing import Call, is_linear, same

LOUD = 300.0  # logits at which a step after the unembedding is looked at: ten times a usual soft cap


def ends_of(hf: PreTrainedModel, calls: list[Call], blocks: list[Call]) -> dict[str, Any]:
    embed = first((c for c in calls if c.module is hf.get_input_embeddings()), "the token embedding was not called")
    head = first((c for c in calls if c.module is hf.get_output_embeddings()), "the unembedding was not called")
    entering, last = blocks[0].read, blocks[-1].wrote
    if last.ndim > embed.wrote.ndim:
        shape = " x ".join(map(str, last.shape))
        raise NotFound(f"one stream: the blocks write several side by side ({shape} for one text of six tokens)")
    if last.shape[-1] != (width := text_config(hf).hidden_size):
        raise NotFound(f"one stream: the blocks write {last.shape[-1]} numbers for a token, not hidden_size {width}")
    logits = first((c for c in calls if c.module is hf), "the model returns no logits").wrote
    inside = tuple(f"{block.path}." for block in blocks)
    own = (c for c in calls if c.path.startswith(inside) and "norm" in type(c.module).__name__.lower())
    if any(same(c.wrote, last) for c in own):
        raise NotFound("blocks whose norms stand before or behind a branch: these norm the stream itself (post-LN)")
    outside = [c for c in calls if not c.path.startswith(inside) and c not in blocks and c.wrote.is_floating_point()]
    return {
        "embed": path_of(hf, embed),
        **_entering(hf, outside, embed, entering),
        **_leaving(hf, outside, last, head.read),
        "logit_steps": _logit_step(hf, head.wrote, logits),
    }


def _entering(hf: PreTrainedModel, calls: list[Call], embed: Call, entering: Tensor) -> dict[str, Any]:
    """What is between the token embedding and the first block: a projection, tables that are added, norms."""
    tables = [c for c in calls if c is not embed and "embed" in type(c.module).__name__.lower()]
    projections = [c for c in calls if c is not embed and same(c.read, embed.wrote) and list(c.module.parameters())]
    for projection, n in itertools.product((None, *projections), range(3)):
        token = (projection or embed).wrote
        for added in itertools.combinations(tables, n):
            if any(c.wrote.shape[-1] != token.shape[-1] for c in added):
                continue
            total = sum((c.wrote for c in added), token)
            if (steps := _chain(calls, total, entering, ())) is None:
                continue
            found = {} if projection is None else {"embed_projection": path_of(hf, projection)}
            for c in added:  # a table of types gives every token of one text the same
                found["types" if _close(c.wrote, c.wrote[..., :1, :]) else "positions"] = path_of(hf, c)
            return found | ({"entry": tuple(_where(hf, step) for step in steps)} if steps else {})
    scale = ratio(entering, embed.wrote)
    named = None if scale is None else constant(hf, scale, entering)
    if named is None and scale is not None and isclose(scale, entering.shape[-1] ** 0.5, rel_tol=limit(entering)):
        named = "sqrt(d_model)"
    if named is None:
        raise NotFound("what enters the first block is not the token embedding, with or without positions or a scale")
    return {"embed_scale": named}


def _leaving(hf: PreTrainedModel, calls: list[Call], last: Tensor, read: Tensor) -> dict[str, Any]:
    """What is between the last block and the unembedding: a norm, a head, a projection."""
    steps = _chain(calls, last, read, _functions(hf))
    if steps is None:
        raise NotFound("what the model does between the last block and the unembedding, by its modules")
    found: dict[str, Any] = {"final_norm": None}
    if steps and isinstance(steps[0], Call) and "norm" in type(steps[0].module).__name__.lower():
        found["final_norm"] = _where(hf, steps.pop(0))
    if len(steps) == 1 and isinstance(steps[0], Call) and is_linear(steps[0].module):
        return found | {"unembed_projection": _where(hf, steps[0])}
    return found | ({"head": tuple(_where(hf, step) for step in steps)} if steps else {})


def _chain(
    calls: list[Call], start: Tensor, end: Tensor, functions: tuple[str, ...], depth: int = 3
) -> list["Call | str"] | None:
    """The fewest modules (and activation functions) that lead from one tensor to another; None for no such way."""
    if _close(start, end):
        return []
    if depth == 0:
        return None
    ways: list[list[Call | str]] = []
    for c in calls:
        if same(c.read, start) and not same(c.wrote, start):
            rest = _chain(calls, c.wrote, end, functions, depth - 1)
            ways += [] if rest is None else [[c, *rest]]
    if not ways and depth < 3:  # an activation follows a module
        for name in functions:
            rest = _chain(calls, ACT2FN[name](start), end, (), depth - 1)
            ways += [] if rest is None else [[name, *rest]]
    return min(ways, key=len, default=None)


def _functions(hf: PreTrainedModel) -> tuple[str, ...]:
    named = getattr(text_config(hf), "hidden_act", None)
    return ("gelu", named) if isinstance(named, str) and named in ACT2FN and named != "gelu" else ("gelu",)


def _close(one: Tensor, other: Tensor) -> bool:
    try:
        shape = torch.broadcast_shapes(one.shape, other.shape)
    except RuntimeError:
        return False
    return distance(one.expand(shape), other.expand(shape)) <= limit(other) / 10


def _where(hf: PreTrainedModel, step: "Call | str") -> str:
    """A module's path in the language model, or in the whole where it lies beside; the name of a function."""
    if isinstance(step, str):
        return step
    try:
        return path_of(hf, step)
    except NotFound:
        return step.path


def _logit_step(hf: PreTrainedModel, raw: Tensor, logits: Tensor) -> tuple[tuple[str, str], ...]:
    """Seen at logits so loud that a step which bends them does: near zero every soft cap is the identity."""
    if same(raw, logits) and same(*_loud(hf)):
        return ()
    loud, stepped = _loud(hf)
    for step, function in LOGIT_STEPS.items() if raw.shape == logits.shape else ():
        if name := attribute(hf, lambda value, f=function: distance(f(loud, value), stepped), limit(raw)):  # type: ignore[misc]
            return ((step, name),)
    raise NotFound("what the model does to the logits after the unembedding")


def _loud(hf: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The unembedding's output, made as large as `LOUD`, and the model's logits then."""
    seen: list[Tensor] = []

    def louder(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(output * (LOUD / output.abs().max().clamp(min=1e-30)))
        return seen[-1]

    head = hf.get_output_embeddings()
    assert isinstance(head, nn.Module)
    with turn(hf), torch.no_grad():
        hook = head.register_forward_hook(louder)
        try:
            logits = hf(input_ids=torch.arange(6, device=device_of(hf))[None], use_cache=False).logits
        finally:
            hook.remove()
    return seen[-1], logits
