"""The second embedded model, Gemma 3 270M: its tokenizer against SentencePiece's algorithm, its weights against gguf's
own dequantisation, its sites, and what it predicts."""

import hashlib
import random
import re
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy

from monosem.models import Model
from monosem.models.checking.verify import verify
from monosem.models.loading import embedded
from monosem.models.loading.catalogue import GEMMA3_270M

pytestmark = pytest.mark.gemma3

# ids by SentencePiece 0.2.3, its model built from the vocabulary, scores and types in the GGUF file (byte fallback,
# identity normalisation, no dummy prefix); on 10,498 further texts it gave what our tokenizer gives, and decoded alike
SENTENCEPIECE = [
    ("The capital of France is", [818, 5279, 529, 7001, 563]),
    (" leading and  two spaces", [5830, 532, 138, 13498, 9952]),
    (
        "1234567890 3.14",
        [236770, 236778, 236800, 236812, 236810, 236825, 236832, 236828, 236819, 236771, 236743]
        + [236800, 236761, 236770, 236812],
    ),
    (
        "def f(x):\n    return x\n\n\n\t\ty",
        [2063, 517, 236769, 236781, 1473, 107, 140, 2060, 1123, 109, 255969, 236762],
    ),
    (
        "naïve \u00a0 déjà 漢字 😀🏴\U000e0067 \u0378\x00",
        [1789, 238527, 560, 236743, 432, 398, 29234, 236743, 201637, 163543, 247292, 247968, 236743, 443, 422, 238],
    ),
    ("x" + " " * 40 + "y" + "\n" * 40, [236781, 167, 145, 236762, 137, 115]),
    (
        "don't <table> <0x41> <bos",
        [13246, 236789, 236745, 236743, 168, 655, 236771, 236781, 236812, 236770, 236813, 655, 46757],
    ),
    ("haha" * 5 + "=" * 21, [89009, 168508, 168508, 168508, 118653, 6977, 114302]),
    ("a\r\nb\u200b\u200b▁▁ ", [236746, 251, 107, 236763, 11549, 139]),
    ("", []),
]

# sha256 of float32 tensors of layer 0 as gguf 0.19's `dequantize` gives them, for each kind of quantisation in the file
DEQUANTISED = {
    "embed": "b64cef22e54523bdf6847fc4a6405452d6b3db7235749c695664ecf7523f32b5",  # Q8_0, the last 1000
    "self_attn.k_proj": "e9148680cf79c2265aa182d501323da97bf5f038a92e860172e2f071e5f1ae24",  # Q5_0
    "self_attn.o_proj": "84421b360695121d4fa8c5b47aa4b9729eb814b9608b4856a3af07a1736cf47f",  # Q4_K
    "self_attn.v_proj": "7f2d145de2fbde18074eb84ca7f5b6d2c44308ed933e8f8520a0bbb4c663d11e",  # Q8_0
    "mlp.down_proj": "b718ca6bf05ad89435100bb9da1f6a6300a627c3396bc3bdb91809ca7dcdb4d8",  # Q6_K
}


@pytest.mark.parametrize(("text", "ids"), SENTENCEPIECE)
def test_tokens_are_those_of_sentencepiece(gemma3: Model, text: str, ids: list[int]) -> None:
    tokenizer = gemma3.tokenizer
    assert tokenizer(text)["input_ids"] == [2, *ids]
    assert tokenizer.decode(ids) == text.replace("▁", " ")  # SentencePiece cannot tell them apart either


def test_tokens_are_those_of_plain_merging(gemma3: Model) -> None:
    """Join the neighbours whose joined token has the smallest id, again and again, and leave runs whole."""
    vocab = gemma3.tokenizer.get_vocab()
    draw = random.Random(0)
    words = ["hello", "World", "12", "3.5", "é", "(x)", "\n\n", "   ", "don't", "e", "漢字", "—", "the", "=="]
    for _ in range(200):
        text = draw.choice(["", " "]).join(draw.choice(words) for _ in range(draw.randint(1, 6)))
        assert gemma3.tokenizer(text, add_special_tokens=False)["input_ids"] == merged(text, vocab), text


def merged(text: str, vocab: dict[str, int]) -> list[int]:
    ids: list[int] = []
    for segment in re.split("(▁{2,31}|\n{1,31})", text.replace(" ", "▁")):
        if not segment.strip("\n") or (len(segment) > 1 and not segment.strip("▁")):
            ids += [vocab[segment]] if segment else []
            continue
        pieces = list(segment)
        while pairs := [
            (vocab[left + right], i) for i, (left, right) in enumerate(pairwise(pieces)) if left + right in vocab
        ]:
            _, i = min(pairs)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        ids += [vocab[piece] for piece in pieces]
    return ids


def test_weights_are_those_of_the_file(gemma3: Model) -> None:
    state = gemma3.hf.state_dict()
    for name, sha256 in DEQUANTISED.items():
        embedding = state["model.embed_tokens.weight"][-1000:]
        values = embedding if name == "embed" else state[f"model.layers.0.{name}.weight"]
        assert hashlib.sha256(values.contiguous().numpy()).hexdigest() == sha256, name
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    gain = 1 + state["model.norm.weight"]  # the file stores 1 + w, transformers w
    assert gain[:4].tolist() == [7.125, 9.5625, 47.0, 145.0]
    assert (1 + state["model.layers.3.self_attn.q_norm.weight"]).sum().item() == pytest.approx(390.93243408203125)


def test_terms_are_kept_beside_the_model(gemma3: Model) -> None:
    folder = embedded.embedded_folder(GEMMA3_270M)
    assert "Gemma Terms of Use" in (folder / "GEMMA_TERMS.html").read_text()


def test_identities_hold(gemma3: Model) -> None:
    found = verify(gemma3, length=5).table
    assert found.ok.all(), found[~found.ok].to_string()


def test_predictions_are_sensible(gemma3: Model) -> None:
    for text, word in [
        ("The capital of France is the city of", " Paris"),
        ("When John and Mary went to the store, John gave a drink to", " Mary"),
        ("def add(a, b):\n    return a +", " b"),
    ]:
        logits = gemma3.run(text, capture=[]).logits[0, -1]
        assert gemma3.tokenizer.decode(logits.argmax().item()) == word
    text = (
        "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named after the "
        "engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889."
    )
    run = gemma3.run(text, capture=[])
    ids = torch.tensor(gemma3.tokenizer(text)["input_ids"])
    assert cross_entropy(run.logits[0, :-1], ids[1:]).item() == pytest.approx(1.8622, abs=0.005)  # nats a token
