"""Which language a text is in, by character n-grams: naive Bayes over a table that ships with the package.

Of each language the table has log p(n-gram | language) less the mean over languages, for n from 1 to 4 of lower-case
letters with a space at both ends of a word (Cavnar & Trenkle 1994 compare ranks of such n-grams). A text's score of a
language is the sum over its n-grams. N-grams overlap, so the sum counts every letter several times: it is divided by a
temperature, which was fitted on texts apart, before the scores become probabilities.
"""

import base64
import gzip
import json
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby

import numpy as np
from jaxtyping import Float, UInt8

from ..errors import BadFile, check_name
from .said import answer_of, is_empty, is_truncated
from .verdict import EMPTY, Verdict

LANGUAGES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "zh": "Chinese",
}
UNKNOWN = "unknown"  # too few letters, or none of the languages is likelier than not
ORDERS = (1, 2, 3, 4)
FEWEST_LETTERS = 4  # of one that the table knows: below, no language is named
SURE = 0.5  # probability from which a language is named
WIDEST = 6.0  # weights beyond are cut off: a byte holds -WIDEST to WIDEST


@dataclass(frozen=True)
class Table:
    """What is known of the n-grams.

    Attributes:
        numbers: n-gram -> its row. weights: a byte each, see `WIDEST`. temperature: see above.
    """

    languages: tuple[str, ...]
    numbers: dict[str, int]
    weights: UInt8[np.ndarray, "grams languages"]
    temperature: float

    def probabilities(self, text: str) -> Float[np.ndarray, "languages"]:
        """Of each language, all equally likely beforehand."""
        counts = Counter(ngrams(text))
        known = {gram: n for gram, n in counts.items() if gram in self.numbers}
        rows = [self.numbers[gram] for gram in known]
        scores = np.fromiter(known.values(), dtype=np.float64) @ unpacked(self.weights[rows]) / self.temperature
        shifted = np.exp(scores - scores.max())
        return shifted / shifted.sum()


def letters(text: str) -> str:
    """In lower case, with one space for everything that is not a letter."""
    text = unicodedata.normalize("NFKC", text).lower()
    kept = (key and "".join(run) for key, run in groupby(text, key=lambda c: unicodedata.category(c)[0] in "LM"))
    return " ".join(word for word in kept if word)


def ngrams(text: str) -> list[str]:
    """All n-grams of the orders, words with a space before and after; a space alone is none."""
    found = []
    for word in letters(text).split():
        padded = f" {word} "
        found += [padded[i : i + n] for n in ORDERS for i in range(len(padded) - n + 1)]
    return [gram for gram in found if gram != " "]


def packed(weights: Float[np.ndarray, "grams languages"]) -> UInt8[np.ndarray, "grams languages"]:
    return np.rint((np.clip(weights, -WIDEST, WIDEST) / WIDEST + 1) * 127).astype(np.uint8)


def unpacked(weights: UInt8[np.ndarray, "grams languages"]) -> Float[np.ndarray, "grams languages"]:
    return (weights.astype(np.float64) / 127 - 1) * WIDEST


@cache
def shipped() -> Table:
    """The table of the package. Raises `BadFile` where the installation is damaged."""
    path = resources.files("monosem.judges") / "languages.json.gz"
    try:
        held = json.loads(gzip.decompress(path.read_bytes()))
        languages, grams = tuple(held["languages"]), held["grams"].split("\n")
        weights = np.frombuffer(base64.b64decode(held["weights"]), dtype=np.uint8).reshape(len(grams), len(languages))
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise BadFile(f"{path} is damaged; install monosem again") from error
    return Table(languages, {gram: number for number, gram in enumerate(grams)}, weights, float(held["temperature"]))


def probabilities(text: str) -> dict[str, float]:
    """Language -> its probability, the likeliest first; all are equal where nothing of the text is known."""
    table = shipped()
    found = dict(zip(table.languages, table.probabilities(text).tolist()))
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def language_of(text: str) -> str:
    """A key of `LANGUAGES`, or "unknown": too few letters, or none is likelier than not."""
    written = letters(text).replace(" ", "")
    if len(written) < (FEWEST_LETTERS if written.isascii() else 2):
        return UNKNOWN
    best, sure = next(iter(probabilities(text).items()))
    return best if sure > SURE else UNKNOWN


@dataclass(frozen=True)
class Language:
    """Whether a response is in a language. Labels: the languages, "unknown" and "empty"; score: the probability.

    Raises:
        UnknownName: a language that the table does not have.
    """

    language: str

    labels = (*LANGUAGES, UNKNOWN, EMPTY)

    def __post_init__(self) -> None:
        check_name("language", self.language, LANGUAGES)

    @property
    def name(self) -> str:
        return f"language:{self.language}"

    @property
    def positive(self) -> str:
        return self.language

    def __call__(self, prompt: str, response: str) -> Verdict:
        answer = answer_of(response)
        if is_empty(answer):
            return Verdict(EMPTY, 0.0, "only reasoning" if not is_empty(response) else "nothing is said")
        found = probabilities(answer)
        evidence = ", ".join(f"{name} {p:.2f}" for name, p in list(found.items())[:2])
        return Verdict(language_of(answer), found[self.language], evidence, is_truncated(answer))
