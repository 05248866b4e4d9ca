"""Identities of softmax attention of any make: with gates, norms, sinks, keys of other layers, latents."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..places.branches import Branch
from ..places.latents import from_latent
from ..places.weights import bias_of, weight_from
from ..tokens import TokenBatch
from .checks import Checks

Pairs = list[tuple[Tensor, Tensor]]


def attention(c: Checks) -> None:
    """Heads sum to the branch's output, projections are weights, patterns mix values, latents give scores and z."""
    branches = [branch for branch in c.model.branches() if branch.slot.mixer.row.attends]
    if not branches:
        return
    if twice := [branch for branch in branches if branch.kind == "differential_attention"]:
        return _differential(c, twice)
    _projections(c, [branch for branch in branches if branch.kind != "latent_attention"])
    outputs: Pairs = []
    for branch in branches:
        heads = torch.einsum("bthd,hdm->btm", c.run[branch.site("z")], branch.weight())
        outputs.append((branch.write(heads + branch.bias()), c.run[branch.out]))
    c.add_all("z", "sum over heads of z W_O + b_O = attn_out", outputs)
    seen = [branch for branch in branches if branch.site("pattern") in c.run]
    firsts = [
        (c.run[branch.site("z")][:, 0], _after(c, branch, _repeated(branch, _values(c, branch)))[:, 0])
        for branch in branches
        if branch not in seen and _own(c, branch) and not c.model.looks_ahead and not branch.crosses
    ]
    # no pattern can be read: the one token whose pattern is known tells v from k
    c.add_all("v", "the first token sees itself alone: v = z", firsts)
    if c.model.looks_ahead:
        _single(c, [branch for branch in branches if branch not in seen and branch.kind == "attention"])
    _mixing(c, seen)
    _latents(c, [branch for branch in branches if branch.kind == "latent_attention"])


def _differential(c: Checks, branches: Sequence[Branch]) -> None:
    """Two patterns a pair of heads (arXiv:2410.05258) over both halves of the values; each pair goes through a norm."""
    _projections(c, branches)
    raws: Pairs = []
    soft: Pairs = []
    for branch in branches:
        module: Any = branch.module
        pattern, v = c.run[branch.site("pattern")], c.run[branch.site("v")]
        halves = [_repeated(branch, half.repeat(1, 1, 2, 1)) for half in v.chunk(2, dim=2)]
        mixed = torch.cat([torch.einsum("bhqk,bkhd->bqhd", pattern, values) for values in halves], -1)
        (q1, k1), (q2, k2) = ([getattr(module, f"lambda_{x}{n}") for x in "qk"] for n in (1, 2))
        size = (q1 @ k1).exp() - (q2 @ k2).exp() + module.lambda_init
        plus, minus = mixed.chunk(2, dim=2)
        z = (1 - module.lambda_init) * module.groupnorm.forward(plus - size * minus)
        raws.append((branch.part("out").forward(z.flatten(2)), c.run[branch.raw]))
        soft.append((c.run[branch.site("scores")].float().softmax(-1), pattern.float()))
    c.add_all("scores", "softmax = pattern", soft)
    c.add_all("pattern", "norm of (pattern - λ pattern of the other half) · v, projected = attn_raw", raws)


def _single(c: Checks, branches: Sequence[Branch]) -> None:
    """The same where tokens see later ones: of texts of one token."""
    sites = [branch.site(name) for branch in branches for name in ("v", "z")]
    texts = TokenBatch.whole(c.tokens.ids[:, :1])
    run: Any = c.model.run(texts, capture=sites, logits=False) if sites else {}
    pairs = [(_repeated(branch, run[branch.site("v")]), run[branch.site("z")]) for branch in branches]
    c.add_all("v", "a token alone sees itself: v = z", pairs)


def _projections(c: Checks, branches: Sequence[Branch]) -> None:
    for name in ("q", "k", "v", "attn_gate"):
        pairs: Pairs = []
        identity = ""
        for branch in branches:
            if (site := branch.site(name)) in c.run:
                crosses = branch.crosses and name in ("k", "v")  # made of what the encoder gives
                x = c.run[c.model.source_states] if crosses else branch.read(c.run[branch.reads])
                heads = torch.einsum("btm,hmd->bthd", x, _by_head(weight_from(c.model, site)))
                bias = bias_of(c.model, site)
                pairs.append((heads + bias.reshape(heads.shape[2:]), c.run[site]))
                letter = {"attn_gate": "gate"}.get(name, name.upper())
                identity = identity or f"{branch.slot.row.norm}({branch.slot.reads}) W_{letter} + b_{letter}"
        c.add_all(name, identity, pairs)


