"""The passes that make outcomes: several arms in one batch where their edits allow it, else one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..errors import BadInput
from ..models import Model, Site
from ..models.running.prompt_rows import once
from ..progress import Meter
from .reading import Readings
from .rows import Beginning, Chunk, EditSource, check_reached, chunks, first_layer, may_share, needs_its_order, shares


@dataclass
class Made:
    """What an arm made of each prompt: the next token's logits (float32, on the CPU) and the continuation."""

    logits: list[Float[Tensor, "vocab"]]
    new: list[list[int]]


Rows = tuple[list[Tensor], list[list[int]]]  # the next token's logits of each row, and its continuation


@dataclass
class Passes:
    """Prompts as token ids, and how arms are run over them, `batch_size` rows at a time."""

    model: Model
    rows: list[list[int]]
    readings: Readings
    temperature: float
    seed: int
    batch_size: int
    meter: Meter

    def __call__(self, arms: Sequence[EditSource], lengths: Sequence[int]) -> list[Made]:
        """What each arm makes; `lengths`: the number of new tokens of each. The texts are read as they are made."""
        alone = self.temperature > 0 or bool(self.model.ambient_edits)
        made: dict[int, Made] = {}
        groups: dict[int, list[int]] = {}
        for number, (arm, length) in enumerate(zip(arms, lengths)):
            if alone or not may_share(arm) or needs_its_order(arm, len(self.rows)):
                made[number] = self._apart(arm, length)
            else:
                groups.setdefault(length, []).append(number)
        for length, group in groups.items():
            made |= zip(group, self._together([arms[number] for number in group], length))
        return [made[number] for number in range(len(arms))]

    def _apart(self, arm: EditSource, length: int) -> Made:
        """One arm over the prompts in their order."""
        around = self.model.ambient_edits
        whole = not all(getattr(edit, "by_row", False) and getattr(edit, "rows", None) is None for edit in around)
        if len(self.rows) > self.batch_size and (whole or not may_share(arm)):
            raise BadInput(
                f"batch_size={self.batch_size} splits {len(self.rows)} prompts, and an edit may need all of them at "
                "once, or one of model.editing(...) names rows: declare it by_row=True if it treats every row alone, "
                "or raise batch_size="
            )
        made, reached = Made([], []), set[Edit]()
        for first in range(0, len(self.rows), self.batch_size):
            numbers = range(first, min(first + self.batch_size, len(self.rows)))
            batch = [self.rows[number] for number in numbers]
            edits = shares([arm], Chunk(range(1), list(numbers)), len(self.rows), reached)
            logits, new = self._next(batch, edits) if length == 0 else self._more(batch, edits, length, first)
            made.logits += logits
            made.new += new
        check_reached([arm], reached, length)
        return made

    def _together(self, arms: Sequence[EditSource], length: int) -> list[Made]:
        """Arms × prompts as the rows of each batch."""
        total, reached = len(self.rows), set[Edit]()
        layer = first_layer(self.model, arms, total)
        begin = Beginning(self.model, self.rows, layer, self.batch_size) if layer and not length else None
        made = [Made([torch.empty(0)] * total, [[]] * total) for _ in arms]
        for chunk in chunks([len(row) for row in self.rows], len(arms), self.batch_size):
            batch = [self.rows[number] for _ in chunk.arms for number in chunk.prompts]
            edits = shares(arms, chunk, total, reached)
            if length == 0:
                logits, new = self._next(batch, edits, begin and begin.of(chunk))
            else:
                with once(self.model, layer, len(chunk.prompts), len(chunk.arms)):
                    logits, new = self._more(batch, edits, length, stream=Site("resid_pre", layer) if layer else None)
            for row, (arm, number) in enumerate((arm, number) for arm in chunk.arms for number in chunk.prompts):
                made[arm].logits[number], made[arm].new[number] = logits[row], new[row]
        check_reached(arms, reached, length)
        return made

    def _next(self, batch: list[list[int]], edits: Sequence[Any], start: Any = None) -> Rows:
        """The next token's logits of some rows."""
        run = self.model.run(batch, edits=edits, logits="last", start=start)
        self.meter.advance(len(batch))
        assert run.logits is not None
        return list(run.logits.float().cpu()), [[] for _ in batch]

    def _more(
        self, batch: list[list[int]], edits: Sequence[Any], length: int, first: int = 0, stream: Site | None = None
    ) -> Rows:
        """The next token's logits and the continuations, read as well. `stream`: where no edit has acted yet."""
        made = self.model.generate(
            batch,
            edits=edits,
            max_new_tokens=length,
            temperature=self.temperature,
            seed=self.seed + first,
            capture=[stream] if stream else [],
        )
        self.readings.add(batch, made.new, None if stream is None else (stream, made[stream]))
        self.meter.advance(len(batch))
        return list(made.logits.float().cpu()), made.new
