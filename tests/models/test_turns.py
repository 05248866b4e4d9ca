"""One Hugging Face model, many hands: threads wait for each other, training mode is left for the length of a pass."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from monosem import edits
from monosem.data import TokenPairs
from monosem.errors import BadInput
from monosem.models import Model
from monosem.models.turns import TrainingMode
from monosem.patching import sweep
from tiny import tiny_hf, tiny_tokenizer

IDS = torch.randint(3, 100, (3, 9), generator=torch.Generator().manual_seed(1))
THREADS, RUNS = 6, 40


@pytest.fixture
def pair() -> tuple[Model, Model]:
    hf = tiny_hf("llama")
    return Model(hf, tiny_tokenizer(), "one"), Model(hf, tiny_tokenizer(), "two")


def together(jobs: list[Callable[[], torch.Tensor]], runs: int) -> list[list[torch.Tensor]]:
    """Every job `runs` times, each in a thread of its own."""
    start = Barrier(len(jobs))

    def repeat(job: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        start.wait()
        return [job() for _ in range(runs)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(repeat, jobs))


def test_threads_over_two_wrappers_run_as_if_alone(pair: tuple[Model, Model]) -> None:
    sites = ["resid_mid.1", "z.0", "pattern.1", "mlp_post.2", "resid_pre.2", "scores.0"]

    def job(number: int) -> Callable[[], torch.Tensor]:
        model, edit = pair[number % 2], edits.scale(sites[number], 0.1 * number)
        return lambda: model.run(IDS, edits=edit, capture="attn_out.2").logits  # type: ignore[return-value]

    jobs = [job(number) for number in range(THREADS)]
    alone = [one() for one in jobs]
    assert len({float(logits.sum()) for logits in alone}) == THREADS
    for expected, found in zip(alone, together(jobs, RUNS)):
        assert all(torch.equal(expected, logits) for logits in found)


def test_threads_with_edits_around_them_starts_last_tokens_generation_and_parts(pair: tuple[Model, Model]) -> None:
    one, two = pair
    stream = one.run(IDS, capture="resid_pre.1")["resid_pre.1"].flip(0)
    branch = two.branch("mlp", 1)

    def around(model: Model, factor: float) -> torch.Tensor:
        with model.editing(edits.scale("mlp_out.1", factor)):
            return model.run(IDS).logits  # type: ignore[return-value]

    jobs = [
        lambda: around(one, 3.0),
        lambda: around(one, -1.0),
        lambda: two.run(IDS, start=("resid_pre.1", stream), logits="last").logits,
        lambda: one.generate(IDS, edits=edits.scale("mlp_out.1", 2.0), max_new_tokens=4).ids.ids,
        lambda: branch.answer(stream),
        lambda: two.run(IDS, logits="last").logits,
    ]
    alone = [job() for job in jobs]
    for expected, found in zip(alone, together(jobs, 15)):
        assert all(torch.equal(expected, value) for value in found)


def test_an_edit_that_runs_its_own_model_is_refused_through_another_wrapper_too(pair: tuple[Model, Model]) -> None:
    one, two = pair
    for other in pair:
        inner = edits.function("resid_post.0", lambda x, m=other: m.run(IDS, capture="resid_post.0")["resid_post.0"])
        with pytest.raises(BadInput, match="while"):
            one.run(IDS, edits=inner)
    assert torch.equal(one.run(IDS).logits, two.run(IDS).logits)  # type: ignore[arg-type]


def with_dropout(family: str) -> Model:
    rates = {"gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}, "llama": {"attention_dropout": 0.5}}
    return Model(tiny_hf(family, **rates[family]), tiny_tokenizer(), family)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_training_mode_is_left_for_every_pass(family: str) -> None:
    model = with_dropout(family)
    branch, tokens = model.branch("mlp", 1), model.tokens(IDS)
    stream = model.run(tokens, capture="resid_pre.1")["resid_pre.1"]

    def everything() -> list[torch.Tensor]:
        grad = model.run(tokens, capture="resid_pre.1", grad=True)
        (slope,) = torch.autograd.grad(grad.logits.sum(), [grad["resid_pre.1"]])  # type: ignore[union-attr]
        run = model.run(tokens, capture=["pattern.1", "mlp_post.1"])
        return [
            *(run.logits, run["pattern.1"], run["mlp_post.1"], slope),  # type: ignore[list-item]
            model.generate(tokens, max_new_tokens=6).ids.ids,
            branch.answer(stream),
            model.unembed(stream),
        ]

    expected = everything()
    model.hf.train()
    with pytest.warns(TrainingMode, match="dropout"):
        found = everything()
    for one, other in zip(expected, found):
        assert torch.equal(one, other)
    assert all(module.training for module in model.hf.modules())
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error", TrainingMode)
        model.run(tokens)


def test_sweeps_leave_training_mode_too() -> None:
    model = with_dropout("gpt2")
    pairs = TokenPairs.of(model, [[7, 21, 33, 40, 52]], [[7, 21, 34, 40, 55]], [11], [12])
    expected = sweep(model, pairs, "resid_pre", quiet=True)
    model.hf.train()
    with pytest.warns(TrainingMode):
        found = sweep(model, pairs, "resid_pre", quiet=True)
    assert torch.equal(expected.mean(), found.mean())


def test_one_module_in_training_mode_is_enough_and_is_the_one_restored() -> None:
    """As an adapter's dropout that was added after wrapping."""
    model = with_dropout("gpt2")
    expected = model.run(IDS).logits
    added = nn.Sequential(model.hf.transformer.h[1].mlp.c_proj, nn.Dropout(0.5))
    model.hf.transformer.h[1].mlp.c_proj = added
    assert added[1].training
    with pytest.warns(TrainingMode):
        found = model.run(IDS).logits
    assert torch.equal(found, expected)  # type: ignore[arg-type]
    assert [m for m in model.hf.modules() if m.training] == [added, added[1]]


def test_gradients_inside_inference_mode_are_refused(pair: tuple[Model, Model]) -> None:
    model, _ = pair
    with torch.inference_mode():
        assert model.run(IDS, capture="z.0").logits is not None
        with pytest.raises(BadInput, match="inference_mode"):
            model.run(IDS, capture="z.0", grad=True)
        loaded = Model(tiny_hf("llama"))
    with pytest.raises(BadInput, match="loaded inside"):
        loaded.run(IDS, capture="z.0", grad=True)
    assert loaded.run(IDS).logits is not None
