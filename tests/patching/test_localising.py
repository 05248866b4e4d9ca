"""Sets of cells, sufficiency and necessity, backup heads, the localisation job: against plain runs, planted cases."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosem import edits, patching
from monosem.data import TokenPairs, ioi
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, Site, TokenBatch
from monosem.patching import Cell, backup, causal_evidence, localise, necessity, patch_sets, sufficiency
from monosem.patching.localisation.report import write
from monosem.patching.sets.evidence import answered, pns_bounds
from tiny import FAMILIES

ROWS = ([5, 6, 7, 8, 9, 10], [20, 21, 22, 23])
OTHERS = ([5, 30, 7, 8, 9, 10], [20, 31, 22, 23])


def make_pairs(right: Sequence[int] = (40, 41), wrong: Sequence[int] = (50, 51), copies: int = 1) -> TokenPairs:
    rows, others = ([list(row) for row in side] * copies for side in (ROWS, OTHERS))
    answers = [torch.tensor(list(side) * copies) for side in (right, wrong)]
    spans = {"who": torch.tensor([1, 1] * copies), "end": torch.tensor([5, 3] * copies)}
    return TokenPairs(TokenBatch.of(rows, 2), TokenBatch.of(others, 2), *answers, spans=spans)


def by_hand(model: Model, pairs: TokenPairs, cells: Sequence[Cell], direction: str) -> Tensor:
    """Logits after the last token of the patched run of every pair: one plain run each, written by `edits.function`."""
    found = []
    for i, rows in enumerate(zip(pairs.clean.rows(), pairs.corrupted.rows())):
        base, source = rows if direction == "noising" else rows[::-1]
        changes = []
        for cell in cells:
            site = Site(cell.site, cell.layer)
            new = model.run([source], capture=site)[site][0]
            names = range(len(base)) if cell.at is None else cell.at
            at = [int(pairs.spans[name][i]) if isinstance(name, str) else name % len(base) for name in names]
            changes.append(edits.function(site, _write(new, at, cell.head)))
        found.append(model.run([base], edits=changes).logits[0, -1])  # type: ignore[index]
    return torch.stack(found)


def _write(new: Tensor, at: list[int], head: int | None) -> Callable[[Tensor], Tensor]:
    def fn(x: Tensor) -> Tensor:
        x = x.clone()
        for position in at:
            if head is None:
                x[0, position] = new[position]
            else:
                x[0, position, head] = new[position, head]
        return x

    return fn


SETS = [
    (),
    (Cell("attn_out", 1, ("end",)), Cell("mlp_out", 0, ("who",)), Cell("mlp_out", 2)),
    (Cell("z", 2, ("end",), head=1), Cell("z", 2, ("who", -1), head=3), Cell("z", 1, None, head=0)),
    (Cell("resid_pre", 2, ("who",)),),
]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sets_are_what_plain_runs_with_the_same_writes_give(
    tiny_model: Callable[..., Model], family: str, direction: Any
) -> None:
    model, pairs = tiny_model(family), make_pairs()
    metric = {"first": lambda logits, pairs, clean: logits[:, 3], "gap": lambda x, p, c: x[:, 4] - x[:, 9]}
    ran = patch_sets(model, pairs, SETS, metric=metric, direction=direction, quiet=True)
    assert ran.table["cells"].tolist() == [len(cells) for cells in SETS] * 2
    assert ran.best == SETS[ran.table["effect"][: len(SETS)].abs().argmax()]
    for i, cells in enumerate(SETS):
        expected = by_hand(model, pairs, cells, direction)
        torch.testing.assert_close(ran.values["first"][i].float(), expected[:, 3], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(ran.values["gap"][i].float(), expected[:, 4] - expected[:, 9], rtol=1e-5, atol=2e-5)


def test_sets_refuse_what_they_cannot_patch(tiny_model: Callable[..., Model]) -> None:
    model, pairs = tiny_model("llama"), make_pairs()
    with pytest.raises(BadInput, match="no sets"):
        patch_sets(model, pairs, [])
    with pytest.raises(UnknownName, match="layers 0 to 2"):
        patch_sets(model, pairs, [[Cell("attn_out", 7)]])
    with pytest.raises(BadInput, match="latents"):
        patch_sets(model, pairs, [[Cell("resid_post", 1, latent=3)]])


# ------------------------------------------------------------------------------------------------------------ shares


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_bounds_hold_for_any_joint_distribution(events: list[tuple[bool, bool]]) -> None:
    n = len(events)
    pn, ps, both = (sum(pick(e) for e in events) / n for pick in (lambda e: e[0], lambda e: e[1], all))
    low, high = pns_bounds(pn, ps)
    assert low - 1e-9 <= both <= high + 1e-9
    assert math.isnan(pns_bounds(float("nan"), ps)[0])


def test_evidence_is_counted_from_plain_runs(tiny_model: Callable[..., Model]) -> None:
    model, base = tiny_model("gemma2"), make_pairs()
    cells = (Cell("attn_out", 1), Cell("mlp_out", 2, ("end",)))
    both = [
        torch.stack([model.run([row]).logits[0, -1] for row in side.rows()]) for side in (base.clean, base.corrupted)
    ]  # type: ignore[index]
    gap = both[0] - both[1]
    right, wrong = gap.argmax(1), gap.argmin(1)  # answers that tell clean from corrupted
    pairs = make_pairs(right.tolist(), wrong.tolist())
    difference = lambda logits: (logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None]))[:, 0]  # noqa: E731
    clean, corrupted = map(difference, both)
    restored, broken = (difference(by_hand(model, pairs, cells, way)) for way in ("denoising", "noising"))

    (found,) = causal_evidence(model, pairs, [cells], quiet=True)
    assert found.metric == "logit_diff"
    whole = (clean - corrupted).mean()
    assert found.sufficiency.value == pytest.approx(float((restored - corrupted).mean() / whole), abs=1e-4)
    assert found.necessity.value == pytest.approx(float((clean - broken).mean() / whole), abs=1e-4)
    assert sufficiency(model, pairs, cells, quiet=True) == found.sufficiency
    assert necessity(model, pairs, cells, quiet=True) == found.necessity
    rows = list(zip(clean.tolist(), corrupted.tolist(), restored.tolist(), broken.tolist()))
    assert (found.pn.count, found.pn.of) == (sum(c > 0 >= b for c, _, _, b in rows), sum(c > 0 for c, *_ in rows))
    assert (found.ps.count, found.ps.of) == (sum(r > 0 >= k for _, k, r, _ in rows), sum(k <= 0 for _, k, *_ in rows))
    assert found.both.of == sum(c > 0 >= k for c, k, *_ in rows)
    assert found.both.count == sum(c > 0 >= k and r > 0 >= b for c, k, r, b in rows)


def test_answered_without_answers_means_the_clean_top_token() -> None:
    pairs = TokenPairs(TokenBatch.of([[1, 2]], 0), TokenBatch.of([[1, 3]], 0))
    clean = torch.tensor([[0.0, 2.0, 1.0]])
    assert answered(clean, pairs, clean).tolist() == [1.0]
    assert answered(-clean, pairs, clean).tolist() == [0.0]


# ------------------------------------------------------------------------------------------------------------ backup


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_needs_of_heads_are_those_of_plain_runs(tiny_model: Callable[..., Model], family: str) -> None:
    model, pairs = tiny_model(family), make_pairs()
    taken = (Cell("z", 1, ("end",), head=2), Cell("mlp_out", 0))
    metric = lambda logits, pairs, clean: logits[:, 3] - logits[:, 9]  # noqa: E731
    found = backup(model, pairs, taken, metric=metric, positions=["end"], candidates=None, threshold=0.01, quiet=True)
    assert {(cell.layer, cell.head) for cell in found.heads} == {(la, h) for la in range(3) for h in range(4)} - {
        (1, 2)
    }

    def value(cells: Sequence[Cell], direction: str = "noising") -> float:
        logits = by_hand(model, pairs, cells, direction)
        return float((logits[:, 3] - logits[:, 9]).mean())

    gap = value(()) - value((), "denoising")
    for i, cell in enumerate(found.heads[:5]):
        assert float(found.need[i]) == pytest.approx((value(()) - value([cell])) / gap, abs=1e-3)
        assert float(found.need_after[i]) == pytest.approx((value(taken) - value([*taken, cell])) / gap, abs=1e-3)
    growth = dict(zip(found.heads, found.growth.tolist()))
    assert set(found.backups) == {
        c for c, g in growth.items() if g >= 0.01 and g + float(found.need[found.heads.index(c)]) >= 0.01
    }
    assert found.table["growth"].is_monotonic_decreasing
    assert (found.best.layer, found.best.head) == tuple(found.top(1)[["layer", "head"]].iloc[0])
    few = backup(model, pairs, taken, metric=metric, positions=["end"], candidates=3, quiet=True)
    assert list(few.heads) == list(found.heads[:3])


def test_estimates_are_the_slope_of_the_exact_effect(tiny_model: Callable[..., Model]) -> None:
    model, pairs = tiny_model("qwen3"), make_pairs()
    taken = (Cell("z", 0, None, head=1),)
    metric = lambda logits, pairs, clean: logits[:, 3] - logits[:, 9]  # noqa: E731
    found = backup(model, pairs, taken, metric=metric, candidates=1, quiet=True)
    step, site = 1e-2, Site("z", 1)

    def value(i: int, fixed: bool, share: float, head: int = 3) -> float:
        row, other = pairs.clean.rows()[i], pairs.corrupted.rows()[i]
        new = {s: model.run([other], capture=s)[s] for s in (Site("z", 0), site)}
        changes = []
        if fixed:
            changes.append(edits.function(Site("z", 0), _write(new[Site("z", 0)][0], list(range(len(row))), 1)))

        def mix(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, :, head] += share * (new[site][:, :, head] - x[:, :, head])
            return x

        logits = model.run([row], edits=[*changes, edits.function(site, mix)]).logits[0, -1]  # type: ignore[index]
        return float(logits[3] - logits[9])

    growth = sum(
        (value(i, True, -step) - value(i, True, step) - value(i, False, -step) + value(i, False, step)) / (2 * step)
        for i in range(2)
    )  # fmt: skip
    ends = [by_hand(model, pairs, (), way) for way in ("noising", "denoising")]
    gap = float(sum((1 if k == 0 else -1) * (e[:, 3] - e[:, 9]).sum() for k, e in enumerate(ends)))
    assert float(found.estimated[1, 3]) == pytest.approx(growth / gap, rel=0.02, abs=2e-3)


# ------------------------------------------------------------------------------------------------------ the whole job


def plant(model: Model, layer: int, head: int) -> Model:
    """Only one head of one layer still writes into the stream."""
    width = model.cfg.d_head
    for number, block in enumerate(model.blocks):
        block.mlp.down_proj.weight.data.zero_()  # type: ignore[union-attr, operator]
        weight = block.self_attn.o_proj.weight.data  # type: ignore[union-attr]
        kept = weight[:, head * width : (head + 1) * width].clone()
        weight.zero_()
        if number == layer:
            weight[:, head * width : (head + 1) * width] = kept
    return model


def telling(model: Model, copies: int = 3, rank: float = 1.0) -> TokenPairs:
    """Pairs with answers that the clean prompts favour and the corrupted ones do not; rank 1: the most different."""
    base = make_pairs()
    clean, corrupted = (
        torch.stack([model.run([r]).logits[0, -1] for r in side.rows()]) for side in (base.clean, base.corrupted)
    )  # type: ignore[index]
    gap = clean - corrupted
    right, wrong = [], []
    for row in range(2):
        choices = [(float(gap[row, a] - gap[row, b]), a, b) for a in range(100) for b in range(100)
                   if clean[row, a] > clean[row, b] and corrupted[row, a] < corrupted[row, b]]  # fmt: skip
        _, a, b = sorted(choices)[round(rank * (len(choices) - 1))]
        right.append(a)
        wrong.append(b)
    return make_pairs(right, wrong, copies)


@pytest.fixture(scope="module")
def planted(tiny_model: Callable[..., Model]) -> tuple[Model, TokenPairs, Any]:
    model = plant(tiny_model("llama"), 1, 2)
    pairs = telling(model)
    return model, pairs, localise(model, pairs, controls=4, quiet=True)


def test_a_planted_head_is_localised_and_nothing_else(planted: Any) -> None:
    _, _, found = planted
    assert [one.cell for one in found.components] == [Cell("attn_out", 1, ("end",))]
    assert [one.cell for one in found.heads] == [Cell("z", 1, ("end",), head=2)]
    assert found.opposing == found.opposing_heads == []
    for one in (*found.components, *found.heads):
        assert one.restored == pytest.approx(1, abs=1e-4)
        assert one.lost == pytest.approx(1, abs=1e-4)
        assert one.needed
    last = found.evidence["heads"]
    assert last.sufficiency.value == pytest.approx(1, abs=1e-4)
    assert last.necessity.value == pytest.approx(1, abs=1e-4)
    assert (last.pn.count, last.pn.of, last.ps.count, last.ps.of) == (6, 6, 6, 6)
    assert last.pns == (1.0, 1.0)
    assert max(map(abs, (*found.control["sufficiency"], *found.control["necessity"]))) < 1e-4
    assert found.backup.backups == []
    assert found.answered == {"clean": 1.0, "corrupted": 0.0}


def test_positions_that_were_not_searched_are_said(planted: Any) -> None:
    _, _, found = planted
    assert any("named positions who, end" in note for note in found.notes)
    assert any("6 pairs are few" in note for note in found.notes)
    assert "1 components, 1 heads; together sufficiency 1.00" in repr(found)


def test_opposing_places_are_listed_apart(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("llama")
    pairs = telling(model, rank=0.5)
    found = localise(
        model,
        pairs,
        threshold=0.01,
        sites=("attn_out", "mlp_out", "resid_post"),
        with_backup=False,
        controls=0,
        quiet=True,
    )
    scores = dict(zip(found.sweep.cells, found.sweep.scores().tolist()))
    errors = dict(zip(found.sweep.cells, found.sweep.score_se().tolist()))
    passed = {c for c, s in scores.items() if abs(s) >= 0.01 and abs(s) >= 2 * errors[c] and c.site != "resid_post"}
    assert {one.cell for one in found.components} == {c for c in passed if scores[c] > 0}
    assert {one.cell for one in found.opposing} == {c for c in passed if scores[c] < 0}
    assert found.opposing
    ordered = [one.restored for one in found.components]
    assert ordered == sorted(ordered, reverse=True)
    for one in (*found.components, *found.opposing):
        logits = by_hand(model, pairs, [one.cell], "noising")
        clean, other = by_hand(model, pairs, (), "noising"), by_hand(model, pairs, (), "denoising")
        m = [float(pairs.advantage(x).mean()) for x in (clean, other, logits)]
        assert one.lost == pytest.approx((m[0] - m[2]) / (m[0] - m[1]), abs=1e-3)
    assert found.backup is None
    assert found.control == {}
    assert list(found.evidence.sets) == ["components", "heads and MLPs", "heads"]
    for label, sites in {
        "components": {"attn_out", "mlp_out"},
        "heads and MLPs": {"z", "mlp_out"},
        "heads": {"z"},
    }.items():
        assert {cell.site for cell in found.evidence[label].cells} == sites


def test_a_place_that_is_only_the_changed_token_is_said(tiny_model: Callable[..., Model]) -> None:
    model = plant(tiny_model("llama"), 1, 2)
    for block in model.blocks[:1]:  # the first MLP writes again, and much more than the embedding
        block.mlp.down_proj.weight.data.normal_(std=50, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, operator]
    found = localise(model, telling(model), with_backup=False, controls=0, quiet=True)
    assert Cell("mlp_out", 0, ("who",)) in [one.cell for one in found.components]
    assert any(
        "mlp_out.0 position who alone restores over 90% at a token that was changed" in note for note in found.notes
    )


def test_the_report_says_what_was_found_and_what_the_numbers_mean(planted: Any, tmp_path: Path) -> None:
    _, _, found = planted
    page = found.save(tmp_path / "report")
    assert page.read_text().startswith("<!doctype html>")
    for text in (page.read_text(), (tmp_path / "report" / "report.md").read_text()):
        for wanted in (
            "head 1.2",
            "attn_out.1",
            "1.00 [1.00, 1.00]",
            "6 of 6 = 1.00",
            "1.00 to 1.00",
            "max(0, PN + PS",
        ):
            assert wanted in text
        assert "restore 100%" in text
        assert "4 random sets" in text
    held = json.loads((tmp_path / "report" / "results.json").read_text(), parse_constant=pytest.fail)
    write(held, tmp_path / "again")  # from its numbers alone
    for name in ("report.md", "report.html", "results.json", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "report" / name).read_bytes()
    assert held["evidence"]["components"]["cells"] == ["attn_out.1 position end"]
    assert len(held["tables"]["sweep"]) == len(found.sweep.cells)
    config = yaml.safe_load((tmp_path / "report" / "config.yaml").read_text())
    assert config["metric"] == "logit_diff"
    assert config["positions"] == "spans"
    assert set(found.sets["set"]) == {"components", "heads"}
    assert list(found.table["kind"]) == ["component", "head"]
    assert found.best == Cell("attn_out", 1, ("end",))
    assert found.evidence.best.sufficiency.value == pytest.approx(1, abs=1e-4)
    assert [trace.name for trace in found.evidence.plot().data] == ["sufficiency", "necessity"]
    assert found.plot("attn_out").data[0].z.shape == (3, 2)


def test_nothing_found_is_a_result(planted: Any, tmp_path: Path) -> None:
    model, pairs, _ = planted
    for wrong in (math.inf, math.nan, -0.1, True, "0.05"):
        for name in ("threshold", "head_threshold"):
            with pytest.raises(BadInput, match=f"^{name} is a share of the effect"):
                localise(model, pairs, quiet=True, **{name: wrong})
    found = localise(model, pairs, threshold=5.0, quiet=True)
    assert not found.components
    assert any("no place reaches" in note for note in found.notes)
    text = found.save(tmp_path / "r").parent.joinpath("report.md").read_text()
    assert "nothing was localised" in text


def test_the_job_refuses_what_it_cannot_do(planted: Any) -> None:
    model, pairs, _ = planted
    with pytest.raises(BadInput, match=r"run of pair 0 are the same \(logit_diff (.*) and \1, answered"):
        localise(model, TokenPairs(pairs.clean, pairs.clean, pairs.right, pairs.wrong, pairs.spans), quiet=True)
    constant = {"constant": lambda logits, pairs, clean: torch.ones(len(logits))}
    with pytest.raises(BadInput, match="nothing is to be localised"):
        localise(model, pairs, metric=constant, quiet=True)
    with pytest.raises(BadInput, match="one metric"):
        localise(model, pairs, metric=["logit_diff", "probability"], quiet=True)
    with pytest.raises(BadInput, match="chooses among attn_out and mlp_out"):
        localise(model, pairs, sites=["resid_pre"], quiet=True)
    ragged = TokenPairs(pairs.clean, pairs.corrupted, pairs.right, pairs.wrong)
    with pytest.raises(BadInput, match="name no spans"):
        localise(model, ragged, quiet=True)


def test_sets_of_answers_use_probabilities(planted: Any) -> None:
    model, pairs, _ = planted
    right, wrong = ([[int(token), 90 + i] for i, token in enumerate(side)] for side in (pairs.right, pairs.wrong))
    several = TokenPairs(
        pairs.clean, pairs.corrupted, spans=pairs.spans, right_set=torch.tensor(right), wrong_set=torch.tensor(wrong)
    )
    found = localise(model, several, controls=0, with_backup=False, quiet=True)
    assert found.config["metric"] == "probability_diff"
    logits = torch.stack([model.run([row]).logits[0, -1] for row in pairs.clean.rows()])  # type: ignore[index]
    p = logits.softmax(-1)
    means = [sum(float(p[i, t]) for i, row in enumerate(side) for t in row) / len(right) for side in (right, wrong)]
    assert found.clean == pytest.approx(means[0] - means[1], abs=1e-5)
    assert [one.cell for one in found.heads] == [Cell("z", 1, ("end",), head=2)]


@pytest.mark.smollm2
def test_the_movers_of_smollm2_act_at_the_end(smollm2: Model) -> None:
    pairs = ioi(smollm2, n=2, seed=0, corruption="s2_flip", template="ABBA")
    movers, others = ([Cell("attn_out", layer, ("end",))] for layer in (23, 10))
    found = causal_evidence(smollm2, pairs, [movers, others], quiet=True)
    assert found[0].sufficiency.value > 0.5
    assert abs(found[1].sufficiency.value) < 0.1


def test_names_of_the_room() -> None:
    for name in ("localise", "causal_evidence", "sufficiency", "necessity", "backup", "patch_sets"):
        assert callable(getattr(patching, name))
