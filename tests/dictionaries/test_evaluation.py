"""Evaluation: every number against a dense numpy oracle, and cases whose answer is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from monosem import edits
from monosem.activations import SkipRule
from monosem.data import TokenStore
from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors, evaluate, evaluate_each
from monosem.dictionaries.rerun import entry, rest_of_run
from monosem.errors import BadInput, Mismatch
from monosem.models import Site, TokenBatch
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

D, F, CONTEXT = 32, 50, 12


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


@pytest.fixture(scope="module")
def windows():
    ids = torch.randint(4, 100, (7, CONTEXT), generator=torch.Generator().manual_seed(0))
    ids[2, 5] = ids[4, 1] = 1  # </s>, a special token
    return ids


def sae(seed=0, site="resid_post.1", kind="topk", d_in=D, d_out=D, **options) -> Dictionary:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(d_in, F), (F,), (F, d_out), (d_out,)]
    tensors = [torch.randn(shape, generator=draw) / shape[0] ** 0.5 for shape in shapes]
    tensors[1][:6] = -50.0  # six latents that can never be active
    options = {"k": 6} | options if kind == "topk" else options
    return Dictionary(
        DictionaryParts(DictionaryTensors(*tensors), kind, site=site, model_name="tiny", name="test", **options)
    )


def identity(bias=0.0, scale=1.0) -> Dictionary:
    """x = relu(x) - relu(-x), exactly (times `scale`)."""
    eye = torch.eye(D)
    weights = DictionaryTensors(
        torch.cat([eye, -eye], 1), torch.zeros(2 * D), scale * torch.cat([eye, -eye]), torch.full((D,), bias)
    )
    return Dictionary(DictionaryParts(weights, "relu", site="resid_post.1", model_name="tiny", name="identity"))


def constant(value: torch.Tensor) -> Dictionary:
    weights = DictionaryTensors(torch.zeros(D, F), torch.full((F,), -1.0), torch.zeros(F, D), value)
    return Dictionary(DictionaryParts(weights, "relu", site="resid_post.1", model_name="tiny", name="constant"))


def counted(model, windows, dictionary, outlier):
    """Which tokens count: not first, not special, norm within `outlier` medians (all windows calibrate here)."""
    x = model.run(windows, capture=dictionary.site)[dictionary.site].flatten(2)
    keep = torch.ones(windows.shape, dtype=torch.bool)
    keep[:, 0] = False
    keep &= ~torch.isin(windows, torch.tensor(sorted(model.special_ids)))
    if outlier:
        keep &= x.norm(dim=-1) <= outlier * x[keep].norm(dim=-1).median()
    return keep


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def oracle(model, windows, dictionary, keep, batch_size=None):
    """All metrics, dense, in float64, from definitions; edits in place of the evaluation's partial runs."""
    run = model.run(windows, capture={dictionary.site, dictionary.site_out})
    target = run[dictionary.site_out]
    x, t, m = run[dictionary.site].flatten(2), target.flatten(2).double().numpy(), keep.numpy()
    acts = dictionary.encode(x).dense().double().numpy()[m]
    y = dictionary(x).flatten(2).double().numpy()
    e, xs, ys = (t - y)[m], t[m], y[m]
    n = len(e)
    spliced = torch.where(keep.reshape(*keep.shape, *[1] * (target.ndim - 2)), dictionary(x).view_as(target), target)
    counted = torch.where(keep.reshape(*keep.shape, *[1] * (target.ndim - 2)), 0, target)
    logits = {"clean": run.logits}
    for name, value in (("spliced", spliced), ("zero", torch.zeros_like(target)), ("zero_counted", counted)):
        logits[name] = model.run(windows, edits=edits.patch(dictionary.site_out, value)).logits
    logp = {name: log_softmax(value.double().numpy())[:, :-1][m[:, :-1]] for name, value in logits.items()}
    next_id = windows[:, 1:].numpy()[m[:, :-1]]
    ce = {name: -value[np.arange(len(next_id)), next_id].mean() for name, value in logp.items()}
    kl = {name: (np.exp(logp["clean"]) * (logp["clean"] - logp[name])).sum(-1).mean() for name in logp}
    legacy = []
    for start in range(0, len(windows), batch_size or len(windows)):
        part = slice(start, start + (batch_size or len(windows)))
        tx, te = t[part][m[part]], (t - y)[part][m[part]]
        legacy += list(1 - (te**2).sum(-1) / ((tx - tx.mean(0)) ** 2).sum(-1))
    total = ((xs - xs.mean(0)) ** 2).sum()
    return {
        "fve": 1 - (e**2).sum() / total,
        "fve_centred_error": 1 - ((e - e.mean(0)) ** 2).sum() / total,
        "fve_legacy": np.mean(legacy),
        "l0": (acts != 0).sum(-1).mean(),
        "cosine": np.mean((xs * ys).sum(-1) / np.linalg.norm(xs, axis=-1) / np.linalg.norm(ys, axis=-1)),
        "mse": (e**2).sum(-1).mean(),
        "l2_ratio": np.mean(np.linalg.norm(ys, axis=-1) / np.linalg.norm(xs, axis=-1)),
        "relative_reconstruction_bias": (ys**2).sum(-1).mean() / (xs * ys).sum(-1).mean(),
        "dead_fraction": ((acts != 0).sum(0) == 0).mean(),
        "ce_clean": ce["clean"],
        "ce_spliced": ce["spliced"],
        "ce_zero": ce["zero"],
        "ce_recovered": (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["clean"]),
        "kl": kl["spliced"],
        "kl_zero": kl["zero"],
        "kl_score": (kl["zero"] - kl["spliced"]) / kl["zero"],
        "ce_zero_counted": ce["zero_counted"],
        "ce_recovered_counted": (ce["zero_counted"] - ce["spliced"]) / (ce["zero_counted"] - ce["clean"]),
        "kl_zero_counted": kl["zero_counted"],
        "kl_score_counted": (kl["zero_counted"] - kl["spliced"]) / kl["zero_counted"],
        "tokens": n,
        "predictions": len(next_id),
        "density": (acts != 0).mean(0),
    }


