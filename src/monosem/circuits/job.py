"""The circuit job: from pairs of prompts to a circuit, what it is worth, and a report.

1. **Scores** of all edges, on one half of the pairs.
2. **Circuit**: the edges chosen by these scores, pruned.
3. **Check**: sampled edges patched one by one on the half that gave the scores, beside these.
4. **Curve**: faithfulness of circuits of growing size, on the other half, with CPR and CMD.
5. **Evidence** on the other half: sufficiency, necessity, completeness, minimality.

Every step's numbers are kept in the folder when it is done; the same command goes on with the next.
"""

import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data import TokenPairs
from ..errors import BadFile, BadInput
from ..files import json_value, replacing, write_json
from ..jobs import claim, fingerprint, module_fingerprint
from ..models import Model
from ..patching.scoring import default_metric, refuse_joint
from ..progress import say
from ..reading import read_object, read_torch
from .attribute import attribute
from .circuit import Circuit
from .comparison import compare_scores
from .config import CircuitConfig
from .curves import curve
from .evidence import evidence
from .faithfulness import faithfulness
from .files import save_graph
from .graph import Graph
from .report import write
from .scores import EdgeScores


@dataclass(frozen=True)
class FoundCircuit:
    """What the job found, and where it wrote it."""

    circuit: Circuit
    scores: EdgeScores
    results: Mapping[str, Any]
    folder: Path

    @property
    def html(self) -> Path:
        return self.folder / "report.html"


