"""What patching, components and lenses refuse, in one line that says why: input that would give wrong numbers."""

from types import SimpleNamespace

import pytest
import torch

from monosem import components, edits, lenses
from monosem.data import TokenPairs, read_pairs
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.models import TokenBatch
from monosem.patching import (
    Cell,
    Hypothesis,
    Sweep,
    attribution,
    backup,
    causal_evidence,
    cells_of,
    check_estimate,
    localise,
    metrics_of,
    patch_sets,
    paths,
    scrub,
    subspace,
    sweep,
)
from monosem.patching.cells import columns_of
from monosem.statistics import standard_error

CLEAN, CORRUPTED = [[7, 21, 33, 40], [7, 22, 33, 41]], [[7, 21, 34, 40], [7, 22, 35, 41]]


@pytest.fixture(scope="module")
def model(request):
    return request.getfixturevalue("tiny_model")("llama")


@pytest.fixture(scope="module")
def pairs(model):
    return TokenPairs.of(model, CLEAN, CORRUPTED, [11, 13], [12, 14])


def own_mean(logits, pairs, clean):
    """Of all rows: no number a row."""
    return logits[:, 3].mean()


def nan(logits, pairs, clean):
    return logits[:, 3] * float("nan")


# ---------------------------------------------------------------------- pairs and answers
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("the cat sat", "the dog sat"), "clean must be a list"),
        ((["the cat sat"], ["the dog sat"], " on"), "right must be a list"),
        ((["the cat sat"], ["the dog sat"], [100]), "answer of pair 0: token id 100 is outside the vocabulary of 100"),
        ((["the cat sat"], ["the dog sat"], [-1]), "token id -1"),
        ((["the cat sat"], ["the dog sat"], [[5, -1]]), "token id -1"),
        ((["the cat sat"], ["the dog sat"], [" cat sat"]), "is 2 tokens"),
        ((["the cat", ""], ["the dog", ""]), "prompt 1 is empty"),
    ],
)
def test_pairs(model, arguments, message):
    with pytest.raises(BadInput, match=message):
        TokenPairs.of(model, *arguments)


def test_pairs_put_together_by_hand_must_align(model, pairs):
    longer, left = TokenBatch.of([[1, 2, 3], [1, 2]], 0), TokenBatch.of([[1, 2, 3], [1, 2]], 0, "left")
    for other in (pairs.clean, left):
        with pytest.raises(BadInput, match="same numbers of tokens"):
            TokenPairs(longer, other)


def test_no_pairs(pairs):
    with pytest.raises(BadInput, match="no pairs"):
        _ = pairs[[]]


def test_answers_may_be_tensors(model, pairs):
    again = TokenPairs.of(model, CLEAN, CORRUPTED, torch.tensor([11, 13]), torch.tensor([[12, 5], [14, 6]]))
    assert torch.equal(again.right, pairs.right)
    assert again.wrong is None
    assert again.wrong_set.tolist() == [[12, 5], [14, 6]]


def test_pairs_left_out_leave_no_trace(model):
    """A pair with a set of answers that is left out does not make sets of the others' answers."""
    found = TokenPairs.of(model, ["the cat", "the dog"], ["a cat", "a big dog"], [" sat", [" on", " in"]],
                          spans={"end": [1, 1]}, drop_unaligned=True)  # fmt: skip
    assert (len(found), found.right_set, len(found.right), found.spans["end"].tolist()) == (1, None, 1, [1])


def test_there_is_one_way_to_a_token_id(model):
    assert model.to_single_token(7) == 7 == model.to_single_token(torch.tensor(7))
    for call in (
        lambda: model.to_single_token(100),
        lambda: components.direct_attribution(model, CLEAN, 100),
        lambda: lenses.gap(model, CLEAN, [100], [3]),
        lambda: lenses.logit(model, CLEAN, targets=[100]),
        lambda: lenses.patchscope(model, "the cat", "the dog", answer=100, quiet=True),
    ):
        with pytest.raises(BadInput, match="outside the vocabulary of 100"):
            call()


# ---------------------------------------------------------------------- metrics
def test_a_metric_gives_one_number_a_row(model, pairs):
    """The mean of the rows would otherwise be every row's value, with a standard error of zero."""
    for call in (
        lambda: sweep(model, pairs, metric=own_mean, quiet=True),
        lambda: attribution(model, pairs, metric=own_mean, quiet=True),
        lambda: paths(model, pairs, "z.0", "logits", metric=own_mean, quiet=True),
        lambda: patch_sets(model, pairs, [()], metric=own_mean, quiet=True),
        lambda: scrub(model, pairs, Hypothesis(), metric=own_mean, quiet=True),
    ):
        with pytest.raises(BadInput, match="metric 'own_mean' gives shape"):
            call()


