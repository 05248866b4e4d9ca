"""Lenses against oracles that share nothing with them: Hugging Face models with their last blocks cut off, SciPy's
entropies and distances over the whole vocabulary, loops."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosem import edits, lenses
from monosem.errors import BadInput, EditDidNotFire, UnknownName
from monosem.lenses import measures, states
from monosem.models import Model
from tiny import FAMILIES, tiny_model

TEXTS = ["the cat sat on the mat", "a big dog ran", "she is very happy and he is not sad"]
TinyModel = Callable[..., Model]


def cut(model: Model, blocks: int) -> Tensor:
    """Native logits of the same model with only its first blocks: what the logit lens at the last of them means."""
    short = copy.deepcopy(model.hf)
    blocks_of = short.base_model.get_submodule(model.family.layers)
    del blocks_of[blocks:]
    tokens = model.tokens(TEXTS)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "position_ids": tokens.positions}
    with torch.no_grad():
        return short(**inputs, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_is_the_model_with_its_later_blocks_cut_off(family: str) -> None:
    model = tiny_model(family)
    seen = lenses.logit(model, TEXTS, top=100)
    mask = model.tokens(TEXTS).mask
    for layer in range(3):
        want = cut(model, layer + 1)[mask].softmax(-1)
        got = torch.zeros_like(want).scatter(1, seen.top_ids[layer][mask], seen.top_probabilities[layer][mask])
        torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-4)
    assert float(seen["kl"][-1][mask].abs().max()) < 1e-5  # the last layer is the model itself
    assert bool((seen["kl"][0][mask] > 0.01).any())


def oracle(q: np.ndarray, p: np.ndarray) -> dict[str, float]:
    return {
        "entropy": scipy.stats.entropy(q),
        "kl": scipy.stats.entropy(p, q),
        "cross_entropy": scipy.stats.entropy(p) + scipy.stats.entropy(p, q),
        "js": scipy.spatial.distance.jensenshannon(p, q) ** 2,
        "tv": np.abs(p - q).sum() / 2,
    }


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "qwen3"])
def test_measures_ranks_and_targets_against_scipy(
    family: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "ELEMENTS", 100 * 4)  # four cells a chunk, and an incomplete last one
    model = tiny_model(family)
    seen = lenses.logit(model, TEXTS, targets=[" cat", 7])
    tokens = model.tokens(TEXTS)
    name_of_7 = model.str_token(7)
    final = cut(model, 3).double()
    for layer in range(3):
        logits = cut(model, layer + 1).double()
        for row, column in tokens.mask.nonzero().tolist():
            z = logits[row, column]
            q, p = z.softmax(-1).numpy(), final[row, column].softmax(-1).numpy()
            cell = (layer, row, column)
            for name, value in oracle(q, p).items():
                assert float(seen[name][cell]) == pytest.approx(value, abs=3e-5), (name, cell)
            assert float(seen["logsumexp"][cell]) == pytest.approx(float(z.logsumexp(-1)), abs=1e-5)
            order = np.argsort(-q)
            assert seen.top_ids[cell].tolist() == order[:5].tolist()
            last = column == int(tokens.lengths[row]) - 1
            following = -1 if last else int(tokens.ids[row, column + 1])
            targets = {"next": following, "final": int(p.argmax()), " cat": int(_id(model, " cat")), name_of_7: 7}
            for name, target in targets.items():
                assert int(seen.targets[name][row, column]) == target
                log_probability, rank = seen.log_probabilities[name][cell], seen.ranks[name][cell]
                if target < 0:
                    assert bool(log_probability.isnan())
                    assert bool(rank.isnan())
                    continue
                assert float(log_probability) == pytest.approx(float(np.log(q[target])), abs=2e-5)
                assert int(rank) == order.tolist().index(target) + 1


def _id(model: Model, text: str) -> int:
    return next(token for token in range(model.cfg.d_vocab) if model.str_token(token) == text)


def test_measures_keep_their_bounds_however_near_or_far_the_distributions_are():
    draw = torch.Generator().manual_seed(0)
    p = torch.randn(64, 49152, generator=draw) * 3
    half = torch.zeros(49152).masked_fill(torch.arange(49152) < 24576, 60.0)
    for q, first in ((p + 1e-6 * torch.randn(p.shape, generator=draw), p), (p + half, p + half.flip(0))):
        view = measures.View(measures.Distribution(q), measures.Distribution(first), slice(0, 64))
        for name, most in (("js", np.log(2)), ("tv", 1.0), ("kl", np.inf)):
            values = measures.MEASURES[name](view).double()
            assert float(values.min()) >= 0.0, name
            assert float(values.max()) <= most, name
        assert float(measures.js(view).max()) < 1e-5 or float(measures.js(view).min()) > 0.6931


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 0.1, 3.0, 200.0, 1e4]),
    vocab=st.integers(2, 40),
    cells=st.integers(1, 9),
)
def test_inequalities_between_the_measures(seed: int, scale: float, vocab: int, cells: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    q, p = scale * torch.randn(2, cells, vocab, generator=draw)
    orders = (0.0, 0.5, 1.0, 2.0, float("inf"))
    every = measures.MEASURES | {order: measures.renyi(order) for order in orders}
    found = states.read_out([lambda part: q[part]], lambda part: p[part], cells, vocab, every, top=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "ELEMENTS", 2 * vocab)
        parts = states.read_out([lambda part: q[part]], lambda part: p[part], cells, vocab, every, top=3)
    m = {name: values[0].double() for name, values in found.measures.items()}
    for name, values in m.items():
        assert bool(values.isfinite().all()), name
        torch.testing.assert_close(parts.measures[name][0].double(), values, atol=1e-5, rtol=1e-5)
    assert torch.equal(parts.top_ids, found.top_ids)
    slack = 1e-4 * (1 + m["kl"])
    assert bool((m["kl"] >= -slack).all())
    assert bool((m["js"] >= 0).all())
    assert bool((m["js"] <= np.log(2) * m["tv"] + 1e-5).all())  # and so at most log 2
    assert bool((2 * m["tv"] ** 2 <= m["kl"] + slack).all())  # Pinsker
    own = torch.from_numpy(scipy.stats.entropy(p.double().softmax(-1).numpy(), axis=1))
    torch.testing.assert_close(m["cross_entropy"], m["kl"] + own, atol=1e-3, rtol=1e-4)
    for low, high in itertools.pairwise(orders):
        assert bool((m[low] >= m[high] - 1e-4).all())
    swapped = states.read_out([lambda part: p[part]], lambda part: q[part], cells, vocab, {"js": measures.js})
    torch.testing.assert_close(swapped.measures["js"][0].double(), m["js"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lens", [None, "tuned", "entropy", "gap", "trajectory", "languages"])
def test_the_vocabulary_is_held_for_a_few_cells_at_a_time(
    lens: str | None, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every product with the unembedding, by whoever asked for it, has at most the rows of one chunk."""
    model = tiny_model("gemma2")
    monkeypatch.setattr(states, "ELEMENTS", 100 * 3)
    rows, head = [], model.hf.get_output_embeddings()
    product = head.forward
    monkeypatch.setattr(head, "forward", lambda x: (rows.append(x.numel() // 32), product(x))[1])
    texts = ["the cat sat on the mat", "the dog ran to the house"]
    jobs = {
        None: lambda: lenses.logit(model, texts),
        "tuned": lambda: lenses.tuned(model, texts, lenses.TunedLens.of(model)),
        "entropy": lambda: lenses.entropy_profile(model, texts),
        "gap": lambda: lenses.gap(model, texts, " good", " bad"),
        "trajectory": lambda: lenses.trajectory(model, *texts),
        "languages": lambda: lenses.languages(model, texts, {"a": ["cat"], "b": ["dog"]}),
    }
    jobs[lens]()
    assert rows
    assert max(rows) <= 3
    assert sum(rows) >= 2 * 3  # two texts, three layers: gap and languages look at the last token


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_out", "mlp_out"])
def test_other_sites_are_read_by_the_same_head(site: str, tiny_model: TinyModel) -> None:
    model = tiny_model("gemma2")
    seen = lenses.logit(model, TEXTS[0], site=site, layers=[-1, 0], top=100)
    run = model.run(TEXTS[0], capture=[f"{site}.2", f"{site}.0"])
    head, norm = model.hf.lm_head.weight, model.hf.model.norm
    for index, layer in enumerate((2, 0)):
        state = run[f"{site}.{layer}"]
        plain = state * (state.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * (1 + norm.weight)
        want = (3.0 * torch.tanh(plain @ head.T / 3.0)).softmax(-1)  # the tiny Gemma 2 caps its logits at 3
        got = torch.zeros_like(want).scatter(-1, seen.top_ids[index], seen.top_probabilities[index])
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)
    assert [str(s) for s in seen.sites] == [f"{site}.2", f"{site}.0"]


def test_positions_padding_and_edits(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    every = lenses.logit(model, TEXTS)
    last = lenses.logit(model, TEXTS, positions="last")
    tokens = model.tokens(TEXTS)
    assert last.chosen.sum() == 3
    for row, column in enumerate(tokens.last.tolist()):
        assert bool(last.chosen[row, column])
        assert float(last["entropy"][1, row, column]) == pytest.approx(
            float(every["entropy"][1, row, column]), rel=1e-5
        )
    assert bool(every["kl"][:, ~tokens.mask].isnan().all())
    assert bool((every.top_ids[:, ~tokens.mask] == -1).all())
    alone = lenses.logit(model, TEXTS[1])
    torch.testing.assert_close(alone["kl"][:, 0], every["kl"][:, 1, : alone["kl"].shape[-1]], atol=1e-5, rtol=1e-4)
    assert lenses.logit(model, TEXTS, positions=[0, -1]).chosen.sum() == 6
    zeroed = lenses.logit(model, TEXTS, edits=edits.scale("resid_post.1", 0.5))
    want = model.run(TEXTS, edits=edits.scale("resid_post.1", 0.5)).logits[tokens.mask].argmax(-1)
    assert torch.equal(zeroed.targets["final"][tokens.mask], want)
    with pytest.raises(EditDidNotFire):
        lenses.logit(model, TEXTS, edits=edits.scale("resid_post.1", 0.5).at(positions=[60]))
    for late in (edits.scale("logits", 0.5), edits.scale("logits_raw", 0.5)):
        with pytest.raises(BadInput, match="behind what a lens reads"):
            lenses.logit(model, TEXTS, edits=late)
        with model.editing(late), pytest.raises(BadInput, match="behind what a lens reads"):
            lenses.logit(model, TEXTS)


def test_what_is_wrong_is_said(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    parallel = tiny_model("gpt_neox")
    wrong: list[tuple[Model, dict[str, object], type[Exception], str]] = [
        (model, {"site": "resid_pots"}, UnknownName, "resid_post"),
        (model, {"site": "z"}, UnknownName, "known"),
        (model, {"layers": 3}, UnknownName, "layer 3: .* has layers 0 to 2"),
        (model, {"layers": []}, BadInput, "layers is empty"),
        (model, {"measures": ["entropie"]}, UnknownName, "did you mean 'entropy'"),
        (model, {"targets": " xylophone"}, BadInput, "one is needed"),
        (model, {"targets": 100}, BadInput, "outside the vocabulary"),
        (model, {"positions": 40}, BadInput, "no token at positions"),
        (parallel, {"site": "resid_mid"}, UnknownName, "resid_mid"),
    ]
    for subject, arguments, kind, message in wrong:
        with pytest.raises(kind, match=message):
            lenses.logit(subject, TEXTS[0], **arguments)  # type: ignore[arg-type]
    seen = lenses.logit(model, TEXTS[0], measures=["kl"])
    with pytest.raises(UnknownName, match="there are kl, probability"):
        seen["js"]
    with pytest.raises(UnknownName, match="'next', 'final'"):
        seen.values("rank", target=" cat")


def test_table_picture_and_files(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model("gemma2")
    seen = lenses.logit(model, TEXTS[:2], targets=" cat", top=3)
    table = seen.table
    assert len(table) == 3 * int(seen.chosen.sum())
    line = table[(table.site == "resid_post.1") & (table.row == 1) & (table.position == 2)].iloc[0]
    assert line.kl == pytest.approx(float(seen["kl"][1, 1, 2]))
    assert len(line.top) == 3
    assert line.token == " dog"
    assert line.prediction == seen.top_tokens(1, 1, 2)[0]
    assert line["rank of  cat"] == float(seen.values("rank", " cat")[1, 1, 2])
    figure = seen.plot("rank", row=1, target=" cat", layers=[0, 2])
    heat = figure.data[0]
    assert np.asarray(heat.z).shape == (2, 4)
    np.testing.assert_allclose(np.asarray(heat.z), seen.ranks[" cat"][[0, 2], 1, :4].log10().numpy(), rtol=1e-5)
    assert "position 2" in heat.customdata[1][2]
    assert heat.customdata[1][2].count("<br>") == 1 + 3
    assert seen.save(tmp_path / "lens.html", value="entropy").read_text().count("plotly") > 0
    back = pd.read_csv(seen.save(tmp_path / "lens.csv"))
    assert back.kl.to_list() == pytest.approx(table.kl.to_list())
    assert len(pd.read_json(seen.save(tmp_path / "lens.json"))) == len(table)
    with pytest.raises(BadInput, match="end it in"):
        seen.save(tmp_path / "lens.png")
    with pytest.raises(BadInput, match="no prompt 2"):
        seen.plot(row=2)


def test_labels_show_white_space_and_are_no_markup() -> None:
    from monosem.lenses.grid import token_label

    assert [token_label(t) for t in ("<b>", "\n\n", "  ", " a", "a ")] == ["&lt;b&gt;", "⏎⏎", "␣␣", " a", "a␣"]


@pytest.mark.smollm2
def test_smollm2_knows_the_capital_of_france_at_the_end(smollm2: Model) -> None:
    text = "The capital of France is"
    seen = lenses.logit(smollm2, text, positions="last", targets=" Paris", measures=["entropy", "kl"])
    logits = smollm2.hf(smollm2.tokens(text).ids).logits[0, -1]
    assert int(seen.top_ids[-1, 0, -1, 0]) == int(logits.argmax())
    torch.testing.assert_close(
        seen.top_probabilities[-1, 0, -1], logits.softmax(-1).topk(5).values, atol=1e-5, rtol=1e-3
    )
    ranks = seen.values("rank", " Paris")[:, 0, -1]
    assert float(ranks[-1]) < 20 < float(ranks[0])


# ---------------------------------------------------------------------- entropy, gap, trajectories, languages


def test_entropies_of_any_order_against_their_definition(tiny_model: TinyModel) -> None:
    model = tiny_model("gemma2")
    orders = (0.0, 0.5, 1.0, 2.0, float("inf"))
    found = lenses.entropy_profile(model, TEXTS, orders=orders)
    mask = model.tokens(TEXTS).mask
    for layer in range(3):
        q = cut(model, layer + 1)[mask].double().softmax(-1).numpy()
        for order in orders:
            if order == 1:
                want = scipy.stats.entropy(q, axis=1)
            elif order == float("inf"):
                want = -np.log(q.max(1))
            else:
                want = np.log((q**order).sum(1)) / (1 - order)
            np.testing.assert_allclose(found.entropies(order)[layer][mask], want, atol=2e-5)
    assert found.features().shape == (3, 2 * len(orders) * 3)
    assert len(found.feature_names) == 2 * len(orders) * 3
    place = found.feature_names.index("sd of H2 at resid_post.1")
    cells = found.entropies(2.0)[1, 2, : int(mask[2].sum())]
    assert float(found.features()[2, place]) == pytest.approx(float(cells.std(unbiased=False)), abs=1e-5)
    assert float(found.means(2.0)[2, 1]) == pytest.approx(float(cells.mean()), abs=1e-5)
    with pytest.raises(BadInput, match="order 3 were not computed"):
        found.means(3.0)
    with pytest.raises(BadInput, match="at least 0"):
        lenses.entropy_profile(model, TEXTS, orders=[-1])


def test_entropy_of_what_is_written_is_that_of_the_cells_it_came_from(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    found = lenses.entropy_profile(model, TEXTS, max_new_tokens=4)
    written = model.generate(TEXTS, max_new_tokens=4)
    lengths = model.tokens(TEXTS).lengths.tolist()
    for row, (new, start) in enumerate(zip(written.new, lengths)):
        columns = found.chosen[row].nonzero().flatten().tolist()
        assert columns == list(range(start - 1, start - 1 + len(new)))
        whole = [*model.tokens(TEXTS).rows()[row], *new]
        log_q = model.run([whole]).logits[0].log_softmax(-1)
        want = -(log_q.exp() * log_q).sum(-1)[columns]
        torch.testing.assert_close(found.entropies()[-1, row, columns], want, atol=1e-5, rtol=1e-4)
        assert bool(found.entropies()[:, row, : start - 1].isnan().all())
    assert len(found.table) == 3 * sum(map(len, written.new))
    assert found.save(tmp_path / "entropy.html").exists()
    assert len(found.plot().data) == 3
    assert np.asarray(found.plot_tokens(1).data[0].z).shape == (3, len(written.new[1]))
    with pytest.raises(BadInput, match="positions, or max_new_tokens"):
        lenses.entropy_profile(model, TEXTS, max_new_tokens=2, positions="last")


def test_entropy_of_what_is_written_under_edits(tiny_model: TinyModel) -> None:
    """Against what the generation itself kept; an edit that would reach other tokens of the whole is refused."""
    model = tiny_model("llama")
    edit = edits.add(("resid_post.0", torch.ones(model.cfg.d_model)), 2.0)
    for around in (edit.at(positions=-1), edit.at(positions=slice(-2, None)), edit.at(scope="prompt")):
        with pytest.raises(BadInput, match="positions from the end"):
            lenses.entropy_profile(model, TEXTS, max_new_tokens=3, edits=around)
        with model.editing(around), pytest.raises(BadInput, match="positions from the end"):
            lenses.entropy_profile(model, TEXTS, max_new_tokens=3)
    with model.editing(edit.at(positions=slice(1, None))):
        found = lenses.entropy_profile(model, TEXTS[:1], max_new_tokens=3)
        made = model.generate(TEXTS[:1], max_new_tokens=3, capture="resid_post.2")
    start = int(made.prompt.lengths[0])
    log_q = model.unembed(made["resid_post.2"][0, start - 1 : -1]).log_softmax(-1)
    torch.testing.assert_close(
        found.entropies()[-1, 0][found.chosen[0]], -(log_q.exp() * log_q).sum(-1), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gpt_neox"])
def test_the_gap_is_the_log_odds_of_two_sets(family: str, tiny_model: TinyModel) -> None:
    model = tiny_model(family)
    good, bad = [" good", " happy", 50], [" bad", " sad"]
    found = lenses.gap(model, {"three": TEXTS, "one": TEXTS[:1]}, good, bad)
    a, b = ([_id(model, t) if isinstance(t, str) else t for t in side] for side in (good, bad))
    assert (found.a, found.b) == (a, b)
    last = model.tokens(TEXTS).last
    for layer in range(3):
        q = cut(model, layer + 1)[range(3), last].double().softmax(-1)
        want = (q[:, a].sum(-1) / q[:, b].sum(-1)).log()
        torch.testing.assert_close(found.groups["three"][layer].double(), want, atol=2e-5, rtol=1e-4)
        line = found.table[(found.table.group == "three") & (found.table.layer == layer)].iloc[0]
        assert line.log_odds == pytest.approx(float(want.mean()), abs=2e-5)
        assert line.log_odds_se == pytest.approx(float(scipy.stats.sem(want.numpy())), abs=2e-5)
        assert line.p_b == pytest.approx(float(q[:, b].sum(-1).mean()), abs=1e-5)
    assert bool(found.table[found.table.group == "one"].log_odds_se.isna().all())
    assert len(found.plot().data) == 2
    for sides, message in (
        ((" good", [" bad", " good"]), "in both sets"),
        (([], 3), "empty"),
        ((" xylophone", 3), "one is"),
    ):
        with pytest.raises(BadInput, match=message):
            lenses.gap(model, TEXTS, *sides)


def test_two_runs_side_by_side(tiny_model: TinyModel) -> None:
    model = tiny_model("gemma2")
    first, second = ["the cat sat on", "a big dog ran"], ["the dog sat on", "a big cat ran"]
    found = lenses.trajectory(model, first, second)
    blocks = [f"resid_post.{i}" for i in range(3)]
    a, b = (model.run(side, capture=blocks) for side in (first, second))
    for layer, site in enumerate(blocks):
        p, q = (model.unembed(run[site]).double().softmax(-1).numpy() for run in (a, b))
        for row in range(2):
            for column in range(4):
                cell = (layer, row, column)
                x, y = a[site][row, column], b[site][row, column]
                want = oracle(q[row, column], p[row, column]) | {
                    "cosine": 1 - scipy.spatial.distance.cosine(x, y),
                    "distance": float((x - y).norm() / x.norm()),
                    "agree": float(p[row, column].argmax() == q[row, column].argmax()),
                }
                for name in ("kl", "js", "tv", "cosine", "distance", "agree"):
                    assert float(found[name][cell]) == pytest.approx(want[name], abs=5e-5), (name, cell)
                assert int(found.first_ids[cell]) == int(p[row, column].argmax())
                assert int(found.second_ids[cell]) == int(q[row, column].argmax())
    assert float(found["js"][:, 0, 0].abs().max()) < 1e-6  # the same first token
    assert float(found["js"][-1, 0, 1]) > 1e-3
    assert "cat / dog" in str(found.plot("kl").layout.xaxis.ticktext)
    assert len(found.table) == 3 * 8

    edit = edits.scale("resid_post.1", 0.3)
    edited = lenses.trajectory(model, first, second_edits=edit)
    assert float(edited["distance"][0].max()) == 0
    torch.testing.assert_close(edited["distance"][1], torch.full((2, 4), 0.7))
    other = lenses.trajectory(model, first, second_model=tiny_model("gemma2", seed=9))
    assert float(other["js"].min()) > 0
    for arguments, message in (({}, "both runs are the same"), ({"other": ["the cat", "a dog"]}, "do not align")):
        with pytest.raises(BadInput, match=message):
            lenses.trajectory(model, first, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="did you mean 'cosine'"):
        found["cosin"]


def test_languages_are_sums_over_the_tokens_that_begin_their_words(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    words = {"animals": ["cat", "dog"], "places": ["paris", "London", "sea"]}
    found = lenses.languages(model, TEXTS, words)
    assert _id(model, " cat") in found.tokens["animals"][0]
    last = model.tokens(TEXTS).last
    for layer in range(3):
        q = cut(model, layer + 1)[range(3), last].softmax(-1)
        masses = {name: q[:, found.tokens[name][0]].sum(-1) for name in words}
        for name, mass in masses.items():
            torch.testing.assert_close(found.probabilities[name][layer], mass, atol=1e-6, rtol=1e-4)
            share = mass / sum(masses.values())
            torch.testing.assert_close(found.shares[name][layer], share, atol=1e-5, rtol=1e-4)
        want = torch.from_numpy(scipy.stats.entropy(q.numpy(), axis=1))
        torch.testing.assert_close(found.entropies[layer], want, atol=1e-4, rtol=1e-4, check_dtype=False)
    assert len(found.table) == 6
    assert len(found.plot("share").data) == 2

    answers = {"one": [["cat"], ["dog"], ["sun"]], "two": [["man"], ["house"], ["moon", "sun"]]}
    with pytest.raises(BadInput, match="one has no token of its own in prompt 2"):
        lenses.languages(model, TEXTS, answers)
    answers["one"][2] = ["sun", "sea"]
    by_row = lenses.languages(model, TEXTS, answers)
    assert by_row.dropped == [" sun"]
    q = cut(model, 3)[range(3), last].softmax(-1)
    for row, word in enumerate((" cat", " dog", " sea")):
        assert by_row.tokens["one"][row] == [_id(model, word)]
        assert float(by_row.probabilities["one"][-1, row]) == pytest.approx(float(q[row, _id(model, word)]), rel=1e-3)
    for wrong, message in (
        ({"one": ["cat"]}, "at least two"),
        ({"one": "cat", "two": ["dog"]}, "single string"),
        ({"one": [["cat"]], "two": ["dog"]}, "1 lists of words for 3 prompts"),
        ({"one": [""], "two": ["dog"]}, "no token begins"),
    ):
        with pytest.raises(BadInput, match=message):
            lenses.languages(model, TEXTS, wrong)


@pytest.mark.smollm2
def test_smollm2_first_tokens_of_words(smollm2: Model) -> None:
    found = [smollm2.str_token(token) for token in lenses.first_tokens(smollm2, "flower")]
    assert {" flower", "flower", " fl", " flow"} <= set(found)
    assert "f" not in found
    assert all("flower".startswith(token.strip()) for token in found)


def test_analyses_look_through_any_lens(tiny_model: TinyModel) -> None:
    model = tiny_model("gpt2")
    lens = lenses.TunedLens.of(model)
    for translator in lens.translators:
        translator.bias.data.fill_(0.5)  # LayerNorm takes a constant away: nothing may change
        translator.A.data.copy_(torch.eye(32))  # and a doubled state is the same state
    plain, through = (lenses.entropy_profile(model, TEXTS, lens=given).entropies() for given in (None, lens))
    torch.testing.assert_close(plain, through, atol=1e-3, rtol=1e-3, equal_nan=True)
    lens[1].bias.data[0] = 30.0
    moved = lenses.entropy_profile(model, TEXTS, lens=lens).entropies()
    assert float((moved - plain)[0].abs().nan_to_num().max()) > 0.1
    by_function = lenses.entropy_profile(model, TEXTS, lens=lens.translate).entropies()
    torch.testing.assert_close(by_function, moved, equal_nan=True)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama", "gpt_neox"])
def test_what_neurons_promote_is_the_slope_of_the_logits(family: str, tiny_model: TinyModel) -> None:
    """The direct effect against autograd: how the logits move when the last state moves along the vector, with the size
    that the norm divides by held fixed (a vector orthogonal to the state leaves it unchanged to first order)."""
    model = tiny_model(family)
    found = lenses.neurons(model, 1, [3, 40], top=100)
    mlp = model.branch("mlp", 1).module
    down = mlp.get_submodule(model.branch("mlp", 1).slot.mixer.parts["down"])
    norm, head = model.part(model.family.final_norm), model.hf.get_output_embeddings().weight
    for row, neuron in enumerate((3, 40)):
        one = torch.zeros(model.cfg.d_mlp)
        one[neuron] = 1.0
        vector = down(one) - down(torch.zeros_like(one))
        if family == "gemma2":
            vector = vector * (1 + model.blocks[1].post_feedforward_layernorm.weight)
        centred = vector - vector.mean() if family.startswith("gpt") else vector
        state = torch.randn(32, generator=torch.Generator().manual_seed(row))
        state = state - state.mean() if family.startswith("gpt") else state
        state = state - centred * (state @ centred) / (centred @ centred)
        size = (state.square().mean() + 1e-5).sqrt()
        _, slope = torch.autograd.functional.jvp(lambda x: head @ norm(x), state, vector)
        effect = slope * size - (slope * size).mean()
        got = torch.zeros(100).scatter(0, found.promoted[row], found.up[row])
        torch.testing.assert_close(got, effect, atol=1e-3, rtol=1e-3)
        assert found.suppressed[row].tolist() == found.promoted[row].flip(0).tolist()
    assert found.table.vector.to_list() == ["neuron 1.3", "neuron 1.40"]
    assert len(found.plot(1).data) == 2
    assert len(lenses.neurons(model, 0).names) == model.cfg.d_mlp
    for call, message in (
        (lambda: lenses.neurons(model, 3), "no layer 3"),
        (lambda: lenses.neurons(model, 0, [48]), "no neuron 48"),
        (lambda: lenses.vectors(model, torch.zeros(2, 31)), r"\[n, 32\]"),
        (lambda: lenses.vectors(model, torch.zeros(2, 32), names=["a"]), "1 names for 2"),
    ):
        with pytest.raises((BadInput, UnknownName), match=message):
            call()
