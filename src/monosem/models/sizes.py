"""Sizes of a model, read off its config and its modules."""

from typing import Any

from torch import nn

from .places.blocks import Block
from .places.heads import widths as widths
from .places.reach import context_of


def sizes_of(config: Any, blocks: nn.ModuleList, anatomy: list[Block], first_position: int) -> dict[str, int]:
    """The numbers of `native.Shape`; widths come from the modules, which a config may leave out."""
    first = next((slot.heads for block in anatomy for slot in block.slots if slot.heads is not None), None)
    attends = any(slot.name == "attn" for block in anatomy for slot in block.slots)
    heads = getattr(config, "num_attention_heads", 0) if attends else 0
    experts: Any = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 0)
    wide = (_width_of(blocks, anatomy, kind, "down") for kind in ("mlp", "channel_mixing"))
    down = next((width for width in wide if width is not None), None)
    return {
        "n_layers": len(blocks),
        "d_model": config.hidden_size,
        "n_heads": heads if first is None else first.n,
        "n_kv_heads": (heads and (getattr(config, "num_key_value_heads", None) or heads))
        if first is None
        else first.n_kv,
        "d_head": 0 if first is None else first.v,  # not always d_model / heads
        "d_mlp": (int(experts) if _has(anatomy, "mixture") else 0) if down is None else down,
        "n_ctx": context_of(config) - first_position,
    }


def _has(anatomy: list[Block], kind: str) -> bool:
    return any(slot.mixer.kind == kind for block in anatomy for slot in block.slots)


def _width_of(blocks: nn.ModuleList, anatomy: list[Block], kind: str, part: str) -> int | None:
    """Number of inputs of a part of the first mixer of this kind; None where no block has one."""
    for native, block in zip(blocks, anatomy):
        for slot in block.slots:
            if slot.mixer.kind == kind:
                return widths(native.get_submodule(slot.mixer.at(part)))[0]
    return None
