"""Future lenses: the closed form against numpy, planted linear dynamics, transplants against hooks of our own."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.lenses.future.bigrams import Bigrams
from monosem.lenses.future.futures import Futures
from monosem.lenses.future.linear import FutureLens
from monosem.lenses.future.soft_prompt import SoftPrompt

DRAW = torch.Generator().manual_seed(7)
TEXTS = [torch.randint(3, 100, (length,), generator=DRAW).tolist() for length in (30, 24, 40, 17, 33, 28)]


def native_states(model, ids):
    """Stream after each block, `layer pos d`, by hooks of our own."""
    kept = []
    unwrapped = lambda out: out if isinstance(out, torch.Tensor) else out[0]  # noqa: E731
    handles = [block.register_forward_hook(lambda m, a, out: kept.append(unwrapped(out))) for block in model.blocks]
    with torch.no_grad():
        model.hf(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(kept)[:, 0]


# ---------------------------------------------------------------------- linear


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_the_maps_are_least_squares(family, tiny_model):
    model = tiny_model(family)
    lens = FutureLens.fit(model, TEXTS, offsets=(3, 1), ridge=0, batch_size=2, skip_first=2, quiet=True)
    assert lens.header.offsets == [1, 3]
    states = [native_states(model, ids).double().numpy() for ids in TEXTS]
    for layer in range(3):
        x = np.concatenate([s[layer, 2:-3] for s in states])
        assert len(x) == lens.header.tokens
        for i, offset in enumerate((1, 3)):
            y = np.concatenate([s[-1, 2 + offset : len(s[0]) - 3 + offset] for s in states])
            both, *_ = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), y, rcond=None)
            np.testing.assert_allclose(lens.weight[layer, i], both[:-1], atol=1e-3)
            np.testing.assert_allclose(lens.bias[layer, i], both[-1], atol=1e-3)


def test_the_ridge_is_in_units_of_each_coordinate(tiny_model):
    """Ridge on standardised coordinates, solved by stacking rows under the data."""
    model = tiny_model("llama")
    lens = FutureLens.fit(model, TEXTS, layers=1, offsets=[2], ridge=0.3, skip_first=0, quiet=True)
    states = [native_states(model, ids).double().numpy() for ids in TEXTS]
    x, y = np.concatenate([s[1, :-2] for s in states]), np.concatenate([s[-1, 2:] for s in states])
    x, y = x - x.mean(0), y - y.mean(0)
    penalty = np.diag(np.sqrt(0.3 * len(x)) * x.std(0))
    expected, *_ = np.linalg.lstsq(np.vstack([x, penalty]), np.vstack([y, np.zeros((32, 32))]), rcond=None)
    np.testing.assert_allclose(lens.weight[0, 0], expected, atol=1e-4)


class Delay(nn.Module):
    """A block whose output at t + 1 is a linear map of its input at t."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, h, *args, **kwargs):
        return torch.nn.functional.pad(h, (0, 0, 1, 0))[:, :-1] @ self.matrix


def test_planted_dynamics_are_found(tiny_model):
    model = tiny_model("llama")
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)) / 6
    model.blocks[2] = Delay(matrix)
    lens = FutureLens.fit(model, TEXTS, layers=[1], offsets=[1, 2], ridge=0, quiet=True)
    torch.testing.assert_close(lens.weight[0, 0], matrix, rtol=1e-2, atol=1e-3)
    table = lens.evaluate(model, TEXTS, quiet=True).table.set_index(["lens", "offset"])
    assert table.loc[("linear", 1), "agreement"] == 1.0
    assert table.loc[("linear", 1), "kl"] < 1e-4
    assert table.loc[("linear", 2), "kl"] > 100 * table.loc[("linear", 1), "kl"]


def test_scores_by_hand(tiny_model):
    """Every number of the table from logits made one token at a time."""
    model = tiny_model("gemma2")
    lens = FutureLens.fit(model, TEXTS, layers=[0, 2], offsets=[1, 2], ridge=0.1, skip_first=1, quiet=True)
    scores = lens.evaluate(model, TEXTS[:3], batch_size=2, quiet=True)
    for i, layer in enumerate((0, 2)):
        for j, offset in enumerate((1, 2)):
            hits, agree, surprise, loss, count = Counter(), 0, 0.0, 0.0, 0
            for ids in TEXTS[:3]:
                native = model.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
                states = native_states(model, ids)[layer]
                for t in range(1, len(ids) - 3):
                    predicted = model.unembed(states[t] @ lens.weight[i, j] + lens.bias[i, j]).log_softmax(-1)
                    truth, best = ids[t + offset + 1], int(predicted.argmax())
                    for k in (1, 5, 10):
                        hits[k] += truth in predicted.topk(k).indices.tolist()
                    agree += best == int(native[t + offset].argmax())
                    surprise -= float(native[t + offset, best])
                    loss -= float(predicted[truth])
                    count += 1
            row = scores.table.query("lens == 'linear' and layer == @layer and offset == @offset").iloc[0]
            assert row["tokens"] == count
            for k in (1, 5, 10):
                assert row[f"precision@{k}"] == pytest.approx(hits[k] / count)
                hit = np.repeat([1.0, 0.0], [hits[k], count - hits[k]])
                assert row[f"precision@{k}_se"] == pytest.approx(hit.std(ddof=1) / count**0.5, abs=1e-9)
            assert row["agreement"] == pytest.approx(agree / count)
            assert row["surprisal"] == pytest.approx(surprise / count, rel=1e-3)
            assert row["cross_entropy"] == pytest.approx(loss / count, rel=1e-3)
    figure = scores.plot("precision@5")
    assert np.asarray(figure.data[0].z).shape == (2, 2)
    with pytest.raises(UnknownName, match="no column"):
        scores.plot("accuracy")


