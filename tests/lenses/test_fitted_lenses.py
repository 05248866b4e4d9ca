"""What all fitted lenses share (a header, a check, a folder), the ridge solver behind them, and the grid of cells."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from monosem import lenses
from monosem.errors import BadFile, BadInput, Mismatch
from monosem.lenses.regression import NormalEquations

DRAW = torch.Generator().manual_seed(2)
TEXTS = [torch.randint(3, 100, (length,), generator=DRAW).tolist() for length in (20, 24, 30)]
OPTIONS = {"layers": [0, 1], "quiet": True}
MADE = {
    "tuned": lambda model: lenses.TunedLens.of(model, 3),
    "future": lambda model: lenses.FutureLens.fit(model, TEXTS, offsets=[1], **OPTIONS),
    "jacobian": lambda model: lenses.JacobianLens.fit(model, TEXTS, skip_first=2, probes=2, **OPTIONS),
    "soft prompt": lambda model: lenses.SoftPrompt.of(model, 1, "one two"),
    "head": lambda model: lenses.HeadLens.of(model, [(0, 1), (2, 3)]),
    "affine": lambda model: lenses.Affine.fit(model, TEXTS, model, layer=0, target_layer=1),
    "copying effects": lambda model: lenses.copying_effects(model, "token", 2, length=8, quiet=True),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_fitted_lens_knows_its_model_and_comes_back_from_its_folder(kind, tiny_model, tmp_path):
    model = tiny_model("llama")
    lens = MADE[kind](model)
    assert (lens.kind, lens.header.model_name, lens.header.d_model) == (kind, "llama", 32)
    folder = lens.save(tmp_path / "lens")
    back = type(lens).load(folder)
    assert back.header == lens.header
    before, after = lens.numbers(), back.numbers()
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    back.check(model)
    other = tiny_model("llama", **({"num_attention_heads": 2} if kind == "copying effects" else {"hidden_size": 48}))
    with pytest.raises(Mismatch, match="other heads" if kind == "copying effects" else "width 32; .* make one with"):
        back.check(other)

    held = load_file(folder / "lens.safetensors")
    for name, tensor in held.items():
        broken = {"shape": tensor[..., None], "empty": torch.zeros(0)}
        if tensor.is_floating_point() and name != "errors":
            broken["NaN"] = torch.full_like(tensor, torch.nan)
        for change in broken.values():
            save_file(held | {name: change}, folder / "lens.safetensors")
            with pytest.raises(BadFile, match="does not hold|tensor"):
                type(lens).load(folder)
    save_file(held, folder / "lens.safetensors")

    config = json.loads((folder / "config.json").read_text())
    assert config["lens"] == kind
    (folder / "config.json").write_text(json.dumps({"lens": kind, "d_model": 32}))
    with pytest.raises(BadFile, match="lens"):
        type(lens).load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"lens": "another"}))
    with pytest.raises(BadFile, match="'another' lens, not a"):
        type(lens).load(folder)


@pytest.mark.parametrize("per", ["mean", "coordinate"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_ridge_is_least_squares_with_the_penalty_as_more_rows(per, weighted):
    """Against numpy: √(penalty) I stacked under the weighted, centred data; a constant coordinate far from zero."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(300, 5, generator=draw) * torch.tensor([1.0, 4, 0.3, 1, 2]) + torch.tensor([0.0, 1, 1e3, -2, 5])
    y = x @ torch.randn(5, 3, generator=draw) + torch.randn(300, 3, generator=draw)
    w = torch.rand(300, generator=draw) + 0.1 if weighted else torch.ones(300)
    sums = NormalEquations()
    for part in (slice(0, 100), slice(100, 290), slice(290, None)):
        sums.add(x[part], y[part], w[part] if weighted else None)
    matrix, bias = sums.solve(0.2, per)
    share = (w / w.sum()).double().numpy()[:, None]
    x, y = x.double().numpy(), y.double().numpy()
    mean_x, mean_y = (share * x).sum(0), (share * y).sum(0)
    a, b = (x - mean_x) * np.sqrt(share), (y - mean_y) * np.sqrt(share)
    variance = (a**2).sum(0)
    penalty = np.full(5, variance.mean()) if per == "mean" else variance
    want, *_ = np.linalg.lstsq(np.vstack([a, np.diag(np.sqrt(0.2 * penalty))]), np.vstack([b, np.zeros((5, 3))]))
    np.testing.assert_allclose(matrix, want, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(bias, mean_y - mean_x @ want, rtol=2e-3, atol=2e-2)


def test_no_row_is_no_map():
    with pytest.raises(BadInput, match="no token to fit"):
        NormalEquations().solve(0.1, "mean")


def test_every_reading_has_the_same_columns_and_heatmap(tiny_model):
    model = tiny_model("llama")
    text = "the cat sat on"
    future = lenses.FutureLens.fit(model, TEXTS, offsets=[0, 1], quiet=True)
    readings = [
        lenses.logit(model, text),
        lenses.entropy_profile(model, text),
        lenses.trajectory(model, text, "the dog sat on"),
        lenses.patchscope(model, text, "one two three", quiet=True),
        future(model, text),
    ]
    for seen in readings:
        table = seen.table
        assert {"site", "layer", "row", "position", "token"} <= set(table.columns)
        assert table.site.iloc[0] == "resid_post.0"
        assert table.token[table.position == 1].unique().tolist() == [" cat"]
        figure = seen.plot_tokens() if isinstance(seen, lenses.EntropyProfile) else seen.plot()
        heat = figure.data[0]
        assert np.asarray(heat.z).shape == (3, 4)
        assert figure.layout.yaxis.title.text == "resid_post, layer"
        if heat.customdata is not None:
            assert heat.customdata[1][2].startswith("<b>resid_post.1</b>, position 2, after “ sat”<br>")
        assert seen.config["analysis"].startswith("lenses.")
        with pytest.raises(BadInput, match="no prompt 3"):
            seen.plot_tokens(3) if isinstance(seen, lenses.EntropyProfile) else seen.plot(row=3)
        assert len(seen.top(2, by="position")) == 2


def test_a_lens_may_be_a_function_with_a_name_of_its_own(tiny_model):
    model = tiny_model("llama")

    def halved(site, h):
        return h / 2

    seen = lenses.read(model, "the cat", lens=halved)
    assert seen.lens == "halved"
    assert lenses.read(model, "the cat", lens=halved, name="half").lens == "half"
    assert lenses.logit(model, "the cat").lens == "logit lens"
    torch.testing.assert_close(seen["kl"], lenses.logit(model, "the cat")["kl"], atol=1e-3, rtol=1e-3)  # RMSNorm
