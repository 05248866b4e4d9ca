"""What `Index.search` looks for: words in what latents fire on, and texts of which the codes are read."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..dictionaries import Dictionary
from ..errors import BadInput
from ..models import Model
from ..reading import parse_json
from .layout import unpacked
from .pooling import prompt_runs

STRONGEST = 3  # tokens of a text that are named as evidence


class ExampleText(NamedTuple):
    """The text of all examples, one after the other, and each latent's activations in its own.

    Shapes: `start [tokens + 1]` (the bytes of `text` at which each token begins), `latent`, `example`, `strength`
    `[tokens]` (magnitudes).
    """

    text: bytes
    start: Int[np.ndarray, "edges"]
    latent: Int[np.ndarray, "tokens"]
    example: Int[np.ndarray, "tokens"]
    strength: Float[np.ndarray, "tokens"]

    @classmethod
    def read(cls, blobs: Iterable[tuple[int, bytes]], vocabulary: Mapping[int, str | bytes]) -> "ExampleText":
        """Of (latent, its packed examples)."""
        names = {i: text if isinstance(text, bytes) else text.encode() for i, text in vocabulary.items()}
        pieces: list[bytes] = []
        latents, lengths, strengths = [], [], []
        for latent, blob in blobs:
            head, ids, values = unpacked(blob)
            words = [names.get(i, b"") for i in ids.tolist()]
            for end in (np.cumsum(head[:, 0], dtype=int) - 1).tolist():
                words[end] += b"\0"  # no word goes on in the next example
            pieces += words
            latents.append(np.full(len(ids), latent))
            lengths.append(head[:, 0])
            strengths.append(np.abs(values))
        length = np.concatenate([np.zeros(0, dtype=int), *lengths]).astype(int)
        return cls(
            b"".join(pieces),
            np.cumsum([0, *map(len, pieces)]),
            np.concatenate([np.zeros(0, dtype=int), *latents]),
            np.repeat(np.arange(len(length)), length),
            np.concatenate([np.zeros(0), *strengths]),
        )

    def shares(self, words: Sequence[str], width: int) -> tuple[Float[np.ndarray, "width"], Float[np.ndarray, "width"]]:
        """Of each latent's activation over its examples: the share at tokens of one of the words, and the share in
        examples that have such a word anywhere."""
        at = np.zeros(len(self.latent), dtype=bool)
        for found in _pattern(words).finditer(self.text):
            first = np.searchsorted(self.start, found.start(), side="right") - 1
            at[first : np.searchsorted(self.start, found.end())] = True
        near = np.bincount(self.example, weights=at) > 0 if len(at) else np.zeros(0, dtype=bool)
        whole, on, beside = (
            np.bincount(self.latent, weights=self.strength * part, minlength=width)
            for part in (np.ones(len(at)), at, near[self.example])
        )
        return on / np.where(whole > 0, whole, 1), beside / np.where(whole > 0, whole, 1)


def _pattern(words: Sequence[str]) -> re.Pattern[bytes]:
    """Any of the words, whole, in lower case, with a capital or in capitals. Bytes, so that a character that is spread
    over tokens is found."""
    spelled = []
    for word in words:
        for form in dict.fromkeys((word, word.lower(), word.capitalize(), word.upper())):
            before, after = (rb"(?<![A-Za-z0-9_])", rb"(?![A-Za-z0-9_])")
            ends = [before if form[0].isascii() and form[0].isalnum() else b""]
            ends.append(after if form[-1].isascii() and form[-1].isalnum() else b"")
            spelled.append(ends[0] + re.escape(form.encode(errors="replace")) + ends[1])
    return re.compile(b"|".join(spelled))


def surprise(shares: Float[np.ndarray, "width"]) -> Float[np.ndarray, "width"]:
    """share × ln(share / its mean over all latents), 0 below the mean."""
    mean = float(shares.mean()) or 1.0
    return np.where(shares > mean, shares * np.log(np.maximum(shares, mean) / mean), 0.0)


def by_words(
    text: str, examples: ExampleText, promoted: Sequence[str], vocabulary: Mapping[int, str | bytes]
) -> pd.DataFrame:
    """Columns latent, score, matched, on, near; the best match first, latents that only promote a word at the end.

    Args:
        promoted: of each latent the JSON list of (token id, effect).

    Raises:
        BadInput: nothing to search for.
    """
    words = text.split()
    if not words:
        raise BadInput("nothing to search for; give a word")
    on, near = examples.shares(words, len(promoted))
    kinds = {"fires on it": surprise(on), "fires near it": surprise(near), "promotes it": np.zeros(len(promoted))}
    wanted = {word.lower() for word in words}
    ids = {i for i, name in vocabulary.items() if isinstance(name, str) and name.strip().lower() in wanted}
    for latent, listed in enumerate(promoted) if ids else ():
        kinds["promotes it"][latent] = max((effect for i, effect in parse_json(listed) if i in ids), default=0.0)
    score = kinds["fires on it"] + kinds["fires near it"]
    order = np.lexsort((-kinds["promotes it"], -score))
    order = order[(score + kinds["promotes it"])[order] > 0]
    matched = [", ".join(kind for kind, value in kinds.items() if value[latent] > 0) for latent in order]
    return pd.DataFrame(
        {"latent": order, "score": score[order], "matched": matched, "on": on[order], "near": near[order]}
    )


def by_texts(
    model: Model,
    dictionary: Dictionary,
    texts: Sequence[str],
    maxima: Float[np.ndarray, "width"],
    densities: Float[np.ndarray, "width"],
    n: int,
) -> pd.DataFrame:
    """Columns latent, score, matched (the tokens at which it is strongest), texts (share of them in which it fires).

    Score: mean over a text's counted tokens of the share of the latent's maximum, its mean over the texts, × share of
    texts in which it fires × ln(1 / density): strong, in all of the texts, and not everywhere else.

    Args:
        densities: more than 0.

    Raises:
        BadInput: no texts, an empty one, no token that counts. Mismatch: a dictionary of another model.
    """
    mass = np.zeros((len(texts), dictionary.width))
    fired: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # latent, value, index into `words`
    words: list[str] = []
    done = 0
    skipper = dictionary.skipper(model)
    for run, counted in prompt_runs(model, dictionary, texts, skipper=skipper):
        rows, places = counted.nonzero(as_tuple=True)
        codes = dictionary.encode(run[dictionary.site][counted])
        token, slot = (codes.values != 0).nonzero(as_tuple=True)
        latent, value = codes.indices[token, slot].cpu().numpy(), codes.values[token, slot].float().cpu().numpy()
        text = rows[token].cpu().numpy() + done
        np.add.at(mass, (text, latent), np.abs(value) / counted.sum(1).cpu().numpy()[text - done])
        fired.append((latent, value, token.cpu().numpy() + len(words)))
        words += [model.str_token(int(i)) for i in run.tokens.ids[rows, places]]
        done += len(run.tokens)
    latent, value, word = (np.concatenate(column) for column in zip(*fired))
    highest = maxima.astype(float)
    np.maximum.at(highest, latent, np.abs(value))
    share = (mass > 0).mean(0)
    score = (mass / np.where(highest > 0, highest, 1)).mean(0) * share * -np.log(densities)
    order = np.argsort(-score, kind="stable")[:n]
    order = order[score[order] > 0]
    matched = [_named(value[latent == one], [words[i] for i in word[latent == one]]) for one in order]
    found = pd.DataFrame({"latent": order, "score": score[order], "matched": matched, "texts": share[order]})
    found.attrs["tokens"] = skipper.summary()
    return found


def _named(values: Float[np.ndarray, "n"], words: Sequence[str]) -> str:
    """The words with the strongest values, each once: `' def' 41.2, '(' 30.5`."""
    named: dict[str, float] = {}
    for i in np.argsort(-np.abs(values), kind="stable").tolist():
        named.setdefault(words[i], float(values[i]))
    return ", ".join(f"{word!r} {value:.1f}" for word, value in list(named.items())[:STRONGEST])
