"""Identities that hold for every supported model; `monosem verify MODEL` prints them.

A wrong row of the family table, a transformers release that changed a module's output, a quantised layer that is not
read as it acts: each breaks one of these, and the table names the site.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import pandas as pd
import torch
from torch import Tensor

from ...errors import UnknownName
from ..model import Model
from ..places.branches import Branch
from ..places.sites import ATTENTION, PER_LAYER, ROUTER, Site
from ..places.weights import bias_of, weight_from
from ..running.moment import Moment
from ..running.run import inputs
from ..tokens import TokenBatch

# largest allowed error relative to the largest value of the reference, by dtype; a float64 model of transformers is
# exact to float32 only: whatever its dtype, it computes norms, attention patterns and rotations in float32
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 1.5e-1, torch.float16: 2e-2}


@dataclass
class Verification:
    """One row an identity: where, what, largest error relative to the largest reference value, and the verdict."""

    model: str
    dtype: str
    rows: list[dict[str, object]]

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    @property
    def by_site(self) -> pd.Series:
        """The largest error of each site, named after the dtype."""
        errors: pd.Series = self.table.groupby("site", sort=False)["error"].max()
        return errors.rename(self.dtype)

    @property
    def ok(self) -> bool:
        return all(row["ok"] for row in self.rows)


def side_by_side(found: Sequence[Verification]) -> pd.DataFrame:
    """The same model in several dtypes: one row for each identity, a column of errors for each dtype."""
    tables = [v.table.set_index(["site", "identity"]) for v in found]
    errors = pd.concat({v.dtype: t["error"] for v, t in zip(found, tables)}, axis=1)
    errors["ok"] = pd.concat([t["ok"] for t in tables], axis=1).all(axis=1)
    return errors.reset_index()


@dataclass(frozen=True, eq=False)
class _Patch:
    """The smallest edit: this room knows nothing of `monosem.edits`."""

    site: Site
    fn: Callable[[Tensor], Tensor]

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        return self.fn(x), True


def verify(model: Model, length: int = 12, seed: int = 0, quick: bool = False) -> Verification:
    """Check the identities on two random token sequences of different length.

    Logits with hooks equal native ones; what a block's branches add makes its streams; the last resid_post's
    read-out; q, k, v are weights times the normed stream; per-head sums through the output projection; pattern times
    values; what q, gate and up alone can do; routers; a site's own value written back changes nothing; another prompt's
    resid_post gives that prompt's logits; padding and the KV cache change nothing.
    `quick` writes all sites back in one pass and leaves padding and the cache out.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.cfg.d_vocab, (2, length), generator=generator)
    checks = _Checks(model, model.tokens(ids).to(model.device))
    some = (_native, _streams, _heads, _roles, _routers, _write_back_together, _transplant)
    for check in some if quick else (*some[:5], _write_back, _transplant, _padding, _cache):
        check(checks)
    return Verification(model.name, str(model.dtype).removeprefix("torch."), checks.rows)


class _Checks:
    def __init__(self, model: Model, tokens: TokenBatch):
        self.model, self.tokens = model, tokens
        self.rows: list[dict[str, object]] = []
        layers = range(model.cfg.n_layers)
        self.capture = [Site(name, layer) for layer in layers for name in PER_LAYER if _offered(model, name, layer)]
        ends = ["embed", "final_norm"] + ([] if model.family.positions is None else ["pos_embed"])
        self.run = model.run(tokens, capture=[*self.capture, *ends])
        # the same without scores and patterns: no layer leaves the model's own attention
        self.plain = model.run(tokens, capture=[Site("resid_post", layer) for layer in range(model.cfg.n_layers)])
        with torch.no_grad():
            self.native = model.hf(**inputs(tokens), use_cache=False).logits

    def add(self, site: str, identity: str, found: Tensor, expected: Tensor) -> None:
        error = float("inf")
        if found.shape == expected.shape:
            worst = (found.float() - expected.float()).abs().max()
            error = float(worst / expected.float().abs().max().clamp(min=1e-12))
        ok = error <= TOLERANCE.get(self.model.dtype, 1e-4)  # NaN compares false
        self.rows.append({"site": site, "identity": identity, "error": error, "ok": ok})

    def layers(self, site: str) -> Tensor:
        return torch.stack([self.run[site, layer] for layer in range(self.model.cfg.n_layers)])


def _offered(model: Model, name: str, layer: int) -> bool:
    try:
        model.site((name, layer))
    except UnknownName:
        return False
    return True


