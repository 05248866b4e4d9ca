"""Arms that share batches give what each gives by itself; an arm that cannot share runs alone."""

import math

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, EditDidNotFire
from monosem.steering import compare, comparisons, outcomes
from monosem.steering.rows import may_share
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary

PROMPTS = ["the cat sat on the mat and", "a dog", "she was very happy and", "it was", "the cat sat on"]
NEW = 6


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def sae():
    return tiny_dictionary()


def arms_of(model, sae):
    vectors = torch.randn(len(PROMPTS), model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    latents, values = torch.tensor([1, 7, 13, 2, 5]), torch.tensor([30.0, -15.0, 8.0, 20.0, 9.0])
    dictionary = (
        []
        if sae.d_in != model.cfg.d_model
        else [
            edits.clamp(sae, 5, 40.0),
            edits.clamp(sae, latents, values),
            lambda rows: [edits.clamp(sae, latents[list(rows)], values[list(rows)])],
            edits.splice(sae),
        ]
    )
    return [
        (),
        *dictionary,
        edits.add(("resid_post.1", vectors[0]), 3.0),
        [edits.scale("z.2", 0.3), edits.add(("resid_pre.2", vectors[1]), 2.0).at(positions="last")],
        edits.add(("resid_post.1", vectors[2]), 4.0).at(scope="generated"),
        edits.function("mlp_out.1", lambda x: x * 0.5),  # may need its batch: alone
        edits.scale("resid_post.1", 0.5).at(rows=[0, 3]),
        edits.scale("logits", -1.0),
    ]


def by_hand(model, arm, row, new):
    """One prompt through whole passes: the next token's logits, and the greedy text after `new` tokens."""
    whole, first = list(row), None
    listed = [arm] if isinstance(arm, edits.Edit) else list(arm)
    for _ in range(max(new, 1)):
        here = [fixed(edit, len(row)) for edit in listed if edit.scope != "generated" or len(whole) > len(row)]
        logits = model.run([whole], edits=here, logits="last").logits[0]
        first = logits if first is None else first
        whole.append(int(logits.argmax()))
        if whole[-1] in model.end_ids:
            break
    return first, whole


def fixed(edit, length):
    """The same edit of a whole text that began with a prompt of this length."""
    if edit.scope == "generated":
        return edit.at(positions=slice(length, None), scope="all")
    return edit.at(positions=length - 1) if edit.positions == "last" else edit


@pytest.mark.parametrize("batch_size", [3, 128])
def test_arms_together_equal_arms_by_hand(model, sae, batch_size):
    arms = [arm for arm in arms_of(model, sae) if batch_size > len(PROMPTS) or may_share(arm)]
    late = [n for n, arm in enumerate(arms) if isinstance(arm, edits.Edit) and arm.scope == "generated"]
    lengths = [NEW if number % 3 or number in late else 0 for number in range(len(arms))]
    found = outcomes(
        model, PROMPTS, arms, max_new_tokens=lengths, batch_size=batch_size, read="resid_post.1", quiet=True
    )
    rows = model.tokens(PROMPTS).rows()
    for arm, length, made in zip(arms, lengths, found):
        for number, row in enumerate(rows):
            alone = alone_edit(arm, number)
            if alone is None:
                continue
            first, whole = by_hand(model, alone, row, length)
            torch.testing.assert_close(made.logits[number], first, rtol=1e-4, atol=1e-4)
            if length == 0:
                assert made.new[number] == []
                assert math.isnan(made.perplexities[number])
                assert made.means[number] is None
                continue
            assert made.new[number] == whole[len(row) :]
            ids = torch.tensor([whole])
            native = model.hf(ids, output_hidden_states=True)
            losses = -native.logits[0].log_softmax(-1)[range(len(row) - 1, len(whole) - 1), whole[len(row) :]]
            assert made.perplexities[number] == pytest.approx(math.exp(losses.mean()), rel=1e-3)
            read = [at for at in range(len(row), len(whole)) if whole[at] not in model.special_ids]
            assert made.left_out[number] == len(whole) - len(row) - len(read)
            if not read:
                assert made.means[number] is None
                continue
            mean = native.hidden_states[2][0, read].mean(0)
            torch.testing.assert_close(made.means[number], mean, rtol=1e-4, atol=1e-4)


def alone_edit(arm, number):
    """What an arm does to one prompt by itself; None where that is not one edit list."""
    if callable(arm):
        return arm([number])
    if isinstance(arm, edits.Edit) and arm.rows is not None:
        return edits.scale("resid_post.1", 0.5) if number in arm.rows else ()
    if isinstance(arm, edits.Edit) and "5 values" in arm.label:
        return None  # equals the function beside it
    return arm


def test_data_by_prompt_follow_their_prompts(sae):
    model = tiny_model("llama")
    latents, values = torch.tensor([1, 7, 13, 2, 5]), torch.tensor([30.0, -15.0, 8.0, 20.0, 9.0])
    each = edits.clamp(sae, latents, values)
    made = lambda rows: [edits.clamp(sae, latents[list(rows)], values[list(rows)])]  # noqa: E731
    first, second = outcomes(model, PROMPTS, [each, made], max_new_tokens=NEW, batch_size=4, quiet=True)
    torch.testing.assert_close(first.logits, second.logits, rtol=1e-4, atol=1e-5)
    assert first.new == second.new


def test_an_edit_may_reach_some_prompts_only_but_one_at_least(sae):
    model = tiny_model("llama")
    late = edits.scale("resid_post.1", 0.5).at(positions=6)  # which the longest prompt alone has
    lengths = model.tokens(PROMPTS).lengths.tolist()
    assert sorted(lengths)[-2] <= 6 < max(lengths)
    short = next(row for row, length in enumerate(lengths) if length <= 6)
    with pytest.raises(EditDidNotFire, match=rf"no token of row {short}: it has {lengths[short]} tokens"):
        outcomes(model, PROMPTS, [(), late.at(rows=[lengths.index(max(lengths)), short])], max_new_tokens=0, quiet=True)
    late = late.at(rows=[lengths.index(max(lengths))])
    plain, edited = outcomes(model, PROMPTS, [(), late], max_new_tokens=0, batch_size=2, quiet=True)
    moved = (plain.logits - edited.logits).abs().amax(1) > 1e-4
    assert moved.tolist() == [length == max(lengths) for length in lengths]
    with pytest.raises(EditDidNotFire, match="reaches no token of row 0"):
        outcomes(model, PROMPTS, [(), late.at(positions=20)], max_new_tokens=0, quiet=True)


def test_an_edit_of_generated_tokens_changes_nothing_where_one_token_is_made(sae):
    model = tiny_model("llama")
    plain, edited = outcomes(
        model, PROMPTS, [(), edits.clamp(sae, 5, 40.0).at(scope="generated")], max_new_tokens=1, quiet=True
    )
    assert plain.new == edited.new
    torch.testing.assert_close(plain.logits, edited.logits)


def test_inside_editing_the_arms_run_one_after_the_other(sae):
    model = tiny_model("llama")
    around = edits.function("resid_post.0", lambda x: x - x.mean(0, keepdim=True))  # mixes the rows of a batch
    arms = [(), edits.clamp(sae, 5, 40.0)]
    with model.editing(around):
        found = outcomes(model, PROMPTS, arms, max_new_tokens=0, quiet=True)
        truth = [model.run(PROMPTS, edits=arm, logits="last").logits for arm in arms]
    for made, logits in zip(found, truth):
        torch.testing.assert_close(made.logits, logits, rtol=1e-4, atol=1e-4)


def test_inside_editing_perplexities_have_edits_of_the_logits():
    model = tiny_model("llama")
    with model.editing(edits.scale("logits", 0.5)):
        found = outcomes(model, [[7, 21, 33]], [()], max_new_tokens=5, quiet=True)[0]
        whole = model.run([[7, 21, 33, *found.new[0]]]).logits[0].log_softmax(-1)
    losses = [-float(whole[2 + n, token]) for n, token in enumerate(found.new[0])]
    assert found.perplexities[0] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_rows_that_an_arm_names_are_rows_of_all_prompts(sae):
    model = tiny_model("llama")
    arm = edits.clamp(sae, 5, 40.0).at(rows=[0, 3])
    with model.editing(edits.scale("z.0", 0.5)):
        found = outcomes(model, PROMPTS, [arm], max_new_tokens=0, batch_size=2, quiet=True)[0]
        truth = model.run(PROMPTS, edits=arm, logits="last").logits
    torch.testing.assert_close(found.logits, truth, rtol=1e-4, atol=1e-4)
    drawn = outcomes(model, PROMPTS, [arm], max_new_tokens=1, batch_size=2, temperature=1.0, quiet=True)[0]
    torch.testing.assert_close(drawn.logits, model.run(PROMPTS, edits=arm, logits="last").logits, rtol=1e-4, atol=1e-4)


def test_batches_that_part_what_an_edit_needs_are_refused(sae):
    model = tiny_model("llama")
    mixed = edits.function("resid_post.0", lambda x: x - x.mean(0, keepdim=True))
    for around, arm in (([], mixed), ([mixed], ()), ([edits.scale("z.0", 0.5).at(rows=[0])], ())):
        with model.editing(*around), pytest.raises(BadInput, match="batch_size=2 splits 5 prompts"):
            outcomes(model, PROMPTS, [arm], max_new_tokens=0, batch_size=2, quiet=True)


def test_drawn_arms_do_not_depend_on_each_other(sae):
    model = tiny_model("llama")
    arms = [(), edits.clamp(sae, 5, 40.0)]
    both = outcomes(model, PROMPTS, arms, max_new_tokens=4, temperature=1.0, seed=3, quiet=True)
    for arm, made in zip(arms, both):
        assert made.new == model.generate(PROMPTS, edits=arm, max_new_tokens=4, temperature=1.0, seed=3).new


def test_no_prompts():
    with pytest.raises(BadInput, match="no prompts"):
        outcomes(tiny_model("llama"), [], [()], quiet=True)


def test_comparisons_by_name_equal_one_after_the_other(model):
    arms = {"half": edits.scale("resid_post.0", 0.5), "none": edits.scale("mlp_out.1", 0.0)}
    found = comparisons(model, PROMPTS, arms, max_new_tokens=NEW)
    assert list(found) == list(arms)
    for name, edit in arms.items():
        alone = compare(model, PROMPTS, edit, max_new_tokens=NEW)
        assert found[name].table["edited_text"].tolist() == alone.table["edited_text"].tolist()
        assert found[name].table["kl"].tolist() == pytest.approx(alone.table["kl"].tolist(), abs=1e-4)
    with pytest.raises(BadInput, match="edits by name"):
        comparisons(model, PROMPTS, {})


def test_arms_that_splice_dictionaries_and_edit_inside_them(model):
    plain = {"skip_rule": {"special": False, "first": 0, "outlier": None}}
    if model.cfg.d_model != 32 or not model.has("ln2_output.0"):
        pytest.skip("the tiny dictionaries have 32 inputs")
    sae = tiny_dictionary("relu", metadata=plain, model_name="")
    coder = tiny_dictionary(
        "relu", site="ln2_output.0", site_out="mlp_out.1", transcoder=True, metadata=plain, model_name=""
    )
    arms = [
        [edits.splice(sae), edits.scale(sae.latents, 0.0)],
        [edits.clamp(sae, 3, 5.0), edits.splice(sae)],
        edits.scale(sae.latents, 0.5),
        edits.clamp(sae, 3, 5.0),
        edits.clamp(coder, 3, 5.0),
        lambda rows: [edits.splice(sae), edits.scale(sae.latents, 0.5)],
    ]
    lengths = [0, 2, 0, 2, 0, 0]
    for arm, one in zip(arms, outcomes(model, PROMPTS, arms, max_new_tokens=lengths, batch_size=64, quiet=True)):
        wanted = model.run(PROMPTS, edits=arm(range(5)) if callable(arm) else arm, logits="last").logits
        torch.testing.assert_close(one.logits, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_perplexities_and_means_are_of_the_unedited_model_where_an_edit_acts_on_what_a_layer_reads(model, layer):
    plain = {"skip_rule": {"special": False, "first": 0, "outlier": None}}
    sae = tiny_dictionary("relu", site=f"resid_pre.{layer}", metadata=plain, model_name="")
    arms = [edits.add((f"resid_pre.{layer}", torch.ones(model.cfg.d_model)), 3.0)]
    if model.cfg.d_model == sae.d_in:
        arms += [edits.clamp(sae, 3, 9.0), edits.scale(sae.latents, 3.0), edits.splice(sae)]
    read = f"resid_pre.{max(layer, 1)}"
    for arm in arms:
        found = outcomes(model, PROMPTS, [arm], max_new_tokens=NEW, read=read, quiet=True)[0]
        for row, new, perplexity, mean in zip(model.tokens(PROMPTS).rows(), found.new, found.perplexities, found.means):
            whole = [*row, *new]
            native = model.hf(torch.tensor([whole]), output_hidden_states=True)
            losses = -native.logits[0].log_softmax(-1)[range(len(row) - 1, len(whole) - 1), new]
            assert perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-3)
            kept = [at for at in range(len(row), len(whole)) if whole[at] not in model.special_ids]
            if not kept:
                assert mean is None
                continue
            wanted = native.hidden_states[max(layer, 1)][0, kept].mean(0)
            torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-4)


