"""Weight views: x @ W + b equals what the model's own modules compute, on every family."""

import pytest
import torch
from torch import nn

from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from tiny import FAMILIES, tiny_hf, tiny_tokenizer

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_model) -> Model:
    return tiny_model(request.param)


def has(model: Model, site: str) -> bool:
    try:
        model.site((site, 1))
    except UnknownName:
        return False
    return True


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def captured(model: Model, *names: str):
    return model.run(IDS, capture=[(name, 1) for name in names])


def inputs_of(model: Model, *paths: str) -> dict[str, torch.Tensor]:
    """What reaches the native modules of these names in block 1, by plain hooks."""
    seen: dict[str, torch.Tensor] = {}

    def keep(path):
        return lambda module, args, kwargs: seen.update({path: args[0] if args else kwargs["hidden_states"]})

    wanted = [p for p in paths if p]
    handles = [model.blocks[1].get_submodule(p).register_forward_pre_hook(keep(p), with_kwargs=True) for p in wanted]
    model.run(IDS)
    for handle in handles:
        handle.remove()
    return seen


def test_query_key_value(model):
    path = model.branch("attn", 1).slot.mixer.at("q")
    x = inputs_of(model, path)[path]
    run = captured(model, "q", "k", "v")
    groups = model.cfg.n_heads // model.cfg.n_kv_heads
    for name in "qkv":
        W, b = getattr(model, f"W_{name.upper()}"), getattr(model, f"b_{name.upper()}")
        expected = run[name, 1] if name == "q" else run[name, 1].repeat_interleave(groups, dim=2)
        close(torch.einsum("btm,hmd->bthd", x, W[1]) + b[1], expected)
        for head in range(model.cfg.n_heads):
            close(x @ W[1, head] + b[1, head], expected[:, :, head])
        assert W.shape == (3, model.cfg.n_heads, model.cfg.d_model, model.cfg.d_head) == W.stacked().shape
        if name != "q":
            own = torch.einsum("btm,hmd->bthd", x, W.kv_heads[1]) + b.kv_heads[1]
            close(own, run[name, 1])
            assert W.kv_heads.shape == (3, model.cfg.n_kv_heads, model.cfg.d_model, model.cfg.d_head)


def test_output_projection(model):
    path = model.branch("attn", 1).slot.mixer.at("out")
    seen = {}
    handle = model.blocks[1].get_submodule(path).register_forward_hook(lambda m, a, out: seen.update(out=out))
    z = captured(model, "z")["z", 1]
    handle.remove()
    close(torch.einsum("bthd,hdm->btm", z, model.W_O[1]) + model.b_O[1], seen["out"])
    assert model.W_O.shape == (3, model.cfg.n_heads, model.cfg.d_head, model.cfg.d_model)


def test_mlp(model):
    if not has(model, "mlp_post"):
        with pytest.raises(UnknownName):
            _ = model.W_out[1]
        return
    run = captured(model, "mlp_pre", "mlp_post", *(["mlp_pre_linear"] if has(model, "mlp_pre_linear") else []))
    seen = {}
    mlp, down = model.branch("mlp", 1).module, model.branch("mlp", 1).slot.mixer.parts["down"]
    handles = [
        mlp.register_forward_pre_hook(
            lambda m, args, kwargs: seen.update(x=[*args, *kwargs.values()][0]), with_kwargs=True
        ),
        mlp.get_submodule(down).register_forward_hook(lambda m, a, out: seen.update(out=out)),
    ]
    model.run(IDS)
    for handle in handles:
        handle.remove()
    close(run["mlp_post", 1] @ model.W_out[1] + model.b_out[1], seen["out"])
    if has(model, "mlp_pre_linear"):
        close(seen["x"] @ model.W_gate[1], run["mlp_pre", 1])
        close(seen["x"] @ model.W_in[1] + model.b_in[1], run["mlp_pre_linear", 1])
        assert model.W_gate.shape == model.W_in.shape
    else:
        close(seen["x"] @ model.W_in[1] + model.b_in[1], run["mlp_pre", 1])
        with pytest.raises(UnknownName, match="not gated"):
            _ = model.W_gate
    assert model.W_in.shape == (3, model.cfg.d_model, model.cfg.d_mlp)
    assert model.W_out.shape == (3, model.cfg.d_mlp, model.cfg.d_model)


