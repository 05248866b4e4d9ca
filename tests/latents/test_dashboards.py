"""Files of dashboards: what sae-dashboard 0.8.0 wrote, against the activations it was made from; ours, out and in
again."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from monosem import latents
from monosem.dictionaries import one_site
from monosem.errors import BadFile, BadInput, UnknownName
from monosem.latents import IndexConfig, build_index, read_dashboards, write_dashboards
from monosem.latents.dashboards import read_row
from monosem.latents.drawing import export_page
from tiny_latents import MODEL, STORE, TOPK

FILE = Path(__file__).with_name("golden") / "sae_dashboard_batch-0.json"
PAGE = FILE.with_name("sae_vis.html")  # cut from the demonstration that sae_vis 0.3.7 (MIT) ships


@pytest.fixture(scope="module")
def theirs():
    return read_dashboards(FILE)


@pytest.fixture(scope="module")
def acts() -> np.ndarray:
    """`[prompt, position, latent]` of latents 0 and 1, as sae-dashboard saw them."""
    held = load_file(FILE.with_name("sae_dashboard_activations.safetensors"))
    return held["acts"]


def test_numbers_keep_their_meaning(theirs, acts):
    assert list(theirs.pages) == [0, 1]
    for latent, page in theirs.pages.items():
        own, statistics = acts[:, 1:, latent], page.parts["statistics"]  # the first token is special
        assert statistics["count"] == (own > 0).sum()
        assert sum(bar["count"] for bar in page.parts["histogram"]) == (own > 0).sum()
        assert statistics["maximum"] == pytest.approx(own.max(), abs=5e-4)
        # what the file calls density has the special tokens in its denominator: too low, and said to be
        assert statistics["density"] == pytest.approx((own > 0).sum() / acts[..., latent].size, abs=1e-5)
        assert statistics["density"] < (own > 0).mean()
        assert any("density" in remark for remark in page.parts["unreliable"])
        low = min(bar["low"] for bar in page.parts["histogram"])
        high = max(bar["high"] for bar in page.parts["histogram"])
        assert (low, high) == pytest.approx((own[own > 0].min(), own.max()), abs=0.03)


def test_shares_of_intervals_are_of_active_tokens(theirs, acts):
    for latent, page in theirs.pages.items():
        own = acts[:, 1:, latent]
        own = own[own > 0]
        edges = own.max() * np.arange(6) / 5
        shares = [band["share"] for band in page.parts["intervals"]]
        assert sum(shares) == pytest.approx(1, abs=2e-3)
        for band in page.parts["intervals"]:
            number = round(5 * band["high"] / own.max()) - 1
            inside = ((own > edges[number]) & (own <= edges[number + 1])).mean()
            assert band["share"] == pytest.approx(inside, abs=5e-3)
            assert all(example["maximum"] != 0 for example in band["examples"])
    lowest = theirs.pages[0].parts["intervals"][-1]
    assert lowest["said"] > 0.9 > lowest["share"]  # theirs: mostly silent tokens
    assert any("silent" in remark for remark in theirs.pages[0].parts["unreliable"])


def test_examples_say_what_the_latent_did(theirs, acts):
    for latent, page in theirs.pages.items():
        rows = np.round(acts[:, 1:, latent], 3)
        for example in page.parts["examples"]:
            values = np.array(example["activations"])
            assert (np.abs(rows - values).max(1) < 2e-3).any()
            assert example["maximum"] == values[example["anchor"]]
        texts = ["".join(example["tokens"]) + str(example["activations"]) for example in page.parts["examples"]]
        assert len(texts) == len(set(texts))
    assert len(theirs.pages[0].parts["examples"]) < 20  # of 20, with repeats
    assert any("more than once" in remark for remark in theirs.pages[0].parts["unreliable"])


def test_characters_in_the_byte_alphabet_are_put_together(theirs):
    first = theirs.pages[0].parts["examples"][0]["tokens"]
    assert first == ["sat", " and", " ", "", "", "日", " dog", " run", " run", " ", "i", "t", "'", "s", " blue"]


def test_an_example_without_its_token_has_no_anchor(theirs):
    held = json.loads(FILE.read_text())
    hidden = [one for row in held["features"] for one in row["activations"] if one["qualifying_token_index"] == -1]
    assert hidden  # in Python, values[-1] would be the last token
    missing = [
        example
        for page in theirs.pages.values()
        for band in page.parts["intervals"]
        for example in band["examples"]
        if example["position"] == -1
    ]
    assert missing
    assert all(example["anchor"] is None and example["maximum"] is None for example in missing)
    assert any("no anchor" in remark for remark in theirs.pages[0].parts["unreliable"])


def test_a_latent_that_never_fired_has_no_examples(tmp_path):
    held = json.loads(FILE.read_text())
    row = held["features"][0]
    zeros = [{**one, "values": [0.0] * len(one["values"]), "bin_max": 0.0} for one in row["activations"]]
    row |= {"frac_nonzero": 0.0, "activations": zeros, "freq_hist_data_bar_heights": []}
    row["freq_hist_data_bar_values"] = []
    (tmp_path / "batch-0.json").write_text(json.dumps(held))
    page = read_dashboards(tmp_path).pages[0]
    assert page.parts["examples"] == page.parts["intervals"] == []
    assert page.parts["statistics"]["dead"]
    assert any("never fired" in remark for remark in page.parts["unreliable"])


def test_tokens_of_other_vocabularies_stay_as_they_are(tmp_path):
    held = json.loads(FILE.read_text())
    for row in held["features"]:
        for one in row["activations"]:
            one["tokens"] = ["é", "ü"] + one["tokens"][2:]
            one["tokens"] = [token if token.isascii() else "é" for token in one["tokens"]]
    (tmp_path / "batch-0.json").write_text(json.dumps(held))
    assert read_dashboards(tmp_path).pages[0].parts["examples"][0]["tokens"][:2] == ["é", "é"]


# --- ours -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    config = IndexConfig(examples=5, left=4, right=2, corpus="made up")
    return build_index(MODEL, TOPK, STORE, tmp_path_factory.mktemp("i") / "i.sqlite", config, quiet=True)


@pytest.mark.parametrize("form", ["batch", "jsonl"])
def test_what_is_written_is_read_again(index, tmp_path, form):
    chosen = index.top(3, by="count")["latent"].tolist()
    files = write_dashboards(index, chosen, tmp_path, form=form, source="res-x")
    assert all(file.exists() for file in files)
    found = read_dashboards(tmp_path)
    assert set(found.pages) == set(chosen)
    for latent in chosen:
        ours, again = latents.page(index, latent).parts, found.pages[latent].parts
        assert again["statistics"]["density"] == ours["statistics"]["density"]
        assert again["statistics"]["maximum"] == pytest.approx(ours["statistics"]["maximum"])
        assert again["statistics"]["count"] == ours["statistics"]["count"]
        assert [one["activations"] for one in again["examples"]] == [one["activations"] for one in ours["examples"]]
        assert [one["anchor"] for one in again["examples"]] == [one["anchor"] for one in ours["examples"]]
        shown = [band for band in ours["intervals"] if band["examples"]]
        assert [band["share"] for band in again["intervals"]] == pytest.approx([band["share"] for band in shown])
        for one, other in zip(again["histogram"], ours["histogram"], strict=True):
            assert one["count"] == other["count"]
            assert (one["low"], one["high"]) == pytest.approx((other["low"], other["high"]))
        assert again["logits"]["promoted"] == ours["logits"]["promoted"]
        assert again["unreliable"] == []
        best = sorted(ours["coactive"], key=lambda row: -row["pearson"])[:3]
        assert [row["latent"] for row in again["coactive"]] == [row["latent"] for row in best]


def test_our_files_have_what_theirs_have(index, tmp_path):
    (file,) = write_dashboards(index, [0, 1], tmp_path)
    ours, theirs = json.loads(file.read_text()), json.loads(FILE.read_text())
    assert ours.keys() == theirs.keys()
    assert ours["features"][0].keys() == theirs["features"][0].keys()
    busy = index.top(1, by="count")["latent"].tolist()
    (file,) = write_dashboards(index, busy, tmp_path / "busy")
    row = json.loads(file.read_text())["features"][0]
    assert row["activations"][0].keys() == theirs["features"][0]["activations"][0].keys()
    for one in row["activations"]:
        assert one["values"][one["qualifying_token_index"]] == max(one["values"]) or one["bin_min"] > 0
        assert one["bin_min"] != 0  # no interval holds the silence


def test_the_public_export_has_these_names(index, tmp_path):
    write_dashboards(index, [0, 7], tmp_path, form="jsonl", source="res-x", model_id="tiny-llama")
    line = gzip.decompress((tmp_path / "features" / "batch-0.jsonl.gz").read_bytes()).decode().splitlines()[0]
    row = json.loads(line)
    assert (row["modelId"], row["layer"], row["index"]) == ("tiny-llama", "1-res-x", "0")
    assert {"maxActApprox", "frac_nonzero", "pos_str", "neg_values", "freq_hist_data_bar_heights"} <= row.keys()


def test_an_import_finds_the_files_that_describe_it(index, tmp_path):
    files = write_dashboards(index, [0, 7], tmp_path, form="jsonl", source="res-x", model_id="tiny-llama")
    assert {path.name for path in files} >= {"release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl"}
    held = {path.stem: json.loads(path.read_text()) for path in files if path.suffix == ".jsonl"}
    # what the service's database does not take without, and what joins the tables
    assert held["model"]["id"] == held["source"]["modelId"] == held["sourceset"]["modelId"] == "tiny-llama"
    assert held["source"]["setName"] == held["sourceset"]["name"] == "res-x"
    assert held["sourceset"]["releaseName"] == held["release"]["name"]
    assert held["source"]["id"] == "1-res-x"
    assert all({"creatorId", "visibility", "createdAt"} <= row.keys() for row in held.values())
    rows = [
        json.loads(line)
        for kind in ("features", "activations")
        for line in gzip.decompress((tmp_path / kind / "batch-0.jsonl.gz").read_bytes()).decode().splitlines()
    ]
    assert {(row["modelId"], row["layer"]) for row in rows} == {("tiny-llama", "1-res-x")}


def test_labels_are_written_and_read(tmp_path):
    TOPK.save(tmp_path / "own")
    whole = [[1, 1]] * 4
    label = {"label": "cats", **dict(zip(("top", "middle", "silent", "near"), whole))}
    (tmp_path / "own" / "explanations.json").write_text(json.dumps({"method": "a reader", "latents": {"5": label}}))
    made = one_site(tmp_path / "own")
    own = build_index(MODEL, made, STORE, tmp_path / "own" / "index.sqlite", IndexConfig(examples=3), quiet=True)
    write_dashboards(own, [5, 6], tmp_path / "out", form="jsonl")
    pages = read_dashboards(tmp_path / "out").pages
    label = pages[5].parts["explanation"]
    assert (label["label"], label["by"]) == ("cats", "monosem, a reader")
    assert list(label["scores"].values()) == [1.0]
    assert "explanation" not in pages[6].parts
    near = pages[5].parts["neighbours"]["decoder"]
    assert [row["latent"] for row in near[:5]] == [latent for latent, _ in latents.neighbours(made, 5, n=5)]


@pytest.mark.parametrize("place", ["", "a/b", "a/b/c", "a/b/-1", "a/b/1/2", "ftp://x/a/b/1", "a/../1", "a b/c/1"])
def test_a_place_that_names_no_latent(place):
    with pytest.raises(BadInput, match="names no latent"):
        latents.public_latent(place)


def test_without_the_network_one_line_says_so():
    with pytest.raises(BadInput, match="cannot be reached") as caught:
        latents.public_latent("gpt2-small/6-res-jb/650", site="http://127.0.0.1:9")
    assert "read_dashboards" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_latent_is_refused():
    for held in (None, [], {}, {"index": "x"}, {"index": 3, "activations": [1]}, {"index": 3, "pos_str": 5}):
        with pytest.raises(BadFile):
            read_row(held, "somewhere")


def test_an_upload_has_what_the_service_takes(index, tmp_path):
    (file,) = write_dashboards(index, index.top(2, by="count")["latent"].tolist(), tmp_path, form="upload")
    body = json.loads(file.read_text())
    assert set(body) == {"modelId", "source", "features"}
    for row in body["features"]:
        assert len(row["topLogits"]) <= 20
        assert {"token", "value"} == set(row["topLogits"][0])
        assert {"tokens", "values", "quantileMin", "quantileMax", "quantileFraction"} == set(row["activations"][0])


def test_a_list_has_an_address(index):
    url = latents.quick_list_url(index, [3, 5], "two & more", source="6-res-jb", model_id="gpt2-small")
    assert url.startswith("https://www.neuronpedia.org/quick-list/?name=two+%26+more&features=")
    with pytest.raises(UnknownName):
        latents.quick_list_url(index, [99], "x", source="6-res-jb")


def test_bad_input(index, tmp_path):
    with pytest.raises(UnknownName, match="form"):
        write_dashboards(index, [0], tmp_path, form="csv")
    with pytest.raises(BadInput, match="at least one"):
        write_dashboards(index, [], tmp_path)
    with pytest.raises(BadFile, match="no batch"):
        read_dashboards(tmp_path)
    for name, content in {
        "batch-0.json": b"[1, 2]",
        "batch-1.json": b'{"features": [1]}',
        "batch-2.json": b'{"features": [{"feature_index": -1}]}',
        "batch-3.json": b'{"features": [{"feature_index": 1, "activations": [{"tokens": 3, "values": []}]}]}',
        "batch-4.json": b'{"features": [{"feature_index": 1, "activations": [{"tokens": ["a"], "values": []}]}]}',
        "batch-5.jsonl.gz": b"no gzip",
        "batch-6.jsonl.gz": gzip.compress(b'{"index": "1"'),
        "batch-7.json": b'{"features": [{"feature_index": 1, "freq_hist_data_bar_heights": ["x"]}]}',
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadFile):
            read_dashboards(tmp_path / name)


def test_a_page_of_sae_vis_keeps_its_meaning():
    """Latents of sae_vis 0.3.7's own demonstration (gelu-1l), with fewer examples."""
    pages = read_dashboards(PAGE).pages
    assert list(pages) == [0, 23]
    for latent, (count, density, maximum) in {0: (26, 0.00005, 1.007), 23: (56, 0.00011, 2.241)}.items():
        parts = pages[latent].parts
        statistics = parts["statistics"]
        assert (statistics["count"], statistics["density"]) == (count, pytest.approx(density, rel=1e-9))
        assert statistics["maximum"] == maximum
        assert sum(bar["count"] for bar in parts["histogram"]) == count
        assert parts["histogram"][-1]["high"] == pytest.approx(maximum, abs=1e-3)
        for band in parts["intervals"]:  # shares are of active tokens, and no interval holds the silent ones
            assert band["share"] == pytest.approx(round(band["share"] * count) / count, abs=1e-5)
            assert all(band["low"] < one["maximum"] <= band["high"] + 1e-3 for one in band["examples"])
        assert all(one["anchor"] == 5 for one in parts["examples"])
        assert any("square root" in remark for remark in parts["unreliable"])
        assert not any("silent" in remark for remark in parts["unreliable"])
    first = pages[0].parts
    assert first["intervals"][-1]["share"] == pytest.approx(7 / 26, abs=1e-5)
    assert first["examples"][0]["tokens"][-2:] == ["\n       ", " value"]
    assert first["logits"]["promoted"][0] == {"token": "UST", "effect": 0.88}
    assert first["neurons"]["rows"][0] == {"neuron": 1835, "value": 0.18, "share": 0.005}
    assert first["correlated_neurons"][0] == {"neuron": 626, "pearson": 0.014, "cosine": 0.013}
    assert first["coactive"][0] == {"latent": 2885, "pearson": 0.929, "cosine": 0.929}
    (chinese,) = [
        one["tokens"] for band in pages[23].parts["intervals"] for one in band["examples"] if "的" in one["tokens"]
    ]
    assert chinese[3:] == ["", "获", "取", "文件", "关", "", "联", "的"]


