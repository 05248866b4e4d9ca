"""Blocks in the order in which a pass calls them; some are called for several layers (ALBERT; a block that a list holds
twice)."""

from collections import Counter
from typing import Any

from torch import nn

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
