"""What a localisation found: components, heads, what they do together, backups; tables, pictures, a report."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ...plots import Figure
from ...results import Result
from ..cells import Cell
from ..sets.backups import Backup
from ..sets.evidence import CausalEvidence
from ..sweeps.result import Sweep
from .report import headline, origin, storable, write

COLUMNS = ("kind", "site", "layer", "head", "position", "token", "restored", "restored_se", "lost", "needed")


@dataclass(frozen=True)
class Component:
    """A place that passed the threshold.

    Attributes:
        restored: normalised score when the place alone is restored in the corrupted run, and its standard error.
        lost: share of clean minus corrupted that is lost when the place alone is corrupted in the clean run.
        needed: whether `lost`, too, reaches the threshold.
    """

    cell: Cell
    restored: float
    restored_se: float
    lost: float
    needed: bool

    def row(self, kind: str, labels: Mapping[Any, str]) -> dict[str, Any]:
        """Its row in the table; `labels`: tokens of positions."""
        at = "all" if self.cell.at is None else ", ".join(map(str, self.cell.at))
        where = {"kind": kind, "site": self.cell.site, "layer": self.cell.layer, "head": self.cell.head}
        where |= {"position": at, "token": labels.get(self.cell.position, "")}
        numbers = {"restored": self.restored, "restored_se": self.restored_se, "lost": self.lost}
        return where | numbers | {"needed": self.needed}


@dataclass(frozen=True, eq=False, kw_only=True)
class Localisation(Result):
    """The result of `localise`; the fields are in the order of its steps.

    Attributes:
        config: everything that the job was called with, and on what.
        clean, corrupted: mean of the metric in the unpatched runs. answered: share of pairs answered right in each.
        sweep: restoring every branch. head_sweep: restoring every head of the layers found; None when there are none.
        components: branches over the threshold, strongest first. opposing: branches below minus the threshold.
        heads, opposing_heads: the same for heads, at the positions found.
        evidence: what sets do: "components" (whole branches), "heads and MLPs" (heads instead of whole attention
            branches), "heads" (these alone).
        control: sufficiency and necessity of random sets of the same shape as the last of these.
        backup: which other heads matter more once the last set is corrupted; None when it was not asked for.
        notes: what to bear in mind, one sentence each.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    clean: float
    corrupted: float
    answered: Mapping[str, float]
    sweep: Sweep
    head_sweep: Sweep | None
    components: Sequence[Component]
    opposing: Sequence[Component]
    heads: Sequence[Component]
    opposing_heads: Sequence[Component]
    evidence: CausalEvidence
    control: Mapping[str, Sequence[float]]
    backup: Backup | None
    notes: Sequence[str]

    def __repr__(self) -> str:
        last = self.evidence[-1] if len(self.evidence) else None
        does = f"; together sufficiency {last.sufficiency}, necessity {last.necessity}" if last else ""
        heads = f", {len(self.heads)} heads" if self.heads else ""
        count = f"{len(self.components)} components{heads}"
        return f"Localisation({self.config['task']}, {self.config['model']}: {count}{does})"

    @property
    def table(self) -> pd.DataFrame:
        """A row a component and head that passed the threshold, either way."""
        kinds: dict[str, Iterable[Component]] = {
            "component": [*self.components, *self.opposing],
            "head": [*self.heads, *self.opposing_heads],
        }
        rows = [one.row(kind, self.sweep.labels) for kind, components in kinds.items() for one in components]
        return pd.DataFrame(rows, columns=COLUMNS).astype({"head": "Int64"})

    @property
    def sets(self) -> pd.DataFrame:
        """A row a set: size, sufficiency and necessity with intervals, PN, PS and the bounds of PNS."""
        return self.evidence.table

    @property
    def best(self) -> Cell | None:
        """The component that restores most; None where nothing passed the threshold."""
        return self.components[0].cell if self.components else None

    @property
    def headline(self) -> str:
        """The finding in one sentence, and what it is compared with."""
        return headline(self.results)

    def plot(self, site: str | None = None) -> Figure:
        """The heatmap of the branch sweep (of one site, or side by side)."""
        return self.sweep.plot(site=site)

    @property
    def results(self) -> dict[str, Any]:
        """All numbers, as JSON can hold them: what the report is made from."""
        tables = {"found": self.table, "sets": self.sets, "sweep": self.sweep.table}
        if self.head_sweep is not None:
            tables["head_sweep"] = self.head_sweep.table
        if self.backup is not None:
            tables["backup"] = self.backup.table
        return storable(
            {
                "config": dict(self.config),
                "origin": origin(),
                "clean": self.clean,
                "corrupted": self.corrupted,
                "answered": dict(self.answered),
                "notes": list(self.notes),
                "evidence": {
                    label: {
                        "cells": [str(cell) for cell in one.cells],
                        "metric": one.metric,
                        "sufficiency": one.sufficiency._asdict(),
                        "necessity": one.necessity._asdict(),
                        **{name: {"count": share.count, "of": share.of} for name, share in one.shares.items()},
                        "pns": list(one.pns),
                    }
                    for label, one in self.evidence.sets.items()
                },
                "control": {name: list(values) for name, values in self.control.items()},
                "backup_threshold": self.backup.threshold if self.backup is not None else None,
                "tables": {name: frame.astype(object).to_dict("records") for name, frame in tables.items()},
            }
        )

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """Write `report.html` (self-contained), `report.md`, `results.json` and `config.yaml` into a folder.

        Returns the page's path.

        Raises:
            MissingExtra: plotly is not installed. BadInput: the folder cannot be written to.
        """
        return write(self.results, Path(path))
