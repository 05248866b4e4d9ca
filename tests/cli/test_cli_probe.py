"""`monosem probe`: what it prints against the library."""

import json
import math

import pandas as pd
import pytest

from monosem import probes
from monosem.benchmarks import labelled
from monosem.models import load_model
from tiny import tiny_hf, tiny_tokenizer

WHO = ["cat", "dog", "man", "woman", "child", "moon", "king", "queen", "sun", "night"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "feeling.csv"
    rows = [
        (f"{a} {who} is {word} {a}", word, who) for who in WHO for a in ("the", "a", "one") for word in ("good", "bad")
    ]
    pd.DataFrame(rows, columns=["text", "label", "group"]).to_csv(path, index=False)
    return path


def test_fit_evaluate_and_monitor(run, home, data, tmp_path):
    saved = tmp_path / "probe.safetensors"
    done = run(f"probe fit tiny {data} --position mean --save {saved} --target-fpr 0.25 --json")
    assert done.exit_code == 0, done.stderr
    table = pd.DataFrame(json.loads(done.stdout))
    model, given = load_model(home / "tiny", quiet=True), labelled(str(data))
    assert list(given.groups[:3]) == ["cat"] * 3
    groups = probes.near_duplicates(given.texts, given.groups)
    labels = [one == "good" for one in given.labels]
    rows = probes.read_rows(model, given.texts, labels, "resid_post", positions="mean", groups=groups)
    parts = probes.split(rows)
    choosing, quiet = probes.held_out(parts.validation, 0.5)  # the threshold is set on rows that chose nothing
    parts = parts._replace(validation=choosing)
    expected = probes.survey(parts, kinds=["logistic"]).table
    assert table["auroc"].tolist() == pytest.approx(expected["auroc"].tolist(), abs=1e-6)
    probe = probes.Probes.load(saved)
    assert str(probe.places[0]) == expected[expected["chosen"]]["place"].item()
    assert {"calibration", "threshold"} <= set(probe.parts)
    scores = probe.score(quiet.at(probe.places[0]))[0, ~quiet.y].sort().values
    assert float(probe.threshold[0]) == pytest.approx(float(scores[math.ceil((len(scores) + 1) * 0.75 - 1e-9) - 1]))

    done = run(f"probe evaluate {saved} {data} --model tiny --json")  # of its own set: the test texts
    assert done.exit_code == 0, done.stderr
    shown = {one["measure"]: one["value"] for one in json.loads(done.stdout)}
    assert f"{len(parts.train) + len(choosing) + len(quiet)} of {len(rows)} texts are left out" in done.stderr
    found = probes.measure(probe, parts.test.at(probe.places[0]))
    assert shown["auroc"] == pytest.approx(found.value("auroc").value, abs=1e-6)
    only = tmp_path / "trained.csv"
    seen = [text for part in (parts.train, choosing, quiet) for text in part.texts]
    pd.DataFrame({"text": seen, "label": ["good" if " good " in one else "bad" for one in seen]}).to_csv(only)
    done = run(f"probe evaluate {saved} {only} --model tiny")
    assert done.exit_code == 2
    assert "was fitted on all texts" in done.stderr

    done = run(f"probe monitor {saved} --model tiny --max-new-tokens 3", "the cat is good", "a dog")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("fires") == 2


@pytest.mark.parametrize(
    ("kind", "place"), [("stacked", "resid_post.0…resid_post.1@last"), ("gated_bipolar", "resid_post.1@all")]
)
def test_kinds_that_read_several_layers_or_every_token(run, home, data, tmp_path, kind, place):
    saved = tmp_path / "probe.safetensors"
    layers = "0,1" if kind == "stacked" else "1"
    done = run(f"probe fit tiny {data} --kind {kind} --layers {layers} --save {saved} --json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["place"] == place
    probe = probes.Probes.load(saved)
    assert (probe.kind, str(probe.places[0])) == (kind, place)
    done = run(f"probe evaluate {saved} {data} --model tiny --json")
    assert done.exit_code == 0, done.stderr
    shown = {one["measure"]: one["value"] for one in json.loads(done.stdout)}
    assert shown["auroc"] == pytest.approx(row["auroc"], abs=1e-6)
    done = run(f"probe monitor {saved} --model tiny", "the cat is good")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_bad_rows_are_one_line(run, data, tmp_path):
    whole = pd.read_csv(data)

    def written(name, table):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        return f"probe fit tiny {tmp_path}/{name}.csv --layers 1"

    for column in ("text", "label", "group"):
        table = whole.astype(object)
        table.loc[3, column] = None
        done = run(written(f"no_{column}", table))
        assert (done.exit_code, f"row 4 has no {column} (1 such rows)" in done.stderr) == (2, True), done.output
    one = pd.concat([whole[whole.label == "good"], whole[whole.label == "bad"].head(1)])
    for name, table, message in [
        ("one", one, "{'good': 30, 'bad': 1}"),
        ("both", pd.concat([whole, whole.head(4).assign(label="bad")]), "2 texts have two labels"),
        ("group", whole.assign(group="all"), "are of one group"),
        ("leak", whole.assign(group=whole.label), "are of one group"),
        ("columns", whole.rename(columns={"text": "words"}), "needs the columns text and label"),
    ]:
        done = run(written(name, table))
        assert (done.exit_code, message in done.stderr.splitlines()[-1]) == (2, True), done.output
        assert len([one for one in done.stderr.splitlines() if one.startswith("error:")]) == 1
    saved = tmp_path / "p.safetensors"
    assert run(f"probe fit tiny {data} --layers 1 --save {saved}").exit_code == 0
    other = tiny_hf("llama", num_hidden_layers=2)
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    done = run(f"probe monitor {saved} --model {tmp_path}/other", "the cat")
    assert (done.exit_code, "states of tiny, not of other" in done.stderr.splitlines()[-1]) == (2, True), done.output


def test_near_duplicates_are_in_one_part(run, home, data, tmp_path):
    """Texts that differ in a sign at the end, one of them in training, would flatter the test."""
    whole = pd.read_csv(data)
    table = pd.concat([whole, whole.assign(text=whole.text + " !")]).drop(columns="group")
    table.to_csv(tmp_path / "twice.csv", index=False)
    done = run(f"probe fit tiny {tmp_path}/twice.csv --layers 1 --save {tmp_path}/p.safetensors --json")
    assert done.exit_code == 0, done.output
    probe = probes.Probes.load(tmp_path / "p.safetensors")
    ours, theirs = (probe.seen([text + end for text in whole.text]) for end in ("", " !"))
    assert ours.tolist() == theirs.tolist()
    assert 0 < int(ours.sum()) < len(ours)


def test_bad_input_is_one_line(run, data, tmp_path):
    for line, message in [
        (f"probe fit tiny {data} --positive fine", "no label 'fine'"),
        (f"probe fit tiny {data} --kind logit", "no kind of probe 'logit'"),
        (f"probe fit tiny {data} --save {tmp_path}/p --target-fpr 0.001", "needs at least 999 negative rows"),
        (f"probe fit nomodel {data} --target-fpr 2", "target_fpr is a share between 0 and 1"),
        (f"probe fit nomodel {tmp_path}", "labelled texts are a .csv, .jsonl or .jsonl.gz file"),
        (f"probe evaluate {data} {data} --model tiny", "safetensors"),
        ("probe fit tiny languages", "say --positive LABEL"),
        (f"probe fit tiny {data} --site resid_post.1 --layers 0", "--site resid_post.1 names one layer"),
        (f"probe fit tiny {data} --kind mlp --position all", "reads one state of a text"),
    ]:
        done = run(line)
        assert done.exit_code == 2
        assert message in done.stderr.splitlines()[-1]
        assert len([one for one in done.stderr.splitlines() if one.startswith("error:")]) == 1
        assert done.stderr.splitlines()[-1].startswith("error:")
