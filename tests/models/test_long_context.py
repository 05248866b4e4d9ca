"""Rotations that change with the length of a row: every row is as if it ran alone in a freshly loaded model."""

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from monosem import edits
from monosem.errors import BadInput
from monosem.models import Model, TokenBatch, load_model
from monosem.models.checking.verify import verify
from tiny import tiny_hf, tiny_model, tiny_tokenizer

LIMIT = 12  # tokens of the original context of the models below
LENGTHS = [5, 12, 13, 20]  # on both sides of it, and beside it
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def longrope(n: int) -> dict:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(n)],
        "long_factor": [2.0 + i for i in range(n)],
        "original_max_position_embeddings": LIMIT,
    }


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
NEOX = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 40.0, "partial_rotary_factor": 0.5}
MODELS: dict[str, tuple[str, dict]] = {
    # the config's own number goes before that of the rope parameters, and is 4096 if it is not given
    "phi3": ("phi3", {"rope_parameters": longrope(4), "original_max_position_embeddings": LIMIT}),
    "phi3-window": (
        "phi3",
        {"rope_parameters": longrope(4), "original_max_position_embeddings": LIMIT, "sliding_window": 8},
    ),
    "llama-longrope": ("llama", {"rope_parameters": longrope(4)}),
    "llama-dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT}),
    "qwen2-dynamic": ("qwen2", {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT}),
    "gpt_neox-dynamic": ("gpt_neox", {"rope_parameters": NEOX, "max_position_embeddings": LIMIT}),
    "gemma3-longrope": (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": DEFAULT, "full_attention": longrope(6)}},
    ),
    "gemma3-dynamic": (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": DYNAMIC, "full_attention": DYNAMIC}, "max_position_embeddings": 12},
    ),
}


def fresh(name: str):
    kind, settings = MODELS[name]
    return tiny_hf(kind, **settings)


@cache
def model_of(name: str) -> Model:
    return Model(fresh(name), tiny_tokenizer(), name=name)


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> Model:
    return model_of(name)


def rows(lengths=LENGTHS) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, 100, (n,), generator=draw).tolist() for n in lengths]


def alone(name: str, row: list[int]) -> Tensor:
    """Logits of a row in a model that has seen nothing else."""
    return fresh(name)(torch.tensor([row]), use_cache=False).logits[0]


def continued(name: str, row: list[int], steps: int) -> list[int]:
    for _ in range(steps):
        row = [*row, int(alone(name, row)[-1].argmax())]
    return row


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_a_batch_are_as_if_alone(name, model, side):
    out = model.run(TokenBatch.of(rows(), 0, side))
    for row, logits, mask in zip(rows(), out.logits, out.tokens.mask):
        torch.testing.assert_close(logits[mask], alone(name, row), **TOLERANCE)


def test_the_native_model_itself_mixes_the_rows(name):
    """What the tests of this file guard against."""
    batch = TokenBatch.of(rows(), 0)
    mixed = fresh(name)(batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions).logits
    assert (mixed[0, :5] - alone(name, rows()[0])).abs().max() > 1e-3


def test_the_order_of_prompts_changes_nothing(name, model):
    for length in (20, 13, 12, 30, 12, 5, 20, 13):
        row = rows([length])[0]
        torch.testing.assert_close(model.run([row]).logits[0], alone(name, row), **TOLERANCE)
    torch.testing.assert_close(model.hf(torch.tensor(rows([12]))).logits[0], alone(name, rows([12])[0]), **TOLERANCE)


def test_generation_over_the_limit(name, model):
    made = model.generate(rows([9, 4, 12, 13]), max_new_tokens=8, stop_at_eos=False)
    for row, whole in zip(rows([9, 4, 12, 13]), made.ids.rows()):
        assert whole == continued(name, row, 8)


def test_edited_generation_over_the_limit(model):
    edit = edits.scale("z.1", 0.2).at(positions=slice(2, None))
    made = model.generate(rows([9, 4]), edits=edit, max_new_tokens=8, stop_at_eos=False)
    for row, whole in zip(rows([9, 4]), made.ids.rows()):
        for _ in range(8):
            row = [*row, int(model.run([row], edits=edit).logits[0, -1].argmax())]
        assert whole == row


def test_captures_of_generation_over_the_limit(model, monkeypatch):
    """Also of a row that ends before the limit while others go on: it keeps its own length."""
    prompts = rows([9, 6, 4])
    end = model.generate(prompts[1:2], max_new_tokens=3, stop_at_eos=False).new[0][-1]
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", int(end))
    made = model.generate(prompts, max_new_tokens=9, capture=["resid_post.2", "rot_k.1"])
    assert len(made.new[1]) <= 3
    for row, ids in enumerate(made.ids.rows()):
        whole = model.run([ids], capture=["resid_post.2", "rot_k.1"])
        for site in ("resid_post.2", "rot_k.1"):
            torch.testing.assert_close(made[site][row, : len(ids)], whole[site][0], **TOLERANCE)


