"""What generation follows of transformers' settings, against `hf.generate`; what a folder asks for is said."""

import json

import pytest
import torch

from monosem import load_model
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, TokenBatch
from tiny import tiny_hf, tiny_model

ROWS = [[5, 9, 9, 14], [7, 3, 21, 21, 21, 40, 8], [30], [11, 12, 11, 12]]
STEPS = 14
END = {"sequence_bias": [[[1], 100.0]]}  # the end token, wherever it is allowed
SETTINGS = {  # a function makes the value from the plain continuations
    "repetition": {"repetition_penalty": 1.7},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": lambda plain: [[plain[0][0]], plain[1][1:3], plain[3][3:6]]},
    "bias": {"sequence_bias": [[[17], 4.0], [[17, 18], 30.0]]},
    "suppressed": {"suppress_tokens": list(range(40, 80)), "begin_suppress_tokens": list(range(3, 30))},
    "least new tokens": END | {"min_new_tokens": 5},
    "least length": END | {"min_length": 6},
    "forced": {"forced_bos_token_id": 6, "forced_eos_token_id": 1},
    "decay": {"exponential_decay_length_penalty": (3, 1.5)},
    "several": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [9], "min_new_tokens": 3},
}
COUNT_FROM_THE_EDGE = ("least length", "forced")  # transformers counts a batch's padding as well


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request) -> Model:
    return tiny_model(request.param)


def native(model: Model, batch: TokenBatch, **settings) -> list[list[int]]:
    """Hugging Face's own continuations, up to the end token."""
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": 1, "pad_token_id": 2}
    made = model.hf.generate(batch.ids, attention_mask=batch.mask.long(), **(options | settings))
    new = made[:, batch.ids.shape[1] :].tolist()
    return [row[: row.index(1) + 1] if 1 in row else row for row in new]


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_with_settings_equals_hugging_face_row_by_row(model, name):
    plain = model.generate(ROWS, max_new_tokens=STEPS).new
    settings = {key: value(plain) if callable(value) else value for key, value in SETTINGS[name].items()}
    made = model.generate(ROWS, sampling=settings, max_new_tokens=STEPS)
    assert made.new == [native(model, TokenBatch.of([row], 2), **settings)[0] for row in ROWS]
    assert made.new != plain
    if name not in COUNT_FROM_THE_EDGE:
        assert made.new == native(model, TokenBatch.of(ROWS, 2, "left"), **settings)


def test_draws_follow_the_processed_distribution():
    model = tiny_model("llama")
    settings = {"repetition_penalty": 1.5, "temperature": 0.7, "top_k": 12, "min_p": 0.02}
    many = model.generate([ROWS[1]] * 3000, sampling=settings, max_new_tokens=1, stop_at_eos=False)
    counts = torch.bincount(torch.tensor(many.new)[:, 0], minlength=100) / 3000
    logits = model.hf(torch.tensor([ROWS[1]])).logits[0, -1]
    seen = torch.tensor(sorted(set(ROWS[1])))
    logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.5, logits[seen] / 1.5)
    logits = logits / 0.7
    kept = logits >= logits.topk(12).values[-1]
    truth = logits.masked_fill(~kept, -torch.inf).softmax(-1)
    truth = torch.where(truth >= 0.02 * truth.max(), truth, 0)
    assert (counts - truth / truth.sum()).abs().max() < 0.03


