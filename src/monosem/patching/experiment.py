"""One experiment: variants of a run, on every pair, and the numbers that each of them gives.

A sweep, its gradient estimate, sets of cells, subspaces and paths are each a generator: given a trial (some pairs with
one draw of their other side), it yields `(which, outcome)`, the variants that it has computed and their logits. The
loop around it is the same for all of them: `Experiment.run`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput
from ..progress import Meter
from . import scoring
from .corruptions import PROMPT
from .measured import Columns, Measured
from .moments import Moments
from .scoring import Metric

Direction = Literal["denoising", "noising"]
Which = slice | range | Sequence[int] | Int[Tensor, "n"]
# logits after the last token, all pairs of the first variant, then of the second; or the numbers themselves. Of answers
# of several tokens a trial is of one side, and the logits are of each step (`Trial.read`)
Outcome = (
    Float[Tensor, "which*pairs vocab"]
    | Float[Tensor, "which*pairs step vocab"]
    | Mapping[str, Float[Tensor, "which*pairs"]]
)
KEPT_NUMBERS = 2**26  # values of one metric that are kept one by one (0.5 GB); beyond, only their moments


class Draw(Protocol):
    """Some pairs with one draw of their other side: what the loop must know about a trial."""

    @property
    def pairs(self) -> TokenPairs: ...

    @property
    def clean_logits(self) -> Float[Tensor, "pairs vocab"]: ...

    @property
    def other_logits(self) -> Float[Tensor, "pairs vocab"]: ...


T = TypeVar("T", bound=Draw)


@dataclass(frozen=True, eq=False)
class Experiment(Generic[T]):
    """Pairs, what is measured on them, and which way.

    Attributes:
        trials: rows of the pairs -> their trials, each with its share in the pair's mean over draws.
        at_once: pairs that make one trial. model, corruption: names, for the result.
        has_scale: whether scores are asked for, so that the two runs of every pair must differ; where bare values are
            written instead of another run's, effects say enough.
    """

    pairs: TokenPairs
    metrics: Mapping[str, Metric]
    direction: Direction
    trials: Callable[[slice], Iterable[tuple[T, float]]]
    at_once: int = 1
    model: str = ""
    corruption: str = PROMPT.label
    has_scale: bool = True

    def run(
        self,
        variants: Callable[[T], Iterable[tuple[Which, Outcome]]],
        columns: Columns,
        *,
        label: str,
        unit: str = "run",
        keep: bool | None = None,
        quiet: bool = False,
    ) -> Measured:
        """Measure every variant on every pair.

        Args:
            variants: a trial -> which variants are computed, and their logits (or numbers by metric); every variant
                once a trial, in any order, as many at once as memory allows.
            columns: what tells the variants apart, an entry for each (`Measured.columns`).
            keep: whether to keep every value, or only means and spreads over pairs; default: by `KEPT_NUMBERS`.

        Raises:
            BadInput: a number that is not finite, or a pair whose clean and corrupted runs are the same.
        """
        n, count = len(next(iter(columns.values()))), len(self.pairs)
        keep = n * count <= KEPT_NUMBERS if keep is None else keep
        values = {name: torch.zeros(n, count, dtype=torch.float64) if keep else Moments(n) for name in self.metrics}
        clean, corrupted = (
            {name: torch.zeros(count, dtype=torch.float64) for name in self.metrics} for _ in ("clean", "corrupted")
        )
        with Meter(label, total=n * count, unit=unit, quiet=quiet) as meter:
            for first in range(0, count, self.at_once):
                rows = slice(first, min(first + self.at_once, count))
                part = {
                    name: torch.zeros(n, rows.stop - first, dtype=torch.float64) if isinstance(held, Moments) else
                    held[:, rows] for name, held in values.items()
                }  # fmt: skip
                self._measure(rows, variants, clean, corrupted, part, meter)
                for name, held in values.items():
                    if isinstance(held, Moments):
                        held.add(part[name], clean[name][rows], corrupted[name][rows])
        return Measured(
            numbers=values, clean=clean, corrupted=corrupted, direction=self.direction, columns=columns,
            model=self.model, corruption=self.corruption,
        )  # fmt: skip

    def _measure(
        self,
        rows: slice,
        variants: Callable[[T], Iterable[tuple[Which, Outcome]]],
        clean: Mapping[str, Tensor],
        corrupted: Mapping[str, Tensor],
        part: Mapping[str, Float[Tensor, "variants rows"]],
        meter: Meter,
    ) -> None:
        """Add what some pairs give: both ends to `clean` and `corrupted`, every variant to `part`."""
        every = torch.arange(len(next(iter(part.values()))))
        same = torch.ones(rows.stop - rows.start, dtype=torch.bool)
        for trial, share in self.trials(rows):
            self._add(clean, rows, trial, trial.clean_logits, share, rows.start)
            self._add(corrupted, rows, trial, trial.other_logits, share, rows.start)
            same &= (trial.clean_logits == trial.other_logits).flatten(1).all(1).cpu()
            times = torch.zeros(len(every), dtype=torch.long)
            for which, outcome in variants(trial):
                where = _index(which)
                added = self._add(part, where, trial, outcome, share, rows.start)
                times.index_add_(0, chosen := every[where], torch.ones_like(chosen))
                meter.advance(share * added)
            if wrong := (times != 1).nonzero().flatten().tolist():
                raise RuntimeError(
                    f"every variant comes once a trial: of {len(every)} variants, {len(wrong)} did not; "
                    f"variant {wrong[0]} came {int(times[wrong[0]])} times"
                )
        if self.has_scale and bool(same.any()):
            pair = rows.start + int(same.nonzero()[0])
            numbers = ", ".join(f"{name} {clean[name][pair]:.4g} and {corrupted[name][pair]:.4g}" for name in clean)
            raise BadInput(
                f"the clean and the corrupted run of pair {pair} are the same ({numbers}), so there is nothing to "
                "patch; give a prompt that differs, leave the pair out, or take another corruption, such as noise"
            )

    def _add(
        self, into: Mapping[str, Tensor], where: slice | Tensor, trial: T, outcome: Outcome, share: float, pair: int
    ) -> int:
        """Add a draw's share of what some runs gave; returns how many numbers a metric that was.

        Args:
            pair: the number of the trial's first pair.

        Raises:
            BadInput: a number that is not finite, which every mean and score would hide.
        """
        numbers = outcome if isinstance(outcome, Mapping) else numbers_of(trial, self.metrics, outcome)
        added = 0
        for name, value in numbers.items():
            target, value = into[name], value.detach().double().cpu()
            if not bool(value.isfinite().all()):
                bad = int((~value.isfinite()).nonzero()[0])
                raise BadInput(
                    f"{name} is {float(value[bad])} in a {'patched' if target.ndim > 1 else 'clean or corrupted'} run "
                    f"of pair {pair + bad % len(trial.pairs)}; {_remedy(outcome)}"
                )
            target[where] += share * (value.reshape(-1, target.shape[1]) if target.ndim > 1 else value)
            added = value.numel()
        return added


def _remedy(outcome: Outcome) -> str:
    if isinstance(outcome, Tensor) and not bool(outcome.isfinite().all()):
        return "the model's logits are not finite: load it in float32 or bfloat16, or patch less"
    return "the logits are finite, so it is the metric that is not defined there: take another, or leave the pair out"


def numbers_of(
    trial: Draw, metrics: Mapping[str, Metric], logits: Float[Tensor, "which*pairs vocab"]
) -> dict[str, Float[Tensor, "which*pairs"]]:
    """Every metric of runs of a trial's pairs; of a side of an answer of several tokens, what it adds to the metric."""
    pairs, clean, count = trial.pairs, trial.clean_logits, len(trial.pairs)
    if len(logits) != count:
        rows = [*range(count)] * (len(logits) // count)
        pairs, clean = pairs[rows], clean[rows] if count > 1 else clean.expand(len(rows), *clean.shape[1:])
    if (side := getattr(trial, "answer", None)) is not None:
        numbers = scoring.jointly_measured(metrics, logits, side.tokens, side.name, pairs, clean)
        return {name: side.count * value for name, value in numbers.items()}  # a side has a share of the trial's
    return scoring.measured(metrics, logits, pairs, clean)


def _index(which: Which) -> slice | Tensor:
    if isinstance(which, range) and which.step == 1:
        return slice(which.start, which.stop)
    return which if isinstance(which, slice) else torch.as_tensor(which, dtype=torch.long, device="cpu")
