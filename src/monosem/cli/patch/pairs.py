"""What all commands of `monosem patch` take: the pairs of prompts, and how an answer is measured."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ...errors import BadInput, UnknownName, did_you_mean
from ..options import OnModel, Seed, flag, names, option

if TYPE_CHECKING:
    from ...data import TokenPairs
    from ...models import Model

Metric = Annotated[
    str | None,
    option("NAME", "logit_diff, probability_diff, log_odds, negative_kl, ... (default: by the answers)."),
]
Positions = Annotated[
    str | None,
    option("LIST", "Indices or span names, such as end,s2 or -1; spans for all spans (default: all)."),
]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A task or a file of pairs, what is kept of it, and the metric of its answers."""

    task: Annotated[str | None, option("NAME", "ioi, greater_than, capitals, pronouns, agreement, opposites.")] = None
    pairs: Annotated[Path | None, option("FILE", "Instead: pairs from .csv, .json or .jsonl.")] = None
    n: Annotated[int | None, option("N", "How many pairs (default: 16, or the whole file).", min=1)] = None
    template: Annotated[str | None, option("NAME", "ioi: ABBA, BABA or mixed.")] = None
    corruption: Annotated[str | None, option("NAME", "ioi: abc, s2_flip or random_names.")] = None
    corrupted: Annotated[str | None, option("COLUMN", "The file's column of corrupted prompts.")] = None
    drop_unaligned: Annotated[bool, flag("Leave out pairs of the file that do not align, instead of stopping.")] = False
    joint: Annotated[bool, flag("Answers of the file may be several tokens: their joint probability counts.")] = False
    solved: Annotated[bool, flag("Keep only pairs that the model answers right.")] = False
    seed: Seed = 0
    metric: Metric = None

    @property
    def name(self) -> str:
        """For file names: the task, or the file without its ending."""
        return (self.task or str(self.pairs and self.pairs.stem)).replace("_", "-")

    @property
    def _of_ioi(self) -> dict[str, str]:
        given = {"template": self.template, "corruption": self.corruption}
        return {name: value for name, value in given.items() if value is not None}

    def check(self, one_token: str = "") -> None:
        """Raises `BadInput` or `UnknownName` for options that do not go together, before anything is loaded.

        Args:
            one_token: the name of an analysis that does not take --joint.
        """
        from ...data import TASKS, check_pairs
        from ...patching import metrics_of
        from ...patching.scoring import ONE_TOKEN

        if (self.task is None) == (self.pairs is None):
            raise BadInput(f"give --task NAME ({', '.join(TASKS)}) or --pairs FILE")
        if self.task is not None and self.task.replace("-", "_") not in TASKS:
            near = did_you_mean(self.task, TASKS) or f"; there are {', '.join(TASKS)}"
            raise UnknownName(f"no task {self.task!r}{near}")
        if self._of_ioi and self.task != "ioi":
            raise BadInput(f"--{next(iter(self._of_ioi))} goes with --task ioi")
        if self.pairs is None and (self.corrupted is not None or self.drop_unaligned or self.joint):
            raise BadInput("--corrupted, --drop-unaligned and --joint go with --pairs")
        if self.joint and one_token:
            raise BadInput(f"{ONE_TOKEN.format(what=one_token)}; leave --joint out")
        if self.metric is not None:
            metrics_of(self.metric)
        if self.pairs is not None:
            check_pairs(self.pairs, self.corrupted)

    def load(self, asked: OnModel) -> "tuple[Model, TokenPairs]":
        """The model and its pairs, after `check`."""
        self.check()
        model = asked.load()
        return model, self.of(model)

    def of(self, model: "Model") -> "TokenPairs":
        """The pairs for a model."""
        from ...data import TASKS, read_pairs

        if self.pairs is not None:
            kept = {"corrupted": self.corrupted, "drop_unaligned": self.drop_unaligned, "limit": self.n}
            kept["joint"] = self.joint
            pairs = read_pairs(model, self.pairs, **kept)  # type: ignore[arg-type]
        else:
            task = TASKS[str(self.task).replace("-", "_")]
            pairs = task(model, n=self.n or 16, seed=self.seed, **self._of_ioi)
        return pairs.solved(model) if self.solved else pairs

    def metric_of(self, pairs: "TokenPairs") -> str:
        """The metric that is asked for, or the one that fits the answers."""
        from ...patching.scoring import default_metric

        return self.metric or default_metric(pairs)


def positions_of(text: str | None) -> Any:
    """`"end,s2,-1"` -> ["end", "s2", -1]; `"spans"` stays."""
    if text is None or text == "spans":
        return text
    return [int(part) if re.fullmatch("-?[0-9]+", part) else part for part in names(text)]
