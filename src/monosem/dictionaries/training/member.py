"""One dictionary of a run: its config, folder, state and journal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from ...jobs import Health, Journal
from ...progress import say
from ..dictionary import Dictionary
from ..several import SeveralSites
from .config import TrainConfig
from .end_to_end import EndToEnd
from .outcome import FOLDER, save_outcome
from .state import Batch, TrainingState
from .step import Record, train_step

TOKENS = "tokens"  # what stands in a batch instead of sites where a run is trained end to end


class Member:
    """`name` is "" for the dictionary of a run of one. There is no `state` before the first batches were read."""

    def __init__(
        self, name: str, config: TrainConfig, folder: Path, device: torch.device, end_to_end: EndToEnd | None = None
    ):
        self.end_to_end = end_to_end
        self.name, self.config, self.folder, self.device = name, config, folder, device
        self.journal, self.health = Journal(folder / "metrics.jsonl"), Health(device)
        self.sites = config.sites
        self.state: TrainingState | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step if self.state else 0

    @property
    def waiting(self) -> bool:
        """Whether calibration batches are left to train on."""
        return bool(self.state and self.state.pending)

    @property
    def widths(self) -> dict[str, int]:
        """Site -> its width, as far as it is known."""
        return dict(zip(self.sites, self.state.widths)) if self.state else {}

    def begin(self, first: list[dict[str, Tensor]]) -> None:
        """Calibrate on the run's first batches, {site: rows} each; end to end, {TOKENS: ids}."""
        if self.end_to_end is None:
            self.state = TrainingState.begin(self.config, [self._batch(rows) for rows in first], self.device)
            return
        ids = [rows[TOKENS] for rows in first]
        read = [self._batch(self.end_to_end.rows(some, counted=False)[0]) for some in ids]
        self.state = TrainingState.begin(self.config, read, self.device)
        self.state.pending = [*ids]

    def restore(self, saved: dict[str, Any] | None) -> None:
        self.state = TrainingState.restore(self.config, saved, self.device) if saved else None

    def stepped(self, rows: Mapping[str, Tensor] | None, logged: bool) -> Record:
        """One step, on the batch that is given or on the next that waits."""
        assert self.state is not None
        if self.end_to_end is None:
            batch, rest = self.state.pending.pop(0) if rows is None else self._batch(rows), None
        else:
            ids = self.state.pending.pop(0) if rows is None else rows[TOKENS]
            assert isinstance(ids, Tensor)
            self.state.tokens = ids
            read, rest = self.end_to_end.read(ids)
            batch = self._batch(read)
        return train_step(self.state, self.config, batch, self.device, self.health, logged, rest)

    def check_health(self, kept: Path | None) -> None:
        """Raises `BadInput` naming the first step with something not finite, and the checkpoint that is still good."""
        try:
            self.health.check(kept)
        except BadInput as error:
            raise BadInput(self.named(str(error))) from error

    def save_outcome(self, stream: Any) -> None:
        """The dictionary as it is now."""
        assert self.state is not None
        save_outcome(self.config, self.state, stream, self.folder, self.end_to_end, finished=False)

    def finish(self, stream: Any, quiet: bool) -> Dictionary | SeveralSites:
        """Save and measure the result. Raises `BadInput` when it is none."""
        assert self.state is not None
        outcome = save_outcome(self.config, self.state, stream, self.folder, self.end_to_end, finished=True)
        if outcome is None:
            raise BadInput(
                self.named(
                    "training ended, but no latent fires, so there is no dictionary; train for longer, or raise lr"
                )
            )
        self.journal.append({"step": self.step, "end": outcome.measured})
        if outcome.problems:
            raise BadInput(
                self.named(
                    f"training ended, but the dictionary is not finished: {'; '.join(outcome.problems)}. It is saved "
                    f"in {self.folder / FOLDER}, marked as unfinished"
                )
            )
        fit, left_out = outcome.saved, int(self.state.outliers)
        out = f"; {left_out:,} outliers were left out" if left_out else ""
        share = "too few steps to say how many" if outcome.dead is None else f"{outcome.dead:.1%}"
        measured = f"as saved: FVE {fit.fve:.3f} at L0 {fit.l0:.1f}, {share} of the latents dead{out}"
        say(self.named(measured), quiet)
        return outcome.dictionary

    def named(self, message: str) -> str:
        """With its name before it, where the run has several."""
        return f"{self.name}: {message}" if self.name else message

    def _batch(self, rows: Mapping[str, Tensor]) -> Batch:
        found = [rows[site] for site in self.sites]
        return found[0] if len(found) == 1 else tuple(found)
