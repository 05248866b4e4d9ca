"""`monosem steer`: at which tokens the latent is changed, against the library's own selectors."""

import json

import pytest
from typer.testing import CliRunner

from monosem import edits, load_dictionary, load_model
from monosem.cli import app
from monosem.steering import compare

PROMPTS = ["the cat sat on", "a dog"]


def steered(home, *options):
    words = ["steer", str(home / "sae"), "3", "9", *PROMPTS, "--json", "--max-new-tokens", "4", *options]
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize("part", ["all", "prompt", "generated"])
def test_part_is_the_scope_of_the_edit(home, part):
    model, sae = load_model(str(home / "tiny"), quiet=True), load_dictionary(home / "sae")
    found = json.loads(steered(home, "--part", part).stdout)["prompts"]
    expected = compare(model, PROMPTS, edits.clamp(sae, 3, 9.0).at(scope=part), max_new_tokens=4).table
    assert [row["edited_text"] for row in found] == expected["edited_text"].tolist()
    assert [row["kl"] for row in found] == pytest.approx(expected["kl"].tolist(), abs=1e-5)
    assert all(row["kl"] == 0 for row in found) == (part == "generated")  # the prompt is left as it is


def test_what_cannot_be_selected_is_said(home):
    for options, words in [(("--part", "prmpt"), "did you mean 'prompt'"), (("--role", "user"), "no chat template")]:
        result = steered(home, *options)
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())