def test_bigrams_are_counts():
    prompts = [[5, 6, 5, 6, 5, 7, 8], [5, 6, 9, 9, 9, 9, 9]]
    counted = Bigrams.count(prompts, [1, 2], vocab=12)
    after = Counter(b for row in prompts for a, b in pairwise(row) if a == 5)
    assert (
        counted.predict(torch.tensor([5]), 0)[0, :2].tolist() == [token for token, _ in after.most_common(2)] == [6, 7]
    )
    assert counted.predict(torch.tensor([5]), 1)[0, 0] == 5
    assert counted.predict(torch.tensor([9, 11]), 0)[:, 0].tolist() == [9, 9]  # 11 was never seen: the most frequent
    assert counted.predict(torch.tensor([8]), 0)[0, 0] == 9  # seen, followed by nothing


def test_a_reading_names_what_each_state_foretells(tiny_model, tmp_path):
    model = tiny_model("llama")
    lens = FutureLens.fit(model, TEXTS, offsets=(1, 2), quiet=True)
    seen = lens(model, ["the cat sat on", "a dog"], layers=[-1], top=3)
    assert seen.top_ids.shape == (1, 2, 2, 4, 3)
    ids = model.tokens("the cat sat on").ids[0].tolist()
    h = native_states(model, ids)[2]
    best = model.unembed(h[1] @ lens.weight[2, 1] + lens.bias[2, 1]).argmax()
    assert int(seen.top_ids[0, 1, 0, 1, 0]) == int(best)
    row = seen.table.query("row == 0 and offset == 2 and position == 0").iloc[0]
    assert (row["token"], row["text"]) == (" the", " on")
    assert seen.table.query("row == 1 and position == 1")["text"].isna().all()
    assert (seen.top_ids[0, :, 1, 2:] == -1).all()
    assert np.asarray(seen.plot(1).data[0].z).shape == (1, 2)
    assert seen.save(tmp_path / "seen.csv").read_text().startswith("site,layer,offset,row")
    with pytest.raises(UnknownName, match="no map was fitted for layers"):
        FutureLens.fit(model, TEXTS, layers=[0], quiet=True)(model, "a dog", layers=[0, 1])
    with pytest.raises(Mismatch, match="width 32"):
        lens(tiny_model("llama", hidden_size=48), "a dog")


def test_the_lens_is_saved_whole(tiny_model, tmp_path):
    model = tiny_model("llama")
    lens = FutureLens.fit(model, TEXTS, layers=[1], n=4, quiet=True)
    again = FutureLens.load(lens.save(tmp_path / "lens"))
    assert again.header == lens.header
    scores = [one.evaluate(model, TEXTS, quiet=True).table for one in (lens, again)]
    assert scores[0].equals(scores[1])
    with pytest.raises(BadFile, match="not a 'soft prompt' lens"):
        SoftPrompt.load(tmp_path / "lens")
    for keywords in ({"offsets": []}, {"offsets": [-1]}, {"ridge": -1}):
        with pytest.raises(BadInput, match="need offsets"):
            FutureLens.fit(model, TEXTS, quiet=True, **keywords)
    with pytest.raises(BadInput, match="prompt 3 has 17 tokens and needs more than 21"):
        FutureLens.fit(model, TEXTS, offsets=[20], quiet=True)


# ---------------------------------------------------------------------- soft prompt


