"""Which latents stand for languages, code, dates and names; and explanations of 50 latents of each dictionary.

    python recipes/smollm2_explanations.py separate --corpora PATH --work work --dictionary FOLDER
    python recipes/smollm2_explanations.py sheet --corpora PATH --work work --dictionary FOLDER
    python recipes/smollm2_explanations.py score --corpora PATH --work work --dictionary FOLDER

`separate` looks on half of the documents of held-out text for the latent that best tells each concept from the rest,
and measures it on the other half (`tells_apart` in the dictionary's card.json). `sheet` writes sheet.txt, from which a
reader makes labels.json ({"12": "label"}), and quiz.txt, in which a judge who has only those labels says which texts
the latent fires at (answers.json: {"12": [2, 5, 7]}). `score` counts what the judge got right: explanations.json beside
the dictionary.
"""

import argparse
import calendar
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from smollm2_languages import LANGUAGES
from torch import Tensor

import monosem as ms
from monosem.data import texts
from monosem.dictionaries import Dictionary, one_site
from monosem.files import write_json, write_text
from monosem.latents import Index, index_of
from monosem.latents.evidence import visible
from monosem.probes import Rows, area_by_group
from monosem.statistics import auroc

TOKENS, WINDOWS = 96, 64  # of a window of held-out text, and of each kind of text
READABLE = 20_000  # characters of a document
READ = 50  # latents a dictionary
ASKED = {"top": 3, "middle": 3, "silent": 3, "near": 3}  # texts of each kind in the quiz
MONTHS = list(calendar.month_name)[1:]
ARTICLE = re.compile(r"^ (?== [^=])", re.MULTILINE)  # WikiText's " = Title = "
DATE = re.compile(rf"\b(?:1[5-9]\d\d|20[0-2]\d)\b|\b(?:{'|'.join(MONTHS)})\b(?: \d\d?\b)?")
METHOD = (
    "50 latents: those that separate a concept best, and others drawn by seed from five groups of equal size by "
    "density. A language model read the strongest examples and the bands of the index and wrote the labels; another "
    "one saw the labels alone and said at which of twelve held-out texts a latent fires (three above two thirds of "
    "its maximum there, three from one to two thirds, three silent, three where one of the three latents with the "
    "most similar decoder rows fires and this one does not)."
)


def held_out(args: argparse.Namespace) -> dict[str, list[str]]:
    """kind of text -> texts that were not trained on."""
    kinds = {language: args.work / "languages/held_out" / f"{language}.jsonl" for language in (*LANGUAGES, "python")}
    kinds |= {
        "wikipedia": args.corpora / "wikitext2/test.txt",
        "stories": args.corpora / "tinystories_sample/tinystories_1000.json",
    }
    kinds |= {"mathematics": args.corpora / "gsm8k/test.jsonl"}
    found = {kind: [document.text for document in _first(texts(path), args.characters)] for kind, path in kinds.items()}
    return found | {"wikipedia": [article for text in found["wikipedia"] for article in ARTICLE.split(text)]}


def _first(documents: Any, characters: int) -> Iterator[Any]:
    for document in documents:
        yield document
        characters -= len(document.text)
        if characters < 0:
            return


@dataclass
class Windows:
    """Windows of held-out text: ids, kind of text, number of the document, tokens as strings."""

    ids: Int[Tensor, "windows pos"]
    kinds: list[str]
    documents: Int[Tensor, "windows"]
    tokens: list[list[str]]

    @classmethod
    def of(cls, model: ms.Model, found: dict[str, list[str]]) -> Self:
        """The first window of each document of a kind, then the second of each, and so on, up to `WINDOWS`."""
        ids, kinds, numbers = list[list[int]](), list[str](), list[int]()
        for kind, documents in found.items():
            read = [model.tokenizer(text[:READABLE])["input_ids"] for text in documents]
            turns = range(0, max(map(len, read)) - TOKENS, TOKENS)
            cut = [(n, own[i : i + TOKENS]) for i in turns for n, own in enumerate(read) if len(own) >= i + TOKENS]
            ids += [window for _, window in cut[:WINDOWS]]
            first = max(numbers, default=-1) + 1
            numbers += [first + n for n, _ in cut[:WINDOWS]]
            kinds += [kind] * (len(ids) - len(kinds))
        tokens = [[model.tokenizer.decode([i]) for i in window] for window in ids]
        return cls(torch.tensor(ids), kinds, torch.tensor(numbers), tokens)

    @property
    def searched(self) -> Bool[Tensor, "windows"]:
        """Whether a window is of the documents on which latents are chosen: every other one of its kind, in an order
        drawn by seed. The others only measure."""
        rng, chosen = random.Random(0), set[int]()
        for kind in dict.fromkeys(self.kinds):
            own = sorted({int(n) for n, one in zip(self.documents, self.kinds) if one == kind})
            chosen |= set(rng.sample(own, len(own))[::2])
        return torch.tensor([int(n) in chosen for n in self.documents])


