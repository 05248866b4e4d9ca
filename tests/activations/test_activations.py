"""Harvesting, shuffling and resuming: exact against native Hugging Face, bit for bit after an interruption."""

import resource
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from monosem.activations import (
    ActivationShards,
    ActivationStream,
    Schedule,
    ShuffleBuffer,
    SkipRule,
    harvest,
    skip_rule,
)
from monosem.data import TokenStore
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.models import Model

DOCUMENTS = [
    f"the {a} {b} sat on the {c}" for a in ("big", "small") for b in ("cat", "dog") for c in ("mat", "tree", "sea")
]
ALL = SkipRule.none()


@pytest.fixture(scope="module")
def model(tiny_model) -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def store(model) -> TokenStore:
    return TokenStore.build(model, DOCUMENTS, context=8)


def native(model: Model, store: TokenStore, layer: int) -> torch.Tensor:
    """resid_post of a layer for all windows, from transformers itself: [windows, context, d_model]."""
    return model.hf(store[:], output_hidden_states=True).hidden_states[layer + 1]


# --------------------------------------------------------------------------------------------------------- harvesting


def test_harvest_equals_native_and_knows_its_places(model, store):
    batches = list(
        harvest(model, store, ["resid_post.1", ("resid_post", 0), "blocks.0.attn.hook_z"], batch_size=5, skip=ALL)
    )
    assert sum(map(len, batches)) == store.tokens
    for layer in (0, 1):
        oracle = native(model, store, layer)
        for batch in batches:
            torch.testing.assert_close(batch[f"resid_post.{layer}"], oracle[batch.windows, batch.positions])
            assert torch.equal(batch.tokens, store[:][batch.windows, batch.positions])
    assert batches[0]["z.0"].shape == (5 * 8, 4 * 8)  # heads flattened


def test_default_rule_leaves_out_special_tokens_and_first_positions(model, store):
    found = harvest(model, store, "resid_post.1", batch_size=3)
    kept = {(w, p) for batch in found for w, p in zip(batch.windows.tolist(), batch.positions.tolist())}
    ids = store[:]
    special = torch.isin(ids, torch.tensor(sorted(model.special_ids)))
    wanted = ~special
    wanted[:, 0] = False
    assert kept == set(map(tuple, wanted.nonzero().tolist()))
    assert found.skipped == Counter(
        {"kept": len(kept), "first": len(store), "special": int(special[:, 1:].sum()), "outlier": 0, "not finite": 0}
    )


@pytest.mark.parametrize("batch_size", [2, 7])
def test_outliers_at_any_site_are_left_out_at_all(model, store, batch_size):
    rule = SkipRule(outlier=1.1, calibration=len(store))
    sites = ["resid_post.0", "resid_post.1"]
    found = harvest(model, store, sites, batch_size=batch_size, skip=rule)
    batches = list(found)
    ids = store[:]
    wanted = ~torch.isin(ids, torch.tensor(sorted(model.special_ids)))
    wanted[:, 0] = False
    within = wanted.clone()
    for layer in (0, 1):
        norms = native(model, store, layer).norm(dim=-1)
        within &= norms <= 1.1 * norms[wanted].median()
        assert found.thresholds[f"resid_post.{layer}"] == pytest.approx(1.1 * float(norms[wanted].median()), rel=1e-5)
    assert 0 < found.skipped["outlier"] == int(wanted.sum() - within.sum())
    places = torch.cat([torch.stack([b.windows, b.positions], 1) for b in batches])
    assert torch.equal(places, within.nonzero())
    assert all(len(b["resid_post.0"]) == len(b["resid_post.1"]) == len(b) for b in batches)
    kept = SkipRule(outlier=None)
    assert harvest(model, store, sites, skip=kept).thresholds == {}


def test_activations_that_are_not_finite_never_get_through(tiny_model, store):
    model = tiny_model()
    sea = int(model.tokenizer("sea").input_ids[0])
    model.hf.get_input_embeddings().weight[sea] = float("nan")
    found = harvest(model, store, "resid_post.1", batch_size=4)
    assert all(batch["resid_post.1"].isfinite().all() for batch in found)
    assert found.skipped["not finite"] > 0
    assert sum(found.skipped.values()) == store.tokens
    model.hf.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(BadInput, match="no finite activation"):
        harvest(model, store, "resid_post.1")


