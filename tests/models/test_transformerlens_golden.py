"""Numbers that TransformerLens computed on the same weights (`peers/golden.py`), and the page of its names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from monosem.models.transformerlens.absent import ABSENT_FROM_CACHES, ABSENT_FROM_MODELS
from monosem.patching import transformerlens as patching

GOLDEN = json.loads((Path(__file__).parent / "transformerlens_golden.json").read_text())
PAGE = (Path(__file__).parents[2] / "docs" / "transformerlens-names.md").read_text(encoding="utf-8")
IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5))
OTHER = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(6))


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_model) -> Model:
    return tiny_model(request.param)


def check(value: torch.Tensor, expected: list[float], name: str) -> None:
    """As `number` in peers/golden.py: a sum weighted by a wave over the elements, and the size."""
    flat = value.detach().double().reshape(-1)
    flat = torch.where(flat > -1e4, flat, 0.0)
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64) * 0.7)
    scale = max(expected[1], 0.1)
    assert float(flat.norm()) == pytest.approx(expected[1], rel=1e-4, abs=1e-4), name
    assert float(flat @ wave) == pytest.approx(expected[0], abs=1e-3 * scale), name


def test_activations_by_name(model):
    _, cache = model.run_with_cache(IDS)
    refused = []
    for name, expected in GOLDEN[model.name]["activations"].items():
        try:
            value = cache[name]
        except UnknownName as error:
            refused.append(str(error))
            continue
        check(value, expected, name)
    assert len(GOLDEN[model.name]["activations"]) > 90
    assert len(refused) < 25
    assert all("is no site here: " in reason for reason in refused)


def test_stacks_and_circuits(model):
    _, cache = model.run_with_cache(IDS)
    found = {
        "accumulated_resid": cache.accumulated_resid(apply_ln=True),
        "decompose_resid": cache.decompose_resid(pos_slice=-1),
        "stack_head_results": cache.stack_head_results(incl_remainder=True, pos_slice=(2, 5)),
        "stack_neuron_results": cache.stack_neuron_results(2, neuron_slice=[1, 4], pos_slice=-1),
        "get_full_resid_decomposition": cache.get_full_resid_decomposition(pos_slice=-1),
        "logit_attrs": cache.logit_attrs(cache.decompose_resid(pos_slice=-1), 7, 8, pos_slice=-1),
    }
    assert set(found) == set(GOLDEN[model.name]["stacks"])
    for name, value in found.items():
        check(value, GOLDEN[model.name]["stacks"][name], name)
    for name, expected in GOLDEN[model.name]["circuits"].items():
        check(getattr(model, name).AB, expected, name)


def test_the_logit_lens_of_a_cache(model):
    cache = model.run_with_cache(IDS)[1]
    top = cache.logit_lens(top_k=3, positions=(2, 6), return_type="probs")
    named = cache.logit_lens(targets=[7, 8], incl_mid=True, positions=None, return_type="log_probs")
    rows = cache.logit_lens(targets=OTHER, positions=None, layers=[0, -1])
    moved = cache.logit_lens(vocab=[4, 9, 60], lens=lambda entry, place: entry * (place + 1) + 0.1, apply_ln=False)
    found = {
        "whole": cache.logit_lens().values,
        "whole entropy": cache.logit_lens(positions=None).readout.entropy,
        "top": top.values,
        "top ids": top.readout.top_ids.double(),
        "named": named.values,
        "named ranks": named.rank_trajectory(8).double(),
        "rows": rows.values,
        "row ranks": rows.rank_trajectory().double(),
        "moved": moved.values,
        "one row": cache.logit_lens(batch_slice=1, positions=None, top_k=2).values,
        "table": torch.tensor(cache.logit_lens(layers=[1], batch_slice=0).to_dataframe(top_k=4).probability.tolist()),
    }
    assert set(found) == set(GOLDEN[model.name]["logit_lens"])
    for name, value in found.items():
        check(value, GOLDEN[model.name]["logit_lens"][name], name)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere2"])
def test_the_logit_lens_of_a_cache_ends_in_the_models_own_logits(family, tiny_model):
    """With soft caps and scales; in a padded batch at each row's own last token."""
    model = tiny_model(family)
    logits, cache = model.run_with_cache(IDS)
    lens = cache.logit_lens(positions=None, incl_mid=family != "cohere2", chunk_size=5)
    torch.testing.assert_close(lens.values[-1], logits)
    assert [lens.labels[0], lens.labels[-1]] == ["0_pre", "final_post"]
    padded = model.run_with_cache([[5, 9, 17], [7, 8, 20, 33]])[1].logit_lens(top_k=1)
    expected = [int(model([row])[0, -1].argmax()) for row in ([5, 9, 17], [7, 8, 20, 33])]
    assert padded.readout.top_ids[-1, :, 0].tolist() == expected
    assert padded.top_tokens(model.tokenizer)["final_post"][0] == [model.tokenizer.decode([expected[0]])]
    named = model.run_with_cache([[5, 9, 17]])[1].logit_lens(targets=["London", expected[0]])
    assert named.rank_trajectory(expected[0])[-1].tolist() == [0]
    assert named.rank_trajectory("London")[-1].item() > 0
    assert named.target_names == ["London", None]


