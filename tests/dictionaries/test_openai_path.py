"""An OpenAI v5 `.pt` (a TopK of layer-normalised activations) and a GPT-2 given as a folder: clamp one latent, clamp a
batch, sweep them all. The oracle is Hugging Face's model with a hook of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from monosem import edits, steering
from monosem.cli import app
from monosem.dictionaries import Dictionary, load_dictionary
from monosem.models import Model, load_model
from tiny import tiny_hf, tiny_tokenizer

D, WIDTH, K, LAYER = 32, 96, 8, 1
HF = tiny_hf("gpt2")
PROMPT = "the cat sat on a"


def published() -> dict:
    """Exactly the keys of `resid_post_mlp_v5_32k/autoencoders/{layer}.pt`."""
    draw = torch.Generator().manual_seed(2)
    return {
        "pre_bias": torch.randn(D, generator=draw) * 0.3,
        "encoder.weight": torch.randn(WIDTH, D, generator=draw),
        "latent_bias": torch.randn(WIDTH, generator=draw) * 0.2,
        "decoder.weight": torch.randn(D, WIDTH, generator=draw),
        "stats_last_nonzero": torch.zeros(WIDTH, dtype=torch.long),
        "latents_activation_frequency": torch.ones(WIDTH, dtype=torch.long),
        "latents_mean_square": torch.ones(WIDTH),
        "activation": "TopK",
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
    }


STATE = published()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    HF.save_pretrained(folder / "gpt2")
    tiny_tokenizer().save_pretrained(folder / "gpt2")
    (folder / "resid_post_mlp_v5_32k" / "autoencoders").mkdir(parents=True)
    torch.save(STATE, folder / "resid_post_mlp_v5_32k" / "autoencoders" / f"{LAYER}.pt")
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    return load_model(home / "gpt2", quiet=True)


@pytest.fixture(scope="module")
def sae(home: Path) -> Dictionary:
    return load_dictionary(home / "resid_post_mlp_v5_32k" / "autoencoders" / f"{LAYER}.pt")


def clamped(ids: Tensor, latent: int, value: float) -> Tensor:
    """Hugging Face's logits with one latent set to a value at all tokens but the first, the error kept."""

    def hook(module, given, out):
        x = out[0] if isinstance(out, tuple) else out
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        z = (x - mean) / (std + 1e-5)
        pre = (z - STATE["pre_bias"]) @ STATE["encoder.weight"].T + STATE["latent_bias"]
        limit = pre.topk(K, dim=-1).values[..., -1:]
        f = torch.where(pre >= limit, pre, 0).relu()[..., latent]
        new = x + (value - f)[..., None] * STATE["decoder.weight"][:, latent] * std
        new[:, 0] = x[:, 0]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = HF.transformer.h[LAYER].register_forward_hook(hook)
    try:
        return HF(ids).logits
    finally:
        handle.remove()


def test_one_latent_and_one_for_each_row(model, sae):
    ids = model.run(PROMPT).tokens.ids
    assert (str(sae.site), sae.width, sae.k, sae.token_norm) == ("resid_post.1", WIDTH, K, "layer_norm")
    sae.check(model)
    edited = model.run(PROMPT, edits=[edits.clamp(sae, 11, 6.0)]).logits
    torch.testing.assert_close(edited, clamped(ids, 11, 6.0), atol=2e-4, rtol=1e-4)
    assert not torch.allclose(edited[:, 1:], model.run(PROMPT).logits[:, 1:], atol=1e-2)
    batch = model.run([PROMPT] * 3, edits=[edits.clamp(sae, [11, 40, 95], [6.0, -3.0, 2.0])]).logits
    for row, (latent, value) in enumerate(((11, 6.0), (40, -3.0), (95, 2.0))):
        torch.testing.assert_close(batch[row], clamped(ids, latent, value)[0], atol=2e-4, rtol=1e-4)


def test_every_latent_is_swept(home, model, sae, tmp_path):
    swept = steering.sweep_latents(
        model, sae, values=(6.0,), prompt=PROMPT, max_new_tokens=2, batch_size=32, folder=tmp_path / "swept", quiet=True
    )
    table = swept.table.set_index("latent")
    assert sorted(table.index) == list(range(WIDTH))
    ids, plain = model.run(PROMPT).tokens.ids, HF(model.run(PROMPT).tokens.ids).logits[0, -1].log_softmax(-1)
    for latent in (0, 11, WIDTH - 1):
        other = clamped(ids, latent, 6.0)[0, -1].log_softmax(-1)
        np.testing.assert_allclose(table["kl"][latent], (plain.exp() * (plain - other)).sum(), rtol=1e-3, atol=1e-5)


def test_the_command_sweeps_them_from_file_and_folder(home, tmp_path):
    file = home / "resid_post_mlp_v5_32k" / "autoencoders" / f"{LAYER}.pt"
    words = ["sweep", file, "--model", home / "gpt2", "--latents", "0:4", "--max-new-tokens", 2, "-q"]
    done = CliRunner().invoke(app, [*map(str, words), "--out", str(tmp_path / "swept"), "--json"], prog_name="monosem")
    assert done.exit_code == 0, done.stderr
    assert '"latent"' in done.stdout


def test_the_command_clamps_one_for_a_batch_of_prompts(home, model, sae):
    file = home / "resid_post_mlp_v5_32k" / "autoencoders" / f"{LAYER}.pt"
    prompts = [PROMPT, "a dog ran to the"]
    words = ["steer", file, 11, 6.0, *prompts, "--model", home / "gpt2", "--max-new-tokens", 3, "-q"]
    done = CliRunner().invoke(app, [*map(str, words), "--json"], prog_name="monosem")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["prompts"]
    edit = edits.clamp(sae, 11, 6.0)
    for row, prompt in zip(rows, prompts, strict=True):
        ids = model.run(prompt).tokens.ids
        other, plain = (logits[0, -1].log_softmax(-1) for logits in (clamped(ids, 11, 6.0), HF(ids).logits))
        np.testing.assert_allclose(row["kl"], (plain.exp() * (plain - other)).sum(), rtol=1e-3, atol=1e-5)
        texts = [model.generate(prompt, edits=given, max_new_tokens=3).texts[0] for given in ([], [edit])]
        assert [row["baseline_text"], row["edited_text"]] == texts
