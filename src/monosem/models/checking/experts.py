"""Identities of mixtures of experts: what the router chooses, and what the chosen experts add up to."""

from typing import Any

import torch
from torch import Tensor

from ..places import experts
from ..places.branches import Branch
from ..places.sites import EXPERTS, ROUTER
from ..running.run import Run
from .checks import TOLERANCE, Checks, Patch


def mixtures(c: Checks) -> None:
    """Weighted, the outputs of the chosen experts and of a shared one are the mixture's output; a chosen expert has one
    of the largest logits.

    Where a bias that balances the load, or groups, decide too which experts are chosen, their weights still follow
    from their logits.
    """
    if scaled := [branch for branch in c.model.branches() if branch.kind == "scaled_mixture"]:
        _scaled(c, scaled)
    routed = [branch for branch in c.model.branches() if branch.kind in ("mixture", "joined_mixture")]
    if not routed:
        return
    names = (*ROUTER, *EXPERTS, "shared_out", "_input", "_raw")
    sites = [site for branch in routed for name in names if c.model.has(site := branch.site(name))]
    run = c.model.run(c.tokens, capture=sites, logits=False)
    _chosen(c, run, routed)
    if all(c.model.has(branch.site("expert_out")) for branch in routed):
        _sums(c, run, routed)
    else:
        _linear(c, routed[-1])


def _chosen(c: Checks, run: Run, routed: list[Branch]) -> None:
    logits, weights, indices = (torch.stack([run[branch.site(name)] for branch in routed]) for name in ROUTER)
    best = logits.topk(indices.shape[-1]).values
    chosen = logits.gather(-1, indices)
    joined = any(branch.kind == "joined_mixture" for branch in routed)
    if torch.equal(chosen.sort(-1, descending=True).values, best):
        c.add("expert_indices", "chosen = the largest logits", chosen.sort(-1, descending=True).values, best)
    if joined:
        routers: list[Any] = [branch.part("router") for branch in routed]
        scales = [router.per_expert_scale[i] for router, i in zip(routers, indices)]
        share = _shares(logits.float().softmax(-1).gather(-1, indices))
        c.add("expert_weights", "the largest logits' softmax, times scales", weights, share * torch.stack(scales))
    elif not torch.equal(chosen.sort(-1, descending=True).values, best):
        loud = logits.float()
        chances = (loud.softmax(-1), loud.sigmoid(), torch.nn.functional.softplus(loud).sqrt())
        shares = [_shares(each.gather(-1, indices)) for each in chances]
        expected = min(shares, key=lambda share: float((share - _shares(weights)).abs().max()))
        identity = "in the proportions of what the router makes of their logits"
        c.add("expert_weights", identity, _shares(weights), expected)


def _shares(x: Tensor) -> Tensor:
    return x.float() / x.float().sum(-1, keepdim=True)


def _linear(c: Checks, last: Branch) -> None:
    def output(factor: float) -> Tensor:
        edit = Patch(last.site("expert_weights"), lambda weights: weights * factor)
        return c.model.run(c.tokens, capture=last.raw, edits=[edit], logits=False)[last.raw]

    c.add("expert_weights", "MLP linear in them", output(2.0) - output(1.0), output(1.0) - output(0.0))


@torch.no_grad()
def _sums(c: Checks, run: Run, routed: list[Branch]) -> None:
    weighted, down, whole = [], [], []
    for branch in routed:
        out = run[branch.site("expert_out")]
        total = (out * run[branch.site("expert_weights")][..., None].to(out.dtype)).sum(-2)
        weighted.append((total, run[branch.site("experts_out")]))
        down.append((_from_neurons(run, branch), out))
        whole.append((_whole(run, branch), run[branch.raw]))
    c.add_all("experts_out", "sum of expert_weights · expert_out", weighted)
    c.add_all("expert_out", "expert_post, through its down projection", down)
    close = all(_error(*pair) <= TOLERANCE.get(c.model.dtype, 1e-4) for pair in whole)
    if close or any("shared" in branch.slot.mixer.parts for branch in routed):
        shared = any("shared" in branch.slot.mixer.parts for branch in routed)
        c.add_all("mlp_raw", "experts_out + shared_out" if shared else "experts_out", whole)
    else:  # something more is done to the experts' sum
        _linear(c, routed[-1])


@torch.no_grad()
def _scaled(c: Checks, branches: list[Branch]) -> None:
    """Experts of which each is given every token times its weight (Llama 4)."""
    names = ("router_logits", "expert_weights", "expert_out", "shared_out", "_input", "_raw")
    run = c.model.run(c.tokens, capture=[one.site(name) for one in branches for name in names], logits=False)
    chosen, sums, parts = [], [], []
    for branch in branches:
        logits, weights = run[branch.site("router_logits")], run[branch.site("expert_weights")]
        last = logits.topk(branch.module.top_k).values[..., -1:]  # type: ignore[union-attr, arg-type]
        chosen.append((weights, logits.sigmoid() * (logits >= last)))
        module: Any = branch.part("experts")
        x = run[branch.site("_input")][:, :, None] * weights[..., None]
        gate, up = torch.einsum("bted,edn->bten", x, module.gate_up_proj).chunk(2, dim=-1)
        out = torch.einsum("bten,end->btd", up * module.act_fn(gate), module.down_proj)
        sums.append((run[branch.site("shared_out")] + out, run[branch.raw]))
        parts.append((run[branch.site("shared_out")] + run[branch.site("expert_out")].sum(-2), run[branch.raw]))
    c.add_all("expert_weights", "sigmoid of the largest logits", chosen)
    c.add_all("mlp_raw", "shared_out + experts of weighted inputs", sums)
    c.add_all("expert_out", "shared_out + sum of expert_out = mlp_raw", parts)


def _error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _from_neurons(run: Run, branch: Branch) -> Tensor:
    module: Any = experts.batched(branch.part("experts"))
    indices = run[branch.site("expert_indices")].flatten(0, 1)
    out = experts.written(module, run[branch.site("expert_post")].flatten(0, 1), indices)
    if getattr(module, "has_bias", False):
        out = out + module.down_proj_bias[indices]
    if getattr(module, "has_post_expert_norm", False):
        out = module.post_expert_norm(out)
    same = (indices >= len(module.down_proj))[..., None]  # LongCat's experts that hand a token on as it is
    x = run[branch.site("_input")].flatten(0, 1)[:, None]
    return torch.where(same, x, out).unflatten(0, run[branch.raw].shape[:2])


def _whole(run: Run, branch: Branch) -> Tensor:
    """The mixture's output from its experts: some models scale their sum, gate the shared one, or norm the whole."""
    module, routed, raw = branch.module, run[branch.site("experts_out")], run[branch.raw]
    parts = branch.slot.mixer.parts
    if branch.kind == "joined_mixture":
        dense = branch.part("shared_norm")(run[branch.site("shared_out")])
        return dense + branch.part("routed_norm")(routed)  # type: ignore[no-any-return]
    shared: Any = torch.zeros_like(routed)
    if "shared" in parts:
        x = run[branch.site("_input")]
        known = branch.site("shared_out")
        shared = run[known] if "shared_down" in parts else branch.part("shared")(x)
        if "shared_gate" in parts:
            shared = shared * branch.part("shared_gate")(x).sigmoid()
    after: Any = branch.part("out_norm") if "out_norm" in parts else torch.nn.Identity()
    factors = {1.0, float(getattr(module, "routed_scaling_factor", 1.0))}
    sums = [after(routed * factor + shared) for factor in factors]
    return min(sums, key=lambda total: float((total - raw).abs().max()))
