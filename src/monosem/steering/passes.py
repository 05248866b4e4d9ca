"""The passes that make outcomes: several arms in one batch where their edits allow it, else one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..models import Model
from ..progress import Meter
from .rows import Beginning, EditSource, check_reached, chunks, edits_for, may_share, shares


@dataclass
class Made:
    """What an arm made of each prompt: the next token's logits (float32, on the CPU) and the continuation."""

    logits: list[Float[Tensor, "vocab"]]
    new: list[list[int]]


@dataclass
class Passes:
    """Prompts as token ids, and how arms are run over them, `batch_size` rows at a time."""

    model: Model
    rows: list[list[int]]
    temperature: float
    seed: int
    batch_size: int
    meter: Meter

    def __call__(self, arms: Sequence[EditSource], lengths: Sequence[int]) -> list[Made]:
        """What each arm makes; `lengths`: the number of new tokens of each."""
        alone = self.temperature > 0 or bool(self.model.ambient_edits)
        made: dict[int, Made] = {}
        groups: dict[int, list[int]] = {}
        for number, (arm, length) in enumerate(zip(arms, lengths)):
            if alone or not may_share(arm):
                made[number] = self._apart(arm, length)
            else:
                groups.setdefault(length, []).append(number)
        for length, group in groups.items():
            made |= zip(group, self._together([arms[number] for number in group], length))
        return [made[number] for number in range(len(arms))]

    def _apart(self, arm: EditSource, length: int) -> Made:
        """One arm over the prompts in their order."""
        made = Made([], [])
        for start in range(0, len(self.rows), self.batch_size):
            numbers = range(start, min(start + self.batch_size, len(self.rows)))
            edits = edits_for(arm, numbers)
            logits, new = self._run([self.rows[number] for number in numbers], edits, length, self.seed + start)
            made.logits += logits
            made.new += new
        return made

    def _together(self, arms: Sequence[EditSource], length: int) -> list[Made]:
        """Arms × prompts as the rows of each batch."""
        total, reached = len(self.rows), set[Edit]()
        made = [Made([torch.empty(0)] * total, [[]] * total) for _ in arms]
        lengths = [len(row) for row in self.rows]
        begin = Beginning(self.model, self.rows, arms, self.batch_size) if length == 0 else None
        for chunk in chunks(lengths, len(arms), self.batch_size):
            batch = [self.rows[number] for _ in chunk.arms for number in chunk.prompts]
            start = begin.of(chunk) if begin else None
            logits, new = self._run(batch, shares(arms, chunk, total, reached), length, start=start)
            for row, (arm, number) in enumerate((arm, number) for arm in chunk.arms for number in chunk.prompts):
                made[arm].logits[number], made[arm].new[number] = logits[row], new[row]
        check_reached(arms, reached, length)
        return made

    def _run(
        self, batch: list[list[int]], edits: Sequence[Any], length: int, seed: int = 0, start: Any = None
    ) -> tuple[list[Tensor], list[list[int]]]:
        """The next token's logits and the continuations of some rows, from one pass."""
        new: list[list[int]] = [[] for _ in batch]
        if length == 0:
            run = self.model.run(batch, edits=edits, logits="last", start=start)
            assert run.logits is not None
            logits = run.logits
        else:
            made = self.model.generate(
                batch, edits=edits, max_new_tokens=length, temperature=self.temperature, seed=seed
            )
            logits, new = made.logits, made.new
        self.meter.advance(len(batch))
        return list(logits.float().cpu()), new