@dataclass
class Held:
    """Codes of a dictionary on windows of held-out text: dense, half precision, 0 at tokens that do not count."""

    windows: Windows
    codes: Float[Tensor, "windows pos latents"]

    @property
    def kinds(self) -> list[str]:
        return self.windows.kinds

    @property
    def tokens(self) -> list[list[str]]:
        return self.windows.tokens

    @classmethod
    def of(cls, model: ms.Model, windows: Windows, dictionaries: list[Dictionary]) -> list[Self]:
        """One pass over the windows for all dictionaries."""
        codes: list[list[Tensor]] = [[] for _ in dictionaries]
        for some in windows.ids.split(4):
            run = model.run(some, capture=[one.site for one in dictionaries], logits=False)
            for one, found in zip(dictionaries, codes):
                kept = one.skipper(model).counted(run.tokens, {str(one.site): run[one.site]})
                found.append(one.encode(run[one.site]).dense().half() * kept[..., None])
        return [cls(windows, torch.cat(found)) for found in codes]


def separate(held: Held, names: set[str]) -> dict[str, Any]:
    """concept -> its best latent: by windows for languages and code, by tokens for dates and names in English text.

    The latent is chosen on half of the documents; every number but `auroc_where_chosen` is of the other half.
    """
    return _of_windows(held) | _of_tokens(held, names)


def _of_windows(held: Held) -> dict[str, Any]:
    out: dict[str, Any] = {}
    pooled, searched = held.codes.mean(1, dtype=torch.float32), held.windows.searched
    of = {kind: torch.tensor([one == kind for one in held.kinds]) for kind in dict.fromkeys(held.kinds)}
    for kind in (*LANGUAGES, "python"):
        best, told = _best(pooled, of[kind], searched, held.windows.documents)
        fires = {one: held.codes[where & ~searched, :, best] > 0 for one, where in of.items()}
        active = {one: round(float(found.float().mean()), 4) for one, found in fires.items()}
        nearest = max((one for one in active if one != kind), key=active.__getitem__)
        out[kind] = {**told, "active": active[kind], "most_active_elsewhere": [nearest, active[nearest]]}
    return out


