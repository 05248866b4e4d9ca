"""The sweep of latents x values: right numbers, resumable, refuses another config in its folder."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from monosem import edits
from monosem.dictionaries import Dictionary
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.models import Model
from monosem.steering import LatentSweep, sweep_latents
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


@pytest.fixture(scope="module")
def sae():
    return tiny_dictionary()


def go(model, sae, folder, **options):
    settings = {"latents": range(5), "values": [-10.0, 20.0], "max_new_tokens": 4, "batch_size": 3, "quiet": True}
    settings |= options
    return sweep_latents(model, sae, settings.pop("latents"), folder=folder, **settings)


@pytest.mark.parametrize("prompt", [None, "the cat sat"])
def test_rows_equal_single_clamps(model, sae, tmp_path, prompt):
    found = go(model, sae, tmp_path, prompt=prompt)
    assert len(found.table) == 10
    assert found.table["score"].is_monotonic_decreasing
    ids = [[model.bos]] if prompt is None else prompt
    for row in found.table.itertuples():
        edit = edits.clamp(sae, int(row.latent), float(row.value)).at(positions=slice(1, None))
        made = model.generate(ids, edits=edit, max_new_tokens=4)
        assert row.text == made.texts[0]
        if prompt is None:  # a clamp from no context is the same thing in `generate`
            plain = edits.clamp(sae, int(row.latent), float(row.value))
            assert row.text == model.generate(edits=plain, max_new_tokens=4).texts[0]
        start = [model.bos, made.new[0][0]] if prompt is None else prompt  # BOS itself is not edited
        p, q = (
            model.run([start] if prompt is None else start, edits=e).logits[0, -1].log_softmax(-1) for e in ((), edit)
        )
        assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-5)
    assert found.baseline["text"] == model.generate(ids, max_new_tokens=4).texts[0]


def test_an_edit_around_a_sweep_that_knows_where_the_prompt_ends(model, sae, tmp_path):
    """The whole continuation is read again, where the prompt's last token is another one."""
    edit = edits.add(("resid_post.0", torch.ones(32)), 3.0)
    with model.editing(edit.at(positions=-1)), pytest.raises(BadInput, match="where the prompt ends"):
        go(model, sae, tmp_path / "last", prompt="the cat sat")
    with model.editing(edit.at(positions=2)):
        found = go(model, sae, tmp_path / "third", prompt="the cat sat")
        for row in found.table.itertuples():
            clamp = edits.clamp(sae, int(row.latent), float(row.value)).at(positions=slice(1, None))
            p, q = (model.run("the cat sat", edits=e).logits[0, -1].log_softmax(-1) for e in ((), clamp))
            assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-5)


def test_files(model, sae, tmp_path):
    found = go(model, sae, tmp_path)
    text = (tmp_path / "sweep.txt").read_text()
    assert text.count("== latent") == 5
    assert "the BOS token alone" in text
    stored = pd.read_parquet(tmp_path / "sweep.parquet")
    assert list(zip(stored["latent"], stored["value"])) == [(i, v) for i in range(5) for v in (-10.0, 20.0)]
    pd.testing.assert_frame_equal(LatentSweep.load(tmp_path).table, found.table)
    found.save(tmp_path / "ranked.csv")
    assert len(pd.read_csv(tmp_path / "ranked.csv")) == 10
    with pytest.raises(BadInput, match="end it in .html, .csv"):
        found.save(tmp_path / "ranked.xls")


