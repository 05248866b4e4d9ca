"""What can be said of a unit without a corpus: the tokens that it promotes and suppresses by what it writes."""

from typing import Any

import torch
from torch import Tensor

from .parts import Parts
from .units import Units

TOGETHER = 256  # units whose effects on the whole vocabulary are held at once


def evidence(graph: Any, n: int = 6) -> dict[str, dict[str, list[str]]]:
    """Node id -> the n tokens whose logits it raises most ("top") and lowers most ("bottom"), at the value that it has:
    its write through the final norm's gain and the unembedding, and through nothing between. Empty without a model."""
    if graph.parts is None:
        return {}
    parts, found = graph.parts, dict[str, dict[str, list[str]]]()
    model, wanted = parts.frozen.model, set(graph.nodes["id"])
    norm = model.unembedding_norm(parts.frozen.dtype)
    W_U: Any = model.W_U.to(parts.frozen.dtype)
    for one in parts.units:
        ids = [f"{one.layer}_{i}_{p}" for i, p in zip(one.indices.tolist(), one.positions.tolist())]
        kept = torch.tensor([i for i, name in enumerate(ids) if name in wanted], dtype=torch.long)
        for some in kept.split(TOGETHER):
            effects = norm.pull(_written(parts, one, some)) @ W_U
            effects = effects * one.values[some].sign()[:, None]
            best, worst = effects.topk(n).indices.tolist(), (-effects).topk(n).indices.tolist()
            for at, top, bottom in zip(some.tolist(), best, worst):
                words = {"top": top, "bottom": bottom}
                found[ids[at]] = {side: [model.str_token(one) for one in words[side]] for side in words}
    return found


def _written(parts: Parts, units: Units, which: Tensor) -> Tensor:
    """What units of value 1 add to the stream, at all their outputs; a norm after the branch by its gain."""
    frozen = parts.frozen
    rows = torch.zeros(len(which), frozen.model.cfg.d_model, dtype=frozen.dtype, device=units.values.device)
    for number in units.writes:
        written = frozen.written[number]
        made = units.rows(number, units.indices[which])
        rows += made if not units.raw or written.size is None else written.norm.centred(made) * written.norm.gain
    return rows
