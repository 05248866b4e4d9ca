"""Identities of mixers with a memory: what they compute, from their own sites, one token after another in float64."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..places.branches import Branch
from ..places.sites import Site
from ..running.result import Run
from .checks import Checks


def memories(c: Checks) -> None:
    """Every identity of every branch that has a memory; of layers of one sort the worst is shown."""
    model = c.model
    branches = [branch for branch in model.branches() if branch.kind in _IDENTITIES and branch.inner is not None]
    sites = {branch: _sites(branch) for branch in branches}
    if not branches:
        return
    wanted = [site for branch in branches for site in (*sites[branch].values(), branch.raw)]
    run = model.run(c.tokens, capture=wanted, logits=False)
    found: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    with torch.no_grad(), model.turn():
        for branch in branches:
            values = {name: run[site].double() for name, site in sites[branch].items()}
            for site, identity, value, expected in _of(branch, values, run):
                found[f"{branch.name}_{site}", identity].append((value, expected))
    for (site, identity), pairs in found.items():
        worst = max(pairs, key=lambda pair: float((pair[0] - pair[1]).abs().max() / pair[1].abs().max()))
        c.add(site, identity, *worst)


Identity = tuple[str, str, Tensor, Tensor]  # site, what holds, computed, seen
Values = Mapping[str, Tensor]


def _sites(branch: Branch) -> dict[str, Site]:
    """The sites inside a branch that this architecture has, by the names that the kind gives them."""
    names = [name for name, _ in branch.slot.mixer.inner("")]
    return {name.strip("_"): branch.site(name.strip("_")) for name in names if not name.endswith("result")}


def _of(branch: Branch, values: Values, run: Run) -> Iterator[Identity]:
    z, weight = values["z"], branch.weight().double()
    raw = z.flatten(2) @ weight.flatten(0, -2) + branch.bias().double()
    yield "z", "z W_O + b_O = the output projection", raw, run[branch.raw].double()
    if "preconv" in values:
        yield "conv", "convolution of what it is given", _convolved(branch.module, values["preconv"]), values["conv"]
    yield from _IDENTITIES[branch.kind](branch, values)


def _convolved(module: Any, x: Float[Tensor, "batch pos channel"]) -> Tensor:
    """Of the last tokens, each channel by itself: out[t] = act(Σ_i w[i] x[t - (K - 1) + i] + b)."""
    kernel = next(part for part in module.modules() if isinstance(part, nn.Conv1d))
    weight = kernel.weight[:, 0].double()
    width = weight.shape[1]
    padded = torch.cat([x.new_zeros(len(x), width - 1, x.shape[2]), x], dim=1)
    out = sum((padded[:, i : i + x.shape[1]] * weight[:, i] for i in range(width)), torch.zeros_like(x))
    out = out if kernel.bias is None else out + kernel.bias.double()
    name = getattr(module, "activation", None)
    return out if name is None else ACT2FN[name](out)


def _linear(branch: Branch, values: Values) -> Iterator[Identity]:
    yield "mixed", "the gated delta rule, token by token", _delta_rule(values), values["mixed"]
    gated = _gated(branch, values["mixed"], values["gate"])
    yield "gate", "norm(mixed, gate) = z", gated, values["z"]


def _delta_rule(values: Values) -> Tensor:
    """S = exp(decay) S; S = S + k ⊗ beta (v - k S); out = q S / sqrt(d), with q and k of length 1."""
    v, beta, decay = (values[name] for name in ("v", "beta", "decay"))
    heads = v.shape[2]
    q, k = (
        (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()).repeat_interleave(heads // x.shape[2], 2)
        for x in (values["q"], values["k"])
    )
    state = v.new_zeros(len(v), heads, k.shape[3], v.shape[3])
    out = []
    for t in range(v.shape[1]):
        state = decay[:, t].exp()[..., None] * state
        change = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state))
        state = state + k[:, t, ..., None] * change[..., None, :]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state) * k.shape[3] ** -0.5)
    return torch.stack(out, 1)


def _state_space(branch: Branch, values: Values) -> Iterator[Identity]:
    scanned = _scanned(branch.module, values)
    if "mixed" in values:
        yield "mixed", "the state space, token by token", scanned, values["mixed"]
        gated = _gated(branch, values["mixed"].flatten(2), values["gate"].flatten(2))
        yield "gate", "norm(mixed, gate) = z", gated.view_as(values["z"]), values["z"]
    else:
        z = scanned * nn.functional.silu(values["gate"])
        yield "z", "the state space, token by token, times its gate", z, values["z"]


def _scanned(module: Any, values: Values) -> Tensor:
    """h = exp(dt A) h + dt B x; out = C h + D x, with dt = softplus(dt + bias) between its limits."""
    x, dt = values["x"], values["dt"]
    heads = x.shape[2]
    bias = module.dt_bias if hasattr(module, "dt_bias") else module.dt_proj.bias
    low, high = getattr(module, "time_step_limit", (0.0, float("inf")))
    dt = nn.functional.softplus(dt + bias.double()).clamp(low, high)
    B, C = (values[name].repeat_interleave(heads // values[name].shape[2], 2) for name in ("B", "C"))
    A = -module.A_log.double().exp().view(heads, -1)  # one for the whole head, or for each number of its state
    state = x.new_zeros(len(x), heads, x.shape[3], B.shape[3])
    out = []
    for t in range(x.shape[1]):
        put = (dt[:, t, :, None] * B[:, t])[:, :, None] * x[:, t, ..., None]
        state = (dt[:, t, :, None] * A).exp()[:, :, None] * state + put
        out.append(torch.einsum("bhdn,bhn->bhd", state, C[:, t]))
    return torch.stack(out, 1) + module.D.double()[:, None] * x


def _gated(branch: Branch, mixed: Tensor, gate: Tensor) -> Tensor:
    """By the native norm, in the model's dtype; without one, the gate alone."""
    dtype, norm = branch.model.dtype, branch.module.get_submodule(branch.slot.mixer.parts["norm"])
    if isinstance(norm, nn.Identity):
        return mixed * nn.functional.silu(gate)
    rows = norm.forward(mixed.flatten(0, -2).to(dtype), gate.flatten(0, -2).to(dtype))
    return rows.double().view_as(mixed)


