"""The tuned lens: files of the tuned-lens package computed by hand, training against closed forms, evaluation."""

import hashlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monosem import lenses
from monosem.dictionaries.training import Interrupted
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.files import ASSETS
from monosem.lenses import TuneConfig, TunedLens
from monosem.lenses.regression import NormalEquations
from monosem.lenses.tuned import training as tuning
from monosem.lenses.tuned.files import printed_hash
from monosem.lenses.tuned.vocabulary import Vocabulary
from monosem.models import Model
from tiny import tiny_hf

TEXTS = ["the cat sat on the mat", "a big dog ran"]
TinyModel = Callable[..., Model]
GOLDEN = Path(__file__).parent / "golden" / "tuned_lens"
NUMBERS = json.loads((GOLDEN / "numbers.json").read_text())
SMALL: dict[str, Any] = {"context": 16, "batch_tokens": 64, "steps": 30, "log_every": 5}


def windows(n: int = 120, seed: int = 3, context: int = 16) -> Tensor:
    return torch.randint(3, 100, (n, context), generator=torch.Generator().manual_seed(seed))


def randomised(lens: TunedLens, seed: int = 0) -> TunedLens:
    draw = torch.Generator().manual_seed(seed)
    for parameter in lens.translators.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return lens


@pytest.mark.parametrize("rank", [None, 0, 5])
@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_untrained_it_is_the_logit_lens(family: str, rank: int | None, tiny_model: TinyModel) -> None:
    model = tiny_model(family)
    lens = TunedLens.of(model, rank)
    for site in ("resid_pre", "resid_post"):
        plain, seen = lenses.logit(model, TEXTS, site=site), lenses.tuned(model, TEXTS, lens, site=site)
        torch.testing.assert_close(seen["kl"], plain["kl"], equal_nan=True)
        assert torch.equal(seen.top_ids, plain.top_ids)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_lens_of_the_tuned_lens_package_is_read_as_it_reads_it(family: str, tiny_model: TinyModel) -> None:
    """Files and logits that tuned-lens 0.2.0 wrote (`peers/tuned_lens_golden.py`)."""
    model = tiny_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its hash is of this model's unembedding
        lens = TunedLens.load(GOLDEN / family)
        ids = torch.randint(3, 100, (1, 6), generator=torch.Generator().manual_seed(5))
        seen = lenses.tuned(model, ids, lens, site="resid_pre", positions="last", top=100)
    for layer, want in enumerate(NUMBERS["logits"][family]):
        want = torch.tensor(want).log_softmax(-1)
        got = torch.zeros_like(want).scatter(-1, seen.top_ids[layer, 0, -1], seen.top_probabilities[layer, 0, -1].log())
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    other = Model(tiny_hf(family, seed=5))
    with pytest.warns(UserWarning, match="another unembedding"):
        lens.check(other)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_exported_lens_has_the_hash_of_the_tuned_lens_package(
    family: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model = tiny_model(family)
    trained = TunedLens.fit(model, windows(), TuneConfig(**SMALL | {"steps": 1}), quiet=True)
    wanted = json.loads((GOLDEN / family / "config.json").read_text())
    for number, lens in enumerate((TunedLens.of(model), trained, TunedLens.load(trained.save(tmp_path / "own")))):
        lens.save(tmp_path / str(number), published=True)
        written = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert written["unembed_hash"] == wanted["unembed_hash"]
        assert set(written) == set(wanted)


def test_the_hash_of_the_tuned_lens_package() -> None:
    with np.printoptions(precision=2, threshold=5, suppress=True, linewidth=20):  # what a user prints changes nothing
        for name, hashed in NUMBERS["hashes"].items():
            shape = tuple(map(int, name.split("x")))
            whole = np.arange(np.prod(shape)).reshape(shape) * 7919 % 1009 - 500
            matrix = (whole / 2.0 ** (whole % 13)).astype(np.float32)
            assert printed_hash(matrix) == hashed, name
            ends = np.concatenate([matrix[:4], matrix[-4:]]) if shape[0] > 8 else matrix
            assert printed_hash(ends, matrix.size) == hashed or matrix.size <= 1000, name


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama"])
def test_the_published_layout_is_read_as_its_formula_says(family: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """lens_i(h) = unembed(h + W_i h + b_i) on the stream before block i, with awkward values: a permutation that is not
    symmetric, float16 tensors, a large bias, values that a transposed or shifted read would change."""
    model = tiny_model(family)
    d, layers = model.cfg.d_model, model.cfg.n_layers
    draw = torch.Generator().manual_seed(1)
    state = {}
    for i in range(layers):
        weight = torch.eye(d).roll(i + 1, 0) * torch.linspace(-2, 3, d) + 0.1 * torch.randn(d, d, generator=draw)
        state[f"{i}.weight"], state[f"{i}.bias"] = weight.half(), (10.0**i * torch.randn(d, generator=draw)).half()
    head = model.hf.get_output_embeddings().weight
    printed = np.array_str(head.detach().float().numpy(), precision=1)
    torch.save(state, tmp_path / "params.pt")
    config = {"base_model_name_or_path": "tiny", "d_model": d, "num_hidden_layers": layers, "bias": True}
    config |= {"base_model_revision": None, "lens_type": "linear_tuned_lens"}
    config["unembed_hash"] = hashlib.sha256(printed.encode()).hexdigest()
    (tmp_path / "config.json").write_text(json.dumps(config))

    lens = TunedLens.load(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the hash fits
        before = lenses.tuned(model, TEXTS[0], lens, site="resid_pre", top=100)
        after = lenses.tuned(model, TEXTS[0], lens, site="resid_post", top=100)
    hidden = model.hf(model.tokens(TEXTS[0]).ids, output_hidden_states=True).hidden_states
    norm = model.part(model.family.final_norm)
    for i in range(layers):
        linear = torch.nn.Linear(d, d)
        linear.load_state_dict({"weight": state[f"{i}.weight"].float(), "bias": state[f"{i}.bias"].float()})
        logits = head @ norm(hidden[i] + linear(hidden[i]))[0].T  # vocab pos
        if family == "gemma2":
            logits = 3.0 * torch.tanh(logits / 3.0)
        want = logits.T.softmax(-1)
        for seen, index in ((before, i), (after, i - 1)):
            if index >= 0:
                got = torch.zeros_like(want).scatter(-1, seen.top_ids[index, 0], seen.top_probabilities[index, 0])
                torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-3)
    assert float(after["kl"][-1].max()) < 1e-5  # the last block's output needs no translator


def test_saved_it_comes_back(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    for number, (rank, published) in enumerate(
        [(None, False), (4, False), (0, False), (None, True), (4, True), (0, True)]
    ):
        lens = randomised(TunedLens.of(model, rank))
        lens = replace(lens, header=replace(lens.header, metadata={"made": "here"}))
        back = TunedLens.load(lens.save(tmp_path / str(number), published=published))
        for layer in range(3):
            torch.testing.assert_close(back[layer].matrix, lens[layer].matrix.detach(), atol=1e-6, rtol=1e-6)
            assert torch.equal(back[layer].bias, lens[layer].bias)
        assert back.header.unembed_hash == lens.header.unembed_hash
        assert published or back.header == lens.header
    small = randomised(TunedLens.of(model, 4))
    small.save(tmp_path / "half", dtype=torch.float16)
    torch.testing.assert_close(TunedLens.load(tmp_path / "half")[1].down, small[1].down.detach(), atol=1e-3, rtol=1e-3)


def test_the_hash_is_recognised_in_the_dtype_of_the_training(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            trained_on = Model(tiny_hf("llama").to(dtype))
            TunedLens.of(trained_on).check(model)
            TunedLens.of(model).check(trained_on)
    other = Model(tiny_hf("llama", seed=5).to(torch.bfloat16))
    with pytest.warns(UserWarning, match="another unembedding"):
        TunedLens.of(other).check(model)


def test_what_does_not_fit_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    lens = randomised(TunedLens.of(model))
    lens.save(tmp_path / "good", published=True)
    state = torch.load(tmp_path / "good" / "params.pt", weights_only=True)

    def broken(name: str, tensors: Any = None, **config: Any) -> Path:
        folder = lens.save(tmp_path / name, published=True)
        torch.save(state if tensors is None else tensors, folder / "params.pt")
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: v for k, v in (known | config).items() if v != "gone"}))
        return folder

    class Hostile:
        def __reduce__(self) -> Any:
            return (print, ("code was run",))

    cases = [
        (broken("missing", {k: v for k, v in state.items() if k != "1.bias"}), "'1.bias' is missing"),
        (broken("shape", state | {"2.weight": torch.zeros(3, 3)}), "'2.A' is of shape"),
        (broken("nan", state | {"0.bias": torch.full((32,), math.nan)}), "NaN or infinity"),
        (broken("extra", state | {"3.weight": torch.zeros(32, 32)}), "belong to no translator: 3.A"),
        (broken("config", d_model="gone"), "does not describe a tuned lens"),
        (broken("type", lens_type="mlp_lens"), "lens_type 'mlp_lens'"),
        (broken("hostile", {"0.weight": Hostile()}), "refused"),
    ]
    for folder, message in cases:
        with pytest.raises(BadFile, match=message):
            TunedLens.load(folder)
    assert len(TunedLens.load(broken("no-bias", {k: v for k, v in state.items() if "bias" not in k}, bias=False))) == 3
    with pytest.raises(UnknownName, match="no tuned lens 'smolm2'"):
        TunedLens.load("smolm2")
    with pytest.raises(Mismatch, match="3 layers of width 32"):
        lenses.tuned(tiny_model("llama", num_hidden_layers=2), TEXTS, lens)
    with pytest.warns(UserWarning, match="another unembedding"):
        lenses.tuned(tiny_model("llama", seed=5), TEXTS, lens)
    with pytest.raises(UnknownName, match="resid_pre or resid_post"):
        lenses.tuned(model, TEXTS, lens, site="mlp_out")
    with pytest.raises(BadInput, match="rank 33"):
        TunedLens.of(model, 33)


# ---------------------------------------------------------------------- training


def test_the_loss_and_its_gradient_are_the_plain_kl(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One SGD step without momentum or decay, against autograd over the whole vocabulary at once."""
    model = tiny_model("gemma2")
    text = windows(4)
    config = TuneConfig(context=16, batch_tokens=64, steps=1, lr=0.5, momentum=0, weight_decay=0, clip=1e9)
    monkeypatch.setattr("monosem.lenses.states.ELEMENTS", 700)  # seven cells a chunk
    records: list[dict[str, Any]] = []
    trained = TunedLens.fit(model, text, config, quiet=True, on_step=records.append)
    sites = [f"resid_pre.{i}" for i in range(3)]
    run = model.run(text, capture=sites)
    for layer in range(3):
        weight, bias = torch.zeros(32, 32, requires_grad=True), torch.zeros(32, requires_grad=True)
        h = run[sites[layer]]
        log_q = model.unembed(h + h @ weight + bias).log_softmax(-1)
        log_p = run.logits.log_softmax(-1)
        loss = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
        loss.backward()
        torch.testing.assert_close(trained[layer].A, -0.5 * weight.grad, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(trained[layer].bias, -0.5 * bias.grad, atol=1e-6, rtol=1e-4)
        assert records[0]["layers"][layer] == pytest.approx(loss.item(), abs=2e-5)


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_a_sampled_vocabulary_stands_for_the_whole(family: str, tiny_model: TinyModel) -> None:
    model = tiny_model(family)
    run = model.run(windows(3), capture=["final_norm", "resid_pre.1"])
    final, h = run["final_norm"].flatten(0, 1), run["resid_pre.1"].flatten(0, 1)
    whole = model.unembed(h)
    drawn = [Vocabulary.sampled(model, final, 30, seed) for seed in range(400)]
    likeliest = run.logits.softmax(-1).flatten(0, 1).mean(0).topk(15).indices
    for vocabulary in drawn[:3]:
        assert vocabulary.ids is not None
        assert len(set(vocabulary.ids.tolist())) == len(vocabulary) == 30
        assert set(vocabulary.ids[:15].tolist()) == set(likeliest.tolist())
        plain = vocabulary.logits(h) - vocabulary.log_weight
        torch.testing.assert_close(plain, whole[:, vocabulary.ids], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            vocabulary.logits(final, norm=False) - vocabulary.log_weight,
            run.logits.flatten(0, 1)[:, vocabulary.ids],
            atol=1e-5,
            rtol=1e-5,
        )
    sums = torch.stack([vocabulary.logits(h).exp().sum(-1) for vocabulary in drawn])
    error = sums.std(0) / 20
    assert bool(((sums.mean(0) - whole.exp().sum(-1)).abs() < 5 * error).all())
    assert Vocabulary.sampled(model, final, 100, 0).ids is None
    with pytest.raises(BadInput, match="loss='kl' only"):
        TunedLens.fit(
            model, windows(), TuneConfig.model_validate(SMALL | {"vocab_sample": 9, "loss": "ce"}), quiet=True
        )


def test_next_token_loss_skips_the_last_of_a_window(tiny_model: TinyModel) -> None:
    model, text = tiny_model("llama"), windows(4)
    records: list[dict[str, Any]] = []
    config = TuneConfig(context=16, batch_tokens=64, steps=1, loss="ce")
    TunedLens.fit(model, text, config, quiet=True, on_step=records.append)
    run = model.run(text, capture="resid_pre.2")
    logits = model.unembed(run["resid_pre.2"])[:, :-1].flatten(0, 1)
    want = torch.nn.functional.cross_entropy(logits, text[:, 1:].flatten())
    assert records[0]["layers"][2] == pytest.approx(float(want), abs=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.3},
        {"optimizer": "adam", "lr": 0.02, "rank": 8},
        {"optimizer": "adam", "rank": 8, "init": "regression", "init_tokens": 800},
        {"lr": 0.3, "rank": 0, "cells": 40},
        {"optimizer": "adam", "lr": 0.02, "rank": 8, "vocab_sample": 40},
    ],
    ids=["sgd", "adam", "regression", "bias", "sampled"],
)
def test_training_beats_the_logit_lens_on_held_out_text(settings: dict[str, Any], tiny_model: TinyModel) -> None:
    model = tiny_model("gpt2")
    config = TuneConfig.model_validate(SMALL | settings)
    lens = TunedLens.fit(model, windows(), config, quiet=True)
    found = lens.evaluate(model, windows(20, seed=9), cells=None, quiet=True).table.iloc[:3]
    assert bool((found.tuned_kl < 0.95 * found.logit_kl).all()), found
    assert lens.header.rank == settings.get("rank")


def test_layers_are_clipped_one_by_one(tiny_model: TinyModel) -> None:
    config = TuneConfig(context=16, batch_tokens=64, steps=1, lr=1.0, momentum=0, weight_decay=0, clip=1e-3)
    lens = TunedLens.fit(tiny_model("llama"), windows(4), config, quiet=True)
    for translator in lens.translators:
        size = math.sqrt(float(translator.A.square().sum() + translator.bias.square().sum()))
        assert size == pytest.approx(1e-3, rel=1e-3)


def test_schedules_of_the_learning_rate() -> None:
    sgd = TuneConfig(steps=100)
    assert sgd.peak_lr == pytest.approx(0.1)
    assert [sgd.share_at(s) for s in (0, 50, 99)] == pytest.approx([1.0, 0.5, 0.01])
    adam = TuneConfig(steps=100, optimizer="adam")
    assert adam.peak_lr == 1e-3
    assert [adam.share_at(s) for s in (0, 4, 9, 10, 55, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 1 / 90])


def test_interrupted_and_resumed_it_is_the_same(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, text = tiny_model("llama"), windows(60)
    config = TuneConfig.model_validate(
        SMALL | {"steps": 12, "optimizer": "adam", "rank": 4, "cells": 30, "log_every": 1}
    )
    whole = TunedLens.fit(model, text, config, folder=tmp_path / "whole", quiet=True)

    class Stop(tuning.Interrupts):
        def __enter__(self) -> "Stop":
            return self

        def __exit__(self, *error: object) -> None: ...

    def stop(record: dict[str, Any]) -> None:
        interrupts[0].asked |= record["step"] == 5

    interrupts: list[Stop] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "Interrupts", lambda: interrupts.append(Stop()) or interrupts[0])
        with pytest.raises(Interrupted, match="after step 5; saved in"):
            TunedLens.fit(model, text, config, folder=tmp_path / "parts", quiet=True, on_step=stop)
    early = TunedLens.load(tmp_path / "parts" / "lens")
    assert early.header.metadata["steps"] == 5
    parts = TunedLens.fit(model, text, config, folder=tmp_path / "parts", quiet=True)
    for one, other in zip(whole.translators.parameters(), parts.translators.parameters(), strict=True):
        assert torch.equal(one, other)
    for folder in ("whole", "parts"):
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 13))
        if folder == "whole":
            first = lines
    assert lines == first
    with pytest.raises(Mismatch, match=r"lr: None, now 0\.5"):
        TunedLens.fit(model, text, config.model_copy(update={"lr": 0.5}), folder=tmp_path / "parts", quiet=True)
    with pytest.raises(Mismatch, match="text"):
        TunedLens.fit(model, windows(60, seed=8), config, folder=tmp_path / "parts", quiet=True)
    other = tiny_model("llama", seed=1)
    other.name = model.name
    with pytest.raises(Mismatch, match="model_weights"):
        TunedLens.fit(other, text, config, folder=tmp_path / "parts", quiet=True)


def test_stopped_in_the_regression_nothing_is_kept(tiny_model: TinyModel, tmp_path: Path) -> None:
    config = TuneConfig.model_validate(SMALL | {"init": "regression"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Interrupts, "__enter__", lambda self: setattr(self, "asked", True) or self)
        with pytest.raises(Interrupted, match="before the first step"):
            TunedLens.fit(tiny_model("llama"), windows(), config, folder=tmp_path, quiet=True)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_too_little_text_is_said_or_repeated(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    config = TuneConfig(context=16, batch_tokens=64, steps=5)
    with pytest.raises(BadInput, match="10 windows of 16 tokens, 5 steps of 4 need 20"):
        TunedLens.fit(model, windows(10), config, quiet=True)
    with pytest.raises(BadInput, match="windows have 8 tokens, the config says context=16"):
        TunedLens.fit(model, windows(100, context=8), config, quiet=True)
    lens = TunedLens.fit(model, windows(10), config.model_copy(update={"repeat": True}), quiet=True)
    assert lens.header.metadata["tokens_read"] == 5 * 64
    assert lens.header.metadata["text_tokens"] == 160


def test_regression_is_weighted_least_squares() -> None:
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(400, 6, generator=draw) * torch.tensor([1.0, 5, 0.2, 1, 1, 1]) + 2
    final = h @ torch.randn(6, 6, generator=draw) + torch.randn(400, 6, generator=draw) + 3
    final[:5] *= 1000  # sinks
    weight = 1 / final.square().mean(-1)
    sums = NormalEquations()
    for part in (slice(0, 150), slice(150, None)):
        sums.add(h[part], (final - h)[part], weight[part])
    root = (1 / final.square().mean(-1, keepdim=True)).sqrt().double().numpy()
    design = np.concatenate([h.numpy(), np.ones((400, 1))], 1) * root
    want = np.linalg.lstsq(design, (final - h).numpy() * root, rcond=None)[0]
    matrix, bias = sums.solve(1e-9, "mean")
    np.testing.assert_allclose(matrix, want[:6], atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(bias, want[6], atol=2e-3, rtol=2e-3)
    low, low_bias = sums.solve(1e-9, "mean", rank=2)
    assert int(torch.linalg.matrix_rank(low, rtol=1e-4)) == 2

    def error(a: Tensor, b: Tensor) -> float:
        return float((torch.from_numpy(root) * (h @ a + b - (final - h))).square().sum())

    best = error(low, low_bias)
    for seed in range(20):  # no rank-2 matrix near it is better
        nudge = 0.03 * torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))
        u, s, v = torch.linalg.svd(low)
        other = (u[:, :2] * s[:2] + nudge) @ (v[:2] + 0.3 * nudge.T)
        mean = (weight[:, None].double() * ((final - h).double() - h.double() @ other.double())).sum(0) / weight.sum()
        assert error(other, mean.float()) > best
    assert sums.solve(1e-3, "mean", rank=0)[0].abs().max() == 0


# ---------------------------------------------------------------------- evaluation


def test_evaluation_against_whole_logits(tiny_model: TinyModel) -> None:
    model, text = tiny_model("gemma2"), windows(6, seed=4)
    lens = randomised(TunedLens.of(model, 3))
    found = lens.evaluate(model, text, cells=None, transfer=True, quiet=True)
    sites = [f"resid_pre.{i}" for i in range(3)]
    run = model.run(text, capture=[*sites, "resid_post.2"])
    log_p = run.logits.log_softmax(-1)
    for layer, site in enumerate([*sites, "resid_post.2"]):
        states = {"logit": run[site], "tuned": lens[layer](run[site]).detach() if layer < 3 else run[site]}
        for arm, h in states.items():
            log_q = model.unembed(h).log_softmax(-1)
            row = found.table.iloc[layer]
            kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            by_window = (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)
            assert row[f"{arm}_kl_se"] == pytest.approx(float(by_window.std() / 6**0.5), abs=1e-5)
            ce = torch.nn.functional.cross_entropy(log_q[:, :-1].flatten(0, 1), text[:, 1:].flatten())
            size = sum(len(model.text(line[1:].tolist()).encode()) for line in text) / (6 * 15)
            assert row[f"{arm}_kl"] == pytest.approx(float(kl), abs=1e-5)
            assert row[f"{arm}_ce"] == pytest.approx(float(ce), abs=1e-4)
            assert row[f"{arm}_bits_per_byte"] == pytest.approx(float(ce) / math.log(2) / size, rel=1e-4)
            assert row[f"{arm}_entropy"] == pytest.approx(float(-(log_q.exp() * log_q).sum(-1).mean()), abs=1e-4)
            assert row[f"{arm}_top1"] == pytest.approx(float((log_q.argmax(-1) == log_p.argmax(-1)).float().mean()))
    assert found.transfer is not None
    assert found.transfer.shape == (3, 3)
    # on an eighth of the cells of each forward pass: the first 8 of 64, then the first 4 of 32
    want = torch.zeros(3, 3)
    for part, cells in ((slice(0, 4), 8), (slice(4, 6), 4)):
        p = log_p[part].flatten(0, 1)[:cells]
        for i in range(3):
            for j in range(3):
                q = model.unembed(lens[i](run[sites[j]][part].flatten(0, 1)[:cells])).log_softmax(-1)
                want[i, j] += (p.exp() * (p - q)).sum(-1).mean().item() / 2
    torch.testing.assert_close(found.transfer, want, atol=1e-4, rtol=1e-3)
    assert len(found.plot("kl").data) == 2
    assert np.asarray(found.plot_transfer().data[0].z).shape == (3, 3)


def test_evaluation_is_saved_and_draws_cells(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    lens = TunedLens.of(model)
    found = lens.evaluate(model, windows(20), tokens=160, cells=50, quiet=True)
    assert found.tokens == 50
    assert json.loads(found.save(tmp_path / "e.json").read_text())["config"]["tokens"] == 160
    with pytest.raises(BadInput, match="transfer=True"):
        found.plot_transfer()
    np.testing.assert_allclose(found.table.tuned_kl, found.table.logit_kl, atol=1e-6)


# ---------------------------------------------------------------------- the shipped one


def test_the_shipped_lens_has_a_card_on_which_it_beats_the_logit_lens_at_every_layer() -> None:
    folder = ASSETS / "smollm2" / "tuned_lens"
    assert TunedLens.shipped() == ["smollm2"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15e6
    card = json.loads((folder / "card.json").read_text())
    assert set(card["held_out"]) == {"wikitext2", "tinystories"}
    for measured in card["held_out"].values():
        layers = measured["layers"][:-1]
        assert len(layers) == 30
        assert all(layer["tuned_kl"] < layer["logit_kl"] for layer in layers)
        assert all(layer["tuned_top1"] > layer["logit_top1"] for layer in layers[1:])
    page = (folder / "README.md").read_text()
    for layer in card["held_out"]["wikitext2"]["layers"][:-1]:
        assert f"| {layer['site']} | {layer['tuned_kl']:.3f} | {layer['logit_kl']:.2f} |" in page


@pytest.mark.smollm2
def test_the_shipped_lens_measured_anew(smollm2: Model) -> None:
    text = (
        "The river rises in the mountains of the north and flows for two hundred miles through farms and small towns."
    )
    layers = [0, 10, 20, 28]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is of this unembedding
        seen = lenses.tuned(smollm2, text, layers=layers, measures=["kl"])
    plain = lenses.logit(smollm2, text, layers=layers, measures=["kl"])
    # read out by hand: the state through the stored factors, the model's own head
    lens = TunedLens.load("smollm2")
    run = smollm2.run(text, capture=[f"resid_pre.{layer + 1}" for layer in layers])
    log_p = run.logits.log_softmax(-1)
    for index, layer in enumerate(layers):
        h, translator = run[f"resid_pre.{layer + 1}"], lens[layer + 1]
        moved = h + h @ (translator.down @ translator.up) + translator.bias
        log_q = smollm2.hf.lm_head(smollm2.hf.model.norm(moved)).log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)[0]
        torch.testing.assert_close(seen["kl"][index, 0], kl, atol=1e-3, rtol=1e-3)
        assert float(seen["kl"][index].mean()) < float(plain["kl"][index].mean())
