"""Rotations that change with the length of a prompt: every row is turned as if it ran alone.

Two kinds of rotary modules of transformers (`modeling_rope_utils.py`) look at the longest row of a batch. "longrope"
(Phi-3) takes its long factors for all rows when one is longer than the original context. "dynamic" (NTK) takes another
base for every length beyond it, and goes on with the longest it has seen. Both are asked again here, for the rows of
each length by themselves and from the state that they were loaded with.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Rotation:
    """How a rotary module turns the layers of one type, where that depends on the length.

    Attributes:
        layer_type: None where all layers are turned alike.
        kind: "longrope" or "dynamic".
        limit: up to this length all rows are turned alike.
    """

    module: Any
    layer_type: str | None
    kind: str
    limit: int

    def turn(self, lengths: Int[Tensor, "batch"]) -> Int[Tensor, "batch"]:
        """Rows with equal numbers are turned by the same frequencies."""
        return (lengths > self.limit).long() if self.kind == "longrope" else lengths.clamp(min=self.limit)

    def reset(self) -> None:
        """Back to the state after loading; "longrope" has none."""
        if self.kind == "longrope":
            return
        prefix = "" if self.layer_type is None else f"{self.layer_type}_"
        setattr(self.module, f"{prefix}inv_freq", getattr(self.module, f"{prefix}original_inv_freq"))
        setattr(self.module, f"{prefix}max_seq_len_cached", self.limit)


def rotations_of(hf: nn.Module) -> list[Rotation]:
    """Every rotation of a model that depends on the length; most models have none."""
    found = []
    for module in hf.modules():
        kinds: Any = getattr(module, "rope_type", None)
        for layer_type, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if kind == "longrope":
                config: Any = module.config
                rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
                if rope["long_factor"] != rope["short_factor"]:
                    found.append(Rotation(module, layer_type, kind, rope["original_max_position_embeddings"]))
            elif isinstance(kind, str) and "dynamic" in kind:
                found.append(Rotation(module, layer_type, "dynamic", module.original_max_seq_len))  # type: ignore[arg-type]
    return found


def turned_anew(
    rotations: Iterable[Rotation], before: Int[Tensor, "batch"], after: Int[Tensor, "batch"]
) -> Bool[Tensor, "batch"]:
    """Which rows are turned otherwise at their new length, so that the keys kept of their earlier tokens are wrong."""
    changed = torch.zeros_like(before, dtype=torch.bool)
    for rotation in rotations:
        changed |= rotation.turn(before) != rotation.turn(after)
    return changed


@contextmanager
def row_by_row(rotations: Sequence[Rotation]) -> Iterator[None]:
    """Inside, each row of a pass is turned by its own length; afterwards the modules are as they were loaded."""
    with ExitStack() as stack:
        for rotation in rotations:
            stack.callback(rotation.reset)
            before = rotation.module.register_forward_pre_hook(partial(_forget, rotation), with_kwargs=True)
            after = rotation.module.register_forward_hook(partial(_turn, rotation), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


def _forget(rotation: Rotation, *_: object) -> None:
    rotation.reset()


def _turn(rotation: Rotation, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The module's output again, where the rows of the pass are not turned alike."""
    named = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    if named.get("layer_type") != rotation.layer_type:
        return None
    positions = named["position_ids"]
    turns = rotation.turn(positions.amax(-1) + 1)
    kinds = turns.unique()
    if len(kinds) == 1:
        return None
    whole = [part.clone() for part in (output if isinstance(output, tuple) else (output,))]
    for kind in kinds:
        rows = turns == kind
        rotation.reset()
        part = module.forward(**{**named, "position_ids": positions[rows]})
        for old, new in zip(whole, part if isinstance(part, tuple) else (part,)):
            old[rows] = new
    return tuple(whole) if isinstance(output, tuple) else whole[0]
