"""Single experts of mixtures: what they compute, against loops over the native parameters, and edits of them."""

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from anymodel import tiny_any
from monosem import edits
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, load_model, verify
from monosem.models.checking.verify import quick
from tiny import tiny_hf

IDS = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(0))
TYPES = ("deepseek_v3", "afmoe", "laguna", "axk1", "mimo_v2_flash", "minimax_m2", "ernie4_5_moe", "granitemoe")
NAMES = ("mlp_input", "mlp_raw", "expert_weights", "expert_indices", "expert_post", "expert_out", "experts_out")


def tiny(kind: str) -> PreTrainedModel:
    return tiny_hf(kind) if kind in ("mixtral", "qwen2_moe", "gpt_oss") else tiny_any(kind)


def model_of(kind: str) -> Model:
    return Model(tiny(kind), None, kind)


@pytest.mark.filterwarnings("ignore:model type")
@pytest.mark.parametrize("kind", [*TYPES, "mixtral", "qwen2_moe", "gpt_oss"])
def test_the_identities_hold(kind):
    result = quick(load_model(tiny(kind), quiet=True))
    assert result.ok, result.table[~result.table.ok].to_string()
    said = set(result.table.identity)
    assert {"sum of expert_weights · expert_out", "expert_post, through its down projection"} <= said
    assert said & {"experts_out", "experts_out + shared_out"}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_each_chosen_expert_is_a_small_mlp(kind):
    model = model_of(kind)
    run = model.run(IDS, [f"{name}.1" for name in NAMES])
    native = model.blocks[1].mlp.experts
    for row in range(2):
        for position in range(7):
            x, total = run["mlp_input.1"][row, position], 0
            for place, expert in enumerate(run["expert_indices.1"][row, position].tolist()):
                if kind == "mixtral":
                    gate, up = (native.gate_up_proj[expert] @ x).chunk(2)
                    neurons = F.silu(gate) * up
                    out = native.down_proj[expert] @ neurons
                else:
                    wide = x @ native.gate_up_proj[expert] + native.gate_up_proj_bias[expert]
                    gate, up = wide[0::2].clamp(max=7), wide[1::2].clamp(-7, 7)
                    neurons = (up + 1) * gate * torch.sigmoid(1.702 * gate)
                    out = neurons @ native.down_proj[expert] + native.down_proj_bias[expert]
                torch.testing.assert_close(run["expert_post.1"][row, position, place], neurons, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(run["expert_out.1"][row, position, place], out, rtol=1e-4, atol=1e-5)
                total = total + run["expert_weights.1"][row, position, place] * out
            torch.testing.assert_close(run["mlp_raw.1"][row, position], total, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_shared_expert_is_an_mlp_of_its_own():
    model = model_of("deepseek_v3")
    names = ("mlp_input", "shared_pre", "shared_pre_linear", "shared_post", "shared_out", "experts_out", "mlp_raw")
    run = model.run(IDS, [f"{name}.1" for name in names])
    shared, x = model.blocks[1].mlp.shared_experts, run["mlp_input.1"]
    torch.testing.assert_close(run["shared_pre.1"], shared.gate_proj(x))
    torch.testing.assert_close(run["shared_post.1"], F.silu(shared.gate_proj(x)) * shared.up_proj(x))
    torch.testing.assert_close(run["shared_out.1"], shared(x))
    torch.testing.assert_close(run["mlp_raw.1"], run["experts_out.1"] + shared(x))
    with pytest.raises(UnknownName, match="shared_post.0"):
        model.site("shared_post.0")  # a dense layer


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_a_neuron_that_is_switched_off_is_a_column_that_is_zero(kind):
    model = model_of(kind)
    experts = model.blocks[1].mlp.experts
    chosen = model.run(IDS, ["expert_indices.1"])["expert_indices.1"]
    expert = int(chosen.flatten().mode().values)

    def off(x):
        return torch.where(((chosen == expert)[..., None]) & (torch.arange(x.shape[-1]) == 3), 0.0, x)

    found = model.run(IDS, edits=edits.function("expert_post.1", off)).logits
    plain = model.run(IDS).logits
    with torch.no_grad():
        weight = experts.down_proj[expert]
        (weight if kind == "gpt_oss" else weight.T)[3] = 0
    torch.testing.assert_close(found, model.run(IDS).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain)


def test_edits_of_an_experts_output_are_weighted():
    model = model_of("laguna")  # whose sum of experts is scaled
    names = ["expert_weights.1", "expert_out.1", "experts_out.1"]
    run = model.run(IDS, names, edits=edits.function("expert_out.1", lambda x: x + 1.0))
    plain = model.run(IDS, names)
    torch.testing.assert_close(run["expert_out.1"], plain["expert_out.1"] + 1)
    moved = plain["experts_out.1"] + plain["expert_weights.1"].sum(-1, keepdim=True)
    torch.testing.assert_close(run["experts_out.1"], moved)
    kept = model.run(IDS, edits=edits.function("expert_out.1", lambda x: x.clone())).logits
    torch.testing.assert_close(kept, model.run(IDS).logits)
    with pytest.raises(BadInput, match="expert_indices.1 cannot be written"):
        model.run(IDS, edits=edits.function("expert_indices.1", lambda x: x))


def test_gradients_reach_single_experts():
    model = model_of("deepseek_v3")
    run = model.run(IDS, ["expert_out.1", "experts_out.1", "expert_weights.1", "expert_indices.1"], grad=True)
    assert not run["expert_indices.1"].requires_grad  # whole numbers have none
    captured = [run["expert_out.1"], run["experts_out.1"]]
    of_each, of_sum = torch.autograd.grad(run.logits[:, -1, 5].sum(), captured)
    assert of_sum.abs().max() > 0
    weights = run["expert_weights.1"].detach()[..., None]
    torch.testing.assert_close(of_each, weights * of_sum[..., None, :], rtol=1e-4, atol=1e-6)


def test_edits_act_the_same_with_and_without_a_cache():
    model = model_of("deepseek_v3")
    change = edits.function("expert_out.2", lambda x: x * 0.5 + 0.3)
    made = model.generate(IDS, max_new_tokens=4, edits=change, stop_at_eos=False)
    ids = IDS
    for _ in range(4):
        ids = torch.cat([ids, model.run(ids, edits=change).logits[:, -1:].argmax(-1)], dim=1)
    assert made.ids.ids.tolist() == ids.tolist()


@torch.no_grad()
def test_llama_4_gives_every_expert_each_token_times_its_weight():
    model = Model(tiny_any("llama4_text", floor_scale=8192), None, "llama4")
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    layer = model.layers_with("router_logits")[0]
    names = ("mlp_input", "router_logits", "expert_weights", "shared_out", "mlp_raw", "mlp_out")
    run = model.run(IDS, [(name, layer) for name in names])
    native, x = model.blocks[layer].feed_forward, run["mlp_input", layer]
    scores, logits = native.router(x.flatten(0, 1))
    torch.testing.assert_close(run["router_logits", layer].flatten(0, 1), logits)
    torch.testing.assert_close(run["expert_weights", layer].flatten(0, 1), scores)
    torch.testing.assert_close(run["shared_out", layer], native.shared_expert(x))  # which the model adds to in place
    torch.testing.assert_close(run["mlp_raw", layer].flatten(0, 1), native(x)[0])
    dense = next(number for number in model.layers() if number not in model.layers_with("router_logits"))
    with pytest.raises(UnknownName, match="no router"):
        model.site(("router_logits", dense))


@torch.no_grad()
@pytest.mark.parametrize("chosen", [1, 2])
def test_experts_of_llama_4(chosen):
    model = Model(tiny_any("llama4_text", floor_scale=8192, num_experts_per_tok=chosen), None, "llama4")
    layer = model.layers_with("expert_out")[0]
    native = model.blocks[layer].feed_forward
    run = model.run(IDS, [("mlp_input", layer), ("expert_out", layer), ("shared_out", layer), ("mlp_raw", layer)])
    assert run["expert_out", layer].shape == (2, 7, chosen, 32)
    for row, position in ((0, 0), (0, 5), (1, 6)):
        x = run["mlp_input", layer][row, position]
        weights, experts = native.router.weight.mv(x).topk(chosen)
        for place, (weight, expert) in enumerate(zip(weights.sigmoid(), experts.tolist())):
            gate, up = (weight * x @ native.experts.gate_up_proj[expert]).chunk(2)
            out = (F.silu(gate) * up) @ native.experts.down_proj[expert]
            torch.testing.assert_close(run["expert_out", layer][row, position, place], out, rtol=1e-4, atol=1e-5)
    total = run["expert_out", layer].sum(-2) + run["shared_out", layer]
    torch.testing.assert_close(total, run["mlp_raw", layer], rtol=1e-4, atol=1e-5)
    off = model.run(IDS, ("mlp_raw", layer), edits=edits.scale(("expert_out", layer), 0.0))
    torch.testing.assert_close(off["mlp_raw", layer], native.shared_expert(run["mlp_input", layer]))


@torch.no_grad()
def test_a_mixture_that_writes_at_the_end_of_its_block():
    """LongCat: its mixture reads what the first MLP reads, and is added after the second; some experts do nothing."""
    model = Model(tiny_any("longcat_flash"), None, "longcat")
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    assert [branch.name for branch in model.branches(1)] == ["attn", "mlp", "attn2", "mlp2", "moe"]
    assert model.branch("moe", 1).reads == model.branch("mlp", 1).reads
    run = model.run(IDS, ["moe_input.1", "mlp_input.1", "moe_expert_out.1", "moe_expert_indices.1", "resid_post.1"])
    torch.testing.assert_close(run["moe_input.1"], run["mlp_input.1"])
    idle = run["moe_expert_indices.1"] >= len(model.blocks[1].mlp.experts.down_proj)
    assert idle.any()
    assert not idle.all()
    same = run["moe_input.1"][:, :, None].expand_as(run["moe_expert_out.1"])
    torch.testing.assert_close(run["moe_expert_out.1"][idle], same[idle])


def test_neurons_of_packed_experts_are_refused():
    model = model_of("mixtral")
    experts = model.blocks[1].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(BadInput, match=r"expert_post.1: the experts of mixtral stay quantised, .* read expert_out"):
        model.run(IDS, "expert_post.1")


@pytest.mark.parametrize("site", ["expert_out.1", "expert_post.1"])
def test_gradients_before_edited_experts_are_slopes(site):
    """What comes before reaches the output once: with the experts as they were edited."""
    model, ids = model_of("mixtral"), [[5, 9, 17, 33]]
    half = edits.scale(site, 0.5)
    run = model.run(ids, capture=["mlp_input.1", site], edits=half, grad=True)
    (gradient,) = torch.autograd.grad(run.logits[0, -1, 7], run["mlp_input.1"])
    step = 1e-2 * gradient / gradient.norm()

    def moved(sign):
        return model.run(ids, edits=[edits.add(("mlp_input.1", sign * step)), half]).logits[0, -1, 7]

    slope = float(moved(1) - moved(-1)) / 2e-2
    assert slope == pytest.approx(float(gradient.norm()), rel=0.02)
