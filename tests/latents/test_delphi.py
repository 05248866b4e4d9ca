"""What delphi caches: files in its own layout (eai-delphi 0.1.3), against the dense activations they were made from."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from monosem.errors import BadFile, BadInput, UnknownName
from monosem.latents import read_delphi
from monosem.latents.delphi_labels import label_of
from monosem.latents.drawing import export_page
from tiny_latents import MODEL

ROWS, CONTEXT, SPLITS = 12, 16, ((0, 3), (4, 6))  # both ends are in a shard


@pytest.fixture
def dense() -> np.ndarray:
    """`[row, pos, latent]`, sparse; latent 6 never fires."""
    draw = np.random.default_rng(0)
    values = draw.exponential(2, (ROWS, CONTEXT, 7)) * (draw.random((ROWS, CONTEXT, 7)) < 0.1)
    values[..., 6] = 0
    return values.astype(np.float32)


@pytest.fixture
def folder(tmp_path, dense):
    """As its `save_splits` lays it out: latents counted from the shard's first, half precision, all tokens in each."""
    tokens = np.random.default_rng(1).integers(0, MODEL.cfg.d_vocab, (ROWS, CONTEXT))
    tokens[5] = tokens[4]  # a text twice
    home = tmp_path / "layers.1"
    home.mkdir()
    for start, end in SPLITS:
        own = dense[..., start : end + 1]
        where = np.ascontiguousarray(np.argwhere(np.abs(own) > 1e-5))  # which safetensors does not do
        held = {"locations": where.astype(np.uint16), "activations": own[tuple(where.T)].astype(np.float16)}
        save_file({**held, "tokens": tokens}, home / f"{start}_{end}.safetensors")
    about = {"dataset_repo": "some/text", "cache_ctx_len": CONTEXT, "model_name": "tiny"}
    (home / "config.json").write_text(json.dumps(about))
    return home


def test_numbers_are_of_the_cached_activations(folder, dense):
    found = read_delphi(folder, MODEL, range(7))
    for latent, page in found.pages.items():
        own, parts = dense[..., latent], page.parts
        assert parts["statistics"]["count"] == (own > 0).sum()
        assert parts["statistics"]["density"] == (own > 0).mean()
        assert parts["statistics"]["maximum"] == pytest.approx(own.max(), rel=1e-3)
        assert sum(bar["count"] for bar in parts["histogram"]) == (own > 0).sum()
        edges = np.float16(own.max()) * np.arange(6) / 5
        shares = [((own > low) & (own.astype(np.float16) <= high)).sum() for low, high in pairwise(edges)]
        if latent != 6:
            shown = [band["share"] for band in reversed(parts["intervals"])]
            assert shown == pytest.approx((np.array(shares) / (own > 0).sum()).tolist(), abs=1e-9)
    assert found.pages[6].parts["statistics"]["dead"]
    assert found.pages[6].parts["examples"] == found.pages[6].parts["intervals"] == []
    assert found.settings["model_name"] == "tiny"


def test_every_example_has_the_activations_of_its_own_window(folder, dense):
    page = read_delphi(folder, MODEL, [5], examples=50, left=5, right=2).pages[5]
    own = dense[..., 5]
    rows = [int(one["document"].removeprefix("row ")) for one in page.parts["examples"]]
    assert len(set(rows)) == len(rows)
    texts = ["".join(one["tokens"]) for one in page.parts["examples"]]
    assert len(set(texts)) == len(texts)
    best = own.max(1)
    assert page.parts["examples"][0]["maximum"] == pytest.approx(best.max(), rel=1e-3)
    bands = [one for band in page.parts["intervals"] for one in band["examples"]]
    for one in [*page.parts["examples"], *bands]:
        row, first = int(one["document"].removeprefix("row ")), one["position"] - one["anchor"]
        window = own[row, first : first + len(one["activations"])]
        np.testing.assert_allclose(one["activations"], window, rtol=1e-3, atol=1e-6)
        assert one["maximum"] == one["activations"][one["anchor"]]
        assert len(one["tokens"]) == len(one["activations"]) <= 8


def test_it_says_what_is_unreliable(folder):
    said = read_delphi(folder, MODEL, [1]).pages[1].parts["unreliable"]
    assert any("float16" in one for one in said)
    assert any("batch" in one for one in said)
    assert any("special" in one for one in said)


