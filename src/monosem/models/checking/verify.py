"""Identities that hold for every supported model; `monosem verify MODEL` prints them.

A wrong row of the family table, a transformers release that changed a module's output, a quantised layer that is not
read as it acts: each breaks one of these, and the table names the site.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..model import Model
from ..places.blocks import Sum
from ..places.points import point
from ..places.sites import ATTENTION, EMBEDDINGS, NORMS, PER_LAYER, READ_ONLY, Site
from ..places.streams import spread
from ..running.activations import position_embeddings
from ..running.result import Run
from ..sources import trial
from ..tokens import TokenBatch
from .attention import attention
from .checks import Checks, Patch
from .experts import mixtures
from .memories import memories
from .streams import how, total


@dataclass
class Verification:
    """One row an identity: where, what, largest error relative to the largest reference value, and the verdict.

    Attributes:
        note: what was left out of comparisons, and why; "" for nothing.
    """

    model: str
    dtype: str
    rows: list[dict[str, object]]
    note: str = ""

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


def verify(model: Model, length: int = 12, seed: int = 0) -> Verification:
    """Check the identities on two random token sequences of different length.

    Logits with hooks equal native ones; what a block's branches add makes its streams; the last resid_post's
    read-out; q, k, v are weights times the normed stream; per-head sums through the output projection; pattern times
    values; what q, gate and up alone can do; routers; a site's own value written back changes nothing; another prompt's
    resid_post gives that prompt's logits; padding and the KV cache change nothing.
    """
    whole = _verified(model, (*_INSIDE, _write_back, _transplant, _padding, _cache), length, seed)
    if model.encoder is not None:
        beside = verify(model.encoder, length, seed)
        whole.rows += _verified(model, (_encoder,), length, seed).rows
        whole.rows += [row | {"site": f"encoder.{row['site']}"} for row in beside.rows]
    return whole


def quick(model: Model) -> Verification:
    """What tells whether a row is right, on few tokens: all sites are written back in one pass; padding, the cache and
    what is true of any row are left out."""
    return _verified(model, (_explicit, *_INSIDE[1:], _write_back_together, _transplant), length=3)


def sums(model: Model) -> Verification:
    """That the branches of each block add up to its streams: one pass, on one text, because it reads all weights."""
    return _verified(model, (_sums,), length=2, texts=1)


def beginning(model: Model) -> Verification:
    """What enters the first block, and what its branches add: the part of a pass that the embeddings and it take.
    Numbers that are none (NaN) say nothing of a row; `verify` tells them."""
    found = _verified(model, (_beginning,), length=4)
    return Verification(found.model, found.dtype, [row for row in found.rows if row["error"] == row["error"]])


def uses(model: Model) -> Verification:
    """That padding and the cache change nothing."""
    return _verified(model, (_padding, _cache), length=4)


def _verified(
    model: Model, checks: Iterable[Callable[[Checks], None]], length: int, seed: int = 0, texts: int = 2
) -> Verification:
    generator = torch.Generator().manual_seed(seed)
    made = Checks(model, _sample(model, length, generator).of_rows(slice(texts)).to(model.device))
    for check in checks:
        check(made)
    return Verification(model.name, str(model.dtype).removeprefix("torch."), made.rows, made.choices.note)


def _sample(model: Model, length: int, generator: torch.Generator) -> TokenBatch:
    """Two random texts; for an encoder–decoder, two targets with sources of another length; two random sounds."""
    if model.hears and model.encoder is None:
        features: Any = model.tokens(trial(model, torch.zeros(2, 1, dtype=torch.long))["input_features"]).features
        return model.tokens(torch.randn(features.shape, generator=generator))
    ids = torch.randint(0, model.cfg.d_vocab, (2, length), generator=generator)
    if model.encoder is None and not model.headless:
        return model.tokens(TokenBatch.whole(ids))  # the padding's token among them is text
    ids[ids == model.pad] += 1 if model.pad + 1 < model.cfg.d_vocab else -1  # which M2M-100 gives no position
    if model.encoder is None:
        return model.tokens(ids)
    return model.tokens(_sample(model.encoder, length + 3, generator), target=ids)


def _sums(c: Checks) -> None:
    names = {
        Site(name, n) for n in c.model.layers() for one in c.model.anatomy[n].sums for name in (one.stream, *one.parts)
    }
    _add_sums(c, c.model.run(c.tokens, capture=sorted(names), logits=False), c.model.layers())


def _explicit(c: Checks) -> None:
    c.add(c.given, "our attention = native", c.explicit, c.native)


def _native(c: Checks) -> None:
    c.add(c.given, "hooked = native", c.logits(capture=["resid_post.0"]), c.native)
    _explicit(c)
    if c.model.headless:
        return
    c.add("logits", "last token only = native", c.logits(logits="last"), c.native[:, -1])
    if c.model.looks_ahead:  # attention in both directions: what later tokens change is no fault of the row
        return
    other = replace(c.tokens, ids=c.tokens.ids.clone())
    other.ids[:, -1] = (other.ids[:, -1] + 1) % c.model.cfg.d_vocab
    changed: Tensor = c.model.run(other).logits  # type: ignore[assignment]
    c.add("logits", "a later token changes no earlier one", changed[:, :-1], c.native[:, :-1])


def _beginning(c: Checks) -> None:
    sums = c.model.anatomy[0].sums
    sites = {Site("resid_pre", 0), *(Site(name, 0) for one in sums for name in (one.stream, *one.parts))}
    ends = [Site(name) for name in EMBEDDINGS if c.model.has(name)]
    run = c.model.run(c.tokens, [*ends, *sorted(sites)], logits=False)
    _entering(c, run)
    _add_sums(c, run, [0])


def _streams(c: Checks) -> None:
    _entering(c, c.run)
    _add_sums(c, c.run, c.model.layers())
    last = c.run["resid_post", c.model.cfg.n_layers - 1]
    if c.model.headless:
        return c.add("final_norm", "norm of the last resid_post = what it gives", c.model.normed(last), c.explicit)
    c.add("resid_post", "read-out of the last = logits", c.model.unembed(last), c.explicit)
    c.add("final_norm", "unembedding = logits", c.model.unembed(c.run["final_norm"], norm=False), c.explicit)


def _entering(c: Checks, run: Run) -> None:
    if not c.model.has("embed"):
        return
    embedded = run["embed"]
    if c.model.adds_positions:
        embedded = embedded + (run["pos_embed"] if c.model.has("pos_embed") else position_embeddings(run))
    if c.model.has("type_embed"):
        embedded = embedded + run["type_embed"]
    with torch.no_grad(), c.model.turn():
        for module in c.model.entry:
            embedded = module(embedded)
    if c.model.streams > 1:
        with torch.no_grad(), c.model.turn():
            embedded = spread(c.model._part(c.model.family.spread), embedded, c.model.streams)
    added = " (+ positions)" if c.model.type_module is None else " + positions + types"
    through = f", through {' and '.join(c.model.family.entry)}" if c.model.entry else ""
    c.add("resid_pre", f"resid_pre.0 = embed{added}{through}", run["resid_pre.0"], embedded)


_GATED = {"mlp": "_pre_linear", "layer_input": "per_layer_input"}  # kind -> the site that gates, or None


def _add_sums(c: Checks, run: Run, layers: Iterable[int]) -> None:
    sums: dict[Sum, list[tuple[Tensor, Tensor]]] = {}
    for layer in layers:
        for one in c.model.anatomy[layer].sums:
            made = total(c, layer, one, [run[name, layer] for name in one.parts])
            if one.stream == "resid_post":
                made = made * c.model.anatomy[layer].factor
            if one.norm is not None:
                with torch.no_grad(), c.model.turn():
                    made = c.model.blocks[layer].get_submodule(one.norm)(made)
            sums.setdefault(one, []).append((made, run[one.stream, layer]))
    for one, pairs in sums.items():
        identity = how(c, one)
        c.add(one.stream, f"norm({identity})" if one.norm else identity, *(torch.stack(side) for side in zip(*pairs)))


def _given(c: Checks) -> None:
    """What a branch's module is given is the stream through the norm before it."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for branch in c.model.branches():
        site = branch.site("_input")
        if site in c.run and branch.reads in c.run:
            with torch.no_grad():
                pairs.setdefault(site.name, []).append((branch.read(c.run[branch.reads]), c.run[site]))
    for name, found in pairs.items():
        c.add_all(name, "the stream, through the norm before it", found)


