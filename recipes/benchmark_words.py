"""Makes the words and cities of `src/monosem/benchmarks/sets` from the Unix word list and from RAVEL.

    python recipes/benchmark_words.py WORDS RAVEL

WORDS is a file with a word a line; RAVEL the folder `data` of github explanare/ravel. Kept is what is one token of
SmolLM2 after a space: a rough measure of what a small model has seen often.
"""

import gzip
import json
import sys
from pathlib import Path

from monosem.models import load_model

OUT = Path(__file__).parents[1] / "src" / "monosem" / "benchmarks" / "sets"
CITIES = ("Paris", "Rome", "Tokyo", "Beijing", "Toronto")
FORMS = {  # sentences of RAVEL with one example, the same examples for each attribute
    "Country": "city to country: {city} is in ",
    "Continent": "{city} is a city in the continent of ",
    "Language": "People in {city} speak ",
}


def main(words: Path, ravel: Path) -> None:
    tokenizer = load_model("smollm2").tokenizer

    def one_token(texts: list[str]) -> list[str]:
        ids = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
        return [text for text, row in zip(texts, ids) if len(row) == 1]

    listed = [word for word in words.read_text().split() if word.isascii() and word.isalpha() and word.islower()]
    write("words.txt.gz", "\n".join(one_token([word for word in listed if len(word) > 2])) + "\n")
    cities = json.loads((ravel / "ravel_city_entity_attributes.json").read_text())
    asked = json.loads((ravel / "ravel_city_attribute_to_prompts.json").read_text())
    entities = {name: {one: cities[name][one] for one in FORMS} for name in one_token(list(cities))}
    prompts = {
        name: [text for city in CITIES for text in asked[name] if text.startswith(form.format(city=city))]
        for name, form in FORMS.items()
    }
    write("cities.json.gz", json.dumps({"entities": entities, "prompts": prompts}, ensure_ascii=False))


def write(name: str, text: str) -> None:
    (OUT / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(name, (OUT / name).stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
