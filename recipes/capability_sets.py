"""Makes the small capability sets of `src/monosem/robustness/sets` from the public data sets they are drawn from.

    python recipes/capability_sets.py DATA_FOLDER

DATA_FOLDER holds tasks/function_vectors/ and corpora/gsm8k/ as their authors publish them (sources and licences:
`src/monosem/robustness/sets/README.md`). Rows are drawn by a fixed seed.

A row is a prompt with one right and some wrong ways to go on. Each ends where the next thing begins (a blank line, the
word after a number), because the beginning of another option would always be the likelier one.
"""

import json
import random
import re
import sys
from itertools import chain
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "src" / "monosem" / "robustness" / "sets"
WORDS = ("antonym", "present-past", "singular-plural", "english-french", "landmark-country", "product-company")
SHOTS, EACH, PROBLEMS, LONGEST = 3, 8, 48, 260  # examples a prompt, rows a task, rows, characters of a prompt
STEP = re.compile(r"([^\n]*?= ?\$?)<<[^>]*=(\d+)>>(\d+)([ .,\n]\w*)")
Row = dict[str, Any]


def function_vectors(folder: Path) -> list[Row]:
    """Three examples, a word, and four answers: the right one, the word itself and two answers to other words."""
    draw, every = random.Random(0), []
    for name in WORDS:
        pairs = json.loads((folder / f"abstractive/{name}.json").read_text(encoding="utf-8"))
        pairs = [(one["input"], one["output"]) for one in pairs if one["input"].lower() != one["output"].lower()]
        rows = []
        for _ in range(EACH):
            *shots, (word, right), other, another = draw.sample(_different(pairs, draw), SHOTS + 3)
            shown = "".join(f"Q: {x}\nA: {y}\n\n" for x, y in shots)
            wrong = [f" {one}\n\n" for one in (word, other[1], another[1])]
            rows.append({"task": name, "prompt": f"{shown}Q: {word}\nA:", "right": f" {right}\n\n", "wrong": wrong})
        every.append(rows)
    return list(chain(*zip(*every)))  # the first ones are of all tasks


def _different(pairs: list[tuple[str, str]], draw: random.Random) -> list[tuple[str, str]]:
    """Pairs in another order, no answer twice."""
    mixed = draw.sample(pairs, len(pairs))
    return list({answer: (word, answer) for word, answer in mixed}.values())


def gsm8k(folder: Path) -> list[Row]:
    """A question, its worked answer up to the first result, and four results: the right one and numbers near it."""
    draw, rows = random.Random(0), []
    for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines():
        problem = json.loads(line)
        step = STEP.match(problem["answer"])
        if step is None or step[2] != step[3]:
            continue
        prompt = f"Question: {problem['question']}\nAnswer: {step[1]}"
        if len(prompt) > LONGEST or int(step[2]) < 3:
            continue
        right = int(step[2])
        near = draw.sample([n for n in (right - 2, right - 1, right + 1, right + 2, right + 10) if n > 0], 3)
        space = "" if step[1][-1] in "$=" else " "
        ways = [f"{space}{n}{step[4]}" for n in (right, *near)]
        rows.append({"prompt": prompt.rstrip(" "), "right": ways[0], "wrong": ways[1:]})
    return draw.sample(rows, PROBLEMS)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    OUT.mkdir(exist_ok=True)
    made = {
        "function_vectors": function_vectors(home / "tasks/function_vectors"),
        "gsm8k": gsm8k(home / "corpora/gsm8k"),
    }
    for name, rows in made.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (OUT / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(name, len(rows), len(text.encode()), "bytes")
