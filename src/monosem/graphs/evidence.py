"""What can be said of a unit: the tokens that its write promotes and suppresses; with an index, where it fires."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import Mismatch
from .parts import Parts
from .units import Units

TOGETHER = 256  # units whose effects on the whole vocabulary are held at once


def evidence(graph: Any, n: int = 6, indexes: Sequence[Any] = ()) -> dict[str, dict[str, Any]]:
    """Node id -> the n tokens whose logits it raises most ("top") and lowers most ("bottom"), at the value that it has:
    its write through the final norm's gain and the unembedding, and through nothing between; with an index of its
    transcoder "examples" and "explained". Empty without a model.

    Args:
        indexes: `latents.Index`es. Raises `Mismatch` for one of no transcoder of the graph.
    """
    if graph.parts is None:
        return {}
    parts, found = graph.parts, dict[str, dict[str, Any]]()
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
    for index in indexes:
        _add_examples(parts, index, found)
    return found


def _add_examples(parts: Parts, index: Any, found: dict[str, dict[str, Any]], n: int = 4) -> None:
    """What an index knows of the latents that are nodes."""
    weights = index.meta["weights"]
    own = [one for one in parts.units if isinstance(owner := getattr(one, "owner", None), Dictionary)
           and owner.fingerprint == weights]  # fmt: skip
    if not own:
        raise Mismatch(f"{index.path} is an index of no transcoder of this graph; give latents.index_of(transcoder)")
    known = dict[int, dict[str, Any]]()
    for latent, position in zip(own[0].indices.tolist(), own[0].positions.tolist()):
        node = f"{own[0].layer}_{latent}_{position}"
        if node not in found:
            continue
        if latent not in known:
            about = index.evidence(latent)
            examples = [
                {"tokens": one.tokens, "values": one.activations, "most": about.maximum} for one in about.examples
            ]
            told = "" if about.explanation is None else str(about.explanation)
            known[latent] = {"examples": examples[:n], "explained": told}
        found[node] |= known[latent]


def _written(parts: Parts, units: Units, which: Tensor) -> Tensor:
    """What units of value 1 add to the stream, at all their outputs; a norm after the branch by its gain."""
    frozen = parts.frozen
    rows = torch.zeros(len(which), frozen.model.cfg.d_model, dtype=frozen.dtype, device=units.values.device)
    for number in units.writes:
        written = frozen.written[number]
        made = units.rows(number, units.indices[which])
        rows += made if not units.raw or written.size is None else written.norm.centred(made) * written.norm.gain
    return rows
