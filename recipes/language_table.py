"""The table of character n-grams that tells twelve languages apart (`monosem.judges.languages`), and how often it errs.

    python recipes/smollm2_languages.py --out work/languages
    python recipes/language_table.py --texts work/languages --english books/*.jsonl.gz \\
        --out src/monosem/judges/languages.json.gz

`--texts`: LibreOffice's help (MPL 2.0) in eleven languages, with `held_out/`; `--english`: JSON lines with `text`, of
which a twentieth is held out. Lines that look like code, short ones, and English ones in other languages are left out;
so are words of five letters or more that most of the languages' help has, such as names of programs. `--everyday`:
sentences of another kind, language -> list, for testing alone.
"""

import argparse
import base64
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from monosem.files import replacing
from monosem.judges import languages as found
from monosem.judges.languages import LANGUAGES, ORDERS, Table, letters, ngrams, packed
from monosem.statistics import wilson

KEPT = 2600  # n-grams of each language, those that say most
SHARED = 6  # languages in whose help a word stands that is left out
SMOOTHING = 0.5  # added to every count
LENGTHS = (10, 20, 40, 80)  # characters of test texts
SHORTEST = 40  # characters of a line that is kept; shorter ones are names of menus and functions
CODE = re.compile(r"[=_;{}<>|\\/]|\(\)|[A-Z]{4}|\d{4}")  # a line of code or names, which is in no language
ENGLISH = frozenset(
    ["the", "of", "and", "to", "is", "that", "this", "with", "for", "you", "are", "from"]
)  # of lines that nobody has translated
SCRIPTS = {"ja": r"[぀-ヿ一-鿿]", "ru": r"[Ѐ-ӿ]", "zh": r"[一-鿿]"}  # of most letters of a line that is kept
EVERYDAY = Path(__file__).parent.parent / "tests" / "judges" / "everyday.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--english", type=Path, nargs="+", required=True)
    parser.add_argument("--everyday", type=Path, default=EVERYDAY)
    parser.add_argument("--characters", type=int, default=500_000, help="of each language, at most")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    training, held_out = texts_of(args.texts, args.english, args.characters)
    common = shared_words({name: training[name] for name in LANGUAGES if name != "en"})
    held = table_of(training, common)
    table = Table(tuple(LANGUAGES), held["numbers"], held["packed"], 1.0)
    tuning, testing = ({name: rows[side::2] for name, rows in held_out.items()} for side in (0, 1))
    temperature = best_temperature(table, [(name, piece) for name, piece in pieces(tuning, 20)])
    table = Table(table.languages, table.numbers, table.weights, temperature)
    write(args.out, table)
    report("held-out documents of the same kind", table, testing)
    report("everyday sentences", table, json.loads(args.everyday.read_text(encoding="utf-8")))


