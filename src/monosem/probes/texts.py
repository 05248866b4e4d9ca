"""Detectors of texts that see no model: by length, words or letters. Baselines, and judges of what is written."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput, check_name
from . import linear
from .rows import Rows

MOST = 2000  # the most frequent pieces, by the number of training texts that hold them
LONGEST = 3  # letters of a piece


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def letters(text: str) -> set[str]:
    """Every run of one to three letters, where any space is one space."""
    whole = f" {' '.join(text.lower().split())} "
    return {whole[i : i + n] for n in range(1, LONGEST + 1) for i in range(len(whole) - n + 1)}


PIECES: dict[str, Callable[[str], set[str]]] = {"words": words, "letters": letters}
Features = Callable[[Sequence[str]], Float[Tensor, "n features"]]


@dataclass(frozen=True, eq=False)
class TextDetector:
    """Logistic regression on which words ("words") or short runs of letters ("letters") a text holds.

    Attributes:
        features: of texts. parts: weights and bias, as of a linear probe of one place.
    """

    kind: str
    features: Features
    parts: dict[str, Tensor]

    @classmethod
    def fit(cls, train: Rows, validation: Rows, kind: str = "words") -> Self:
        """On the texts of the training rows; the strength is the one with the least validation log loss.

        Raises:
            UnknownName: no such kind. BadInput: rows without texts or of one class.
        """
        check_name("kind of text detector", kind, PIECES)
        if not (train.texts and validation.texts):
            raise BadInput("these rows have no texts, so that there is no baseline without a model: give texts=")
        features = _bag(kind, train.texts)
        return cls(kind, features, fitted_on(lambda rows: features(rows.texts), train, validation))

    def log_odds(self, texts: Sequence[str]) -> Float[Tensor, "n"]:
        """Above 0: rather of the positive class."""
        return linear.score(self.parts, self.features(texts)[None])[0]


def fitted_on(
    features: Callable[[Rows], Float[Tensor, "n features"]], train: Rows, validation: Rows
) -> dict[str, Tensor]:
    """Logistic regression on features of rows, at the strength that validation rows choose."""
    train.check_two_classes("a detector of texts")
    made = linear.logistic(features(train)[None], train.y, strengths=linear.STRENGTHS)
    held = Rows(features(validation)[None], validation.y)
    return dict(linear.chosen(made, lambda parts, x, mask: linear.score(dict(parts), x), held)[0])


def _bag(kind: str, texts: Sequence[str]) -> Features:
    pieces = PIECES[kind]
    counts = Counter(piece for text in texts for piece in pieces(text))
    order = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST]
    vocabulary = {piece: i for i, (piece, _) in enumerate(order)}

    def features(some: Sequence[str]) -> Float[Tensor, "n features"]:
        bag = torch.zeros(len(some), len(vocabulary), dtype=torch.float64)
        for i, text in enumerate(some):
            bag[i, [vocabulary[piece] for piece in pieces(text) & vocabulary.keys()]] = 1
        return bag

    return features