def test_what_is_no_cache_is_refused(folder, tmp_path):
    with pytest.raises(UnknownName, match="latent 7"):
        read_delphi(folder, MODEL, [7])
    with pytest.raises(BadInput):
        read_delphi(folder, MODEL, [])
    with pytest.raises(BadFile, match="no shards"):
        read_delphi(tmp_path, MODEL, [1])
    good = {
        "locations": np.array([[0, 1, 0]]),
        "activations": np.array([1.0], np.float16),
        "tokens": np.zeros((2, 4), np.int64),
    }
    bad = [
        {"locations": np.array([[0, 4, 0]])},
        {"locations": np.array([[2, 0, 0]])},
        {"locations": np.array([[0, 1]])},
        {"locations": np.array([[0, -1, 0]])},
        {"activations": np.array([np.inf], np.float16)},
        {"activations": np.array([1.0, 2.0], np.float16)},
        {"tokens": np.zeros(4, np.int64)},
        {"tokens": np.full((2, 4), 10**6)},
    ]
    for number, change in enumerate(bad):
        home = tmp_path / str(number)
        home.mkdir()
        save_file(good | change, home / "0_0.safetensors")
        with pytest.raises(BadFile):
            read_delphi(home, MODEL, [0])
    save_file({name: value for name, value in good.items() if name != "tokens"}, tmp_path / "0" / "0_0.safetensors")
    with pytest.raises(BadFile, match="tokens"):
        read_delphi(tmp_path / "0", MODEL, [0])
    (tmp_path / "1" / "0_0.safetensors").write_bytes(b"not tensors")
    with pytest.raises(BadFile, match="damaged"):
        read_delphi(tmp_path / "1", MODEL, [0])


def run_of(folder, tmp_path):
    """The folder of a run as delphi lays it out, with the cache in it."""
    place = tmp_path / "run" / "latents" / folder.name
    place.parent.mkdir(parents=True)
    folder.rename(place)
    run = place.parent.parent
    for name in ("explanations", "scores/detection", "scores/fuzz", "scores/simulation"):
        (run / name).mkdir(parents=True)
    return run, place


def test_explanations_and_scores_are_read(folder, tmp_path):
    run, place = run_of(folder, tmp_path)
    (run / "explanations" / "layers.1_latent2.txt").write_text(json.dumps("words of joy"))
    judged = [(True, True), (True, True), (True, False), (False, False), (False, True), (False, None)]
    rows = [{"str_tokens": ["a"], "activating": is_so, "prediction": said} for is_so, said in judged]
    (run / "scores" / "detection" / "layers.1_latent2.txt").write_text(json.dumps(rows))
    (run / "scores" / "intruder").mkdir()
    (run / "scores" / "intruder" / "layers.1_latent2.txt").write_text(json.dumps([{"correct": True}]))
    pages = read_delphi(place, MODEL, [1, 2]).pages
    explained = pages[2].parts["explanation"]
    assert (explained["label"], explained["by"]) == ("words of joy", "eai-delphi")
    assert explained["scores"] == {"detection": pytest.approx((2 / 3 + 1 / 2) / 2)}  # the one without an answer is out
    remarks = "; ".join(pages[2].parts["unreliable"])
    assert "1 of 6 examples had no answer" in remarks
    assert "intruder: its scores are of a kind that is not read" in remarks
    assert "written from" in remarks
    assert "explanation" not in pages[1].parts
    (run / "explanations" / "layers.1_latent1.txt").write_text("[1]")
    with pytest.raises(BadFile, match="no explanation"):
        read_delphi(place, MODEL, [1])
    (run / "scores" / "fuzz" / "layers.1_latent2.txt").write_text('{"a": 1}')
    with pytest.raises(BadFile, match="no scores"):
        read_delphi(place, MODEL, [2])


