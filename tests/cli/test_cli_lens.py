"""`monosem lens` as a user drives them, against the library's own results."""

import json
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from monosem import lenses
from monosem.cli import app
from monosem.cli.options import layer_numbers
from monosem.errors import BadInput
from monosem.models import load_model
from tiny import tiny_hf, tiny_tokenizer

PROMPT, OTHER = "the cat sat on the mat", "the dog sat on the mat"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lens")
    tiny_hf("gemma2").save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    words = "the a cat dog sat on mat ran to big small red blue and or is was it he she they we you"
    draw = random.Random(0)
    lines = [json.dumps({"text": " ".join(draw.choices(words.split(), k=100))}) for _ in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder


def monosem(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def succeed(*arguments: object) -> str:
    result = monosem(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_logit_lens_in_the_terminal(home: Path) -> None:
    out = succeed("lens", "logit", home / "tiny", PROMPT, "--target", " cat", "--top", 2, "--layers", "0,-1", "-q")
    seen = lenses.logit(load_model(home / "tiny", quiet=True), PROMPT, targets=" cat", layers=[0, 2], top=2)
    lines = [line for line in out.splitlines() if "resid_post" in line]
    assert len(lines) == 2
    for index, line in enumerate(lines):
        cell = (index, 0, 5)
        words = [f"{w!r} {p:.2f}" for w, p in zip(seen.top_tokens(*cell), seen.top_probabilities[cell].tolist())]
        assert line.split()[0] == f"resid_post.{(0, 2)[index]}"
        assert "  ".join(words) in line
        assert str(int(seen.ranks[" cat"][cell])) in line.split()
    assert "after ' mat' (token 5" in out
    assert "after ' sat'" in succeed("lens", "logit", home / "tiny", PROMPT, "--position", 2, "-q")


def test_json_and_files(home: Path, tmp_path: Path) -> None:
    rows = json.loads(succeed("lens", "logit", home / "tiny", PROMPT, OTHER, "--json", "--out", tmp_path / "lens.csv"))
    assert len(rows) == 3 * 12 == len(pd.read_csv(tmp_path / "lens.csv"))
    table = lenses.logit(load_model(home / "tiny", quiet=True), [PROMPT, OTHER]).table
    assert [row["kl"] for row in rows] == pytest.approx(table.kl.to_list(), abs=1e-6)
    page = tmp_path / "lens.html"
    succeed("lens", "logit", home / "tiny", PROMPT, "--value", "rank", "--target", " dog", "--out", page, "-q")
    assert "log10 rank of" in page.read_text()


def test_the_other_kinds(home: Path, tmp_path: Path) -> None:
    model = load_model(home / "tiny", quiet=True)
    rows = json.loads(
        succeed("lens", "gap", home / "tiny", PROMPT, "--a", " good", "--a", " happy", "--b", " bad", "--json")
    )
    want = lenses.gap(model, PROMPT, [" good", " happy"], " bad").table
    assert [row["log_odds"] for row in rows] == pytest.approx(want.log_odds.to_list(), abs=1e-5)
    rows = json.loads(succeed("lens", "entropy", home / "tiny", PROMPT, "--max-new-tokens", 3, "--json"))
    assert len(rows) == 3 * 3
    rows = json.loads(succeed("lens", "trajectory", home / "tiny", PROMPT, OTHER, "--json"))
    want = lenses.trajectory(model, PROMPT, OTHER).table
    assert [row["js"] for row in rows] == pytest.approx(want.js.to_list(), abs=1e-6)
    for kind, extra in (("entropy", []), ("gap", ["--a", " good", "--b", " bad"]), ("trajectory", [])):
        page = tmp_path / f"{kind}.html"
        out = succeed("lens", kind, home / "tiny", PROMPT, OTHER, *extra, "--out", page, "-q")
        assert "resid_post.2" in out
        assert page.stat().st_size > 100_000


def test_a_lens_from_a_file_wherever_a_lens_is_taken(home: Path, tmp_path: Path) -> None:
    model = load_model(home / "tiny", quiet=True)
    lens = lenses.JacobianLens.fit(model, [PROMPT], layers=[1], skip_first=1, quiet=True)
    file = tmp_path / "lens.pt"
    torch.save({"J": {1: lens.jacobians[1]}, "n_prompts": 1, "d_model": 32, "source_layers": [1]}, file)
    places = ["resid_post.1", "resid_post.2"]
    for kind, extra in (
        ("read", []),
        ("tuned", []),
        ("entropy", []),
        ("gap", ["--a", " good", "--b", " bad"]),
        ("languages", ["--words", "one=cat", "--words", "two=dog"]),
        ("trajectory", [OTHER]),
    ):
        line = ["lens", kind, home / "tiny", PROMPT, *extra, "--lens", file]
        rows = json.loads(succeed(*line, "--json"))
        assert list(dict.fromkeys(row["site"] for row in rows)) == places
        page = tmp_path / f"{kind}.html"
        out = succeed(*line, "--out", page, "-q")
        assert "Jacobian lens" in out
        assert "Jacobian lens of tiny" in page.read_text()
    rows = json.loads(succeed("lens", "read", home / "tiny", PROMPT, "--lens", file, "--json"))
    assert [row["kl"] for row in rows] == pytest.approx(lens(model, PROMPT).table.kl.to_list(), abs=1e-5)
    assert "holds no lens" in monosem("lens", "read", home / "tiny", PROMPT, "--lens", tmp_path).output


def test_languages(home: Path, tmp_path: Path) -> None:
    line = [
        "lens",
        "languages",
        home / "tiny",
        PROMPT,
        OTHER,
        "--words",
        "pets=cat, dog",
        "--words",
        "people=man,child",
    ]
    rows = json.loads(succeed(*line, "--json"))
    words = {"pets": ["cat", "dog"], "people": ["man", "child"]}
    want = lenses.languages(load_model(home / "tiny", quiet=True), [PROMPT, OTHER], words).table
    assert [row["probability"] for row in rows] == pytest.approx(want.probability.to_list(), rel=1e-5)
    assert [row["language"] for row in rows] == want.language.to_list()
    out = succeed(*line, "--out", tmp_path / "l.csv", "--layers", "-1")
    assert len(pd.read_csv(tmp_path / "l.csv")) == 2
    assert "resid_post.2" in out
    assert "resid_post.1" not in out


def test_patchscopes(home: Path, tmp_path: Path) -> None:
    model = load_model(home / "tiny", quiet=True)
    line = ["lens", "patchscope", home / "tiny", PROMPT, "--into", OTHER]
    want = lenses.patchscope(model, PROMPT, OTHER, max_new_tokens=2, quiet=True)
    rows = json.loads(succeed(*line, "--max-new-tokens", 2, "--json"))
    assert [row["prediction"] for row in rows] == want.table.prediction.to_list()
    assert [row["text"] for row in rows] == want.table.text.to_list()
    out = succeed(*line, "--position", 2, "--layers", "0,-1", "--top", 2, "--max-new-tokens", 2, "-q")
    assert "patchscope of ' sat' (token 2 of prompt 0)" in out
    for layer in (0, 2):
        shown = next(row for row in out.splitlines() if row.strip().startswith(f"{layer} "))
        ids, chances = (part[layer, 0, 2, :2].tolist() for part in (want.top_ids, want.top_probabilities))
        for token, chance in zip(ids, chances):
            assert f"{model.str_token(token)!r} {chance:.2f}" in shown
        assert want.texts is not None
        assert want.texts[layer][0][2].strip() in shown
    page = tmp_path / "p.html"
    both = succeed("lens", "patchscope", home / "tiny", PROMPT, OTHER, "--out", page, "-q", "--into", PROMPT)
    assert both.count("patchscope of ' mat' (token 5 of prompt") == 2
    assert page.stat().st_size > 100_000


def test_what_is_wrong_is_one_line(home: Path) -> None:
    tiny = home / "tiny"
    wrong: list[tuple[list[object], str]] = [
        (["logits", tiny, PROMPT], "did you mean 'logit'"),
        (["gap", tiny, PROMPT], "--a"),
        (["trajectory", tiny, PROMPT], "compares two prompts; 1"),
        (["tuned", tiny, PROMPT], "no tuned lens"),
        (["logit", tiny, PROMPT, "--layers", "5"], "'5' is not inside 0:3"),
        (["logit", tiny, PROMPT, "--position", 9], "has 6 tokens"),
        (["logit", tiny, PROMPT, "--target", " xylophone"], "one is needed"),
        (["logit", tiny, PROMPT, "--out", "x.png"], "end it in .html"),
        (["logit", tiny, PROMPT, "--value", "rank"], "add --out"),
        (["trajectory", tiny, PROMPT, OTHER, "--value", "js"], "add --out"),
        (["trajectory", tiny, PROMPT, OTHER, "--value", "rank"], "there are kl, js, tv"),
        (["logit", tiny, PROMPT, "--into", OTHER], "No such option: --into"),
        (["entropy", tiny, PROMPT, "--target", " cat"], "No such option: --target"),
        (["patchscope", tiny, PROMPT, "--into", OTHER, "--site", "attn_out"], "a patchscope moves the stream"),
        (["patchscope", tiny, PROMPT, "--into", OTHER, "--position", 9], "prompt 0 has 6 tokens"),
        (["languages", tiny, PROMPT, "--words", "x=cat"], "at least two languages"),
        (["languages", tiny, PROMPT, "--words", "cat"], "write NAME=WORD,WORD"),
    ]
    for arguments, message in wrong:
        result = monosem("lens", *arguments, "-q")
        assert (result.exit_code, message in result.stderr) == (2, True), result.output
        assert len(result.stderr.strip().splitlines()) == 1


def test_training_and_looking_through_the_result(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["lens", "train", "--model", home / "tiny", "--text", home / "text.jsonl", "--out", run, "--rank", 8]
    arguments += ["--steps", 10, "--batch-tokens", 64, "--context", 16, "--held-out", home / "text.jsonl", "-q"]
    out = succeed(*arguments)
    assert out.strip().endswith(str(run / "lens"))
    line = next(line.split() for line in out.splitlines() if "resid_pre.0" in line)
    assert float(line[1]) < float(line[2])
    lens = lenses.TunedLens.load(run / "lens")
    assert lens.header.metadata["training"]["init"] == "regression"
    assert (lens.header.rank, lens.header.metadata["steps"]) == (8, 10)
    again = succeed(*arguments)  # it is done: nothing is trained twice
    assert again == out
    rows = json.loads(succeed("lens", "tuned", home / "tiny", PROMPT, "--lens", run / "lens", "--json"))
    want = lenses.tuned(load_model(home / "tiny", quiet=True), PROMPT, lens).table
    assert [row["kl"] for row in rows] == pytest.approx(want.kl.to_list(), abs=1e-6)
    refused = monosem(*arguments, "--lr", "0.5")
    assert refused.exit_code == 2
    assert "lr: None, now 0.5" in refused.stderr
    short = monosem(
        "lens", "train", "--model", home / "tiny", "--text", home / "text.jsonl", "--out", tmp_path / "b", "--paper"
    )
    assert short.exit_code == 2
    both = monosem(*arguments, "--paper")
    assert "--paper sets steps, batch_tokens, context, optimizer, init, lr; leave --steps out" in both.stderr
    bad = monosem(*arguments, "--optimizer", "adamw")
    assert "optimizer" in bad.stderr
    assert torch.equal(lens[0].bias, lenses.TunedLens.load(run / "lens")[0].bias)


NO_SETTINGS = [
    *(("future", entry) for entry in ("offsets=x", "offsets=[-1]", "ridge=nan", "ridge=-1", "batch_size=0")),
    *(("head", entry) for entry in ("prompts=x", "heads=x", "heads=0", "fold=x", "copying=x", "windows=1")),
    *(("soft-prompt", entry) for entry in ("steps=x", "lr=nan", "offsets=x", "skip_first=-1", "per_text=0", "text=3")),
    *(("jacobian", entry) for entry in ("layers=x", "probes=0", "skip_first=-1", "length=x", "batch_size=true")),
]


def test_other_kinds_of_lenses_are_trained(home: Path, tmp_path: Path) -> None:
    model = load_model(home / "tiny", quiet=True)
    line = ["lens", "train", "--model", home / "tiny", "--text", home / "text.jsonl", "--set", "windows=6"]
    line += ["--set", "length=24", "-q"]
    kinds = {
        "jacobian": (["layers=[1]", "skip_first=2", "probes=4"], lenses.JacobianLens),
        "future": (["layers=[0,2]", "offsets=[0,1]"], lenses.FutureLens),
        "head": (["prompts=2", "heads=3"], lenses.HeadLens),
        "soft-prompt": (["layer=1", "steps=2", "batch_size=4"], lenses.SoftPrompt),
    }
    for kind, (settings, cls) in kinds.items():
        chosen = [part for setting in settings for part in ("--set", setting)]
        run = tmp_path / kind
        assert succeed(*line, "--kind", kind, *chosen, "--out", run).strip() == str(run / "lens")
        lens = cls.load(run / "lens")
        lens.check(model)
        if kind in ("jacobian", "head"):
            rows = json.loads(succeed("lens", "read", home / "tiny", PROMPT, "--lens", run / "lens", "--json"))
            assert [row["kl"] for row in rows] == pytest.approx(lens(model, PROMPT).table.kl.to_list(), abs=1e-5)
    told = {kind: monosem(*line[:-1], "--kind", kind, "--out", tmp_path / kind).stderr for kind in kinds}
    begins_again = {kind for kind, text in told.items() if f"a {kind} lens is made in one go: interrupted" in text}
    assert begins_again == {"future", "head", "soft-prompt"}
    assert lenses.JacobianLens.load(tmp_path / "jacobian" / "lens").header.probes == 4
    assert lenses.FutureLens.load(tmp_path / "future" / "lens").header.offsets == [0, 1]
    for extra, message in (
        (["--kind", "jacobien"], "jacobian"),
        (["--kind", "future", "--set", "probes=3"], "future lens: probes: no such field"),
        (["--kind", "head", "--rank", 3], "--rank is of tuned lenses"),
        (["--kind", "head", "--held-out", home / "text.jsonl"], "--held-out measures tuned lenses"),
        *((["--kind", kind, "--set", entry], entry.split("=")[0]) for kind, entry in NO_SETTINGS),
    ):
        done = monosem(*line, *extra, "--out", tmp_path / "bad")
        assert done.exit_code == 2
        assert message in done.stderr
        assert not (tmp_path / "bad").exists()


def test_a_folder_keeps_the_lens_that_it_holds(home: Path, tmp_path: Path) -> None:
    line = ["lens", "train", "--model", home / "tiny", "--text", home / "text.jsonl", "-q", "--out", tmp_path / "run"]
    head = ["--kind", "head", "--set", "windows=6", "--set", "length=24", "--set", "prompts=2"]
    said = json.loads(succeed(*line, *head, "--set", "heads=3", "--json"))
    assert said == {"lens": str(tmp_path / "run" / "lens")}
    kept = (tmp_path / "run" / "lens" / "lens.safetensors").read_bytes()
    succeed(*line, *head, "--set", "heads=3")
    for other in (
        [*head, "--set", "heads=2"],
        ["--kind", "future", "--set", "length=24"],
        ["--steps", 1, "--context", 16],
    ):
        refused = monosem(*line, *other)
        assert refused.exit_code == 2
        assert "holds a head lens" in refused.stderr
    assert (tmp_path / "run" / "lens" / "lens.safetensors").read_bytes() == kept


def test_settings_reach_the_lens(home: Path, tmp_path: Path) -> None:
    line = ["lens", "train", "--model", home / "tiny", "--text", home / "text.jsonl", "-q", "--set", "windows=4"]
    succeed(*line, "--kind", "jacobian", "--set", "length=40", "--set", "probes=2", "--out", tmp_path / "jacobian")
    assert lenses.JacobianLens.load(tmp_path / "jacobian" / "lens").header.length == 40
    # 1e-3 is text to YAML
    soft = ["--kind", "soft-prompt", "--set", "length=24", "--set", "lr=1e-3", "--set", "steps=1"]
    succeed(*line, *soft, "--out", tmp_path / "soft")
    assert lenses.SoftPrompt.load(tmp_path / "soft" / "lens").header.lr == 1e-3


def test_ranges_of_layers() -> None:
    assert layer_numbers(None, 5) is None
    assert layer_numbers("0:2,-1,1", 5) == [0, 1, 4]
    assert layer_numbers("3:", 5) == [3, 4]
    for text in ("a", "3:2", "-6", "4:9"):
        with pytest.raises(BadInput, match="--layers"):
            layer_numbers(text, 5)