def _native(c: _Checks) -> None:
    c.add("logits", "hooked = native", c.model.run(c.tokens, capture=["resid_post.0"]).logits, c.native)  # type: ignore[arg-type]
    c.add("logits", "our attention = native", c.run.logits, c.native)  # type: ignore[arg-type]
    c.add("logits", "last token only = native", c.model.run(c.tokens, logits="last").logits, c.native[:, -1])  # type: ignore[arg-type]


def _streams(c: _Checks) -> None:
    c.add("resid_pre", "resid_pre.0 = embed (+ positions)", c.run["resid_pre.0"], _embedded(c))
    sums: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for layer in range(c.model.cfg.n_layers):
        for site, parts in c.model.anatomy[layer].sums().items():
            total = reduce(torch.add, (c.run[name, layer] for name in parts))  # rounds where the model does
            sums.setdefault(f"{site}: {' + '.join(parts)}", []).append((total, c.run[site, layer]))
    for key, pairs in sums.items():
        site, _, identity = key.partition(": ")
        found, expected = (torch.stack(side) for side in zip(*pairs))
        c.add(site, identity, found, expected)
    last = c.run["resid_post", c.model.cfg.n_layers - 1]
    c.add("resid_post", "read-out of the last = logits", c.model.unembed(last), c.run.logits)  # type: ignore[arg-type]
    readout = c.model.unembed(c.run["final_norm"], norm=False)
    c.add("final_norm", "unembedding = logits", readout, c.run.logits)  # type: ignore[arg-type]


def _embedded(c: _Checks) -> Tensor:
    embed = c.run["embed"]
    return embed if c.model.family.positions is None else embed + c.run["pos_embed"]


def _attentions(c: _Checks) -> list[Branch]:
    layers = range(c.model.cfg.n_layers)
    return [branch for layer in layers for branch in c.model.branches(layer) if branch.kind == "attention"]