def find_circuit(
    model: Model,
    pairs: TokenPairs,
    *,
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> FoundCircuit:
    """Find a circuit, judge it on pairs that it was not found on, and write a report.

    Args:
        pairs: two or more; the first half is for the scores and the exact check of them, the other for everything
            that judges.
        folder: of report.html, report.md, results.json, and the graph as EAP-IG's graph.json.
        settings: fields of `CircuitConfig`.
        fresh: forget what an earlier run left there.

    Raises:
        BadInput: fewer than 2 pairs; as `attribute`. Mismatch: the folder holds a circuit with other settings.
    """
    config = CircuitConfig.parse(settings or {})
    if len(pairs) < 2:
        raise BadInput("a circuit is found on one half of the pairs and judged on the other: give 2 pairs or more")
    refuse_joint(pairs, "circuits")
    half = (len(pairs) + 1) // 2
    order = list(range(len(pairs)))
    sides = pairs[order[:half]], pairs[order[half:]]
    made_with = {
        "model": model.name, "model_weights": module_fingerprint(model.hf), "version": __version__,
        "pairs": fingerprint(*(str(part.ids.tolist()) for part in (pairs.clean, pairs.corrupted))),
    }  # fmt: skip
    with claim(folder, config, work="parts/*", made_with=made_with, fresh=fresh) as home:
        return _Job(model, *sides, config, config.metric or default_metric(pairs), home, quiet).run(pairs)


@dataclass(frozen=True, eq=False)
class _Job:
    """`found_on`, `judged_on`: the two halves of the pairs."""

    model: Model
    found_on: TokenPairs
    judged_on: TokenPairs
    config: CircuitConfig
    metric: str
    home: Path
    quiet: bool

    def run(self, pairs: TokenPairs) -> FoundCircuit:
        (self.home / "parts").mkdir(exist_ok=True)
        config, scores = self.config, self.scores()
        circuit = self.chosen(scores, config.by)
        if not circuit.n_edges:
            raise BadInput(
                f"{circuit.notes[-1].partition(':')[0]}: choose more edges, or how=greedy (--set how=greedy)"
            )
        options: dict[str, Any] = {"metric": self.metric, "batch_size": config.batch_size, "quiet": self.quiet}
        how: Any = config.how if self.signed else "greedy"
        parts: dict[str, Callable[[], Any]] = {
            "check": lambda: self.check(scores),
            "curve": lambda: _curve(curve(self.model, self.judged_on, scores, how=how, **options)),
            "circuits": lambda: self.both(scores, circuit, options),
            "evidence": lambda: _evidence(self, circuit, options),
        }
        numbers = {name: self.part(name, measured) for name, measured in parts.items()}
        numbers["circuit"], numbers["other_way"] = (*numbers.pop("circuits"), None)[:2]
        results = json_value(numbers | self.facts(pairs, scores, circuit))
        save_graph(self.home / "graph.json", scores, circuit)
        write(results, self.home)
        return FoundCircuit(circuit, scores, results, self.home)

    @property
    def signed(self) -> bool:
        """Whether the method's scores have a sign that means something."""
        return self.config.method not in ("ifr", "random")

    def chosen(self, scores: EdgeScores, by: str) -> Circuit:
        choose = getattr(scores, self.config.how)
        return choose(min(self.config.edges, scores.graph.n_edges), absolute=by == "absolute")

    def both(self, scores: EdgeScores, circuit: Circuit, options: Mapping[str, Any]) -> list[dict[Hashable, Any]]:
        """The circuit, and as many edges chosen the other way: by signed score in place of absolute, or the reverse."""
        runs: dict[str, Circuit] = {self.config.by: circuit}
        other = {"absolute": "signed", "signed": "absolute"}[self.config.by]
        if self.signed:
            runs[other] = self.chosen(scores, other)
        found = faithfulness(self.model, self.judged_on, runs, **options)
        ends = {side: float(getattr(found, side)[self.metric].mean()) for side in ("clean", "corrupted")}
        nothing = -float(found.corrupted["negative_kl"].mean())
        return found.rows().assign(kl=found.kl().tolist(), kl_of_nothing=nothing, **ends).to_dict("records")

    def scores(self) -> EdgeScores:
        path = self.home / "parts" / "scores.pt"
        if path.exists():
            held = _held(path, read_torch)
            say(f"scores are in {path}", self.quiet)
            return EdgeScores(Graph.of(self.model), **held)
        config = self.config
        found = attribute(
            self.model, self.found_on, config.method, metric=self.metric, steps=config.steps, rule=config.rule,
            batch_size=config.batch_size, seed=config.seed, quiet=self.quiet,
        )  # fmt: skip
        names = ("values", "method", "metric", "model", "clean", "corrupted", "n")
        with replacing(path) as temporary:
            torch.save({name: getattr(found, name) for name in names}, temporary)
        return found

    def part(self, name: str, measured: Callable[[], Any]) -> Any:
        """A step's numbers, from its file where it was done before."""
        path = self.home / "parts" / f"{name}.json"
        if not path.exists():
            write_json(path, {"is": json_value(measured())})
        return _held(path, read_object)["is"]

    def check(self, scores: EdgeScores) -> Any:
        if not self.config.check:
            return None
        config = self.config
        found = compare_scores(
            self.model, self.found_on, scores, n=config.check, metric=self.metric, seed=config.seed, quiet=self.quiet
        )
        table = found.table.rename(columns={scores.method: "score"})
        return {"summary": found.summary.to_dict("records"), "edges": table.to_dict("records")}

    def facts(self, pairs: TokenPairs, scores: EdgeScores, circuit: Circuit) -> dict[str, Any]:
        """Everything else that the report says."""
        graph = scores.graph
        table = circuit.table
        table = table.iloc[table["score"].abs().argsort(kind="stable")[::-1]]
        return {
            "task": pairs.source or "pairs", "model": self.model.name, "metric": self.metric,
            "pairs": {"scores": len(self.found_on), "judged": len(self.judged_on)},
            "notes": [*pairs.notes, *circuit.notes],
            "settings": self.config.model_dump(mode="json"), "version": __version__,
            "graph": {"nodes": len(graph.sources), "slots": len(graph.slots), "edges": graph.n_edges},
            "ends": {"clean": scores.clean, "corrupted": scores.corrupted},  # of the pairs of the scores
            "edges": table.to_dict("records"), "nodes": circuit.nodes,
            "example": {
                "clean": self.model.text(pairs.clean.rows()[0]),
                "corrupted": self.model.text(pairs.corrupted.rows()[0]),
            },
        }  # fmt: skip


def _held(path: Path, read: Callable[[Path], Any]) -> Any:
    """A step's file, and what to do where it is damaged."""
    try:
        return read(path)
    except BadFile as error:
        raise BadFile(f"{error}; delete this file, and the same command measures the step again") from None


def _curve(found: Any) -> dict[str, Any]:
    return {"cpr": found.cpr, "cmd": found.cmd, "rows": found.table.to_dict("records")}


def _evidence(job: _Job, circuit: Circuit, options: Mapping[str, Any]) -> dict[str, Any]:
    found = evidence(
        job.model, job.judged_on, circuit, sets=job.config.sets, nodes=job.config.nodes, seed=job.config.seed, **options
    )
    return {
        "numbers": found.table.to_dict("records"), "completeness": found.completeness.to_dict("records"),
        "minimality": found.minimality.to_dict("records"),
    }  # fmt: skip
