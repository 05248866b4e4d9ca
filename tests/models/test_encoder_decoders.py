"""Encoder–decoders as one model, against transformers: its logits, hidden states, patterns, and native hooks."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from anymodel import randomised
from monosem import components, edits, lenses, patching
from monosem.data import TokenPairs
from monosem.errors import BadInput, EditDidNotFire, UnknownName
from monosem.models import Model, TokenBatch, identity, load_model, verify
from monosem.models.places.table import BOTH_BY_TYPE, REFUSED, family_of
from tiny import tiny_tokenizer
from tiny_encoder_decoders import BOTH, source_of, tiny_both

TARGET = torch.tensor([[0, 20, 21, 22, 23], [0, 31, 32, 33, 34]])
SOME = ("t5", "bart", "whisper")
# hf's blocks of the encoder and of the decoder, and in a block of the decoder its cross attention
BLOCKS = {
    "t5": ("encoder.block", "decoder.block", "layer.1.EncDecAttention"),
    "bart": ("model.encoder.layers", "model.decoder.layers", "encoder_attn"),
    "whisper": ("model.encoder.layers", "model.decoder.layers", "encoder_attn"),
}


def loaded(name: str, **changes: Any) -> Model:
    return load_model(tiny_both(name, **changes), quiet=True)


def native(hf: PreTrainedModel, name: str, source: Tensor, target: Tensor, **more: Any) -> Any:
    given = "input_features" if name == "whisper" else "input_ids"
    return hf(**{given: source}, decoder_input_ids=target, use_cache=False, **more)


def block(model: Model, name: str, side: int, layer: int) -> Any:
    return model.hf.get_submodule(f"{BLOCKS[name][side]}.{layer}")


@pytest.mark.parametrize("name", BOTH)
def test_identities_hold_on_both_sides_and_logits_are_transformers(name):
    model, source = loaded(name), source_of(name)
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    sites = set(result.table.site)
    inside = set() if name == "longt5_global" else {"encoder.z"}  # it makes keys of sums of tokens as well
    assert {"cross_attn_out", "encoder.resid_post", "encoder"} | inside <= sites
    logits = model.run(source, target=TARGET).logits
    torch.testing.assert_close(logits, native(model.hf, name, source, TARGET).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_sites_are_what_native_modules_read_and_write(name):
    model, source = loaded(name), source_of(name)
    seen: dict[str, Tensor] = {}

    def keep(key: str, pick: Any) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            seen[key] = pick(args, output)

        return hook

    def first(output: Any) -> Tensor:
        return output if isinstance(output, Tensor) else output[0]

    with ExitStack() as stack:
        for key, module, pick in (
            ("encoder.resid_pre.1", block(model, name, 0, 1), lambda args, out: args[0]),
            ("encoder.resid_post.1", block(model, name, 0, 1), lambda args, out: first(out)),
            ("resid_pre.2", block(model, name, 1, 2), lambda args, out: args[0]),
            ("cross_attn_out.1", block(model, name, 1, 1).get_submodule(BLOCKS[name][2]), lambda args, out: out[0]),
        ):
            stack.callback(module.register_forward_hook(keep(key, pick)).remove)
        native(model.hf, name, source, TARGET)
    run = model.run(source, target=TARGET, capture=[*seen, "cross_attn_pattern.1", "encoder.pattern.1", "pattern.1"])
    for key, value in seen.items():
        torch.testing.assert_close(run[key], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run[f"decoder.{key}" if key[:7] != "encoder" else key], value, rtol=1e-4, atol=1e-5)
    model.hf.set_attn_implementation("eager")
    out = native(model.hf, name, source, TARGET, output_attentions=True)
    for key, patterns in (
        ("cross_attn_pattern.1", out.cross_attentions),
        ("pattern.1", out.decoder_attentions),
        ("encoder.pattern.1", out.encoder_attentions),
    ):
        torch.testing.assert_close(run[key], patterns[1], rtol=1e-4, atol=1e-5)


def test_what_cross_attention_reads_has_the_length_of_the_source():
    model, source = loaded("t5"), source_of("t5")
    names = ("q", "k", "v", "values", "pattern", "z", "result", "out")
    run = model.run(source, target=TARGET, capture=[f"cross_attn_{name}.0" for name in names])
    shapes = {name: tuple(run[f"cross_attn_{name}.0"].shape) for name in names}
    assert shapes["q"] == shapes["z"] == (2, 5, 4, 12)
    assert shapes["k"] == shapes["v"] == shapes["values"] == (2, 7, 4, 12)
    assert shapes["pattern"] == (2, 4, 5, 7)
    assert shapes["result"] == (2, 5, 4, 32)
    assert shapes["out"] == (2, 5, 32)
    torch.testing.assert_close(run["cross_attn_result.0"].sum(2), run["cross_attn_out.0"], rtol=1e-4, atol=1e-5)


def doubled(module: Any, args: Any, output: Any) -> Any:
    return 2 * output if isinstance(output, Tensor) else (2 * output[0], *output[1:])


CHANGES = {  # edit -> the native module whose output is doubled
    "encoder.resid_post.0": lambda model, name: block(model, name, 0, 0),
    "cross_attn_out.1": lambda model, name: block(model, name, 1, 1).get_submodule(BLOCKS[name][2]),
    "resid_post.1": lambda model, name: block(model, name, 1, 1),
}


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("site", CHANGES)
def test_an_edit_is_a_hook_in_a_run_and_in_a_generation(name, site):
    model, source = loaded(name), source_of(name)
    change = edits.scale(site, 2.0)
    run = model.run(source, target=TARGET, edits=change)
    made = model.generate(model.tokens(source, target=TARGET), edits=change, max_new_tokens=3, stop_at_eos=False)
    handle = CHANGES[site](model, name).register_forward_hook(doubled)
    try:
        torch.testing.assert_close(run.logits, native(model.hf, name, source, TARGET).logits, rtol=1e-4, atol=1e-4)
        ids = TARGET
        for step in range(3):
            logits = native(model.hf, name, source, ids).logits[:, -1]
            new = torch.tensor([row[step] for row in made.new])
            torch.testing.assert_close(logits.gather(1, new[:, None])[:, 0], logits.amax(1), rtol=1e-4, atol=1e-4)
            ids = torch.cat([ids, new[:, None]], 1)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", SOME)
def test_generation_begins_with_the_start_token_and_encodes_once(name):
    model, source = loaded(name), source_of(name)
    assert not model.looks_ahead
    calls: list[int] = []
    handle = block(model, name, 0, 0).register_forward_hook(lambda *_: calls.append(1))
    made = model.generate(source, max_new_tokens=4, stop_at_eos=False, capture=["encoder.resid_post.1", "resid_post.2"])
    handle.remove()
    assert len(calls) == 1
    assert made.ids.ids[:, 0].tolist() == [0, 0]
    again = model.run(made.ids, capture=["encoder.resid_post.1", "resid_post.2"])
    for site in ("encoder.resid_post.1", "resid_post.2"):
        torch.testing.assert_close(made[site], again[site], rtol=1e-4, atol=1e-5)
    given = {"input_features" if name == "whisper" else "input_ids": source}
    options = {
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "do_sample": False,
        "num_beams": 1,
        "forced_eos_token_id": None,
        "use_cache": False,  # transformers' own cache for T5 has as many layers as the encoder, and fails here
    }
    if name != "whisper":  # whose own generate is another program
        theirs = model.hf.generate(**given, **options)
        assert made.ids.ids.tolist() == theirs.tolist()


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "t5gemma"])
def test_padding_of_sources_and_targets_changes_nothing(name):
    model = loaded(name)
    sources, targets = [[5, 6, 7, 8, 9, 10], [11, 12, 13]], [[0, 20], [0, 30, 31, 32]]
    sites = ["encoder.resid_post.1", "cross_attn_out.2", "resid_post.2"]
    change = [
        edits.scale("encoder.resid_pre.1", 3.0).at(positions=-1),
        edits.scale("cross_attn_v.0", 2.0).at(positions=[0, -1]),
    ]
    for padding in ("right", "left"):
        batch = model.tokens(sources, target=targets, padding=padding)
        run = model.run(batch, capture=sites, edits=change)
        kept = model.run(batch, capture=sites, edits=change, positions="last")
        made = model.generate(batch, edits=change, max_new_tokens=3, stop_at_eos=False)
        for row, (source, target) in enumerate(zip(sources, targets)):
            alone = model.run([source], target=[target], capture=sites, edits=change)
            for site in sites:
                torch.testing.assert_close(run.last(site)[row], alone[site][0, -1], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(kept[site][row, 0], alone[site][0, -1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(run.logits[row, batch.last[row]], alone.logits[0, -1], rtol=1e-4, atol=1e-4)
            one = model.generate(
                model.tokens([source], target=[target]), edits=change, max_new_tokens=3, stop_at_eos=False
            )
            assert made.new[row] == one.new[0]


def test_a_run_in_parts_is_the_run():
    model, source = loaded("bart"), source_of("bart")
    sites = ["encoder.q.1", "cross_attn_k.1", "cross_attn_pattern.1", "resid_post.2"]
    whole = model.run(source, target=TARGET, capture=sites)
    parts = model.run(source, target=TARGET, capture=sites, memory="60KB")
    for site in sites:
        torch.testing.assert_close(parts[site], whole[site], rtol=1e-4, atol=1e-5)


def test_the_encoder_is_a_model_of_its_own():
    model, source = loaded("t5"), source_of("t5")
    whole = model.run(source, target=TARGET, capture=["encoder.z.1", "encoder.final_norm"])
    alone = model.encoder.run(source, capture=["z.1", "final_norm"])
    torch.testing.assert_close(alone["z.1"], whole["encoder.z.1"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone["final_norm"], whole["encoder.final_norm"], rtol=1e-5, atol=1e-6)
    assert alone.logits is None
    assert str(model.branch_of("encoder.q.1").reads) == "encoder.resid_pre.1"
    assert model.layers_with("encoder.q") == [0, 1]
    assert model.layers_with("cross_attn_q") == [0, 1, 2]


def test_derived_sites_of_the_encoder():
    model, source = loaded("t5"), source_of("t5")
    run = model.run(source, target=TARGET, capture=["encoder.resid_pre.1", "encoder.z.0"])
    named = model.run(source, target=TARGET, capture=["encoder.ln1_output.1", "encoder.result.0"])
    for site in ("encoder.ln1_output.1", "encoder.result.0"):
        torch.testing.assert_close(run[site], named[site], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOME)
def test_states_of_ones_own_stand_for_what_the_encoder_gives(name):
    model, source = loaded(name), source_of(name)
    positions = 12 if name == "whisper" else 7
    states = torch.randn(2, positions, 32, generator=torch.Generator().manual_seed(5))
    logits = model.run(source, target=TARGET, edits=edits.patch(model.source_states, states)).logits
    theirs = model.hf(encoder_outputs=(states,), decoder_input_ids=TARGET, use_cache=False).logits
    torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-5)


def test_what_was_made_on_the_encoder_is_not_taken_for_the_decoder():
    model = loaded("t5", num_decoder_layers=2)
    assert identity(model.encoder)["n_layers"] == identity(model)["n_layers"] == 2
    assert identity(model.encoder)["config"] != identity(model)["config"]
    assert "2 in its encoder" in repr(model)


def test_gradients_reach_the_encoder_and_patterns():
    model, source = loaded("bart"), source_of("bart")
    site, step = "encoder.resid_pre.1", 1e-2
    run = model.run(source, target=TARGET, capture=site, grad=True)
    (slope,) = torch.autograd.grad(run.logits[:, -1, 7].sum(), run[site])
    way = torch.randn(32, generator=torch.Generator().manual_seed(0))
    sides = [
        model.run(source, target=TARGET, edits=edits.add((site, way), sign * step)).logits[:, -1, 7].sum()
        for sign in (1, -1)
    ]
    torch.testing.assert_close((slope * way).sum(), (sides[0] - sides[1]) / (2 * step), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["t5", "mbart"])
def test_what_branches_write_adds_up_to_the_logits_and_the_lens_ends_there(name):
    model, source = loaded(name), source_of(name)
    batch = model.tokens(source, target=TARGET)
    logits = native(model.hf, name, source, TARGET).logits[:, -1]
    shares = components.direct_attribution(model, batch, tokens=20, wrong=21, by="layer")
    torch.testing.assert_close(shares.values.sum(-1)[:, -1], logits[:, 20] - logits[:, 21], rtol=1e-3, atol=1e-4)
    assert any("cross_attn" in str(part) for part in shares.parts)
    likeliest = lenses.logit(model, batch).top_probabilities[-1, :, -1, 0]
    torch.testing.assert_close(likeliest, logits.softmax(-1).amax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["marian", "pegasus", "mvp"])
def test_a_scaled_embedding_of_the_decoder_alone(kind):
    settings = BOTH[kind][1] | {"is_decoder": True, "is_encoder_decoder": False}
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)
    result = verify(load_model(randomised(hf), quiet=True))
    assert result.ok, result.table[~result.table.ok].to_string()


@pytest.mark.parametrize("name", ["t5", "marian", "whisper"])
def test_a_folder_loads_as_both(name, tmp_path):
    hf = tiny_both(name)
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path, quiet=True)
    source = source_of(name)
    torch.testing.assert_close(
        model.run(source, target=TARGET).logits, native(hf, name, source, TARGET).logits, rtol=1e-5, atol=1e-5
    )


def test_texts():
    hf = tiny_both("t5")
    model = load_model(hf, tokenizer=tiny_tokenizer(), quiet=True)
    batch = model.tokens("the cat sat", target=["on the mat"])
    assert batch.source.rows() == [model.tokenizer("the cat sat").input_ids]
    assert batch.rows() == [[0, *model.tokenizer("on the mat").input_ids]]
    assert model.generate("the cat sat", max_new_tokens=2).texts


def refused(match: str, call: Any, error: type[Exception] = BadInput) -> None:
    with pytest.raises(error, match=match) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_wrong_uses_say_what_to_do():
    model, source = loaded("t5"), source_of("t5")
    refused(r"target=", lambda: model.run(source))
    refused("2 sources and 1 targets", lambda: model.run(source, target=TARGET[:1]))
    refused("takes no target", lambda: model.encoder.run(source, target=TARGET, capture="resid_pre.0"))
    refused("gives states and no logits", lambda: model.encoder.run(source))
    refused("gives states and no logits", lambda: lenses.logit(model.encoder, source), UnknownName)
    refused("both directions", lambda: model.encoder.generate(source))
    refused("give what its encoder reads", lambda: model.generate())
    refused("layers 0 to 1", lambda: model.site("encoder.q.2"), UnknownName)
    refused("no such site", lambda: model.site("encoder.cross_attn_q.0"), UnknownName)
    refused(
        "no encoder",
        lambda: load_model(AutoModelForCausalLM.from_config(small()), quiet=True).site("encoder.q.0"),
        UnknownName,
    )
    refused(
        "reached no token",
        lambda: model.generate(source, edits=edits.scale("encoder.q.0", 2.0).at(scope="generated")),
        EditDidNotFire,
    )
    sound = loaded("whisper")
    refused("reads sound", lambda: sound.run(source, target=TARGET))
    refused("channel frame", lambda: sound.run(torch.zeros(2, 8, 20), target=TARGET))
    refused("sound", lambda: sound.site("encoder.embed"), UnknownName)


def small() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoConfig.for_model("llama", vocab_size=50, **sizes)


def test_a_type_that_is_not_read_as_both_says_why():
    config = AutoConfig.for_model("led", d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=50)
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    from transformers import AutoModelForSeq2SeqLM

    hf = AutoModelForSeq2SeqLM.from_config(config)
    refused("fills every source up to a multiple of its window", lambda: load_model(hf, quiet=True), UnknownName)


def test_patches_of_runs_follow_the_tokens_of_either_side():
    model = loaded("bart")
    sources, others, targets = [[5, 6, 7, 8], [9, 10]], [[15, 16, 17, 18], [19, 20]], [[0, 20], [0, 30, 31]]
    for site in ("encoder.resid_post.0", "cross_attn_v.1", "cross_attn_pattern.1", "cross_attn_z.1", "pattern.2"):
        other = model.run(others, target=targets, capture=site)
        both = model.run(sources, target=targets, edits=edits.patch(site, other))
        for row in range(2):
            of = [[others[row]], [targets[row]]]
            from_alone = model.run(of[0], target=of[1], capture=site)
            alone = model.run([sources[row]], target=of[1], edits=edits.patch(site, from_alone))
            torch.testing.assert_close(
                both.logits[row, len(targets[row]) - 1], alone.logits[0, -1], rtol=1e-4, atol=1e-4
            )


def pairs_of(model: Model) -> TokenPairs:
    target = [[0, 20, 21], [0, 30, 31]]
    sides = (model.tokens(ids, target=target) for ids in ([[5, 6, 7], [8, 9, 10]], [[5, 16, 7], [8, 19, 10]]))
    return TokenPairs.of(model, *sides, right=[40, 41], wrong=[50, 51])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_sweep_patches_the_decoder(name):
    model = loaded(name)
    pairs = pairs_of(model)
    sites = ["resid_pre", "cross_attn_out"]
    with pytest.warns(UserWarning, match="encoder"):
        result = patching.sweep(model, pairs, sites, quiet=True)
    table = result.table.set_index(["site", "layer", "position"])
    for site, layer, position in (("cross_attn_out", 1, 2), ("resid_pre", 2, 0), ("cross_attn_out", 0, -1 % 3)):
        place = block(model, name, 1, layer) if site == "resid_pre" else cross(model, name, layer)
        diffs = []
        for row in range(2):
            clean, corrupted = (side[[row]] for side in (pairs.clean, pairs.corrupted))
            logits = patched_by_hand(model, name, place, site, position, clean, corrupted)
            diffs.append(float(logits[40 + row] - logits[50 + row]))
        assert table.loc[(site, layer, position), "value"] == pytest.approx(sum(diffs) / 2, rel=1e-3, abs=1e-4)


def cross(model: Model, name: str, layer: int) -> Any:
    return block(model, name, 1, layer).get_submodule(BLOCKS[name][2])


def patched_by_hand(
    model: Model, name: str, place: Any, site: str, position: int, clean: Any, corrupted: Any
) -> Tensor:
    """The corrupted run's last logits, with one token's value at a native module from the clean run."""
    kept: list[Tensor] = []

    def after(module: Any, args: Any, output: Any) -> Any:
        if not kept:
            kept.append(output[0].clone())
            return None
        output[0][:, position] = kept[0][:, position]
        return output

    def before(module: Any, args: Any) -> Any:
        if not kept:
            kept.append(args[0].clone())
            return None
        changed = args[0].clone()
        changed[:, position] = kept[0][:, position]
        return (changed, *args[1:])

    handle = place.register_forward_hook(after) if site != "resid_pre" else place.register_forward_pre_hook(before)
    try:
        native(model.hf, name, clean.source.ids, clean.ids)
        return native(model.hf, name, corrupted.source.ids, corrupted.ids).logits[0, -1]
    finally:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("receiver", ["q", "k", "v"])
def test_a_path_to_what_a_head_reads(receiver):
    """What an MLP sends to a head's queries (keys, values), by T5's own modules and a hook on its projection."""
    model = loaded("t5")
    pairs = pairs_of(model)
    found = patching.paths(model, pairs, ["mlp_out.1"], [f"{receiver}.2.1"], quiet=True).table
    sides = [model.run(side, ["resid_pre.2", "mlp_out.1"]) for side in (pairs.clean, pairs.corrupted)]
    sent = sides[1]["mlp_out.1"] - sides[0]["mlp_out.1"]
    part = model.hf.decoder.block[2].layer[0]
    projection = getattr(part.SelfAttention, receiver)
    new = projection(part.layer_norm(sides[0]["resid_pre.2"] + sent)).unflatten(-1, (4, -1))[..., 1, :]

    def head_read(module: Any, args: Any, out: Tensor) -> Tensor:
        heads = out.unflatten(-1, (4, -1)).clone()
        heads[..., 1, :] = new
        return heads.flatten(-2)

    def gap(logits: Tensor) -> float:
        return float((logits[[0, 1], -1, [40, 41]] - logits[[0, 1], -1, [50, 51]]).mean())

    before = gap(native(model.hf, "t5", pairs.clean.source.ids, pairs.clean.ids).logits)
    handle = projection.register_forward_hook(head_read)
    try:
        after = gap(native(model.hf, "t5", pairs.clean.source.ids, pairs.clean.ids).logits)
    finally:
        handle.remove()
    assert abs(after - before) > 1e-4
    assert float(found["value"].iloc[0]) == pytest.approx(after, abs=abs(after - before) / 100)


def test_tokens_of_a_decoder_alone_are_refused():
    model = loaded("t5")
    refused("without what the encoder reads", lambda: model.run(TokenBatch.whole(TARGET)))


@pytest.mark.parametrize("site", ["cross_attn_out", "resid_pre"])
def test_the_estimate_of_a_sweep_is_its_slope(site):
    model = loaded("t5")
    pairs = pairs_of(model)
    estimate = patching.attribution(model, pairs, site, quiet=True).table.set_index(["layer", "position"])["value"]
    clean, corrupted = (model.run(side, capture=f"{site}.1") for side in (pairs.clean, pairs.corrupted))
    small, change = 1e-3, clean[f"{site}.1"][:, 2] - corrupted[f"{site}.1"][:, 2]
    value = corrupted[f"{site}.1"].clone()
    value[:, 2] += small * change
    moved = model.run(pairs.corrupted, edits=edits.patch(f"{site}.1", value)).logits[:, -1].double()
    before = corrupted.logits[:, -1].double()

    def gap(logits: Tensor) -> float:
        return float((logits.gather(1, pairs.right[:, None]) - logits.gather(1, pairs.wrong[:, None])).mean())

    slope = (gap(moved) - gap(before)) / small
    assert abs(slope) > 0.005
    assert estimate[1, 2] - gap(before) == pytest.approx(slope, rel=5e-2, abs=5e-4)


def test_what_sweeps_do_not_reach_is_refused():
    model = loaded("t5")
    pairs = pairs_of(model)
    for site in ("encoder.resid_pre", "cross_attn_v"):
        refused("what the encoder reads", lambda site=site: patching.sweep(model, pairs, site, quiet=True), UnknownName)


def test_the_page_has_the_types_that_are_read():
    section = (Path(__file__).parents[2] / "docs" / "models.md").read_text().partition("## Encoder–decoders")[2]
    read, refused = (
        [kind for kind in re.findall(r"^\| (\S+) \|", part, re.M) if kind != "type"]
        for part in section.split("Not read as one")
    )
    assert sorted(read) == sorted(BOTH_BY_TYPE) == sorted({kind for kind, _ in BOTH.values()})
    assert set(refused) <= REFUSED.keys()


@pytest.mark.parametrize("kind", ["led", "pegasus_x", "fsmt", "prophetnet", "t5gemma2"])
def test_encoder_decoders_that_are_not_read_say_why(kind):
    with pytest.raises(UnknownName, match=f"type '{kind}' are not read: it") as error:
        family_of(AutoConfig.for_model(kind))
    assert "\n" not in str(error.value)