@pytest.mark.parametrize("file", [FILE, PAGE], ids=["sae-dashboard", "sae_vis"])
def test_changed_values_are_read_or_refused(file, tmp_path):
    """Any value of the data replaced by one of another kind."""
    whole, rng = file.read_text(), np.random.default_rng(1)
    start = whole.index("return {") + 7 if file.suffix == ".html" else 0
    line = whole[start:].partition("\n")[0].rstrip(";") if start else whole
    strange = [None, True, -1, 1e300, 10**40, "x", "\x1b[31m", [], [[]], {}, {"a": 1}, float("nan")]
    path, refused = tmp_path / f"batch-0{file.suffix}", []
    for _ in range(80):
        held = json.loads(line)
        place = held
        for _ in range(int(rng.integers(1, 9))):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[rng.integers(len(keys))]
            if not isinstance(place[key], dict | list) or not place[key]:
                break
            above, at, place = place, key, place[key]
        else:
            place, key = above, at
        place[key] = strange[rng.integers(len(strange))]
        path.write_text(whole.replace(line, json.dumps(held)))
        try:
            for page in read_dashboards(path).pages.values():
                export_page([page.to_json()])
        except BadFile as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in words for words in refused)


def test_what_is_no_page_of_sae_vis_is_refused(tmp_path):
    for content in (
        "<p>nothing</p>",
        "function defineData() {\n return {};\n}",
        "function defineData() {\n return [1];",
    ):
        (tmp_path / "x.html").write_text(content)
        with pytest.raises(BadFile):
            read_dashboards(tmp_path / "x.html")


def test_changed_files_are_read_or_refused(tmp_path):
    whole, rng = FILE.read_bytes(), np.random.default_rng(0)
    path, refused = tmp_path / "batch-0.json", 0
    for _ in range(60):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            changed[at] = rng.integers(32, 127)
        path.write_bytes(changed)
        try:
            read_dashboards(path)
        except BadFile:
            refused += 1
    assert refused
    shutil.copy(FILE, path)
    assert read_dashboards(path).table["remarks"].min() > 3
