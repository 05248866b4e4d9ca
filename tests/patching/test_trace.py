"""Causal tracing against the same by hand: whole runs, one write a layer, noise read off the corruption's runs."""

from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from monosem import edits, patching
from monosem.data import TokenPairs, token_at, tokens_at
from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from monosem.patching import sweep, trace
from monosem.patching.corruptions import embedding_sd
from tiny import tiny_hf, tiny_model

ROWS = [[7, 21, 33, 40, 52, 18], [9, 30, 31, 44, 45, 20]]
ANSWER = 11


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_model(request.param, name="tiny")


def noised_runs(model: Model, row: int, at: list[int], **how: Any) -> list[Any]:
    """The edits that noise a prompt, one a draw, as the public corruption makes them."""
    pairs = TokenPairs.of(model, ROWS, ROWS)  # type: ignore[arg-type]
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, at] = True
    return [side.edits for side in patching.noise(**how, positions=mask).sides(model, pairs, [])(row)]


def restored(model: Model, row: int, noise: Any, site: str, layers: range, position: int) -> float:
    """The answer's probability with the clean values of some layers at one token of a noised run."""
    clean = model.run([ROWS[row]], capture=[(site, layer) for layer in layers])
    written = [edits.patch((site, layer), clean[site, layer]).at(positions=position) for layer in layers]
    logits = model.run([ROWS[row]], edits=[*noise, *written]).logits
    assert logits is not None
    return float(logits[0, -1].softmax(-1)[ANSWER])


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_windows_are_restored_as_by_hand(model: Model, site: str, window: int) -> None:
    how = {"sd": 2.0, "samples": 2, "seed": 3, "of": "noised"}
    found = trace(model, ROWS, slice(1, 3), [ANSWER] * 2, sites=site, window=window, quiet=True, **how)
    assert (found.method, found.direction, found.window) == ("growing", "denoising", window)
    assert len(found.cells) == model.cfg.n_layers * 6
    for row in range(2):
        noises = noised_runs(model, row, [1, 2], **how)
        corrupted = [model.run([ROWS[row]], edits=noise).logits[0, -1].softmax(-1)[ANSWER] for noise in noises]
        assert float(found.corrupted["probability"][row]) == pytest.approx(float(sum(corrupted)) / 2, abs=1e-6)
        for i in (1, 2, 5, 8, len(found.cells) - 4):
            cell = found.cells[i]
            first = max(0, cell.layer - window // 2)
            layers = range(first, min(model.cfg.n_layers, cell.layer + (window + 1) // 2))
            hand = sum(restored(model, row, noise, site, layers, cell.position) for noise in noises) / 2  # type: ignore[arg-type]
            assert float(found.values["probability"][i, row]) == pytest.approx(hand, abs=1e-6), (cell, row)
    assert found.effect_se().isfinite().all()
    assert repr(found).startswith("Trace(denoising of")
    assert len(repr(found)) < 200


def test_one_layer_at_a_time_is_the_sweep_against_noise(model: Model) -> None:
    pairs = TokenPairs.of(model, ROWS, ROWS, [ANSWER] * 2)  # type: ignore[arg-type]
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1], mask[1, 2:4] = True, True
    noise = patching.noise(positions=mask, of="noised", samples=3)
    swept = sweep(model, pairs, "resid_post", corruption=noise, metric="probability", quiet=True)
    found = trace(model, pairs, [slice(1, 2), range(2, 4)], samples=3, quiet=True)
    torch.testing.assert_close(found.values["probability"], swept.values["probability"], rtol=1e-5, atol=1e-7)
    assert torch.equal(found.subject, mask)


def test_the_scale_of_the_noise(model: Model) -> None:
    """Of the noised tokens, of all tokens, of the vocabulary, or a number: each by its own direct formula."""
    pairs = TokenPairs.of(model, ROWS, ROWS)  # type: ignore[arg-type]
    clean = model.run(ROWS, capture="embed")["embed"]
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1:3], mask[1, 4] = True, True
    expected = {
        "noised": torch.cat([clean[0, 1:3], clean[1, 4:5]]).std(), "prompts": clean.std(),
        "vocabulary": model.run([[token] for token in range(model.cfg.d_vocab)], capture="embed")["embed"].std(),
        0.25: torch.tensor(0.25),
    }  # fmt: skip
    for of, scale in expected.items():
        sides = patching.noise(sd=2, samples=150, positions=mask, of=of).sides(model, pairs, [])(0)  # type: ignore[arg-type]
        runs = [model.run(side.tokens, capture="embed", edits=side.edits, logits=False)["embed"][0] for side in sides]
        noise = torch.stack(runs) - clean[0]
        assert (noise[:, [0, 3, 4, 5]] == 0).all()
        assert float(noise[:, 1:3].std()) == pytest.approx(2 * float(scale), rel=0.03)
    assert embedding_sd(model, pairs.clean) == pytest.approx(float(clean.std()), rel=1e-5)


def test_the_subject_is_found_in_the_text_and_the_answer_is_the_models_own() -> None:
    model = tiny_model("llama", name="tiny")
    texts = ["the cat sat on the mat", "a dog saw the cat sat"]
    found = trace(model, texts, ["cat sat", "dog"], samples=2, quiet=True)
    ids = model.tokens(texts).rows()
    spelled = [
        [model.str_token(ids[n][at]) for at in mask.nonzero()[:, 0].tolist()] for n, mask in enumerate(found.subject)
    ]
    assert ["".join(one).strip() for one in spelled] == ["cat sat", "dog"]
    top = model.run(texts, logits="last").logits.argmax(-1).tolist()
    assert list(found.answers) == [model.str_token(token) for token in top]
    assert all(value > 1 / model.cfg.d_vocab for value in found.clean["probability"])
    assert "restored" in found.plot().layout.title.text
    for right in (" dog", [" dog"], top[0]):
        alone = trace(model, texts[0], "cat sat", right, samples=1, layers=0, quiet=True)
        assert list(alone.answers) == [" dog" if right != top[0] else model.str_token(top[0])]
    with pytest.raises(BadInput, match="stands 0 times in prompt 0"):
        trace(model, texts, "bird", quiet=True)
    with pytest.raises(BadInput, match="stands 2 times"):
        trace(model, "the cat sat on the mat", "the", quiet=True)


def test_prompts_of_several_lengths_are_traced_at_named_tokens(model: Model) -> None:
    rows = [[7, 21, 33, 40], [9, 30, 31, 44, 45, 20]]
    found = trace(model, rows, [slice(0, 2), slice(1, 4)], [ANSWER] * 2, layers=[1], samples=2, quiet=True)
    assert [cell.position for cell in found.cells] == ["subject_first", "subject_last", "after_subject", "end"]
    alone = trace(model, rows[:1], slice(0, 2), [ANSWER], layers=[1], samples=2, quiet=True)
    assert len(alone.cells) == 4


def test_what_cannot_be_traced_is_refused(model: Model) -> None:
    answers = [ANSWER] * 2
    for subject, more, message in (
        (slice(6, 8), {}, "6 tokens"),
        ([slice(1, 2)], {}, "1 subjects for 2 prompts"),
        (slice(1, 2), {"window": 0}, "window"),
        (slice(1, 2), {"of": 0.0}, "of= is .* or a number above 0"),
    ):
        with pytest.raises(BadInput, match=message):
            trace(model, ROWS, subject, answers, quiet=True, **more)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="scale of noise"):
        trace(model, ROWS, slice(1, 2), answers, of="subjects", quiet=True)  # type: ignore[typeddict-item]
    pairs = TokenPairs.of(model, ROWS, ROWS, answers)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="leave right= out"):
        trace(model, pairs, slice(1, 2), answers, quiet=True)
    with pytest.raises(BadInput, match="mask of positions is"):
        sweep(model, pairs, corruption=patching.noise(positions=torch.ones(2, 3, dtype=torch.bool)), quiet=True)


def test_all_tokens_of_a_character_are_noised_and_counted() -> None:
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    words = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    words.pre_tokenizer, words.decoder = ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    bytewise = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    model = Model(tiny_hf("llama", vocab_size=256), bytewise, name="bytes")
    text = "a 東京 b"
    first, last = len(b"a "), len("a 東京".encode()) - 1
    found = trace(model, text, "東京", layers=[0], samples=1, quiet=True)
    assert found.subject[0].nonzero().flatten().tolist() == list(range(first, last + 1))
    assert token_at(model, text, text.index("京")) == last
    assert tokens_at(model, text, 0, 2) == [0, 1]
