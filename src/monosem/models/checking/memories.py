"""Identities of mixers with a memory: what they compute, from their own sites, one token after another in float64."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..places.branches import Branch
from ..places.sites import Site
from ..running.result import Run
from ..running.states import Steps, Values, delta_rule, lightning, recurrent_unit, state_space, time_mixing
from .checks import Checks


def memories(c: Checks) -> None:
    """Every identity of every branch that has a memory; of layers of one sort the worst is shown."""
    model = c.model
    branches = [branch for branch in model.branches() if branch.kind in (*_IDENTITIES, "channel_mixing")]
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


def _sites(branch: Branch) -> dict[str, Site]:
    """The sites inside a branch that this architecture has, by the names that the kind gives them."""
    names = [name for name, _ in branch.slot.mixer.inner("")]
    return {name.strip("_"): branch.site(name.strip("_")) for name in names if not name.endswith("result")}


def _of(branch: Branch, values: Values, run: Run) -> Iterator[Identity]:
    seen = run[branch.raw].double()
    if branch.inner is None:
        yield from _channels(branch, values, seen)
        return
    z, weight = values["z"], branch.weight().double()
    raw = z.flatten(2) @ weight.flatten(0, -2) + branch.bias().double()
    yield "z", "z W_O + b_O = the output projection", raw, seen
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
    yield "mixed", "the gated delta rule, token by token", _outputs(delta_rule(branch.module, values)), values["mixed"]
    gated = _gated(branch, values["mixed"], values["gate"])
    yield "gate", "norm(mixed, gate) = z", gated, values["z"]


def _state_space(branch: Branch, values: Values) -> Iterator[Identity]:
    if "x" not in values:
        return
    scanned = _outputs(state_space(branch.module, values))
    if "mixed" in values:
        yield "mixed", "the state space, token by token", scanned, values["mixed"]
        gated = _gated(branch, values["mixed"].flatten(2), values["gate"].flatten(2))
        yield "gate", "norm(mixed, gate) = z", gated.view_as(values["z"]), values["z"]
    else:
        z = scanned * nn.functional.silu(values["gate"])
        yield "z", "the state space, token by token, times its gate", z, values["z"]


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
    yield "state", "the recurrent unit, token by token", _outputs(recurrent_unit(module, values)), values["state"]
    yield "gate", "state · act(gate) = z", values["state"] * module.act_fn(values["gate"]), values["z"]


def _lightning(branch: Branch, values: Values) -> Iterator[Identity]:
    module, dtype = branch.module, branch.model.dtype
    yield "mixed", "lightning attention, token by token", _outputs(lightning(module, values)), values["mixed"]
    normed = branch.part("norm").forward(values["mixed"].flatten(2).to(dtype)).double().view_as(values["z"])
    yield "gate", "norm(mixed) · σ(gate) = z", normed * values["gate"].sigmoid(), values["z"]


def _time_mixing(branch: Branch, values: Values) -> Iterator[Identity]:
    yield (
        "mixed",
        "means of values that fade, token by token",
        _outputs(time_mixing(branch.module, values)),
        values["mixed"],
    )
    yield "gate", "mixed · σ(gate) = z", values["mixed"] * values["gate"].sigmoid(), values["z"]


def _channels(branch: Branch, values: Values, seen: Tensor) -> Iterator[Identity]:
    yield "post", "relu(pre)² = post", values["pre"].relu() ** 2, values["post"]
    down: Any = branch.part("down")
    raw = nn.functional.linear(values["post"], down.weight.double())
    yield "out_gate", "post W_out · σ(gate) = its output", raw * values["out_gate"].sigmoid(), seen


def _outputs(steps: Steps) -> Tensor:
    return torch.stack([output for output, _ in steps], 1)


_IDENTITIES: dict[str, Callable[[Branch, Values], Iterator[Identity]]] = {
    "linear_attention": _linear,
    "state_space": _state_space,
    "convolution": _convolution,
    "recurrent": _recurrent,
    "lightning_attention": _lightning,
    "time_mixing": _time_mixing,
}