def test_harvest_takes_documents_windows_and_dtypes(model, store):
    oracle = next(iter(harvest(model, store, "mlp_out.1", batch_size=100)))
    packed = next(iter(harvest(model, DOCUMENTS, "mlp_out.1", batch_size=100, context=8)))
    bare = next(iter(harvest(model, store[:], "mlp_out.1", batch_size=100, dtype=torch.bfloat16)))
    assert torch.equal(packed["mlp_out.1"], oracle["mlp_out.1"])
    assert torch.equal(bare["mlp_out.1"], oracle["mlp_out.1"].bfloat16())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sites": "resid_pst.1"}, UnknownName, "resid_post"),
        ({"sites": "resid_post.9"}, UnknownName, "resid_post.9"),
        ({"sites": []}, BadInput, "at least one site"),
        ({"sites": ["resid_post.1", "blocks.1.hook_resid_post"]}, BadInput, "each once"),
        ({"sites": "pattern.0"}, BadInput, "no row for each token"),
        ({"batch_size": 0}, BadInput, "batch_size"),
        ({"texts": "one string"}, BadInput, "not a corpus"),
        ({"texts": ["the cat"], "context": 8}, BadInput, "too few for one window"),
        ({"texts": torch.zeros(2, 65, dtype=torch.long)}, BadInput, "longer than the model's context"),
    ],
)
def test_bad_harvests(model, store, arguments, error, message):
    with pytest.raises(error, match=message):
        list(harvest(**{"model": model, "texts": store, "sites": "resid_post.1", **arguments}))


def test_bad_rules():
    for bad in ({"first": -1}, {"outlier": 0.5}, {"outlier": float("nan")}, {"calibration": 0}):
        with pytest.raises(BadInput, match="skip rule"):
            SkipRule(**bad)


# ---------------------------------------------------------------------------------------------------------- shuffling


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), capacity=st.integers(1, 30), moves=st.lists(st.integers(-9, 9), max_size=40))
def test_the_buffer_gives_each_row_exactly_once(seed, capacity, moves):
    buffer = ShuffleBuffer(capacity, {"a": 2, "b": 1}, seed=seed)
    fed, out = 0, []
    for move in moves:
        if move > 0:
            rows = torch.arange(fed, fed + min(move, buffer.room)).float()
            buffer.add({"a": torch.stack([rows, -rows], 1), "b": rows[:, None]})
            fed += len(rows)
        else:
            got = buffer.sample(min(-move, len(buffer)))
            assert torch.equal(got["a"][:, 0], got["b"][:, 0])  # rows stay aligned
            assert torch.equal(got["a"][:, 1], -got["b"][:, 0])
            out += got["b"][:, 0].tolist()
        assert len(buffer) + buffer.room == capacity
    out += buffer.sample(len(buffer))["b"][:, 0].tolist()
    assert sorted(out) == list(range(fed))


def test_the_buffer_shuffles_and_resumes():
    rows = {"x": torch.arange(1000.0)[:, None].bfloat16()}

    def fresh() -> ShuffleBuffer:
        return ShuffleBuffer(1000, {"x": 1}, torch.bfloat16, seed=4)

    buffer = fresh()
    buffer.add(rows)
    first = buffer.sample(300)["x"].float().flatten()
    assert first.mean() == pytest.approx(500, abs=60)  # 3.6 standard errors of a draw without replacement
    other = ShuffleBuffer(1000, {"x": 1}, torch.bfloat16, seed=5)
    other.load_state_dict(buffer.state_dict())
    for _ in range(3):
        more = {"x": torch.rand(100, 1)}
        buffer.add(more)
        other.add(more)
        assert torch.equal(buffer.sample(200)["x"], other.sample(200)["x"])


