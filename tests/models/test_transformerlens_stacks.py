"""The stacks of a cache: rows of a padded batch against each row alone, parts against wholes and native norms."""

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from tiny import is_parallel

SOME = ["llama", "gpt2", "gpt_neox", "gemma2", "granite", "olmo2"]
ROWS = [[5, 9, 17], [7, 8, 20, 33, 4, 11], [60, 61, 62, 63]]
IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5))
# what each row keeps; the position axis is dropped by numbers, kept by the others
SLICES = [-1, 0, torch.tensor(-2), [-2, 1], slice(-2, None), (-3, -1), "last", torch.tensor([0, 2])]


@pytest.fixture(params=SOME)
def some(request, tiny_model) -> Model:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def llama(tiny_model) -> Model:
    return tiny_model("llama")


def close(found, expected, at=""):
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()), msg=lambda m: f"{at}: {m}"
    )


def stacks(model: Model, cache, pos_slice, tokens=7):
    """Every stack of a cache at some positions, by name; the batch axis is the second."""
    found = {
        "accumulated": cache.accumulated_resid(incl_mid=not is_parallel(model), pos_slice=pos_slice),
        "normed": cache.accumulated_resid(apply_ln=True, pos_slice=pos_slice),
        "normed before a layer": cache.accumulated_resid(layer=2, apply_ln=True, pos_slice=pos_slice),
        "parts": cache.decompose_resid(pos_slice=pos_slice, apply_ln=True),
        "parts before an MLP": cache.decompose_resid(1, mlp_input=True, pos_slice=pos_slice, apply_ln=True),
        "heads": cache.stack_head_results(incl_remainder=True, pos_slice=pos_slice, apply_ln=True),
        "neurons": cache.stack_neuron_results(2, pos_slice, slice(3, 6), incl_remainder=True, apply_ln=True),
        "everything": cache.get_full_resid_decomposition(pos_slice=pos_slice),
        "normed by the caller": cache.apply_ln_to_stack(
            cache.decompose_resid(pos_slice=pos_slice), 1, False, pos_slice
        ),
    }
    found["attributions"] = cache.logit_attrs(found["everything"], tokens, pos_slice=pos_slice)[..., None]
    found["neurons of a layer"] = cache.get_neuron_results(1, [2, 4], pos_slice)[None]
    return found


@pytest.mark.parametrize("pos_slice", SLICES, ids=str)
def test_a_padded_batch_is_each_row_alone(some, pos_slice):
    together = stacks(some, some.run_with_cache(ROWS)[1], pos_slice)
    for number, row in enumerate(ROWS):
        alone = stacks(some, some.run_with_cache([row])[1], pos_slice)
        for name, stack in alone.items():
            close(together[name][:, number], stack[:, 0], name)


def test_slices_of_one_length_are_pythons(some):
    _, cache = some.run_with_cache(IDS)
    whole = stacks(some, cache, None)
    for pos_slice, index in [(-1, -1), ([0, -3], [0, -3]), ((2, 7, 2), slice(2, 7, 2)), (slice(4), slice(4))]:
        for name, stack in stacks(some, cache, pos_slice).items():
            close(stack, whole[name][:, :, index], f"{name} at {pos_slice}")


def test_rows_that_would_keep_unequal_numbers_or_lack_a_position_are_refused(llama):
    _, cache = llama.run_with_cache(ROWS)
    for pos_slice, words in [(slice(1, None), "must be one number"), (3, "prompt 0 has 3 tokens"), (9, "position 9")]:
        with pytest.raises(BadInput, match=words):
            cache.decompose_resid(pos_slice=pos_slice)
    for pos_slice in (1.5, [True], "first", torch.tensor([0.5])):
        with pytest.raises(BadInput):
            cache.stack_head_results(pos_slice=pos_slice)


def test_a_stack_and_a_norm_of_other_positions_are_refused(llama):
    """Of one row they would broadcast: one position's components over every position's scale."""
    _, cache = llama.run_with_cache(IDS[:1])
    for given, asked in ((-1, None), (None, -1), (slice(2, 5), None)):
        with pytest.raises(BadInput, match=r"give the pos_slice="):
            cache.logit_attrs(cache.decompose_resid(pos_slice=given), 7, pos_slice=asked)


def test_the_last_tokens_attributions_of_a_padded_batch_are_its_logits(llama):
    """Llama has no bias in its final norm and unembedding, so that the parts sum to the logit."""
    answers = torch.tensor([17, 19, 23])
    logits = llama.run(ROWS, logits="last").logits[torch.arange(3), answers]
    _, cache = llama.run_with_cache(ROWS)
    close(cache.logit_attrs(cache.decompose_resid(pos_slice=-1), answers, pos_slice=-1).sum(0), logits)
    _, last = llama.run_with_cache(ROWS, pos_slice=-1)
    close(last.logit_attrs(last.decompose_resid(), answers).sum(0)[:, 0], logits)


