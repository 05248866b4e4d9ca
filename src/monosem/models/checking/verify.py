"""Identities that hold for every supported model; `monosem verify MODEL` prints them.

A wrong row of the family table, a transformers release that changed a module's output, a quantised layer that is not
read as it acts: each breaks one of these, and the table names the site.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ...errors import BadInput
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


def side_by_side(results: Sequence[Verification]) -> pd.DataFrame:
    """The same model in several dtypes: one row for each identity, a column of errors for each dtype."""
    tables = {result.dtype: result.table.set_index(["site", "identity"]) for result in results}
    errors = pd.concat({dtype: table["error"] for dtype, table in tables.items()}, axis=1)
    errors["ok"] = pd.concat([table["ok"] for table in tables.values()], axis=1).all(axis=1)
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
        self.capture = [Site(name, n) for n in model.layers() for name in PER_LAYER if model.has((name, n))]
        ends = [name for name in ("embed", "final_norm", "pos_embed") if model.has(name)]
        self.run = model.run(tokens, capture=[*self.capture, *ends])
        self.explicit: Tensor = self.run.logits  # type: ignore[assignment]
        # the same without scores and patterns: no layer leaves the model's own attention
        self.plain = model.run(tokens, capture=[Site("resid_post", layer) for layer in model.layers()])
        with torch.no_grad(), model.turn():
            self.native = model.hf(**inputs(model, tokens), use_cache=False).logits
        self._check_alive()

    def _check_alive(self) -> None:
        """Raises `BadInput` where nothing can be verified: numbers that are not finite, or that are all the same."""
        for site in self.capture:
            values = self.run[site]
            if site.name != "scores" and not bool(values.isfinite().all()):  # hidden keys have no score
                bad = values[~values.isfinite()][0].item()
                raise BadInput(f"{self.model.name} computes {bad:g} at {site}, so that no identity says anything")
        low, high = (float(end) for end in self.native.float().aminmax())
        if not low < high < float("inf"):
            raise BadInput(
                f"{self.model.name} is degenerate: its logits run from {low:g} to {high:g}, whatever the tokens, so "
                "that every identity holds and none says anything; was it trained?"
            )

    def add(self, site: str, identity: str, value: Tensor, expected: Tensor) -> None:
        error = float("inf")
        if value.shape == expected.shape:
            worst = (value.float() - expected.float()).abs().max()
            error = float(worst / expected.float().abs().max().clamp(min=1e-12))
        ok = error <= TOLERANCE.get(self.model.dtype, 1e-4)  # NaN compares false
        self.rows.append({"site": site, "identity": identity, "error": error, "ok": ok})

    def logits(self, **options: Any) -> Tensor:
        return self.model.run(self.tokens, **options).logits  # type: ignore[return-value]

    def all_of(self, branches: Iterable[Branch], name: str) -> Tensor:
        """A site of several branches, stacked."""
        return torch.stack([self.run[branch.site(name)] for branch in branches])


def _native(c: _Checks) -> None:
    c.add("logits", "hooked = native", c.logits(capture=["resid_post.0"]), c.native)
    c.add("logits", "our attention = native", c.explicit, c.native)
    c.add("logits", "last token only = native", c.logits(logits="last"), c.native[:, -1])
    if c.model.looks_ahead:  # attention in both directions: what later tokens change is no fault of the row
        return
    other = TokenBatch(c.tokens.ids.clone(), c.tokens.mask)
    other.ids[:, -1] = (other.ids[:, -1] + 1) % c.model.cfg.d_vocab
    changed: Tensor = c.model.run(other).logits  # type: ignore[assignment]
    c.add("logits", "a later token changes no earlier one", changed[:, :-1], c.native[:, :-1])


def _streams(c: _Checks) -> None:
    embedded = c.run["embed"] + c.run["pos_embed"] if c.model.has("pos_embed") else c.run["embed"]
    c.add("resid_pre", "resid_pre.0 = embed (+ positions)", c.run["resid_pre.0"], embedded)
    sums: dict[tuple[str, tuple[str, ...]], list[tuple[Tensor, Tensor]]] = {}
    for layer in c.model.layers():
        for site, parts in c.model.anatomy[layer].sums().items():
            total = reduce(torch.add, (c.run[name, layer] for name in parts))  # rounds where the model does
            sums.setdefault((site, parts), []).append((total, c.run[site, layer]))
    for (site, parts), pairs in sums.items():
        c.add(site, " + ".join(parts), *(torch.stack(side) for side in zip(*pairs)))
    last = c.run["resid_post", c.model.cfg.n_layers - 1]
    c.add("resid_post", "read-out of the last = logits", c.model.unembed(last), c.explicit)
    c.add("final_norm", "unembedding = logits", c.model.unembed(c.run["final_norm"], norm=False), c.explicit)


def _heads(c: _Checks) -> None:
    model, outputs, mixed, firsts = c.model, [], [], []
    attentions = [branch for branch in model.branches() if branch.kind == "attention"]
    if not attentions:
        return
    for branch in attentions:
        clip = branch.slot.mixer.clip and getattr(model.config, branch.slot.mixer.clip)
        heads = torch.einsum("bthd,hdm->btm", c.run[branch.site("z")], branch.weight())
        outputs.append(branch.write(heads + branch.bias()))
        values = c.run[branch.site("v")].repeat_interleave(model.cfg.n_heads // model.cfg.n_kv_heads, dim=2)
        values = values.clamp(-clip, clip) if clip else values
        if branch.site("pattern") in c.run:
            mixed.append(torch.einsum("bhqk,bkhd->bqhd", c.run[branch.site("pattern")], values))
        else:
            firsts.append(values[:, 0])
    _projections(c, attentions)
    expected = torch.stack([c.run[branch.out] for branch in attentions])
    c.add("z", "sum over heads of z W_O + b_O = attn_out", torch.stack(outputs), expected)
    if firsts and not model.looks_ahead:  # no pattern can be read: the one token whose pattern is known tells v from k
        without = [branch for branch in attentions if branch.site("pattern") not in c.run]
        c.add("v", "the first token sees itself alone: v = z", c.all_of(without, "z")[:, :, 0], torch.stack(firsts))
    if mixed:
        seen = [branch for branch in attentions if branch.site("pattern") in c.run]
        c.add("pattern", "pattern · v = z", torch.stack(mixed), c.all_of(seen, "z"))
        scores, pattern = c.all_of(seen, "scores").float(), c.all_of(seen, "pattern").float()
        # with a sink (GPT-OSS) a pattern's rows sum to less than one
        c.add("scores", "softmax = pattern", scores.softmax(-1), pattern / pattern.sum(-1, True))


def _projections(c: _Checks, attentions: Sequence[Branch]) -> None:
    model, slot = c.model, attentions[0].slot
    for name in ("q", "k", "v"):
        projected = []
        for branch in attentions:
            x, site = branch.read(c.run[branch.reads]), branch.site(name)
            heads = torch.einsum("btm,hmd->bthd", x, weight_from(model, site)) + bias_of(model, site)
            projected.append(heads if heads.shape[-1] == model.cfg.d_head else heads.flatten(1))
        identity = f"{slot.row.norm}({slot.reads}) W_{name.upper()} + b_{name.upper()}"
        c.add(name, identity, torch.stack(projected), c.all_of(attentions, name))


def _roles(c: _Checks) -> None:
    """That q is not k, nor gate up: a token's q acts on its own row alone, the MLP is linear in up alone."""
    half = c.model.cfg.d_mlp // 2
    last = {branch.name: branch for branch in c.model.branches()}  # of every name

    def run(site: Site, fn: Callable[[Tensor], Tensor], read: Site) -> Tensor:
        return c.model.run(c.tokens, capture=read, edits=[_Patch(site, fn)], logits=False)[read]

    def first_token_turned(q: Tensor) -> Tensor:
        return torch.cat([-q[:, :1], q[:, 1:]], dim=1)

    def half_off(x: Tensor) -> Tensor:
        return torch.cat([x[..., :half], torch.zeros_like(x[..., half:])], dim=-1)

    for branch in last.values():
        if branch.units == "head":
            z = branch.site("z")
            turned = run(branch.site("q"), first_token_turned, z)[:, 1:]
            c.add("q", "the first token's q moves no later z", turned, c.run[z][:, 1:])
        elif branch.kind == "mlp":
            pre, linear, post = (branch.site(name) for name in ("_pre", "_pre_linear", "_post"))
            c.add(pre.name, "one neuron each", run(pre, half_off, post)[..., :half], c.run[post][..., :half])
            if linear in c.run:
                c.add(linear.name, "mlp_post linear in it", run(linear, lambda x: 2 * x, post), 2 * c.run[post])


