"""Patching sweeps: every way of computing them gives what patching by hand gives, for every family, site and axis.

The oracle is `by_hand`: one whole run with one plain function as edit, written here with its own indexing.
"""

import sys
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem import components, edits, latents, lenses, patching
from monosem.activations import SkipRule
from monosem.data import TokenPairs
from monosem.directions import Direction
from monosem.errors import BadInput, MonosemError, UnknownName
from monosem.models import Model
from monosem.patching import Sweep, cells_of, sweep
from tiny import FAMILIES, tiny_hf, tiny_model, tiny_tokenizer
from tiny_dictionaries import random_tensors, tiny_dictionary

growing_module = sys.modules["monosem.patching.sweeps.growing"]
tape_module = sys.modules["monosem.patching.sweeps.tape"]
CLEAN, CORRUPTED = [7, 21, 33, 40, 52, 61, 70, 18], [7, 21, 34, 40, 55, 61, 70, 18]
RIGHT, WRONG = 11, 12
GROUPS = [  # sites that have the same axes, swept in one call
    (("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), ("layer", "position")),
    (("q", "k", "v", "z"), ("layer", "position", "head")),
    (("pattern",), ("layer", "position", "head")),
    (("mlp_pre", "mlp_pre_linear", "mlp_post"), ("layer", "position", "neuron")),
]


@cache
def tiny(family: str) -> Model:
    return tiny_model(family)


def pairs_of(model: Model, clean: Any = (CLEAN,), corrupted: Any = (CORRUPTED,), **more: Any) -> TokenPairs:
    clean, corrupted = list(clean), list(corrupted)
    return TokenPairs.of(model, clean, corrupted, [RIGHT] * len(clean), [WRONG] * len(clean), **more)


def offered(model: Model, names: tuple[str, ...]) -> list[str]:
    """Those of the sites that the model has in its first layer."""
    found = []
    for name in names:
        try:
            model.site((name, 0))
        except UnknownName:
            continue
        found.append(name)
    return found


def by_hand(
    model: Model,
    into: list[int],
    source: list[int],
    site: str,
    layer: int,
    position: Any = slice(None),
    unit: Any = None,
    key: Any = slice(None),
) -> float:
    """Logit difference of the run of `into` with one part of a site taken from the run of `source`."""
    value = model.run([source], capture=[(site, layer)])[site, layer]

    def write(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        if site == "pattern":
            heads = slice(None) if unit is None else slice(unit, unit + 1)
            x[:, heads, position, key] = value[:, heads, position, key]
        elif unit is None:
            x[:, position] = value[:, position]
        else:
            x[:, position, unit] = value[:, position, unit]
        return x

    logits = model.run([into], edits=edits.function((site, layer), write)).logits
    assert logits is not None
    return float(logits[0, -1, RIGHT] - logits[0, -1, WRONG])


def scale(model: Model) -> float:
    return float(model.run([CLEAN], logits="last").logits.abs().max())


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No merging of groups of rows: every start position is a group of its own, the suffixes are as short as can be."""
    monkeypatch.setattr(growing_module, "CALL_TOKENS", {"cpu": 0})


# ---------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_sweep_gives_what_patching_by_hand_gives(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    model = tiny(family)
    pairs, tolerance = pairs_of(model), 1e-5 * scale(model)
    draw = torch.Generator().manual_seed(len(family))
    for names, over in GROUPS:
        if not (sites := offered(model, names)):
            continue
        neurons = {0: [0, 3], 2: [5]} if "neuron" in over else None
        at = [2, 5, -1]
        found = sweep(model, pairs, sites, over, neurons=neurons, positions=at, quiet=True)
        whole = sweep(model, pairs, sites, over, neurons=neurons, positions=at, method="batched", quiet=True)
        assert (found.mean() - whole.mean()).abs().max() <= tolerance
        for i in torch.randperm(len(found.cells), generator=draw)[:3].tolist():
            cell = found.cells[i]
            unit = cell.neuron if cell.head is None else cell.head
            expected = by_hand(model, CORRUPTED, CLEAN, cell.site, cell.layer, cell.position, unit)
            assert found.mean()[i] == pytest.approx(expected, abs=tolerance), cell
        assert found.method == "growing"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_whole_layers_and_heads(family: str, direction: str) -> None:
    model = tiny(family)
    pairs, tolerance = pairs_of(model), 1e-5 * scale(model)
    into, source = (CORRUPTED, CLEAN) if direction == "denoising" else (CLEAN, CORRUPTED)
    for site in offered(model, ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")):
        found = sweep(model, pairs, site, "layer", direction=direction, quiet=True)
        assert found.mean().tolist() == pytest.approx(
            [by_hand(model, into, source, site, layer) for layer in range(3)], abs=tolerance
        )
    for site in ("q", "v", "z", "pattern"):
        found = sweep(model, pairs, site, ("layer", "head"), direction=direction, layers=[1], quiet=True)
        assert len(found.cells) == (model.cfg.n_kv_heads if site == "v" else model.cfg.n_heads)
        hand = [by_hand(model, into, source, site, 1, unit=cell.head) for cell in found.cells]
        assert found.mean().tolist() == pytest.approx(hand, abs=tolerance)


def test_single_entries_of_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    model = tiny("qwen3")
    pairs = pairs_of(model)
    axes = ("layer", "head", "position", "key")
    found = sweep(model, pairs, "pattern", axes, layers=[0, 2], heads=[1], positions=[4, -1], quiet=True)
    assert len(found.cells) == 2 * 2 * len(CLEAN)
    for i in range(0, len(found.cells), 5):
        cell = found.cells[i]
        expected = by_hand(model, CORRUPTED, CLEAN, "pattern", cell.layer, cell.position, cell.head, cell.key)
        assert found.mean()[i] == pytest.approx(expected, abs=1e-5 * scale(model))


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(["llama", "gpt2", "gpt_neox", "gemma3_text", "mistral"]),
    group=st.sampled_from(GROUPS[:3]),
    layers=st.sets(st.integers(0, 2), min_size=1),
    positions=st.lists(st.integers(-8, 7), min_size=1, max_size=3, unique_by=lambda p: p % 8),
    cut=st.booleans(),
    direction=st.sampled_from(["denoising", "noising"]),
    call_tokens=st.sampled_from([0, 8, 10**6]),
    memory=st.sampled_from(["2GB", 60_000]),
    data=st.data(),
)
def test_any_cells_any_grouping_any_budget(
    family, group, layers, positions, cut, direction, call_tokens, memory, data
) -> None:
    """The fast sweep and the naive one agree for random subsets of cells."""
    model = tiny(family)
    site = data.draw(st.sampled_from(offered(model, group[0])))
    over = [axis for axis in group[1] if cut or axis != "position"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing_module, "CALL_TOKENS", {"cpu": call_tokens})
        one, other = (
            sweep(
                model,
                pairs_of(model),
                site,
                over,
                direction=direction,
                layers=sorted(layers),
                positions=positions,
                method=method,
                memory=memory if method == "growing" else "2GB",
                quiet=True,
            )
            for method in ("growing", "naive")
        )
    assert one.cells == other.cells
    assert torch.allclose(one.mean(), other.mean(), atol=1e-5 * scale(model), rtol=0)


def test_neurons_and_latents_against_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    model = tiny("llama")
    pairs = pairs_of(model)
    dictionary = tiny_dictionary("relu", random_tensors(width=12), model_name="", token_norm="layer_norm")
    axes = ("layer", "position", "latent")
    found = sweep(model, pairs, "resid_post", axes, dictionary=dictionary, latents=[2, 7], quiet=True)
    clean = model.run([CLEAN], capture="resid_post.1")["resid_post.1"]
    assert [cell.layer for cell in found.cells] == [1] * 16
    for cell, value in zip(found.cells, found.mean().tolist()):
        target = float(dictionary.latent_activations(clean, [cell.latent])[0, cell.position, 0])
        clamp = [edits.clamp(dictionary, cell.latent, target).at(positions=cell.position)]
        logits = model.run([CORRUPTED], edits=clamp if cell.position else []).logits[0, -1]  # not trained on the first
        assert value == pytest.approx(float(logits[RIGHT] - logits[WRONG]), abs=1e-5 * scale(model))
    silent = sweep(
        model, pairs, "resid_post", ("layer", "latent"), dictionary=dictionary, latents=[2, 7],
        corruption=patching.zero(), quiet=True,
    )  # fmt: skip
    for cell, value in zip(silent.cells, silent.mean().tolist()):
        logits = model.run([CLEAN], edits=edits.ablate_latent(dictionary, cell.latent)).logits[0, -1]
        assert value == pytest.approx(float(logits[RIGHT] - logits[WRONG]), abs=1e-5 * scale(model))
    for compute in (sweep, patching.attribution):
        with pytest.raises(BadInput, match=r"not trained on token 0 .* skip=SkipRule.none\(\)"):
            compute(model, pairs, "resid_post", axes, dictionary=dictionary, latents=[2], positions=[0, 1], quiet=True)
    told = {"skip_rule": vars(SkipRule.none())}
    everywhere = tiny_dictionary("relu", dictionary.tensors, model_name="", token_norm="layer_norm", metadata=told)
    first = sweep(model, pairs, "resid_post", axes, dictionary=everywhere, latents=[2], positions=[0], quiet=True)
    target = float(dictionary.latent_activations(clean, [2])[0, 0, 0])
    clamp = edits.clamp(everywhere, 2, target).at(positions=0)
    logits = model.run([CORRUPTED], edits=clamp).logits[0, -1]
    assert first.mean()[0] == pytest.approx(float(logits[RIGHT] - logits[WRONG]), abs=1e-5 * scale(model))
    with pytest.raises(BadInput, match="not of latents"):
        sweep(
            model, pairs, "resid_post", ("layer", "latent"), dictionary=dictionary, latents=[2],
            corruption=patching.mean(), quiet=True,
        )  # fmt: skip


def test_bf16_agrees_with_whole_runs() -> None:
    """To four times what whole runs in bf16 miss of the same weights in float32: their kernels differ."""
    model = Model(tiny_hf("llama").to(torch.bfloat16), tiny_tokenizer(), name="tiny")
    fast, slow = (sweep(model, pairs_of(model), method=method, quiet=True) for method in ("growing", "naive"))
    single = Model(tiny_hf("llama").to(torch.bfloat16).float(), tiny_tokenizer(), name="tiny")
    noise = (slow.mean() - sweep(single, pairs_of(single), method="naive", quiet=True).mean()).abs().max()
    assert 0 < noise < 0.05 * scale(model)
    assert (fast.mean() - slow.mean()).abs().max() <= 4 * noise
    assert fast.method == "growing"


# ---------------------------------------------------------------------- what patching means


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_patching_everything_gives_the_other_run(family: str) -> None:
    model = tiny(family)
    for direction, end in (("denoising", "clean"), ("noising", "corrupted")):
        found = sweep(model, pairs_of(model), "resid_pre", "layer", direction=direction, quiet=True)
        assert found.mean().tolist() == pytest.approx([float(getattr(found, end)["logit_diff"])] * 3, abs=1e-5)
    assert found.scores().tolist() == pytest.approx([0.0] * 3, abs=1e-5)


def test_noising_is_denoising_of_the_flipped_pairs() -> None:
    model = tiny("gemma3_text")
    one = sweep(model, pairs_of(model), direction="noising", quiet=True)
    other = sweep(model, pairs_of(model).flipped(), direction="denoising", quiet=True)
    assert torch.allclose(one.mean(), other.mean(), atol=1e-6)
    assert torch.allclose(one.scores(), 1 - other.scores(), atol=1e-5)


def test_the_last_token_after_the_last_layer_carries_everything_and_the_shared_start_nothing() -> None:
    model = tiny("qwen2")
    dense, ticks = (found := sweep(model, pairs_of(model), "resid_post", quiet=True)).grid()
    assert ticks == [[0, 1, 2], list(range(8))]
    gap = abs(float((found.clean["logit_diff"] - found.corrupted["logit_diff"]).mean()))
    noise = 1e-5 * scale(model) / gap  # of a logit, against what a score divides by
    assert dense[-1, -1] == pytest.approx(1.0, abs=noise)
    assert dense[-1, :-1].abs().max() <= noise < 1e-3
    assert (found.effects().reshape(3, 8)[:, :2] == 0).all()  # exactly: the tokens 0 and 1 are those of both prompts
    assert (found.effects().reshape(3, 8)[0, [2, 4]] != 0).all()


def test_layers_see_only_the_tokens_that_a_patch_can_change(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    model, seen = tiny("llama"), {"growing": 0, "naive": 0}
    for method in seen:

        def count(module: Any, args: Any, method: str = method) -> None:
            seen[method] += args[0].shape[0] * args[0].shape[1]

        handles = [block.register_forward_pre_hook(count) for block in model.blocks]
        sweep(model, pairs_of(model), method=method, quiet=True)
        for handle in handles:
            handle.remove()
    runs = 2 * 3 * 8  # clean and corrupted
    # differing tokens are 2 and 4; in layer 0 only they differ, later everything from 2 on does
    rows = [[6, 4], [6, 4, 6, 5, 4, 3, 2, 1], [6, 4] + 2 * [6, 5, 4, 3, 2, 1]]
    recording = 3 * 8 + 3 * 8 + 2 * 3 * 4  # the run, the layers by themselves, half a run twice
    assert seen["growing"] == runs + recording + sum(map(sum, rows))
    assert seen["naive"] == runs + 24 * 3 * 8


def test_the_memory_budget_bounds_the_rows() -> None:
    model, rows = tiny("llama"), {60_000: [0], "2GB": [0]}
    for memory, seen in rows.items():
        handles = [
            block.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
            for block in model.blocks
        ]
        sweep(model, pairs_of(model), memory=memory, quiet=True)
        for handle in handles:
            handle.remove()
    assert max(rows["2GB"]) == 14  # all cells that change anything, in the last layer
    assert max(rows[60_000]) <= 3  # 20 kB a row
    for method in ("growing", "batched"):
        with pytest.raises(BadInput, match="memory="):
            sweep(model, pairs_of(model), memory=100, method=method, quiet=True)


def test_pairs_of_different_length_are_as_if_alone() -> None:
    model = tiny("gpt2")  # learned positions: padding that counts would show
    clean = [CLEAN, CLEAN[:5] + [80], CLEAN[2:]]
    corrupted = [CORRUPTED, CORRUPTED[:5] + [80], CORRUPTED[2:]]
    pairs = pairs_of(model, clean, corrupted, spans={"noun": [4, 4, 2], "end": [7, 5, 5]})
    found = sweep(model, pairs, "resid_pre", positions="spans", metric=["logit_diff", "negative_kl"], quiet=True)
    assert [cell.position for cell in found.cells] == ["noun", "end"] * 3
    for row, (one, other) in enumerate(zip(clean, corrupted)):
        for i, cell in enumerate(found.cells):
            at = int(pairs.spans[cell.position][row])  # type: ignore[index]
            expected = by_hand(model, other, one, "resid_pre", cell.layer, at)
            assert found.values["logit_diff"][i, row] == pytest.approx(expected, abs=1e-5)
    late = sweep(model, pairs, "resid_pre", positions=[-1], quiet=True)
    assert torch.allclose(late.values["logit_diff"], found.values["logit_diff"][1::2], atol=1e-6)
    together = sweep(model, pairs, "z", ("layer", "head"), positions=["noun", "end"], quiet=True)
    assert {cell.at for cell in together.cells} == {("noun", "end")}
    hand = by_hand(model, corrupted[1], clean[1], "z", 1, [4, 5], 2)
    assert together.values["logit_diff"][4 + 2, 1] == pytest.approx(hand, abs=1e-5)
    for missing in (None, [5, 6]):
        with pytest.raises(BadInput, match="tokens"):
            sweep(model, pairs, positions=missing, quiet=True)


def test_positions_and_layers_are_chosen_as_everywhere() -> None:
    model, pairs = tiny("llama"), pairs_of(tiny("llama"))
    at = lambda **which: [(cell.layer, cell.position) for cell in cells_of(model, pairs, **which)]  # noqa: E731
    assert at(layers=-1, positions="last") == [(2, -1)]
    assert at(layers=[0], positions=slice(1, None, 3)) == [(0, 1), (0, 4), (0, 7)]
    assert at(layers=slice(1, None), positions=-2) == [(1, -2), (2, -2)]
    named = pairs_of(model, spans={"last": [3], "noun": [4]})
    assert [cell.position for cell in cells_of(model, named, layers=0, positions="spans")] == ["last", "noun"]
    assert [cell.position for cell in cells_of(model, named, layers=0, positions="last")] == ["last"]  # the span
    ragged = pairs_of(model, [CLEAN, CLEAN[:5]], [CORRUPTED, CORRUPTED[:5]])
    with pytest.raises(BadInput, match="5 to 8 tokens"):
        cells_of(model, ragged, positions=slice(1, None))
    with pytest.raises(BadInput, match="no position"):
        cells_of(model, pairs, positions=slice(8, None))
    with pytest.raises(TypeError, match="layer"):
        sweep(model, pairs, layer=[1], quiet=True)  # type: ignore[call-arg]


# ---------------------------------------------------------------------- where the fast way does not apply


def test_edits_around_the_sweep_hold_and_are_not_ignored() -> None:
    model = tiny("llama")
    half = edits.scale("attn_out.1", 0.5)
    with model.editing(half):
        with pytest.warns(UserWarning, match="edits inside the layers.*whole runs") as warned:
            found = sweep(model, pairs_of(model, [CLEAN] * 2, [CORRUPTED] * 2), layers=[0], quiet=True)
        assert len(warned) == 1  # not one for each pair
        assert found.method == found.config["method"] == "batched"
        hand = by_hand(model, CORRUPTED, CLEAN, "resid_pre", 0, 2)
    assert found.mean()[2] == pytest.approx(hand, abs=1e-5)
    assert sweep(model, pairs_of(model), layers=[0], quiet=True).mean()[2] != pytest.approx(hand, abs=1e-3)


def test_edits_around_that_name_rows_are_refused() -> None:
    """The rows of a sweep's batches are cells: some would be edited and others not."""
    model = tiny_model("llama", name="tiny")
    with model.editing(edits.scale("attn_out.1", 0.5).at(rows=[0])):
        for call in (
            lambda: sweep(model, pairs_of(model), layers=[0], quiet=True),
            lambda: pairs_of(model).solved(model),
            lambda: lenses.patchscope(model, [CLEAN], [CORRUPTED], quiet=True),
            lambda: Direction.fit(model, ["the cat", "a dog"], ["the sun", "a man"], site="resid_post.1"),
            lambda: latents.pooled(model, tiny_dictionary(), ["the cat", "a dog"]),
            lambda: components.detect_head(model, ["the cat sat", "a dog ran"], "previous_token_head"),
        ):
            with pytest.raises(BadInput, match="names rows"):
                call()


def test_layers_that_lie_about_their_cache_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that ignores earlier keys would give wrong numbers; the check finds it and whole runs are used."""
    model = tiny_model("llama", name="tiny")
    expected = sweep(model, pairs_of(model), quiet=True)
    monkeypatch.setattr(tape_module.Cache, "update", lambda self, k, v, *_, **__: (k, v))
    with pytest.warns(UserWarning, match="whole runs instead"):
        found = sweep(model, pairs_of(model), quiet=True)
    assert (expected.method, found.method) == ("growing", "batched")
    assert torch.allclose(found.mean(), expected.mean(), atol=1e-5)


def test_nothing_stays_behind() -> None:
    model = tiny_model("gemma2", name="tiny")
    before, implementation = model.run([CLEAN]).logits, model.hf.config._attn_implementation
    sets = [(cell,) for cell in cells_of(model, pairs_of(model), "pattern", ("layer", "head"))]
    for _ in growing_module.growing(_trial(model), sets, "2GB"):
        assert model.hf.config._attn_implementation == implementation
        assert torch.is_grad_enabled()
        break  # a sweep that is given up in the middle
    assert torch.equal(model.run([CLEAN]).logits, before)
    assert model.hf.config._attn_implementation == implementation
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def _trial(model: Model) -> Any:
    from monosem.patching.trials import patching_experiment

    sites = [model.site(("pattern", layer)) for layer in range(3)]
    pairs = pairs_of(model)
    ((trial, share),) = patching_experiment(model, pairs, sites, "logit_diff").trials(slice(0, 1))
    assert share == 1
    return trial


# ---------------------------------------------------------------------- the result


@pytest.fixture(scope="module")
def several() -> Sweep:
    model = tiny("llama")
    clean = [CLEAN, [9, *CLEAN[1:]], [8, 30, *CLEAN[2:]]]
    corrupted = [CORRUPTED, [9, *CORRUPTED[1:]], [8, 30, *CORRUPTED[2:]]]
    return sweep(model, pairs_of(model, clean, corrupted), ["resid_pre", "mlp_out"],
                 metric=["logit_diff", "probability"], quiet=True)  # fmt: skip


def test_statistics_over_pairs(several: Sweep) -> None:
    values = several.values["logit_diff"]
    assert values.shape == (2 * 24, 3)
    clean, corrupted = several.clean["logit_diff"], several.corrupted["logit_diff"]
    expected = (values.mean(1) - corrupted.mean()) / (clean.mean() - corrupted.mean())
    assert torch.allclose(several.scores(), expected)
    assert torch.allclose(several.value_se(), values.std(1) / 3**0.5)
    single = sweep(tiny("llama"), pairs_of(tiny("llama")), layers=[0], quiet=True)
    assert single.value_se().isnan().all()
    assert single.score_se().isnan().all()


def test_the_error_of_a_score_is_that_of_a_ratio() -> None:
    """Against the jackknife, on numbers with a clear gap."""
    draw, n = torch.Generator().manual_seed(0), 200
    clean, corrupted = (torch.randn(n, generator=draw).double() + mean for mean in (3, -2))
    values = corrupted + 0.6 * (clean - corrupted) + 0.3 * torch.randn(1, n, generator=draw).double()
    cells = cells_of(tiny("llama"), pairs_of(tiny("llama")), "resid_pre", "layer", layers=[0])
    ends = {"clean": {"m": clean}, "corrupted": {"m": corrupted}}
    found = Sweep(cells=cells, over=("layer",), numbers={"m": values}, **ends, direction="denoising")
    left = [[i for i in range(n) if i != out] for out in range(n)]
    ratios = torch.stack([(values[0, i] - corrupted[i]).mean() / (clean[i] - corrupted[i]).mean() for i in left])
    jackknife = ((ratios - ratios.mean()).square().sum() * (n - 1) / n).sqrt()
    assert float(found.score_se()) == pytest.approx(float(jackknife), rel=0.02)
    assert float(found.scores()) == pytest.approx(0.6, abs=4 * float(jackknife))


def test_a_tables_rows_and_the_best_cells(several: Sweep) -> None:
    table = several.table
    assert len(table) == 2 * 2 * 24
    row = table[
        (table.site == "mlp_out") & (table.layer == 1) & (table.position == 4) & (table.metric == "probability")
    ]
    i = next(i for i, c in enumerate(several.cells) if (c.site, c.layer, c.position) == ("mlp_out", 1, 4))
    assert float(row.value.iloc[0]) == pytest.approx(float(several.values["probability"][i].mean()))
    best = several.top(3)
    assert best.effect.abs().is_monotonic_decreasing
    assert abs(best.effect.iloc[0]) == pytest.approx(float(several.effects().mean(1).abs().max()))
    assert set(best.metric) == {"logit_diff"}
    assert several.labels[4] == "/".join(map(tiny("llama").str_token, (CLEAN[4], CORRUPTED[4])))
    assert 0 not in several.labels  # the pairs begin with different tokens
    with pytest.raises(BadInput, match="site="):
        several.grid()
    with pytest.raises(UnknownName, match="logit_diff"):
        several.scores("logitdiff")


def test_pictures_and_files(several: Sweep, tmp_path: Any) -> None:
    pytest.importorskip("plotly")
    figure = several.plot(site="mlp_out")
    dense, _ = several.grid(site="mlp_out")
    assert torch.allclose(torch.tensor(figure.data[0].z), dense)
    assert figure.layout.xaxis.ticktext[4] == several.labels[4]
    assert len(several.plot().data) == 2
    lines = sweep(tiny("llama"), pairs_of(tiny("llama")), ["attn_out", "mlp_out"], "layer", quiet=True)
    assert [trace.name for trace in lines.plot().data] == ["attn_out", "mlp_out"]
    for ending in ("csv", "json", "html", "parquet"):
        several.save(tmp_path / f"sweep.{ending}")
    read = pd.read_csv(tmp_path / "sweep.csv", keep_default_na=False)
    assert read.value.tolist() == pytest.approx(several.table.value.tolist())
    with pytest.raises(BadInput, match=r"\.csv"):
        several.save(tmp_path / "sweep.xyz")


def test_a_metric_of_ones_own_sees_every_rows_pair() -> None:
    model = tiny("llama")

    def margin(logits: torch.Tensor, pairs: TokenPairs, clean: torch.Tensor) -> torch.Tensor:
        assert len(logits) == len(pairs) == len(clean)
        return logits.gather(-1, pairs.right[:, None])[:, 0] - logits.gather(-1, pairs.wrong[:, None])[:, 0]

    found = sweep(model, pairs_of(model), metric={"own": margin, **patching.metrics_of("logit_diff")}, quiet=True)
    assert torch.allclose(found.values["own"], found.values["logit_diff"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": "resid_pro"}, "resid_pre"),
        ({"sites": "rot_q"}, "cannot be swept"),
        ({"over": ("layer", "head")}, "no axis 'head'"),
        ({"over": ("layer", "postion")}, "position"),
        ({"over": ("position",)}, "needs 'layer'"),
        ({"layers": [3]}, "layer 3"),
        ({"positions": [8]}, "position 8"),
        ({"positions": ["io"]}, "span 'io'"),
        ({"positions": "spans"}, "spans"),
        ({"positions": []}, "no cells"),
        ({"heads": [0]}, "'head' is not in over"),
        ({"sites": "mlp_post", "over": ("layer", "neuron")}, "neurons="),
        ({"sites": "k", "over": ("layer", "head"), "heads": [2]}, "k head 2"),
        ({"over": ("layer", "latent"), "latents": [1]}, "dictionary="),
        ({"direction": "backwards"}, "denoising"),
        ({"method": "quick"}, "growing"),
        ({"metric": "logit_dif"}, "logit_diff"),
        ({"corruption": patching.zero(), "direction": "denoising"}, "noising"),
        ({"memory": "many"}, "memory"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    model = tiny("llama")
    with pytest.raises(MonosemError, match=message) as error:
        sweep(model, pairs_of(model), **{"quiet": True, **arguments})
    assert "\n" not in str(error.value)


def test_parallel_blocks_have_no_resid_mid() -> None:
    with pytest.raises(UnknownName, match="parallel"):
        sweep(tiny("gpt_neox"), pairs_of(tiny("gpt_neox")), "resid_mid", quiet=True)


@pytest.mark.smollm2
def test_on_a_real_model(smollm2: Model) -> None:
    """Fast against by-hand runs on smollm2, and the known course of such prompts: from the name's token to the end."""
    clean = "When Mary and John went to the store, John gave a drink to"
    corrupted = "When Mary and John went to the store, Mary gave a drink to"
    pairs = TokenPairs.of(smollm2, [clean], [corrupted], [" Mary"], [" John"])
    found = sweep(smollm2, pairs, "resid_pre", layers=[0, 12, 20, 29], quiet=True)
    dense, (layers, _) = found.grid()
    changed = int(pairs.differs[0].nonzero()[0, 0])
    assert found.method == "growing"
    assert dense[0, changed] == pytest.approx(1, abs=1e-4)
    assert dense[-1, -1] > 0.8
    assert (dense[:, :changed] == 0).all()
    right, wrong = int(pairs.right[0]), int(pairs.wrong[0])
    source = smollm2.run(clean, capture=["resid_pre.12", "resid_pre.20"])
    for layer, position in ((12, changed), (20, -1)):
        patch = edits.patch(("resid_pre", layer), source["resid_pre", layer]).at(positions=position)
        logits = smollm2.run(corrupted, edits=patch, logits="last").logits[0]
        cell = layers.index(layer) * dense.shape[1] + position % dense.shape[1]
        expected = float(logits[right] - logits[wrong])
        assert found.mean()[cell] == pytest.approx(expected, abs=1e-5 * float(logits.abs().max()))


def test_lines_of_sites_that_some_layers_lack_stand_at_their_layers() -> None:
    pytest.importorskip("plotly")
    model = tiny_model("qwen2_moe", mlp_only_layers=[1])
    pairs = TokenPairs.of(model, [[7, 8, 9]], [[7, 9, 9]], [11], [12])
    found = sweep(model, pairs, ["mlp_out", "mlp_post"], "layer", quiet=True)
    for order in (["mlp_out", "mlp_post"], ["mlp_post", "mlp_out"]):
        for line in sweep(model, pairs, order, "layer", quiet=True).plot().data:
            rows = found.table[found.table["site"] == line.name]
            drawn = {x: y for x, y in zip(line.x, line.y) if y == y}
            assert drawn == pytest.approx(dict(zip(rows["layer"], rows["score"])))
