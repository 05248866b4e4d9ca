"""`monosem latents matter`: what it prints against the library, and what it refuses."""

import json

import pytest

from monosem.data import TokenPairs
from monosem.dictionaries import load_dictionary
from monosem.latents import exact_latents
from monosem.models import load_model


def test_a_prompt_and_its_answers(run, home, tmp_path):
    page = tmp_path / "scatter.html"
    line = "latents matter sae --exact 6 --steps 2 --methods attribution"
    done = run(f"{line} --json", "the cat sat", "--right", " mat", "--wrong", " dog")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    model = load_model(home / "tiny", quiet=True)
    pairs = TokenPairs.of(model, ["the cat sat"], ["the cat sat"], [" mat"], [" dog"])
    exact = exact_latents(model, pairs, load_dictionary(home / "sae"), quiet=True)
    known = dict(zip(exact.table["node"], exact.table["score"]))
    assert len(found["latents"]) == 6
    for row in found["latents"]:
        assert row["exact"] == pytest.approx(known[row["node"]], abs=1e-5)
    assert {row["method"] for row in found["summary"]} == {"attribution"}
    shown = run(f"{line} --out {page}", "the cat sat")  # the likeliest token's log probability
    assert shown.exit_code == 0, shown.stderr
    assert "log_probability" in shown.stdout
    assert "<script" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "more", "says"),
    [
        ("latents matter sae", [], "give --task NAME"),
        ("latents matter sae --task ioi", ["the cat"], "not both"),
        ("latents matter sae --other corrupted", ["the cat"], "no corrupted one"),
        ("latents matter sae --task ioi --right", [" mat"], "go with a PROMPT"),
        ("latents matter sae --methods gradient", ["the cat"], "no method 'gradient'"),
        ("latents matter sae --methods direct", ["the cat"], "metric='logit_diff'"),
        ("latents matter sae --right", [" not-a-token", "the cat"], "token"),
    ],
)
def test_what_does_not_go_together(run, line, more, says):
    refused = run(line, *more)
    assert refused.exit_code == 2, refused.stdout
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