@pytest.mark.parametrize("family", ["granite", "cohere", "cohere2", "gemma2"])
def test_attributions_have_the_multiplier_of_the_logits(tiny_model, family):
    model = tiny_model(family)
    logits, cache = model.run_with_cache(IDS)
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = (logits.double() / cap).atanh() * cap
    found = cache.logit_attrs(cache.decompose_resid(), 7, 9).sum(0)
    close(found, (logits[..., 7] - logits[..., 9]).float())


def test_a_cache_of_one_position(some):
    """Learned positions, too, are those of the kept tokens; a second slice counts among the kept ones."""
    _, whole = some.run_with_cache(ROWS)
    _, last = some.run_with_cache(ROWS, pos_slice=-1)
    assert last["resid_post", 1].shape == (3, 1, 32)
    close(last.decompose_resid()[:, :, 0], whole.decompose_resid(pos_slice=-1))
    close(last.decompose_resid(pos_slice=-1), whole.decompose_resid(pos_slice=-1))
    close(last.decompose_resid().sum(0), last["resid_post", -1])
    close(last.last(("resid_post", 1)), last["resid_post", 1][:, 0])
    close(last.last(("pattern", 1)), last["pattern", 1][:, :, 0])
    _, two = some.run_with_cache(ROWS, pos_slice=(-2, None))
    close(two.decompose_resid(pos_slice=1), whole.decompose_resid(pos_slice=-1))
    with pytest.raises(BadInput, match="position 2"):
        two.decompose_resid(pos_slice=2)


def test_every_stream_through_the_final_norm_has_a_scale_of_its_own(some):
    _, cache = some.run_with_cache(IDS)
    norm = some.part(some.family.final_norm)
    streams = cache.accumulated_resid()
    close(cache.accumulated_resid(apply_ln=True), torch.stack([norm(stream) for stream in streams]))
    close(cache.accumulated_resid(apply_ln=True)[-1], cache["final_norm"])
    before, frozen = cache.accumulated_resid(layer=2), cache.accumulated_resid(layer=2, apply_ln=True)
    close(frozen, cache.apply_ln_to_stack(before, 2))


def test_the_norms_scale_is_the_one_that_an_edit_wrote(llama):
    halve = [("ln_final.hook_scale", lambda x, hook: x / 2)]
    with llama.hooks(fwd_hooks=halve):
        logits, cache = llama.run_with_cache(
            IDS, names_filter=lambda n: n.endswith(("_out", "embed", "hook_scale", "resid_post"))
        )
    attributions = cache.logit_attrs(cache.decompose_resid(), 7)
    close(attributions.sum(0), logits[..., 7])


def test_rows_of_a_stack(llama):
    answers = torch.tensor([17, 19, 23])
    _, cache = llama.run_with_cache(ROWS)
    stack = cache.decompose_resid(pos_slice=-1)
    whole = cache.logit_attrs(stack, answers, pos_slice=-1)
    for rows in (1, [2, 0], slice(1, None), (0, 2)):
        index = slice(*rows) if isinstance(rows, tuple) else rows
        found = cache.logit_attrs(stack, answers[index], pos_slice=-1, batch_slice=rows)
        close(found, whole[:, index])
        own = cache.logit_attrs(stack[:, index], answers[index], pos_slice=-1, batch_slice=rows, has_batch_dim=False)
        close(own, whole[:, index])
    part = cache.apply_slice_to_batch_dim(1)
    assert not part.has_batch_dim
    close(part.logit_attrs(part.decompose_resid(pos_slice=-1), 19, pos_slice=-1), whole[:, 1])
    assert part.tokens.rows() == ROWS[1:2]
    two = cache.apply_slice_to_batch_dim([2, 0])
    close(two.logit_attrs(two.decompose_resid(pos_slice=-1), answers[[2, 0]], pos_slice=-1), whole[:, [2, 0]])
    with pytest.raises(BadInput, match="there are 3"):
        cache.logit_attrs(stack, 7, pos_slice=-1, batch_slice=3)
    with pytest.raises(BadInput, match="batch dimension was removed"):
        part.logit_attrs(part.decompose_resid(), 7, batch_slice=0)


def test_tokens_of_attributions(llama):
    _, cache = llama.run_with_cache(IDS)
    stack = cache.decompose_resid()
    cat, dog = llama.to_single_token(" cat"), llama.to_single_token(" dog")
    one = cache.logit_attrs(stack, cat)
    for same in (" cat", [" cat"], torch.tensor([[cat]]), [cat], torch.tensor(cat, dtype=torch.int32)):
        close(cache.logit_attrs(stack, same), one)
    rows = cache.logit_attrs(stack, [" cat", " dog"])
    close(rows[:, 0], one[:, 0])
    close(rows[:, 1], cache.logit_attrs(stack, dog)[:, 1])
    each = cache.logit_attrs(stack, IDS)  # one for each row and position
    close(each[:, 1, 4], cache.logit_attrs(stack, int(IDS[1, 4]))[:, 1, 4])
    shared = cache.logit_attrs(stack, IDS[0])  # nine, for nine positions
    close(shared[:, 1, 4], cache.logit_attrs(stack, int(IDS[0, 4]))[:, 1, 4])
    for wrong in ([" cat", " dog", " the"], IDS[:, :4]):
        with pytest.raises(BadInput, match="one for each row"):
            cache.logit_attrs(stack, wrong)
    for wrong in (1.5, [0.5], None, [None], [[" cat"]], torch.tensor([True]), [], 100, -1, "the cat"):
        with pytest.raises(BadInput):
            cache.logit_attrs(stack, wrong)


