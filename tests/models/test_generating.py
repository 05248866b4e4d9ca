"""Generation with the KV cache and edits, against whole forward passes."""

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, EditDidNotFire, UnknownName
from monosem.models import Model, TokenBatch
from tiny import FAMILIES, tiny_model

CAPTURED = (
    *(
        "resid_pre",
        "ln1_normalized",
        "ln1_scale",
        "q",
        "k",
        "v",
        "rot_q",
        "rot_k",
        "z",
        "result",
        "attn_out",
        "mlp_pre",
    ),
    *("mlp_post", "expert_weights", "router_logits", "mlp_out", "resid_mid", "resid_post"),
)
IDS = torch.randint(3, 100, (3, 11), generator=torch.Generator().manual_seed(5))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
# each has its own cache, positions or block outputs; `verify` compares cached with uncached logits for every family
SOME = ["llama", "mistral", "gpt2", "gemma2", "gptj", "cohere2", "gpt_oss"]


@pytest.fixture(scope="module", params=SOME)
def model(request) -> Model:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny_model("llama")


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


@pytest.mark.parametrize(
    "site", ["ln1_scale.1", "ln2_normalized.1", "result.1", "pos_embed", "expert_weights.1", "mlp_raw.1"]
)
def test_sites_that_are_computed_are_edited_in_generation_as_in_full_passes(model, site):
    try:
        edit = edits.scale(model.site(site), 1.7).at(positions=slice(1, None))
    except UnknownName:
        return
    rows = [IDS[0, :3].tolist(), IDS[1].tolist()]
    made = model.generate(rows, edits=edit, max_new_tokens=4, stop_at_eos=False)
    for row, whole in zip(rows, made.ids.rows()):
        assert whole == loop_without_cache(model, row, 4, edit)


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


@pytest.mark.parametrize("logits", [["logits"], ["logits_raw"], ["logits", "logits_raw"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_activations_equal_a_run_over_the_final_ids(family, logits):
    """Prompts of unequal length, a row that ends early, edits of every chunk, each kind of site."""
    model = tiny_model(family)
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(2))
    rows = [IDS[0, :3].tolist(), IDS[1].tolist(), IDS[2, :6].tolist()]
    end = edits.function("logits", lambda x: x.index_fill(-1, torch.tensor([1]), 1e4)).at(rows=[2], positions=7)
    change = [edits.add(("resid_pre.1", vector), 2.0).at(positions=slice(1, None)), end]
    sites = [f"{name}.{layer}" for name in CAPTURED for layer in (0, 2) if model.has((name, layer))]
    sites += [name for name in ("embed", "pos_embed", "final_norm", "final_scale", *logits) if model.has(name)]
    made = model.generate(rows, edits=change, max_new_tokens=7, capture=sites)
    assert made.new[2][-1] == 1
    assert len(made.new[2]) < 7
    truth = model.run(made.ids, capture=sites, edits=change)
    for site in sites:
        assert made[site].shape == truth[site].shape
        mask = made.ids.mask
        torch.testing.assert_close(made[site][mask], truth[site][mask], rtol=1e-4, atol=2e-5)
    last = sites[0]
    torch.testing.assert_close(made.run.last(last), truth.last(last), **TOLERANCE)


def test_capture_adds_nothing_to_the_text_and_takes_derived_sites(llama):
    rows = [IDS[0, :3].tolist(), IDS[1].tolist()]
    plain, made = (llama.generate(rows, max_new_tokens=5, capture=c) for c in ((), ["z.1", "resid_post.2"]))
    assert plain.new == made.new
    truth = llama.run(made.ids, capture=["result.1"])["result.1"]
    torch.testing.assert_close(made["result.1"][made.ids.mask], truth[made.ids.mask], **TOLERANCE)
    with pytest.raises(UnknownName, match="capture"):
        plain["z.1"]
    with pytest.raises(BadInput, match=r"model\.run\(generation\.ids"):
        llama.generate(rows, max_new_tokens=5, capture=["pattern.1"])


@pytest.mark.parametrize("where", [{"scope": "generated"}, {"scope": "prompt"}, {"positions": [0, -1]},
    {"positions": "last"}, {"positions": slice(None, -1)}])  # fmt: skip
def test_edits_that_ask_for_the_end_of_the_prompt_refuse_a_generation_as_prompt(llama, where):
    edit, made = edits.scale("resid_post.1", 0.5), llama.generate(IDS, max_new_tokens=2)
    for call in (llama.run, llama.generate):
        with pytest.raises(BadInput, match="where the prompt ends"):
            call(made, edits=edit.at(**where))
    assert torch.equal(llama.run(made, edits=edit.at(positions=[0, 1])).logits,
        llama.run(made.ids, edits=edit.at(positions=[0, 1])).logits)  # fmt: skip


def test_nothing_is_computed_past_an_edit_after_a_generation(llama):
    made = llama.generate(IDS, edits=edits.scale("ln1_output.1", 0.0), max_new_tokens=2, capture=["resid_pre.1", "z.1"])
    for site in ("ln1_output.1", "attn_input.1"):
        with pytest.raises(UnknownName, match=r"an edit at ln1_output\.1 changed it"):
            made[site]


def test_the_logits_of_the_first_token_come_with_the_generation(model):
    rows = [IDS[0, :3].tolist(), IDS[1].tolist()]
    edit = edits.scale("resid_mid.1" if model.has("resid_mid.1") else "resid_pre.1", 1.3)
    made = model.generate(rows, edits=edit, max_new_tokens=2)
    torch.testing.assert_close(made.logits, model.run(rows, edits=edit, logits="last").logits, **TOLERANCE)


def test_prompt_and_continuation_joined_are_the_whole_text():
    """The tiny tokenizer's decoder drops the space at the start of a text, as Llama 2's does."""
    model = tiny_model("llama")
    made = model.generate(["the cat sat", "a dog"], max_new_tokens=6, stop_at_eos=False)
    for text, prompt, ids in zip(made.texts, ("the cat sat", "a dog"), made.ids.rows()):
        assert prompt + text == model.tokenizer.decode(ids, skip_special_tokens=True)
    alone = Model(model.hf).generate([[5, 7]], max_new_tokens=3)
    assert alone.texts == [" ".join(map(str, alone.new[0]))]
