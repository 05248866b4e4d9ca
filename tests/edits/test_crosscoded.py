"""Latents of crosscoders edited at all their sites, from the codes of a first pass. PyTorch's own hooks on the blocks
of the bare Hugging Face model are the oracle."""

from contextlib import ExitStack

import pytest
import torch

from monosem import edits
from monosem.dictionaries import Crosscoder
from monosem.dictionaries.several_parts import CrosscoderParts, Facts
from monosem.errors import BadInput, EditDidNotFire, UnknownName
from monosem.models import Model
from monosem.models.places.sites import Site
from tiny import model_of

IDS = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
SITES, D, WIDTH = 3, 32, 20
FAMILIES = ("llama", "gpt2", "gemma2")


def crosscoder(sites: bool = True) -> Crosscoder:
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (SITES, D, WIDTH), "b_enc": (WIDTH,), "W_dec": (WIDTH, SITES, D), "b_dec": (SITES, D)}
    tensors = {name: torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()}
    places = [Site("resid_post", layer) if sites else None for layer in range(SITES)]
    return Crosscoder(CrosscoderParts(facts=Facts("relu", places, places), **tensors))


def by_hand(model: Model, change=None, ids: torch.Tensor = IDS) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and the stream after each block, after `change(layer, x)`."""
    seen: list[torch.Tensor] = []

    def hook(module, args, out):
        x = out[0] if isinstance(out, tuple) else out
        new = x if change is None else change(len(seen), x)
        seen.append(new)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    inner = model.hf.base_model
    with ExitStack() as stack:
        for block in getattr(inner, "h", None) or inner.layers:
            stack.callback(block.register_forward_hook(hook).remove)
        return model.hf(ids).logits, seen


def code_of(cc: Crosscoder, streams: list[torch.Tensor]) -> torch.Tensor:
    return (sum(x @ W for x, W in zip(streams, cc.W_enc)) + cc.b_enc).relu()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_of_a_run_are_captured_and_decoded(family):
    model, cc = model_of(family), crosscoder()
    _, streams = by_hand(model)
    run = model.run(IDS, capture=cc.sites)
    close(cc.encode(run).dense(), code_of(cc, streams))
    made = cc.decode(cc.encode(run), like=run)
    for layer, site in enumerate(cc.sites):
        close(made[site], code_of(cc, streams) @ cc.W_dec[:, layer] + cc.b_dec[layer])
    with pytest.raises(UnknownName, match=r"resid_post\.2 was not captured"):
        cc.encode(model.run(IDS, capture=cc.sites[:2]))


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_latent_is_edited_at_every_site(family, hold):
    model, cc = model_of(family), crosscoder()
    _, streams = by_hand(model)
    f = code_of(cc, streams)[..., 7:8]
    run = model.run(IDS, capture=cc.sites)
    given = {
        "clamp": (edits.clamp_sites(cc, run, 7, 2.5, hold=hold, everywhere=True), 2.5 - f),
        "ablate": (edits.clamp_sites(cc, run, 7, 0.0, hold=hold, everywhere=True), -f),
        "scale": (edits.scale_sites(cc, run, 7, 3.0, hold=hold, everywhere=True), 2 * f),
        "by row": (
            edits.clamp_sites(cc, run, 7, [1.0, 2.0], hold=hold, everywhere=True),
            torch.tensor([1.0, 2.0])[:, None, None] - f,
        ),
    }
    for edit, by in given.values():
        expected, _ = by_hand(model, lambda layer, x, by=by: (streams[layer] if hold else x) + by * cc.W_dec[7, layer])
        close(model.run(IDS, edits=edit).logits, expected)
        assert not torch.allclose(expected, model.run(IDS).logits, atol=1e-3)
    as_it_is = [edits.scale_sites(cc, run, 7, 1.0, hold=hold, everywhere=True)]
    close(model.run(IDS, edits=as_it_is[0]).logits, model.run(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_is_replaced_by_what_the_code_says_of_it(family):
    model, cc = model_of(family), crosscoder()
    _, streams = by_hand(model)
    code = code_of(cc, streams)
    expected, _ = by_hand(model, lambda layer, x: code @ cc.W_dec[:, layer] + cc.b_dec[layer])
    run = model.run(IDS, capture=cc.sites)
    close(model.run(IDS, edits=edits.splice_sites(cc, run, everywhere=True)).logits, expected)
    usual = model.run(IDS, edits=edits.splice_sites(cc, run), capture="resid_post.0")["resid_post.0"]
    assert torch.equal(usual[:, 0], streams[0][:, 0])  # the first token is left out
    assert not torch.allclose(usual[:, 1:], streams[0][:, 1:], atol=1e-3)


def test_what_a_latent_writes_is_added_in_one_pass():
    model, cc = model_of("llama"), crosscoder()
    given = [edits.add((site, row), 1.5) for site, row in zip(cc.sites, cc.rows(7)[0])]
    expected, _ = by_hand(model, lambda layer, x: x + 1.5 * cc.W_dec[7, layer])
    close(model.run(IDS, edits=given).logits, expected)


def test_values_follow_their_tokens():
    model, cc = model_of("llama"), crosscoder()
    rows = [[10, 11, 12, 13, 14], [20, 21, 22]]
    run = model.run(rows, capture=cc.sites)
    given = edits.clamp_sites(cc, run, 7, 2.5)
    both = model.run(rows, edits=given)
    alone = model.run(rows[1:], capture=cc.sites)
    close(both.logits[1, :3], model.run(rows[1:], edits=edits.clamp_sites(cc, alone, 7, 2.5)).logits[0])
    made = model.generate(rows, edits=[edit.at(scope="prompt") for edit in given], max_new_tokens=2)
    assert made.new[0][0] == int(both.logits[0, 4].argmax())
    last = model.run(rows, edits=[edit.at(positions="last") for edit in given])
    assert torch.equal(last.logits[0, :4], model.run(rows).logits[0, :4])
    assert not torch.allclose(last.logits[0, 4], model.run(rows).logits[0, 4], atol=1e-3)


def test_what_cannot_be_is_refused_in_one_line():
    model, cc = model_of("llama"), crosscoder()
    run = model.run(IDS, capture=cc.sites)
    with pytest.raises(BadInput, match="`edits.clamp_sites` and its neighbours"):
        edits.clamp(cc, 7, 2.5)
    with pytest.raises(BadInput, match="`edits.clamp_sites` and its neighbours"):
        edits.splice(cc)
    with pytest.raises(BadInput, match="a crosscoder is needed, not a Linear"):
        edits.splice_sites(torch.nn.Linear(2, 2), run)
    with pytest.raises(BadInput, match="where .* reads is unknown"):  # of models, or of sites that no file names
        edits.splice_sites(crosscoder(sites=False), run)
    with pytest.raises(UnknownName, match="no latent 20"):
        edits.clamp_sites(cc, run, WIDTH, 1.0)
    with pytest.raises(BadInput, match="one latent is needed, not 2"):
        edits.clamp_sites(cc, run, [1, 2], 1.0)
    with pytest.raises(BadInput, match="3 amounts for a run of 2 rows"):
        edits.clamp_sites(cc, run, 1, [1.0, 2.0, 3.0])
    with pytest.raises(BadInput, match="has 2 along 'batch', not 1"):
        model.run(IDS[:1], edits=edits.clamp_sites(cc, run, 1, 1.0))
    with pytest.raises(EditDidNotFire, match="everywhere=True"):
        model.run(IDS, edits=[edit.at(positions=0) for edit in edits.clamp_sites(cc, run, 1, 1.0)])
