"""Path patching against its definition followed literally: three kinds of runs with edits at sites, no shared code."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosem import edits
from monosem.data import TokenPairs
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, Site, TokenBatch
from monosem.patching import paths
from monosem.patching.paths.suffix_runs import Prefix
from monosem.patching.sweeps.sweep import sweep
from tiny import FAMILIES, tiny_model

LENGTHS = (9, 6)  # one row padded
SENDERS = {
    "embed": ["embed"],
    "head": ["z.0.1"],
    "mlp": ["mlp_out.1"],
    "several": ["embed", "z.0.0", "z.0.3", "mlp_out.0", "z.1.2"],
}
RECEIVERS = {
    "query": ["q.1.2"],
    "key": ["k.2.1"],
    "value": ["v.2.0"],
    "mlp": ["mlp_in.1"],
    "last mlp": ["mlp_in.2"],
    "several": ["q.1.0", "v.1.1", "mlp_in.1", "k.2.1"],
    "logits": ["logits"],
}
_CLOSE = {"rtol": 1e-4, "atol": 2e-5}
METRICS = {f"logit {token}": lambda logits, pairs, clean, token=token: logits[:, token] for token in (3, 50, 97)}


def _pairs(lengths: Sequence[int] = LENGTHS, side: str = "right", seed: int = 0, shared: int = 0) -> TokenPairs:
    """Random pairs whose first `shared` tokens are the same on both sides."""
    draw = torch.Generator().manual_seed(seed)
    rows = [[torch.randint(3, 100, (n,), generator=draw).tolist() for n in lengths] for _ in range(2)]
    rows[1] = [[*clean[:shared], *corrupted[shared:]] for clean, corrupted in zip(*rows)]
    clean, corrupted = (TokenBatch.of(side_rows, 2, side) for side_rows in rows)
    return TokenPairs(clean, corrupted, torch.tensor([3] * len(lengths)), torch.tensor([50] * len(lengths)))


class Literal:
    """The definition, run by run."""

    def __init__(self, model: Model, base: TokenBatch, source: TokenBatch, where: Tensor | None = None):
        layers = range(model.cfg.n_layers)
        everything = [Site(name, layer) for name in ("z", "mlp_out") for layer in layers] + [Site("embed")]
        self.model, self.tokens = model, base
        self.mlps = [model.branch("mlp", layer).module for layer in layers]
        self.base, self.source = (model.run(tokens, capture=everything) for tokens in (base, source))
        self.where = base.mask if where is None else where

    def sent(self, site: Site, heads: Sequence[int] | None = None) -> Tensor:
        """The base run's value with the senders' parts from the source run."""
        value, other = self.base[site].clone(), self.source[site]
        for row, column in self.where.nonzero().tolist():
            if heads is None:
                value[row, column] = other[row, column]
            else:
                value[row, column, heads] = other[row, column, heads]
        return value

    def recorded(self, senders: Sequence[str], freeze_mlps: bool):
        """Step 2: senders from the source, other heads frozen; what every receiver then reads."""
        model, changes = self.model, []
        for layer in range(model.cfg.n_layers):
            heads = [int(name.split(".")[2]) for name in senders if name.startswith(f"z.{layer}.")]
            changes.append(edits.patch(("z", layer), self.sent(Site("z", layer), heads), tokens=self.tokens))
            if f"mlp_out.{layer}" in senders:
                changes.append(edits.patch(("mlp_out", layer), self.sent(Site("mlp_out", layer)), tokens=self.tokens))
            elif freeze_mlps:
                changes.append(edits.patch(("mlp_out", layer), self.base))
        if "embed" in senders:
            changes.append(edits.patch("embed", self.sent(Site("embed")), tokens=self.tokens))
        read = [Site(name, layer) for name in "qkv" for layer in range(model.cfg.n_layers)]
        inputs: dict[int, Tensor] = {}

        def reader(layer: int):
            return lambda module, args: inputs.__setitem__(layer, args[0])

        with ExitStack() as hooks:
            for layer, mlp in enumerate(self.mlps):
                hooks.callback(mlp.register_forward_pre_hook(reader(layer)).remove)
            run = model.run(self.tokens, capture=read, edits=changes)
        return run, inputs

    def received(self, recorded, receivers: Sequence[str]) -> Tensor:
        """Step 3: the base run with the receivers' inputs as recorded; logits after the last token."""
        run, inputs = recorded
        if receivers == ["logits"]:
            return run.logits[torch.arange(len(self.tokens)), self.tokens.last]
        changes = []
        with ExitStack() as hooks:
            for name in receivers:
                kind, layer, *head = name.split(".")
                if kind == "mlp_in":  # what the module is given: the normed stream
                    value = inputs[int(layer)]
                    hook = self.mlps[int(layer)].register_forward_pre_hook(lambda module, args, value=value: (value,))
                    hooks.callback(hook.remove)
                else:
                    changes.append(_written(Site(kind, int(layer)), run[f"{kind}.{layer}"], head))
            return self.model.run(self.tokens, edits=changes, logits="last").logits


