"""`monosem direction` as a user drives it, against the library's own results."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from monosem import edits
from monosem.cli import app
from monosem.data import PromptPairs
from monosem.directions import Direction, Directions, select
from monosem.models import Site, load_model
from monosem.steering import OPERATIONS, compare, in_norms, iso_kl
from tiny import tiny_hf, tiny_tokenizer
from tiny_behaviour import SAID, planted_model, prompts_of
from tiny_latents import NEGATIVE, POSITIVE


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direction")
    tiny_hf("llama").save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    (folder / "up.txt").write_text("\n".join(POSITIVE))
    (folder / "down.txt").write_text("\n".join(NEGATIVE))
    return folder


def monosem(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["direction", *map(str, arguments)])


def sides(place: Path) -> list[object]:
    return ["--positive", place / "up.txt", "--negative", place / "down.txt", "--paired"]


def test_fit_show_compare_convert_and_read(place: Path) -> None:
    model = load_model(place / "tiny", quiet=True)
    want = Directions.fit(model, PromptPairs(POSITIVE, NEGATIVE), at=["mean"])
    kept = place / "found.safetensors"
    done = monosem("fit", place / "tiny", *sides(place), "--at", "mean", "--save", kept, "--json", "-q")
    given = json.loads(done.stdout)
    assert [row["stability"] for row in given["directions"]] == pytest.approx(
        want.table["stability"].to_list(), abs=1e-5
    )
    assert given["doubts"] == want.doubts
    shown = monosem(
        "fit", place / "tiny", *sides(place), "--at", "mean", "--layers", "1,2", "--out", place / "t.csv", "-q"
    )
    assert want.doubts[0][:30] in shown.stdout
    assert pd.read_csv(place / "t.csv")["site"].tolist() == ["resid_post.1", "resid_post.2"]
    for one, other in zip(Directions.load(kept), want, strict=True):
        torch.testing.assert_close(one.vector, other.vector)

    assert "method: dim" in monosem("show", kept).stdout
    assert json.loads(monosem("show", kept, "--json").stdout)[1]["site"] == "resid_post.1"

    assert "topics:" not in shown.stdout
    groups = PromptPairs(POSITIVE, NEGATIVE, groups=["ab"[i % 2] for i in range(len(POSITIVE))])
    Directions.fit(model, groups, "resid_post.1").save(place / "groups.safetensors")
    assert "resid_post.1 last, 2 topics: cosine" in " ".join(
        monosem("show", place / "groups.safetensors").stdout.split()
    )

    Directions(list(want)[1:]).save(place / "some.safetensors")
    assert monosem("convert", place / "some.safetensors", place / "some.gguf").exit_code == 0
    rows = json.loads(monosem("compare", kept, place / "some.gguf", "--json").stdout)
    assert [(row["site"], round(row["cosine"], 5)) for row in rows] == [("resid_post.1", 1.0), ("resid_post.2", 1.0)]

    line = ["read", place / "tiny", "the cat sat", "--directions", kept, "--out", place / "scores.html"]
    rows = json.loads(monosem(*line, "--json").stdout)
    assert {row["token"] for row in rows} == {" the", " cat", " sat"}
    assert (place / "scores.html").stat().st_size > 100_000
    assert "positive ones" in monosem(*line).stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["fit", "TINY"], "give --concept NAME"),
        (["fit", "TINY", "--positive", "UP"], "--negative FILE"),
        (["fit", "TINY", "SIDES", "--method", "pca_diff"], "use 'pca_pairs'"),
        (["fit", "TINY", "SIDES", "--method", "dimm"], "did you mean 'dim'"),
        (["fit", "TINY", "SIDES", "--prefilter", " the"], "4 a side are needed"),
        (["fit", "TINY", "SIDES", "--at", "template"], "no chat template"),
        (["fit", "TINY", "SIDES", "--k", "3"], "k=3"),
        (["show", "NONE"], "no direction file"),
        (["compare", "FIRST"], "two files"),
        (["convert", "FIRST", "x.gguf"], "block 0 has none"),
        (["convert", "FIRST", "x.onnx"], "written as .safetensors or .gguf, and their table as .html"),
        (["fit", "NOMODEL", "SIDES", "--save", "x.onnx"], "written as .safetensors or .gguf, and their table as .html"),
        (["fit", "NOMODEL", "--positive", "UP", "--negative", "DOWN", "--method", "pca_pairs"], "--paired"),
        (["fit", "TINY", "SIDES", "--save", "x.gguf"], "block 0 has none: leave it out"),
        (["fit", "TINY", "SIDES", "--method", "leace", "--layers", "1", "--save", "x.gguf"], "can only be added"),
        (["steer", "FIRST", "a cat"], "give --model MODEL"),
        (["steer", "FOUND", "a cat", "--do", "adds"], "did you mean 'add'"),
        (["steer", "FOUND", "a cat", "--unit", "miles"], "no unit 'miles'"),
        (["steer", "FOUND", "a cat", "--do", "ablate", "--unit", "norms"], "a share, not a length"),
        (["steer", "FOUND", "a cat", "--do", "reflect", "--amount", "2"], "has no amount"),
        (["steer", "FOUND", "a cat", "--do", "erase"], "erase takes"),
        (["steer", "FOUND", "a cat", "--amount", "nan"], "finite"),
        (["steer", "FOUND", "a cat", "--amount", "0", "--unit", "nats"], "above 0"),
        (["steer", "FOUND", "a cat", "--site", "resid_post.9"], "no direction at resid_post.9"),
        (["steer", "FOUND", "a cat", "--above", "3"], "go with --when"),
        (["steer", "FOUND", "a cat", "--when", "SAME"], "monosem direction calibrate"),
        (["steer", "FOUND", "a cat", "--when", "NONE", "--above", "1"], "no direction file"),
        (["steer", "FOUND", "a cat", "--when", "SAME", "--above", "1", "--below", "2"], "one threshold"),
        (["steer", "OTHER", "a cat"], "other sizes"),
        (["calibrate", "FOUND", "--negative", "DOWN", "--save", "x.safetensors"], "with 16 of these 16 prompts"),
        (["calibrate", "FOUND", "--negative", "NEW", "--save", "x.safetensors"], "needs at least 99"),
        (["fit", "TINY", "SIDES", "--held-out-positive", "UP"], "--held-out-negative FILE"),
        (["fit", "TINY", "SIDES", "--held-out-positive", "UP", "--held-out-negative", "DOWN"], "32 held-out prompts"),
        (["fit", "TINY", "SIDES", "--method", "mean_centred"], "needs background= texts"),
        (["fit", "TINY", "SIDES", "--background", "UP"], "not with 'dim'"),
        (["fit", "TINY", "--positive", "UP", "--negative", "DOWN", "--method", "pca_pairs"], "--paired"),
        (["select", "FOUND", "SIDES"], "with 32 of these 32 prompts"),
        (["select", "FOUND", "--positive", "NEW", "--negative", "NEWER", "--by", "arditi"], "needs tokens="),
        (["select", "OTHER", "--positive", "NEW", "--negative", "NEWER"], "other sizes"),
        (["fit", "TINY", "--positive", "UP", "--negative", "EMPTY"], "no negative prompts"),
        (["fit", "TINY", "--positive", "UP", "--negative", "ONE", "--paired"], "16 positive but 1 negative"),
        (["fit", "TINY", "--positive", "UP", "--negative", "ONE"], "at least two different prompts"),
    ],
)
def test_what_the_user_can_fix_is_one_line(place: Path, line: list[str], message: str) -> None:
    Direction(torch.ones(32), Site("resid_post", 0)).save(place / "first.safetensors")
    found = Directions.fit(load_model(place / "tiny", quiet=True), PromptPairs(POSITIVE, NEGATIVE), "resid_post.1")
    found.save(place / "one.safetensors")
    about = found[0].provenance | {"made_on": found[0].provenance["made_on"] | {"config": "0" * 16}}
    Direction(found[0].vector, found[0].site, "tiny", about).save(place / "other.safetensors")
    (place / "empty.txt").write_text("")
    (place / "line.txt").write_text("a good cat")
    for name, side in (("new", POSITIVE), ("newer", NEGATIVE)):
        (place / f"{name}.txt").write_text("\n".join(f"{prompt} or was" for prompt in side))
    words = {
        "FOUND": [place / "one.safetensors", "--model", place / "tiny", "-q"],
        "OTHER": [place / "other.safetensors", "--model", place / "tiny", "-q"],
        "SAME": [place / "one.safetensors"],
        "DOWN": [place / "down.txt"],
        "NEW": [place / "new.txt"],
        "NEWER": [place / "newer.txt"],
        "EMPTY": [place / "empty.txt"],
        "ONE": [place / "line.txt"],
        "TINY": [place / "tiny", "-q"],
        "SIDES": sides(place),
        "UP": [place / "up.txt"],
        "NONE": [place / "none.gguf"],
        "FIRST": [place / "first.safetensors"],
    }
    done = monosem(*(one for word in line for one in words.get(word, [word])))
    assert (done.exit_code, message in done.stderr) == (2, True), done.output
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_prefilter_says_what_it_left_out(tmp_path: Path) -> None:
    """In a model that says one word after another: prompts without it do not begin as their side says."""
    model, _ = planted_model()
    model.hf.save_pretrained(tmp_path / "planted")
    model.tokenizer.save_pretrained(tmp_path / "planted")
    up, down = prompts_of(True, False, 12), prompts_of(False, False, 12)
    for name, lines in [("up", [*up[:6], *down[:2]]), ("down", [*down[2:7], up[6]])]:
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    for name, lines in [("more", [*up[7:], down[7]]), ("rest", down[8:])]:
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    kept, asked = tmp_path / "kept.safetensors", ["--prefilter", f" {SAID}", "--json"]
    line = ["--positive", tmp_path / "up.txt", "--negative", tmp_path / "down.txt", "--layers", "0,1", "--save", kept]
    done = monosem("fit", tmp_path / "planted", *line, *asked)
    assert "left out: 2 positive prompts" in done.stderr
    given = json.loads(done.stdout)["config"]
    assert (given["prefilter"]["dropped"], given["prompts"]) == (
        {"positive": 2, "negative": 1},
        {"positive": 6, "negative": 5},
    )
    assert Directions.load(kept)[0].provenance["prefilter"] == given["prefilter"]
    line = ["--positive", tmp_path / "more.txt", "--negative", tmp_path / "rest.txt", "--model", tmp_path / "planted"]
    chosen = json.loads(monosem("select", kept, *line, *asked).stdout)
    assert chosen["config"]["prefilter"]["dropped"] == {"positive": 1, "negative": 0}
    assert chosen["directions"][0]["site"].startswith("resid_post")


def test_steer_is_the_edit_that_it_names(place: Path) -> None:
    model = load_model(place / "tiny", quiet=True)
    found = Directions.fit(model, PromptPairs(POSITIVE, NEGATIVE))
    kept, prompts = place / "steer.safetensors", ["a good day", "the cat sat on"]
    found.save(kept)
    direction = found["resid_post.1"]
    base = [
        "steer",
        kept,
        "--model",
        place / "tiny",
        *prompts,
        "--site",
        "resid_post.1",
        "--max-new-tokens",
        "4",
        "--json",
    ]
    length = float(direction.vector.norm())
    usual = in_norms(model, direction, 1.0) * length
    for more, amount, edit in [
        ([], 1.0, edits.add(direction, 1.0)),
        (["--amount", "-2"], -2.0, edits.add(direction, -2.0)),
        (
            ["--do", "set", "--amount", "3", "--part", "generated"],
            3.0,
            edits.set_to(direction, 3.0).at(scope="generated"),
        ),
        (["--do", "ablate", "--everywhere"], 1.0, edits.ablate(direction).at(everywhere=True)),
        (["--do", "ablate_writes"], 1.0, edits.ablate_writes(model, direction)),
        (["--amount", "0.5", "--unit", "norms"], 0.5 * usual / length, edits.add(direction, 0.5 * usual / length)),
        (["--do", "floor", "--amount", "0.5", "--unit", "norms"], usual / 2, edits.floor(direction, usual / 2)),
    ]:
        done = monosem(*base, *more)
        assert done.exit_code == 0, done.output
        given = json.loads(done.stdout)
        expected = compare(model, prompts, edit, max_new_tokens=4)
        assert given["amount"] == pytest.approx(amount)
        assert [row["edited_text"] for row in given["prompts"]] == expected.table["edited_text"].tolist()
        assert given["summary"]["kl"] == pytest.approx(expected.summary["kl"], abs=1e-5)
    done = json.loads(monosem(*base, "--amount", "-0.3", "--unit", "nats").stdout)
    back = iso_kl(
        model, prompts, lambda c: edits.add(direction, c), target=0.3, start=-0.1 * usual / length, max_new_tokens=4
    )
    assert done["amount"] == pytest.approx(back.amount, rel=1e-3)
    assert done["amount"] < 0
    shown = monosem("steer", kept, "--model", place / "tiny", *prompts, "--max-new-tokens", "2", "--quiet")
    assert "before" in shown.stdout


def test_a_calibrated_direction_decides_row_by_row(place: Path) -> None:
    model = load_model(place / "tiny", quiet=True)
    Directions.fit(model, PromptPairs(POSITIVE[:8], NEGATIVE[:8]), "resid_post.1").save(place / "c.safetensors")
    gate = place / "gate.safetensors"
    new = [f"{prompt} or was" for prompt in NEGATIVE]
    (place / "new.txt").write_text("\n".join(new))
    kept = ["calibrate", place / "c.safetensors", "--model", place / "tiny", "--save", gate]
    line = [*kept, "--negative", place / "new.txt"]
    again = monosem(*kept, "--negative", place / "down.txt", "--target-fpr", "0.2", "-q")
    assert (again.exit_code, len(again.stderr.strip().splitlines())) == (2, 1)
    assert "found or judged with 8 of these 16 prompts" in again.stderr
    held = json.loads(monosem(*line, "--target-fpr", "0.2", "--over", "mean", "--json").stdout)
    expected = Direction.load(place / "c.safetensors").with_threshold(model, new, target_fpr=0.2, over="mean")
    assert held["threshold"] == pytest.approx(expected.calibration["threshold"])
    prompts = [*POSITIVE[:3], *NEGATIVE[:3]]
    base = ["steer", gate, "--model", place / "tiny", *prompts]
    done = monosem(*base, "--amount", "5", "--when", gate, "--max-new-tokens", "3", "--json")
    given = json.loads(done.stdout)
    decided = {one["row"]: one["open"] for one in given["decisions"]}
    assert {row: row < 3 for row in range(6)} == decided
    assert all((row["kl"] > 1e-4) == decided[number] for number, row in enumerate(given["prompts"]))
    assert "closed" in monosem(*base, "--when", gate, "--max-new-tokens", "2").stdout


def test_select_is_the_librarys(place: Path) -> None:
    model = load_model(place / "tiny", quiet=True)
    Directions.fit(model, PromptPairs(POSITIVE[:8], NEGATIVE[:8])).save(place / "s.safetensors")
    for name, side in (("p", POSITIVE), ("n", NEGATIVE)):
        (place / f"{name}.txt").write_text("\n".join(side[8:]))
    line = ["select", place / "s.safetensors", "--model", place / "tiny", "--positive", place / "p.txt"]
    line += ["--negative", place / "n.txt", "--most-kl", "9", "--json", "-q"]
    kept = place / "chosen.safetensors"
    for more, options in [([], {"by": "cosmic"}), (["--by", "arditi", "--tokens", " the"], {"tokens": [" the"]})]:
        done = monosem(*line, *more, "--save", kept)
        pairs = PromptPairs(POSITIVE[8:], NEGATIVE[8:], paired=False)
        want = select(model, Directions.load(place / "s.safetensors", model), pairs, most_kl=9.0, **options)
        if any(left == "" for left in want.table["left_out"]):
            assert done.exit_code == 0, done.output
            torch.testing.assert_close(Direction.load(kept).vector, want.best.vector)
        else:
            assert "no candidate passes" in done.stderr
        assert [row["site"] for row in json.loads(done.stdout)["directions"]] == want.table["site"].tolist()


def test_other_prompts_judge_and_a_background_is_read(place: Path) -> None:
    model = load_model(place / "tiny", quiet=True)
    for name, side in (("judge_up", POSITIVE[8:]), ("judge_down", NEGATIVE[8:]), ("find_up", POSITIVE[:8])):
        (place / f"{name}.txt").write_text("\n".join(side))
    (place / "find_down.txt").write_text("\n".join(NEGATIVE[:8]))
    (place / "all.txt").write_text("\n".join(["the sun sat", "a moon on", "on the cat"]))
    line = ["fit", place / "tiny", "--positive", place / "find_up.txt", "--negative", place / "find_down.txt", "--json"]
    line += ["--held-out-positive", place / "judge_up.txt", "--held-out-negative", place / "judge_down.txt", "-q"]
    done = json.loads(monosem(*line, "--method", "mean_centred", "--background", place / "all.txt").stdout)
    pairs, others = (PromptPairs(POSITIVE[some], NEGATIVE[some], paired=False) for some in (slice(8), slice(8, 16)))
    texts = ["the sun sat", "a moon on", "on the cat"]
    want = Directions.fit(model, pairs, method="mean_centred", background=texts, held_out=others).table
    assert [row["held_out_auroc"] for row in done["directions"]] == pytest.approx(want["held_out_auroc"].tolist())
    assert [row["norm"] for row in done["directions"]] == pytest.approx(want["norm"].tolist(), abs=1e-5)


def test_every_operation_has_an_amount_in_its_own_unit() -> None:
    names = {"add", "ablate", "ablate_writes", "scale_along", "reflect", "set_to", "floor", "ceiling", "push"}
    made = {one.make.__name__ for one in OPERATIONS.values()}
    assert names | {"add_by_cosine", "slerp", "erase"} == made
