"""The spine on every family: tiny models with random gains and biases, native Hugging Face as the oracle."""

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, EditDidNotFire, UnknownName
from monosem.models import PER_LAYER, Model, Site, TokenBatch, verify
from tiny import FAMILIES, tiny_hf, tiny_tokenizer

IDS = torch.randint(3, 100, (3, 11), generator=torch.Generator().manual_seed(5))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def model_of(family: str) -> Model:
    return Model(tiny_hf(family), tiny_tokenizer(), family)


@pytest.fixture(params=FAMILIES)
def model(request) -> Model:
    return model_of(request.param)


@pytest.fixture
def llama() -> Model:
    return model_of("llama")


def offered(model: Model) -> list[Site]:
    found = []
    for name in PER_LAYER:
        try:
            found.append(model.site((name, 1)))
        except UnknownName:
            continue
    return found


def hooks_of(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_identities(model):
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    assert set(result.table.site) >= {"logits", "resid_post", "z", "pattern", "mlp_post"}


def test_verify_finds_a_wrong_family_row(monkeypatch):
    import dataclasses

    from monosem.models import model as module
    from monosem.models.families import family_of

    gemma = tiny_hf("gemma2")
    wrong = dataclasses.replace(family_of(gemma.config), attn_norm=None, ln2="post_attention_layernorm")
    monkeypatch.setattr(module, "family_of", lambda config: wrong)
    result = verify(Model(gemma, None, "wrong"))
    assert not result.ok
    assert not result.table.set_index("identity").loc["resid_pre + attn_out + mlp_out"].ok


def test_logits_with_all_sites_captured_equal_eager_exactly_where_attention_is_explicit(model):
    sites = [Site(s.name, layer) for s in offered(model) for layer in range(3)]
    ours = model.run(IDS, capture=sites).logits
    model.hf.set_attn_implementation("eager")
    with torch.no_grad():
        native = model.hf(IDS, use_cache=False).logits
    torch.testing.assert_close(ours, native, rtol=0, atol=2e-6 * float(native.abs().max()))


def test_captured_values_match_the_documented_shapes(model):
    cfg = model.cfg
    sites = offered(model)
    run = model.run(IDS, capture=sites)
    heads = {"q": cfg.n_heads, "rot_q": cfg.n_heads, "z": cfg.n_heads}
    heads |= dict.fromkeys(("k", "v", "rot_k"), cfg.n_kv_heads)
    for site in sites:
        expected = (3, 11, cfg.d_model)
        if site.name in heads:
            expected = (3, 11, heads[site.name], cfg.d_head)
        elif site.name in ("scores", "pattern"):
            expected = (3, cfg.n_heads, 11, 11)
        elif site.name.startswith("mlp_p"):
            expected = (3, 11, cfg.d_mlp)
        assert tuple(run[site].shape) == expected, site


def test_every_site_can_be_written_and_the_write_has_an_effect(model):
    base = model.run(IDS).logits
    for site in offered(model):
        tilt = edits.function(site, lambda x: x * torch.linspace(0.5, 1.5, x.shape[-1]))  # qk-norm undoes a plain scale
        changed = model.run(IDS, edits=tilt).logits
        assert (changed - base).abs().max() > 1e-3, site
    assert hooks_of(model) == 0


def test_pattern_edit_equals_removing_a_key(model):
    """Zeroing one key's column and renormalising is attention without that key: the oracle masks it in the scores."""
    site = Site("pattern", 1)

    def drop(p):
        p = p.clone()
        p[..., 2] = 0
        return p / p.sum(-1, keepdim=True).clamp(min=1e-9)

    def mask(s):
        s = s.clone()
        s[..., 2] = torch.finfo(s.dtype).min
        return s

    columns = slice(3, None)  # rows before it would have nothing left
    ours = model.run(IDS, edits=edits.function(site, drop).at(columns)).logits
    oracle = model.run(IDS, edits=edits.function(("scores", 1), mask).at(columns)).logits
    torch.testing.assert_close(ours, oracle, **TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3_text", "gpt_neox_sequential"])
def test_resid_mid_edit_equals_a_hand_written_block(family):
    model = model_of(family)
    block, row = model.blocks[1], model.family
    shift = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    edited = model.run(IDS, capture=["resid_mid.1", "resid_post.1"], edits=edits.add(("resid_mid.1", shift)))
    clean = model.run(IDS, capture=["resid_mid.1"])
    mid = clean["resid_mid.1"] + shift
    torch.testing.assert_close(edited["resid_mid.1"], mid, **TOLERANCE)
    out = block.get_submodule(row.mlp)(block.get_submodule(row.ln2)(mid))
    out = block.get_submodule(row.mlp_norm)(out) if row.mlp_norm else out
    torch.testing.assert_close(edited["resid_post.1"], mid + out, **TOLERANCE)


def test_resid_mid_is_refused_in_parallel_blocks():
    with pytest.raises(UnknownName, match="parallel"):
        model_of("gpt_neox").run(IDS, capture="resid_mid.0")


def test_other_prompts_residual_gives_its_logits(model):
    run = model.run(IDS, capture="resid_post.1")
    order = [2, 0, 1]
    swapped = model.run(IDS, edits=edits.patch("resid_post.1", run["resid_post.1"][order])).logits
    torch.testing.assert_close(swapped, run.logits[order], **TOLERANCE)


def test_start_late_equals_the_full_run(model):
    run = model.run(IDS, capture=["resid_pre.2"])
    late = model.run(IDS, start=("resid_pre.2", run["resid_pre.2"]), capture="resid_post.2")
    torch.testing.assert_close(late.logits, run.logits, rtol=0, atol=1e-5)
    assert all("forward" not in block.__dict__ for block in model.blocks)
    with pytest.raises(BadInput, match="shape"):
        model.run(IDS, start=("resid_pre.2", run["resid_pre.2"][:, :4]))


def test_stops_after_the_last_wanted_site(llama):
    ran = []
    handles = [b.register_forward_hook(lambda m, a, o, i=i: ran.append(i)) for i, b in enumerate(llama.blocks)]
    run = llama.run(IDS, capture=["resid_post.0", "q.1"], logits=False)
    for handle in handles:
        handle.remove()
    assert ran == [0]
    assert run.logits is None
    full = llama.run(IDS, capture=["q.1"])
    torch.testing.assert_close(run["q.1"], full["q.1"], rtol=0, atol=0)


def test_last_only_logits(model):
    batch = TokenBatch.of([IDS[0, :4].tolist(), IDS[1].tolist()], pad=2)
    full = model.run(batch).logits
    last = model.run(batch, logits="last").logits
    torch.testing.assert_close(last, torch.stack([full[0, 3], full[1, 10]]), **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_changes_a_result(model, side):
    rows = [IDS[0, :3].tolist(), IDS[1].tolist(), IDS[2, :7].tolist()]
    batch = TokenBatch.of(rows, pad=2, side=side)
    sites = offered(model)
    edit = edits.scale("resid_post.0", 1.5).at("last")
    together = model.run(batch, capture=sites, edits=edit)
    for number, row in enumerate(rows):
        alone = model.run([row], capture=sites, edits=edit)
        real = batch.mask[number]
        torch.testing.assert_close(together.logits[number, real], alone.logits[0], **TOLERANCE)
        for site in sites:
            value = together[site][number]
            value = value[:, real][:, :, real] if site.query_axis == 2 else value[real]
            torch.testing.assert_close(value, alone[site][0], **TOLERANCE)


def test_gradients_reach_every_captured_site_and_match_finite_differences(model):
    sites = [s for s in offered(model) if s.name != "scores"]
    run = model.run(IDS[:1], capture=sites, grad=True)
    metric = run.logits[0, -1, 7]
    gradients = torch.autograd.grad(metric, [run[s] for s in sites])
    for site, gradient in zip(sites, gradients):
        step = gradient / gradient.norm() * 2e-2

        def moved(sign, site=site, step=step):
            edit = edits.function(site, lambda x: x + sign * step)
            return float(model.run(IDS[:1], edits=edit).logits[0, -1, 7])

        slope = (moved(1) - moved(-1)) / 4e-2
        assert slope == pytest.approx(float(gradient.norm()), rel=0.05, abs=1e-3), site


def test_hooks_are_gone_after_an_exception_and_contexts_nest(llama):
    def explode(x):
        raise ZeroDivisionError

    before = llama.hf.config._attn_implementation
    with pytest.raises(ZeroDivisionError):
        llama.run(IDS, capture="pattern.0", edits=edits.function("z.1", explode))
    assert hooks_of(llama) == 0
    assert llama.hf.config._attn_implementation == before
    base = llama.run(IDS).logits
    one, two = edits.scale("resid_post.0", 0.5), edits.scale("resid_post.0", 0.4)
    with llama.editing(one), llama.editing(two):
        both = llama.run(IDS).logits
    torch.testing.assert_close(both, llama.run(IDS, edits=[one, two]).logits)
    torch.testing.assert_close(llama.run(IDS).logits, base)


def test_two_models_at_once():
    a, b = model_of("llama"), model_of("qwen2")
    with a.editing(edits.scale("resid_post.0", 0.0)):
        torch.testing.assert_close(b.run(IDS, capture="pattern.1").logits, b.run(IDS).logits, **TOLERANCE)


def test_unknown_sites_and_missing_captures(llama):
    with pytest.raises(UnknownName, match="layers 0 to 2"):
        llama.run(IDS, capture="resid_post.3")
    with pytest.raises(UnknownName, match="not gated"):
        model_of("gpt2").run(IDS, capture="mlp_pre_linear.0")
    with pytest.raises(UnknownName, match="was not captured"):
        llama.run(IDS, capture="resid_post.0")["resid_post.1"]


def test_bad_prompts(llama):
    for bad, hint in [
        ("", "empty"),
        ([], "no prompts"),
        (["a", ""], "prompt 1 is empty"),
        (torch.full((1, 65), 5), "context of 64"),
        (torch.full((1, 3), 100), "outside the vocabulary"),
        (torch.zeros(1, 3), "integer"),
    ]:
        with pytest.raises(BadInput, match=hint):
            llama.run(bad)
    with pytest.raises(BadInput, match="no tokenizer"):
        Model(tiny_hf("llama"), None, "bare").run("text")
    with pytest.raises(BadInput, match="nothing to run for"):
        llama.run(IDS, logits=False)


# ---------------------------------------------------------------------- generation


def loop_without_cache(model: Model, row: list[int], steps: int, edit=()) -> list[int]:
    """The oracle: whole forward passes, greedy."""
    for _ in range(steps):
        row = [*row, int(model.run([row], edits=edit).logits[0, -1].argmax())]
    return row


def test_greedy_generation_equals_repeated_full_passes(model):
    rows = [IDS[0, :3].tolist(), IDS[1].tolist()]
    made = model.generate(rows, max_new_tokens=12, stop_at_eos=False)
    for row, whole in zip(rows, made.ids.rows()):
        assert whole == loop_without_cache(model, row, 12)


def test_edits_in_generation_equal_edits_in_full_passes(model):
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(2))
    for edit in [
        edits.add(("resid_post.1", vector), 3.0),
        edits.scale("z.1", 0.2),
        edits.add(("resid_pre.1", vector), 5.0).at(positions=[0, 2]),
    ]:
        rows = [IDS[0, :3].tolist(), IDS[1].tolist()]
        made = model.generate(rows, edits=edit, max_new_tokens=8, stop_at_eos=False)
        for row, whole in zip(rows, made.ids.rows()):
            assert whole == loop_without_cache(model, row, 8, edit)


def test_scopes_split_prompt_and_generated_tokens(llama):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(2))
    row = IDS[0, :4].tolist()
    edit = edits.add(("resid_post.1", vector), 4.0)
    generated = llama.generate([row], edits=edit.at(scope="generated"), max_new_tokens=6, stop_at_eos=False)
    oracle = row
    for _ in range(6):
        late = () if len(oracle) == 4 else edit.at(positions=slice(4, None))
        oracle = [*oracle, int(llama.run([oracle], edits=late).logits[0, -1].argmax())]
    assert generated.ids.rows()[0] == oracle
    prompt = llama.generate([row], edits=edit.at(scope="prompt"), max_new_tokens=6, stop_at_eos=False)
    assert prompt.ids.rows()[0] == loop_without_cache(llama, row, 6, edit.at(positions=slice(0, 4)))


def test_generation_from_bos_alone_and_per_row_edits(llama):
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    each = [edits.add(("resid_post.1", v), 6.0) for v in vectors]
    made = llama.generate(None, rows=2, edits=[e.at(rows=[i]) for i, e in enumerate(each)], max_new_tokens=6)
    for number, edit in enumerate(each):
        alone = llama.generate(edits=edit, max_new_tokens=6)
        assert alone.prompt.rows() == [[llama.bos]]
        assert made.new[number] == alone.new[0]


def test_sampling_is_seeded_and_follows_the_distribution(llama):
    first = llama.generate([IDS[0].tolist()] * 4, temperature=1.0, seed=3, max_new_tokens=8)
    again = llama.generate([IDS[0].tolist()] * 4, temperature=1.0, seed=3, max_new_tokens=8)
    other = llama.generate([IDS[0].tolist()] * 4, temperature=1.0, seed=4, max_new_tokens=8)
    assert first.new == again.new != other.new
    greedy = llama.generate([IDS[0].tolist()], max_new_tokens=8)
    assert llama.generate([IDS[0].tolist()], temperature=1.0, top_k=1, max_new_tokens=8).new == greedy.new
    many = llama.generate([IDS[0].tolist()] * 2000, temperature=1.0, max_new_tokens=1, stop_at_eos=False)
    counts = torch.bincount(torch.tensor(many.new)[:, 0], minlength=100) / 2000
    truth = llama.run(IDS[:1], logits="last").logits[0].softmax(-1)
    assert (counts - truth).abs().max() < 0.04


def test_generation_stops_at_the_end_token(llama):
    force = edits.function("logits", lambda x: x.index_fill(-1, torch.tensor([1]), 1e9))
    made = llama.generate([IDS[0].tolist()], edits=force, max_new_tokens=5)
    assert made.new == [[1]]
    assert made.texts == [""]


def test_logits_are_edited_at_the_last_token_of_padded_rows(llama):
    rows = [IDS[0, :3].tolist(), IDS[1].tolist()]
    force = edits.function("logits", lambda x: x.index_fill(-1, torch.tensor([7]), 1e9))
    assert llama.generate(rows, edits=force, max_new_tokens=2).new == [[7, 7], [7, 7]]
    late = llama.generate(rows, edits=force.at(scope="generated"), max_new_tokens=2, stop_at_eos=False)
    clean = llama.generate(rows, max_new_tokens=1, stop_at_eos=False)
    assert [new[0] for new in late.new] == [new[0] for new in clean.new]
    assert [new[1] for new in late.new] == [7, 7]
    batch = TokenBatch.of(rows, pad=2)
    one = llama.run(batch, edits=force.at(rows=[1]), logits="last").logits
    torch.testing.assert_close(one[0], llama.run(batch, logits="last").logits[0], **TOLERANCE)
    assert int(one[1].argmax()) == 7


def test_generation_errors(llama):
    with pytest.raises(BadInput, match="context of 64"):
        llama.generate([IDS[0].tolist()], max_new_tokens=60)
    with pytest.raises(BadInput, match="temperature"):
        llama.generate([IDS[0].tolist()], temperature=-1)
    with pytest.raises(EditDidNotFire):
        llama.generate([IDS[0].tolist()], edits=edits.scale("z.0", 0).at(positions=50))
