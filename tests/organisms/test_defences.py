"""Circuit breakers: the losses in NumPy, what a short training does to the states, and the job around it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

from monosem.defences import RerouteConfig, _Rows, coefficients, reroute, rerouting_loss, retain_loss
from monosem.errors import BadInput, Mismatch
from monosem.jobs import Checkpoints, module_fingerprint
from monosem.models import Model, load_model
from tiny import tiny_model, tiny_tokenizer

STOP = [("the cat", " sat on the mat"), "a dog sat", ("the dog", " ran"), "the mat sat on the dog"]
KEEP = ["on the mat the cat ran", "the cat the cat", ("a", " cat"), "ran ran ran"]
SMALL: dict[str, Any] = {"batch_size": 2, "rank": 2, "lr": 0.02, "quiet": True, "checkpoint_seconds": 0}


def states(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(2, 3, 5, 8)) + 0.5


def test_the_losses_are_the_formulas() -> None:
    new, old, mask = states(0), states(1), np.random.default_rng(2).random((3, 5)) < 0.6
    turned, moved, shares, n = 0.0, 0.0, 0.0, 0
    for layer in range(2):
        for row, position in zip(*mask.nonzero()):
            u, o = new[layer, row, position], old[layer, row, position]
            turned += max(0.0, u @ o / np.sqrt(u @ u) / np.sqrt(o @ o))
            moved += np.sqrt(((u - o) ** 2).sum())
            shares += np.sqrt(((u - o) ** 2).sum() / (o**2).sum())
            n += 1
    given = [torch.tensor(x) for x in (new, old, mask)]
    assert float(rerouting_loss(*given)) == pytest.approx(turned / n, rel=1e-5)
    assert float(retain_loss(*given, distance="absolute")) == pytest.approx(moved / n, rel=1e-5)
    assert float(retain_loss(*given)) == pytest.approx(shares / n, rel=1e-5)
    assert float(rerouting_loss(-given[1], *given[1:])) == 0


def test_states_that_did_not_move_have_a_gradient_of_numbers() -> None:
    old = torch.tensor(states(1))
    new = old.clone().requires_grad_()
    retain_loss(new, old, torch.ones(3, 5, dtype=torch.bool)).backward()
    assert new.grad is not None
    assert bool(new.grad.isfinite().all())


def test_the_weight_moves_from_one_loss_to_the_other_up_to_the_middle() -> None:
    assert coefficients(0, 150, 10.0) == (10.0, 0.0)
    assert coefficients(75, 150, 10.0) == (7.5, 2.5)
    assert coefficients(149, 150, 10.0) == pytest.approx((10 - 10 * 149 / 300, 10 * 149 / 300))


def moved(model: Model, before: Model, text: str, layer: int) -> tuple[float, float]:
    """Mean cosine with the states of before, and mean distance over their mean norm."""
    new, old = (one.run(text, capture=f"resid_post.{layer}")[f"resid_post.{layer}"][0] for one in (model, before))
    cosine = torch.nn.functional.cosine_similarity(new, old, dim=-1)
    return float(cosine.mean()), float((new - old).norm(dim=-1).mean() / old.norm(dim=-1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_states_turn_away_on_the_stop_texts_and_stay_on_the_others(family: str, tmp_path: Path) -> None:
    model, records = tiny_model(family), []
    weights = module_fingerprint(model.hf)
    model.hf.save_pretrained(tmp_path / "base")
    model.hf.config.name_or_path = str(tmp_path / "base")
    folder = reroute(
        model,
        STOP,
        KEEP,
        tmp_path / "job",
        layers=[1],
        steps=60,
        on_step=lambda record: records.append(record),
        **SMALL,
    )
    assert records[0]["rerouting"] == pytest.approx(1, abs=1e-3)
    assert records[0]["retain"] < 0.1
    assert sum(record["rerouting"] for record in records[-10:]) / 10 < 0.5
    assert [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()] == records

    assert module_fingerprint(model.hf) == weights, "the model itself stays as it was"
    assert not any(isinstance(one, peft.tuners.tuners_utils.BaseTunerLayer) for one in model.hf.modules())
    guarded = load_model(folder, tokenizer=tiny_tokenizer(), quiet=True)
    stopped, kept = (moved(guarded, model, text, 1) for text in ("a dog sat", "the cat the cat"))
    assert stopped[0] < 0.6
    assert kept[0] > stopped[0] + 0.2
    layers = {name.split("layers.")[-1].split("h.")[-1].split(".")[0] for name in adapter_tensors(folder)}
    assert layers == {"0", "1"}, "no later layer than the last target has an adapter"


def large_stream(factor: float, massive: float) -> Model:
    """A tiny model that writes `factor` times as much into its stream, and the same large number into one dimension of
    every token, as real models do: its norms hide the first."""
    model = tiny_model("llama")
    with torch.no_grad():
        for name, one in model.hf.named_parameters():
            if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
                one.mul_(factor)
            if name.endswith("embed_tokens.weight"):
                one[:, 5] = massive * one.square().sum(-1).sqrt().mean()
    return model


@pytest.mark.parametrize(("factor", "massive"), [(1, 0), (200, 0), (1, 3)])
def test_the_size_of_the_stream_does_not_stop_it(factor: float, massive: float, tmp_path: Path) -> None:
    """The absolute distance of the authors' code, whose gradient grows beside the cosine's with the stream, does."""
    last: dict[str, float] = {}
    large = (factor, massive) != (1, 0)
    for distance in ("relative", "absolute") if large else ("relative",):
        records: list[dict[str, float]] = []
        options: dict[str, Any] = {"layers": [1], "steps": 60, "distance": distance, "on_step": records.append}
        reroute(large_stream(factor, massive), STOP, KEEP, tmp_path / distance, **options, **SMALL)
        last[distance] = sum(record["rerouting"] for record in records[-10:]) / 10
    assert last["relative"] < 0.5
    if large:
        assert last["absolute"] > 0.9


def adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_job_that_was_stopped_ends_with_the_same_adapter(tmp_path: Path) -> None:
    def stop(record: dict[str, float]) -> None:
        if record["step"] == 4:
            raise RuntimeError("power cut")

    whole = reroute(tiny_model(), STOP, KEEP, tmp_path / "whole", steps=8, **SMALL)
    with pytest.raises(RuntimeError):
        reroute(tiny_model(), STOP, KEEP, tmp_path / "parts", steps=8, on_step=stop, **SMALL)
    assert Checkpoints(tmp_path / "parts" / "checkpoints").last is not None
    steps: list[float] = []
    parts = reroute(
        tiny_model(), STOP, KEEP, tmp_path / "parts", steps=8, on_step=lambda r: steps.append(r["step"]), **SMALL
    )
    assert steps == [5, 6, 7, 8]
    one, other = adapter_tensors(whole), adapter_tensors(parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "parts" / "metrics.jsonl").read_text()
    with pytest.raises(Mismatch, match="alpha: 10"):
        reroute(tiny_model(), STOP, KEEP, tmp_path / "parts", steps=8, alpha=5, **SMALL)
    with pytest.raises(Mismatch, match="texts"):
        reroute(tiny_model(), STOP, [*KEEP, "the dog"], tmp_path / "parts", steps=8, **SMALL)


def test_only_tokens_of_answers_count() -> None:
    rows = _Rows(tiny_model(), "stop", STOP[:2], RerouteConfig(batch_size=2, length=4))
    assert [first for _, first in rows.rows] == [2, 0]
    assert [len(row) for row, _ in rows.rows] == [4, 3]
    tokens, counted = rows.batch(tiny_model(), random.Random(1), 2)
    assert sorted(counted.sum(1).tolist()) == [2, 3]
    assert bool((tokens.mask | ~counted).all())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one text": ({"stop": ["the cat"]}, "stop is a list of at least batch_size=2"),
    "a text for a list": ({"keep": "the cat"}, "keep is a list"),
    "a long prompt": ({"stop": [("the cat " * 9, "sat"), "a dog"], "length": 4}, "the answer of pair 0 begins after"),
    "no such layer": ({"layers": [7]}, "no layer 7; it has 3"),
    "no such field": ({"learning_rate": 1.0}, "learning_rate: no such field"),
    "too fast": ({"lr": 1e30}, "not finite at step .*; use a smaller lr"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str, tmp_path: Path) -> None:
    given = {"stop": STOP, "keep": KEEP, "steps": 3} | SMALL | BAD[case][0]
    with pytest.raises(BadInput, match=BAD[case][1]):
        reroute(tiny_model(), given.pop("stop"), given.pop("keep"), tmp_path / "job", **given)


def with_lora(family: str, **more: Any) -> Any:
    """A tiny model of peft whose adapter has random numbers in it."""
    names = ["q_proj", "down_proj"] if family == "llama" else ["c_attn"]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=names, fan_in_fan_out=family == "gpt2", **more)
    model = peft.get_peft_model(tiny_model(family).hf, config).eval()
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    return model


def logits(model: Model) -> torch.Tensor:
    found = model.run(STOP[1]).logits
    assert found is not None
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_breakers_of_a_model_with_an_adapter_hold_it_as_well(family: str, tmp_path: Path) -> None:
    """The same as breakers of the model that peft has merged, which only that model can load."""
    tiny_model(family).hf.save_pretrained(tmp_path / "base")
    with_lora(family).merge_and_unload().save_pretrained(tmp_path / "merged")
    options: dict[str, Any] = {"layers": [1], "steps": 5, **SMALL}
    model = load_model(with_lora(family), tokenizer=tiny_tokenizer(), quiet=True)
    model.hf.config.name_or_path = str(tmp_path / "base")
    before, weights = logits(model), module_fingerprint(model.hf)
    folder = reroute(model, STOP, KEEP, tmp_path / "own", **options)
    assert (module_fingerprint(model.hf), bool((logits(model) == before).all())) == (weights, True)

    merged = load_model(tmp_path / "merged", tokenizer=tiny_tokenizer(), quiet=True)
    other = load_model(reroute(merged, STOP, KEEP, tmp_path / "other", **options), tokenizer=tiny_tokenizer())
    guarded = load_model(folder, tokenizer=tiny_tokenizer(), quiet=True)
    torch.testing.assert_close(logits(guarded), logits(other), rtol=1e-3, atol=1e-3)
    assert float((logits(guarded) - before).abs().max()) > 0.1, "five steps changed something"
    if family == "llama":  # the last layer has no breaker, and its adapter is there
        assert {len(one) for name, one in adapter_tensors(folder).items() if "lora_A" in name} == {2, 3, 5}


def test_an_adapter_that_is_switched_off_is_left_out(tmp_path: Path) -> None:
    whole = with_lora("llama")
    with whole.disable_adapter():
        off = load_model(whole, tokenizer=tiny_tokenizer(), quiet=True)
        one = reroute(off, STOP, KEEP, tmp_path / "off", steps=2, **SMALL)
    other = reroute(tiny_model("llama"), STOP, KEEP, tmp_path / "none", steps=2, **SMALL)
    assert all(torch.equal(adapter_tensors(one)[name], held) for name, held in adapter_tensors(other).items())


@pytest.mark.parametrize("more", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"lora_bias": True}])
def test_an_adapter_that_no_lora_can_hold_is_refused(more: dict[str, Any], tmp_path: Path) -> None:
    model = load_model(with_lora("llama", **more), tokenizer=tiny_tokenizer(), quiet=True)
    with pytest.raises(BadInput, match="no plain LoRA of linear layers; merge it"):
        reroute(model, STOP, KEEP, tmp_path / "job", **SMALL)
    assert not (tmp_path / "job").exists()
