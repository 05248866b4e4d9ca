"""Latent attention against transformers' own modules, called one by one, and its eager attention probabilities."""

import pytest
import torch

from anymodel import tiny_any
from monosem import components, edits
from monosem.errors import UnknownName
from monosem.models import Model, verify

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
TYPES = (
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "minicpm3",
    "youtu",
    "sarvam_mla",
)


def model_of(kind: str, **changes: object) -> Model:
    return Model(tiny_any(kind, **changes), None, kind)


@pytest.mark.parametrize("kind", TYPES)
def test_the_identities_hold(kind):
    # with few index heads many keys are tied for the last places, and each layout of a batch breaks ties its own way
    changes = {"index_n_heads": 16} if kind in ("deepseek_v32", "glm_moe_dsa") else {}
    result = verify(model_of(kind, **changes))
    assert result.ok, result.table[~result.table.ok].to_string()
    assert {"from kv_latent, with W_K absorbed", "pattern · kv_latent, W_V absorbed"} <= set(result.table.identity)


def test_queries_without_a_latent():
    model = model_of("deepseek_v3", q_lora_rank=None)
    assert verify(model).ok
    with pytest.raises(UnknownName, match="q_latent.1"):
        model.site("q_latent.1")
    torch.testing.assert_close(
        torch.einsum("btm,hmd->bthd", (run := model.run(IDS, ["attn_input.1", "q.1"]))["attn_input.1"], model.W_Q[1]),
        run["q.1"],
    )


@torch.no_grad()
def test_sites_are_what_the_native_modules_compute():
    model = model_of("deepseek_v3")
    names = ("attn_input", "q_latent", "kv_latent", "k_rope", "q", "k_nope", "v", "rot_q", "rot_k", "pattern", "z")
    run = model.run(IDS, [f"{name}.1" for name in names])
    native, x = model.hf.model.layers[1].self_attn, run["attn_input.1"]
    q_latent = native.q_a_layernorm(native.q_a_proj(x))
    wide = native.kv_a_proj_with_mqa(x)
    kv_latent = native.kv_a_layernorm(wide[..., :16])
    kv = native.kv_b_proj(kv_latent).view(2, 9, 4, 16)
    expected = {
        "q_latent": q_latent,
        "kv_latent": kv_latent,
        "k_rope": wide[..., 16:],
        "q": native.q_b_proj(q_latent).view(2, 9, 4, 12),
        "k_nope": kv[..., :8],
        "v": kv[..., 8:],
    }
    for name, value in expected.items():
        torch.testing.assert_close(run[name, 1], value)
    torch.testing.assert_close(run["rot_k.1"][..., :8], kv[..., :8])
    torch.testing.assert_close(run["rot_q.1"][..., :8], expected["q"][..., :8])
    model.hf.set_attn_implementation("eager")
    torch.testing.assert_close(run["pattern.1"], model.hf(IDS, output_attentions=True).attentions[1])
    torch.testing.assert_close(
        run["z.1"], torch.einsum("bhqk,bkhd->bqhd", run["pattern.1"], kv[..., 8:]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe_lite"])
def test_absorbed_weights_give_scores_and_what_heads_write(kind):
    model = model_of(kind)
    run = model.run(IDS, [f"{name}.2" for name in ("q_latent", "kv_latent", "pattern", "result", "rot_q", "rot_k")])
    QK, OV = components.latent_QK(model, 2), components.latent_OV(model, 2)
    assert QK.shape == (4, 12, 16)
    assert OV.shape == (4, 16, 32)
    still = torch.einsum("bqm,hmn,bkn->bhqk", run["q_latent.2"], QK.AB, run["kv_latent.2"])
    turning = torch.einsum("bqhd,bkhd->bhqk", run["rot_q.2"][..., 8:], run["rot_k.2"][..., 8:])
    seen = torch.ones(9, 9).tril().bool()
    scaling = model.hf.model.layers[2].self_attn.scaling
    pattern = ((still + turning) * scaling).masked_fill(~seen, -torch.inf).softmax(-1)
    torch.testing.assert_close(pattern, run["pattern.2"], rtol=1e-4, atol=1e-5)
    written = torch.einsum("bhqk,bkm,hmd->bqhd", run["pattern.2"], run["kv_latent.2"], OV.AB)
    torch.testing.assert_close(written, run["result.2"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(components.latent_OV(model, 2, 1).AB, OV.AB[1])
    with pytest.raises(UnknownName, match="W_V: .* from kv_latent, behind a norm.*latent_OV"):
        model.W_V  # noqa: B018
    with pytest.raises(UnknownName, match="from q_latent"):
        model.W_Q  # noqa: B018


@pytest.mark.parametrize("site", ["q_latent.1", "kv_latent.1", "k_rope.1", "q.1", "k_nope.1", "v.1", "z.1"])
def test_edits_act_the_same_with_and_without_a_cache(site):
    """A cache holds latents: keys and values are made anew from all of them at each step."""
    model = model_of("deepseek_v3")
    change = edits.function(site, lambda x: x * 0.5 + 0.3)
    made = model.generate(IDS[:, :5], max_new_tokens=4, edits=change, stop_at_eos=False)
    plain = model.generate(IDS[:, :5], max_new_tokens=4, stop_at_eos=False)
    ids = IDS[:, :5]
    for _ in range(4):
        ids = torch.cat([ids, model.run(ids, edits=change).logits[:, -1:].argmax(-1)], dim=1)
    assert made.ids.ids.tolist() == ids.tolist() != plain.ids.ids.tolist()