def _routers(c: _Checks) -> None:
    """The branch's output is linear in the weights of the chosen experts, which have the largest logits.

    Where a bias that balances the load, or groups, decide too which experts are chosen, their weights still follow
    from their logits.
    """
    routed = [branch for branch in c.model.branches() if branch.kind == "mixture"]
    if not routed:
        return
    sites = [branch.site(name) for branch in routed for name in ROUTER]
    run = c.model.run(c.tokens, capture=sites, logits=False)
    logits, weights, indices = (torch.stack([run[branch.site(name)] for branch in routed]) for name in ROUTER)
    best = logits.topk(indices.shape[-1]).values
    chosen = logits.gather(-1, indices)
    if torch.equal(chosen.sort(-1, descending=True).values, best):
        c.add("expert_indices", "chosen = the largest logits", chosen.sort(-1, descending=True).values, best)
    else:
        chances = (logits.float().softmax(-1), logits.float().sigmoid())
        shares = [_shares(each.gather(-1, indices)) for each in chances]
        expected = min(shares, key=lambda share: float((share - _shares(weights)).abs().max()))
        identity = "in the proportions of the chosen logits' softmax or sigmoid"
        c.add("expert_weights", identity, _shares(weights), expected)
    last = routed[-1]

    def output(factor: float) -> Tensor:
        edit = _Patch(last.site("expert_weights"), lambda weights: weights * factor)
        return c.model.run(c.tokens, capture=last.raw, edits=[edit], logits=False)[last.raw]

    c.add("expert_weights", "MLP linear in them", output(2.0) - output(1.0), output(1.0) - output(0.0))


