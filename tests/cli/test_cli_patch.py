"""`monosem patch` as a user drives it: a planted head, files of pairs, tasks, bad input, Ctrl-C."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from monosem.cli import app
from monosem.cli.patch.pairs import positions_of
from monosem.data import read_pairs
from monosem.models import Model, load_model
from monosem.patching import attribution, check_estimate, localise, paths, sweep, trace
from tiny import tiny_hf, tiny_tokenizer

CLEAN = ["the cat sat on a", "the dog ran to a", "they ran a big red"]
CORRUPTED = ["the cat ran on a", "the sun ran to a", "they sat a big red"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which only head 2 of layer 1 writes, and pairs whose answers it decides."""
    folder = tmp_path_factory.mktemp("patch")
    hf = tiny_hf("llama")
    for number, block in enumerate(hf.model.layers):
        block.mlp.down_proj.weight.data.zero_()
        weight = block.self_attn.o_proj.weight.data
        kept = weight[:, 16:24].clone()
        weight.zero_()
        if number == 1:
            weight[:, 16:24] = kept
    hf.save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    model = load_model(folder / "tiny", quiet=True)
    rows = [["clean", "corrupted", "right", "wrong"]]
    for clean, corrupted in zip(CLEAN, CORRUPTED):
        rows.append([clean, corrupted, *answers(model, clean, corrupted)])
    (folder / "pairs.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    (folder / "joint.csv").write_text("clean,corrupted,right,wrong\nthe cat sat,the dog sat, on mat, to the sea\n")
    (folder / "ragged.csv").write_text("clean,corrupted\nthe cat,the cat sat\nthe dog,the cat\n")
    return folder


def answers(model: Model, clean: str, corrupted: str) -> list[str]:
    """Two words between which the prompts decide differently."""
    one, other = (model.run(text).logits[0, -1] for text in (clean, corrupted))  # type: ignore[index]
    words = [
        (token, f" {text[1:]}")
        for text, token in tiny_tokenizer().get_vocab().items()
        if text[0] == "▁" and len(text) > 1
    ]
    gaps = [
        (float(one[a] - one[b] - other[a] + other[b]), right, wrong)
        for a, right in words
        for b, wrong in words
        if one[a] > one[b] and other[a] < other[b]
    ]
    return list(max(gaps)[1:])


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(home)
    return lambda line, *more: CliRunner().invoke(app, [*line.split(), *map(str, more)], prog_name="monosem")


def test_the_planted_head_and_the_report(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    done = run("patch localise tiny --pairs pairs.csv --positions end --controls 3", "--out", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert "attn_out" in done.stdout
    assert "backup heads: none" in done.stdout
    assert "1.00 [1.00, 1.00]" in done.stdout
    assert "Random sets of the same shape restore" in done.stdout
    assert "report.html" in done.stderr
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {"report.html", "report.md", "results.json", "config.yaml"}
    assert "head 1.2" in (tmp_path / "r" / "report.md").read_text()


def test_json_is_what_the_library_finds(run: Callable[..., Result], home: Path) -> None:
    done = run("patch localise tiny --pairs pairs.csv --positions=-1 --json --controls 0 --no-backup --metric log_odds")
    assert done.exit_code == 0, done.output
    held = json.loads(done.stdout)
    model = load_model(home / "tiny", quiet=True)
    pairs = read_pairs(model, home / "pairs.csv")
    found = localise(model, pairs, metric="log_odds", positions=[-1], controls=0, with_backup=False, quiet=True)
    assert [row["layer"] for row in held["found"]] == found.table["layer"].tolist() == [1, 1]
    assert held["found"][1]["head"] == 2
    assert held["sets"][0]["sufficiency"] == pytest.approx(found.sets["sufficiency"][0])
    assert held["config"]["metric"] == "log_odds"
    assert not (home / "runs").exists()


def test_no_folder_is_left_by_what_fails_before_it_begins(run: Callable[..., Result], tmp_path: Path) -> None:
    for line in ("patch localise nowhere --pairs pairs.csv --out", "evaluate nowhere --text text.jsonl --save"):
        assert run(f"{line} {tmp_path}/new/place").exit_code == 2
        assert not (tmp_path / "new").exists()


PLACES = "tiny --pairs pairs.csv --sites z --over layer,head --positions end --layers 1:"


@pytest.mark.parametrize(
    ("command", "more", "analysis", "options"),
    [
        ("sweep", "--method batched", sweep, {"method": "batched"}),
        ("sweep", "--direction noising", sweep, {"direction": "noising"}),
        ("estimate", "--steps 3", attribution, {"steps": 3}),
    ],
)
def test_sweeps_are_those_of_the_library(
    run: Callable[..., Result], home: Path, tmp_path: Path, command: str, more: str, analysis: Any, options: Any
) -> None:
    rows = json.loads(run(f"patch {command} {PLACES} {more} --json").stdout)
    model = load_model(home / "tiny", quiet=True)
    places: dict[str, Any] = {"over": ("layer", "head"), "positions": ["end"], "layers": [1, 2]}
    want = analysis(model, read_pairs(model, home / "pairs.csv"), "z", **places, quiet=True, **options).table
    assert len(rows) == 2 * 4
    assert [(row["layer"], row["head"]) for row in rows] == list(zip(want.layer, want["head"]))
    assert [row["effect"] for row in rows] == pytest.approx(want.effect.to_list(), abs=1e-5)
    page = tmp_path / "p.html"
    done = run(f"patch {command} {PLACES} {more} --top 1", "--out", page)
    first = done.stdout.strip().splitlines()[-1].split()
    assert first[:3] == ["z", "1", "2"]  # the planted head
    assert page.stat().st_size > 100_000
    assert f"written: {page}" in done.stderr


def test_the_estimate_is_checked(run: Callable[..., Result], home: Path) -> None:
    done = json.loads(run(f"patch compare {PLACES} --json").stdout)
    model = load_model(home / "tiny", quiet=True)
    places: dict[str, Any] = {"over": ("layer", "head"), "positions": ["end"], "layers": [1, 2]}
    want = check_estimate(model, read_pairs(model, home / "pairs.csv"), "z", **places, quiet=True)
    assert done["summary"][0]["pearson"] == pytest.approx(want.pearson(), abs=1e-5)
    assert len(done["cells"]) == 8
    assert "where they differ most" in run(f"patch compare {PLACES} -q").stdout


def test_paths_lead_through_the_planted_head(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    line = "patch paths tiny --pairs pairs.csv --senders z,mlp_out --receivers logits"
    rows = json.loads(run(f"{line} --json --thaw-mlps --direction denoising").stdout)
    model = load_model(home / "tiny", quiet=True)
    pairs = read_pairs(model, home / "pairs.csv")
    options: dict[str, Any] = {"direction": "denoising", "freeze_mlps": False, "quiet": True}
    want = paths(model, pairs, ["z", "mlp_out"], "logits", **options).table
    assert [row["effect"] for row in rows] == pytest.approx(want.effect.to_list(), abs=1e-5)
    done = run(f"{line} --top 1 -q", "--out", tmp_path / "paths.csv")
    assert "z.1.2" in done.stdout.strip().splitlines()[-1]
    assert (tmp_path / "paths.csv").exists()


def test_tasks_are_made_for_the_model(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fake(model: Model, **options: Any) -> Any:
        asked.update(options)
        return read_pairs(model, "pairs.csv")

    monkeypatch.setitem(__import__("monosem.data", fromlist=["TASKS"]).TASKS, "ioi", fake)
    line = "patch localise tiny --task ioi --template ABBA --corruption s2_flip --n 5 --seed 3 --positions end"
    line += " --json --controls 0"
    assert run(line).exit_code == 0
    assert asked == {"n": 5, "seed": 3, "template": "ABBA", "corruption": "s2_flip"}


def test_solved_and_dropped_pairs_are_said(run: Callable[..., Result]) -> None:
    done = run("patch localise tiny --pairs pairs.csv --solved --positions end --json --controls 0 --no-backup")
    assert any("3 of 3 pairs kept" in note for note in json.loads(done.stdout)["notes"])
    done = run(
        "patch localise tiny --pairs ragged.csv --drop-unaligned --json --controls 0 --no-backup --positions end"
    )
    assert any("1 of 2 pairs left out (0)" in note for note in json.loads(done.stdout)["notes"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("patch localise tiny", "give --task NAME"),
        ("patch localise tiny --task ioi --pairs pairs.csv", "give --task NAME"),
        ("patch localise tiny --task iou", "did you mean 'ioi'"),
        ("patch localise tiny --task capitals --template ABBA", "--template goes with --task ioi"),
        ("patch localise tiny --task ioi --drop-unaligned", "go with --pairs"),
        ("patch sweep tiny --task ioi --joint", "--joint go with --pairs"),
        ("patch localise tiny --pairs joint.csv --joint", "these answers have several"),
        ("patch localise tiny --pairs pairs.csv --metric logitdiff", "did you mean 'logit_diff'"),
        ("patch localise tiny --pairs nothing.csv", "cannot read nothing.csv"),
        ("patch localise tiny --pairs ragged.csv", "or leave them out (drop_unaligned=True, --drop-unaligned)"),
        ("patch localise tiny --pairs pairs.csv --sites resid_pre", "chooses among attn_out and mlp_out"),
        ("patch localise tiny --pairs pairs.csv --positions middle", "no span 'middle'"),
        ("patch localise tiny --pairs pairs.csv --out pairs.csv/x", "choose another place"),
        ("patch sweep tiny --task iou", "did you mean 'ioi'"),
        ("patch sweep tiny --pairs pairs.csv --sites resid_pots", "did you mean 'resid_post'"),
        ("patch sweep tiny --pairs pairs.csv --over token", "no axis 'token'"),
        ("patch sweep tiny --pairs pairs.csv --layers 7", "--layers"),
        ("patch sweep tiny --pairs pairs.csv --method grown", "did you mean 'growing'"),
        ("patch sweep tiny --pairs pairs.csv --direction denoise", "denoising"),
        ("patch compare tiny", "give --task NAME"),
        ("patch paths tiny --pairs pairs.csv --senders q", "z"),
        ("patch paths tiny --pairs pairs.csv --direction denoise", "'denoising' or 'noising'"),
    ],
)
def test_what_the_user_can_fix_is_one_line(run: Callable[..., Result], line: str, message: str, tmp_path: Path) -> None:
    out = [] if "--out" in line else ["--out", tmp_path / ("r" if "localise" in line else "r.csv")]
    done = run(f"{line} --quiet", *out)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_interrupted_it_leaves_no_half_written_report(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("monosem.patching.localisation.job.causal_evidence", stop)
    done = run("patch localise tiny --pairs pairs.csv --positions end", "--out", tmp_path / "r")
    assert done.exit_code == 130
    assert not (tmp_path / "r").exists()


def test_positions_are_numbers_or_names() -> None:
    assert positions_of("end, s2,-1,4,--5,²") == ["end", "s2", -1, 4, "--5", "²"]
    assert positions_of("spans") == "spans"
    assert positions_of(None) is None


def test_answers_of_several_tokens(run: Callable[..., Result], home: Path) -> None:
    model = load_model(home / "tiny", quiet=True)
    pairs = read_pairs(model, home / "joint.csv", joint=True)
    found = sweep(model, pairs, "attn_out", "layer", metric="log_odds", quiet=True)
    done = json.loads(run("patch sweep tiny --pairs joint.csv --joint --sites attn_out --over layer --json").stdout)
    assert [row["value"] for row in done] == pytest.approx(found.mean().tolist(), abs=1e-5)
    assert done[0]["metric"] == "log_odds"
    assert "one is needed" in run("patch sweep tiny --pairs joint.csv").stderr


def test_trace_prints_what_the_function_finds(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    prompt = "the cat sat on the mat"
    line = "patch trace tiny --subject cat --samples 2 --of 0.5 --sd 1 --layers 0,1"
    rows = json.loads(run(f"{line} --window 2 --sites attn_out --json", prompt).stdout)
    found = trace(
        load_model(home / "tiny", quiet=True), prompt, "cat", sites="attn_out", window=2, layers=[0, 1], samples=2,
        of=0.5, sd=1.0, quiet=True,
    )  # fmt: skip
    assert [row["value"] for row in rows] == pytest.approx(found.mean().tolist(), abs=1e-6)
    assert [row["token"] for row in rows[:2]] == [" the", " cat*"]
    page = tmp_path / "trace.html"
    done = run(line, prompt, "--answer", " dog", "--out", page)
    assert "1 prompts, answers ' dog'" in done.stdout
    assert page.exists()
    assert "stands 0 times in prompt 0" in run("patch trace tiny --subject dog", prompt).stderr