def test_an_arm_keeps_the_order_of_its_edits_beside_arms_that_edit_the_same_latents(model):
    if model.cfg.d_model != 32:
        pytest.skip("the tiny dictionaries have 32 inputs")
    plain = {"skip_rule": {"special": False, "first": 0, "outlier": None}}
    sae, other = (tiny_dictionary("relu", metadata=plain, model_name="", name=name) for name in ("one", "two"))
    add = edits.add(("resid_post.1", torch.ones(32)), 3.0)
    late = edits.patch("resid_post.1", 0.5)
    arms = [
        edits.scale(sae.latents, 0.5),
        [edits.clamp(sae, 3, 5.0), edits.clamp(sae, 4, 5.0)],
        [add, edits.clamp(sae, 3, 5.0)],
        [late, edits.scale(sae.latents, 3.0)],
        [edits.clamp(sae, 3, 5.0), add],
        [edits.scale(other.latents, 3.0), edits.clamp(sae, 3, 5.0)],
    ]
    for arm, one in zip(arms, outcomes(model, PROMPTS, arms, max_new_tokens=0, quiet=True)):
        wanted = model.run(PROMPTS, edits=arm, logits="last").logits
        torch.testing.assert_close(one.logits, wanted, atol=1e-4, rtol=1e-4)
