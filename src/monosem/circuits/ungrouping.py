"""The same model with keys and values for every query head, where heads share them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..models import Model

CLOSE = 1e-3  # of the largest logit: both models sum in another order


@torch.no_grad()
def ungrouped(model: Model) -> Model:
    """The same function, with keys and values of its own for each query head, so that its graph has their slots apart.

        apart = ms.circuits.ungrouped(model)
        scores = ms.circuits.attribute(apart, pairs)       # a3.h1<k>, a3.h2<k> instead of a3.kv0<k>
        scores.by_group(ms.circuits.Graph.of(model))       # their sums are the scores of `model`

    The weights of keys and values are copied for each head of a group; all other weights are shared with `model`.

    Raises:
        BadInput: heads that share nothing; keys and values that come from one module with queries in another order than
            Phi-3's (queries, keys, values); a copy that does not compute the same.
    """
    cfg = model.cfg
    if cfg.n_kv_heads == cfg.n_heads:
        raise BadInput(f"{model.name} has keys and values for each query head already")
    shared = {id(one): one for one in (*model.hf.parameters(), *model.hf.buffers())}
    hf: Any = copy.deepcopy(model.hf, shared)
    hf.config.get_text_config().num_key_value_heads = cfg.n_heads
    found = 0
    for module in hf.modules():
        if not hasattr(module, "num_key_value_groups"):
            continue
        if hasattr(module, "k_proj") and hasattr(module, "v_proj"):
            for name in ("k_proj", "v_proj", "k_norm"):
                _widen(getattr(module, name, None), cfg.n_kv_heads, cfg.d_head, cfg.n_heads)
        elif hasattr(module, "qkv_proj") and hasattr(module, "num_key_value_heads"):
            _widen(module.qkv_proj, cfg.n_kv_heads, cfg.d_head, cfg.n_heads, before=cfg.n_heads * cfg.d_head)
            module.num_key_value_heads = cfg.n_heads
        else:
            continue
        module.num_key_value_groups, found = 1, found + 1
    if found != len(model.layers()):
        raise BadInput(
            f"{model.name}: keys and values of {found} of {len(model.layers())} layers have modules of their own, or "
            "one with queries as Phi-3's; score the model as it is, whose slots are by group (a3.kv0<k>)"
        )
    apart = Model(hf, model.tokenizer, name=model.name)
    ids = torch.arange(8)[None] % cfg.d_vocab
    one, other = (each.run(each.tokens(ids), logits="last").logits for each in (model, apart))
    assert one is not None
    assert other is not None
    if not float((one - other).abs().max()) <= CLOSE * float(one.abs().max()):
        raise BadInput(f"{model.name}: with keys and values copied for each head it computes something else")
    return apart


def _widen(module: nn.Module | None, kv_heads: int, d_head: int, heads: int, before: int = 0) -> None:
    """Rows of a weight and a bias that stand for kv heads, once for each head of the group; a norm of single heads has
    none such. `before`: rows of queries, then come keys, then values."""
    parts = 2 if before else 1
    for name in ("weight", "bias"):
        value: Tensor | None = getattr(module, name, None)
        if isinstance(value, Tensor) and len(value) == before + parts * kv_heads * d_head:
            shared = value[before:].unflatten(0, (parts, kv_heads, d_head))
            wide = shared.repeat_interleave(heads // kv_heads, 1).flatten(0, 2)
            setattr(module, name, nn.Parameter(torch.cat([value[:before], wide]), requires_grad=value.requires_grad))
    if isinstance(module, nn.Linear):
        module.out_features = before + parts * heads * d_head