def _of_tokens(held: Held, names: set[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    english = [i for i, kind in enumerate(held.kinds) if kind in ("wikipedia", "stories")]
    flat = held.codes[english].flatten(0, 1)
    searched, documents = (
        one[english].repeat_interleave(TOKENS) for one in (held.windows.searched, held.windows.documents)
    )
    for concept, marks in {"dates": _dates, "names": lambda tokens: _names(tokens, names)}.items():
        at = torch.cat([marks(held.tokens[i]) for i in english])
        best, told = _best(flat, at, searched, documents)
        fires = flat[:, best] > 0
        active, elsewhere = (round(float(fires[which & ~searched].float().mean()), 4) for which in (at, ~at))
        out[concept] = {**told, "active": active, "active_elsewhere": elsewhere}
    return out


def _best(
    codes: Float[Tensor, "n latents"], y: Bool[Tensor, "n"], searched: Bool[Tensor, "n"], documents: Int[Tensor, "n"]
) -> tuple[int, dict[str, Any]]:
    """The latent of the largest AUROC where rows are searched, and what the other rows say of it; documents are what is
    drawn again for its interval."""
    up, down = (codes[searched & which] for which in (y, ~y))
    columns = zip(up.split(512, dim=1), down.split(512, dim=1))
    area = torch.cat([auroc(positive.float(), negative.float()) for positive, negative in columns])
    best, left = int(area.argmax()), ~searched
    values = codes[left, best].float()
    found = area_by_group(values, Rows(values[None, :, None], y[left], groups=documents[left]))
    told = {"auroc": round(found.value, 4), "interval": [round(found.low, 4), round(found.high, 4)]}
    counts = {"rows": int(y[left].sum()), "documents": len(documents[left & y].unique())}
    return best, {"latent": best, **told, "auroc_where_chosen": round(float(area[best]), 4), **counts}


def _dates(tokens: list[str]) -> Bool[Tensor, "pos"]:
    text, ends = "".join(tokens), torch.tensor([len(token) for token in tokens]).cumsum(0)
    spans = [match.span() for match in DATE.finditer(text)]
    starts = ends - torch.tensor([len(token) for token in tokens])
    return (
        torch.stack([(starts < stop) & (ends > start) for start, stop in spans]).any(0)
        if spans
        else torch.zeros(len(tokens), dtype=torch.bool)
    )


def _names(tokens: list[str], names: set[str]) -> Bool[Tensor, "pos"]:
    return torch.tensor([token.startswith(" ") and token[1:] in names for token in tokens])


def chosen(index: Index, separates: dict[str, Any]) -> list[int]:
    """The latents to read: those that separate, and others drawn by seed over the range of densities."""
    first = list(dict.fromkeys(entry["latent"] for entry in separates.values()))[: READ // 2]
    counts = torch.tensor(index.table["count"].to_numpy(copy=True))
    live = [int(i) for i in counts.argsort(descending=True) if counts[i] >= 100 and int(i) not in first]
    groups = [live[i * len(live) // 5 : (i + 1) * len(live) // 5] for i in range(5)]
    rng, wanted = random.Random(0), READ - len(first)
    drawn = [one for i, group in enumerate(groups) for one in rng.sample(group, wanted // 5 + (i < wanted % 5))]
    return sorted(first + drawn)


def sheet(dictionary: Dictionary, index: Index, held: Held, latents: list[int], folder: Path) -> None:
    out, quiz = list[str](), list[str]()
    key: dict[int, list[str]] = {}
    for latent in latents:
        seen = index.evidence(latent)
        out += [
            f"## {latent}   active at {seen.density:.2%}; fires on: "
            + " | ".join(f"{t!r}×{n}" for t, n, _ in seen.tokens[:8])
        ]
        out += ["promotes: " + " | ".join(repr(t) for t, _ in seen.promoted[:8])]
        out += [f"{e.maximum:.0f}: {_marked(e.tokens, e.anchor)}   [{e.document}]" for e in seen.examples[:7]]
        out += [
            f"band to {b.high:.0f}: {_marked(e.tokens, e.anchor)}   [{e.document}]"
            for b in seen.bands
            for e in b.examples[:1]
        ]
        asked = questions(dictionary, held, latent, random.Random(latent))
        key[latent] = [kind for kind, *_ in asked]
        quiz += [f"## {latent}: LABEL"] + [
            f"{n}. {_marked(held.tokens[w][max(p - 20, 0) : p + 6], min(p, 20))}"
            for n, (_, w, p) in enumerate(asked, 1)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "sheet.txt", "\n".join(out) + "\n")
    write_text(folder / "quiz.txt", "\n".join(quiz) + "\n")
    write_json(folder / "key.json", key)


def questions(dictionary: Dictionary, held: Held, latent: int, rng: random.Random) -> list[tuple[str, int, int]]:
    """(kind, window, position) of the texts in the quiz, in random order; fewer where the latent fires too rarely."""
    values = held.codes[..., latent].float()
    cosine = dictionary.W_dec @ dictionary.W_dec[latent] / dictionary.W_dec.norm(dim=1).clamp(min=1e-9)
    cosine[latent] = -2
    neighbours = held.codes[..., cosine.topk(3).indices].amax(-1)
    high = values.max()
    where = {
        "top": values > high * 2 / 3,
        "middle": (values > high / 3) & (values <= high * 2 / 3),
        "silent": values == 0,
        "near": (neighbours > 0) & (values == 0),
    }
    taken: list[tuple[str, int, int]] = []
    for kind, mask in where.items():
        places = [(w, p) for w, p in mask.nonzero().tolist() if p >= 5]
        rng.shuffle(places)
        one_a_window = list({w: (w, p) for w, p in places}.values())
        taken += [(kind, w, p) for w, p in one_a_window[: ASKED[kind]]]
    rng.shuffle(taken)
    return taken


def _marked(tokens: list[str], anchor: int) -> str:
    return "".join(f"«{visible(t)}»" if i == anchor else visible(t) for i, t in enumerate(tokens))


def score(folder: Path, target: Path) -> None:
    key, labels, answers = (json.loads((folder / f"{name}.json").read_text()) for name in ("key", "labels", "answers"))
    held = {}
    for latent, kinds in key.items():
        fires = set(answers[latent])
        right = {kind: [0, 0] for kind in ASKED}
        for number, kind in enumerate(kinds, 1):
            right[kind][1] += 1
            right[kind][0] += (number in fires) == (kind in ("top", "middle"))
        held[latent] = {"label": labels[latent], **right}
    write_json(target / "explanations.json", {"method": METHOD, "latents": held})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["separate", "sheet", "score"])
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--names", type=Path, help="folder of lists of first names")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dictionary", nargs="+", required=True, help="folders or shipped names")
    parser.add_argument("--characters", type=int, default=300_000, help="of each kind of held-out text")
    args = parser.parse_args()
    dictionaries = [one_site(name) for name in args.dictionary]
    folders = [args.work / "explanations" / Path(name).name for name in args.dictionary]
    if args.stage == "score":
        for name, folder in zip(args.dictionary, folders):
            score(folder, Path(name))
        return
    model = ms.load_model("smollm2", dtype="fp32")
    names = {line.strip() for path in sorted(args.names.glob("*.txt")) for line in path.read_text().splitlines()}
    every = Held.of(model, Windows.of(model, held_out(args)), dictionaries)
    for name, dictionary, folder, held in zip(args.dictionary, dictionaries, folders, every):
        separates = separate(held, names)
        print(folder.name, json.dumps(separates, indent=1))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "separates.json", separates)
        if (card := Path(name) / "card.json").exists():
            write_json(card, json.loads(card.read_text()) | {"tells_apart": separates})
        if args.stage == "sheet":
            index = index_of(dictionary)
            assert index is not None
            sheet(dictionary, index, held, chosen(index, separates), folder)


if __name__ == "__main__":
    main()