def folder_of(tmp_path, **settings) -> str:
    hf = tiny_hf("llama")
    for name, value in settings.items():
        setattr(hf.generation_config, name, value)
    hf.save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_folders_settings_are_said_and_followed_when_asked(tmp_path, capsys):
    asked = {"repetition_penalty": 1.6, "suppress_tokens": [9], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    model = load_model(folder_of(tmp_path, **asked))
    said = capsys.readouterr().err
    assert "repetition_penalty=1.6" in said
    assert "temperature=0.6" in said
    assert "sampling='model'" in said
    batch = TokenBatch.of(ROWS, 2, "left")
    plain = model.generate(ROWS, max_new_tokens=STEPS)
    off = {"repetition_penalty": 1.0, "suppress_tokens": []}
    assert plain.new == native(model, batch, **off)
    greedy = model.generate(ROWS, sampling="model", temperature=0, max_new_tokens=STEPS)
    assert greedy.new == native(model, batch)
    assert greedy.new != plain.new
    drawn = [model.generate(ROWS, sampling="model", seed=seed, max_new_tokens=STEPS).new for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_plain_folder_says_nothing_of_sampling(tmp_path, capsys):
    folder = folder_of(tmp_path)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(config | {"temperature": 0.6, "top_p": 0.9}))
    load_model(folder)  # without do_sample, transformers ignores them as well
    assert "sampling" not in capsys.readouterr().err


def test_a_folder_that_draws_takes_transformers_default_top_k(tmp_path):
    model = load_model(folder_of(tmp_path, do_sample=True), quiet=True)
    made = model.generate([ROWS[1]] * 2000, sampling="model", max_new_tokens=1, stop_at_eos=False)
    logits = model.hf(torch.tensor([ROWS[1]])).logits[0, -1]
    assert {new[0] for new in made.new} <= set(logits.topk(50).indices.tolist())
    all_of_them = model.generate([ROWS[1]] * 2000, temperature=1.0, max_new_tokens=1, stop_at_eos=False)
    assert not {new[0] for new in all_of_them.new} <= set(logits.topk(50).indices.tolist())


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"num_beams": 4}, BadInput, "beam search"),
        ({"prompt_lookup_num_tokens": 3}, BadInput, "assisted"),
        ({"guidance_scale": 2.0}, BadInput, "guidance"),
        ({"repetition_penality": 1.2}, UnknownName, "repetition_penalty"),
        ({"repetition_penalty": -1.0}, BadInput, "a number above 0"),
        ({"suppress_tokens": [5], "bad_words_ids": [[500]]}, BadInput, "500"),
        ({"do_sample": True, "temperature": 0}, BadInput, "temperature=0"),
        ("modle", BadInput, "'model'"),
    ],
)
def test_what_is_not_followed_is_refused(model, settings, error, words):
    with pytest.raises(error, match=words):
        model.generate(ROWS, sampling=settings, max_new_tokens=2)


def test_a_folder_that_asks_for_beams_is_refused_only_when_it_is_followed(tmp_path, capsys):
    model = load_model(folder_of(tmp_path, num_beams=4))
    assert "num_beams=4" in capsys.readouterr().err
    assert model.generate(ROWS, max_new_tokens=2).new
    with pytest.raises(BadInput, match="beam search"):
        model.generate(ROWS, sampling="model", max_new_tokens=2)


# ---------------------------------------------------------------------- what is no setting
@pytest.mark.parametrize("bad", [0, -1, 2.5, "3", None, True, float("nan"), 10**9, 10**30])
def test_a_number_of_tokens_that_cannot_be_is_refused(bad):
    with pytest.raises(BadInput, match="max_new_tokens is a whole number|has a context of 64; ask for fewer"):
        tiny_model("llama").generate(ROWS, max_new_tokens=bad)


BAD_SETTINGS = {
    "temperature": ["x", float("nan"), float("inf"), -1, [1]],
    "top_k": [-1, 1.5, "a", True],
    "top_p": [-1, 1.5, "x", float("nan")],
    "min_p": [5],
    "do_sample": ["yes", 1],
    "repetition_penalty": ["x", 0, float("nan"), True],
    "no_repeat_ngram_size": [-1, 1.5],
    "min_length": ["5", -1],
    "suppress_tokens": ["a", [5000], [1.5], list(range(100))],
    "bad_words_ids": [5, [5], [[999]]],
    "forced_eos_token_id": ["x", 5000],
    "forced_bos_token_id": [5000],
    "exponential_decay_length_penalty": [5, (1,)],
    "sequence_bias": [{}, [1]],
}


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, values in BAD_SETTINGS.items() for bad in values])
def test_values_of_settings_that_cannot_be_are_refused(name, bad):
    draws = {} if name in ("temperature", "do_sample") else {"do_sample": True}
    with pytest.raises(BadInput) as caught:
        tiny_model("llama").generate(ROWS, sampling=draws | {name: bad}, max_new_tokens=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"seed": 1.5}, {"seed": None}, {"seed": 2**64}, {"temperature": "0.5"}])
def test_options_of_draws_that_cannot_be_are_refused(options):
    with pytest.raises(BadInput, match="seed is|temperature is"):
        tiny_model("llama").generate(ROWS, **({"temperature": 1.0} | options))
    with pytest.raises(BadInput, match="rows is a whole number"):
        tiny_model("llama").generate(rows=1.5)


def test_settings_of_draws_in_a_greedy_generation_are_not_passed_over():
    model = tiny_model("llama")
    for options in ({"top_k": 5}, {"top_p": 0.5}, {"sampling": {"min_p": 0.1}}):
        with pytest.raises(BadInput, match="shapes draws, and this generation is greedy: add temperature"):
            model.generate(ROWS, **options)
    with pytest.raises(BadInput, match="temperature shapes draws, and this generation is greedy: add do_sample=True"):
        model.generate(ROWS, sampling={"temperature": 0.5, "do_sample": False})
    greedy = model.generate(ROWS, max_new_tokens=3).new
    assert model.generate(ROWS, max_new_tokens=3, top_k=5, temperature=0.0).new == greedy
