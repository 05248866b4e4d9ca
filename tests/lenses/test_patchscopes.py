"""Patchscopes against hand-made hooks on the native modules, one cell at a time."""

import html

import numpy as np
import pytest
import torch

from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.lenses.patchscopes.affine import Affine, AffineHeader
from monosem.lenses.patchscopes.patchscope import patchscope
from monosem.lenses.patchscopes.target import ENTITY_DESCRIPTION, TOKEN_IDENTITY, TargetPrompt
from tiny import FAMILIES

SOURCE = [5, 17, 33, 60, 21]
TARGET = [9, 40, 12, 77, 30, 51]


def native_states(model, ids):
    """Stream after each block: the blocks' own outputs, by hooks of our own."""
    kept = []
    unwrapped = lambda out: out if isinstance(out, torch.Tensor) else out[0]  # noqa: E731
    handles = [block.register_forward_hook(lambda m, a, out: kept.append(unwrapped(out))) for block in model.blocks]
    with torch.no_grad():
        model.hf(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [state[0] for state in kept]


def native_logits(model, ids, layer, position, value):
    """Logits of a full pass in which the output of one block is overwritten at one position."""

    def overwrite(module, args, out):
        new = (out if isinstance(out, torch.Tensor) else out[0]).clone()
        new[:, position] = value
        return new if isinstance(out, torch.Tensor) else (new, *out[1:])

    handle = model.blocks[layer].register_forward_hook(overwrite)
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0]
    handle.remove()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_one_full_pass_with_a_hook(family, tiny_model):
    model = tiny_model(family)
    seen = patchscope(model, SOURCE, TargetPrompt(TARGET, position=2), top=100, batch_size=4, quiet=True)
    states = native_states(model, SOURCE)
    assert seen.top_ids.shape == (3, 1, 5, 100)
    for layer in range(3):
        for position in range(5):
            p = native_logits(model, TARGET, layer, 2, states[layer][position])[-1].softmax(-1)
            mine = torch.zeros(100).scatter(
                0, seen.top_ids[layer, 0, position], seen.top_probabilities[layer, 0, position]
            )
            torch.testing.assert_close(mine, p, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_into_the_same_prompt_at_the_last_layer_it_is_the_logit_lens(family, tiny_model):
    model = tiny_model(family)
    same = TargetPrompt(SOURCE, position="same", read="same", layer=-1)
    seen = patchscope(model, SOURCE, same, answer="token", quiet=True)
    for layer, h in enumerate(native_states(model, SOURCE)):
        log_p = native_logits(model, SOURCE, 2, slice(None), h).log_softmax(-1)  # as if it were the last state
        own = log_p[range(5), SOURCE]
        torch.testing.assert_close(seen.log_probability[layer, 0], own, rtol=1e-4, atol=1e-4)
        assert seen.rank[layer, 0].tolist() == ((log_p > own[:, None]).sum(-1) + 1).tolist()


def test_putting_back_what_was_there_changes_nothing(tiny_model):
    model = tiny_model("gemma2")
    seen = patchscope(model, SOURCE, TargetPrompt(SOURCE, position="same", match_norm=True), top=100, quiet=True)
    p = model.hf(torch.tensor([SOURCE])).logits[0, -1].softmax(-1).sort(descending=True).values
    torch.testing.assert_close(seen.top_probabilities, p.expand(3, 1, 5, 100), rtol=1e-4, atol=1e-6)
    assert (seen.top_ids[..., 0] == int(model.hf(torch.tensor([SOURCE])).logits[0, -1].argmax())).all()


def test_resid_pre_of_layer_0_is_the_embedding(tiny_model):
    """Overwriting the embedding of a token is the prompt with the other token."""
    model = tiny_model("llama")
    seen = patchscope(model, SOURCE, TargetPrompt(TARGET, 1), layers=0, site="resid_pre", top=1, quiet=True)
    for position, token in enumerate(SOURCE):
        swapped = [TARGET[0], token, *TARGET[2:]]
        p = model.hf(torch.tensor([swapped])).logits[0, -1].softmax(-1)
        assert float(seen.top_probabilities[0, 0, position, 0]) == pytest.approx(float(p.max()), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_generation_is_a_manual_loop_without_a_cache(family, tiny_model):
    model = tiny_model(family)
    seen = patchscope(
        model, SOURCE, TargetPrompt(TARGET, 3), layers=[0, 2], positions=[1, -1], max_new_tokens=6, quiet=True
    )
    states = native_states(model, SOURCE)
    for i, layer in enumerate((0, 2)):
        for j, position in enumerate((1, 4)):
            ids = list(TARGET)
            for _ in range(6):
                ids.append(int(native_logits(model, ids, layer, 3, states[layer][position])[-1].argmax()))
                if ids[-1] in model.end_ids:
                    break
            assert model.text(TARGET) + seen.texts[i][0][j] == model.text(ids)


def test_into_another_model_of_another_width(tiny_model):
    small, wide = tiny_model("llama"), tiny_model("gpt_neox", seed=3, hidden_size=48)
    draw = torch.Generator().manual_seed(1)
    header = AffineHeader("", 32, None, d_target=48, ridge=0.0, tokens=0)
    part = lambda *shape: torch.randn(shape, generator=draw)  # noqa: E731
    maps = {i: Affine(header, part(32, 48) / 6, part(48)) for i in range(3)}
    seen = patchscope(small, SOURCE, TargetPrompt(TARGET, 2, layer=1, model=wide, mapping=maps), top=100, quiet=True)
    for layer, h in enumerate(native_states(small, SOURCE)):
        for position in range(5):
            value = h[position] @ maps[layer].weight + maps[layer].bias
            p = native_logits(wide, TARGET, 1, 2, value)[-1].softmax(-1).sort(descending=True).values
            torch.testing.assert_close(seen.top_probabilities[layer, 0, position], p, rtol=1e-4, atol=1e-6)
    with pytest.raises(Mismatch, match=r"width 32 does not fit a stream of width 48; give mapping="):
        patchscope(small, SOURCE, TargetPrompt(TARGET, model=wide), quiet=True)
    with pytest.raises(Mismatch, match="returned"):
        patchscope(small, SOURCE, TargetPrompt(TARGET, model=wide, mapping=lambda h: h), quiet=True)
    with pytest.raises(BadInput, match="no map for layer 2"):
        patchscope(small, SOURCE, TargetPrompt(TARGET, model=wide, mapping={0: maps[0], 1: maps[1]}), quiet=True)


def test_norm_matching_keeps_the_direction_and_takes_the_norm(tiny_model):
    model = tiny_model("llama")
    target = TargetPrompt(TARGET, 2, mapping=lambda h: 7 * h, match_norm=True)
    seen = patchscope(model, SOURCE, target, layers=1, top=100, quiet=True)
    there, source = native_states(model, TARGET)[1][2], native_states(model, SOURCE)[1]
    for position in range(5):
        value = source[position] / source[position].norm() * there.norm()
        p = native_logits(model, TARGET, 1, 2, value)[-1].softmax(-1).sort(descending=True).values
        torch.testing.assert_close(seen.top_probabilities[0, 0, position], p, rtol=1e-4, atol=1e-6)


def test_many_prompts_padding_and_precision(tiny_model):
    """Prompts of different lengths read as they do alone; precision@1 at the last layer of the last token is 1."""
    model = tiny_model("gpt2")
    prompts = [SOURCE, TARGET, [8, 3]]
    target = TargetPrompt([4, 11, 50])
    together = patchscope(model, prompts, target, positions=[0, -1], answer="final", quiet=True)
    for number, prompt in enumerate(prompts):
        alone = patchscope(model, prompt, target, positions=[0, -1], answer="final", quiet=True)
        torch.testing.assert_close(
            together.log_probability[:, number], alone.log_probability[:, 0], rtol=1e-4, atol=1e-4
        )
        assert together.positions[number].tolist() == [0, len(prompt) - 1]
    assert together.precision[2] == 1.0  # overwritten after the last block: the source's own prediction
    by_hand = [(together.rank[layer] == 1).double().mean() for layer in range(3)]
    assert together.precision.tolist() == [float(share) for share in by_hand]
    table = together.table
    assert len(table) == 3 * 3 * 2
    row = table[(table.row == 1) & (table.layer == 2) & (table.position == 5)].iloc[0]
    assert row["token"] == model.str_token(51)
    assert row["prediction"] == row["answer"]
    assert row["log_probability"] == pytest.approx(float(together.log_probability[2, 1, 1]))


def test_the_figure_and_the_files(tiny_model, tmp_path):
    model = tiny_model("llama")
    seen = patchscope(model, "the cat sat", "one two three", answer=" dog", max_new_tokens=2, quiet=True)
    figure = seen.plot()
    assert np.asarray(figure.data[0].z).shape == (3, 3)
    assert html.unescape(figure.data[0].text[0][0]) == model.str_token(int(seen.top_ids[0, 0, 0, 0]))
    assert seen.texts[0][0][0] in html.unescape(figure.data[0].customdata[0][0])
    assert seen.save(tmp_path / "seen.csv").read_text().startswith("site,layer,row,position")
    assert "two three" in repr(seen)


def test_an_affine_fit_is_least_squares():
    draw = torch.Generator().manual_seed(0)
    x, noise = torch.randn(200, 6, generator=draw), 0.1 * torch.randn(200, 4, generator=draw)
    y = x @ torch.randn(6, 4, generator=draw) + torch.tensor([1.0, -2, 3, 4]) + noise
    both = np.linalg.lstsq(np.hstack([x, np.ones((200, 1))]), y.numpy(), rcond=None)[0]
    fit = Affine.of_rows(x, y, ridge=0)
    np.testing.assert_allclose(fit.weight, both[:6], atol=1e-5)
    np.testing.assert_allclose(fit.bias, both[6], atol=1e-5)
    assert Affine.of_rows(x, y, ridge=10).weight.norm() < fit.weight.norm()
    with pytest.raises(BadInput, match="2 or more pairs"):
        Affine.of_rows(x[:1], y[:1])


def test_a_fitted_map_between_a_model_and_itself_is_the_identity(tiny_model, tmp_path):
    model = tiny_model("llama")
    ids = torch.randint(3, 100, (8, 20), generator=torch.Generator().manual_seed(2))
    fit = Affine.fit(model, ids, model, layer=1, target_layer=1, ridge=0)
    torch.testing.assert_close(fit.weight, torch.eye(32), rtol=0, atol=1e-3)
    back = Affine.load(fit.save(tmp_path / "map"))
    assert back.header == fit.header
    assert torch.equal(back.weight, fit.weight)


def test_what_is_refused(tiny_model):
    model = tiny_model("llama")
    for keywords, message in [
        ({"positions": 5}, "prompt 0 has 5 tokens"),
        ({"layers": [3]}, "layers 0 to 2"),
        ({"target": TargetPrompt(TARGET, layer=3)}, "layers 0 to 2"),
        ({"site": "mlp_out"}, "resid_post"),
        ({"answer": "cat dog"}, "cat"),
        ({"answer": [3, 4]}, "2 answers for 1 prompts"),
        ({"top": 0}, "at least 1"),
        ({"target": TargetPrompt(TARGET, 6)}, "there is no token 6"),
        ({"target": TargetPrompt([1, 2], "same")}, "does not exist in the target"),
        ({"target": TargetPrompt([[1, 2], [3, 4]])}, "the target is one prompt"),
    ]:
        with pytest.raises((BadInput, UnknownName), match=message):
            patchscope(model, SOURCE, **({"target": TARGET, "quiet": True} | keywords))
    with pytest.raises(BadInput, match="no answer"):
        _ = patchscope(model, SOURCE, TARGET, quiet=True).precision


@pytest.mark.smollm2
def test_smollm2_reads_its_own_prediction_from_late_layers(smollm2):
    """The identity prompt decodes what the model is about to say: hardly at all early, mostly at the end."""
    assert smollm2.str_token(smollm2.tokens(TOKEN_IDENTITY.text).ids[0, -1].item()).strip() == "?"
    assert smollm2.str_token(smollm2.tokens(ENTITY_DESCRIPTION.text).ids[0, -1].item()).strip() == "x"
    prompts = ["The capital of France is", "One, two, three,", "The opposite of hot is", "My favourite colour is"]
    seen = patchscope(smollm2, prompts, layers=[0, 14, 29], answer="final", quiet=True)
    assert seen.precision[29] == 1.0
    assert seen.precision[0] == 0.0
