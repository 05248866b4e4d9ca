"""The language identifier: sentences of another kind than it was made from, short texts, and what is no language."""

import gzip
import json
from importlib import resources
from pathlib import Path

import pytest

from monosem import judges
from monosem.judges.languages import LANGUAGES, letters, ngrams, packed, probabilities, shipped, unpacked

EVERYDAY = json.loads((Path(__file__).parent / "everyday.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_everyday_sentences(language):
    named = [judges.language_of(sentence) for sentence in EVERYDAY[language]]
    assert named.count(language) >= 9, named


def test_short_words_of_four_languages():
    """Lists of words, from another source (the bundled set of function_vectors)."""
    path = resources.files("monosem.benchmarks") / "sets" / "languages.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()][:200]
    right = sum(
        LANGUAGES[judges.language_of(row["text"])].lower() == row["label"]
        for row in rows
        if judges.language_of(row["text"]) in LANGUAGES
    )
    assert right >= 0.95 * len(rows)


def test_a_text_is_the_sum_of_its_ngrams():
    """The probabilities by hand, from the table."""
    table, text = shipped(), "Le chat dort, n'est-ce pas ?"
    scores = dict.fromkeys(table.languages, 0.0)
    for word in ("le", "chat", "dort", "n", "est", "ce", "pas"):
        padded = f" {word} "
        for n in (1, 2, 3, 4):
            for start in range(len(padded) - n + 1):
                gram = padded[start : start + n]
                if gram in table.numbers:
                    for column, language in enumerate(table.languages):
                        scores[language] += (int(table.weights[table.numbers[gram], column]) / 127 - 1) * 6.0
    whole = sum(2.718281828459045 ** (score / table.temperature) for score in scores.values())
    for language, found in probabilities(text).items():
        assert found == pytest.approx(2.718281828459045 ** (scores[language] / table.temperature) / whole, abs=1e-9)


def test_letters_and_ngrams():
    assert letters("L'été, 42 fois!") == "l été fois"
    assert ngrams("ab") == ["a", "b", " a", "ab", "b ", " ab", "ab ", " ab "]
    assert abs(unpacked(packed(unpacked(shipped().weights))) - unpacked(shipped().weights)).max() == 0


def test_what_is_no_language_is_unknown_or_empty():
    assert judges.language_of("") == "unknown"
    assert judges.language_of("12345 + 17 = ?") == "unknown"
    assert judges.language_of("ok") == "unknown"
    by = judges.judge("language:fr")
    assert by("p", "  ").label == "empty"
    assert by("p", "<think>Le chat dort dans la maison.</think>").label == "empty"


def test_the_judge_of_a_language():
    by = judges.judge("language:fr")
    french, dutch = by("p", EVERYDAY["fr"][2]), by("p", EVERYDAY["nl"][2])
    assert (by.name, by.positive, french.label, dutch.label) == ("language:fr", "fr", "fr", "nl")
    assert french.score > 0.9 > 0.1 > dutch.score


def test_the_table_is_small():
    assert len((resources.files("monosem.judges") / "languages.json.gz").read_bytes()) <= 300_000
