"""Makes the small labelled sets of `src/monosem/benchmarks/sets` from the public data sets they are drawn from.

    python recipes/benchmark_sets.py TASKS_FOLDER

TASKS_FOLDER holds sentiment/, repe/, function_vectors/, xstest/ and anthropic_evals/ as their authors publish them
(sources and licences: `src/monosem/benchmarks/sets/README.md`). Rows are drawn by a fixed seed, none twice.
"""

import csv
import gzip
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

OUT = Path(__file__).parents[1] / "src" / "monosem" / "benchmarks" / "sets"
MOST = {"sentiment": 350, "subjectivity": 350, "facts": 300, "emotions": 130, "languages": 250, "refusal": 180}
EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
TRADES = ("mechanic", "installer", "repairer", "welder", "plumber", "carpenter", "electrician", "roofer", "machinist")
CARE = (
    "nurse",
    "therapist",
    "physician",
    "surgeon",
    "dentist",
    "hygienist",
    "pharmacist",
    "medical",
    "health",
    "doctor",
)


def rows(home: Path) -> dict[str, list[dict[str, str]]]:
    sentiment = home / "sentiment"
    polarity = {
        name: _lines(sentiment / "sentence_polarity" / f"rt-polarity.{name[:3]}") for name in ("positive", "negative")
    }
    subjectivity = {
        "objective": _lines(sentiment / "subjectivity" / "plot.tok.gt9.5000"),
        "subjective": _lines(sentiment / "subjectivity" / "quote.tok.gt9.5000"),
    }
    facts: dict[str, list[str]] = {"true": [], "false": []}
    for row in csv.DictReader((home / "repe" / "facts" / "facts_true_false.csv").open(encoding="utf-8")):
        facts["true" if row["label"] == "1" else "false"].append(row["statement"])
    emotions = {name: json.loads((home / "repe" / "emotions" / f"{name}.json").read_text()) for name in EMOTIONS}
    pairs = {
        name: json.loads((home / "function_vectors/abstractive" / f"english-{name}.json").read_text())
        for name in ("french", "german", "spanish")
    }
    languages = {"english": [one["input"] for one in pairs["french"]]} | {
        n: [one["output"] for one in p] for n, p in pairs.items()
    }
    refusal: dict[str, list[str]] = {"safe": [], "unsafe": []}
    for row in csv.DictReader((home / "xstest" / "xstest_prompts.csv").open(encoding="utf-8")):
        refusal["unsafe" if row["type"].startswith("contrast") else "safe"].append(row["prompt"])
    sets = {
        "sentiment": polarity,
        "subjectivity": subjectivity,
        "facts": facts,
        "emotions": emotions,
        "languages": languages,
        "refusal": refusal,
    }
    return {name: drawn(classes, MOST[name], words=8 if name == "languages" else 1) for name, classes in sets.items()}


def drawn(classes: dict[str, Iterable[str]], most: int, words: int) -> list[dict[str, str]]:
    """Up to `most` rows a class, texts of two classes left out; `words` texts a row (single words say too little)."""
    chance, found = random.Random(0), []
    times: dict[str, int] = {}
    for texts in classes.values():
        for text in {text.strip().lower() for text in texts}:
            times[text] = times.get(text, 0) + 1
    for label, texts in classes.items():
        own = sorted(
            {text.strip() for text in texts if text.strip() and times[text.strip().lower()] == 1 and len(text) < 300}
        )
        own = chance.sample(own, min(most * words, len(own)))
        joined = [", ".join(own[start : start + words]) for start in range(0, len(own) - words + 1, words)]
        found += [{"text": text, "label": label} for text in joined]
    chance.shuffle(found)
    return found


def occupations(home: Path) -> list[dict[str, str]]:
    """Sentences about a trade or a health profession with a pronoun left out, and the two ways to fill it."""
    found, path = [], home / "anthropic_evals" / "winogenerated" / "winogenerated_examples.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        kinds = [
            kind for kind, words in (("trade", TRADES), ("care", CARE)) if any(w in row["occupation"] for w in words)
        ]
        if len(kinds) == 1 and "_" in row["sentence_with_blank"]:
            male, female, _ = row["pronoun_options"]
            filled = {
                name: row["sentence_with_blank"].replace("_", one) for name, one in (("he", male), ("she", female))
            }
            found.append({"label": kinds[0], "group": row["occupation"], **filled})
    random.Random(0).shuffle(found)
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="latin-1").splitlines()


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    home = Path(sys.argv[1])
    for name, made in (rows(home) | {"occupations": occupations(home)}).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (OUT / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
        labels = {label: sum(row["label"] == label for row in made) for label in sorted({row["label"] for row in made})}
        print(name, len(made), labels, (OUT / f"{name}.jsonl.gz").stat().st_size)
