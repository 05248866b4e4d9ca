"""Dictionaries inside the model: their latents captured, edited and differentiated. Own hooks on the bare Hugging Face
model are the oracle."""

import pytest
import torch

from monosem import edits
from monosem.dictionaries import Dictionary
from monosem.errors import BadInput, EditDidNotFire
from monosem.models import Model
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

ROWS = [[10, 11, 12, 13, 14, 15], [20, 21, 22, 23]]
PLAIN = {"skip_rule": {"special": False, "first": 0, "outlier": None}}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama")


def dictionary(kind="relu", site="resid_post.1", width=24, seed=0, metadata=PLAIN, **options) -> Dictionary:
    tensors = random_tensors(32, width, seed, (1 / 6, 1 / 4), **options.pop("tensors", {}))
    return tiny_dictionary(kind, tensors, site=site, model_name="", metadata=metadata, **options)


SAES = {
    "relu": {},
    "topk": {"kind": "topk", "k": 4},
    "layer norm": {"kind": "topk", "k": 4, "token_norm": "layer_norm"},
    "heads": {"site": "z.1"},
    "between branches": {"site": "resid_mid.1"},
    "MLP": {"site": "mlp_out.0"},
    "transcoder": {"site": "ln2_output.1", "site_out": "mlp_out.1", "transcoder": True},
}


@pytest.mark.parametrize("kind", SAES)
def test_a_capture_of_latents_changes_nothing(model, kind):
    sae = dictionary(**SAES[kind])
    with torch.no_grad():
        plain = model.run(ROWS, capture=[sae.site, sae.site_out])
        run = model.run(ROWS, capture=[sae.latents, sae.reconstruction, sae.error, sae.site])
    assert torch.equal(run.logits, plain.logits) or kind == "between branches"
    torch.testing.assert_close(run.logits, plain.logits)
    x, y = plain[sae.site], plain[sae.site_out]
    codes = sae.encode(x.flatten(2))
    torch.testing.assert_close(run[sae.latents], codes.dense())
    rebuilt = sae.decode(codes, like=x.flatten(2)).reshape(y.shape)
    torch.testing.assert_close(run[sae.reconstruction], rebuilt)
    torch.testing.assert_close(run[sae.error], y - rebuilt)
    alone = model.run(ROWS, capture=sae.latents, logits=False)
    assert torch.equal(alone[sae.latents], run[sae.latents])
    assert alone.edited == frozenset()
    last = model.run(ROWS, capture=sae.latents, positions="last")
    assert torch.equal(last[sae.latents][1, 0], run[sae.latents][1, 3])


