"""`monosem circuit` and `monosem graph`: what they print and write against the library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from monosem import graphs
from monosem.circuits import load_graph
from monosem.graphs.graph import SINK
from monosem.models import load_model
from tiny_dictionaries import tiny_dictionary


@pytest.fixture(scope="module")
def pairs(home, tmp_path_factory):
    """Prompts that end in another word, with the tokens that each makes likelier."""
    path, model = tmp_path_factory.mktemp("pairs") / "pairs.csv", load_model(home / "tiny", quiet=True)
    rows = [("clean", "corrupted", "right", "wrong")]
    for first, second in (("cat", "dog"), ("dog", "cat"), ("cat", "mat"), ("mat", "dog")):
        clean, corrupted = f"the {first}", f"the {second}"
        gap = model.run(clean).logits[0, -1] - model.run(corrupted).logits[0, -1]
        words = [number for text, number in model.tokenizer.get_vocab().items() if text[0] == "▁" and len(text) > 1]
        ranked = [f" {model.tokenizer.convert_ids_to_tokens(one)[1:]}" for one in sorted(words, key=gap.__getitem__)]
        rows.append((clean, corrupted, ranked[-1], ranked[0]))
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path


def test_a_circuit_with_its_report(run, home, pairs, tmp_path):
    out = tmp_path / "circuit"
    line = f"circuit tiny --pairs {pairs} --method eap --edges 40 --set check=4 --set sets=2 --set steps=2 --out {out}"
    done = run(line, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    scores, circuit = load_graph(out / "graph.json", load_model(home / "tiny", quiet=True))
    assert found["edges"][0]["edge"] in set(circuit.table["edge"])
    assert scores.top(1)["score"].item() == pytest.approx(found["edges"][0]["score"], rel=1e-5)
    assert (out / "report.html").exists()
    refused = run(f"circuit tiny --pairs {pairs} --method eapp --out {tmp_path / 'other'}")
    assert refused.exit_code != 0
    assert "no method 'eapp'" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("circuit nowhere --task ioi --set by=both", "by: "),
        ("circuit nowhere --task ioi --n 1", "--n 2"),
        ("circuit nowhere --task ioi --out text.jsonl", "cannot write"),
        ("latents index nowhere --text text.jsonl --out concept", "cannot write"),
        ("latents index nowhere --text text.jsonl --out text.jsonl", "no latent index"),
        ("compare-methods french --model nowhere --out new --set by=1", "by: no such field"),
        ("compare-methods french --model nowhere --out text.jsonl", "cannot write"),
        ("benchmark nowhere --out text.jsonl", "cannot write"),
        ("benchmark nowhere --tasks cor --out new", "did you mean 'core'"),
        ("benchmark nowhere --tasks core --set core.tokens=5 --out new", "settings of core: tokens"),
        ("benchmark nowhere --tasks core --set scr.most=x --out new", "settings of scr: most"),
        ("lens train --model nowhere --text text.jsonl --out text.jsonl", "cannot write"),
        ("lens train --kind jacobian --model nowhere --text text.jsonl --out text.jsonl", "cannot write"),
        ("circuit nowhere --pairs text.jsonl --joint", "leave --joint out"),
        ("circuit nowhere --pairs missing.csv", "missing.csv: it does not exist"),
        ("circuit nowhere --pairs text.jsonl", "needs a column 'clean'"),
        ("circuit nowhere --task ioi --method edge-pruning", "ms.circuits.learn_circuit does it"),
        ("graph nowhere cat --neurons down", "no rule for neurons 'down'"),
        ("graph nowhere cat --memory lots", "not 'lots'"),
        ("graph nowhere cat --keep 0", "--keep is a share"),
        ("graph nowhere cat --head 1", "LAYER.HEAD"),
        ("patch localise nowhere --pairs text.jsonl --joint", "leave --joint out"),
        ("patch paths nowhere --pairs text.jsonl --joint --senders z --receivers logits", "leave --joint out"),
        ("latents matter nowhere --pairs text.jsonl --joint", "leave --joint out"),
        ("probe fit nowhere sentimant", "did you mean 'sentiment'"),
        ("probe fit nowhere emotions", "say --positive LABEL"),
        ("probe fit nowhere sentiment --permutations 5", "10 or more, not 5"),
        ("probe fit nowhere sentiment --save text.jsonl/probe.safetensors", "cannot write"),
        ("distance fit nowhere sentimant --save new.safetensors", "did you mean 'sentiment'"),
        ("distance fit nowhere sentiment --kind maha --save new.safetensors", "no kind of distance 'maha'"),
        ("distance fit nowhere sentiment --save text.jsonl/usual.safetensors", "cannot write"),
        ("direction fit nowhere --concept french --save text.jsonl/found.safetensors", "cannot write"),
        ("direction select nowhere --concept french --save text.jsonl/found.safetensors", "cannot write"),
        ("sweep nowhere --out text.jsonl", "cannot write"),
        ("latents index nowhere --text text.jsonl --leave-out (", "not a regular expression"),
        ("latents absorbers nowhere --set words_per_letter=-1", "words_per_letter"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(run, tmp_path, line, says):
    refused = run(line.replace("--out concept", f"--out {tmp_path}"))
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert "nowhere" not in refused.stderr


def test_a_graph_as_a_user_makes_it(run, home, tmp_path):
    """In a process of its own."""
    page, file = tmp_path / "graph.html", tmp_path / "graph.json"
    command = [sys.executable, "-m", "monosem", "graph", "tiny", "the cat sat", "--nodes", "12", "--keep", "1"]
    done = subprocess.run([*command, "--out", str(file)], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = graphs.attribution_graph(load_model(home / "tiny", quiet=True), "the cat sat", n_nodes=12, quiet=True)
    read = graphs.read_graph(file)
    assert sorted(read.table["id"]) == sorted(whole.table["id"])
    said = done.stdout + done.stderr
    assert f"replacement {whole.scores['replacement']:.2f}" in said
    assert ("without nodes at the first token" in said) == (whole.at_first_token > SINK)
    assert run(f"graph tiny cat --nodes 5 --head 1.2 --out {page}").exit_code == 0
    assert "<script" in Path(page).read_text(encoding="utf-8")
    for wrong, says in [("1", "LAYER.HEAD"), ("1.99", "heads 0 to"), ("77.0", "layer 77")]:
        refused = run(f"graph tiny cat --nodes 5 --head {wrong} --out {page}")
        assert refused.exit_code != 0
        assert says in refused.stderr
    refused = run("graph tiny cat --transcoder nowhere")
    assert refused.exit_code != 0
    assert "nowhere" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("format", ["saelens", "circuit-tracer"])
def test_a_transcoder_of_another_model_is_refused(run, tmp_path, format):
    """What its file says counts: sites and widths are right."""
    sites = {"site": "mlp_input.1", "site_out": "mlp_out.1", "transcoder": True, "name": "foreign"}
    tiny_dictionary("relu", model_name="google/gemma-2-2b", **sites).save(tmp_path, format=format)
    file = tmp_path if format == "saelens" else tmp_path / "layer_1.safetensors"
    refused = run(f"graph tiny cat --nodes 5 --transcoder {file}")
    assert refused.exit_code != 0
    assert "was made for 'google/gemma-2-2b', not" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
