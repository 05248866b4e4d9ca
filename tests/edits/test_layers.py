"""Cross-layer transcoders in a model: latents of each layer captured, edited and differentiated, outputs replaced.
PyTorch's own hooks on the MLPs of the bare Hugging Face model are the oracle."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch

from monosem import edits
from monosem.dictionaries import CrossLayer
from monosem.dictionaries.several_parts import CrossLayerParts, Facts
from monosem.errors import BadInput, EditDidNotFire
from monosem.models import Model
from monosem.models.places.sites import Site
from monosem.steering.rows import needs_its_order
from tiny import model_of
from tiny_dictionaries import random_tensors, tiny_dictionary

IDS = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
LAYERS, D, WIDTH = 3, 32, 20
FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox")
KINDS = {"relu": {}, "jumprelu": {"threshold": torch.full((LAYERS, WIDTH), 0.3)}, "topk": {"k": 4}}


def transcoder(kind: str = "relu", seed: int = 0, skip: bool = False) -> CrossLayer:
    """From what each MLP is given to what it gives, with random weights."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int, size: float) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * size

    about = KINDS[kind]
    sites = [[Site(name, layer) for layer in range(LAYERS)] for name in ("mlp_input", "mlp_raw")]
    return CrossLayer(
        CrossLayerParts(
            facts=Facts(kind, *sites, k=about.get("k")),
            W_enc=rand(LAYERS, D, WIDTH, size=0.2),
            b_enc=rand(LAYERS, WIDTH, size=0.3),
            W_dec=[rand(WIDTH, LAYERS - s, D, size=0.3) for s in range(LAYERS)],
            b_dec=rand(LAYERS, D, size=0.3),
            threshold=about.get("threshold"),
            W_skip=rand(LAYERS, D, D, size=0.1) if skip else None,
        )
    )


def encoded(clt: CrossLayer, s: int, x: torch.Tensor) -> torch.Tensor:
    pre = x @ clt.W_enc[s] + clt.b_enc[s]
    if clt.kind == "topk":
        return torch.where(pre >= pre.topk(clt.k).values[..., -1:], pre, 0).relu()
    return pre.relu() * (pre > (0 if clt.threshold is None else clt.threshold[s]))


def blocks(hf: torch.nn.Module) -> list[torch.nn.Module]:
    inner = hf.base_model
    return list(getattr(inner, "h", None) or inner.layers)


def by_hand(model: Model, clt: CrossLayer, change=None, error: bool | None = True, nudge=None):
    """Logits, and the codes of each layer as they are decoded. `change(layer, codes)` edits codes. error: kept, as a
    constant; False: it is not; None: what the MLP gives, plus what the edits change. nudge: added to each layer's."""
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []

    def hook(layer, module, args, out):
        before.append(encoded(clt, layer, args[0]))
        codes = before[-1] if change is None else change(layer, before[-1])
        if nudge is not None:  # where nothing is spliced, codes below reach those above through the model alone
            before[-1] = before[-1].detach() if error is None else before[-1]
            codes = before[-1] + nudge[layer]
        after.append(codes)

        def decoded(codes):
            y = sum(codes[s] @ clt.W_dec[s][:, layer - s] for s in range(layer + 1)) + clt.b_dec[layer]
            return y if clt.W_skip is None else y + args[0] @ clt.W_skip[layer].T

        if error is None:
            return out + sum((after[s] - before[s]) @ clt.W_dec[s][:, layer - s] for s in range(layer + 1))
        return decoded(after) + ((out - decoded(before)).detach() if error else 0)

    with ExitStack() as stack:
        for layer, block in enumerate(blocks(model.hf)):
            stack.callback(block.mlp.register_forward_hook(partial(hook, layer)).remove)
        return model.hf(IDS).logits, after


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def at(layer: int, latent: int, new):
    """A change of one latent of one layer."""

    def change(number, codes):
        if number != layer:
            return codes
        codes = codes.clone()
        codes[..., latent] = new(codes[..., latent])
        return codes

    return change