def _heads(c: _Checks) -> None:
    model, found, expected, mixed = c.model, [], [], []
    attentions = _attentions(c)
    for branch in attentions:
        clip = branch.slot.mixer.clip and getattr(model.hf.config, branch.slot.mixer.clip)
        result = torch.einsum("bthd,hdm->btm", c.run[branch.site("z")], branch.weight()) + branch.bias()
        found.append(branch.write(result))
        expected.append(c.run[branch.out])
        values = c.run[branch.site("v")].repeat_interleave(model.cfg.n_heads // model.cfg.n_kv_heads, dim=2)
        if branch.site("pattern") in c.run:
            values = values if not clip else values.clamp(-clip, clip)
            mixed.append(torch.einsum("bhqk,bkhd->bqhd", c.run[branch.site("pattern")], values))
    if not attentions:
        return
    _projections(c, attentions)
    c.add("z", "sum over heads of z W_O + b_O = attn_out", torch.stack(found), torch.stack(expected))
    if mixed:
        zs, patterns, scores = (torch.stack([c.run[b.site(n)] for b in attentions]) for n in ("z", "pattern", "scores"))
        c.add("pattern", "pattern · v = z", torch.stack(mixed), zs)
        pattern = patterns.float()  # with a sink (GPT-OSS) its rows sum to less than one
        c.add("scores", "softmax = pattern", scores.float().softmax(-1), pattern / pattern.sum(-1, True))


def _projections(c: _Checks, attentions: Sequence[Branch]) -> None:
    model = c.model
    for name in ("q", "k", "v"):
        made = []
        for branch in attentions:
            x, site = branch.read(c.run[branch.reads]), branch.site(name)
            heads = torch.einsum("btm,hmd->bthd", x, weight_from(model, site)) + bias_of(model, site)
            made.append(heads if heads.shape[-1] == model.cfg.d_head else heads.flatten(1))
        expected = torch.stack([c.run[branch.site(name)] for branch in attentions])
        reads = attentions[0].slot
        norm = f"{reads.row.norm}({reads.reads})"
        c.add(name, f"{norm} W_{name.upper()} + b_{name.upper()}", torch.stack(made), expected)


def _roles(c: _Checks) -> None:
    """That q is not k, nor gate up: a token's q acts on its own row alone, the MLP is linear in up alone."""
    model = c.model

    def run(site: Site, fn: Callable[[Tensor], Tensor], read: Site) -> Tensor:
        return model.run(c.tokens, capture=read, edits=[_Patch(site, fn)], logits=False)[read]

    def first_token_turned(q: Tensor) -> Tensor:
        return torch.cat([-q[:, :1], q[:, 1:]], dim=1)

    for branch in _last_of(c, "head"):
        z = branch.site("z")
        turned = run(branch.site("q"), first_token_turned, z)[:, 1:]
        c.add("q", "the first token's q moves no later z", turned, c.run[z][:, 1:])
    half = model.cfg.d_mlp // 2

    def half_off(x: Tensor) -> Tensor:
        return torch.cat([x[..., :half], torch.zeros_like(x[..., half:])], dim=-1)

    for branch in _last_of(c, "neuron"):
        pre, linear, post = (branch.site(name) for name in ("_pre", "_pre_linear", "_post"))
        c.add(pre.name, "one neuron each", run(pre, half_off, post)[..., :half], c.run[post][..., :half])
        if linear in c.run:
            c.add(linear.name, "mlp_post linear in it", run(linear, lambda x: 2 * x, post), 2 * c.run[post])


def _last_of(c: _Checks, units: str) -> list[Branch]:
    """The last branch of every name that is made of these units."""
    everything = [branch for branch in c.model.branches() if branch.units == units]
    return list({branch.name: branch for branch in everything}.values())


def _routers(c: _Checks) -> None:
    """The chosen experts are those with the largest logits, and the MLP's output is linear in their weights."""
    model = c.model
    layers = [layer for layer in range(model.cfg.n_layers) if _offered(model, "router_logits", layer)]
    if not layers:
        return
    run = model.run(c.tokens, capture=[(name, layer) for layer in layers for name in ROUTER], logits=False)
    logits, _, indices = (torch.stack([run[name, layer] for layer in layers]) for name in ROUTER)
    best = logits.topk(indices.shape[-1]).values
    chosen = logits.gather(-1, indices)
    c.add("expert_indices", "chosen = the largest logits", chosen.sort(-1, descending=True).values, best)

    def output(factor: float) -> Tensor:
        edit = _Patch(Site("expert_weights", layers[-1]), lambda w: w * factor)
        return model.run(c.tokens, capture=[("mlp_raw", layers[-1])], edits=[edit], logits=False)["mlp_raw", layers[-1]]

    c.add("expert_weights", "MLP linear in them", output(2.0) - output(1.0), output(1.0) - output(0.0))


def _write_back(c: _Checks) -> None:
    for name in PER_LAYER:
        at = [site for site in c.capture if site.name == name]
        if not at:
            continue
        logits = c.model.run(c.tokens, edits=[_Patch(site, torch.clone) for site in at]).logits
        unchanged = c.run.logits if name in ATTENTION else c.native
        c.add(name, "own value written back = no change", logits, unchanged)  # type: ignore[arg-type]


def _write_back_together(c: _Checks) -> None:
    logits = c.model.run(c.tokens, edits=[_Patch(site, torch.clone) for site in c.capture]).logits
    c.add("all sites", "own values written back = no change", logits, c.run.logits)  # type: ignore[arg-type]


def _transplant(c: _Checks) -> None:
    layer = c.model.cfg.n_layers // 2
    other = c.plain["resid_post", layer].flip(0)
    logits = c.model.run(c.tokens, edits=[_Patch(Site("resid_post", layer), lambda _: other)]).logits
    c.add("resid_post", "other prompt's value = its logits", logits, c.native.flip(0))  # type: ignore[arg-type]
    if layer + 1 < c.model.cfg.n_layers:
        late = c.model.run(c.tokens, start=(Site("resid_pre", layer + 1), c.plain["resid_post", layer])).logits
        c.add("resid_pre", "started late = logits", late, c.native)  # type: ignore[arg-type]


def _padding(c: _Checks) -> None:
    short = c.tokens.ids[:1, : c.tokens.ids.shape[1] // 2].tolist()
    rows = [short[0], *c.tokens.ids[1:].tolist()]
    alone = torch.cat([c.model.run([row], logits="last").logits for row in rows])  # type: ignore[misc]
    for side in ("right", "left"):
        batch = TokenBatch.of(rows, c.model.pad, side)
        c.add("logits", f"{side} padded = alone", c.model.run(batch, logits="last").logits, alone)  # type: ignore[arg-type]


def _cache(c: _Checks) -> None:
    steps = 4
    made = c.model.generate(c.tokens, max_new_tokens=steps, stop_at_eos=False)
    full = c.model.run(made.ids).logits
    assert full is not None
    greedy = full[:, -steps - 1 : -1]
    chosen = torch.tensor(made.new, device=full.device)
    best = greedy.max(-1).values
    c.add("logits", "cached generation = greedy without cache", greedy.gather(-1, chosen[..., None])[..., 0], best)
