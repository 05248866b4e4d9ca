"""SAELens's calls, with own hooks on the bare Hugging Face model as the oracle."""

import re
from pathlib import Path

import pytest
import torch

import monosem
from monosem.errors import BadInput, UnknownName
from monosem.saelens import ELSEWHERE, SAE, HookedSAETransformer
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

HOOK = "blocks.1.hook_resid_post"
ACTS = f"{HOOK}.hook_sae_acts_post"
IDS = torch.tensor([[1, 10, 11, 12, 13, 14], [1, 20, 21, 22, 23, 24]])


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def sae(tmp_path) -> SAE:
    made = tiny_dictionary("relu", random_tensors(32, 24, 0, (1 / 6, 1 / 4)), model_name="")
    SAE(made).save_model(tmp_path / "sae")
    return SAE.load_from_disk(tmp_path / "sae")


def spliced(model, sae, change=lambda acts: acts, error=False, kept=None) -> torch.Tensor:
    """Logits with a reconstruction in the place of block 1's output, by a hook of PyTorch."""

    def hook(module, args, out):
        x = out[0] if isinstance(out, tuple) else out
        acts = (x @ sae.W_enc + sae.b_enc).relu()
        new = change(acts) @ sae.W_dec + sae.b_dec
        new = new + (x - (acts @ sae.W_dec + sae.b_dec)) if error else new
        new = new if kept is None else torch.where(kept[..., None], x, new)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = model.hf.model.layers[1].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model.hf(IDS).logits
    finally:
        handle.remove()


def close(logits, expected):
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_runs_go_through_the_dictionary_at_every_token(model, sae):
    close(model.run_with_saes(IDS, saes=[sae]), spliced(model, sae))
    close(model.run_with_saes(IDS, saes=sae, use_error_term=True), model.hf(IDS).logits)
    sae.use_error_term = True
    close(model.run_with_saes(IDS, saes=[sae]), model.hf(IDS).logits)
    sae.use_error_term = False
    with model.saes([sae]):
        close(model(IDS), spliced(model, sae))
    close(model(IDS), model.hf(IDS).logits)
    special = IDS == 1  # BOS
    close(model.run_with_saes(IDS, saes=[sae], exclude_special_tokens=[1]), spliced(model, sae, kept=special))
    close(model.run_with_saes(IDS, saes=[sae], exclude_special_tokens=[12]), spliced(model, sae, kept=IDS == 12))


def test_the_cache_has_places_inside(model, sae):
    _, cache = model.run_with_cache_with_saes(IDS, saes=[sae], use_error_term=True)
    x = model.run(IDS, capture="resid_post.1")["resid_post.1"]
    acts = sae.encode(x)
    assert acts.shape == (2, 6, 24)
    torch.testing.assert_close(cache[ACTS], acts)
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_input"], x)
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_recons"], sae.decode(acts))
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_error"], x - sae(x))
    torch.testing.assert_close(cache[HOOK], x)
    assert {ACTS, HOOK, "blocks.0.hook_resid_pre"} <= set(cache.keys())
    _, only = model.run_with_cache_with_saes(IDS, saes=[sae], names_filter=lambda name: "hook_sae_acts" in name)
    assert list(only.keys()) == [ACTS]
    _, named = model.run_with_cache_with_saes(IDS, saes=[sae], names_filter=[ACTS], remove_batch_dim=False)
    torch.testing.assert_close(named[ACTS], acts)


def test_hooks_name_places_inside(model, sae):
    def ablate(acts, hook):
        assert hook.name == ACTS
        acts[..., 5] = 0.0
        return acts

    def without(acts):
        return acts.index_fill(-1, torch.tensor([5]), 0.0)

    hooks = [(ACTS, ablate)]
    close(model.run_with_hooks_with_saes(IDS, saes=[sae], fwd_hooks=hooks), spliced(model, sae, without))
    with_error = model.run_with_hooks_with_saes(IDS, saes=[sae], fwd_hooks=hooks, use_error_term=True)
    close(with_error, spliced(model, sae, without, error=True))
    with model.saes([sae]), model.hooks(fwd_hooks=hooks):
        close(model(IDS), spliced(model, sae, without))
    assert not torch.allclose(with_error, model.hf(IDS).logits, atol=1e-3)


def test_what_a_dictionary_is(model, sae):
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.architecture()) == (32, 24, "standard")
    assert sae.cfg.hook_name == sae.cfg.metadata.hook_name == HOOK
    assert sae.cfg.metadata.nothing_of_this_name is None
    x = torch.randn(3, 32)
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae(x))
    assert sae.W_dec.shape == (24, 32)


@pytest.mark.parametrize(
    ("name", "on_hub"),
    [("gpt2-small", "gpt2"), ("gemma-2-2b", "google/gemma-2-2b"), ("smollm2", "smollm2"), ("./mine", "./mine")],
)
def test_models_have_the_names_of_the_tutorials(monkeypatch, name, on_hub):
    asked = []
    monkeypatch.setattr("monosem.saelens.load_model", lambda given, **options: asked.append(given))
    HookedSAETransformer.from_pretrained(name)
    assert asked == [on_hub]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ActivationsStore", "ActivationStream"),
        ("LanguageModelSAERunnerConfig", "dictionaries.train"),
        ("LanguageModelSAETrainingRunner", "dictionaries.train"),
        ("BatchTopKTrainingSAEConfig", "dictionaries.train"),
        ("JumpReLUSAE", "SAE.load_from_disk"),
        ("SkipTranscoder", "SAE.load_from_disk"),
        ("run_evals", "dictionaries.evaluate"),
        ("CacheActivationsRunnerConfig", "ActivationShards"),
    ],
)
def test_what_is_called_otherwise_here_says_how(name, told):
    with pytest.raises(UnknownName, match=f"SAELens's {name} is not in monosem.saelens; use .*{told}"):
        exec(f"from monosem.saelens import {name}")
    assert name in (Path(__file__).parents[2] / "docs" / "saelens.md").read_text()


def test_a_name_of_nobody_is_no_name():
    with pytest.raises(ImportError):
        exec("from monosem.saelens import nonsense")


def test_what_is_told_is_there():
    """Names of monosem in the table exist."""
    for told in ELSEWHERE.values():
        for path in re.findall(r"\bms((?:\.\w+)+)", told):
            one = monosem
            for part in path[1:].split("."):
                one = getattr(one, part)


def test_refusals(model, sae):
    with pytest.raises(UnknownName, match=r"model\.saes"):
        model.run_with_hooks(IDS, fwd_hooks=[(ACTS, lambda acts, hook: acts)])
    with pytest.raises(BadInput, match="two dictionaries"):
        model.run_with_saes(IDS, saes=[sae, sae])
    with model.saes([sae]), pytest.raises(BadInput, match="two dictionaries"):
        model.run_with_saes(IDS, saes=[sae])
    with pytest.raises(BadInput, match="stay attached"):
        model.add_sae(sae)
    with pytest.raises(BadInput, match="monosem"):
        model.run_with_saes(IDS, saes=["sae"])
    far = SAE(tiny_dictionary("relu", random_tensors(32, 24), site="resid_post.77", model_name=""))
    with pytest.raises(UnknownName, match="77"):
        model.run_with_saes(IDS, saes=[far])
    with pytest.raises(BadInput, match="dtype"):
        HookedSAETransformer.from_pretrained("smollm2", dtype="float33")