@pytest.mark.parametrize(
    "dictionary",
    [
        sae(),
        sae(token_norm="layer_norm"),
        sae(kind="relu", site="mlp_out.0"),
        sae(site="resid_post.2"),
        sae(site="z.1"),
        sae(kind="relu", d_in=48, site="mlp_post.1", site_out="mlp_out.1"),
    ],
    ids=["start", "layer_norm", "patch", "last_block", "heads", "transcoder"],
)
def test_every_number_equals_a_dense_oracle(model, windows, dictionary):
    keep = counted(model, windows, dictionary, outlier=1.3)
    assert 0 < keep.sum() < windows.numel() - len(windows) - 2  # the rule does leave outliers out here
    rule = SkipRule(outlier=1.3)
    found = evaluate(model, dictionary, windows, batch_size=3, skip=rule, quiet=True)
    for name, value in oracle(model, windows, dictionary, keep, batch_size=3).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=2e-4, atol=2e-5, err_msg=name)
    assert found.skipped["first"] == 7
    assert found.skipped["special"] == 2
    assert sum(found.skipped.values()) + found.tokens == windows.numel()
    assert found.dead_fraction >= 6 / F


def test_dictionaries_together_get_the_numbers_of_each_alone_from_fewer_passes(model, windows, monkeypatch):
    """The oracle evaluates them one after the other: of two sites, with rules that count other tokens."""
    every = {"skip_rule": {"special": False, "first": 0, "outlier": None}}
    together = {
        "one": sae(),
        "another": sae(seed=1),
        "itself": identity(),  # what it puts in is what was there
        "zeros": constant(torch.zeros(D)),
        "all tokens": sae(seed=2, metadata=every),
        "earlier": sae(kind="relu", site="mlp_out.0"),
        "transcoder": sae(kind="relu", d_in=48, site="mlp_post.1", site_out="mlp_out.1"),
    }
    options, passes, run = {"batch_size": 3, "quiet": True}, [], type(model).run
    alone = {name: evaluate(model, one, windows, **options) for name, one in together.items()}

    def noted(*args, **more):
        passes.append(more.get("logits", True))
        return run(*args, **more)

    monkeypatch.setattr(type(model), "run", noted)
    found = evaluate_each(model, together, windows, **options)
    assert passes.count(True) == 3 * (1 + 4 + 2 + 3 + 3)  # 3 batches; alone, each takes 4
    for name, one in found.items():
        told, expected = one.to_dict(density=True), alone[name].to_dict(density=True)
        assert told.pop("config")["dictionary"] == together[name].name
        del expected["config"]
        assert told == expected, name
    assert found["all tokens"].tokens == windows.numel() > found["one"].tokens
    with pytest.raises(BadInput, match="at least one dictionary"):
        evaluate_each(model, {}, windows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "qwen3_moe"])