def test_ctrl_c_keeps_what_is_done_and_goes_on(model, sae, tmp_path, monkeypatch):
    whole = go(model, sae, tmp_path / "whole", temperature=1.0)
    calls = []
    generate = Model.generate

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:  # the baseline and two batches are done
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(Model, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(model, sae, tmp_path / "cut", temperature=1.0)
    assert len(list((tmp_path / "cut" / "parts").glob("*.parquet"))) == 2
    assert (tmp_path / "cut" / "sweep.txt").read_text().count("== latent") == 3
    assert len(LatentSweep.load(tmp_path / "cut").table) == 6
    calls.clear()
    calls += [0] * 100
    resumed = go(model, sae, tmp_path / "cut", temperature=1.0)
    assert len(calls) == 103  # the baseline and the two batches that were missing, nothing else
    pd.testing.assert_frame_equal(resumed.table, whole.table)


def test_another_config_is_refused(model, sae, tmp_path):
    go(model, sae, tmp_path)
    with pytest.raises(Mismatch, match=r"values: \[-10.0, 20.0\], now \[1.0\]"):
        go(model, sae, tmp_path, values=[1.0])
    other = Dictionary(replace(sae.parts, tensors=replace(sae.tensors, W_dec=sae.W_dec + 1)))
    with pytest.raises(Mismatch, match="weights: "):
        go(model, other, tmp_path)


def test_no_op_clamp_is_found_to_have_no_effect(model, sae, tmp_path):
    """A latent that is silent on the prompt, set to 0, changes nothing: the error term is kept."""
    active = sae.latent_activations(model.run("the cat sat", capture=sae.site)[sae.site], range(24))[0].amax(0)
    silent = [i for i in range(24) if active[i] == 0][:2]
    found = go(model, sae, tmp_path, latents=silent, values=[0.0], prompt="the cat sat")
    assert found.table["kl"].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"latents": [99]}, UnknownName, "0 to 23"),
        ({"latents": []}, BadInput, "no latents"),
        ({"values": []}, BadInput, "finite"),
        ({"values": [float("nan")]}, BadInput, "finite"),
        ({"prompt": ""}, BadInput, "empty"),
        ({"max_new_tokens": 1}, BadInput, "at least 2 new tokens"),
    ],
)
def test_bad_input(model, sae, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        go(model, sae, tmp_path, **options)


def test_wrong_model(model, sae, tmp_path):
    other = tiny_model("llama", name="other")
    with pytest.raises(Mismatch):
        go(other, sae, tmp_path)


def test_unwritable_folder(model, sae, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="choose another folder"):
        go(model, sae, tmp_path / "file" / "folder")


def test_config_is_saved(model, sae, tmp_path):
    go(model, sae, tmp_path, seed=7)
    held = json.loads((tmp_path / "job.json").read_text())["config"]
    assert (held["seed"], held["latents"], held["prompt"]) == (7, list(range(5)), None)


def test_plot(model, sae, tmp_path):
    figure = go(model, sae, tmp_path).plot()
    assert sum(len(trace.x) for trace in figure.data) == 10


@pytest.mark.parametrize("value", [1e300, 1e39, 1e18, -1e39])
def test_values_that_no_model_computes_with_are_refused_before_anything_is_made(model, sae, tmp_path, value):
    with pytest.raises(BadInput, match=r"at most 1e\+17"):
        go(model, sae, tmp_path / "x", values=[1.0, value])
    assert list(tmp_path.iterdir()) == []


def test_effects_that_are_no_numbers_stop_it(model, sae, tmp_path, monkeypatch):
    from monosem.steering import sweep as module

    monkeypatch.setattr(module, "kl", lambda p, q: (p - q).sum(-1) * float("nan"))
    with pytest.raises(BadInput, match="the KL of latent 0 at -10 is nan, which is no effect"):
        go(model, sae, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []  # nor does it leave an empty folder


def test_the_folder_knows_weights_and_dtype(model, sae, tmp_path):
    go(model, sae, tmp_path)
    half = tiny_model("llama", name="tiny")
    half.hf.to(torch.float64)
    with pytest.raises(Mismatch, match="dtype: 'float32', now 'float64'"):
        go(half, sae, tmp_path)
    other = tiny_model("llama", name="tiny")
    with torch.no_grad():
        other.hf.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    with pytest.raises(Mismatch, match="model_weights: "):
        go(other, sae, tmp_path)
    trained = Dictionary(replace(sae.parts, tensors=replace(sae.tensors, W_enc=sae.W_enc + 1)))
    with pytest.raises(Mismatch, match="weights: "):
        go(model, trained, tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", pd.DataFrame({"latent": [1]}), pd.DataFrame({"x": [[1]]})])
def test_a_damaged_part_is_named(model, sae, tmp_path, content):
    go(model, sae, tmp_path)
    part = next((tmp_path / "parts").iterdir())
    content.to_parquet(part) if isinstance(content, pd.DataFrame) else part.write_bytes(content)
    for call in (lambda: go(model, sae, tmp_path), lambda: LatentSweep.load(tmp_path)):
        with pytest.raises(BadFile, match=f"{part.name}.* run the sweep again"):
            call()
