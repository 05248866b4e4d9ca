"""Write what eai-delphi's scorers of texts and of tokens write of a latent, for tests that run without it.

pip install --no-deps --target .venv-peers/delphi eai-delphi==0.1.3 orjson simple-parsing docstring-parser
PYTHONPATH=src:tests:.venv-peers/delphi .venv/bin/python peers/delphi_scores_golden.py
"""

import asyncio
import random
import sys
import typing
from pathlib import Path
from unittest.mock import MagicMock

UNUSED = "faiss sentence_transformers sparsify datasets asyncer blobfile beartype tiktoken"
for unused in (*UNUSED.split(), "delphi.clients", "delphi.clients.client"):
    sys.modules[unused] = MagicMock(__spec__=None)  # imported at the top, not used here
sys.modules["beartype.typing"] = typing

import orjson  # noqa: E402
import torch  # noqa: E402
from delphi.latents.latents import ActivatingExample, Latent, LatentRecord, NonActivatingExample  # noqa: E402
from delphi.scorers import EmbeddingScorer, SurprisalScorer  # noqa: E402
from delphi.scorers.simulator.simulation.data_models import ActivationRecord  # noqa: E402
from delphi.scorers.simulator.simulation.scoring import simulate_and_score  # noqa: E402

from tiny_latents import MODEL, WORDS  # noqa: E402

FOLDER = Path(__file__).parents[1] / "tests" / "latents" / "golden" / "delphi_scores"
LENGTH, EACH = 6, 5  # ten texts are one batch of the surprisal scorer, which fails where the last is shorter


def example(number: int, fires: bool) -> ActivatingExample | NonActivatingExample:
    """Words in an order of their own; where the latent fires, it does at the third."""
    words = random.Random(number).sample(WORDS, LENGTH)
    ids, acts = torch.tensor(MODEL.tokens(" ".join(words)).rows()[0][-LENGTH:]), torch.zeros(LENGTH)
    strings = [f"{word} " for word in words]
    if not fires:
        return NonActivatingExample(ids, acts, strings, distance=-1.0 if number % 2 else 0.25)
    acts[2] = 1.0 + number
    return ActivatingExample(ids, acts, acts / acts.max() * 10, strings, quantile=number)


class Embeddings:
    """Counts of letters, in place of a sentence encoder."""

    def encode(self, texts: str | list[str]) -> torch.Tensor:
        listed = [texts] if isinstance(texts, str) else texts
        return torch.tensor(
            [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in listed]
        ).float()

    def similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)


class Subject:
    """The tiny model as delphi calls one."""

    tokenizer, device = MODEL.tokenizer, "cpu"

    def __call__(self, **given: typing.Any) -> typing.Any:
        return MODEL.hf(**given)


class Guesses:
    """Predictions of activations in place of a judge's; of one text it fails, which delphi counts as zeros."""

    async def simulate(self, tokens: list[str]) -> list[float]:
        random.seed("".join(tokens))
        zeros = [0.0] * len(tokens)
        return (
            zeros
            if tokens[0] < "c"
            else [round(random.random() * 10, 1) if i in (2, 4) else 0.0 for i in range(LENGTH)]
        )


def main() -> None:
    random.seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    active = [example(number, True) for number in range(EACH)]
    others = [example(EACH + number, False) for number in range(EACH)]
    record = LatentRecord(Latent("layers.1", 2), active)
    record.test, record.not_active, record.extra_examples, record.explanation = active, others, others, "words of joy"
    sequences = [
        [ActivationRecord(e.str_tokens, e.activations.tolist(), getattr(e, "quantile", -1)) for e in some]
        for some in (active, others)
    ]
    found = {
        "embedding": asyncio.run(EmbeddingScorer(Embeddings())(record)).score,
        "surprisal": asyncio.run(SurprisalScorer(Subject(), False, 10)(record)).score,
        "simulation": asyncio.run(simulate_and_score(typing.cast(typing.Any, Guesses()), *sequences)),
    }
    for name, score in found.items():
        (FOLDER / f"{name}.txt").write_bytes(orjson.dumps(score))
        print(name, (FOLDER / f"{name}.txt").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