def test_heads_neurons_embeddings_and_biases_are_the_stream(some):
    _, cache = some.run_with_cache(IDS)
    for layer, mlp_input in ((None, False), (2, False), (0, False), (1, not is_parallel(some))):
        end = cache["resid_post", -1] if layer is None else cache["resid_pre", layer]
        if mlp_input:
            end = cache["resid_mid", layer]
        for expand in (True, False):
            stack, labels = cache.get_full_resid_decomposition(layer, mlp_input, expand, return_labels=True)
            assert len(labels) == len(stack) == len(set(labels))
            assert labels[-1] == "bias"
            close(stack.sum(0), end)
    assert labels[:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"][: len(labels)] or labels[4] == "0_mlp_out"
    if some.branch("attn", 0).norm_out is None:
        stack, labels = cache.get_full_resid_decomposition(2, return_labels=True)
        scale = some.branch("attn", 0).scale
        expected = scale * sum(some.b_O[layer] + some.b_out[layer] for layer in (0, 1))
        close(stack[-1], expected.expand(2, 9, -1))
        close(some.accumulated_bias(2), expected)
        attention = some.accumulated_bias(1, mlp_input=True, include_mlp_biases=False)
        close(attention, scale * (some.b_O[0] + (0 if is_parallel(some) else some.b_O[1])))
    else:
        with pytest.raises(BadInput, match="norm after"):
            some.accumulated_bias(2)


def test_projections_are_those_of_the_components(some):
    _, cache = some.run_with_cache(ROWS)
    onto = torch.randn(32, 3, generator=torch.Generator().manual_seed(3))
    for options in ({"apply_ln": True}, {"apply_ln": False}, {"apply_ln": True, "layer": 1}):
        for call in (cache.get_full_resid_decomposition, cache.stack_neuron_results):
            asked = {"layer": None, "pos_slice": -1, **options}
            whole = call(**asked)
            close(call(**asked, project_output_onto=onto), whole.float() @ onto, call.__name__)
            close(call(**asked, project_output_onto=onto[:, 0]), whole.float() @ onto[:, 0], call.__name__)
    one = cache.get_neuron_results(1, 5, -1)
    close(cache.get_neuron_results(1, 5, -1, onto[:, 0]), one @ onto[:, 0])
    assert one.shape == (3, 32)
    assert cache.get_neuron_results(1, [5], -1).shape == (3, 1, 32)
    with pytest.raises(BadInput, match="project_output_onto"):
        cache.get_neuron_results(1, 5, -1, onto[:5])


def test_one_activation_of_every_layer(llama):
    _, cache = llama.run_with_cache(IDS)
    assert torch.equal(cache.stack_activation("pattern"), torch.stack([cache["pattern", layer] for layer in range(3)]))
    assert cache.stack_activation("scale", 2, "ln2").shape == (2, 2, 9, 1)
    with pytest.raises(UnknownName, match="needs a layer|exists once"):
        cache.stack_activation("embed")


@pytest.mark.parametrize(
    ("site", "held"),
    [
        ("z.0", True),
        ("mlp_post.0", True),
        ("resid_pre.2", True),
        ("attn_out.0", False),
        ("mlp_out.0", False),
        ("resid_post.0", False),
        ("resid_mid.0", False),
    ],
)
def test_a_whole_decomposition_adds_up_or_is_refused_where_an_edit_changed_the_stream(llama, site, held):
    layer = 1
    run = llama.run(IDS, capture=["embed", "z.0", "mlp_post.0", "resid_pre.1"], edits=edits.scale(site, 0.5))
    if not held:
        with pytest.raises(BadInput, match="would not add up"):
            run.get_full_resid_decomposition(layer)
        return
    close(run.get_full_resid_decomposition(layer).sum(0), run["resid_pre.1"])


@pytest.mark.parametrize("heads", [[1, 3], [3, 1], [2], [0, 1, 2], (1, 3)])
def test_heads_that_were_kept_stand_under_their_own_numbers(llama, heads):
    sites = [*(f"z.{layer}" for layer in llama.layers()), "embed", "mlp_post.0", "resid_pre.1", "resid_post.2"]
    whole = llama.run(ROWS, capture=sites).stack_head_results().unflatten(0, (3, 4))
    run = llama.run(ROWS, capture=sites, heads=heads)
    stack, labels = run.stack_head_results(return_labels=True)
    assert labels == [f"L{layer}H{head}" for layer in range(3) for head in heads]
    close(stack.unflatten(0, (3, len(heads))), whole[:, list(heads)])
    with pytest.raises(BadInput, match="do not add up"):
        run.get_full_resid_decomposition(1)
