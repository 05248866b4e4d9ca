"""Before the first block and after the last one: embedding, positions, final norm, what follows the unembedding."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..native import device_of
from ..places.families import LOGIT_STEPS
from ..turns import turn
from .constants import attribute, constant, distance, limit, ratio
from .finding import NotFound, first, path_of
from .tracing import Call, same

LOUD = 300.0  # logits at which a step after the unembedding is looked at: ten times a usual soft cap


def ends_of(hf: PreTrainedModel, calls: list[Call], blocks: list[Call]) -> dict[str, Any]:
    embed = first((c for c in calls if c.module is hf.get_input_embeddings()), "the token embedding was not called")
    head = first((c for c in calls if c.module is hf.get_output_embeddings()), "the unembedding was not called")
    entering, last = blocks[0].read, blocks[-1].wrote
    if last.ndim > embed.wrote.ndim:
        shape = " x ".join(map(str, last.shape))
        raise NotFound(f"one stream: the blocks write several side by side ({shape} for one text of six tokens)")
    norms = (c for c in calls if same(c.read, last) and same(c.wrote, head.read) and not list(c.module.children()))
    norm = first(norms, "no norm between the last block and the unembedding")
    logits = first((c for c in calls if c.module is hf), "the model returns no logits").wrote
    ends = {
        "embed": path_of(hf, embed),
        "final_norm": path_of(hf, norm),
        "logit_steps": _logit_step(hf, head.wrote, logits),
    }
    if same(embed.wrote, entering):
        return ends
    for c in calls:
        other = isinstance(c.module, nn.Embedding) and c is not embed
        if other and same((embed.wrote + c.wrote).expand_as(entering), entering):
            return ends | {"positions": path_of(hf, c)}
    scale = ratio(entering, embed.wrote)
    attribute = None if scale is None else constant(hf, scale, entering)
    if attribute is None:
        raise NotFound("what enters the first block is not the token embedding, with or without positions or a scale")
    return ends | {"embed_scale": attribute}


def _logit_step(hf: PreTrainedModel, raw: Tensor, logits: Tensor) -> tuple[tuple[str, str], ...]:
    """Seen at logits so loud that a step which bends them does: near zero every soft cap is the identity."""
    if same(raw, logits) and same(*_loud(hf)):
        return ()
    loud, stepped = _loud(hf)
    for step, function in LOGIT_STEPS.items():
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
