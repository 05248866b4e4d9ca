"""Blocks in the order in which a pass calls them; some are called for several layers (ALBERT; a block that a list holds
twice)."""

from collections import Counter
from typing import Any

from torch import nn

from ...errors import BadInput
from .families import Family


def called(family: Family, config: Any, listed: Any) -> tuple[nn.ModuleList, list[int], bool]:
    """The block of each layer, from the module at the row's `layers`; which of the block's calls the layer is; and
    whether a block is called for several layers."""
    blocks = [*listed] if family.order is None else family.order(listed, config)
    calls, nth = Counter[nn.Module](), list[int]()
    for block in blocks:
        nth.append(calls[block])
        calls[block] += 1
    return nn.ModuleList(blocks) if family.order else listed, nth, any(nth)


def check_listed(config: Any, blocks: int, name: str) -> None:
    """Raises `BadInput` where a config lists other kinds of layers than its blocks can be (some were cut off)."""
    kinds, said = getattr(config, "layer_types", None), getattr(config, "num_hidden_layers", blocks)
    listed = len(kinds) if isinstance(kinds, list | tuple) else blocks
    if listed < blocks or blocks not in (listed, said):
        raise BadInput(
            f"{name} has {blocks} blocks, and its config lists {listed} kinds of layers: set config.layer_types (one "
            "for each block, in their order), config.num_hidden_layers, and the layer_idx of the blocks' modules"
        )
