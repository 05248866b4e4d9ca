"""Sparse probing: splits, pooling, and sets whose answer is known."""

import gzip
import importlib
import json
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from monosem.benchmarks import DICTIONARY, RANDOM, RAW, Labelled, ProbingConfig, bundled_sets, labelled, sparse_probing
from monosem.benchmarks.labelled import clipped
from monosem.benchmarks.sparse_probing import binaries, held_out, mean_codes
from monosem.errors import BadFile, BadInput, MissingExtra, UnknownName
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

probing = importlib.import_module("monosem.benchmarks.sparse_probing")
FILL = ("the", "on", "mat", "sat", "ran", "and")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


def texts(n=120, words=("cat", "dog"), seed=0):
    rng = np.random.default_rng(seed)
    labels = [words[i % len(words)] for i in range(n)]
    return [f"the {' '.join(rng.permutation([*FILL, one, one]))}" for one in labels], labels


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    def write(labels, said):
        path = tmp_path_factory.mktemp("sets") / "animals.jsonl"
        path.write_text("".join(json.dumps({"text": t, "label": one}) + "\n" for t, one in zip(said, labels)))
        return str(path)

    return write


def test_negatives_and_splits_belong_to_the_seed_alone():
    said, labels = texts(150, ("cat", "dog", "bird"))
    one = Labelled("three", said, labels)
    torch.manual_seed(1)
    first = list(binaries(one, 0))
    torch.manual_seed(2)
    torch.rand(17)
    for a, b in zip(first, binaries(one, 0), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[1:], b[1:]))
    assert not torch.equal(first[0].train, next(binaries(one, 1)).train)
    assert [task.name for task in first] == ["bird", "cat", "dog"]
    for task in first:
        parts = [set(part.tolist()) for part in task[1:4]]
        assert len(set.union(*parts)) == sum(map(len, parts))  # no row in two parts
        for part in task[1:4]:
            assert int(task.positive[part].sum()) * 2 == len(part)
    assert len(list(binaries(Labelled("two", *texts()), 0))) == 1


def test_nothing_is_chosen_on_test_texts(model, monkeypatch, file):
    """With the labels of test rows turned over, the area above a curve is what was below it, for every arm and k."""
    said, labels = texts(120)
    config, found = ProbingConfig(sets=(file(labels, said),), ks=(1, 5), draws=20), []
    whole = probing.binaries

    def turned(one, seed):
        for task in whole(one, seed):
            positive = task.positive.clone()
            positive[task.test] = 1 - positive[task.test]
            yield task._replace(positive=positive)

    for split in (whole, turned):
        monkeypatch.setattr(probing, "binaries", split)
        table = sparse_probing(model, tiny_dictionary(), config, quiet=True).table
        found.append(table[table["measure"] == "auroc"]["value"].to_numpy())
    assert found[0] == pytest.approx(1 - found[1])
    assert np.abs(found[0] - 0.5).max() > 0.3


@pytest.mark.parametrize("kind", ["topk", "abstopk"])
def test_pooled_codes_are_those_of_each_prompt_alone(model, kind):
    sae = tiny_dictionary(kind)
    prompts = clipped(model, [*texts(9)[0], "the cat sat on the mat and ran and ran and ran"], 10)
    assert max(map(len, prompts)) == 10
    found = mean_codes(model, {"a": sae, "b": sae}, prompts, batch_size=4)
    assert torch.equal(found["a"], found["b"])
    skipper = sae.skipper(model)
    for ids, row in zip(prompts, found["a"]):
        run = model.run([ids], capture=sae.site)
        kept = skipper.counted(run.tokens, {str(sae.site): run[sae.site]})[0]
        assert not kept[0]
        expected = sae.encode(run[sae.site][0]).dense()[kept].mean(0)
        assert torch.allclose(row, expected, atol=1e-5)


def test_test_rows_have_scikit_learns_numbers():
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=90).round(1), np.arange(90) % 3 == 0
    found = held_out(scores, positive, draws=400, seed=0)
    assert found.auroc == pytest.approx(roc_auc_score(positive, scores))
    assert found.accuracy == pytest.approx(accuracy_score(positive, scores > 0))
    own = []
    for _ in range(400):
        rows = np.concatenate([rng.choice(np.where(positive == side)[0], (positive == side).sum()) for side in (0, 1)])
        own.append((roc_auc_score(positive[rows], scores[rows]), accuracy_score(positive[rows], scores[rows] > 0)))
    for drawn, other in zip((found.auroc_draws, found.accuracy_draws), np.array(own).T):
        assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(other, [0.1, 0.5, 0.9]), abs=0.02)


