"""What is inside branches that were read as a whole before: differential attention, latents with constants or joined
gates, DBRX's experts, Zamba's Mamba. Against transformers' own modules."""

from typing import Any

import pytest
import torch
from torch import Tensor

from anymodel import tiny_any
from monosem import edits
from monosem.errors import BadInput
from monosem.models import Model, load_model

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def loaded(kind: str) -> Model:
    return load_model(tiny_any(kind), quiet=True)


def seen_by(model: Model, path: str, before: bool = False) -> Tensor:
    """What a module is given, or returns, in a pass of transformers' own."""
    kept: list[Tensor] = []

    def hook(module: Any, args: Any, output: Any) -> None:
        kept.append(args[0] if before else output)

    handle = model.hf.get_submodule(path).register_forward_hook(hook)
    try:
        model.hf(IDS, use_cache=False)
    finally:
        handle.remove()
    return kept[0]


@torch.no_grad()
def test_differential_attention_has_the_patterns_that_transformers_records():
    model = loaded("diffllama")
    run = model.run(IDS, ["pattern.2", "q.2", "v.2"])
    torch.testing.assert_close(run["q.2"].flatten(2), seen_by(model, "model.layers.2.self_attn.q_proj"))
    model.hf.set_attn_implementation("eager")
    native = model.hf(IDS, output_attentions=True).attentions[2]
    torch.testing.assert_close(run["pattern.2"], native, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_differential_attention_is_edited_before_it_mixes():
    model = loaded("diffllama")
    edited = model.run(IDS, edits=edits.scale("v.1", 2.0)).logits
    handle = model.hf.get_submodule("model.layers.1.self_attn.v_proj").register_forward_hook(lambda *a: 2 * a[2])
    expected = model.hf(IDS, use_cache=False).logits
    handle.remove()
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="pattern.1 cannot be written: the model mixes with it twice"):
        model.run(IDS, edits=edits.scale("pattern.1", 0.5))
    with pytest.raises(BadInput, match="a gradient at pattern.1 would leave out"):
        model.run(IDS, ["pattern.1"], grad=True)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "blocks"), [("axk2", "model.layers"), ("dots3_note_text", "model.layers")])
def test_heads_of_latents_write_what_the_output_projection_reads(kind, blocks):
    model = loaded(kind)
    run = model.run(IDS, ["z.1", "pattern.1", "v.1", "attn_gate.1"])
    read = seen_by(model, f"{blocks}.1.self_attn.o_proj", before=True)
    torch.testing.assert_close(run["z.1"].flatten(2), read, rtol=1e-4, atol=1e-5)
    mixed = torch.einsum("bhqk,bkhd->bqhd", run["pattern.1"], run["v.1"]) * run["attn_gate.1"].sigmoid()
    torch.testing.assert_close(mixed.flatten(2), read, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dbrx_neurons_are_slices_of_its_long_matrices():
    model = loaded("dbrx")
    run = model.run(
        IDS, ["expert_post.1", "expert_indices.1", "expert_out.1", "expert_weights.1", "mlp_input.1", "mlp_out.1"]
    )
    long = model.blocks[1].ffn.experts.mlp
    wide = len(long.w1) // model.blocks[1].ffn.experts.num_experts
    x, chosen = run["mlp_input.1"][1, 4], run["expert_indices.1"][1, 4]
    total = torch.zeros_like(x)
    for place, expert in enumerate(chosen.tolist()):
        rows = slice(expert * wide, (expert + 1) * wide)
        neurons = torch.nn.functional.silu(long.w1[rows] @ x) * (long.v1[rows] @ x)
        torch.testing.assert_close(run["expert_post.1"][1, 4, place], neurons, rtol=1e-4, atol=1e-5)
        out = neurons @ long.w2[rows]
        torch.testing.assert_close(run["expert_out.1"][1, 4, place], out, rtol=1e-4, atol=1e-5)
        total = total + run["expert_weights.1"][1, 4, place] * out
    torch.testing.assert_close(run["mlp_out.1"][1, 4], total, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_edit_of_dbrx_neurons_goes_through_their_down_projection():
    model = loaded("dbrx")
    off = model.run(IDS, ["mlp_out.1"], edits=edits.scale("expert_post.1", 0.0))["mlp_out.1"]
    assert float(off.abs().max()) < 1e-5


@torch.no_grad()
def test_zambas_mamba_shows_what_is_convolved_and_what_is_projected():
    model = loaded("zamba")
    run = model.run(IDS, ["ssm_z.0", "ssm_conv.0", "ssm_preconv.0"])
    mixer = model.blocks[0].mamba
    read = seen_by(model, "model.layers.0.mamba.out_proj", before=True)
    torch.testing.assert_close(run["ssm_z.0"].flatten(2), read)
    padded = torch.nn.functional.pad(run["ssm_preconv.0"].transpose(1, 2), (mixer.conv_kernel_size - 1, 0))
    made = torch.nn.functional.conv1d(padded, mixer.conv1d.weight, mixer.conv1d.bias, groups=mixer.intermediate_size)
    torch.testing.assert_close(run["ssm_conv.0"], torch.nn.functional.silu(made).transpose(1, 2), rtol=1e-4, atol=1e-5)