def _by_head(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 3 else weight[None]


def _mixing(c: Checks, branches: Sequence[Branch]) -> None:
    """From patterns and values to z, and from scores to patterns."""
    plain, mixed, after, used, soft = ([] for _ in range(5))  # type: tuple[Pairs, Pairs, Pairs, Pairs, Pairs]
    how = ""
    for branch in branches:
        pattern, z = c.run[branch.site("pattern")], c.run[branch.site("z")]
        values = _values(c, branch)
        out = torch.einsum("bhqk,bkhd->bqhd", pattern, _repeated(branch, values))
        if (site := branch.site("mixed")) in c.run:
            mixed.append((out, c.run[site]))
            after.append((_after(c, branch, c.run[site]), z))
            how = " and ".join(part for part in ("norm", "gate") if part in _steps(branch))
        else:
            plain.append((out, z))
        if _own(c, branch):
            used.append((values, c.run[branch.site("values")]))
        scores = c.run[branch.site("scores")].float()
        # with a sink (GPT-OSS) a pattern's rows sum to less than one
        soft.append((scores.softmax(-1), pattern.float() / pattern.float().sum(-1, True)))
    c.add_all("pattern", "pattern · v = z", plain)
    c.add_all("mixed", "pattern · v = mixed", mixed)
    c.add_all("z", f"mixed, through its {how} = z", after)
    c.add_all("values", "v as it is mixed", used)
    c.add_all("scores", "softmax = pattern", soft)


def _steps(branch: Branch) -> list[str]:
    parts = branch.slot.mixer.parts
    return [step for step, part in (("norm", "mixed_norm"), ("gate", "gate")) if part in parts]


def _own(c: Checks, branch: Branch) -> bool:
    """Whether the values are made in the layer, and not taken from an earlier one."""
    return branch.site("v") in c.run or "v_norm" in branch.slot.mixer.parts


def _values(c: Checks, branch: Branch) -> Tensor:
    """The values that the pattern mixes, from v (or the k that is v as well)."""
    mixer = branch.slot.mixer
    if not _own(c, branch):
        return c.run[branch.site("values")]
    v = branch.site("v")
    values = c.run[v if v in c.run else branch.site("k")]
    if mixer.clip and (clip := attrgetter(mixer.clip)(c.model.config)):
        values = values.clamp(-clip, clip)
    if "v_norm" in mixer.parts:
        values = branch.part("v_norm")(values)
    if mixer.value_scale and (scale := getattr(c.model.config, mixer.value_scale)):
        values = values * scale
    return values


def _repeated(branch: Branch, values: Tensor) -> Tensor:
    assert branch.slot.heads is not None
    return values.repeat_interleave(branch.slot.heads.n // branch.slot.heads.n_kv, dim=2)


def _after(c: Checks, branch: Branch, mixed: Tensor) -> Tensor:
    """What is made of mixed values before the output projection reads them."""
    steps = _steps(branch)
    if "norm" in steps:
        norm: Any = branch.part("mixed_norm")
        each = getattr(norm, "weight", mixed[0, 0]).numel() == mixed.shape[-1]  # head by head
        mixed = norm(mixed) if each else norm(mixed.flatten(-2)).reshape(mixed.shape)
    if "gate" in steps:
        gate = c.run[branch.site("attn_gate")].float()
        if (bias := branch.slot.mixer.parts.get("gate_bias")) is not None:  # one for each head
            gate = gate + getattr(branch.module, bias).float()[:, None]
        mixed = mixed * getattr(F, branch.slot.mixer.gate)(gate).to(mixed.dtype)
    return mixed


def _latents(c: Checks, branches: Sequence[Branch]) -> None:
    """Latents are what projections and norms make of the stream; keys and values are weights times them, and with
    these weights absorbed the latents alone give scores and z."""
    sites: dict[str, Pairs] = {name: [] for name in ("q", "kv_latent", "k_rope", "k_nope", "v", "scores", "z")}
    for branch in branches:
        model, heads = c.model, branch.slot.heads
        assert heads is not None
        latent, narrow = c.run[branch.site("kv_latent")], heads.qk - heads.nope
        x = branch.read(c.run[branch.reads])
        if (site := branch.site("q_latent")) in c.run:
            x_q, W_Q = c.run[site], from_latent(branch, "q")
            if "q_a" in branch.slot.mixer.parts:
                x_q = torch.cat([x_q, branch.part("q_a")(x)], -1)
        else:
            x_q, W_Q = x, weight_from(model, branch.site("q"))
        sites["q"].append((torch.einsum("btm,hmd->bthd", x_q, W_Q), c.run[branch.site("q")]))
        both = branch.part("kv_a")(x)
        sites["kv_latent"].append((branch.part("kv_latent")(both[..., :-narrow]), latent))
        sites["k_rope"].append((both[..., -narrow:], c.run[branch.site("k_rope")]))
        W_K, W_V = (from_latent(branch, name) for name in ("k_nope", "v"))
        for name, weight in (("k_nope", W_K), ("v", W_V)):
            sites[name].append((torch.einsum("btm,hmd->bthd", latent, weight), c.run[branch.site(name)]))
        if branch.site("pattern") in c.run:
            rot_q, rot_k = c.run[branch.site("rot_q")], c.run[branch.site("rot_k")]
            absorbed = torch.einsum("bqhd,hmd->bqhm", rot_q[..., : heads.nope], W_K)
            scores = torch.einsum("bqhm,bkm->bhqk", absorbed, latent)
            scores = scores + torch.einsum("bqhd,bkhd->bhqk", rot_q[..., heads.nope :], rot_k[..., heads.nope :])
            seen = c.run[branch.site("scores")]
            shown = seen > torch.finfo(seen.dtype).min / 2
            sites["scores"].append(((scores * _scaling(branch))[shown], seen[shown]))
            mixed = torch.einsum("bhqk,bkm,hmd->bqhd", c.run[branch.site("pattern")], latent, W_V)
            sites["z"].append((_after(c, branch, mixed), c.run[branch.site("z")]))
    said = {
        "q": "from its latent, or the stream",
        "kv_latent": "norm of its projection",
        "k_rope": "what the projection has behind the latent",
        "k_nope": "kv_latent W_K",
        "v": "kv_latent W_V",
        "scores": "from kv_latent, with W_K absorbed",
        "z": "pattern · kv_latent, W_V absorbed",
    }
    for name, pairs in sites.items():
        c.add_all(name, said[name], pairs)


def _scaling(branch: Branch) -> float:
    assert branch.slot.heads is not None
    return float(getattr(branch.module, "scaling", branch.slot.heads.qk**-0.5))