EDITS = {
    "clamp": (lambda layer: edits.clamp(layer, 7, 2.5, everywhere=True), lambda f: torch.full_like(f, 2.5)),
    "ablate": (lambda layer: edits.ablate_latent(layer, 7, everywhere=True), lambda f: f * 0),
    "scale": (lambda layer: edits.scale_latent(layer, 7, 3.0, everywhere=True), lambda f: f * 3),
    "add": (lambda layer: edits.add_latent(layer, 7, 1.5, everywhere=True), lambda f: f + 1.5),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_capture_changes_nothing(family):
    model, clt = model_of(family), transcoder()
    plain = model.run(IDS, capture=[*clt.sites, *clt.sites_out])
    layer = clt.layers[2]
    run = model.run(IDS, capture=[*clt.latents, layer.reconstruction, layer.error, layer.input])
    assert torch.equal(run.logits, plain.logits)
    x = {site: plain[site] for site in clt.sites}
    for one, codes in zip(clt.layers, clt.encode(x)):
        close(run[one.latents], codes.dense())
    y = clt(x)[layer.site_out]
    close(run[layer.reconstruction], y)
    close(run[layer.error], plain[layer.site_out] - y)
    assert torch.equal(run[layer.input], plain[layer.site])
    assert model.run(IDS, capture=clt.latents, logits=False)[clt.latents[1]].shape == (2, 5, WIDTH)
    again = model.run(IDS, capture=clt.latents, grad=True)
    assert torch.equal(again.logits, plain.logits)


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize(
    ("family", "kind"), [*((f, "relu") for f in FAMILIES), ("llama", "jumprelu"), ("llama", "topk")]
)
def test_an_edit_of_a_latent_acts_on_this_and_every_later_output(family, kind, what):
    model, clt = model_of(family), transcoder(kind)
    make, new = EDITS[what]
    for number in range(LAYERS):
        expected, _ = by_hand(model, clt, at(number, 7, new), error=None)
        run = model.run(IDS, edits=make(clt.layers[number]))
        close(run.logits, expected)
        assert {str(site) for site in run.edited} >= {f"mlp_raw.{later}" for later in range(number, LAYERS)}
    expected, codes = by_hand(model, clt, at(0, 7, new), error=None)
    seen = model.run(IDS, edits=make(clt.layers[0]), capture=clt.latents)
    close(seen.logits, expected)
    for place, dense in zip(clt.latents, codes):  # what a later layer reads has changed, so its codes have
        close(seen[place], dense)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_spliced_with_and_without_the_error(family, skip):
    model, clt = model_of(family), transcoder(skip=skip)
    whole = edits.splice_layers(clt, error=True, everywhere=True)
    assert torch.equal(model.run(IDS, edits=whole).logits, model.run(IDS).logits)
    expected, codes = by_hand(model, clt, error=False)
    spliced = edits.splice_layers(clt, everywhere=True)
    run = model.run(IDS, edits=spliced, capture=clt.latents)
    close(run.logits, expected)
    for place, dense in zip(clt.latents, codes):
        close(run[place], dense)
    for error, given in ((False, spliced), (True, whole)):
        expected, _ = by_hand(model, clt, at(1, 7, lambda f: torch.full_like(f, 2.5)), error=error)
        clamp = edits.clamp(clt.layers[1], 7, 2.5, everywhere=True)
        close(model.run(IDS, edits=[*given, clamp]).logits, expected)
        dense = edits.function(clt.layers[1].latents, lambda z: z.index_fill(-1, torch.tensor([7]), 2.5))
        close(model.run(IDS, edits=[*given, dense.at(everywhere=True)]).logits, expected)


def test_reconstruction_and_error_are_edited():
    model, clt = model_of("llama"), transcoder()
    without = [*edits.splice_layers(clt, error=True, everywhere=True)]
    without += [edits.scale(layer.error, 0.0).at(everywhere=True) for layer in clt.layers]
    spliced = model.run(IDS, edits=edits.splice_layers(clt, everywhere=True)).logits
    close(model.run(IDS, edits=without).logits, spliced)
    alone = [edits.scale(layer.error, 0.0).at(everywhere=True) for layer in clt.layers]  # where nothing is spliced
    close(model.run(IDS, edits=alone).logits, spliced)
    with pytest.raises(BadInput, match="error=True"):
        model.run(IDS, edits=edits.splice_layers(clt), capture=clt.layers[1].error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("error", [None, True, False])
def test_gradients_at_latents_go_through_all_their_decoders(family, error):
    model, clt = model_of(family), transcoder("topk")
    nudge = [torch.zeros(*IDS.shape, WIDTH, requires_grad=True) for _ in range(LAYERS)]
    logits, _ = by_hand(model, clt, error=error, nudge=nudge)
    expected = torch.autograd.grad(logits[0, -1, 3], nudge)
    given = [] if error is None else edits.splice_layers(clt, error=error, everywhere=True)
    run = model.run(IDS, capture=[*clt.latents, "embed"], edits=given, grad=True)
    close(run.logits, logits)
    found = torch.autograd.grad(run.logits[0, -1, 3], [run[place] for place in clt.latents])
    for one, other in zip(found, expected):
        close(one, other)
        assert bool((one != 0).any())


def test_other_gradients_are_the_models_own():
    model, clt = model_of("llama"), transcoder()
    run = model.run(IDS, capture=[*clt.latents, "embed"], grad=True)
    plain = model.run(IDS, capture=["embed"], grad=True)
    found, expected = (torch.autograd.grad(r.logits[0, -1, 3], r["embed"])[0] for r in (run, plain))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_several_at_once():
    model, first, second = model_of("llama"), transcoder(seed=1), transcoder(seed=2)
    sae = tiny_dictionary("relu", random_tensors(D, 24, 5, (1 / 6, 1 / 4)), model_name="")
    given = [
        edits.clamp(first.layers[0], 3, 2.0, everywhere=True),
        edits.clamp(second.layers[1], 4, 1.0, everywhere=True),
        edits.clamp(first.layers[0], 5, 1.0, everywhere=True),
        edits.clamp(sae, 2, 1.0, everywhere=True),
    ]
    before: dict[tuple[int, int], torch.Tensor] = {}
    values = {(0, 0): {3: 2.0, 5: 1.0}, (1, 1): {4: 1.0}}

    def hook(layer, module, args, out):
        for number, clt in enumerate((first, second)):
            codes = before[number, layer] = encoded(clt, layer, args[0])
            changed = codes.clone()
            for latent, value in values.get((number, layer), {}).items():
                changed[..., latent] = value
            before[number, layer] = changed - codes
            for s in range(layer + 1):
                out = out + before[number, s] @ clt.W_dec[s][:, layer - s]
        return out

    def clamped(module, args, out):
        x = out[0] if isinstance(out, tuple) else out
        f = (x @ sae.W_enc + sae.b_enc).relu()[..., 2:3]
        x = x + (1.0 - f) * sae.W_dec[2]
        return (x, *out[1:]) if isinstance(out, tuple) else x

    with ExitStack() as stack:
        for layer, block in enumerate(blocks(model.hf)):
            stack.callback(block.mlp.register_forward_hook(partial(hook, layer)).remove)
        stack.callback(blocks(model.hf)[1].register_forward_hook(clamped).remove)
        expected = model.hf(IDS).logits
    close(model.run(IDS, edits=given).logits, expected)
    seen = model.run(IDS, edits=given, capture=[*first.latents, second.latents[2], sae.latents])
    close(seen.logits, expected)


def test_tokens_rows_and_generation():
    model, clt = model_of("llama"), transcoder()
    layer = clt.layers[0]
    late = model.run(IDS, edits=edits.clamp(layer, 7, 2.5).at(positions=-1, rows=1), capture=clt.latents)
    plain = model.run(IDS, capture=clt.latents)
    assert torch.equal(late.logits[0], plain.logits[0])
    assert torch.equal(late.logits[1, :-1], plain.logits[1, :-1])
    assert not torch.allclose(late.logits[1, -1], plain.logits[1, -1], atol=1e-3)
    usual, every = (model.run(IDS, edits=edits.clamp(layer, 7, 2.5, everywhere=some)) for some in (False, True))
    assert torch.equal(usual.logits[:, 0], plain.logits[:, 0])  # the first token is left out
    assert not torch.allclose(every.logits[:, 0], plain.logits[:, 0], atol=1e-3)
    with pytest.raises(EditDidNotFire, match="everywhere=True"):
        model.run(IDS, edits=edits.clamp(layer, 7, 2.5).at(positions=0))
    for given in ([edits.clamp(layer, 7, 2.5)], [*edits.splice_layers(clt), edits.clamp(layer, 7, 2.5)]):
        made = model.generate(IDS, edits=given, max_new_tokens=4, capture=clt.latents, stop_at_eos=False)
        again = model.run(made.ids, edits=given, capture=clt.latents)
        for place in clt.latents:
            close(made[place], again[place])
    rows = model.run(IDS, edits=edits.clamp(layer, [7, 3], [2.5, 1.0], everywhere=True)).logits
    one = model.run(IDS, edits=edits.clamp(layer, 3, 1.0, everywhere=True)).logits
    close(rows[1], one[1])
    parts = model.run(IDS, edits=edits.clamp(layer, [7, 3], [2.5, 1.0], everywhere=True), memory=150_000).logits
    close(parts, rows)


def test_a_later_layer_alone_reads_what_the_layers_before_it_read():
    model, clt = model_of("llama"), transcoder()
    spliced = model.run(IDS, edits=edits.splice(clt.layers[2], everywhere=True), capture=[*clt.sites, "mlp_raw.2"])
    close(spliced["mlp_raw.2"], clt({site: spliced[site] for site in clt.sites})[Site("mlp_raw", 2)])
    stream = model.run(IDS, capture="resid_pre.2")["resid_pre.2"]
    with pytest.raises(BadInput, match=r"mlp_input\.0, which it reads, is not computed before this place"):
        model.run(IDS, start=("resid_pre.2", stream), edits=edits.splice(clt.layers[2], everywhere=True))
    clamp = edits.clamp(clt.layers[2], 7, 2.5, everywhere=True)  # edits of its own latents ask nothing of the others
    close(model.run(IDS, start=("resid_pre.2", stream), edits=clamp).logits, model.run(IDS, edits=clamp).logits)


def test_arms_that_splice_a_later_layer_and_edit_an_earlier_one_run_alone():
    clt = transcoder()
    clamp = edits.clamp(clt.layers[0], 7, 2.5)
    assert needs_its_order([clamp, edits.splice(clt.layers[2])], 1)
    assert needs_its_order([clamp, edits.scale("mlp_raw.1", 0.5)], 1)
    assert not needs_its_order([clamp], 1)
    assert not needs_its_order([edits.clamp(clt.layers[2], 7, 2.5), edits.scale("mlp_raw.1", 0.5)], 1)
