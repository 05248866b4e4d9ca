"""What holds memory in this process, and giving it back."""

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..errors import BadInput
from .model import Model
from .running.budget import shown
from .running.result import Run

SMALL = 10**6  # bytes; loose tensors below this are added up in one row


def memory() -> pd.DataFrame:
    """Everything of this process that holds tensors, largest first.

    Columns: `what` (model, module such as a dictionary, run, tensor, allocator), `name`, `device`, `dtype`, `tensors`
    (how many) and `GB` (10^9 bytes). Memory that several things share (tied or fused weights, views) is counted once,
    for the first of them: models, then other modules, runs, and tensors that belong to none of these. `allocator` is
    what a GPU's allocator keeps in reserve. Held by a name of yours or by a reference elsewhere: see `free`.
    """
    gc.collect()
    objects = gc.get_objects()
    models = [x for x in objects if _is(x, Model)]
    modules = _roots([x for x in objects if _is(x, nn.Module)], models)
    seen: set[tuple[str, int]] = set()
    rows = [row for model in models for row in _rows("model", model.name, _of_module(model.hf), seen)]
    for module in modules:
        rows += _rows("module", _name(module), _of_module(module), seen)
    for run in (x for x in objects if _is(x, Run)):
        rows += _rows("run", f"{len(run.tokens)} rows of {run.model.name}", _of_run(run), seen)
    rows += _loose([x for x in objects if _is(x, Tensor)], seen)
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            spare = torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i)
            rows.append({"what": "allocator", "name": "kept in reserve", "device": f"cuda:{i}", "GB": spare / 1e9})
    table = pd.DataFrame(rows, columns=["what", "name", "device", "dtype", "tensors", "GB"])
    return table.sort_values("GB", ascending=False, ignore_index=True)


def free(*things: Any) -> str:
    """Give back the memory of models, dictionaries, other modules or runs, also while names still refer to them.

    What was freed cannot be used again. Without arguments: collect garbage and empty the GPU allocator's reserve. Says
    how much was freed, as text.

    Raises:
        BadInput: something else.
    """
    before = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
    freed = 0
    for thing in things:
        if isinstance(thing, Run):
            freed += _size(_of_run(thing))
            thing.activations, thing.logits = {}, None
        elif isinstance(thing, Model | nn.Module):
            module = thing.hf if isinstance(thing, Model) else thing
            freed += _size(_of_module(module))
            for one in module.modules():  # accelerate keeps offloaded weights in its hooks
                one.__dict__.pop("_hf_hook", None)
            nn.Module.to(module, "meta")
        else:
            raise BadInput(f"free takes models, dictionaries, modules and runs; for a {type(thing).__name__} use del")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        freed = max(freed, before - torch.cuda.memory_reserved())
    return f"{shown(freed)} freed"


def _is(x: Any, kind: type) -> bool:
    return issubclass(type(x), kind)  # isinstance would ask lazy proxies for __class__, and load what they stand for


def _roots(modules: list[nn.Module], models: list[Model]) -> list[nn.Module]:
    """Modules that are part of no other module and of no model."""
    inner = {id(child) for module in modules for child in module.children()}
    inner |= {id(module) for model in models for module in model.hf.modules()}
    return [module for module in modules if id(module) not in inner]


def _name(module: nn.Module) -> str:
    kind, name = type(module).__name__, getattr(module, "name", None)
    return f"{kind} {name}" if isinstance(name, str) and name else kind


def _of_module(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from (p.grad for p in module.parameters() if p.grad is not None)
    yield from module.buffers()


def _of_run(run: Run) -> Iterator[Tensor]:
    yield from run.activations.values()
    if run.logits is not None:
        yield run.logits


def _new(tensors: Iterable[Tensor], seen: set[tuple[str, int]]) -> Iterator[tuple[Tensor, int]]:
    """Tensors whose memory was not seen yet, and its bytes; meta, sparse and wrapped tensors have none."""
    for tensor in tensors:
        if tensor.device.type == "meta" or tensor.layout != torch.strided:
            continue
        try:
            storage = tensor.untyped_storage()
            place, size = (str(tensor.device), storage.data_ptr()), storage.nbytes()
        except (RuntimeError, NotImplementedError):
            continue
        if size and place not in seen:
            seen.add(place)
            yield tensor, size


def _rows(what: str, name: str, tensors: Iterable[Tensor], seen: set[tuple[str, int]]) -> list[dict[str, Any]]:
    """One row for each device and dtype."""
    sums: dict[tuple[str, str], list[int]] = {}
    for tensor, size in _new(tensors, seen):
        entry = sums.setdefault((str(tensor.device), str(tensor.dtype).removeprefix("torch.")), [0, 0])
        entry[0] += 1
        entry[1] += size
    return [
        {"what": what, "name": name, "device": device, "dtype": dtype, "tensors": n, "GB": size / 1e9}
        for (device, dtype), (n, size) in sums.items()
    ]


def _loose(tensors: list[Tensor], seen: set[tuple[str, int]]) -> list[dict[str, Any]]:
    """A row for each large tensor, one for all small ones of a kind."""
    rows, small = [], []
    for tensor, size in _new(tensors, seen):
        if size >= SMALL:
            rows += _rows("tensor", str(list(tensor.shape)), [tensor], set())
        else:
            small.append(tensor)
    return rows + _rows("tensor", f"smaller than {shown(SMALL)}", small, set())


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(size for _, size in _new(tensors, set()))
