"""Edits of weights: the direction is gone from what every writer writes, logits equal the hooks', all is put back."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM
from transformers.pytorch_utils import Conv1D

from anymodel import randomised, tiny_config
from monosem import edits
from monosem.edits import weights
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, load_model
from tiny import FAMILIES, tiny_hf, tiny_model

DRAW = torch.Generator().manual_seed(2)
V, W = torch.randn(32, generator=DRAW) * 2, torch.randn(32, generator=DRAW)
IDS = torch.randint(3, 100, (2, 7), generator=DRAW)
UNIT = V / V.norm()
POST_NORM = ("gemma2", "gemma3_text", "olmo2", "olmo3", "glm4")
PRE_NORM = [family for family in FAMILIES if family not in POST_NORM]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def named(model) -> dict[str, nn.Parameter]:
    return dict(model.hf.named_parameters(remove_duplicate=False))


# ---------------------------------------------------------------------- hooks and weights
@pytest.mark.parametrize("family", PRE_NORM)
def test_hooks_equal_weights(family):
    model = tiny_model(family)
    hooks = model.run(IDS, edits=edits.ablate_writes(model, [V, W])).logits
    plain = model.run(IDS).logits
    with weights.orthogonalise(model, [V, W]).applied():
        found = model.run(IDS).logits
    size = float(plain.abs().max())
    torch.testing.assert_close(found, hooks, rtol=1e-4, atol=1e-4 * max(size, 1.0))
    assert float((plain - hooks).abs().max()) > 0.05 * size


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_written_along_the_direction(family):
    """At every write, also behind a norm, where other logits follow than from hooks."""
    model = tiny_model(family)
    sites = edits.writes(model)
    before = model.run(IDS, capture=sites)
    with weights.orthogonalise(model, V).applied():
        after = model.run(IDS, capture=sites)
    for site in sites:
        size = before[site].norm(dim=-1).max()
        assert float((before[site] @ UNIT).abs().max()) > 1e-3 * size, site
        assert float((after[site] @ UNIT).abs().max()) < 1e-5 * size, site


@pytest.mark.parametrize("family", POST_NORM)
def test_behind_a_norm_the_direction_itself_would_stay(family):
    """r is removed as g ⊙ r; a plain projection by r leaves a part. Logits are not what hooks give: the docs say so."""
    model = tiny_model(family)
    branch = model.branch("mlp", 1)
    down = model.blocks[1].mlp.down_proj
    inner = torch.randn(1, 5, down.in_features, generator=DRAW)
    gain = branch.post.gain
    by_r = (inner @ down.weight.T) - (inner @ down.weight.T @ UNIT)[..., None] * UNIT
    scaled = gain * UNIT / (gain * UNIT).norm()
    by_gr = (inner @ down.weight.T) - (inner @ down.weight.T @ scaled)[..., None] * scaled
    assert float((branch.write(by_gr) @ UNIT).abs().max()) < 1e-5
    assert float((branch.write(by_r) @ UNIT).abs().max()) > 1e-2
    with weights.orthogonalise(model, V).applied():
        torch.testing.assert_close(inner @ down_weight(model).T, by_gr, **CLOSE)
        logits = model.run(IDS).logits
    hooks = model.run(IDS, edits=edits.ablate_writes(model, V)).logits
    assert not torch.allclose(logits, hooks, rtol=1e-2, atol=1e-2)


def down_weight(model) -> torch.Tensor:
    return model.blocks[1].mlp.down_proj.weight


# ---------------------------------------------------------------------- one tensor of each kind
def test_each_kind_of_tensor_by_its_own_formula():
    """Square ones, too: a Linear and a Conv1D of 32 x 32 do not show their axis by their shape."""
    llama, gpt2, oss, mixtral = (tiny_model(name) for name in ("llama", "gpt2", "gpt_oss", "mixtral"))
    project = torch.eye(32) - torch.outer(UNIT, UNIT)
    o_proj, c_proj = llama.blocks[1].self_attn.o_proj, gpt2.blocks[1].attn.c_proj
    assert type(o_proj) is nn.Linear
    assert type(c_proj) is Conv1D
    assert o_proj.weight.shape == c_proj.weight.shape == (32, 32)
    wte, wpe = gpt2.hf.transformer.wte, gpt2.hf.transformer.wpe
    swiss, other = oss.blocks[1].mlp.experts, mixtral.blocks[1].mlp.experts
    wanted = [
        (llama, lambda: o_proj.weight, project @ o_proj.weight),
        (gpt2, lambda: c_proj.weight, c_proj.weight @ project),
        (gpt2, lambda: c_proj.bias, project @ c_proj.bias),
        (gpt2, lambda: wte.weight, wte.weight @ project),
        (gpt2, lambda: wpe.weight, wpe.weight @ project),
        (oss, lambda: swiss.down_proj, torch.stack([expert @ project for expert in swiss.down_proj])),
        (oss, lambda: swiss.down_proj_bias, swiss.down_proj_bias @ project),
        (mixtral, lambda: other.down_proj, torch.stack([project @ expert for expert in other.down_proj])),
    ]
    for model, now, value in wanted:
        with weights.orthogonalise(model, V).applied():
            torch.testing.assert_close(now(), value, **CLOSE)


def test_every_parameter_is_edited_or_known_to_read():
    for family in FAMILIES:
        model = tiny_model(family)
        found = {f"{writer.path}.{writer.name}" for writer in weights.writers(model)}
        for name, parameter in named(model).items():
            last = name.split(".")[-2] if not name.split(".")[-1].startswith(("down_proj", "gate_up")) else "experts"
            writes = last in ("o_proj", "down_proj", "c_proj", "out_proj", "dense", "fc2", "fc_out", "dense_4h_to_h")
            writes |= last in ("wte", "wpe", "embed_tokens", "embed_in") or name.split(".")[-1].startswith("down_proj")
            assert (name in found) == writes, (family, name, tuple(parameter.shape))


@pytest.mark.parametrize("change", ["wrong axis", "unknown module", "unknown parameter", "unknown kind"])
def test_what_is_not_known_is_refused_by_name(change, monkeypatch):
    model = tiny_model("qwen2_moe") if change != "wrong axis" else tiny_model("llama", intermediate_size=32)
    if change == "wrong axis":
        monkeypatch.setitem(weights.writers.__globals__["AXIS"], nn.Linear, 1)
        before = named(model)
        edit = weights.orthogonalise(model, V)
        with pytest.raises(BadInput, match=r"proj.weight does not write what its.*nothing was changed"), edit.applied():
            pass
        assert all(value is before[name] for name, value in named(model).items())
        return
    block = model.blocks[1].mlp
    if change == "unknown module":
        block.extra = nn.Linear(32, 32)
        match = r"mlp.extra \(Linear\): whether it writes"
    elif change == "unknown parameter":
        block.experts.down_scale = nn.Parameter(torch.ones(4))
        match = r"experts.down_scale: whether it writes"
    else:
        model.blocks[1].self_attn.o_proj = type("Other", (nn.Linear,), {})(32, 32)
        match = r"o_proj is a Other; its weights cannot be edited"
    with pytest.raises(UnknownName, match=match):
        weights.orthogonalise(model, V)


def test_something_else_that_writes_is_noticed():
    """Here a hook stands for a norm after the embedding, or any other writer that no table knows."""
    model = tiny_model("llama")
    handle = model.blocks[1].register_forward_hook(lambda module, args, out: out + V)
    before = named(model)
    edit = weights.orthogonalise(model, V)
    with pytest.raises(BadInput, match="something else writes into it"), edit.applied():
        pass
    assert all(value is before[name] for name, value in named(model).items())
    with weights.orthogonalise(model, V, layers=[0, 1]).applied():  # no such promise
        pass
    handle.remove()


# ---------------------------------------------------------------------- back again
@pytest.mark.parametrize("family", ["gpt2", "llama_tied", "gemma2", "gpt_oss"])
def test_all_is_put_back_also_after_errors_and_nested(family):
    model = tiny_model(family)
    before, copies = named(model), {name: p.clone() for name, p in named(model).items()}
    logits = model.run(IDS).logits
    first, second = weights.orthogonalise(model, V), weights.orthogonalise(model, W, 0.5)
    with pytest.raises(UnknownName), first.applied(), second.applied():
        model.run(IDS, capture="no_such_site")
    with first.applied():
        once = model.run(IDS).logits
        with second.applied():
            assert not torch.equal(model.run(IDS).logits, once)
        assert torch.equal(model.run(IDS).logits, once)
    after = named(model)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] and torch.equal(after[name], copies[name]) for name in before)
    assert torch.equal(model.run(IDS).logits, logits)


def test_a_tied_unembedding_reads_and_stays_unless_asked():
    model = tiny_model("llama_tied")
    table = model.W_E.clone()
    with weights.orthogonalise(model, V).applied():
        assert torch.equal(model.hf.lm_head.weight, table)
        assert not torch.equal(model.W_E, table)
    with weights.orthogonalise(model, V, untie=False).applied():
        assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight
        assert float((model.W_U.T @ UNIT).abs().max()) < 1e-5
    assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight


# ---------------------------------------------------------------------- variants
def test_norms_of_columns_keep_the_direction_away_and_norms_of_rows_do_not():
    model = tiny_model("llama")
    old = model.blocks[1].mlp.down_proj.weight.clone()
    with weights.orthogonalise(model, V, norms="columns").applied():
        new = model.blocks[1].mlp.down_proj.weight.clone()
        table = model.hf.model.embed_tokens.weight.clone()
    torch.testing.assert_close(new.norm(dim=0), old.norm(dim=0), **CLOSE)
    torch.testing.assert_close(table.norm(dim=1), model.hf.model.embed_tokens.weight.norm(dim=1), **CLOSE)
    assert float((UNIT @ new).abs().max()) < 1e-5
    plain = old - torch.outer(UNIT, UNIT @ old)
    by_rows = plain * (old.norm(dim=1) / plain.norm(dim=1))[:, None]
    assert float((UNIT @ by_rows).norm()) > 0.01 * float((UNIT @ old).norm())
    with pytest.raises(BadInput, match="norms of rows"):
        weights.orthogonalise(model, V, norms="rows")


def test_a_column_of_which_nothing_is_left_stays_zero():
    model = tiny_model("llama")
    with torch.no_grad():
        model.blocks[0].mlp.down_proj.weight[:, 3] = V
        model.blocks[0].mlp.down_proj.weight[:, 4] = 0.0
    with weights.orthogonalise(model, V, norms="columns").applied():
        assert float(model.blocks[0].mlp.down_proj.weight[:, 3:5].abs().max()) < 1e-4


def test_reflections_and_rotations_equal_their_hooks():
    model = tiny_model("gpt2")
    mirror = [edits.reflect((site, V)) for site in edits.writes(model)]
    with weights.reflect(model, V).applied():
        torch.testing.assert_close(model.run(IDS).logits, model_free(model, IDS, mirror), **CLOSE)
    s, t = V / V.norm(), W / W.norm()
    across = (t - (t @ s) * s) / (t - (t @ s) * s).norm()
    angle = torch.arccos(s @ t)
    turn = torch.eye(32) + (angle.cos() - 1) * (torch.outer(s, s) + torch.outer(across, across))
    turn = turn + angle.sin() * (torch.outer(across, s) - torch.outer(s, across))
    torch.testing.assert_close(turn @ s, t, **CLOSE)
    old = model.blocks[2].mlp.c_proj.weight.clone()
    with weights.rotate(model, V, W).applied():
        torch.testing.assert_close(model.blocks[2].mlp.c_proj.weight, old @ turn.T, **CLOSE)
    with pytest.raises(BadInput, match="norm after attn"):
        weights.reflect(tiny_model("gemma2"), V)


def model_free(model: Model, ids: torch.Tensor, given) -> torch.Tensor:
    """The hooks on another copy of the model, whose weights are as they were."""
    return tiny_model("gpt2").run(ids, edits=given).logits


def test_an_amount_is_linear_and_zero_changes_nothing():
    model = tiny_model("llama")
    logits = model.run(IDS).logits
    with weights.orthogonalise(model, V, 0.0).applied():
        assert torch.equal(model.run(IDS).logits, logits)
    half = model.run(IDS, edits=edits.ablate_writes(model, V, 0.5)).logits
    with weights.orthogonalise(model, V, 0.5).applied():
        torch.testing.assert_close(model.run(IDS).logits, half, **CLOSE)


def test_each_layer_with_the_part_that_its_mean_leaves():
    model = tiny_model("llama")
    means = {layer: torch.randn(32, generator=DRAW) for layer in (1, 2)}
    directions = weights.biprojected(V, means)
    for layer, mean in means.items():
        assert abs(float(directions[layer] @ mean)) < 1e-5
        left = V - mean * (V @ mean) / (mean @ mean)
        torch.testing.assert_close(directions[layer], left / left.norm(), **CLOSE)
    before = [model.blocks[layer].mlp.down_proj.weight.clone() for layer in range(3)]
    with weights.orthogonalise(model, directions).applied():
        for layer in (1, 2):
            r = directions[layer]
            new = model.blocks[layer].mlp.down_proj.weight
            torch.testing.assert_close(new, before[layer] - torch.outer(r, r @ before[layer]), **CLOSE)
        assert torch.equal(model.blocks[0].mlp.down_proj.weight, before[0])
    with pytest.raises(BadInput, match="nothing is left"):
        weights.projected(V, 3 * V)


@pytest.mark.parametrize(
    ("family", "site"),
    [("llama", "resid_post.1"), ("gpt2", "resid_pre.2"), ("granite", "resid_post.0"), ("granite", "resid_pre.0")],
)
def test_a_bias_adds_a_vector(family, site):
    model = tiny_model(family)
    hooks = model.run(IDS, edits=edits.add((site, V), 3.0)).logits
    before = named(model)
    with weights.add_as_bias(model, (site, V), 3.0).applied():
        torch.testing.assert_close(model.run(IDS).logits, hooks, **CLOSE)
    assert all(value is before[name] for name, value in named(model).items())
    assert before.keys() == named(model).keys()


def test_no_bias_says_what_a_norm_divides():
    with pytest.raises(BadInput, match="a norm stands between"):
        weights.add_as_bias(tiny_model("gemma2"), ("resid_post.1", V))
    with pytest.raises(BadInput, match="is a mixture"):
        weights.add_as_bias(tiny_model("mixtral"), ("resid_post.1", V))
    with pytest.raises(BadInput, match="between blocks"):
        weights.add_as_bias(tiny_model("llama"), ("resid_mid.1", V))


def test_bad_directions():
    model = tiny_model("llama")
    with pytest.raises(BadInput, match="have 32 entries"):
        weights.orthogonalise(model, V[:8])
    with pytest.raises(BadInput, match="zeros"):
        weights.orthogonalise(model, torch.zeros(32))
    with pytest.raises(BadInput, match="one is a sum"):
        weights.orthogonalise(model, [V, 2 * V])
    with pytest.raises(UnknownName, match="no layer 7"):
        weights.orthogonalise(model, {7: V})
    with pytest.raises(BadInput, match="finite number"):
        weights.orthogonalise(model, V, float("nan"))


# ---------------------------------------------------------------------- adapters
@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gemma2", "gemma3_text", "phi", "granite"])
def test_an_adapter_is_the_edit(family, tmp_path):
    pytest.importorskip("peft")
    model = tiny_model(family)
    model.hf.save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"), quiet=True)
    edit = weights.orthogonalise(model, [V, W])
    with edit.applied():
        wanted = model.run(IDS).logits
    weights.save_adapter(edit, tmp_path / "adapter")
    assert "meant for evaluation" in (tmp_path / "adapter" / "README.md").read_text()
    adapted = load_model(str(tmp_path / "adapter"), quiet=True)
    torch.testing.assert_close(adapted.run(IDS).logits, wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(model.run(IDS).logits, wanted, rtol=1e-2, atol=1e-2)
    with pytest.raises(BadInput, match="not empty"):
        weights.save_adapter(edit, tmp_path / "adapter")


def test_what_no_adapter_holds(tmp_path):
    tied = Model(tiny_hf("llama_tied"), None, "tied")
    for edit, match in (
        (weights.orthogonalise(tied, V, norms="columns"), "old norms"),
        (weights.orthogonalise(tied, V, untie=False), "tied unembedding"),
        (weights.orthogonalise(tiny_model("mixtral"), V), "experts in one tensor"),
        (weights.add_as_bias(tied, ("resid_post.1", V)), "a bias that is added"),
    ):
        with pytest.raises(BadInput, match=match):
            weights.save_adapter(edit, tmp_path / "adapter")


# ---------------------------------------------------------------------- layers that share their weights
def with_a_layer_twice() -> Model:
    hf = tiny_hf("llama")
    hf.model.layers[1] = hf.model.layers[0]
    return load_model(hf, quiet=True)


@pytest.mark.parametrize(
    "edit",
    [weights.orthogonalise, weights.reflect, lambda model, v: weights.add_as_bias(model, ("resid_post.1", v))],
)
def test_a_weight_of_several_layers_is_not_edited(edit):
    with pytest.raises(UnknownName, match="is one weight in layers 0 and 1, .*edits.ablate_writes") as raised:
        edit(with_a_layer_twice(), V)
    assert "\n" not in str(raised.value)


def test_the_weights_of_albert_are_not_edited():
    hf = randomised(AutoModelForMaskedLM.from_config(tiny_config("albert", embedding_size=16), dtype=torch.float32))
    with pytest.raises(UnknownName, match="puts the stream itself through a norm") as raised:
        weights.orthogonalise(load_model(hf, quiet=True), V)
    assert "\n" not in str(raised.value)


@torch.no_grad()
def test_a_block_that_is_listed_twice_has_sites_of_each_call():
    model = with_a_layer_twice()
    seen = []
    handle = model.hf.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model.hf(IDS, use_cache=False)
    handle.remove()
    run = model.run(IDS, capture=["resid_post.0", "resid_post.1"])
    for layer in (0, 1):
        torch.testing.assert_close(run[f"resid_post.{layer}"], seen[layer], **CLOSE)
    edited = model.run(IDS, edits=edits.scale("resid_post.1", 0.0), capture=["resid_post.0", "resid_post.1"])
    torch.testing.assert_close(edited["resid_post.0"], seen[0], **CLOSE)
    assert float(edited["resid_post.1"].abs().max()) == 0.0