def _roles(c: Checks) -> None:
    """That q is not k, nor gate up: a token's q acts on its own row alone, the MLP is linear in up alone."""
    last = {branch.name: branch for branch in c.model.branches()}  # of every name

    def run(read: Site, *edits: Patch) -> Tensor:
        return c.model.run(c.tokens, capture=read, edits=edits, logits=False)[read]

    def as_it_is(site: Site, read: Site) -> Tensor:
        """Both passes are of one kind, where rounding matters."""
        return c.run[read] if c.precise else run(read, Patch(site, torch.clone))

    def first_token_turned(q: Tensor) -> Tensor:
        return torch.cat([-q[:, :1], q[:, 1:]], dim=1)

    def half_off(x: Tensor) -> Tensor:  # of the first text
        half = x.shape[-1] // 2
        return torch.cat([torch.cat([x[:1, ..., :half], torch.zeros_like(x[:1, ..., half:])], dim=-1), x[1:]])

    def doubled(x: Tensor) -> Tensor:  # of the second text
        return torch.cat([x[:1], 2 * x[1:]])

    for branch in last.values():
        if branch.slot.mixer.row.attends:
            z = branch.inner or branch.raw
            turned = run(z, Patch(q := branch.site("q"), first_token_turned))[:, 1:]
            c.add("q", "the first token's q moves no later z", turned, as_it_is(q, z)[:, 1:])
        elif branch.kind in _GATED:
            pre, linear, post = (branch.site(name) for name in ("_pre", _GATED[branch.kind], "_post"))
            if (before_norm := branch.site("_gated")) in c.run:
                post = before_norm
            seen, half = as_it_is(pre, post), c.run[post].shape[-1] // 2
            edits = [Patch(pre, half_off), *([Patch(linear, doubled)] if linear in c.run else [])]
            edited = run(post, *edits)
            c.add(pre.name, "one neuron each", edited[:1, ..., :half], seen[:1, ..., :half])
            if linear in c.run:
                c.add(linear.name, f"{post.name} linear in it", edited[1:], 2 * seen[1:])


