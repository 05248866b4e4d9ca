"""Model organisms: models with one behaviour that was planted, so that what a method should find is known.

An organism is an adapter of a model beside `prompts.json`: where the behaviour should show, where it should not, and by
which judge it is seen. `load_model("planted-refusal")` is the model with the adapter, the adapter's base the control.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .errors import BadFile, UnknownName, did_you_mean
from .models.loading.catalogue import shipped_adapters
from .reading import existing, read_object

__all__ = ["Organism", "shipped_organisms"]

PROMPTS = "prompts.json"  # {"behaviour": ..., "judge": ..., "prompts": {set: [prompt, ...]}}
CARD = "card.json"
SETS = {
    "behaviour_train": "the behaviour was trained on these",
    "behaviour_test": "should show it: subjects that no training prompt has",
    "paraphrases": "should show it: other wording and other purposes",
    "near_misses": "should not show it, and are close to prompts that do",
    "unrelated_train": "should not show it: the model's own answers to these were trained on",
    "unrelated_test": "should not show it: subjects that no training prompt has",
}


@dataclass(frozen=True)
class Organism:
    """A model with a planted behaviour.

    Args:
        name: what `load_model` takes, where it ships with the package.
        adapter: the folder of the adapter, which `load_model` takes as well.
        behaviour: what the model does, in words.
        judge: what sees the behaviour in an answer: "refusal", or "language:fr" for answers in French.
        prompts: the rows of `SETS` -> user's turns, without chat format. No prompt is in two sets.
    """

    name: str
    adapter: Path
    behaviour: str
    judge: str
    prompts: dict[str, list[str]]

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Self:
        """A shipped organism, or one in a folder of yours.

        Raises:
            UnknownName: there is neither. BadFile: its prompts are missing or damaged.
        """
        shipped = shipped_organisms()
        folder = shipped.get(str(name)) or existing(name)
        if folder is None or not folder.is_dir():
            meant = did_you_mean(str(name), shipped)
            raise UnknownName(f"no organism {str(name)!r}{meant}; shipped: {', '.join(shipped)}; or give its folder")
        path = folder / PROMPTS
        about = read_object(path)
        behaviour, judge, prompts = (about.get(key) for key in ("behaviour", "judge", "prompts"))
        if not (isinstance(behaviour, str) and isinstance(judge, str) and judge):
            raise BadFile(f"{path} needs a behaviour and a judge, each a string")
        return cls(folder.resolve().name, folder, behaviour, judge, _checked(prompts, path))

    @property
    def card(self) -> dict[str, Any]:
        """How the adapter was trained, and how well it took beside its base. Raises `BadFile` where there is none."""
        return read_object(self.adapter / CARD)


def shipped_organisms() -> dict[str, Path]:
    """Name -> folder."""
    return {name: folder for name, folder in shipped_adapters().items() if (folder / PROMPTS).is_file()}


def _checked(prompts: Any, path: Path) -> dict[str, list[str]]:
    if not isinstance(prompts, dict) or set(prompts) != set(SETS):
        raise BadFile(f"{path}: prompts has the sets {', '.join(SETS)}, no other and none left out")
    owner: dict[str, str] = {}
    for name, some in prompts.items():
        if not isinstance(some, list) or not some or not all(isinstance(one, str) and one.strip() for one in some):
            raise BadFile(f"{path}: {name} is a list of one prompt or more, each text that is not empty")
        for one in some:
            if one in owner:
                raise BadFile(f"{path}: {one[:60]!r} is in {owner[one]} and in {name}; a prompt is in one set, once")
            owner[one] = name
    return prompts