def test_a_logit_lens_that_cannot_be_is_refused(tiny_model):
    cache = tiny_model("gpt2").run_with_cache(IDS)[1]
    for options, words in [
        ({"top_k": 3, "vocab": [4]}, "one of vocab="),
        ({"top_k": 0}, "top_k=0"),
        ({"vocab": [500]}, "from 0 to"),
        ({"targets": torch.zeros(3, 9, dtype=torch.long), "positions": None}, r"targets of shape \[3, 9\]"),
        ({"targets": torch.tensor([0.5])}, "not a whole number"),
        ({"positions": 20}, "position 20"),
        ({"batch_slice": 4}, "batch_slice"),
        ({"chunk_size": 0}, "chunk_size"),
    ]:
        with pytest.raises(BadInput, match=words):
            cache.logit_lens(**options)
    for options, words in [({"layers": [4]}, "no entry 4"), ({"return_type": "logit"}, "logits")]:
        with pytest.raises(UnknownName, match=words):
            cache.logit_lens(**options)
    with pytest.raises(BadInput, match="give targets="):
        cache.logit_lens().rank_trajectory()
    with pytest.raises(UnknownName, match="not among the targets"):
        cache.logit_lens(targets=[7, 8]).rank_trajectory(9)


def difference(logits: torch.Tensor) -> torch.Tensor:
    return (logits[:, -1, 7] - logits[:, -1, 8]).mean()


def test_activation_patching(model):
    _, clean = model.run_with_cache(OTHER[:, :5])
    for name, expected in GOLDEN[model.name]["patches"].items():
        found = getattr(patching, f"get_act_patch_{name}")(model, IDS[:, :5], clean, difference)
        check(found, expected, name)


def test_patching_is_a_loop_of_hooks(tiny_model):
    """Every function against whole runs with a hook each, in a family with grouped queries and post-norms."""
    model = tiny_model("gemma2")
    clean_ids, ids = OTHER[:, :3], IDS[:, :3]
    _, clean = model.run_with_cache(clean_ids)

    def looped(name: str, *index: Any) -> float:
        def write(x, hook):
            x[index] = clean[hook.name][index]

        return float(difference(model.run_with_hooks(ids, [(name, write)])))

    every = slice(None)
    places = {
        "resid_mid": ("hook_resid_mid", lambda p: (every, p), (3,)),
        "attn_out": ("hook_attn_out", lambda p: (every, p), (3,)),
        "attn_head_out_by_pos": ("attn.hook_z", lambda p, h: (every, p, h), (3, 4)),
        "attn_head_k_by_pos": ("attn.hook_k", lambda p, h: (every, p, h), (3, 2)),
        "attn_head_v_all_pos": ("attn.hook_v", lambda h: (every, every, h), (2,)),
        "attn_head_q_all_pos": ("attn.hook_q", lambda h: (every, every, h), (4,)),
        "attn_head_pattern_by_pos": ("attn.hook_pattern", lambda h, p: (every, h, p), (4, 3)),
        "attn_head_pattern_dest_src_pos": ("attn.hook_pattern", lambda h, d, s: (every, h, d, s), (4, 3, 3)),
    }
    for name, (hook, index, shape) in places.items():
        found = getattr(patching, f"get_act_patch_{name}")(model, ids, clean, difference)
        assert found.shape == (3, *shape)
        for at in [(0, *[0] * len(shape)), (2, *[n - 1 for n in shape])]:
            assert float(found[at]) == pytest.approx(looped(f"blocks.{at[0]}.{hook}", *index(*at[1:])), abs=1e-4), name
    assert patching.get_act_patch_attn_head_all_pos_every(model, ids, clean, difference).shape == (5, 3, 4)
    assert patching.get_act_patch_attn_head_by_pos_every(model, ids, clean, difference).shape == (5, 3, 3, 4)
    whole = patching.get_act_patch_block_every(model, ids, clean, difference)
    assert float(whole[0, 0, 2]) != float(whole[0, 0, 0])
    with pytest.raises(BadInput, match="same number of prompts"):
        patching.get_act_patch_resid_pre(model, IDS[:, :4], clean, difference)
    with pytest.raises(BadInput, match="equal lengths"):
        patching.get_act_patch_resid_pre(model, [[5, 6], [7, 8, 9]], clean, difference)
    with pytest.raises(BadInput, match="one is needed"):
        patching.get_act_patch_resid_pre(model, ids, clean, lambda logits: logits[:, -1, 7])
    with pytest.raises(BadInput, match="reduce="):
        patching.get_act_patch_resid_pre(model, ids, clean, difference, reduce="none")


@pytest.mark.parametrize(("section", "absent"), [("The model", ABSENT_FROM_MODELS), ("The cache", ABSENT_FROM_CACHES)])
def test_the_page_of_names_is_what_happens(tiny_model, section, absent):
    model = tiny_model("gpt2")
    part = PAGE[PAGE.index(f"## {section}") :].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:yes)? *\| (?:yes)? *\| (.+) \|$", part, re.M)
    cache = model.run_with_cache(IDS)[1]
    model_of = {"The model": tiny_model("llama"), "The cache": cache}[section]
    assert len(rows) == part.count("\n| `")
    for name, here in rows:
        if here.startswith("not here: "):
            assert here == f"not here: {absent[name].replace('|', 'or')}"
        else:
            assert name not in absent
            assert name in ("W_pos", "W_E_pos") or hasattr(model_of, name), name
            assert name not in ("W_pos", "W_E_pos") or hasattr(model, name)
    assert {name for name, here in rows if here.startswith("not here: ")} <= set(absent)
