"""Facts that a model knows: attributes of entities, prompts that ask for them, and the model's state at the entity."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..errors import BadFile, check_name
from ..models import Model, Site, TokenBatch
from ..progress import Meter
from ..reading import read_json
from .labelled import SETS

FILES = ("ravel_{}_entity_attributes.json", "ravel_{}_attribute_to_prompts.json")  # of explanare/ravel


@dataclass(frozen=True)
class Knowledge:
    """What is to be known. values: entity -> attribute -> value. prompts: attribute -> texts with %s for the entity."""

    values: dict[str, dict[str, str]]
    prompts: dict[str, list[str]]

    @classmethod
    def read(cls, folder: str | None, entity: str, attributes: Sequence[str]) -> "Knowledge":
        """RAVEL's files in a folder, or the bundled cities.

        Raises:
            BadFile: a file that is missing or broken. UnknownName: no such attribute.
        """
        if folder is None:
            held = json.loads(gzip.decompress((SETS / "cities.json.gz").read_bytes()))
            values, prompts = held["entities"], held["prompts"]
        else:
            values, prompts = (_object(Path(folder) / name.format(entity)) for name in FILES)
        for attribute in attributes:
            check_name("attribute", attribute, prompts)
        try:
            kept = {name: {one: str(of[one]) for one in attributes} for name, of in values.items()}
            return cls(kept, {one: [str(text) for text in prompts[one] if text.count("%s") == 1] for one in attributes})
        except (KeyError, TypeError, AttributeError) as error:
            raise BadFile(f"{folder}: not RAVEL's entities and prompts: {error!r:.80}") from error


@dataclass(frozen=True, eq=False)
class Fact:
    """A prompt about an entity that the model answers rightly.

    answer: first token of the right answer. at: index of the entity's last token. state: activations at the site.
    """

    entity: str
    attribute: str
    form: str
    ids: list[int] = field(repr=False)
    at: int
    answer: int
    state: Float[Tensor, "pos d"] = field(repr=False)


@dataclass(frozen=True)
class Known:
    """The facts that a model knows, and first tokens of right answers, (entity, attribute, form) -> token.

    tried: prompts, known: right answers, of each attribute.
    """

    facts: list[Fact]
    answers: dict[tuple[str, str, str], int] = field(repr=False)
    tried: dict[str, int]
    known: dict[str, int]


def known_facts(
    model: Model,
    site: Site,
    knowledge: Knowledge,
    *,
    entities: int,
    forms: int,
    seed: int = 0,
    batch_size: int = 32,
    quiet: bool = False,
) -> Known:
    """Ask a model about `entities` entities (drawn by the seed), in the first `forms` prompts of each attribute, and
    keep what it knows: the first token of the right answer is its most likely next one."""
    names = sorted(knowledge.values)
    chosen = [names[i] for i in np.random.default_rng(seed).permutation(len(names))[:entities]]
    asked = [
        (name, attribute, form)
        for attribute, texts in knowledge.prompts.items()
        for form in texts[:forms]
        for name in chosen
        if name not in form
    ]
    rows = [(key, read) for key in asked if (read := _read(model, key, knowledge)) is not None]
    found, tried, right = [], dict.fromkeys(knowledge.prompts, 0), dict.fromkeys(knowledge.prompts, 0)
    with Meter("facts", total=len(rows), unit="prompt", quiet=quiet) as meter:
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            tokens = batch(model, [ids for _, (ids, _, _) in some])
            run = model.run(tokens, capture=[site], logits="last")
            assert run.logits is not None
            said, states = run.logits.flatten(0, -2).argmax(-1).tolist(), run[site].detach().cpu()
            for (key, (ids, at, answer)), token, state in zip(some, said, states):
                tried[key[1]] += 1
                if token == answer:
                    right[key[1]] += 1
                    found.append(Fact(*key, ids, at, answer, state[: len(ids)].clone()))
            meter.advance(len(some))
    return Known(found, {key: answer for key, (_, _, answer) in rows}, tried, right)


def batch(model: Model, rows: list[list[int]]) -> TokenBatch:
    """Rows of ids, padded on the right."""
    return TokenBatch.of(rows, model.pad).to(model.device)


def _read(model: Model, key: tuple[str, str, str], knowledge: Knowledge) -> tuple[list[int], int, int] | None:
    """Ids of a prompt, where its entity ends, the answer's first token; None where tokens run across these borders."""
    name, attribute, form = key
    before, _ = form.split("%s")
    text = form % name
    value = knowledge.values[name][attribute].split(",")[0].strip()  # of several, the first
    prefix = model.encoded(before + name)
    ids = model.encoded(text)
    whole = model.encoded(text + ("" if text.endswith(('"', " ", "(")) else " ") + value)
    if not value or ids[: len(prefix)] != prefix or whole[: len(ids)] != ids or len(whole) == len(ids):
        return None
    return ids, len(prefix) - 1, whole[len(ids)]


def _object(path: Path) -> dict[str, Any]:
    held = read_json(path)
    if not isinstance(held, dict):
        raise BadFile(f"{path} is not RAVEL's: expected an object")
    return held