def _shares(x: Tensor) -> Tensor:
    return x.float() / x.float().sum(-1, keepdim=True)


def _write_back(c: _Checks) -> None:
    for name in sorted({site.name for site in c.capture}, key=PER_LAYER.index):
        logits = c.logits(edits=[_Patch(site, torch.clone) for site in c.capture if site.name == name])
        unchanged = c.explicit if name in ATTENTION else c.native
        c.add(name, "own value written back = no change", logits, unchanged)


def _write_back_together(c: _Checks) -> None:
    logits = c.logits(edits=[_Patch(site, torch.clone) for site in c.capture])
    c.add("all sites", "own values written back = no change", logits, c.explicit)


def _transplant(c: _Checks) -> None:
    layer = c.model.cfg.n_layers // 2
    stream = c.plain["resid_post", layer]
    logits = c.logits(edits=[_Patch(Site("resid_post", layer), lambda _: stream.flip(0))])
    c.add("resid_post", "other prompt's value = its logits", logits, c.native.flip(0))
    if layer + 1 < c.model.cfg.n_layers:
        late = c.logits(start=(Site("resid_pre", layer + 1), stream))
        c.add("resid_pre", "started late = logits", late, c.native)


def _padding(c: _Checks) -> None:
    first, *others = c.tokens.ids.tolist()
    rows = [first[: len(first) // 2], *others]
    alone = torch.cat([c.model.run([row], logits="last").logits for row in rows])  # type: ignore[misc]
    for side in ("right", "left"):
        batch = TokenBatch.of(rows, c.model.pad, side)
        c.add("logits", f"{side} padded = alone", c.model.run(batch, logits="last").logits, alone)  # type: ignore[arg-type]


def _cache(c: _Checks) -> None:
    if c.model.looks_ahead:
        return
    steps = 4
    generated = c.model.generate(c.tokens, max_new_tokens=steps, stop_at_eos=False)
    ids = (
        generated.ids.ids
    )  # every step by itself: where rotations change with the length, a longer text is another one
    prefixes = [TokenBatch.whole(ids[:, : step - steps]) for step in range(steps)]
    logits = torch.stack([c.model.run(prefix, logits="last").logits for prefix in prefixes], 1)  # type: ignore[misc]
    chosen = logits.gather(-1, torch.tensor(generated.new, device=logits.device)[..., None])[..., 0]
    c.add("logits", "cached generation = greedy without cache", chosen, logits.max(-1).values)