def test_words_are_found_and_chance_is_not(model, file):
    said, labels = texts(200)
    sae = tiny_dictionary(tensors=random_tensors(width=64))
    config = {"ks": (1, 16), "draws": 100}
    found = sparse_probing(model, sae, ProbingConfig(sets=(file(labels, said),), **config), quiet=True)
    assert set(found.headline) == {DICTIONARY, RANDOM, RAW}
    assert all(one.low <= one.value <= one.high for one in found.headline.values())
    assert found.headline[RAW].value > 0.95
    shuffled = list(np.random.default_rng(1).permutation(labels))
    chance = sparse_probing(model, sae, ProbingConfig(sets=(file(shuffled, said),), **config), quiet=True)
    assert chance.headline[DICTIONARY].low < 0.55
    assert chance.headline[DICTIONARY].value < found.headline[DICTIONARY].value
    assert set(found.table["n"]) == {1, 16}


def test_the_scale_of_a_latent_does_not_matter(model, file):
    said, labels = texts(120)
    weights = random_tensors(width=40)
    loud = torch.logspace(-2, 3, 40)
    quiet_one = tiny_dictionary("relu", weights)
    tensors = type(weights)(weights.W_enc * loud, weights.b_enc * loud, weights.W_dec / loud[:, None], weights.b_dec)
    config = ProbingConfig(sets=(file(labels, said),), ks=(1, 5), draws=20)
    a, b = (
        sparse_probing(model, one, config, quiet=True).table for one in (quiet_one, tiny_dictionary("relu", tensors))
    )
    own = a["arm"] == DICTIONARY
    assert a[own]["value"].to_numpy() == pytest.approx(b[own]["value"].to_numpy(), abs=1e-6)


def test_other_tools_numbers_stand_beside_ours(model, file):
    said, labels = texts(120)
    config = ProbingConfig(sets=(file(labels, said),), ks=(2,), draws=20, peers=True)
    table = sparse_probing(model, tiny_dictionary(), config, quiet=True).table
    assert {"accuracy (sae-bench)", "auroc (sae-probes)"} < set(table["measure"])


def test_bundled_sets_are_small_balanced_and_have_no_text_twice():
    assert len(bundled_sets()) == 6
    for name in bundled_sets():
        one = labelled(name)
        assert len(set(one.texts)) == len(one.texts), name
        counts = [one.labels.count(label) for label in one.classes]
        assert max(counts) <= 1.02 * min(counts), name
    few = labelled("languages").first(100)
    assert [few.labels.count(label) for label in few.classes] == [25] * 4
    assert few.texts[0] == labelled("languages").texts[0]


def test_sets_of_sae_probes_are_read_from_the_wheels_files(tmp_path, monkeypatch):
    zstandard = pytest.importorskip("zstandard")
    rows = "prompt,target\n" + "".join(f'"text, number {i}",{i % 2}\n' for i in range(60))
    home, info = tmp_path / "sae_probes" / "data" / "cleaned_data", tmp_path / "sae_probes-0.4.2.dist-info"
    home.mkdir(parents=True)
    info.mkdir()
    (home / "9_toy.csv.zst").write_bytes(zstandard.compress(rows.encode()))
    (tmp_path / "sae_probes" / "__init__.py").write_text("raise RuntimeError('imported')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sae-probes\nVersion: 0.4.2\n")
    (info / "RECORD").write_text("sae_probes/__init__.py,,\nsae_probes/data/cleaned_data/9_toy.csv.zst,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    one = labelled("sae-probes:9_toy")
    assert (one.texts[0], one.labels[:2]) == ("text, number 0", ["0", "1"])
    assert "sae_probes" not in sys.modules
    with pytest.raises(UnknownName, match="it has 9_toy"):
        labelled("sae-probes:")


def test_bad_sets(tmp_path):
    with pytest.raises(UnknownName, match="no set 'sentimet'; did you mean 'sentiment'"):
        labelled("sentimet")
    with pytest.raises(MissingExtra, match="pip install --no-deps sae-probes"):
        labelled("sae-probes:1_x")
    with pytest.raises(BadFile, match="cannot be read"):
        labelled(str(tmp_path / "none.csv"))
    short = tmp_path / "short.csv"
    short.write_text("text,label\n" + "a,b\n" * 30)
    with pytest.raises(BadInput, match="at least 20 texts of each of two labels"):
        labelled(str(short))
    short.write_text("text,label\n" + "a,b\nNA,c\n" * 30)
    with pytest.raises(BadInput, match=r"row 2 has no text \(30 such rows\)"):
        labelled(str(short))
    short.write_text("text,label\n" + "a,b\na,c\n" * 30)
    with pytest.raises(BadInput, match="1 texts have two labels, such as 'a'"):
        labelled(str(short))
    short.write_text("words,label\na,b\n")
    with pytest.raises(BadFile, match="needs the columns text and label"):
        labelled(str(short))
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"text": "a", "label": "b"}\n')[:12])
    with pytest.raises(BadFile, match="cannot be read"):
        labelled(str(broken))