def _write_back(c: Checks) -> None:
    """Every second site of those that do not round, in one pass; where it changes anything, each alone."""
    names = sorted({site.name for site in c.writable}, key=PER_LAYER.index)
    rounds = {site.name for site in c.writable if site.name in NORMS or point(c.model, site).sum_of}
    inside = [name for name in names if name in ATTENTION]
    others = [name for name in names if name not in rounds and name not in ATTENTION]

    def written(*chosen: str) -> Tensor:
        return c.logits(edits=[Patch(site, torch.clone) for site in c.writable if site.name in chosen])

    known: dict[str, Tensor] = {}
    for unchanged, group in ((c.explicit, inside), (c.native, others)):
        for part in (group[::2], group[1::2]):
            if part and torch.equal(logits := written(*part), unchanged):
                known |= dict.fromkeys(part, logits)
    for name in names:
        logits = known[name] if name in known else written(name)
        c.add(name, "own value written back = no change", logits, c.explicit if name in ATTENTION else c.native)


def _write_back_together(c: Checks) -> None:
    logits = c.logits(edits=[Patch(site, torch.clone) for site in c.writable])
    c.add("all sites", "own values written back = no change", logits, c.explicit)


def _transplant(c: Checks) -> None:
    layer = c.model.cfg.n_layers // 2
    stream = c.plain(Site("resid_post", layer))
    if c.model.carries:  # later blocks are given more of the prompt than its stream
        late = c.logits(start=(Site("resid_pre", layer + 1), stream)) if layer + 1 < c.model.cfg.n_layers else c.native
        return c.add("resid_pre", "started late = logits", late, c.native)
    source = c.tokens.source
    swapped = c.tokens if source is None else replace(c.tokens, source=source.of_rows([1, 0]))
    logits = c.logits(tokens=swapped, edits=[Patch(Site("resid_post", layer), lambda _: stream.flip(0))])
    c.add("resid_post", "other prompt's value = its logits", logits, c.native.flip(0))
    if layer + 1 < c.model.cfg.n_layers:
        late = c.logits(start=(Site("resid_pre", layer + 1), stream))
        c.add("resid_pre", "started late = logits", late, c.native)


