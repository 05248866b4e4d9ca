"""Runs that keep parts, runs in parts, and the table of what holds memory."""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from monosem import edits, models
from monosem.errors import BadInput, EditDidNotFire
from monosem.models import Model, TokenBatch
from monosem.models.running.budget import bytes_of, estimate
from monosem.models.running.selection import Kept
from monosem.models.transformerlens.hooks import all_sites
from tiny_dictionaries import tiny_dictionary

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 18], [19, 20, 21, 22], [23, 24, 25, 26, 27, 28], [29, 30]]


@pytest.fixture
def llama(tiny_model) -> Model:
    return tiny_model("llama")


@pytest.fixture(params=["right", "left"])
def batch(request) -> TokenBatch:
    return TokenBatch.of(ROWS, 2, request.param)


def columns(batch: TokenBatch, row: int) -> list[int]:
    return batch.mask[row].nonzero()[:, 0].tolist()


# ---------------------------------------------------------------------- parts of activations
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_positions_and_heads_are_those_of_the_whole_run(tiny_model, family, batch):
    model = tiny_model(family)
    sites, most = all_sites(model), model.cfg.n_kv_heads - 1
    whole = model.run(batch, capture=sites)
    kv = [site for site in sites if site.name in ("k", "v", "rot_k")]
    part = model.run(batch, capture=[site for site in sites if site not in kv], positions=[0, -1], heads=[3, 1])
    part.activations |= model.run(batch, capture=kv, positions=[0, -1], heads=[most, 0]).activations
    for site in sites:
        expected = whole[site]
        rows = torch.arange(len(batch))
        at = torch.tensor([[columns(batch, row)[0], columns(batch, row)[-1]] for row in range(len(batch))])
        if site.query_axis == 2:
            expected = expected[rows[:, None], :, at].transpose(1, 2)[:, [3, 1]]
        else:
            expected = expected[rows[:, None], at]
            if site.name in ("q", "z", "rot_q"):
                expected = expected[:, :, [3, 1]]
            if site.name in ("k", "v", "rot_k"):
                expected = expected[:, :, [most, 0]]
        torch.testing.assert_close(part[site], expected, rtol=0, atol=0, msg=str(site))
        torch.testing.assert_close(part.last(site), part[site].select(site.query_axis, 1), rtol=0, atol=0)


def test_forms_of_positions(llama, batch):
    whole = llama.run(batch, capture="z.1")["z.1"]
    for positions, wanted in (
        (1, [1]),
        ("last", [-1]),
        (slice(0, 2), [0, 1]),
        (slice(-2, None), [-2, -1]),
        ([-1], [-1]),
    ):
        found = llama.run(batch, capture="z.1", positions=positions)["z.1"]
        expected = torch.stack([whole[r, [columns(batch, r)[p] for p in wanted]] for r in range(len(batch))])
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(BadInput, match="prompt 5 has 2 tokens, position 2"):
        llama.run(batch, capture="z.1", positions=[2])
    with pytest.raises(BadInput, match="one number"):
        llama.run(batch, capture="z.1", positions=slice(1, None))
    with pytest.raises(BadInput, match="heads 0 to 3, not 4"):
        llama.run(batch, capture="z.1", heads=4)
    with pytest.raises(BadInput, match=r"k.1 has heads 0 to 1 \(kv heads: query head h reads kv head h // 2\), not 3"):
        llama.run(batch, capture=["z.1", "k.1"], heads=3)
    with pytest.raises(BadInput, match=r"k.1 has heads 0 to 1 \(kv heads: query head h reads kv head h // 2\), not 3"):
        llama.run(batch, edits=edits.scale("k.1", 0.0).at(heads=3))
    with pytest.raises(BadInput, match="whole activations"):
        llama.run(batch, capture="z.1", positions=0, grad=True)
    with pytest.raises(BadInput, match="positions='last'"):
        llama.run(batch, capture="z.1", positions=[0]).last("z.1")


def test_the_whole_activation_is_not_kept_behind_a_part(tiny_model):
    ids = torch.randint(3, 100, (2, 40))
    for family in ("llama", "gpt2", "gpt_neox"):
        model = tiny_model(family)
        run = model.run(
            ids, capture=["q.1", "v.1", "pattern.1", "resid_post.1"], positions=[3], heads=[1], logits=False
        )
        for site, value in run.activations.items():
            assert value.untyped_storage().nbytes() == value.numel() * 4, site