def _written(site: Site, value: Tensor, head: list[str]) -> edits.Edit:
    def fn(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, int(head[0])] = value[:, :, int(head[0])]
        return x

    return edits.function(site, fn)


@pytest.mark.parametrize("freeze_mlps", [True, False], ids=["direct", "through"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_edge_equals_the_definition(tiny_model, family, freeze_mlps):
    model = tiny_model(family)
    pairs = _pairs(lengths=(12, 8), shared=3)  # the windows of sliding attention are shorter than that
    assert Prefix.of(model, pairs.clean, 3).column == 3  # so that runs do begin at the first change
    found = paths(model, pairs, SENDERS, RECEIVERS, metric=METRICS, freeze_mlps=freeze_mlps)
    literal = Literal(model, pairs.clean, pairs.corrupted)
    recorded = {label: literal.recorded(names, freeze_mlps) for label, names in SENDERS.items()}
    assert len(found.paths) == len(SENDERS) * len(RECEIVERS) - 2  # mlp_out.1 comes after q.1.2 and mlp_in.1
    moved = 0
    for number, path in enumerate(found.paths):
        expected = literal.received(recorded[path.sender.label], RECEIVERS[path.receiver.label])
        for name, metric in METRICS.items():
            torch.testing.assert_close(found.values[name][number].float(), metric(expected, pairs, None), **_CLOSE)
        moved += bool((found.effects()[number].abs() > 1e-3).any())
    assert moved >= 0.75 * len(found.paths)  # the comparison is not one of zeros


NAMES = {"embed": 1, "z": 12, "mlp_out": 3}
READERS = {"q": 12, "k": 6, "v": 6, "mlp_in": 3, "logits": 1}


def _named(counts: dict[str, int], model: Model) -> list[str]:
    return [str(node) for one in _all(model, counts) for node in one]


def _all(model: Model, counts: dict[str, int]) -> list[list[str]]:
    layers, found = range(model.cfg.n_layers), []
    for kind in counts:
        heads = range(model.cfg.n_kv_heads if kind in "kv" else model.cfg.n_heads)
        if kind in ("embed", "logits"):
            found.append([kind])
        elif kind.startswith("mlp"):
            found.append([f"{kind}.{layer}" for layer in layers])
        else:
            found.append([f"{kind}.{layer}.{head}" for layer in layers for head in heads])
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_sets_of_nodes_equal_the_definition(family, data):
    model = _model(family)
    readers = [name for name in _named(READERS, model) if name != "logits"]
    senders = data.draw(st.lists(st.sampled_from(_named(NAMES, model)), min_size=1, max_size=8, unique=True))
    receivers = data.draw(st.lists(st.sampled_from(readers), min_size=1, max_size=6, unique=True))
    freeze, side = data.draw(st.booleans()), data.draw(st.sampled_from(["left", "right"]))
    position = data.draw(st.sampled_from([None, -1, 2]))
    pairs = _pairs(side=side, seed=data.draw(st.integers(0, 9)), shared=data.draw(st.integers(0, 5)))
    literal = Literal(model, pairs.clean, pairs.corrupted, _where(pairs, position))
    expected = literal.received(literal.recorded(senders, freeze), receivers)
    try:
        found = paths(
            model,
            pairs,
            {"s": senders},
            {"r": receivers},
            metric=METRICS,
            positions=position,
            freeze_mlps=freeze,
            quiet=True,
        )
    except BadInput:  # no path: then the definition finds no effect either
        torch.testing.assert_close(expected, model.run(pairs.clean, logits="last").logits, **_CLOSE)
        return
    for name, metric in METRICS.items():
        torch.testing.assert_close(found.values[name][0].float(), metric(expected, pairs, None), **_CLOSE)


def _where(pairs: TokenPairs, position: int | None) -> Tensor:
    tokens = pairs.clean
    if position is None:
        return tokens.mask
    wanted = torch.full((len(pairs), 1), position) if position >= 0 else tokens.lengths[:, None] + position
    return tokens.mask & (tokens.positions == wanted)


@cache
def _model(family: str) -> Model:
    return tiny_model(family)


@pytest.mark.parametrize("freeze_mlps", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_all_senders_together_bring_the_whole_input(tiny_model, family, freeze_mlps):
    model, pairs = tiny_model(family), _pairs()
    everything = {"everything": ["embed", "z", "mlp_out"]}
    found = paths(model, pairs, everything, ["logits", "q.2.1", "mlp_in.1"], metric=METRICS, freeze_mlps=freeze_mlps)
    source = model.run(pairs.corrupted, capture=["q.2", "mlp_out.1"], logits="last")
    patched = [edits.patch("mlp_out.1", source), _written(Site("q", 2), source["q.2"], ["1"])]
    expected = [source.logits, *(model.run(pairs.clean, edits=one, logits="last").logits for one in patched[::-1])]
    for number, logits in enumerate(expected):
        for name, metric in METRICS.items():
            torch.testing.assert_close(found.values[name][number].float(), metric(logits, pairs, None), **_CLOSE)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_with_nothing_in_between_a_path_is_activation_patching(tiny_model, family, direction):
    """Behind a head of the last layer come its MLP and the logits, behind the last MLP the logits alone."""
    model, pairs = tiny_model(family), _pairs(lengths=(8, 8))
    found = paths(model, pairs, ["z.2", "mlp_out.2"], "logits", metric=METRICS, direction=direction, freeze_mlps=False)
    for site, over, part in (("z", ("layer", "head"), slice(0, 4)), ("mlp_out", ("layer",), slice(4, 5))):
        whole = sweep(
            model, pairs, site, over, metric=METRICS, direction=direction, layers=[2], method="naive", quiet=True
        )
        for name in METRICS:
            torch.testing.assert_close(found.values[name][part], whole.values[name], **_CLOSE)
            torch.testing.assert_close(found.base[name], whole.base[name], **_CLOSE)


def test_equal_prompts_are_refused_and_denoising_is_noising_of_flipped_pairs(tiny_model):
    model, pairs = tiny_model("gemma3_text"), _pairs()
    same = replace(pairs, corrupted=pairs.clean)
    with pytest.raises(BadInput, match="pair 0 are the same"):
        paths(model, same, ["embed", "z.0"], ["k.1", "mlp_in.2", "logits"], freeze_mlps=False)
    there = paths(model, pairs, "z.0", ["v.2", "mlp_in.1", "logits"], metric=METRICS, direction="denoising")
    back = paths(model, pairs.flipped(), "z.0", ["v.2", "mlp_in.1", "logits"], metric=METRICS, direction="noising")
    for name in METRICS:
        torch.testing.assert_close(there.values[name], back.values[name], rtol=0, atol=0)
        torch.testing.assert_close(there.clean[name], back.corrupted[name], rtol=0, atol=0)


def test_the_direct_effect_is_the_last_stream_with_the_head_replaced(tiny_model):
    model, pairs = tiny_model("llama"), _pairs(lengths=(7, 7))
    found = paths(model, pairs, "z.1.3", "logits", metric=METRICS)
    clean = model.run(pairs.clean, capture=["resid_post.2", "z.1"])
    other = model.run(pairs.corrupted, capture="z.1")
    weight = model.blocks[1].self_attn.o_proj.weight[:, 24:32]
    delta = (other["z.1"][:, -1, 3] - clean["z.1"][:, -1, 3]) @ weight.T
    expected = model.hf.lm_head(model.hf.model.norm(clean["resid_post.2"][:, -1] + delta))
    for name, metric in METRICS.items():
        torch.testing.assert_close(found.values[name][0].float(), metric(expected, pairs, None), **_CLOSE)


def test_batches_and_budgets_change_nothing(tiny_model):
    model, pairs = tiny_model("gpt_neox"), _pairs(lengths=(9, 4, 6))
    senders, receivers = ["embed", "z.0", "mlp_out"], ["q.1", "k.2", "mlp_in.1", "mlp_in.2", "logits"]
    whole = paths(model, pairs, senders, receivers, metric=METRICS, freeze_mlps=False)
    small = paths(model, pairs, senders, receivers, metric=METRICS, freeze_mlps=False, memory="50KB")
    alone = [paths(model, pairs[[row]], senders, receivers, metric=METRICS, freeze_mlps=False) for row in range(3)]
    for name in METRICS:
        torch.testing.assert_close(small.values[name], whole.values[name], **_CLOSE)
        torch.testing.assert_close(torch.cat([one.values[name] for one in alone], 1), whole.values[name], **_CLOSE)


def test_spans_name_the_positions(tiny_model):
    model, pairs = tiny_model("llama"), replace(_pairs(), spans={"end": torch.tensor([8, 5])})
    by_name = paths(model, pairs, "z.0", ["q.1", "logits"], metric=METRICS, positions="end")
    by_index = paths(model, pairs, "z.0", ["q.1", "logits"], metric=METRICS, positions=[-1])
    everywhere = paths(model, pairs, "z.0", ["q.1", "logits"], metric=METRICS)
    for name in METRICS:
        torch.testing.assert_close(by_name.values[name], by_index.values[name], rtol=0, atol=0)
    assert float((by_name.effects() - everywhere.effects()).abs().max()) > 1e-3


def test_the_result_is_a_table_and_a_picture(tiny_model, tmp_path):
    model, pairs = tiny_model("llama"), _pairs()
    found = paths(model, pairs, ["embed", "z", "mlp_out"], ["q.2.1", "mlp_in.0", "logits"])
    table = found.table
    assert list(table.columns[:3]) == ["sender", "receiver", "metric"]
    assert len(table) == len(found.paths) == (1 + 8 + 2) + (1 + 4) + (1 + 12 + 3)  # only what lies upstream
    row = table.query("sender == 'z.1.2' and receiver == 'q.2.1'").iloc[0]
    number = next(i for i, path in enumerate(found.paths) if str(path) == "z.1.2 → q.2.1")
    assert row["effect"] == pytest.approx(
        float(found.values["logit_diff"][number].mean() - found.clean["logit_diff"].mean())
    )
    assert str(found.best) == " → ".join(found.top(1)[["sender", "receiver"]].iloc[0])
    gap = float((found.clean["logit_diff"] - found.corrupted["logit_diff"]).mean())
    assert float(found.shares()[number]) == pytest.approx(row["effect"] / gap)
    heads = found.plot(receiver="q.2.1")
    assert list(heads.layout.xaxis.ticktext) == ["0", "1", "2", "3", "MLP"]
    assert list(heads.layout.yaxis.ticktext) == ["embed", "0", "1"]
    assert heads.data[0].z[2][2] == pytest.approx(float(found.shares()[number]))
    assert len(found.plot().data[0].x or found.plot().data[0].z[0]) == 3
    several = paths(model, pairs, {"two": ["z.0.1", "z.1.0"], "embed": "embed"}, "logits").plot()
    assert list(several.layout.yaxis.ticktext) == ["two", "embed"]
    flat = replace(found, corrupted=found.clean).plot()  # no gap to take a share of
    assert flat.data[0].colorbar.title.text == "Δ logit_diff"
    found.save(tmp_path / "paths.csv")
    assert (tmp_path / "paths.csv").read_text().count("\n") == len(table) + 1


@pytest.mark.parametrize(
    ("senders", "receivers", "options", "error", "text"),
    [
        ("head.1", "logits", {}, UnknownName, "senders: embed, z, mlp_out"),
        ("z.3", "logits", {}, UnknownName, "layers 0 to 2"),
        ("z.0.4", "logits", {}, UnknownName, "heads 0 to 3"),
        ("z.0", "k.1.2", {}, UnknownName, "heads 0 to 1"),
        ("z.0.1.2", "logits", {}, UnknownName, "write z.LAYER.HEAD"),
        ("z", {"both": ["logits", "q.1"]}, {}, BadInput, "set of its own"),
        ("mlp_out.2", "q.1", {}, BadInput, "behind senders"),
        ([], "logits", {}, BadInput, "no senders given"),
        ("z", "logits", {"direction": "up"}, BadInput, "noising"),
        ("z", "logits", {"metric": "logit_dif"}, UnknownName, "logit_diff"),
        ("z", "logits", {"positions": "subject"}, UnknownName, "subject"),
        ("z", "logits", {"positions": 6}, BadInput, "outside pair 1"),
    ],
)
def test_wrong_requests_say_what_is_wrong(tiny_model, senders, receivers, options, error, text):
    with pytest.raises(error, match=text):
        paths(tiny_model("llama"), _pairs(), senders, receivers, **options)


def test_edits_in_force_are_refused(tiny_model):
    model = tiny_model("llama")
    with model.editing(edits.scale("z.0", 0.0)), pytest.raises(BadInput, match="editing"):
        paths(model, _pairs(), "z", "logits")


@pytest.mark.smollm2
def test_a_real_head_reads_what_the_definition_says(smollm2):
    names = (
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
    )
    pairs = TokenPairs.of(smollm2, [names[0]], [names[1]], right=[" Mary"], wrong=[" John"])
    found = paths(
        smollm2, pairs, {"heads": ["z.10.3", "z.14.0"]}, ["q.20.2", "logits"], metric=METRICS, freeze_mlps=False
    )
    literal = Literal(smollm2, pairs.clean, pairs.corrupted)
    recorded = literal.recorded(["z.10.3", "z.14.0"], freeze_mlps=False)
    for number, receiver in enumerate(["q.20.2", "logits"]):
        expected = literal.received(recorded, [receiver])
        for name, metric in METRICS.items():
            torch.testing.assert_close(
                found.values[name][number].float(), metric(expected, pairs, None), rtol=1e-4, atol=2e-4
            )