def texts_of(folder: Path, english: list[Path], most: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    training, held_out = {}, {}
    for name in LANGUAGES:
        if name != "en":
            training[name] = list(up_to(prose(name, rows_of([folder / f"{name}.jsonl"])), most))
            held_out[name] = list(prose(name, rows_of([folder / "held_out" / f"{name}.jsonl"])))
    parts = list(prose("en", (row[i : i + 2000] for row in rows_of(english) for i in range(0, len(row), 2000))))
    random.Random(0).shuffle(parts)
    training["en"], held_out["en"] = list(up_to(parts[len(parts) // 20 :], most)), parts[: min(len(parts) // 20, 200)]
    return {name: training[name] for name in LANGUAGES}, {name: held_out[name] for name in LANGUAGES}


def rows_of(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def prose(name: str, rows: Iterable[str]) -> Iterator[str]:
    """The lines that are sentences of the language, as texts."""
    script = re.compile(SCRIPTS.get(name, r"\w"))
    shortest = SHORTEST // 3 if name in ("ja", "zh") else SHORTEST
    for row in rows:
        lines = [line for line in row.splitlines() if len(line) >= shortest and not CODE.search(line)]
        kept = [line for line in lines if len(script.findall(line)) > 0.7 * len(letters(line).replace(" ", ""))]
        if name != "en":
            kept = [line for line in kept if sum(w in ENGLISH for w in letters(line).split()) < 0.1 * len(line.split())]
        if kept:
            yield "\n".join(kept)


def up_to(rows: Iterable[str], most: int) -> Iterator[str]:
    taken = 0
    for row in rows:
        if taken >= most:
            return
        taken += len(row)
        yield row


def shared_words(texts: dict[str, list[str]]) -> frozenset[str]:
    held = Counter(word for rows in texts.values() for word in {w for row in rows for w in letters(row).split()})
    return frozenset(word for word, n in held.items() if n >= SHARED and len(word) >= 5)


def table_of(texts: dict[str, list[str]], common: frozenset[str]) -> dict[str, Any]:
    """The n-grams that say most of each language, and log p(n-gram | language) less the mean over languages."""
    counts = {name: Counter[str]() for name in texts}
    for name, rows in texts.items():
        words = Counter(word for row in rows for word in letters(row).split() if word not in common)
        for word, n in words.items():
            for gram in ngrams(word):
                counts[name][gram] += n
    weights, frequencies, grams = weights_of(counts)
    chosen = set()
    for column in range(len(texts)):  # by how much an n-gram adds to its language's score, on average
        gain = frequencies[:, column] * weights[:, column]
        chosen |= set(np.argsort(-gain)[:KEPT].tolist())
    rows = sorted(chosen, key=lambda row: grams[row])
    return {"numbers": {grams[row]: i for i, row in enumerate(rows)}, "packed": packed(weights[rows])}


def weights_of(counts: dict[str, Counter[str]]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    grams = sorted({gram for one in counts.values() for gram, n in one.items() if n >= 5})
    table = np.array([[one[gram] for one in counts.values()] for gram in grams], dtype=np.float64)
    orders = np.array([len(gram) for gram in grams])
    logs = np.zeros_like(table)
    for order in ORDERS:
        rows = orders == order
        smooth = table[rows] + SMOOTHING
        logs[rows] = np.log(smooth / smooth.sum(0))
    return logs - logs.mean(1, keepdims=True), np.exp(logs), grams


def pieces(texts: dict[str, list[str]], length: int, most: int = 150) -> Iterator[tuple[str, str]]:
    """(language, a piece of about so many characters, whole words), at most so many a language."""
    draw = random.Random(length)
    for name, rows in texts.items():
        places = [(row, start) for row in rows for start in range(0, max(len(row) - length, 1), max(length, 60))]
        for row, start in draw.sample(places, min(most, len(places))):
            if start and name not in ("ja", "zh"):
                start = row.find(" ", start) + 1
            piece = row[start : start + length]
            if len(letters(piece)) >= 0.6 * length:  # not a line of numbers
                yield name, piece


def best_temperature(table: Table, rows: list[tuple[str, str]]) -> float:
    """The one of least Brier score, which a few lines in another language than their file's do not decide."""

    def loss(temperature: float) -> float:
        tried = Table(table.languages, table.numbers, table.weights, temperature)
        wanted = np.eye(len(table.languages))
        return sum(
            float(np.square(tried.probabilities(text) - wanted[table.languages.index(name)]).sum())
            for name, text in rows
        )

    return min([1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0], key=loss)


def write(path: Path, table: Table) -> None:
    held = {"languages": table.languages, "temperature": table.temperature, "grams": "\n".join(table.numbers)}
    held["weights"] = base64.b64encode(table.weights.tobytes()).decode()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(held, ensure_ascii=False).encode(), 9, mtime=0))
    print(f"{len(table.numbers)} n-grams, temperature {table.temperature:g}, {path.stat().st_size / 1000:.0f} KB")


def report(title: str, table: Table, texts: dict[str, list[str]]) -> None:
    print(f"\n{title}: share named right (unknown counts as wrong)")
    found.shipped = lambda: table  # type: ignore[assignment]
    for length in LENGTHS:
        right, of, errors = Counter[str](), Counter[str](), Counter[str]()
        for name, piece in pieces(texts, length):
            said = found.language_of(piece)
            of[name] += 1
            right[name] += said == name
            errors.update([f"{name}>{said}"] if said != name else [])
        share = wilson(sum(right.values()), sum(of.values()))
        each = " ".join(f"{name} {right[name] / of[name]:.2f}" for name in LANGUAGES if of[name])
        print(
            f"{length:4} characters: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}] of {sum(of.values())}:", each
        )
        print(f"     most errors: {errors.most_common(6)}")


if __name__ == "__main__":
    main()
