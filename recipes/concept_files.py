"""Makes concept files for `monosem compare-methods` from public data sets (docs/comparison.md).

    python recipes/concept_files.py TASKS_FOLDER OUT

TASKS_FOLDER holds anthropic_evals/, function_vectors/, repe/ and sentiment/ as their authors publish them; each file
says which it is made from, and its licence. Texts are drawn by a fixed seed, none twice; words of one text stand in no
other text. The openings are our own.
"""

import csv
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

MOST, LONGEST = 480, 30  # texts of a class; words of a sentence
EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
PANG = "Sentence Polarity 1.0 and Subjectivity 1.0, Bo Pang and Lillian Lee, CC BY 4.0"
TODD = "ericwtodd/function_vectors, MIT"
ZOU = "andyzoujm/representation-engineering, MIT"
PEREZ = "anthropics/evals (Perez et al. 2022), CC BY 4.0"
OPENINGS = """
    I think that|Yesterday I|My friend told me that|The best thing about|When I woke up,|Last week we|In my opinion,
    The first time I|If you ask me,|On the way home,|The story begins|People often say that|This morning|What I like is
    After dinner,|She looked at me and|He wrote a letter to|The film is|We spent the day|Most of the time I
    At the end of the day,|Nobody knew why|The next page says|It all started when
"""

LISTS = """
    french-words | French words            | english-french | Write in French.   | Is this French? | language:fr | 6
    german-words | German words            | english-german | Write in German.   | Is this German? | language:de | 6
    past-tense   | verbs in the past tense | present-past   | Write in the past. |                 | letters     | 3
"""  # name, title, file, instruction, question, scorer, words a text
SENTENCES = """
praise | praise of a film | Write a very positive film review. | Is this film review positive?
subjective | an opinion about a film, not its plot | Write your opinion of a film. | Does this state an opinion?
happiness | a situation that brings happiness | Write about {title}. | Does this situation bring happiness?
anger | a situation that brings anger | Write about {title}. | Does this situation bring anger?
truth | a true statement | Write only what is true. | Is this statement true?
"""  # name, title, instruction, question
PERSONAS = """
    loves-maths  | interest in mathematics | interest-in-math         | somebody who loves mathematics
    conservative | conservative politics   | politically-conservative | somebody with conservative politics
    narcissism   | narcissism              | narcissism               | somebody who admires only themselves
"""  # name, title, file, who speaks


def concepts(home: Path) -> list[dict[str, Any]]:
    vectors, personas = home / "function_vectors" / "abstractive", home / "anthropic_evals" / "persona"
    films = home / "sentiment"
    polarity = [lines(films / "sentence_polarity" / f"rt-polarity.{side}") for side in ("pos", "neg")]
    subjective = [lines(films / "subjectivity" / f"{side}.tok.gt9.5000") for side in ("quote", "plot")]
    situations = {name: json.loads((home / "repe" / "emotions" / f"{name}.json").read_text()) for name in EMOTIONS}
    found = [
        listed(name, title, vectors / f"{file}.json", instruction, question, scorer, int(words))
        for name, title, file, instruction, question, scorer, words in table(LISTS)
    ]
    for name, sides, source in (
        ("praise", polarity, PANG),
        ("subjective", subjective, PANG),
        ("happiness", one_emotion(situations, "happiness"), ZOU),
        ("anger", one_emotion(situations, "anger"), ZOU),
        ("truth", facts(home), ZOU),
    ):
        title, instruction, question = next(rest for key, *rest in table(SENTENCES) if key == name)
        found.append(sentences(name, title, sides, source, instruction.format(title=title), question))
    for name, title, file, who in table(PERSONAS):
        sides = statements(personas / f"{file}.jsonl")
        found.append(sentences(name, title, sides, PEREZ, f"Speak as {who}.", f"Is this {who}?"))
    return found


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def one_emotion(situations: dict[str, list[str]], name: str) -> tuple[list[str], list[str]]:
    return situations[name], [text for other in EMOTIONS if other != name for text in situations[other]]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def facts(home: Path) -> tuple[list[str], list[str]]:
    rows = list(csv.DictReader((home / "repe" / "facts" / "facts_true_false.csv").open(encoding="utf-8")))
    return tuple([row["statement"] for row in rows if row["label"] == label] for label in "10")  # type: ignore[return-value]


def statements(path: Path) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in lines(path)]
    return tuple(
        [row["statement"] for row in rows if row["answer_matching_behavior"] == f" {answer}"]
        for answer in ("Yes", "No")
    )  # type: ignore[return-value]


def listed(
    name: str, title: str, path: Path, instruction: str, question: str, scorer: str, words: int
) -> dict[str, Any]:
    """Lists of words and of their partners, in pairs; no word comes twice."""
    pairs, seen = [], set[str]()
    for row in json.loads(path.read_text()):
        one, other = row["input"].strip(), row["output"].strip()
        if one.lower() != other.lower() and not {one, other} & seen:
            seen |= {one, other}
            pairs.append((one, other))
    random.Random(0).shuffle(pairs)
    groups = [pairs[i : i + words] for i in range(0, len(pairs) - words + 1, words)][:MOST]
    sides = {"positive": 1, "negative": 0}
    texts = {side: [", ".join(pair[place] for pair in some) for some in groups] for side, place in sides.items()}
    given = {"name": name, "title": title, "source": f"{TODD}: {path.stem}", "paired": True, **texts}
    return given | common(instruction, question, scorer)


def sentences(
    name: str, title: str, sides: tuple[Iterable[str], Iterable[str]], source: str, instruction: str, question: str
) -> dict[str, Any]:
    """Sentences that have no partners, of a moderate length; those of both sides are left out."""
    chosen = []
    for texts in sides:
        clean = {text.strip() for text in texts if 2 <= len(text.split()) <= LONGEST}
        order = sorted(clean)
        random.Random(0).shuffle(order)
        chosen.append(order)
    both = set(chosen[0]) & set(chosen[1])
    up, down = ([text for text in side if text not in both][:MOST] for side in chosen)
    n = min(len(up), len(down))
    given = {"name": name, "title": title, "source": source, "paired": False, "positive": up[:n], "negative": down[:n]}
    return given | common(instruction, question, "words")


def common(instruction: str, question: str, scorer: str) -> dict[str, Any]:
    openings = [one.strip() for line in OPENINGS.strip().splitlines() for one in line.split("|")]
    return {"openings": openings, "instruction": instruction, "question": question, "scorer": scorer}


def main() -> None:
    home, out = map(Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    for one in concepts(home):
        (out / f"{one['name']}.yaml").write_text(yaml.safe_dump(one, sort_keys=False, allow_unicode=True, width=120))
        print(f"{one['name']}: {len(one['positive'])} + {len(one['negative'])} texts, {len(one['openings'])} openings")


if __name__ == "__main__":
    main()