def test_embedding_and_unembedding(model):
    run = model.run(IDS, capture=["embed", "final_norm", "resid_pre.0"])
    close(model.W_E[IDS], run["embed"])
    seen = {}
    handle = model.hf.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.update(out=out))
    model.run(IDS)
    handle.remove()
    close(run["final_norm"] @ model.W_U + model.b_U, seen["out"])
    if model.family.name in ("gpt2", "gpt_neo"):
        close(run["embed"] + model.W_pos[: IDS.shape[1]], run["resid_pre.0"])
    else:
        close(run["embed"], run["resid_pre.0"])
        with pytest.raises(UnknownName, match="no learned positions"):
            _ = model.W_pos


def test_indexing_is_that_of_the_stacked_tensor(tiny_model):
    model = tiny_model("llama")
    for view in (model.W_Q, model.W_K, model.W_O, model.b_V):
        whole = torch.stack(list(view))
        assert len(view) == 3
        assert view.ndim == whole.ndim
        heads, layers = torch.tensor([3, 0]), torch.tensor([1, 2])
        for index in (1, -1, (2, 3), (2, -1), slice(1, 3), (slice(None), 2), ([0, 2],), (layers, heads), (..., 0)):
            torch.testing.assert_close(view[index], whole[index], rtol=0, atol=0)
    with pytest.raises(UnknownName, match="layers 0 to 2"):
        _ = model.W_Q[3]
    with pytest.raises(BadInput, match="no kv heads"):
        _ = model.W_Q.kv_heads


def test_views_share_the_models_memory(tiny_model):
    model = tiny_model("llama")
    storage = model.blocks[1].self_attn.k_proj.weight.untyped_storage().data_ptr()
    assert model.W_K[1, 3].untyped_storage().data_ptr() == storage
    assert model.W_K.kv_heads[1].untyped_storage().data_ptr() == storage
    assert model.W_U.untyped_storage().data_ptr() == model.hf.lm_head.weight.untyped_storage().data_ptr()