def _convolution(branch: Branch, values: Values) -> Iterator[Identity]:
    yield "pregate", "pregate · x = what is convolved", values["pregate"] * values["x"], values["preconv"]
    yield "gate", "conv · gate = z", values["conv"] * values["gate"], values["z"]


def _recurrent(branch: Branch, values: Values) -> Iterator[Identity]:
    if "state" not in values:
        return
    module: Any = branch.module
    yield "conv", "convolution of x", _convolved(module, values["x"]), values["conv"]
    yield "state", "the recurrent unit, token by token", _unit(module.rg_lru, values["conv"]), values["state"]
    yield "gate", "state · act(gate) = z", values["state"] * module.act_fn(values["gate"]), values["z"]


def _unit(unit: Any, x: Float[Tensor, "batch pos channel"]) -> Tensor:
    """h = a h + sqrt(1 - a²) i x with a = exp(-8 r softplus(λ)); at first h = i x. r and i are gates of blocks of x."""
    blocks = x.unflatten(-1, (unit.num_attention_heads, -1))
    enters, stays = (
        (torch.einsum("bthi,hio->btho", blocks, weight.double()) + offset.double()).sigmoid().flatten(2)
        for weight, offset in (
            (unit.input_gate_weight, unit.input_gate_bias),
            (unit.recurrent_gate_weight, unit.recurrent_gate_bias),
        )
    )
    a = (-8.0 * stays * nn.functional.softplus(unit.recurrent_param.double())).exp()
    state, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        size = (1 - a[:, t] ** 2).sqrt() if t else 1.0
        state = (a[:, t] * state if t else 0.0) + size * enters[:, t] * x[:, t]
        out.append(state)
    return torch.stack(out, 1)


_IDENTITIES: dict[str, Callable[[Branch, Values], Iterator[Identity]]] = {
    "linear_attention": _linear,
    "state_space": _state_space,
    "convolution": _convolution,
    "recurrent": _recurrent,
}
