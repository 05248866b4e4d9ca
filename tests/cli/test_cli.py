"""The command line as a user drives it: help, results against the library, bad input, Ctrl-C and resume, pipes."""

import html
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.main import get_command
from typer.testing import Result

import monosem
from monosem.activations import SkipRule
from monosem.cli import app
from monosem.cli.application import leaves
from monosem.cli.options import fields, latent_numbers
from monosem.cli.output import cell
from monosem.dictionaries import load_dictionary
from monosem.dictionaries.training import KINDS
from monosem.errors import BadInput
from monosem.files import json_value
from tiny import tiny_hf
from tiny_home import HAPPY, SAD, SITE, WIDTH, save_model

TRAIN = f"train --model tiny --site {SITE} --text text.jsonl --width 48 -k 4 --context 32 --batch-tokens 256"
TRAIN += " --buffer-tokens 2048 --quiet"

# --------------------------------------------------------------------------------------------------------------- help


def command_at(path: tuple[str, ...]) -> Any:
    command: Any = get_command(app)
    for name in path:
        command = command.commands[name]
    return command


COMMANDS = {" ".join(path): command_at(path) for path in leaves(get_command(app))}


def test_every_command_of_the_design_is_there() -> None:
    alone = [
        "demo",
        "study",
        "verify",
        "train",
        "evaluate",
        "benchmark",
        "compare-methods",
        "circuit",
        "explore",
        "graph",
        "robustness",
        "convert",
        "steer",
        "sweep",
    ]
    groups = {
        "patch": ["localise", "sweep", "estimate", "compare", "paths", "trace"],
        "lens": ["logit", "tuned", "read", "entropy", "gap", "languages", "trajectory", "patchscope", "train"],
        "components": ["heads", "direct"],
        "probe": ["fit", "evaluate", "monitor"],
        "direction": ["fit", "select", "show", "compare", "convert", "read", "calibrate", "steer"],
        "distance": ["fit", "score", "compare"],
        "latents": [
            *("top", "matter", "search", "show", "explanations", "check", "index"),
            *("map", "splits", "cycle", "meta", "writes", "absorbers"),
        ],
        "list": ["models", "dictionaries", "organisms", "benchmarks", "concepts", "sites", "families"],
    }
    assert set(COMMANDS) == {*alone, *(f"{group} {name}" for group, names in groups.items() for name in names)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does_and_explains_every_option(name: str, run: Callable[..., Result]) -> None:
    done = run(f"{name} --help")
    assert done.exit_code == 0
    first = COMMANDS[name].help.split("\n\n")[0]
    assert 10 < len(first) <= 66
    assert first.endswith(".")
    assert first in done.stdout
    if "list" not in name:
        assert f"Example: monosem {name} " in COMMANDS[name].help
    assert [parameter.name for parameter in COMMANDS[name].params if not getattr(parameter, "help", None)] == []


def test_without_a_command_it_shows_the_help(run: Callable[..., Result]) -> None:
    for line in ("", "latents", "lens", "patch", "components"):
        done = run(line)
        assert done.exit_code == 0
        assert "Usage: monosem" in done.stdout


def test_version(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"monosem {monosem.__version__}\n"


# ------------------------------------------------------------------------------------------------------------ results


def test_verify_prints_every_identity_and_fails_when_one_does(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("verify tiny --json")
    rows = json.loads(done.stdout)
    assert done.exit_code == 0
    assert len(rows) > 20
    assert all(row["ok"] for row in rows)
    monkeypatch.setattr("monosem.models.checking.checks.TOLERANCE", {torch.float32: 0.0})
    broken = run("verify tiny")
    assert broken.exit_code == 1
    assert "False" in broken.stdout


def test_steer_shows_what_the_library_computes(run: Callable[..., Result], home: Path) -> None:
    done = run("steer sae 3 20 --json --max-new-tokens 5", "the cat", "a [bold] dog")
    model, sae = monosem.load_model(home / "tiny", quiet=True), load_dictionary(home / "sae")
    edit = monosem.edits.clamp(sae, 3, 20.0)
    found = json.loads(done.stdout)["prompts"]
    for row in found:
        before, after = (model.run(row["prompt"], edits=e, logits="last").logits for e in ([], [edit]))
        assert row["kl"] == pytest.approx(float(monosem.metrics.kl(before, after)), rel=1e-4)
        assert row["edited_text"] == model.generate(row["prompt"], edits=edit, max_new_tokens=5).texts[0]
        assert row["baseline_text"] == model.generate(row["prompt"], max_new_tokens=5).texts[0]
    shown = run("steer sae 3 20 --max-new-tokens 5", "a [bold] dog").stdout
    assert "a [bold] dog" in shown
    assert done.stderr == ""


@pytest.mark.parametrize("how", ["0 --add", "1 --scale"])
def test_a_change_by_nothing_changes_nothing(how: str, run: Callable[..., Result]) -> None:
    row = json.loads(run(f"steer sae 3 {how} --json", "the cat").stdout)["prompts"][0]
    assert row["kl"] == pytest.approx(0, abs=1e-6)
    assert row["edited_text"] == row["baseline_text"]


def test_what_is_left_out_is_said_and_can_be_edited(run: Callable[..., Result], home: Path) -> None:
    model, sae = monosem.load_model(home / "tiny", quiet=True), load_dictionary(home / "sae")
    for flags, everywhere in (("", False), ("--everywhere", True)):
        edit = monosem.edits.add_latent(sae, 3, 20.0, everywhere=everywhere)
        expected = monosem.steering.compare(model, ["the cat sat"], edit, max_new_tokens=3).summary["kl"]
        shown = json.loads(run(f"steer sae 3 20 --add --max-new-tokens 3 --json {flags}", "the cat sat").stdout)
        assert shown["summary"]["kl"] == pytest.approx(expected, rel=1e-4)
    assert "1 token left out (1 first)" in run("latents top sae", "the cat sat").stderr
    assert "left out" in run("latents search sae --positive happy.txt --negative sad.txt").stderr
    assert run("latents top sae --quiet", "the cat sat").stderr == ""


def test_top_lists_the_codes_of_each_token(run: Callable[..., Result], home: Path) -> None:
    table = pd.DataFrame(json.loads(run("latents top sae --json -k 4", "the cat sat").stdout))
    model, sae = monosem.load_model(home / "tiny", quiet=True), load_dictionary(home / "sae")
    codes = sae.encode(model.run("the cat sat", capture=SITE).last(SITE))
    last = table[table["last"]]
    assert dict(zip(last["latent"], last["value"])) == pytest.approx(
        {int(i): float(v) for i, v in zip(codes.indices[0], codes.values[0]) if v > 0}, rel=1e-5
    )
    shown = run("latents top sae -k 4", "the cat sat").stdout
    assert all(token in shown for token in ("' cat'", "' sat'", "last token"))


def test_what_a_foreign_dictionary_was_trained_on_can_be_said(run: Callable[..., Result], home: Path) -> None:
    model = monosem.load_model(home / "tiny", quiet=True)
    for said, rule in (("all", SkipRule.none()), ("first=2", SkipRule(first=2)), ("default", None)):
        sae = load_dictionary(home / "sae", skip=rule)
        expected = monosem.latents.top(model, sae, ["the cat sat on the mat"], n=4).table
        rows = json.loads(run(f"latents top sae --json -k 4 --trained-on {said}", "the cat sat on the mat").stdout)
        assert [row["position"] for row in rows] == expected["position"].tolist()
        changed = monosem.edits.add_latent(sae, 3, 20.0)
        kl = monosem.steering.compare(model, ["the cat sat"], changed, max_new_tokens=1).summary["kl"]
        line = f"steer sae 3 20 --add --max-new-tokens 1 --json --trained-on {said}"
        assert json.loads(run(line, "the cat sat").stdout)["summary"]["kl"] == pytest.approx(kl, rel=1e-4)
    assert (
        len({load_dictionary(home / "sae", skip=rule).skip for rule in (SkipRule.none(), SkipRule(first=2), None)}) == 3
    )


def test_search_ranks_by_contrast(run: Callable[..., Result], home: Path) -> None:
    rows = json.loads(run("latents search sae --positive happy.txt --negative sad.txt --json -k 3").stdout)
    model, sae = monosem.load_model(home / "tiny", quiet=True), load_dictionary(home / "sae")
    expected = monosem.latents.contrast(model, sae, HAPPY, SAD)
    assert [row["latent"] for row in rows] == expected.top(3)["latent"].tolist()
    assert "held_out_auroc" in rows[0]


def test_index_then_show_then_search(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "sae", tmp_path / "sae")
    sae = tmp_path / "sae"
    made = run(f"latents index {sae} --text text.jsonl --tokens 4000 --context 32 --examples 5 --quiet")
    assert (made.exit_code, made.stderr) == (0, "")
    assert made.stdout.strip() == str(sae / "index.sqlite")

    index = monosem.latents.index_of(load_dictionary(sae))
    assert index is not None
    latent = int(index.table["density"].idxmax())
    shown = json.loads(run(f"latents show {sae} {latent} --json").stdout)
    assert shown["density"] == pytest.approx(index.evidence(latent).density)
    assert len(shown["examples"]) <= 5
    page = tmp_path / "page.html"
    text = run(f"latents show {sae} {latent} --examples 3 --html {page}").stdout
    assert re.search(r"promotes .*\n.*suppresses", text)
    assert text.count("«") >= 3  # where there are no colours, the strongest tokens are marked
    assert f"{latent}</title>" in page.read_text()

    hits = json.loads(run(f"latents search {sae} --text cat --json -k {WIDTH}").stdout)
    assert [hit["latent"] for hit in hits] == index.search("cat", n=WIDTH)["latent"].tolist() != []
    model = monosem.load_model(home / "tiny", quiet=True)
    found = json.loads(run(f"latents search {sae} --json -k 3 --like", "the cat sat", "--like", "a good day").stdout)
    expected = index.search(examples=["the cat sat", "a good day"], model=model, n=3)
    assert [(row["latent"], row["matched"]) for row in found] == list(zip(expected["latent"], expected["matched"]))
    assert expected.attrs["tokens"]["left_out"] == {"first": 2}
    assert (
        "2 tokens left out (2 first)"
        in run(f"latents search {sae} -k 3 --like", "the cat sat", "--like", "a good day").stderr
    )
    assert "fires on" in run(f"latents top {sae}", "the cat").stdout

    checked = run(f"latents check {sae} --with-model --json")
    assert checked.exit_code == 0
    assert {row["broken"] for row in json.loads(checked.stdout)} == {0}
    with sqlite3.connect(sae / "index.sqlite") as connection:
        connection.execute("UPDATE latent SET count = count + 1 WHERE id = 0")
    assert run(f"latents check {sae}").exit_code == 1


def test_convert_and_back(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "layers.1", tmp_path / "back"
    assert run(f"convert sae --to sparsify --out {there}").stdout == f"{there}\n"
    run(f"convert {there} --to saelens --out {back} --dtype bfloat16")
    old, new = load_dictionary(home / "sae"), load_dictionary(back)
    assert (new.kind, new.k, new.site, new.model_name) == (old.kind, old.k, old.site, old.model_name)
    assert torch.allclose(new.W_enc, old.W_enc, rtol=1e-2)
    refused = run("convert sae --to circuit-tracer --out x")
    assert refused.exit_code == 2
    assert "circuit-tracer has no architecture for a topk SAE" in refused.stderr
    assert "did you mean 'sparsify'" in run("convert sae --to sparsefy --out x").stderr
    assert not (home / "x").exists()


def test_convert_a_file_that_does_not_say_all_of_itself(run: Callable[..., Result], tmp_path: Path) -> None:
    """mistral-sae's say nothing of k, model and site."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"w_enc": (6, 9), "w_dec": (9, 6), "b_enc": (9,), "b_pre": (6,)}
    torch.save({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, tmp_path / "m.pt")
    refused = run(f"convert {tmp_path / 'm.pt'} --to saelens --out {tmp_path / 'x'}")
    assert refused.exit_code == 2
    assert "does not say how many latents a token has: give k=" in refused.stderr
    run(f"convert {tmp_path / 'm.pt'} --to saelens --k 3 --site resid_post.16 --model mistral --out {tmp_path / 'x'}")
    read, told = load_dictionary(tmp_path / "x"), load_dictionary(tmp_path / "m.pt", k=3)
    assert (read.k, str(read.site), read.model_name) == (3, "resid_post.16", "mistral")
    x = torch.randn(5, 6, generator=draw)
    torch.testing.assert_close(read(x), told(x))


def test_train_then_evaluate(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    done = run(f"{TRAIN} --tokens 5000 --out {tmp_path}/run")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.strip() == f"{tmp_path}/run/dictionary"
    sae = load_dictionary(tmp_path / "run" / "dictionary")
    assert (sae.width, sae.k, str(sae.site)) == (48, 4, SITE)

    saved = tmp_path / "evaluation.json"
    line = f"evaluate {tmp_path}/run/dictionary --text text.jsonl --tokens 4000 --context 32"
    found = json.loads(run(f"{line} --json --save {saved}").stdout)
    model = monosem.load_model(home / "tiny", quiet=True)
    documents = monosem.data.interleaved([monosem.data.texts(home / "text.jsonl")])
    expected = monosem.dictionaries.evaluate(model, sae, documents, tokens=4000, context=32, quiet=True)
    assert found["fve"] == pytest.approx(expected.fve, rel=1e-5)
    assert found["ce_spliced"] == pytest.approx(expected.ce_spliced, rel=1e-5)
    assert json.loads(saved.read_text())["fve"] == found["fve"]
    assert "explained_variance" in run(line).stdout


def test_a_config_file_is_the_same_as_options_and_options_win(run: Callable[..., Result], tmp_path: Path) -> None:
    run(f"{TRAIN} --tokens 2000 --out {tmp_path}/a")
    run(f"train {tmp_path}/a/config.yaml --out {tmp_path}/b --quiet")
    run(f"train {tmp_path}/a/config.yaml --out {tmp_path}/c --seed 1 --apart --quiet")
    a, b, c = (load_dictionary(tmp_path / name / "dictionary").W_enc for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    told = [yaml.safe_load((tmp_path / name / "config.yaml").read_text())["apart"] for name in "ac"]
    assert told == [False, True]


def test_the_help_names_every_kind_and_when_to_use_it() -> None:
    told = " ".join((command_at(("train",)).help or "").split())
    for name, kind in KINDS.items():
        assert f"{name}: {kind.use}." in told


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("--kind jumprelu --target-l0 4", "jumprelu"),
        ("--kind relu --sparsity 0.2", "relu"),
        ("--kind abstopk -k 3", "abstopk"),
    ],
)
def test_other_kinds_are_trained(run: Callable[..., Result], tmp_path: Path, options: str, kind: str) -> None:
    line = TRAIN.replace(" -k 4", "")
    done = run(f"{line} --tokens 2000 --out {tmp_path}/run {options}")
    assert done.exit_code == 0, done.output
    assert load_dictionary(tmp_path / "run").kind == kind
    refused = run(f"{line} --tokens 2000 --out {tmp_path}/no --kind {kind} --set matryoshka_widths=[3]")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


def test_several_dictionaries_and_a_transcoder_from_one_pass(run: Callable[..., Result], tmp_path: Path) -> None:
    more = ["--dictionary", "wide width=64 seed=2", "--dictionary", "out kind=batchtopk site_out=mlp_out.1"]
    done = run(f"{TRAIN} --tokens 2000 --out {tmp_path}/both", *more)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [f"{tmp_path}/both/{name}/dictionary" for name in ("wide", "out")]
    assert load_dictionary(tmp_path / "both" / "wide").width == 64
    assert str(load_dictionary(tmp_path / "both" / "out").site_out) == "mlp_out.1"
    alone = run(f"{TRAIN} --tokens 2000 --out {tmp_path}/out --kind batchtopk --site-out mlp_out.1 --skip-connection")
    assert alone.exit_code == 0, alone.output
    assert load_dictionary(tmp_path / "out").W_skip is not None
    again = run(f"train {tmp_path}/both/config.yaml --out {tmp_path}/again --quiet")
    assert again.exit_code == 0, again.output
    first, second = (load_dictionary(tmp_path / where / "wide").W_dec for where in ("both", "again"))
    assert torch.equal(first, second)
    more = run(f"train {tmp_path}/both/config.yaml --out {tmp_path}/more --quiet --width 40 --tokens 1000")
    assert more.exit_code == 0, more.output
    assert {load_dictionary(tmp_path / "more" / name).width for name in ("wide", "out")} == {40}


@pytest.mark.parametrize("words", ["", "width=3", "wide width", "wide width=8 --dictionary wide"])
def test_dictionaries_without_a_name_or_with_half_a_field(
    run: Callable[..., Result], tmp_path: Path, words: str
) -> None:
    given = [part for one in words.split(" --dictionary ") for part in ("--dictionary", one)]
    done = run(f"{TRAIN} --tokens 2000 --out {tmp_path}/x", *given)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "--dictionary" in done.stderr


def test_any_field_of_the_config_can_be_set(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run(f"{TRAIN} --tokens 2000 --out {tmp_path}/a --set auxk=8 --set lr=1e-3 --set warmup_steps=2")
    assert done.exit_code == 0, done.output
    held = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (held["auxk"], held["lr"], held["warmup_steps"]) == (8, 1e-3, 2)


def test_sweep_prints_the_ranking_and_is_not_done_twice(run: Callable[..., Result], tmp_path: Path) -> None:
    line = f"sweep sae --latents 0:6,9 --values 1,10 --max-new-tokens 3 --out {tmp_path}/s --json --quiet"
    first = json.loads(run(line).stdout)["best"]
    table = pd.read_parquet(tmp_path / "s" / "sweep.parquet")
    assert sorted(set(table["latent"])) == [0, 1, 2, 3, 4, 5, 9]
    assert len(table) == 14
    assert [row["score"] for row in first] == sorted((row["score"] for row in first), reverse=True)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "parts").iterdir()}
    assert json.loads(run(line).stdout)["best"] == first
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_list_tells_what_is_here(run: Callable[..., Result]) -> None:
    kinds = ("models", "organisms", "concepts", "families")
    names = {kind: json.loads(run(f"list {kind} --json").stdout) for kind in kinds}
    assert [row["model"] for row in names["models"]] == list(monosem.models.loading.catalogue.EMBEDDED)
    assert [row["organism"] for row in names["organisms"]] == list(monosem.organisms.shipped_organisms())
    assert {row["concept"] for row in names["concepts"]} == set(monosem.studies.shipped_concepts())
    assert "gpt2" in {row["family"] for row in names["families"]}
    shipped = json.loads(run("list dictionaries --model smollm2 --json").stdout)
    assert [row["name"] for row in shipped] == monosem.dictionaries.shipped_dictionaries()
    sites = json.loads(run("list sites tiny --json").stdout)
    assert {"site": "resid_post.L", "L": "0 to 2"} in sites
    whole = run("list").stdout
    assert all(name in whole for name in ("smollm2", "planted-refusal", "sentiment"))


def test_list_dictionaries_shows_one_by_one_what_is_few_and_counts_what_is_many(run: Callable[..., Result]) -> None:
    few = run("list dictionaries --model gpt2 --layer 3")
    assert "gpt2-small-res-jb/blocks.3.hook_resid_pre" in few.stdout
    many = run("list dictionaries --model gemma-2-2b --site resid_post")
    assert "gemma-scope-2b-pt-res-canonical" in many.stdout
    assert "narrow it with" in many.stderr
    for line in ("list dictionaries", "list dictionaries --model gemma-2-2b"):
        assert len(run(line).stdout.splitlines()) < 100
    assert len(run("list dictionaries --model gemma-2-2b --site z --all").stdout.splitlines()) > 312
    assert json.loads(run("list dictionaries --model gpt2 --width 1m --json").stdout) == []
    assert run("list dictionaries --model gpt2 --width 1m").stdout == "no dictionary fits\n"


def test_sites_that_a_model_has_not_are_not_listed(run: Callable[..., Result], tmp_path: Path, tiny_model: Any) -> None:
    tiny_hf("gpt_neox").save_pretrained(tmp_path / "parallel")
    sites = [row["site"] for row in json.loads(run(f"list sites {tmp_path}/parallel --json").stdout)]
    assert "resid_post.L" in sites
    assert "resid_mid.L" not in sites


# ---------------------------------------------------------------------------------------------------------- bad input


class Hostile:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def damaged(home: Path) -> Path:
    """Everything that can be wrong with what a user names."""
    save_model(home / "other")
    save_model(home / "wide" / "tiny", hidden_size=40)
    for name in ("nan", "truncated"):
        shutil.copytree(home / "sae", home / f"{name}-sae")
        shutil.copytree(home / "tiny", home / f"{name}-model")
    for file in (home / "truncated-sae" / "sae_weights.safetensors", home / "truncated-model" / "model.safetensors"):
        file.write_bytes(file.read_bytes()[:-200])
    for file in (home / "nan-sae" / "sae_weights.safetensors", home / "nan-model" / "model.safetensors"):
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        save_file(tensors, file, {"format": "pt"})
    with (home / "hostile.pt").open("wb") as file:
        pickle.dump({"encoder.weight": Hostile(home / "was-run")}, file)
    (home / "five.txt").write_text("\n".join(HAPPY[:5]))
    (home / "gap.txt").write_text("\n".join([HAPPY[0], "", *HAPPY[2:]]))
    (home / "half.yaml").write_text("model: [tiny\n")
    unpaired = yaml.safe_load((home / "concept.yaml").read_text()) | {"negative": SAD[:5]}
    (home / "unpaired.yaml").write_text(yaml.safe_dump(unpaired))
    misspelt = yaml.safe_load((home / "concept.yaml").read_text()) | {"prompts": HAPPY}
    (home / "misspelt.yaml").write_text(yaml.safe_dump(misspelt))
    return home


SWEEP = "sweep sae --latents 0:2 --max-new-tokens 2 --out"
BAD = [  # command, extra arguments (not split), what the message must say
    ("train --model tiny --site resid_pots.1 --width 8 -k 2 --tokens 9 --text text.jsonl --out x", [], "resid_post"),
    ("train --model tiny --site resid_post.3 --width 8 -k 2 --tokens 9 --text text.jsonl --out x", [], "resid_post.3"),
    ("train --model tiny --out x", [], "width"),
    (f"{TRAIN} --tokens 99 --kind gated --out x", [], "topk"),
    (f"{TRAIN.replace('text.jsonl', 'nothing.txt')} --tokens 99 --out x", [], "nothing.txt"),
    ("train half.yaml --out x", [], "YAML"),
    ("train nothing.yaml --out x", [], "nothing.yaml"),
    ("steer sae 64 20", ["the cat"], "0 to 63"),
    ("steer sae x 20", ["the cat"], "LATENT"),
    ("steer sae 3 nan", ["the cat"], "finite"),
    ("steer sae 3 20", [""], "empty"),
    ("steer sae 3 20", ["the cat " * 33], "64"),
    ("steer sae 3 20 --scale --add", ["the cat"], "--scale"),
    ("steer sae 3 20 --chat", ["the cat"], "chat template"),
    ("steer sae 3 20 --dtype float12", ["the cat"], "float12"),
    ("steer sae 3 20 --device gpu7", ["the cat"], "gpu7"),
    ("steer nothing 3 20", ["the cat"], "no dictionary 'nothing'"),
    ("steer smollm2/resid_post.51 3 20", ["the cat"], "smollm2/resid_post.51"),
    ("steer sae 3 20 --model ./nothing", ["the cat"], "./nothing"),
    ("steer sae 3 20 --model other", ["the cat"], "was made for"),
    ("steer sae 3 20 --model wide/tiny", ["the cat"], "width 32"),
    ("steer nan-sae 3 20", ["the cat"], "not finite"),
    ("steer truncated-sae 3 20", ["the cat"], "sae_weights.safetensors"),
    ("steer hostile.pt 3 20", ["the cat"], "hostile.pt"),
    ("steer tiny 3 20", ["the cat"], "not a dictionary"),
    ("verify ./nothing", [], "./nothing"),
    ("verify text.jsonl", [], "text.jsonl"),
    ("verify nan-model", [], "NaN"),
    ("verify truncated-model", [], "truncated-model"),
    ("latents top sae", ["the cat", " "], "no token"),
    ("latents show sae 3", [], "monosem latents index"),
    ("latents show sae 3 --index text.jsonl", [], "text.jsonl"),
    ("latents search sae --positive happy.txt --negative five.txt", [], "6 positive but 5 negative"),
    ("latents search sae --positive happy.txt --negative gap.txt", [], "negative prompt 2"),
    ("latents search sae --positive happy.txt --negative nothing.txt", [], "nothing.txt"),
    ("latents search sae --positive happy.txt", [], "--negative"),
    ("latents top sae --trained-on some", ["the cat"], "write all (a dictionary trained on every token), default"),
    ("latents top sae --trained-on first=-1", ["the cat"], "first >= 0"),
    ("study concept.yaml --trained-on outlier=x", [], "write all"),
    ("latents search sae --text cat --like cat", [], "or --like TEXT"),
    ("latents search sae --like", ["the cat"], "monosem latents index"),
    ("latents index sae --text text.jsonl --context 100", [], "64"),
    ("evaluate sae --text text.jsonl --tokens 0", [], "--tokens"),
    ("evaluate sae --text hostile.pt", [], "hostile.pt"),
    ("sweep sae --latents 60:65 --out x", [], "0:64"),
    ("sweep sae --latents all --out x", [], "0:100"),
    ("sweep sae --values high --out x", [], "10,20"),
    ("sweep sae --values inf --out x", [], "finite"),
    ("sweep sae --latents 0:2 --temperature inf --out x", [], "sweep of latents: temperature"),
    ("steer sae 3 20 --temperature inf", ["the cat"], "temperature"),
    ("study unpaired.yaml", [], "unpaired prompts: 6 positive and 5 negative"),
    ("study misspelt.yaml", [], "prompts: no such field"),
    ("study half.yaml", [], "half.yaml"),
    ("study sentimental", [], "sentiment"),
    ("study concept.yaml --latent 64", [], "0 to 63"),
    ("study concept.yaml --model other", [], "was made for"),
    # folders that cannot be written to (the tests may run as root, so these cannot be made for anybody)
    (f"{TRAIN} --tokens 2000 --out /dev/null/x", [], "/dev/null/x"),
    (f"{SWEEP} /dev/null/x", [], "/dev/null/x"),
    ("study concept.yaml --out /dev/null/x", [], "/dev/null/x"),
    ("latents index sae --text text.jsonl --tokens 999 --context 32 --out /dev/null/x", [], "/dev/null"),
    ("evaluate sae --text text.jsonl --tokens 999 --context 32 --save /dev/null/x", [], "/dev/null"),
    # not a command
    ("stear sae", [], "stear"),
    ("steer", [], "DICTIONARY"),
    ("latents bottom", [], "bottom"),
    # a command that has another name today
    ("train-lens --model tiny", [], "did you mean 'lens train'?"),
    ("logit tiny", ["the cat"], "did you mean 'lens logit'?"),
    ("lens sae", ["the cat"], "monosem lens has the commands logit, tuned"),
    ("lens --kind tuned tiny", ["the cat"], "monosem lens has the commands logit, tuned"),
    ("patch tiny --task ioi", [], "monosem patch has the commands localise, sweep"),
    ("latents sweep sae", [], "did you mean 'sweep' or 'patch sweep'?"),
    # settings by name
    (f"{TRAIN} --tokens 99 --set lr --out x", [], "write KEY=VALUE"),
    (f"{TRAIN} --tokens 99 --set auxx=3 --out x", [], "auxx"),
    (f"{TRAIN} --tokens 512 --set width=true --out x", [], "width: true is not a value"),
    (f"{TRAIN} --tokens 512 --set betas=[2,0.9] --out x", [], "betas"),
    (f"{TRAIN} --tokens 99999999999999 --set buffer_tokens=99999999999999 --out x", [], "out of memory"),
    (
        f"{TRAIN} --tokens 512 --model ./nothing -k 1000000000000 --out x",
        [],
        "k is 1,000,000,000,000, but there are only",
    ),
    (f"{TRAIN} --tokens 512 --model ./nothing --buffer-tokens 9 --out x", [], "buffer_tokens is 9, but"),
    (f"{TRAIN} --tokens 512 --set held_out=[nothing.txt] --out x", [], "nothing.txt"),
    (f"{TRAIN} --tokens 512 --seed {2**70} --out x", [], "seed"),
    (f"components heads tiny --seed {2**70}", [], "--seed"),
    ("verify --jsn", [], "--jsn"),
    # before the model is loaded: what a long analysis found is not lost to a wrong name
    ("lens logit ./nothing --out x.pdf", ["the cat"], ".parquet"),
    ("components heads ./nothing --out /dev/null/x.csv", [], "/dev/null"),
]


@pytest.mark.parametrize(("line", "more", "says"), BAD, ids=[f"{line} {more or ''}"[:70] for line, more, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    line: str, more: list[str], says: str, damaged: Path, run: Callable[..., Result]
) -> None:
    done = run(line, *more)
    assert done.exit_code == 2, done.output
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: ")
    assert says in last
    assert not [text for text in before if text.startswith("error: ")]
    assert "Traceback" not in done.output
    assert not (damaged / "was-run").exists()
    assert not (damaged / "x" / "dictionary").exists()


def test_a_hostile_pickle_would_have_been_noticed(damaged: Path, tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(tmp_path / "was-run")))
    assert (tmp_path / "was-run").exists()


def test_folders_of_other_jobs_are_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run(f"{SWEEP} {tmp_path}/s").exit_code == 0
    again = run(f"{SWEEP} {tmp_path}/s --values 3")
    assert (again.exit_code, "values" in again.stderr) == (2, True)
    again = run(f"{TRAIN} --tokens 2000 --out {tmp_path}/s")
    assert (again.exit_code, "holds a sweep of latents, not a training run" in again.stderr) == (2, True)
    assert run(f"{SWEEP} {tmp_path}/s").exit_code == 0
    assert run(f"{TRAIN} --tokens 2000 --out {tmp_path}/t").exit_code == 0
    again = run(f"{TRAIN} --tokens 2000 --seed 3 --out {tmp_path}/t")
    assert (again.exit_code, "seed: 0, now 3" in again.stderr) == (2, True)
    again = run(f"{TRAIN} --tokens 2000 --no-resume --out {tmp_path}/t")
    assert (again.exit_code, "already holds" in again.stderr) == (2, True)


# ---------------------------------------------------------------------------------------------------- Ctrl-C and pipes

# a shell that starts jobs in the background lets them ignore SIGINT, and children inherit that
PROCESS = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from monosem.cli import main; main()"
)


def interrupted(home: Path, line: str, begun: Callable[[], bool]) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with Ctrl-C as soon as `begun()`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, *line.split()],
        cwd=home,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not begun() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted; " in err
    assert "to go on where it stopped: monosem " in err
    return subprocess.CompletedProcess(line.split(), process.returncode, out, err)


def test_training_goes_on_after_ctrl_c_with_the_same_result(
    run: Callable[..., Result], home: Path, tmp_path: Path
) -> None:
    line = f"{TRAIN} --tokens 100000 --out {tmp_path}/{{}}"
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    interrupted(home, line.format("stopped"), lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    assert list((tmp_path / "stopped" / "checkpoints").glob("*.pt"))
    with pytest.warns(UserWarning, match="not finished: step"):
        load_dictionary(tmp_path / "stopped")
    for name in ("stopped", "whole"):
        assert run(line.format(name)).exit_code == 0
    stopped, whole = (load_dictionary(tmp_path / name / "dictionary") for name in ("stopped", "whole"))
    assert all(torch.equal(a, b) for a, b in zip(stopped.parameters(), whole.parameters(), strict=True))


def test_a_finished_training_is_trained_on(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run(f"{TRAIN} --tokens 10240 --out {tmp_path}/first").exit_code == 0
    assert run(f"{TRAIN} --tokens 2560 --lr 1e-9 --start {tmp_path}/first --out {tmp_path}/second").exit_code == 0
    first, second = (load_dictionary(tmp_path / name) for name in ("first", "second"))
    torch.testing.assert_close(first.W_dec, second.W_dec)
    other = run(f"{TRAIN} --tokens 2560 --model ./nothing --width 32 --start {tmp_path}/first --out {tmp_path}/third")
    assert (other.exit_code, "48 latents; set width to that or more" in other.stderr) == (2, True)
    assert not (tmp_path / "third").exists()


def test_a_lens_goes_on_after_ctrl_c_with_the_same_result(
    run: Callable[..., Result], home: Path, tmp_path: Path
) -> None:
    line = "lens train --model tiny --text text.jsonl --rank 4 --steps 200 --batch-tokens 128 --context 16 --repeat -q"
    line += f" --set checkpoint_seconds=0.2 --set log_every=1 --out {tmp_path}/{{}}"
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    interrupted(home, line.format("stopped"), lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    assert metrics.read_text().count("\n") < 200
    assert list((tmp_path / "stopped" / "checkpoints").glob("*.pt"))
    for name in ("stopped", "whole"):
        assert run(line.format(name)).exit_code == 0
    stopped, whole = (load_file(tmp_path / name / "lens" / "lens.safetensors") for name in ("stopped", "whole"))
    assert stopped.keys() == whole.keys()
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


def test_a_sweep_goes_on_after_ctrl_c_with_the_same_result(
    run: Callable[..., Result], home: Path, tmp_path: Path
) -> None:
    options = "--latents 0:48 --values 5,20 --batch 4 --max-new-tokens 8 --temperature 1 --quiet"
    line = f"sweep sae {options} --out {tmp_path}/{{}}"
    parts = tmp_path / "stopped" / "parts"
    interrupted(home, line.format("stopped"), lambda: len(list(parts.glob("*.parquet"))) > 2)
    assert 2 < len(list(parts.glob("*.parquet"))) < 24
    assert (tmp_path / "stopped" / "sweep.txt").exists()  # what is done can be read at once
    for name in ("stopped", "whole"):
        assert run(line.format(name)).exit_code == 0
    stopped, whole = (pd.read_parquet(tmp_path / name / "sweep.parquet") for name in ("stopped", "whole"))
    pd.testing.assert_frame_equal(stopped, whole)


def test_a_study_goes_on_after_ctrl_c_with_the_same_result(
    run: Callable[..., Result], home: Path, tmp_path: Path
) -> None:
    first = tmp_path / "stopped" / "sections" / "A-dictionary.json"
    stop = interrupted(home, f"study concept.yaml --out {tmp_path}/stopped", first.exists)
    assert "A. " in stop.stdout
    kept = first.stat().st_mtime_ns
    assert not (tmp_path / "stopped" / "report.html").exists()
    for name in ("stopped", "whole"):
        done = run(f"study concept.yaml --out {tmp_path}/{name} --quiet")
        assert done.exit_code == 0
        assert done.stdout.strip() == f"{tmp_path}/{name}/report.html"
        assert done.stderr == ""
    assert first.stat().st_mtime_ns == kept
    stopped, whole = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("stopped", "whole"))
    for section in (*stopped["sections"].values(), *whole["sections"].values()):
        del section["seconds"]
    assert stopped["sections"] == whole["sections"]


def test_a_report_suggests_commands_that_show_its_texts_again(
    run: Callable[..., Result], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(f"study concept.yaml --out {tmp_path} --quiet").exit_code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    arms = [arm for section in ("steering", "ablation") for arm in results["sections"][section]["arms"]]
    shown = [arm for arm in arms if arm["kind"] == "target" and arm["dose"] in (1.0, 0.0)]
    page = html.unescape((tmp_path / "report.html").read_text())
    written = (tmp_path / "report.md").read_text()
    commands = re.findall(r"<pre>(monosem .*?)</pre>", page, flags=re.DOTALL)
    assert len(commands) == 4
    assert all(command in written for command in commands)
    for arm, command in zip(shown, commands):  # amplified, then ablated
        _, *line = shlex.split(command)
        done = run("", *line[:-2], "--json", *line[-2:])
        prompt = json.loads(done.stdout)["prompts"][0]
        row = next(row for row in arm["rows"]["test"] if row["prompt"] == line[-1])
        assert prompt["edited_text"] == row["edited_text"]
        assert prompt["baseline_text"] == row["baseline_text"]
        assert prompt["kl"] == pytest.approx(row["kl"], rel=1e-3, abs=1e-6)
    _, *line = shlex.split(commands[3])
    monkeypatch.chdir(tmp_path)
    assert run("", *line, "--quiet").exit_code == 0
    again = json.loads((tmp_path / "results.json").read_text())["sections"]
    assert again["target"]["latent"] == results["sections"]["candidates"]["order"][1]
    assert again["candidates"] == results["sections"]["candidates"]


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    script = Path(sys.executable).with_name("monosem")
    process = subprocess.Popen([script, "list", "concepts"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 141


# ------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", [3]), ("3,1,3", [3, 1]), ("2:4, 7", [2, 3, 7]), ("8:", [8, 9]), (":2", [0, 1]), ("9", [9])],
)
def test_ranges_of_latents(text: str, expected: list[int]) -> None:
    assert latent_numbers(text, 10) == expected


def test_settings_are_read_as_yaml() -> None:
    assert fields(["a=1", "b = x=y", "c=[1, 2]", "d=null"]) == {"a": 1, "b": "x=y", "c": [1, 2], "d": None}
    for text in ("a", "=1", "a=[1"):
        with pytest.raises(BadInput, match="--set"):
            fields([text])


@pytest.mark.parametrize("text", ["", "10", "5:5", "4:2", "-1", "a", "1;2", "1.5", "1:2:3"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(BadInput, match="--latents"):
        latent_numbers(text, 10)


def test_json_has_no_numbers_that_json_has_not() -> None:
    value = {"a": float("nan"), 1: (torch.tensor([1.5, float("inf")]), pd.DataFrame({"x": [1, 2]})), "p": Path("f")}
    assert json.loads(json.dumps(json_value(value), allow_nan=False)) == {
        "a": None,
        "1": [[1.5, None], [{"x": 1}, {"x": 2}]],
        "p": "f",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(4077, "4077"), (0.123456, "0.1235"), (12345.678, "1.235e+04"), (True, "True"), (None, "-"), (float("nan"), "-")],
)
def test_cells(value: Any, text: str) -> None:
    assert cell(value) == text
