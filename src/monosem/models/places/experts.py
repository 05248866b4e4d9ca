"""What single experts of a mixture compute, by the mixture's own batched parameters.

transformers keeps the experts of a layer in one module with parameters `expert ...`, called with the tokens, the
numbers of the chosen experts, and their weights (`integrations/moe.py` says how such a module describes itself).
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class _Slices:
    """DBRX's experts, slices of three long matrices, under the names that others have. Nothing is copied until an
    expert is asked for."""

    is_transposed = has_gate = True

    def __init__(self, module: Any):
        long = module.mlp
        self.first, self.second, self.down_proj = (
            weight.view(module.num_experts, -1, module.hidden_size) for weight in (long.w1, long.v1, long.w2)
        )
        self.act_fn, self.gate_up_proj = long.activation_fn, self

    def __getitem__(self, expert: int) -> Tensor:
        return torch.cat([self.first[expert], self.second[expert]]).T


def batched(module: Any) -> Any:
    """A module of experts with its parameters by expert: `down_proj[expert]`."""
    return module if hasattr(module, "down_proj") else _Slices(module)


def outputs(
    module: Any, x: Float[Tensor, "token d_model"], indices: Int[Tensor, "token chosen"]
) -> Float[Tensor, "token chosen d_model"]:
    """What each chosen expert makes of a token, before its weight: the native module with one expert for each token."""
    rows, ids = x.repeat_interleave(indices.shape[1], 0), indices.reshape(-1, 1)
    one, nothing = torch.ones_like(ids, dtype=x.dtype), torch.zeros_like(ids, dtype=x.dtype)
    # twice, the second time with weight 0: LongCat's own loop fails where one expert is chosen
    out = module.forward(rows, torch.cat([ids, ids], 1), torch.cat([one, nothing], 1)).reshape(rows.shape)
    return out.unflatten(0, indices.shape)  # type: ignore[no-any-return]


def neurons(
    module: Any, x: Float[Tensor, "token d_model"], indices: Int[Tensor, "token chosen"]
) -> Float[Tensor, "token chosen neuron"]:
    """The activations of each chosen expert, what its down projection reads; zeros for experts without neurons."""
    module, found = batched(module), None
    for expert, rows, places in _hit(indices):
        if expert < len(module.down_proj):
            gated = getattr(module, "has_gate", True)
            wide = _linear(module, "gate_up_proj" if gated else "up_proj", x[rows], expert)
            value = _gated(module, wide) if gated else module.act_fn(wide)
            found = value.new_zeros(*indices.shape, value.shape[-1]) if found is None else found
            found = found.index_put((rows, places), value)
    width = module.down_proj.shape[-2 if getattr(module, "is_transposed", False) else -1]
    return x.new_zeros(*indices.shape, width) if found is None else found


def written(
    module: Any, change: Float[Tensor, "token chosen neuron"], indices: Int[Tensor, "token chosen"]
) -> Float[Tensor, "token chosen d_model"]:
    """By how much the experts' outputs change with their neurons: through the down projections, without biases."""
    module = batched(module)
    out = change.new_zeros(*indices.shape, module.down_proj.shape[-1 if _transposed(module) else -2])
    for expert, rows, places in _hit(indices):
        if expert < len(module.down_proj):
            value = _linear(module, "down_proj", change[rows, places], expert, bias=False)
            out = out.index_put((rows, places), value)
    return out


def _hit(indices: Int[Tensor, "token chosen"]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each expert that is chosen, with its tokens and its places among their choices."""
    for expert in indices.unique().tolist():
        rows, places = torch.where(indices == expert)
        yield expert, rows, places


def _transposed(module: Any) -> bool:
    return bool(getattr(module, "is_transposed", False))


def _linear(module: Any, name: str, x: Tensor, expert: int, bias: bool = True) -> Tensor:
    weight = getattr(module, name)[expert]
    out = x @ weight if _transposed(module) else F.linear(x, weight)
    return out + getattr(module, f"{name}_bias")[expert] if bias and getattr(module, "has_bias", False) else out


def _gated(module: Any, wide: Tensor) -> Tensor:
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(wide)  # type: ignore[no-any-return]
    gate, up = wide.chunk(2, dim=-1)
    return module.act_fn(gate) * up  # type: ignore[no-any-return]