def test_scores_of_texts_and_tokens_as_delphi_writes_them(folder, tmp_path):
    """Files that peers/delphi_scores_golden.py made with delphi's own scorers."""
    run, place = run_of(folder, tmp_path)
    (run / "explanations" / "layers.1_latent2.txt").write_text(json.dumps("words of joy"))
    held = {}
    for file in (Path(__file__).parent / "golden" / "delphi_scores").iterdir():
        (run / "scores" / file.stem).mkdir(exist_ok=True)
        (run / "scores" / file.stem / "layers.1_latent2.txt").write_bytes(file.read_bytes())
        held[file.stem] = json.loads(file.read_text())
    page = read_delphi(place, MODEL, [2]).pages[2]
    scores = page.parts["explanation"]["scores"]

    def area(values, fires):
        pairs = [(a, b) for a, one in zip(values, fires) if one for b, other in zip(values, fires) if not other]
        return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)

    rows = held["embedding"]
    near = area([row["similarity"] for row in rows], [row["distance"] not in (-1.0, 0.25) for row in rows])
    rows = held["surprisal"]
    saved = [sum(row["no_explanation"]) - sum(row["explanation"]) for row in rows]
    told = area(saved, [any(row["activations"]) for row in rows])
    (all_texts,) = [group["ev_correlation_score"] for group in held["simulation"] if group["distance"] == 0]
    expected = {"embedding": near, "surprisal": told, "simulation": all_texts}
    assert scores == pytest.approx(expected)
    assert len({0.0, *expected.values()}) == 4
    silent = sum(
        not any(text["simulation"]["expected_activations"])
        for text in held["simulation"][-1]["scored_sequence_simulations"]
    )
    assert f"simulation: {silent} of 10 texts were predicted as 0" in "; ".join(page.parts["unreliable"])
    (run / "scores" / "surprisal" / "layers.1_latent2.txt").write_text(
        json.dumps([held["surprisal"][0] | {"activations": []}])
    )
    with pytest.raises(BadFile, match="no scores of delphi"):
        read_delphi(place, MODEL, [2])


SCORED = {
    "embedding": [{"similarity": 0.5, "distance": 1}, {"similarity": 0.2, "distance": -1.0}],
    "surprisal": [{"no_explanation": [1.0, 2.0], "explanation": [0.5, 1.0], "activations": [0.0, 1.0]}] * 2,
    "simulation": [
        {
            "distance": 0,
            "scored_sequence_simulations": [
                {"simulation": {"expected_activations": [0, 1, 2]}, "true_activations": [0.0, 0.5, 2.0]}
            ],
        }
    ],
}


@pytest.mark.parametrize(
    ("scorer", "old", "new"),
    [
        ("embedding", "0.5", "1" + 400 * "0"),
        ("embedding", "0.5", "NaN"),
        ("embedding", "0.5", '"0.5"'),
        ("surprisal", "[0.5, 1.0]", "{}"),
        ("surprisal", "0.5", "Infinity"),
        ("surprisal", "0.0", "NaN"),
        ("simulation", "[0, 1, 2]", "[0, NaN, 2]"),
        ("simulation", "[0, 1, 2]", '"012"'),
        ("simulation", "0.5", "1e308"),
    ],
)
def test_scores_that_are_no_finite_numbers_are_refused(tmp_path, scorer, old, new):
    good = json.dumps(SCORED[scorer])
    (tmp_path / "explanations").mkdir()
    (tmp_path / "explanations" / "layers.1_latent2.txt").write_text(json.dumps("words of joy"))
    score = tmp_path / "scores" / scorer / "layers.1_latent2.txt"
    score.parent.mkdir(parents=True)
    score.write_text(good)
    label_of(tmp_path, "layers.1", 2)
    assert old in good
    score.write_text(good.replace(old, new, 1))
    with pytest.raises(BadFile, match="no scores of delphi") as refused:
        label_of(tmp_path, "layers.1", 2)
    assert "\n" not in str(refused.value)


def test_changed_files_of_delphi_are_read_or_refused(folder, tmp_path):
    run, place = run_of(folder, tmp_path)
    label, score = run / "explanations" / "layers.1_latent2.txt", run / "scores" / "fuzz" / "layers.1_latent2.txt"
    label.write_text(json.dumps("words of joy"))
    score.write_text(json.dumps([{"activating": True, "prediction": True}, {"activating": False, "prediction": None}]))
    draw, refused = np.random.default_rng(3), []
    for file in (place / "0_3.safetensors", label, score, place / "config.json"):
        whole = file.read_bytes()
        for _ in range(25):
            changed = bytearray(whole)
            for at in draw.integers(0, min(len(whole), 400), 2):
                changed[at] = draw.integers(0, 256)
            file.write_bytes(changed)
            try:
                export_page([read_delphi(place, MODEL, [2]).pages[2].to_json()])
            except BadFile as error:
                refused.append(str(error))
        file.write_bytes(whole)
    assert refused
    assert not any("\n" in words for words in refused)