@pytest.mark.parametrize("kind", [kind for kind in SAES if kind != "transcoder"])
def test_an_edit_of_latents_is_the_edit_of_the_activation(model, kind):
    sae = dictionary(**SAES[kind])

    def set_one(codes):
        return codes.index_fill(-1, torch.tensor([5]), 3.0)

    inside = model.run(ROWS, edits=edits.function(sae.latents, set_one).at(positions=[1, 3]))
    outside = model.run(ROWS, edits=edits.clamp(sae, 5, 3.0).at(positions=[1, 3]))
    torch.testing.assert_close(inside.logits, outside.logits, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(inside.logits, model.run(ROWS).logits, atol=1e-3)
    assert inside.edited == {sae.site, sae.latents}


@pytest.mark.parametrize("skip", [False, True])
def test_latents_of_a_transcoder_are_changed_where_it_writes(model, skip):
    tensors = {"W_skip": torch.randn(32, 32) / 8} if skip else {}
    coder = dictionary(site="ln2_output.1", site_out="mlp_out.1", transcoder=True, tensors={})
    if skip:
        coder.W_skip = torch.nn.Parameter(tensors["W_skip"], requires_grad=False)
    block = model.hf.model.layers[1]

    def manual(error: bool, change) -> torch.Tensor:
        def hook(module, args, out):
            x = args[0]
            codes = (x @ coder.W_enc + coder.b_enc).relu()

            def decode(codes):
                y = codes @ coder.W_dec + coder.b_dec
                return y + x @ coder.W_skip.T if skip else y

            return decode(change(codes)) + (out - decode(codes) if error else 0)

        handle = block.mlp.register_forward_hook(hook)
        try:
            return model.hf(torch.tensor([ROWS[0]])).logits
        finally:
            handle.remove()

    def clamped(codes):
        return codes.index_fill(-1, torch.tensor([7]), 2.5)

    def close(edit, expected):
        torch.testing.assert_close(model.run([ROWS[0]], edits=edit).logits, expected, atol=1e-5, rtol=1e-4)

    close(edits.splice(coder), manual(False, lambda codes: codes))
    close(edits.splice(coder, error=True), manual(True, lambda codes: codes))
    close(edits.clamp(coder, 7, 2.5), manual(True, clamped))
    both = [edits.splice(coder), edits.function(coder.latents, clamped)]
    close(both, manual(False, clamped))
    made = model.generate([ROWS[0]], edits=edits.clamp(coder, 7, 2.5), max_new_tokens=4, capture=coder.latents)
    again = model.run(made.ids, edits=edits.clamp(coder, 7, 2.5), capture=coder.latents)
    torch.testing.assert_close(made[coder.latents], again[coder.latents], atol=1e-5, rtol=1e-4)
    assert bool((made[coder.latents][0, :, 7] == 2.5).all())


@pytest.mark.parametrize("kind", SAES)
def test_gradients_at_latents_are_those_of_what_they_write(model, kind):
    sae, before = dictionary(**SAES[kind]), "resid_pre.0"
    run = model.run(ROWS, capture=[sae.latents, before], grad=True)
    plain = model.run(ROWS, capture=[sae.site_out, sae.site, before], grad=True)
    of_latents, upstream = torch.autograd.grad(run.logits[0, -1, 3], [run[sae.latents], run[before]])
    of_site, expected = torch.autograd.grad(plain.logits[0, -1, 3], [plain[sae.site_out], plain[before]])
    written = of_site.flatten(2) @ sae.W_dec.T
    scale = sae.token_scale(plain[sae.site].flatten(2))
    torch.testing.assert_close(of_latents, written if scale is None else written * scale, atol=1e-6, rtol=1e-4)
    assert bool((of_latents != 0).any())
    torch.testing.assert_close(upstream, expected, atol=1e-6, rtol=1e-4)  # a capture changes no other gradient


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("kind", ["relu", "layer norm"])
def test_gradients_of_a_splice_go_through_the_latents(model, kind, error):
    sae = dictionary(**SAES[kind])
    ids, block = torch.tensor([ROWS[0]]), model.hf.model.layers[1]
    held = {}

    def hook(module, args, out):
        x = out[0] if isinstance(out, tuple) else out
        codes = sae.encode(x)
        held["codes"] = codes.dense()
        held["codes"].retain_grad()
        codes = codes._replace(values=held["codes"], indices=torch.arange(24).expand(held["codes"].shape))
        rebuilt = sae.decode(codes, like=x)
        new = rebuilt + ((x - rebuilt).detach() if error else 0)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    embedded = model.hf.get_input_embeddings()(ids).detach().requires_grad_()
    handle = block.register_forward_hook(hook)
    try:
        logits = model.hf(inputs_embeds=embedded).logits
    finally:
        handle.remove()
    logits[0, -1, 3].backward()
    edit = edits.splice(sae, error=error)
    run = model.run([ROWS[0]], capture=[sae.latents, "embed"], edits=edit, grad=True)
    torch.testing.assert_close(run.logits, logits, atol=1e-5, rtol=1e-4)
    of_latents, of_embed = torch.autograd.grad(run.logits[0, -1, 3], [run[sae.latents], run["embed"]])
    torch.testing.assert_close(of_latents, held["codes"].grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(of_embed, embedded.grad, atol=1e-6, rtol=1e-4)


def test_several_dictionaries_at_once(model):
    early, late = dictionary(seed=1, site="resid_post.0"), dictionary(seed=2, site="resid_post.1", width=40)
    second = dictionary(seed=3, site="resid_post.1", width=16)
    run = model.run(ROWS, capture=[early.latents, late.latents, second.latents], edits=edits.splice(early))
    assert run[late.latents].shape == (2, 6, 40)
    assert run[second.latents].shape == (2, 6, 16)
    spliced = model.run(ROWS, capture="resid_post.1", edits=edits.splice(early))
    torch.testing.assert_close(run[late.latents], late.encode(spliced["resid_post.1"]).dense())
    torch.testing.assert_close(run[second.latents], second.encode(spliced["resid_post.1"]).dense())
    grown = model.run([ROWS[0]], capture=[early.latents, late.latents], grad=True, edits=edits.splice(late, error=True))
    (across,) = torch.autograd.grad(grown[late.latents][0, -1].sum(), [grown[early.latents]])
    assert bool((across != 0).any())  # an effect of early latents on late ones


def test_untrained_tokens_are_left_out_of_edits_of_latents(model):
    sae = dictionary(metadata={"skip_rule": {"special": True, "first": 1, "outlier": None}})
    edit = edits.scale(sae.latents, 2.0)
    torch.testing.assert_close(
        model.run(ROWS, edits=edit).logits, model.run(ROWS, edits=edit.at(positions=slice(1, None))).logits
    )
    every = model.run(ROWS, edits=edit.at(everywhere=True), capture=["resid_post.1", sae.latents])
    plain = model.run(ROWS, capture="resid_post.1")
    wanted = plain["resid_post.1"] + sae.encode(plain["resid_post.1"]).dense() @ sae.W_dec
    for row, ids in enumerate(ROWS):
        torch.testing.assert_close(
            every["resid_post.1"][row, : len(ids)], wanted[row, : len(ids)], atol=1e-5, rtol=1e-4
        )
    with pytest.raises(EditDidNotFire, match="everywhere=True"):
        model.run(ROWS, edits=edit.at(positions=0))


def test_the_error_of_a_splice_without_error_does_not_exist(model):
    sae = dictionary()
    with pytest.raises(BadInput, match="error=True"):
        model.run(ROWS, edits=edits.splice(sae), capture=sae.error)
    without = model.run(ROWS, edits=[edits.splice(sae, error=True), edits.scale(sae.error, 0.0)])
    torch.testing.assert_close(without.logits, model.run(ROWS, edits=edits.splice(sae)).logits, atol=1e-5, rtol=1e-4)


def test_a_memory_budget_counts_latents(model):
    sae = dictionary(width=4096)
    whole = model.run(ROWS, capture=sae.latents)
    parts = model.run(ROWS, capture=sae.latents, memory=400_000)
    torch.testing.assert_close(parts[sae.latents][0], whole[sae.latents][0])
    with pytest.raises(BadInput, match=r"resid_post\.1\.latents"):
        model.run(ROWS, capture=sae.latents, memory=150_000)


def by_hand(model, change, module=None) -> torch.Tensor:
    """Logits with a function of block 1's output, or of another module's, by a hook of PyTorch."""

    def hook(module, args, out):
        x = out[0] if isinstance(out, tuple) else out
        return (change(x), *out[1:]) if isinstance(out, tuple) else change(x)

    handle = (module or model.hf.model.layers[1]).register_forward_hook(hook)
    try:
        return model.hf(torch.tensor([ROWS[0]])).logits
    finally:
        handle.remove()


def codes_of(sae, x):
    return (x @ sae.W_enc + sae.b_enc).relu()


def test_gradients_of_a_splice_go_through_the_latents_also_where_nobody_looks_inside(model):
    early, late = dictionary(seed=1, site="resid_post.0"), dictionary(seed=2)
    embedded = model.hf.get_input_embeddings()(torch.tensor([ROWS[0]])).detach().requires_grad_()
    held = {}

    def hook(sae, keep):
        def of(module, args, out):
            x = out[0] if isinstance(out, tuple) else out
            codes = codes_of(sae, x)
            if keep:
                held["codes"] = codes = codes.detach().requires_grad_()
            rebuilt = codes @ sae.W_dec + sae.b_dec
            new = rebuilt + (x - rebuilt).detach()
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return of

    def gradient(hooks, of):
        handles = [model.hf.model.layers[layer].register_forward_hook(fn) for layer, fn in hooks.items()]
        try:
            logits = model.hf(inputs_embeds=embedded).logits
        finally:
            for handle in handles:
                handle.remove()
        return torch.autograd.grad(logits[0, -1, 3], held["codes"] if of == "codes" else embedded)[0]

    run = model.run([ROWS[0]], capture="embed", edits=edits.splice(late, error=True), grad=True)
    (found,) = torch.autograd.grad(run.logits[0, -1, 3], run["embed"])
    torch.testing.assert_close(found, gradient({1: hook(late, False)}, "embed"), atol=1e-5, rtol=1e-4)
    both = [edits.splice(early, error=True), edits.splice(late, error=True)]
    run = model.run([ROWS[0]], capture=early.latents, edits=both, grad=True)
    (found,) = torch.autograd.grad(run.logits[0, -1, 3], run[early.latents])
    expected = gradient({0: hook(early, True), 1: hook(late, False)}, "codes")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run.logits, model.run([ROWS[0]]).logits)


def test_a_clamped_latent_is_what_is_captured_and_spliced(model):
    sae = dictionary()

    def clamped(x):
        return codes_of(sae, x).index_fill(-1, torch.tensor([7]), 20.0) @ sae.W_dec + sae.b_dec

    clamp, splice = edits.clamp(sae, 7, 20.0), edits.splice(sae)
    expected = by_hand(model, clamped)
    for order in ([splice, clamp], [clamp, splice]):
        run = model.run([ROWS[0]], edits=order, capture=sae.latents)
        torch.testing.assert_close(run.logits, expected, atol=1e-5, rtol=1e-4)
        assert bool((run[sae.latents][..., 7] == 20).all())
    with model.saes([sae]):
        torch.testing.assert_close(model.run([ROWS[0]], edits=clamp).logits, expected, atol=1e-5, rtol=1e-4)
    seen = model.run(ROWS, edits=clamp.at(positions=[1, 2]), capture=sae.latents)
    assert bool((seen[sae.latents][:, 1:3, 7] == 20).all())
    torch.testing.assert_close(
        seen.logits, model.run(ROWS, edits=clamp.at(positions=[1, 2])).logits, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["MLP", "transcoder"])
def test_edits_inside_keep_their_place_among_others(model, kind):
    coder, mlp = dictionary(**SAES[kind] | {"site_out": "mlp_out.1"}, seed=5), model.hf.model.layers[1].mlp
    coder = dictionary(site="mlp_out.1", seed=5) if kind == "MLP" else coder
    fives = torch.tensor([12])

    def hook(module, args, out):
        codes = codes_of(coder, out if kind == "MLP" else args[0])
        return (out + (codes.index_fill(-1, fives, 5.0) - codes) @ coder.W_dec) * 0.5

    handle = mlp.register_forward_hook(hook)
    expected = model.hf(torch.tensor([ROWS[0]])).logits
    handle.remove()
    half = edits.scale("mlp_out.1", 0.5)
    for inside in (edits.clamp(coder, 12, 5.0), edits.function(coder.latents, lambda z: z.index_fill(-1, fives, 5.0))):
        torch.testing.assert_close(model.run([ROWS[0]], edits=[inside, half]).logits, expected, atol=1e-5, rtol=1e-4)


def test_latents_are_edited_also_where_their_dictionary_is_not_spliced(model):
    sae = dictionary(metadata={"skip_rule": {"special": True, "first": 1, "outlier": None}})
    nothing = edits.scale(sae.latents, 0.0)

    def expected(acting: list[int], touched: list[int]):
        def change(x):
            codes, new = codes_of(sae, x), x.clone()
            new[:, touched] = x[:, touched] - codes[:, touched] @ sae.W_dec
            new[:, acting] = (codes @ sae.W_dec + sae.b_dec)[:, acting]
            new[:, [i for i in acting if i in touched]] = sae.b_dec
            return new

        return by_hand(model, change)

    given = [edits.splice(sae).at(positions=-1), nothing.at(positions=[2, 5])]
    torch.testing.assert_close(model.run([ROWS[0]], edits=given).logits, expected([5], [2, 5]), atol=1e-5, rtol=1e-4)
    given = [edits.splice(sae), nothing.at(everywhere=True)]
    every = [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(
        model.run([ROWS[0]], edits=given).logits, expected(every[1:], every), atol=1e-5, rtol=1e-4
    )


def test_outliers_are_told_by_the_activation_before_any_edit(model):
    sae = dictionary(metadata={"skip_rule": {"special": False, "first": 0, "outlier": 10.0}})
    far = torch.full((32,), 60.0)
    moved = edits.add(("resid_post.1", far)).at(positions=2)

    def change(x):
        x = x.clone()
        x[:, 2] += far
        return x - codes_of(sae, x) @ sae.W_dec

    run = model.run([ROWS[0]], edits=[moved, edits.scale(sae.latents, 0.0)])
    torch.testing.assert_close(run.logits, by_hand(model, change), atol=1e-4, rtol=1e-4)
    run = model.run([ROWS[0]], edits=[moved, edits.splice(sae)], capture="resid_post.1")
    plain = model.run([ROWS[0]], edits=moved, capture="resid_post.1")["resid_post.1"]
    torch.testing.assert_close(run["resid_post.1"], sae(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place", ["latents", "reconstruction", "error"])
def test_captures_inside_leave_bf16_logits_alone(place):
    model, sae = tiny_model("llama"), dictionary()
    model = Model(model.hf.to(torch.bfloat16), model.tokenizer, name="bf16")
    for grad in (False, True):
        for edit in ([], [edits.splice(sae, error=True)]):
            run = model.run(ROWS, capture=getattr(sae, place), edits=edit, grad=grad)
            assert torch.equal(run.logits, model.run(ROWS).logits)


def test_a_gate_of_a_clamped_latent_sees_the_activation(model):
    sae, heads = dictionary(), dictionary(site="z.1")
    edit = edits.clamp(sae, 7, 20.0).when(lambda x, moment: x[..., 0] > 0)
    seen = model.run(ROWS, edits=edit, capture=[sae.latents, sae.input])
    torch.testing.assert_close(seen.logits, model.run(ROWS, edits=edit).logits, atol=1e-5, rtol=1e-4)
    real = seen.tokens.mask
    assert torch.equal((seen[sae.latents][..., 7] == 20)[real], (seen[sae.input][..., 0] > 0)[real])
    with pytest.raises(BadInput, match="latents have none"):
        model.run(ROWS, edits=edits.clamp(heads, 7, 2.0).at(heads=1), capture=heads.latents)


def test_places_inside_a_dictionary_that_is_spliced_in_twice_are_refused(model):
    sae = dictionary()
    twice = [edits.splice(sae), edits.splice(sae)]
    for asked in (
        {"capture": sae.latents},
        {"edits": edits.scale(sae.latents, 0.5)},
        {"edits": edits.clamp(sae, 1, 2.0)},
    ):
        given = [*twice, *([asked["edits"]] if "edits" in asked else [])]
        with pytest.raises(BadInput, match="twice"):
            model.run(ROWS, **asked | {"edits": given})


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_several_edits_of_latents_change_the_same_codes(model, kind):
    sae = dictionary(**SAES[kind])

    def change(x):
        codes = sae.encode(x).dense()
        return x + (codes.index_fill(-1, torch.tensor([3, 7, 9]), 0.0) - codes) @ sae.W_dec

    given = [edits.ablate_latent(sae, latent) for latent in (3, 7, 9)]
    expected = by_hand(model, change)
    torch.testing.assert_close(model.run([ROWS[0]], edits=given).logits, expected, atol=1e-5, rtol=1e-4)
    seen = model.run([ROWS[0]], edits=given, capture=sae.latents)
    torch.testing.assert_close(seen.logits, expected, atol=1e-5, rtol=1e-4)