def test_tables_of_metrics(pairs):
    def other(logits, pairs, clean):
        return logits[:, 0]

    assert list(metrics_of(["logit_diff", other])) == ["logit_diff", "other"]
    with pytest.raises(BadInput, match="no metric given"):
        metrics_of([])
    with pytest.raises(BadInput, match="one name"):
        metrics_of([lambda x, p, c: x[:, 0], lambda x, p, c: x[:, 1]])


def test_analyses_of_one_metric_do_not_drop_the_others(model, pairs):
    two, cells = ["logit_diff", "probability"], [Cell("z", 0, head=1)]
    for call in (
        lambda: backup(model, pairs, cells, metric=two, quiet=True),
        lambda: causal_evidence(model, pairs, [cells], metric=two, quiet=True),
        lambda: scrub(model, pairs, Hypothesis(), metric=two, quiet=True),
        lambda: localise(model, pairs, metric=two, quiet=True),
    ):
        with pytest.raises(BadInput, match="one metric, not logit_diff, probability"):
            call()


def test_metrics_of_answers(model, pairs):
    bare = TokenPairs(pairs.clean, pairs.corrupted)
    with pytest.raises(BadInput, match="needs right answers"):
        sweep(model, bare, quiet=True)
    sets = TokenPairs.of(model, CLEAN, CORRUPTED, [[11, 13]] * 2, [[12]] * 2)
    with pytest.raises(BadInput, match="these have sets: use log_odds"):
        sweep(model, sets, quiet=True)


def test_localising_refuses_what_is_no_number(model, pairs):
    with pytest.raises(BadInput, match="nan is nan in a clean or corrupted run of pair 0"):
        localise(model, pairs, metric=nan, quiet=True)


# ---------------------------------------------------------------------- places
def test_places(model, pairs):
    with pytest.raises(UnknownName, match="no layer 9"):
        cells_of(model, pairs, "mlp_post", ("layer", "neuron"), neurons={0: [1], 9: [1]})
    with pytest.raises(BadInput, match="'denoising' or 'noising', not 'denoise'"):
        patch_sets(model, pairs, [()], direction="denoise", quiet=True)
    with pytest.raises(BadInput, match="'denoising' or 'noising', not 'denoise'"):
        subspace(model, pairs, torch.ones(32), site="resid_post.1", direction="denoise")
    for cell in (Cell("z", 0, head=4), Cell("z", 0, head=-1), Cell("k", 0, head=2), Cell("resid_pre", 0, head=1)):
        for call in (lambda c: patch_sets(model, pairs, [[c]], quiet=True), lambda c: backup(model, pairs, [c])):
            with pytest.raises(UnknownName, match="head"):
                call(cell)
    for head in ((3, 0), (0, 4)):
        with pytest.raises(UnknownName, match="layers 0 to 2 of heads 0 to 3"):
            components.detect_head(model, "the cat sat", heads=[head])


def test_bars_of_effects_have_the_errors_of_effects(model, pairs):
    """Where clean and corrupted do not differ, effects are drawn: pairs that start apart do not blur them."""
    base, effect = torch.tensor([-50.0, 0.0, 50.0]), torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.5, 0.1]])
    cells = cells_of(model, pairs, "resid_pre", "layer", layers=[0, 1])
    ends = {"m": base.double()}
    found = Sweep(
        cells=cells, over=("layer",), columns=columns_of(cells, "layer", {}), numbers={"m": (base + effect).double()},
        clean=ends, corrupted=ends, direction="denoising",
    )  # fmt: skip
    expected = effect.std(1) / 3**0.5
    assert found.plot().data[0].error_y.array == pytest.approx(expected.tolist(), rel=1e-4)
    assert torch.allclose(found.effect_se().float(), expected, rtol=1e-4)
    assert standard_error(torch.ones(2, 1)).isnan().all()


# ---------------------------------------------------------------------- components
def test_padding_is_no_part_of_an_attribution(model):
    found = components.direct_attribution(model, CLEAN, 5, positions=None)
    assert found.values.shape[:2] == (2, 4)
    with pytest.raises(BadInput, match="tokens of the rows"):
        components.direct_attribution(model, [[1, 2, 3], [1, 2]], 5, positions=None)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_results_of_some_heads_are_not_mistaken_for_others(tiny_model, family):
    model = tiny_model(family)
    results = components.HeadResults(model.run(CLEAN, capture="z.0", heads=[2, 3]))
    with pytest.raises(BadInput, match="without heads="):
        _ = results[0, 1]