# ---------------------------------------------------------------------- runs in parts
def budget_for(model: Model, batch: TokenBatch, sites, rows: int, **kwargs) -> int:
    """A budget under which exactly `rows` rows go at a time."""
    found = estimate(model, batch, [model.site(s) for s in sites], Kept.of(model, batch, **kwargs), True)
    return int(found.kept * len(batch) + (found.kept + found.working) * (rows + 0.5))


def counted_run(model: Model, batch: TokenBatch, **kwargs):
    """(number of forward passes, the run)"""
    count = []
    handle = model.hf.register_forward_pre_hook(lambda *_: count.append(1))
    try:
        result = model.run(batch, **kwargs)
    finally:
        handle.remove()
    return len(count), result


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_run_in_parts_equals_one_pass(tiny_model, batch, rows):
    for family in ("llama", "gpt2", "gemma2"):
        model = tiny_model(family)
        sites = ["resid_post.1", "pattern.2", "k.0", "final_norm"]
        memory = budget_for(model, batch, sites, rows)
        n, run = counted_run(model, batch, capture=sites, memory=memory)
        assert n == -(-len(batch) // rows)
        whole = model.run(batch, capture=sites)
        real = batch.mask
        close = {"rtol": 1e-5, "atol": 1e-5 * float(whole.logits.abs().max())}
        torch.testing.assert_close(run.logits[real], whole.logits[real], **close)
        for site in sites:
            axis = 2 if site.startswith("pattern") else 1
            found, expected = run[site].movedim(axis, 1)[real], whole[site].movedim(axis, 1)[real]
            torch.testing.assert_close(found, expected, **close)
        last = model.run(batch, logits="last", memory=memory).logits
        torch.testing.assert_close(last, model.run(batch, logits="last").logits, **close)
    part = model.run(batch, capture=["z.1"], positions="last", logits=False, memory="1MB")
    torch.testing.assert_close(part["z.1"], model.run(batch, capture=["z.1"], positions="last")["z.1"])


def test_edits_with_data_for_each_row_reach_their_rows(llama, batch):
    generator = torch.Generator().manual_seed(3)
    whole = llama.run(batch, capture=["attn_out.0", "resid_post.0", "z.1"])
    vector = torch.randn(32, generator=generator)
    given = [
        edits.patch(
            "resid_post.0",
            whole["resid_post.0"] + torch.randn(whole["resid_post.0"].shape, generator=generator),
            tokens=batch,
        ),
        edits.patch("attn_out.0", whole).at(positions=-1),
        edits.add(("resid_post.1", vector), torch.arange(6.0)),
        edits.scale("z.1", 0.3).at(rows=[1, -1], positions=-1),
        edits.ablate(("mlp_out.2", vector)).at(positions="last"),
    ]
    expected = llama.run(batch, edits=given).logits
    for rows in (1, 4):
        memory = budget_for(llama, batch, [], rows)
        n, run = counted_run(llama, batch, edits=given, memory=memory)
        assert n > 1
        torch.testing.assert_close(run.logits[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-5)
    start = ("resid_pre.1", whole["resid_post.0"])
    late = llama.run(batch, start=start, memory=memory).logits
    torch.testing.assert_close(late[batch.mask], whole.logits[batch.mask], rtol=1e-4, atol=1e-5)


def test_latent_edits_with_data_for_each_row_reach_their_rows(llama, batch):
    sae = tiny_dictionary("relu")
    for edit in (edits.clamp(sae, [0, 1, 2, 3, 4, 5], 3.0), edits.add_latent(sae, 2, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])):
        expected = llama.run(batch, edits=edit).logits
        found = llama.run(batch, edits=edit, memory=budget_for(llama, batch, [], 2)).logits
        torch.testing.assert_close(found[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-5)


def test_edits_that_may_need_all_rows_are_refused(llama, batch):
    memory = budget_for(llama, batch, [], 2)
    centre = edits.function("resid_post.0", lambda x: x - x.mean(0, keepdim=True))
    with pytest.raises(BadInput, match="by_row=True"):
        llama.run(batch, edits=centre, memory=memory)
    llama.run(batch, edits=centre, memory="1GB")  # one pass
    double = edits.function("resid_post.0", lambda x: 2 * x, by_row=True)
    found = llama.run(batch, edits=double, memory=memory).logits
    torch.testing.assert_close(
        found[batch.mask], llama.run(batch, edits=double).logits[batch.mask], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(EditDidNotFire):
        llama.run(batch, edits=edits.scale("z.1", 0.0).at(positions=50), memory=memory)


def test_a_budget_that_cannot_hold_says_what_to_leave_out(llama):
    ids = torch.randint(3, 100, (4, 60))
    with pytest.raises(BadInput, match=r"4 rows keep .* pattern\.1"):
        llama.run(ids, capture=["pattern.1", "z.1"], logits=False, memory="100KB")
    with pytest.raises(BadInput, match="one row at a time needs"):
        llama.run(ids, capture=["z.1"], logits=False, positions="last", memory="10KB")
    with pytest.raises(BadInput, match=r"logits=True"):
        llama.run(ids, memory="20KB")
    for bad in ("4 apples", "-1GB", 0, "GB", "1.2.3GB"):
        with pytest.raises(BadInput, match="such as '4GB'"):
            bytes_of(bad)
    assert (bytes_of("4GB"), bytes_of("1.5 KiB"), bytes_of(7)) == (4 * 10**9, 1536, 7)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "gpt_oss"])
def test_a_run_stays_under_its_budget(tiny_model, family):
    """The allocator's own count of live bytes, against the stated budget."""
    model = tiny_model(family)
    batch = model.tokens(torch.randint(3, 100, (12, 60)))
    model.run(batch[:1])  # whatever is made once
    gc.collect()  # what earlier tests left behind is not freed within the measurement
    gc.disable()
    try:
        for sites in (["resid_post.1"], ["pattern.0", "pattern.2"], []):
            memory = budget_for(model, batch, sites, 3)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                model.run(batch, capture=sites, memory=memory)
            peak = peak_of(profiler)
            assert 0.2 * memory < peak <= memory, (sites, peak, memory)
    finally:
        gc.enable()


def peak_of(profiler: profile) -> int:
    live = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


# ---------------------------------------------------------------------- what holds memory
def test_the_table_names_models_dictionaries_runs_and_tensors(tiny_model):
    model, sae = tiny_model("llama_tied"), tiny_dictionary("relu")
    model.name = "the model that is looked for"
    run = model.run(torch.randint(3, 100, (3, 20)), capture=["resid_post.1", "q.1"])
    loose = torch.zeros(700, 1000)
    view = loose[3]
    table = models.memory()
    mine = table[table.name == model.name]
    size = {p.data_ptr(): p.numel() * 4 for p in model.hf.parameters()} | {
        b.data_ptr(): b.untyped_storage().nbytes() for b in model.hf.buffers()
    }
    assert mine.GB.sum() * 1e9 == pytest.approx(sum(size.values()))  # the tied table once
    runs = table[table.name == f"3 rows of {model.name}"]
    held = {
        v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in [*run.activations.values(), run.logits]
    }
    assert runs.GB.sum() * 1e9 == pytest.approx(sum(held.values()))
    tensors = table[(table.what == "tensor") & (table.name == "[700, 1000]") | (table.name == "[1000]")]
    assert tensors.GB.tolist() == [pytest.approx(2.8e-3)]
    assert table[(table.what == "module") & table.name.str.startswith("Dictionary")].GB.max() > 0
    assert table.GB.is_monotonic_decreasing
    del view, sae


def test_free_gives_memory_back_while_names_remain(tiny_model):
    model = tiny_model("llama")
    model.name = "freed"
    run = model.run([[5, 6, 7]], capture="resid_post.1")
    assert "freed" in models.free(run, model)
    table = models.memory()
    assert not table.name.str.contains("freed").any()
    with pytest.raises(BadInput, match="load it again"):
        model.run([[5, 6, 7]])
    with pytest.raises(BadInput, match="use del"):
        models.free(torch.zeros(3))
    assert models.free() == "0 B freed"
    gc.collect()
