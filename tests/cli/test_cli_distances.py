"""`monosem distance`: what it prints against the library."""

import json

import pandas as pd
import pytest

from monosem import probes
from monosem.cli.distances import _best
from monosem.models import load_model

USUAL = [f"{a} {who} is {how}" for a in ("the", "a", "one") for who in ("cat", "dog", "man") for how in ("good", "bad")]
NEW = ["the king is good", "a queen is bad", "one child is good", "the moon is bad"]
FEW = ["four four two three", "sat on was or", "night sun sun night"]
ODD = ["three four five three four", "on on on sat sat", "moon moon sun night night", "was was or or was"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, texts in (("usual", USUAL), ("new", NEW), ("odd", ODD), ("one", USUAL[:1])):
        (folder / f"{name}.txt").write_text("\n".join(texts))
    rows = [(f"{text} {number}", text.split()[-1]) for text in USUAL for number in ("one", "two", "three")]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "labelled.csv", index=False)
    return folder


def test_fit_score_and_compare(run, home, files, tmp_path):
    saved = tmp_path / "usual.safetensors"
    done = run(f"distance fit tiny {files}/usual.txt --save {saved} --position last")
    assert done.exit_code == 0, done.output
    model = load_model(home / "tiny", quiet=True)
    groups = probes.near_duplicates(USUAL)
    rows = probes.read_rows(model, USUAL, [0] * len(USUAL), groups=groups).with_classes([0] * len(USUAL))
    seen, held = probes.held_out(rows)
    expected = probes.Distances.fit(seen, "mahalanobis++").against(held)
    found = probes.Distances.load(saved)
    assert found.held.flatten().tolist() == pytest.approx(expected.held.flatten().tolist(), rel=1e-4)
    odd = probes.read_rows(model, ODD, [0] * len(ODD))
    done = run(f"distance score {saved} --model tiny --json", *ODD)
    assert done.exit_code == 0, done.output
    table = pd.DataFrame(json.loads(done.stdout))
    assert table["p"].tolist() == pytest.approx(expected.p_values(odd, how="mean").tolist())
    assert table["distance"].tolist() == pytest.approx(expected.combined(odd).tolist(), rel=1e-4)
    done = run(f"distance compare {saved} {files}/new.txt {files}/odd.txt --model tiny --json")
    assert done.exit_code == 0, done.output
    new = probes.read_rows(model, NEW, [0] * len(NEW))
    table = pd.DataFrame(json.loads(done.stdout))
    wanted = probes.ood({"mahalanobis++": expected}, new, {"odd": odd}).table
    assert table["auroc"].tolist() == pytest.approx(wanted["auroc"].tolist())
    assert "together" in table["place"].tolist()
    (tmp_path / "few.txt").write_text("\n".join(FEW))
    done = run(
        f"distance compare {saved} {files}/new.txt {files}/odd.txt --examples {tmp_path}/few.txt --model tiny --json"
    )
    assert done.exit_code == 0, done.output
    table = pd.DataFrame(json.loads(done.stdout))
    ensemble = probes.LayerEnsemble.fit(expected, probes.read_rows(model, FEW, [0] * len(FEW)))
    wanted = probes.ood({"ensemble": ensemble}, new, {"odd": odd}).table
    assert table[table["detector"] == "ensemble"]["auroc"].tolist() == pytest.approx(wanted["auroc"].tolist())


def test_every_kind_of_unusual_texts_is_shown():
    """Where one kind is found at every place and the other at none, and whatever stands for all places together."""
    single = [f"resid_post.{layer}@mean" for layer in range(30)]
    rows = [("far", place, 0.9 + layer / 1000) for layer, place in enumerate(single)]
    rows += [("near", place, 0.5 + layer / 1000) for layer, place in enumerate(single)]
    rows += [("far", "together", 0.8), ("near", "together", 0.4)]
    shown = _best(pd.DataFrame(rows, columns=["against", "place", "auroc"]), single)
    assert list(shown["against"]) == ["far"] * 10 + ["near"] * 10
    assert list(shown["place"]) == [*single[:-10:-1], "together"] * 2


def test_usual_texts_that_are_not_like_the_fitted_ones_are_named(run, files, tmp_path):
    saved = tmp_path / "half.safetensors"
    done = run(f"distance fit tiny {files}/labelled.csv --save {saved} --held-out 0.5 --position last")
    assert done.exit_code == 0, done.output
    done = run(f"distance compare {saved} {files}/odd.txt {files}/new.txt --model tiny")
    assert done.exit_code == 0, done.output
    assert "they are not like the texts that the distance was fitted on" in done.stderr
    (tmp_path / "alike.txt").write_text(
        "\n".join([*[f"{text} four" for text in USUAL], *USUAL[:1], "the cat is good one"])
    )
    done = run(f"distance compare {saved} {tmp_path}/alike.txt {files}/odd.txt --model tiny")
    assert done.exit_code == 0, done.output
    assert "1 of 20 texts" in done.stderr  # the one that was fitted


def test_labels_are_classes(run, files, tmp_path):
    saved = tmp_path / "classes.safetensors"
    done = run(f"distance fit tiny {files}/labelled.csv --save {saved} --kind relative --site resid_post.1")
    assert done.exit_code == 0, done.output
    found = probes.Distances.load(saved)
    assert found.parts["means"].shape == (1, 2, 32)
    said = run(f"distance score {saved} --model tiny", "the cat").stdout
    assert "relative" in said
    held = probes.Distances.load(saved).held.shape[1]
    assert f"with {held} held-out texts p is at least {1 / (held + 1):.2g}" in " ".join(said.split())


def test_held_out_groups_are_whole_and_about_as_many_as_asked():
    import torch

    groups = torch.arange(40) // 4
    rows = probes.Rows(torch.randn(1, 40, 3), torch.zeros(40), groups=groups)
    seen, held = probes.held_out(rows, 0.3, seed=1)
    assert (len(seen), len(held)) == (28, 12)
    assert not set(seen.groups.tolist()) & set(held.groups.tolist())
    assert set(probes.held_out(rows, 0.3, seed=2)[1].groups.tolist()) != set(held.groups.tolist())


def test_bad_input_is_one_line(run, files, tmp_path):
    saved = tmp_path / "x.safetensors"
    run(f"distance fit tiny {files}/usual.txt --save {saved} --site resid_post.1")
    (files / "empty.txt").write_text("\n \n")
    for line, message in [
        (f"distance fit tiny {files}/usual.txt --save {saved} --kind mahal", "no kind of distance 'mahal'"),
        (f"distance fit tiny {files}/usual.txt --save {saved} --kind relative", "one class is 0"),
        (f"distance fit tiny {files}/one.txt --save {saved}", "cannot be parted"),
        (f"distance fit tiny {files}/none.txt --save {saved}", "none.txt"),
        (f"distance fit nomodel {files}/empty.txt --save {saved}", "empty.txt holds no texts; write one a line"),
        (f"distance compare {saved} {files}/new.txt {files}/new.txt --model tiny", "4 texts of"),
        (f"distance compare {saved} {files}/new.txt --model tiny", "unusual ones"),
        (f"distance compare {saved} {files}/usual.txt {files}/odd.txt --model tiny", "fitted on all texts"),
        (f"distance score {files}/usual.txt cat --model tiny", "safetensors"),
    ]:
        done = run(line)
        assert done.exit_code == 2, done.output
        assert message in done.stderr.splitlines()[-1]
        assert len([one for one in done.stderr.splitlines() if one.startswith("error:")]) == 1