def _padding(c: Checks) -> None:
    if c.tokens.features is not None:
        return
    rows = _shortened(c.tokens)
    alone = torch.cat([_at_end(c, _batch(c, [row], slice(n, n + 1))) for n, row in enumerate(rows)])
    sides = ("right", "left") if c.model.family.padded and not c.model.headless else ("right",)
    for side in sides:
        c.add(c.given, f"{side} padded = alone", _at_end(c, _batch(c, rows, slice(None), side)), alone)


def _shortened(tokens: TokenBatch) -> list[list[int]]:
    first, *others = tokens.ids.tolist()
    return [first[: len(first) // 2], *others]


def _batch(c: Checks, rows: list[list[int]], of: slice, side: str = "right") -> TokenBatch:
    """These rows, with the sources of these numbers where there are any, the first of them shortened likewise."""
    batch, source = TokenBatch.of(rows, c.model.pad, side), c.tokens.source
    if source is None:
        return batch
    sounds = source.features is not None
    source = source.of_rows(of) if sounds else TokenBatch.of(_shortened(source)[of], c.model.pad)
    return replace(batch, source=source)


def _at_end(c: Checks, batch: TokenBatch) -> Tensor:
    if c.model.headless:
        return c.model.run(batch, capture=c.last).last(c.last)
    return c.model.run(batch, logits="last").logits  # type: ignore[return-value]


def _encoder(c: Checks) -> None:
    """The encoder's sites in a pass of the whole: as in its own, and written back without a change."""
    encoder, source = c.model.encoder, c.tokens.source
    assert encoder is not None
    assert source is not None
    sites = Checks(encoder, source).capture
    inside = [replace(site, side="encoder") for site in sites]
    alone, whole = encoder.run(source, capture=sites), c.model.run(c.tokens, capture=inside)
    shown = [(site, one) for site, one in zip(sites, inside) if "scores" not in site.name]  # hidden keys have none
    c.add_all("encoder", "alone = in the whole", [(whole[one], alone[site]) for site, one in shown])
    writable = [one for one in inside if not point(c.model, one).fixed and one.name not in READ_ONLY]
    logits = c.logits(edits=[Patch(site, torch.clone) for site in writable])
    c.add("encoder", "own values written back = no change", logits, c.explicit)


def _cache(c: Checks) -> None:
    if c.model.looks_ahead or not c.model.family.cached:
        return
    length = c.tokens.ids.shape[1]
    steps = max(2, length // 3)
    generated = c.model.generate(c.tokens, max_new_tokens=steps, stop_at_eos=False, capture="logits")
    # the whole text at once: where rotations change with the length, a part of it is another text
    text = replace(TokenBatch.whole(generated.ids.ids), source=c.tokens.source)
    logits = c.model.run(text).logits[:, length - 1 :]  # type: ignore[index]
    cached = generated["logits"][:, length - 1 :]
    # a memory is updated token by token in one, in chunks in the other: long products round apart
    remembers = any(not (branch.pointwise or branch.slot.mixer.row.attends) for branch in c.model.branches())
    c.add("logits", "cached generation = without cache", cached, logits, slack=10 if remembers else 1)


_INSIDE = (_native, _streams, _given, attention, memories, _roles, mixtures)