def test_the_rest_of_a_pass_is_the_pass_with_the_value_in_it(family, monkeypatch):
    """Of every kind of place, in the first, a middle and the last layer; the oracle runs the whole model."""
    model, started = tiny_model(family), []
    tokens = TokenBatch.whole(torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(0)))
    sites = [
        Site(name, layer) for layer in range(3) for name in ("resid_pre", "resid_post", "attn_out", "z", "mlp_out")
    ]
    entries = {before for site in sites if (before := entry(model, site)) is not None}
    clean, run = model.run(tokens, capture={*sites, *entries}), model.run
    monkeypatch.setattr(model, "run", lambda *args, **more: started.append("start" in more) or run(*args, **more))
    for site in sites:
        value = clean[site] + torch.randn(clean[site].shape, generator=torch.Generator().manual_seed(1))
        whole = run(tokens, edits=edits.patch(site, value)).logits
        for given in (clean, None):
            rest = rest_of_run(model, tokens, site, value, clean=given).logits
            torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-5)
    assert started.count(True) == 2 * 5 + 7  # in the stream; in a block that has one before it, with a clean run


def test_batch_size_does_not_matter_but_for_the_legacy_number(model, windows):
    one, all_ = (evaluate(model, sae(), windows, batch_size=n, quiet=True) for n in (1, 7))
    for name, interval in one.intervals.items():
        np.testing.assert_allclose(interval, all_.intervals[name], rtol=1e-4, atol=1e-5)
    for name, value in one.to_dict(density=True).items():
        if name not in ("fve_legacy", "config", "skipped", "intervals"):
            np.testing.assert_allclose(value, all_.to_dict(density=True)[name], rtol=1e-4, atol=1e-5)


def test_a_perfect_dictionary(model, windows):
    found = evaluate(model, identity(), windows, quiet=True)
    for name in ("fve", "fve_centred_error", "fve_legacy", "cosine", "l2_ratio", "relative_reconstruction_bias"):
        assert getattr(found, name) == pytest.approx(1, abs=1e-6)
    assert found.ce_recovered == pytest.approx(1, abs=1e-4)
    assert found.kl == pytest.approx(0, abs=1e-5)
    assert found.l0 == pytest.approx(D)


def test_a_constant_error_is_punished_by_the_headline_only(model, windows):
    found = evaluate(model, identity(bias=0.7), windows, quiet=True)
    assert found.fve_centred_error == pytest.approx(1, abs=1e-6)
    assert found.mse == pytest.approx(D * 0.49, rel=1e-5)
    assert found.fve < 0.95


def test_the_mean_explains_nothing(model, windows):
    keep = counted(model, windows, sae(), outlier=10)
    x = model.run(windows, capture="resid_post.1")["resid_post.1"][keep]
    found = evaluate(model, constant(x.mean(0)), windows, quiet=True)
    assert found.fve == pytest.approx(0, abs=1e-5)
    assert found.l0 == 0
    assert found.dead_fraction == 1
    zeros = evaluate(model, constant(torch.zeros(D)), windows, quiet=True)
    assert zeros.ce_recovered_counted == pytest.approx(0, abs=1e-6)  # the skipped tokens keep theirs in both
    assert zeros.kl_score_counted == pytest.approx(0, abs=1e-6)
    everywhere = evaluate(model, constant(torch.zeros(D)), windows, splice_all=True, quiet=True)
    assert everywhere.ce_recovered == pytest.approx(0, abs=1e-6)
    assert everywhere.kl_score == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [0.8, 1.3])
def test_a_scaled_reconstruction_shows_as_its_scale(model, windows, scale):
    found = evaluate(model, identity(scale=scale), windows, quiet=True)
    assert found.relative_reconstruction_bias == pytest.approx(scale, rel=1e-5)
    assert found.l2_ratio == pytest.approx(scale, rel=1e-5)
    assert found.cosine == pytest.approx(1, abs=1e-6)