# ---------------------------------------------------------------------- lenses
def test_lenses_of_another_model(model, tiny_model):
    deeper = tiny_model("llama", num_hidden_layers=2)
    jacobian = lenses.JacobianLens.fit(deeper, CLEAN, skip_first=0, probes=2, quiet=True)
    wide = lenses.HeadLens.of(tiny_model("llama", hidden_size=64, head_dim=8), [(0, 0)])
    for lens in (jacobian, wide):
        for call in (
            lenses.gap,
            lambda *a, lens: lenses.languages(a[0], a[1], {"x": ["cat"], "y": ["dog"]}, lens=lens),
        ):
            with pytest.raises(Mismatch):
                call(model, CLEAN, [3], [4], lens=lens)
    with pytest.raises(BadInput, match="a lens is None"):
        lenses.gap(model, CLEAN, [3], [4], lens=5)
    scores = lenses.copying_effects(deeper, "token", 2, length=8, quiet=True)
    with pytest.raises(Mismatch, match="other heads"):
        lenses.HeadLens.of(model, scores)
    with pytest.raises(BadInput, match="n must be"):
        lenses.HeadLens.of(deeper, scores, n=0)
    with pytest.raises(BadInput, match="n counts prompts"):
        lenses.copying_pairs(model, "token", 0)


def test_a_mean_over_prompts_needs_all_of_them(model):
    ragged = [[1, 2, 3], [1, 2]]
    for call in (
        lambda: lenses.gap(model, ragged, [3], [4], positions=2, quiet=True),
        lambda: lenses.languages(model, ragged, {"x": ["cat"], "y": ["dog"]}, positions=2, quiet=True),
    ):
        with pytest.raises(BadInput, match="prompt 1 has 2 tokens and none at"):
            call()


def test_models_of_another_width_have_no_common_trajectory(model, tiny_model):
    with pytest.raises(BadInput, match="width and vocabulary"):
        lenses.trajectory(model, CLEAN, second_model=tiny_model("llama", hidden_size=64, head_dim=8))


def test_edits_of_some_tokens_would_reach_others_after_a_generation(model):
    everywhere = edits.scale("resid_post.0", 0.5)
    lenses.entropy_profile(model, "the cat sat", max_new_tokens=2, edits=iter([everywhere]), quiet=True)
    for edit in (everywhere.at(positions="last"), everywhere.at(scope="generated")):
        with pytest.raises(BadInput, match="edit all tokens"):
            lenses.entropy_profile(model, "the cat sat", max_new_tokens=2, edits=edit, quiet=True)


def test_targets_do_not_take_the_place_of_the_next_token():
    spelled = {1: "next", 2: "cat", 3: "cat"}
    names = {text: token for token, text in reversed(spelled.items())}
    model = SimpleNamespace(str_token=spelled.get, to_single_token=lambda given: names.get(given, given))
    assert lenses.results.followed(model, ["next", 2, 3]) == {"next (1)": 1, "cat": 2, "cat (3)": 3}


def test_separators_inside_a_text_do_not_end_a_row(model, tmp_path):
    """U+2028 and form feed are line ends for `str.splitlines`, not for CSV and JSON lines."""
    for mark in ("\u2028", "\x0c"):
        clean, corrupted = f"the cat{mark} sat", f"the dog{mark} sat"
        (tmp_path / "a.csv").write_text(f"clean,corrupted\n{clean},{corrupted}\n", encoding="utf-8")
        assert read_pairs(model, tmp_path / "a.csv").clean.rows() == model.tokens([clean]).rows()
    line = f'{{"clean": "{clean}", "corrupted": "{corrupted}"}}'.replace("\x0c", "\u2028")
    (tmp_path / "a.jsonl").write_text(line, encoding="utf-8")
    assert len(read_pairs(model, tmp_path / "a.jsonl")) == 1


def test_results_are_written_by_one_function(model, pairs, tmp_path):
    found = check_estimate(model, pairs, layers=[0], quiet=True)
    for result in (found, found.exact):
        for ending in (".csv", ".json", ".parquet"):
            assert result.save(tmp_path / f"a{ending}").stat().st_size > 0
        with pytest.raises(BadInput, match="cannot tell from 'a.xyz'"):
            result.save(tmp_path / "a.xyz")
