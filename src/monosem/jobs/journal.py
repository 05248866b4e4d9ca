"""metrics.jsonl: one line a logged step, and the watch for numbers that are not finite."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput
from ..files import cannot_write, write_text
from ..reading import parse_json


class Journal:
    """Appends records of steps, and one of the end; after a resume it holds no step twice, and no end."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def truncate(self, step: int) -> None:
        """Drop lines after `step`, and a last line that a crash cut short."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def append(self, record: dict[str, Any]) -> None:
        """Raises `BadFile` when the disk is full."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error, "free some space and run again") from error


def _step_of(line: str) -> float:
    try:
        record = parse_json(line)
        return float("inf") if "end" in record else float(record["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Health:
    """Remembers, on the device, the first step whose batch or loss was not finite: a GPU need not wait each step."""

    def __init__(self, device: torch.device):
        self.first = torch.zeros(2, dtype=torch.long, device=device)  # of the batch, of the loss; 0: none

    @torch.no_grad()
    def watch(self, step: int, x: Tensor, loss: Tensor) -> None:
        bad = ~torch.stack([x.sum(), loss.detach()]).isfinite()
        self.first = torch.where((self.first == 0) & bad, step, self.first)

    def check(self, kept: Path | None) -> None:
        """Raises `BadInput` naming the step and the checkpoint that is still good."""
        batch, loss = self.first.tolist()
        if not batch and not loss:
            return
        cause = (
            f"the batch of step {batch} holds NaN or infinity; check the model's dtype and the text"
            if batch
            else f"the loss of step {loss} is NaN or infinity; lower lr, or raise warmup_steps"
        )
        raise BadInput(
            f"training stopped: {cause}. " + (f"{kept} is still good" if kept else "No checkpoint was made yet")
        )