def test_splicing_everywhere_is_the_splice_edit(model, windows):
    dictionary = sae()
    found = evaluate(model, dictionary, windows, splice_all=True, quiet=True)
    keep = counted(model, windows, dictionary, outlier=10)[:, :-1]
    logits = model.run(windows, edits=edits.splice(dictionary, everywhere=True)).logits
    loss = -logits.log_softmax(-1)[:, :-1].gather(-1, windows[:, 1:, None])[..., 0]
    assert found.ce_spliced == pytest.approx(float(loss[keep].mean()), rel=1e-5)
    kept_only = evaluate(model, dictionary, windows, quiet=True)
    assert kept_only.ce_spliced != pytest.approx(found.ce_spliced, rel=1e-3)
    assert kept_only.fve == pytest.approx(found.fve)


def test_saelens_own_evaluation_gives_the_same():
    """`run_evals` of SAELens 6.54.12 on the same weights and windows; peers/saelens_evaluation.py wrote its numbers."""
    golden = json.loads((Path(__file__).parent / "golden" / "saelens_evaluation.json").read_text())
    dictionary = tiny_dictionary("topk", random_tensors(D, F, 0, (0.1, 0.3)), k=6)
    windows, rule = torch.tensor(golden["windows"]), SkipRule(first=0, outlier=None)
    found = evaluate(tiny_model("llama", name="tiny"), dictionary, windows, batch_size=2, skip=rule, quiet=True)
    its_kl = [name for name in golden["expected"] if name.startswith("kl")]  # counts the last position as well
    for name, value in golden["expected"].items():
        if name not in its_kl:
            np.testing.assert_allclose(getattr(found, name), value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert found.ce_recovered_counted != pytest.approx(found.ce_recovered, rel=1e-3)  # special tokens keep theirs


def test_text_windows_and_stores_give_the_same(model):
    texts = [
        "the cat sat on the mat and the dog ran to the sea",
        "a woman was very happy in paris",
        "one two three",
    ] * 4
    store = TokenStore.build(model, texts, 16)
    by_text = evaluate(model, sae(), texts, context=16, quiet=True)
    assert by_text.to_dict() == evaluate(model, sae(), store, quiet=True).to_dict()
    assert by_text.to_dict() == evaluate(model, sae(), store[:], quiet=True).to_dict()
    some = evaluate(model, sae(), store, tokens=40, quiet=True)
    assert some.config["windows"] == 2
    assert some.to_dict() == evaluate(model, sae(), texts, context=16, tokens=40, quiet=True).to_dict()


def test_bad_input(model, windows):
    for documents in ([], [""], ["the cat"]):
        with pytest.raises(BadInput, match="too few for one window"):
            evaluate(model, sae(), documents, context=16, quiet=True)
    with pytest.raises(BadInput, match="a single string is not a corpus"):
        evaluate(model, sae(), "the cat", quiet=True)
    with pytest.raises(BadInput):
        evaluate(model, sae(), torch.ones(3, 8, dtype=torch.long), quiet=True)  # nothing but special tokens
    with pytest.raises(BadInput, match="no token of this text counts"):
        evaluate(model, sae(), torch.ones(3, 8, dtype=torch.long), skip=SkipRule(outlier=None), quiet=True)
    with pytest.raises(BadInput, match="context 64"):
        evaluate(model, sae(), torch.full((1, 65), 5), quiet=True)
    for name in ("tokens", "batch_size"):
        with pytest.raises(BadInput, match=f"{name} must be at least 1"):
            evaluate(model, sae(), windows, **{name: 0}, quiet=True)
    with pytest.raises(Mismatch, match="width 16"):
        evaluate(model, sae(d_in=16, d_out=16), windows, quiet=True)


def test_a_result_explains_and_saves_itself(model, windows, tmp_path):
    found = evaluate(model, sae(), windows, quiet=True)
    assert found.table.set_index("metric").loc["fve", "value"] == found.fve
    assert "SAELens" in found.table.set_index("metric").loc["fve", "meaning"]
    found.save(tmp_path / "evaluation.json")
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["fve"] == found.fve
    np.testing.assert_allclose(saved["density"], found.density, rtol=1e-5)
    assert saved["config"]["site"] == "resid_post.1"
    assert saved["config"]["skip"]["outlier"] == 10.0
    assert "density" not in found.to_dict()