def transplanted(model, embeddings, layer, h, ids):
    """Native logits of [embeddings, ids] with h written at the last of the embeddings."""

    def overwrite(module, args, out):
        new = (out if isinstance(out, torch.Tensor) else out[0]).clone()
        new[:, len(embeddings) - 1] = h
        return new if isinstance(out, torch.Tensor) else (new, *out[1:])

    def embed(module, args, out):
        return torch.cat([embeddings[None], out[:, len(embeddings) :]], 1)

    table = model.part(model.family.embed)
    handles = [model.blocks[layer].register_forward_hook(overwrite), table.register_forward_hook(embed)]
    with torch.no_grad():
        logits = model.hf(torch.tensor([[3] * len(embeddings) + ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_a_transplant_is_an_explicit_edit(family, tiny_model):
    model = tiny_model(family)
    prompt = SoftPrompt.of(model, 1, "one two three four", target_layer=0, offsets=(0, 2))
    wide = SoftPrompt(prompt.header, prompt.embeddings + 0.3)  # not the embeddings of any text
    source = TEXTS[0][:7]
    h = native_states(model, source)[1, 4]
    ids = []
    for _ in range(5):
        ids.append(int(transplanted(model, wide.embeddings, 0, h, ids)[-1].argmax()))
        if ids[-1] in model.end_ids:
            break
    assert wide.generate(model, [source], position=4, max_new_tokens=5) == [model.text(ids)]
    assert wide.generate(model, [source, TEXTS[1]], position=4, max_new_tokens=5)[0] == model.text(ids)


def test_its_scores_by_hand(tiny_model):
    model = tiny_model("llama")
    prompt = SoftPrompt.of(model, 1, "one two three four", offsets=(0, 2))
    texts = TEXTS[:2]
    row = prompt.evaluate(model, texts, per_text=5, batch_size=3, quiet=True).table.set_index("offset")
    futures = Futures.of(model, texts, 1, (0, 2), per_text=5)
    assert len(futures) == 10
    hits, loss = Counter(), Counter()
    for h, ids in zip(futures.h, futures.ids.tolist()):
        text = next(text for text in texts for t in range(len(text)) if text[t + 1 : t + 4] == ids)
        at = next(t for t in range(len(text)) if text[t + 1 : t + 4] == ids)
        torch.testing.assert_close(h, native_states(model, text)[1, at], rtol=1e-4, atol=1e-4)
        for offset in (0, 2):
            predicted = transplanted(model, prompt.embeddings, 1, h, ids[:offset])[-1].log_softmax(-1)
            hits[offset] += ids[offset] in predicted.topk(5).indices.tolist()
            loss[offset] -= float(predicted[ids[offset]])
    for offset in (0, 2):
        assert row.loc[offset, "precision@5"] == pytest.approx(hits[offset] / 10)
        assert row.loc[offset, "cross_entropy"] == pytest.approx(loss[offset] / 10, rel=1e-3)
    assert (row["lens"] == "fixed prompt").all()


def test_learning_beats_the_fixed_context_and_leaves_the_model_alone(tiny_model, tmp_path):
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.hf.named_parameters()}
    keywords = {"per_text": 12, "seed": 3, "quiet": True}
    more = [torch.randint(3, 100, (30,), generator=DRAW).tolist() for _ in range(40)]
    learned = SoftPrompt.fit(model, more, 1, text="one two three four", steps=60, lr=0.1, **keywords)
    fixed = SoftPrompt.of(model, 1, "one two three four")
    kl = lambda prompt, texts: prompt.evaluate(model, texts, **keywords).table["kl"].mean()  # noqa: E731
    assert kl(learned, more) < 0.9 * kl(fixed, more)
    assert kl(learned, TEXTS) < kl(fixed, TEXTS)  # texts it was not fitted on
    assert np.mean(learned.header.losses[-10:]) < 0.9 * np.mean(learned.header.losses[:10])
    assert all(torch.equal(value, before[name]) for name, value in model.hf.named_parameters())
    assert not any(value.requires_grad for value in model.hf.parameters())
    again = SoftPrompt.fit(model, more, 1, text="one two three four", steps=60, lr=0.1, **keywords)
    assert torch.equal(again.embeddings, learned.embeddings)
    loaded = SoftPrompt.load(learned.save(tmp_path / "prompt"))
    assert loaded.header == learned.header
    assert torch.equal(loaded.embeddings, learned.embeddings)
    assert len(learned.history) == 60


def test_what_a_soft_prompt_refuses(tiny_model):
    model = tiny_model("llama")
    prompt = SoftPrompt.of(model, 1, "one two")
    with pytest.raises(BadInput, match="prompt 1 has 3 tokens"):
        prompt.generate(model, [TEXTS[0], [5, 6, 7]], position=3)
    with pytest.raises(BadInput, match="offsets of 0 or more"):
        SoftPrompt.of(model, 1, "one two", offsets=[-1])
    with pytest.raises(BadInput, match="must be positive"):
        SoftPrompt.fit(model, TEXTS, 1, text="one two", steps=0, quiet=True)
    with pytest.raises(Mismatch, match="width 32"):
        prompt.generate(tiny_model("llama", hidden_size=48), TEXTS[0])
