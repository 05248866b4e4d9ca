"""What a localisation found: components, heads, what they do together, backups; tables, pictures, a report."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ...statistics import Interval
from ..cells import Cell
from ..measured import Sweep
from ..sets.backups import Backup
from ..sets.evidence import Evidence

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Component:
    """A place that passed the threshold.

    Attributes:
        restored: normalised score when the place alone is restored in the corrupted run, and its standard error.
        lost: share of clean minus corrupted that is lost when the place alone is corrupted in the clean run.
        needed: whether that, too, reaches the threshold.
    """

    cell: Cell
    restored: float
    error: float
    lost: float
    needed: bool


@dataclass(frozen=True, eq=False)
class Localisation:
    """The result of `localise`; the fields are in the order of its steps.

    Attributes:
        config: everything that the job was called with, and on what.
        clean, corrupted: mean of the metric in the unpatched runs. answered: share of pairs answered right in each.
        sweep: restoring every branch. head_sweep: restoring every head of the layers found; None when there are none.
        components: branches over the threshold, strongest first. opposing: those below minus the threshold.
        heads, opposing_heads: the same for heads, at the positions found.
        evidence: label -> what a set does: "components" (whole branches), "heads and MLPs" (heads instead of whole
            attention branches), "heads" (these alone).
        control: sufficiency and necessity of random sets of the same make as the last of these.
        backup: which other heads matter more once the last set is corrupted; None when it was not asked for.
        notes: what to bear in mind, one sentence each.
    """

    config: dict[str, Any]
    clean: float
    corrupted: float
    answered: dict[str, float]
    sweep: Sweep
    head_sweep: Sweep | None
    components: Sequence[Component]
    opposing: Sequence[Component]
    heads: Sequence[Component]
    opposing_heads: Sequence[Component]
    evidence: Mapping[str, Evidence]
    control: Mapping[str, Sequence[float]]
    backup: Backup | None
    notes: Sequence[str]

    def __repr__(self) -> str:
        found = list(self.evidence.values())[-1] if self.evidence else None
        does = f"; together sufficiency {found.sufficiency}, necessity {found.necessity}" if found else ""
        heads = f", {len(self.heads)} heads" if self.heads else ""
        count = f"{len(self.components)} components{heads}"
        return f"Localisation({self.config['task']}, {self.config['model']}: {count}{does})"

    @property
    def table(self) -> pd.DataFrame:
        """A row a component and head that passed the threshold, either way."""
        groups = {
            "component": [*self.components, *self.opposing],
            "head": [*self.heads, *self.opposing_heads],
        }
        rows = [
            {
                "kind": kind,
                "site": one.cell.site,
                "layer": one.cell.layer,
                "head": one.cell.head,
                "position": "all" if one.cell.at is None else ", ".join(map(str, one.cell.at)),
                "token": self.sweep.labels.get(one.cell.position, ""),
                "restored": one.restored,
                "error": one.error,
                "lost": one.lost,
                "needed": one.needed,
            }
            for kind, components in groups.items()
            for one in components
        ]
        names = ["kind", "site", "layer", "head", "position", "token", "restored", "error", "lost", "needed"]
        return pd.DataFrame(rows, columns=names).astype({"head": "Int64"})

    @property
    def sets(self) -> pd.DataFrame:
        """A row a set: size, sufficiency and necessity with intervals, PN, PS and the bounds of PNS."""
        rows = []
        for label, found in self.evidence.items():
            row: dict[str, Any] = {"set": label, "cells": len(found.cells)}
            for name in ("sufficiency", "necessity"):
                interval: Interval = getattr(found, name)
                row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
            for name in ("pn", "ps", "both"):
                share = getattr(found, name)
                row |= {name: share.value, f"{name}_count": share.count, f"{name}_of": share.of}
                row |= {f"{name}_low": share.interval.low, f"{name}_high": share.interval.high}
            rows.append(row | {"pns_low": found.pns[0], "pns_high": found.pns[1]})
        return pd.DataFrame(rows)

    def plot(self, site: str | None = None) -> "Figure":
        """The heatmap of the branch sweep (of one site, or side by side)."""
        return self.sweep.plot(site=site)

    @property
    def results(self) -> dict[str, Any]:
        """All numbers, as what JSON can hold."""
        unpacked = {"evidence": {label: asdict(one) for label, one in self.evidence.items()}}
        for one in unpacked["evidence"].values():
            one["cells"] = [str(Cell(**cell)) for cell in one["cells"]]
        tables = {"found": self.table, "sets": self.sets, "sweep": self.sweep.table}
        if self.head_sweep is not None:
            tables["head_sweep"] = self.head_sweep.table
        if self.backup is not None:
            tables["backup"] = self.backup.table
        return {
            "config": self.config,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "answered": self.answered,
            "notes": list(self.notes),
            **unpacked,
            "control": {name: list(values) for name, values in self.control.items()},
            "tables": {
                name: frame.astype(object).where(frame.notna(), None).to_dict("records")
                for name, frame in tables.items()
            },
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.html` (self-contained), `report.md`, `results.json` and `config.yaml`; returns the page's path.

        Raises:
            MissingExtra: plotly is not installed. BadInput: the folder cannot be written to.
        """
        from .report import write

        return write(self, Path(folder))