def test_bad_buffers():
    buffer = ShuffleBuffer(3, {"x": 2})
    buffer.add({"x": torch.zeros(2, 2)})
    for rows, message in (
        ({"x": torch.zeros(2, 2)}, "room for 1 of 3"),
        ({"y": torch.zeros(1, 2)}, "rows of x; got y"),
    ):
        with pytest.raises(BadInput, match=message):
            buffer.add(rows)
    with pytest.raises(BadInput, match="the buffer holds 2"):
        buffer.sample(3)
    with pytest.raises(BadInput, match="capacity"):
        ShuffleBuffer(0, {"x": 2})
    with pytest.raises(Mismatch, match="does not fit"):
        ShuffleBuffer(1, {"x": 2}).load_state_dict(buffer.state_dict())


def test_schedule_visits_each_item_once_an_epoch():
    schedule = Schedule(7, seed=1, epochs=3)
    order = schedule.take(0, 100).tolist()
    epochs = [order[:7], order[7:14], order[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order == [i for cursor in range(0, 21, 4) for i in schedule.take(cursor, 4).tolist()]
    assert order[7:14] != Schedule(7, seed=2, epochs=1).take(0, 7).tolist()
    with pytest.raises(BadInput, match="nothing to visit"):
        Schedule(0, 0, 1)


# ---------------------------------------------------------------------------------------------------------- streaming


def rows_of(batches) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for batch in batches for row in batch.tolist())


STREAM = {"batch_tokens": 11, "buffer_tokens": 40, "batch_size": 2, "seed": 3, "epochs": 3}


def test_stream_gives_every_kept_row_once_an_epoch(model, store):
    once = torch.cat([batch["resid_post.1"] for batch in harvest(model, store, "resid_post.1", batch_size=2)])
    whole = ActivationStream.build(model, store, "resid_post.1", **STREAM | {"batch_tokens": 1})
    got = torch.cat(list(whole))
    assert len(got) == 3 * len(once) == whole.skipped["kept"]
    # forward passes of other batches differ in the last bits, so rows are matched by distance
    got, once = got.double(), once.double()  # cdist loses digits in float32
    nearest = torch.cdist(got, once).min(1)
    assert nearest.values.max() < 1e-3
    # every row three times, and rows of equal text (the store repeats sentences) counted together
    same = (torch.cdist(once, once) < 1e-3).double()
    assert torch.allclose(torch.bincount(nearest.indices, minlength=len(once)).double() @ same, 3 * same.sum(0))
    batches = list(ActivationStream.build(model, store, "resid_post.1", **STREAM))
    assert {batch.shape for batch in batches} == {(11, 32)}
    assert len(batches) == 3 * len(once) // 11


def test_stream_resumes_bit_for_bit(model, store):
    def fresh():
        return ActivationStream.build(model, store, "resid_post.1", **STREAM)

    reference = fresh()
    batches, states = [], [reference.state_dict()]
    for batch in reference:
        batches.append(batch)
        states.append(reference.state_dict())
    for done in range(0, len(states), 3):  # the borders of epochs are among them
        resumed = fresh()
        next(resumed)  # a used stream can be put back too
        resumed.load_state_dict(states[done])
        rest = list(resumed)
        assert len(rest) == len(batches) - done
        assert all(torch.equal(a, b) for a, b in zip(rest, batches[done:]))
        assert resumed.skipped == reference.skipped
    other = ActivationStream.build(model, store, "resid_post.1", **STREAM | {"seed": 4})
    with pytest.raises(Mismatch, match="seed: 3, now 4"):
        other.load_state_dict(states[0])
    assert not torch.equal(next(other), batches[0])


def test_a_stream_reads_no_more_than_it_serves_and_each_window_once(model, store, monkeypatch):
    """The buffer is no larger than what is asked for, the first batch comes early, and reading is told of."""
    read, run, told = [], Model.run, []

    def counted(self, tokens, *args, **kwargs):
        read.append(tokens.ids)
        return run(self, tokens, *args, **kwargs)

    many = torch.cat([store[:]] * 12)  # 1,344 windows' rows and more
    options = {"batch_tokens": 32, "buffer_tokens": 100_000, "batch_size": 2, "epochs": 4, "tokens": 512}
    stream = ActivationStream.build(model, many, "resid_post.1", **options)
    stream.on_read = told.append
    monkeypatch.setattr(Model, "run", counted)
    assert stream.buffer.capacity == stream.unread == 512
    first = next(stream)
    assert 4 * 32 <= sum(told) <= 4 * 32 + 2 * 8  # four batches are mixed; no more is waited for
    assert stream.unread == 512 - sum(told)
    batches = [first, *(next(stream) for _ in range(15))]
    assert sum(map(len, batches)) == 512
    assert sum(told) == stream.skipped["kept"] < 512 + 2 * 8
    assert stream.unread == 0
    assert len(read) == len(told) < len(many) // 2  # within the first epoch, which visits each window once


def test_a_stream_stopped_while_it_reads_goes_on_bit_for_bit(model, store):
    def fresh():
        return ActivationStream.build(model, store, "resid_post.1", **STREAM)

    reference = list(fresh())
    for passes in (1, 3, 7):
        stopped, saved, told = fresh(), {}, []

        def stop(rows, stopped=stopped, saved=saved, told=told, passes=passes):
            told.append(rows)
            if len(told) == passes:
                saved.update(stopped.state_dict())
                raise KeyboardInterrupt

        stopped.on_read = stop
        before = []
        with pytest.raises(KeyboardInterrupt):
            before.extend(stopped)
        resumed = fresh()
        resumed.load_state_dict(saved)
        got = [*before, *resumed]
        assert len(got) == len(reference)
        assert all(torch.equal(a, b) for a, b in zip(got, reference))


def test_state_survives_a_file(model, store, tmp_path):
    one, two = (ActivationStream.build(model, store, "resid_post.1", **STREAM) for _ in range(2))
    next(one)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(next(one), next(two))


def test_stream_of_several_sites_keeps_rows_together(model, store):
    pair = ActivationStream.build(
        model, store, ["resid_pre.1", "resid_post.0"], **STREAM
    )  # two names of one activation
    batch = next(pair)
    assert set(map(str, batch)) == {"resid_pre.1", "resid_post.0"}
    assert torch.equal(*batch.values())


def test_bad_streams(model, store):
    with pytest.raises(BadInput, match="it must hold both, 27"):
        ActivationStream.build(model, store, "resid_post.1", **STREAM | {"buffer_tokens": 26})
    with pytest.raises(BadInput, match="batch_size"):
        ActivationStream.build(model, store, "resid_post.1", **STREAM | {"batch_size": 0})
    with pytest.raises(BadInput, match="0 epochs"):
        ActivationStream.build(model, store, "resid_post.1", **STREAM | {"epochs": 0})


# ------------------------------------------------------------------------------------------------------------- shards

SHARDS = {"batch_size": 2, "shard_windows": 3}
SITES = ["resid_post.1", "mlp_out.0"]


@pytest.fixture(scope="module")
def shards(model, store, tmp_path_factory) -> ActivationShards:
    return ActivationShards.build(model, store, SITES, tmp_path_factory.mktemp("shards"), **SHARDS)


def test_shards_hold_the_harvest(model, store, shards):
    assert len(list(shards.path.glob("shard-*"))) == -(-len(store) // 3) > 2
    oracle = native(model, store, 1)
    everything = torch.arange(shards.tokens)
    windows, positions = shards.rows("windows", everything).long(), shards.rows("positions", everything).long()
    torch.testing.assert_close(shards.rows("resid_post.1", everything), oracle[windows, positions])
    assert torch.equal(shards.rows("tokens", everything).long(), store[:][windows, positions])
    again = harvest(model, store, SITES, batch_size=2)
    assert sum(map(len, again)) == shards.tokens
    assert shards.skipped == again.skipped
    assert shards.thresholds == again.thresholds
    assert shards.width("mlp_out.0") == 32
    shuffled = torch.randperm(shards.tokens)
    assert torch.equal(shards.rows("mlp_out.0", shuffled), shards.rows("mlp_out.0", everything)[shuffled])


def test_a_harvest_that_is_cut_off_goes_on(model, store, shards, tmp_path, monkeypatch):
    run, calls = Model.run, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 14:  # in the calibration's eight runs and one or two shards
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "run", dying)
        with pytest.raises(KeyboardInterrupt):
            ActivationShards.build(model, store, SITES, tmp_path, **SHARDS)
    done = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert 0 < len(done) < len(shards._shards)
    with pytest.raises(BadFile, match="cut off; run it again"):
        ActivationShards(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in done}
    ActivationShards.build(model, store, SITES, tmp_path, **SHARDS)
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in done}
    for file in shards.path.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_full_disk_leaves_a_valid_harvest_that_goes_on(model, store, shards, tmp_path, monkeypatch):
    """The system refuses files above 1 kB from the second shard on, which looks like a full disk to each library."""
    run, calls = Model.run, []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(*args, **kwargs):
        calls.append(1)
        if len(calls) == 14:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        return run(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "run", filling)
        try:
            with pytest.raises(BadFile, match="free some space"):
                ActivationShards.build(model, store, SITES, tmp_path, **SHARDS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    done = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert 0 < len(done) < len(shards._shards)
    assert {file.name for file in tmp_path.iterdir()} - {file.name for file in shards.path.iterdir()} == set()
    for name in done:
        assert (tmp_path / name).read_bytes() == (shards.path / name).read_bytes()
    with pytest.raises(BadFile, match=rf"shard-0000{len(done)}.safetensors is missing"):
        ActivationShards(tmp_path)
    ActivationShards.build(model, store, SITES, tmp_path, **SHARDS)
    for file in shards.path.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_lost_shard_is_named_and_made_again(model, store, shards, tmp_path):
    ActivationShards.build(model, store, SITES, tmp_path, **SHARDS)
    lost = tmp_path / "shard-00001.safetensors"
    whole = lost.read_bytes()
    lost.unlink()
    with pytest.raises(BadFile, match=r"shard-00001.safetensors is missing.*run it again"):
        ActivationShards(tmp_path)
    ActivationShards.build(model, store, SITES, tmp_path, **SHARDS)
    assert lost.read_bytes() == whole


def test_documents_apart_are_harvested_apart(model, tmp_path):
    """Each row is what the model gives for its document alone, padded with nothing before it."""
    documents = ["the cat sat", "a dog ran on the mat"]
    shards = ActivationShards.build(model, documents, "resid_post.1", tmp_path, context=8, apart=True, skip=ALL)
    rows = shards.rows("resid_post.1", torch.arange(shards.tokens))
    again = torch.cat(
        [batch["resid_post.1"] for batch in harvest(model, documents, "resid_post.1", context=8, apart=True, skip=ALL)]
    )
    assert torch.equal(rows, again)
    windows, positions = (shards.rows(place, torch.arange(shards.tokens)).long() for place in ("windows", "positions"))
    ids = model.tokenizer(documents, add_special_tokens=False)["input_ids"]
    assert shards.tokens == 8 * 2
    for number, own in enumerate(ids):
        alone = torch.tensor([[*model.prefix, *own]])
        oracle = model.hf(alone, output_hidden_states=True).hidden_states[2][0]
        mine = rows[(windows == number) & (positions < len(oracle))]
        torch.testing.assert_close(mine, oracle)
    with pytest.raises(BadInput, match="may hold two documents"):
        harvest(model, TokenStore.build(model, documents, 8), "resid_post.1", apart=True)


def test_shard_stream_shuffles_globally_and_resumes(shards):
    everything = shards.rows("resid_post.1", torch.arange(shards.tokens))
    whole = list(shards.stream(batch_tokens=1, seed=2, epochs=2, sites="resid_post.1"))
    assert rows_of(whole) == rows_of([everything, everything])
    first, second = (torch.cat(whole[i : i + shards.tokens]) for i in (0, shards.tokens))
    assert rows_of([first]) == rows_of([second]) == rows_of([everything])
    assert not torch.equal(first, second)
    assert not torch.equal(first, everything)

    def fresh(**other):
        return shards.stream(**{"batch_tokens": 10, "seed": 2, "epochs": 3, **other})

    reference = list(fresh())
    assert len(reference) == fresh().batches_at_most == 3 * shards.tokens // 10
    assert fresh().skipped["remainder"] == 3 * shards.tokens % 10
    assert set(map(str, reference[0])) == set(SITES)
    for done in (0, 1, shards.tokens // 10, len(reference) - 1, len(reference)):
        one, two = fresh(), fresh()
        for _ in range(done):
            next(one)
        two.load_state_dict(one.state_dict())
        rest = list(two)
        assert len(rest) == len(reference) - done
        assert all(torch.equal(a[site], b[site]) for a, b in zip(rest, reference[done:]) for site in a)
    assert all(
        torch.equal(a[site], b[site]) for a, b in zip(fresh(resident=True), reference, strict=True) for site in a
    )
    with pytest.raises(Mismatch, match="batch_tokens: 10, now 9"):
        fresh(batch_tokens=9).load_state_dict(fresh().state_dict())


def test_what_was_begun_with_other_weights_does_not_go_on(model, store, shards):
    """Of a model of the same name, in the same folder."""
    stream = ActivationStream.build(model, store, "resid_post.1", batch_tokens=4, buffer_tokens=200, batch_size=2)
    state, weight = stream.state_dict(), model.hf.get_input_embeddings().weight
    with torch.no_grad():
        weight.mul_(2)
        try:
            with pytest.raises(Mismatch, match=r"model_weights: '\w{16}', now '\w{16}'"):
                ActivationShards.build(model, store, SITES, shards.path, **SHARDS)
            other = ActivationStream.build(
                model, store, "resid_post.1", batch_tokens=4, buffer_tokens=200, batch_size=2
            )
            with pytest.raises(Mismatch, match="model_weights"):
                other.load_state_dict(state)
            del state["config"]["model_weights"]  # as an earlier version saved it
            other.load_state_dict(state)
        finally:
            weight.div_(2)
    ActivationShards.build(model, store, SITES, shards.path, **SHARDS)


def test_bad_shards(model, store, shards, tmp_path):
    with pytest.raises(Mismatch, match="shard_windows: 3, now 4"):
        ActivationShards.build(model, store, SITES, shards.path, **SHARDS | {"shard_windows": 4})
    with pytest.raises(Mismatch, match="sites"):
        ActivationShards.build(model, store, SITES[:1], shards.path, **SHARDS)
    with pytest.raises(BadInput, match="hold resid_post.1, mlp_out.0, not resid_post.0"):
        shards.stream(batch_tokens=4, sites="resid_post.0")
    with pytest.raises(BadInput, match="cannot be served"):
        shards.stream(batch_tokens=10_000)
    with pytest.raises(BadFile, match="cannot read"):
        ActivationShards(tmp_path)
    ActivationShards.build(model, store, SITES, tmp_path, **SHARDS)
    file = tmp_path / "shard-00001.safetensors"
    whole = file.read_bytes()
    save_file(load_file(file), file, {"about": "[" * 100_000})
    with pytest.raises(BadFile, match=r"shard-00001.safetensors is damaged \(it is nested too deep"):
        ActivationShards(tmp_path)
    file.write_bytes(whole[:-10])
    with pytest.raises(BadFile, match=r"shard-00001.safetensors is damaged"):
        ActivationShards(tmp_path)


def test_rules_as_a_user_says_them():
    said = {
        "all": SkipRule.none(),
        "default": SkipRule(),
        "first=4, outlier=none": SkipRule(first=4, outlier=None),
        "special=False,outlier=25": SkipRule(special=False, outlier=25),
    }
    for text, rule in said.items():
        assert skip_rule(text) == rule
    for text in (
        "",
        "none",
        "first",
        "first=",
        "first=1,",
        "x=1",
        "first=1.5",
        "outlier=1",
        "special=3",
        "first=" + "-" * 10**5,
    ):
        with pytest.raises(BadInput, match=r"write all \(a dictionary trained on every token\), default, or fields"):
            skip_rule(text)