def test_edits_captures_gradients_and_parts_of_a_batch(model):
    edit = edits.scale("attn_out.1", 0.5).at(positions=[1])
    sites = ["rot_k.2", "pattern.1", "resid_post.2"]
    whole = model.run(rows(), capture=sites, edits=edit)
    parts = model.run(rows(), capture=sites, edits=edit, memory="1MB")
    graph = model.run(rows(), capture="resid_pre.1", grad=True)
    torch.testing.assert_close(parts.logits, whole.logits, **TOLERANCE)
    by_row = [model.run([row], capture=sites, edits=edit) for row in rows()]
    for i, (row, own) in enumerate(zip(rows(), by_row)):
        n = len(row)
        torch.testing.assert_close(whole.logits[i, :n], own.logits[0], **TOLERANCE)
        torch.testing.assert_close(whole["rot_k.2"][i, :n], own["rot_k.2"][0], **TOLERANCE)
        torch.testing.assert_close(whole["resid_post.2"][i, :n], own["resid_post.2"][0], **TOLERANCE)
        torch.testing.assert_close(whole["pattern.1"][i, :, :n, :n], own["pattern.1"][0], **TOLERANCE)
    (gradient,) = torch.autograd.grad(graph.logits[0, 4, 7], graph["resid_pre.1"])
    assert gradient[0].any()
    assert not gradient[1:].any()


def test_the_identities_hold_across_the_limit(model):
    bad = [row for row in verify(model).rows if not row["ok"]]
    assert bad == []


def test_factors_that_are_all_alike_depend_on_no_length():
    assert (
        tiny_model("llama", rope_parameters=longrope(4) | {"long_factor": longrope(4)["short_factor"]}).rotations == []
    )
    assert len(model_of("llama-longrope").rotations) == 1


def test_context_of_scaled_models():
    assert model_of("llama-dynamic").cfg.n_ctx == 4 * LIMIT
    assert model_of("phi3").cfg.n_ctx == 64
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    assert tiny_model("qwen2", rope_parameters=yarn).cfg.n_ctx == 256
    assert tiny_model("qwen2", rope_parameters=yarn, max_position_embeddings=256).cfg.n_ctx == 256
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    assert tiny_model("qwen2", rope_parameters=linear).cfg.n_ctx == 64
    with pytest.raises(BadInput, match="context of 48"):
        model_of("llama-dynamic").run([[5] * 49])


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi"])
def test_another_dtype_keeps_the_frequencies(family, tmp_path):
    """A model that was loaded in float32 becomes what transformers loads in bf16, at late positions, too."""
    tiny_hf(family, max_position_embeddings=512).save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    moved = load_model(hf, dtype="bf16", tokenizer=tiny_tokenizer(), quiet=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ids = torch.tensor(rows([400]))
    assert torch.equal(moved.hf(ids).logits, loaded(ids).logits)


# ------------------------------------------------------------------ windows, which count columns
WINDOWS = ["mistral", "gpt_neo", "gemma2", "gemma3_text", "olmo3", "cohere2", "gpt_oss"]


@pytest.mark.parametrize("family", [*WINDOWS, "llama", "gpt2"])
def test_padding_at_either_end_and_between_tokens(family):
    """A window of 8 must not count padding: transformers counts columns, so padding between tokens is refused."""
    model = tiny_model(family)
    batches = [TokenBatch.of(rows([4, 9, 25]), 0, side) for side in ("left", "right")]
    mask = torch.ones(2, 25, dtype=torch.bool)
    mask[0, 9:16] = False
    parted = TokenBatch(torch.tensor(rows([25, 25])), mask)
    if family in WINDOWS:
        with pytest.raises(BadInput, match="prompt 0 has padding between its tokens"):
            model.run(parted)
        narrow = torch.ones(1, 8, dtype=torch.bool)
        narrow[0, 3:5] = False
        parted = TokenBatch(torch.tensor(rows([8])), narrow)  # no wider than the window
    for batch in [*batches, parted]:
        out = model.run(batch).logits
        for row, real, logits in zip(batch.rows(), batch.mask, out):
            expected = model.hf(torch.tensor([row]), use_cache=False).logits[0]
            torch.testing.assert_close(logits[real], expected, **TOLERANCE)