class Packed(nn.Module):
    """Eight-bit rows with a scale each, as quantised layers hold them: `weight` alone means nothing."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        codes = (linear.weight / scale).round().to(torch.int8).flatten()
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = linear.bias

    def rows(self) -> torch.Tensor:
        return self.weight.view(self.out_features, self.in_features) * self.scale

    def forward(self, x):
        return nn.functional.linear(x, self.rows(), self.bias)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_packed_weights_are_read_as_they_act(family):
    hf = tiny_hf(family)
    for module in list(hf.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Packed(child))
    model = Model(hf, tiny_tokenizer(), "packed")
    run = model.run(IDS, capture=["q.1", "z.1", "mlp_post.1", "final_norm"])
    out = model.blocks[1].get_submodule(model.branch("attn", 1).slot.mixer.at("out"))
    down = model.blocks[1].get_submodule(model.branch("mlp", 1).slot.mixer.at("down"))
    close(model.W_O[1], out.rows().T.unflatten(0, (4, 8)))
    close(model.W_out[1], down.rows().T)
    close(model.W_U, hf.get_output_embeddings().rows().T)
    if down.bias is not None:
        close(model.b_out[1], down.bias)
    reader = model.branch("attn", 1).slot.mixer.at("q")
    x = inputs_of(model, reader)[reader]
    close(torch.einsum("btm,hmd->bthd", x, model.W_Q[1]) + model.b_Q[1], run["q.1"])


def test_an_adapter_around_a_linear_is_part_of_the_weight(tiny_model):
    """A LoRA layer keeps `weight` of the base layer: taking it would leave the adapter out."""

    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x @ self.down @ self.up

    model = tiny_model("llama")
    old = model.blocks[1].self_attn.o_proj
    new = Adapted(old.in_features, old.out_features, bias=False)
    new.load_state_dict(old.state_dict())
    new.down, new.up = torch.randn(32, 2), torch.randn(2, 32)
    model.blocks[1].self_attn.o_proj = new
    close(model.W_O[1].flatten(0, 1), old.weight.T + new.down @ new.up)


def test_reading_weights_within_a_run_leaves_its_captures_alone(tiny_model):
    from monosem import edits

    class Strange(nn.Linear): ...

    model = tiny_model("llama")
    model.blocks[1].self_attn.q_proj.__class__ = Strange
    seen = []
    plain = model.run(IDS, capture="q.1")["q.1"]

    def look(x):
        seen.append(model.W_Q[1])
        return x

    run = model.run(IDS, capture="q.1", edits=edits.function("q.1", look))
    assert torch.equal(run["q.1"], plain)
    close(seen[0].permute(1, 0, 2).flatten(1), model.blocks[1].self_attn.q_proj.weight.T)


def test_shares_of_units_sum_to_what_the_branch_writes_and_pull_back(model):
    """Frozen at the run's own size a branch writes linearly, in every family with or without a norm after it."""
    branches = [branch for branch in model.branches(1) if branch.units]
    run = model.run(IDS, [site for branch in branches for site in (branch.inner, branch.raw, branch.out)])
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    for branch in branches:
        inner = run[branch.inner]
        parts, size = branch.parts(inner), branch.size(inner)
        shares = branch.share(parts, size[..., None, :])
        close(shares.sum(-2) + branch.share(branch.bias(), size) + branch.written_bias, run[branch.out])
        close(branch.project(inner), run[branch.raw])
        close(branch.write(run[branch.raw]), run[branch.out])
        close(shares @ direction, (parts @ branch.pull(direction)) / size)


def test_a_weight_over_all_layers_is_a_tensor_that_is_read_when_it_is_used(tiny_model):
    """`torch.einsum` and einops take tensors; sizes are known without reading a layer."""
    model = tiny_model("llama")
    read = []
    W_V = model.W_V
    whole, one = W_V.read, W_V.stacked()
    W_V.read = lambda layer: read.append(layer) or whole(layer)
    assert isinstance(W_V, torch.Tensor)
    assert (W_V.shape, W_V.ndim, W_V.size(1), W_V.dtype) == ((3, 4, 32, 8), 4, 4, torch.float32)
    assert (W_V.device, W_V.numel(), len(W_V), W_V.is_floating_point()) == (model.device, 3072, 3, True)
    assert "W_V[3, 4, 32, 8]" in repr(W_V)
    assert read == []
    assert torch.equal(W_V[1, 3], one[1, 3])
    assert read == [1]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(torch.einsum("lhmd,bm->lhbd", W_V, x), x @ one)
    for used, expected in (
        (W_V @ model.W_O, one @ model.W_O.stacked()),
        (2 * W_V - one, one),
        (W_V.reshape(12, 32, 8), one.reshape(12, 32, 8)),
        (torch.stack([W_V, W_V])[1], one),
        (W_V.norm(dim=-1), one.norm(dim=-1)),
        (W_V.to(torch.float64), one.double()),
        (torch.linalg.svdvals(W_V), torch.linalg.svdvals(one)),
    ):
        assert type(used) is torch.Tensor
        torch.testing.assert_close(used, expected)
    assert W_V.numpy().shape == (3, 4, 32, 8)
    assert W_V.tolist() == one.tolist()
    for change in (
        lambda: W_V.mul_(2),
        lambda: W_V.__setitem__(0, 1.0),
        lambda: W_V.__imul__(2),
        lambda: torch.nn.init.zeros_(W_V),
    ):
        with pytest.raises(BadInput, match="read only"):
            change()
