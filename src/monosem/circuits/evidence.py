"""What speaks for a circuit: is it enough, is it needed, is it all there is, and is each of its nodes needed.

With F(C) the mean of a metric when only the edges C are kept, M all edges, and K some of the circuit's nodes, taken
away with all edges that leave them:

- **sufficiency** f(C) and **necessity** 1 - f(M \\ C), as shares of F(M) - F(∅); PN, PS and the bounds of PNS over
  pairs as in `patching.sets.evidence`.
- **completeness**: |F(C \\ K) - F(M \\ K)| for sampled K: a complete circuit breaks as the model does, whatever is
  taken away (Wang et al. 2022, section 4). Reported as a share of F(M) - F(∅); 0 is complete. Where K leaves the model
  itself nothing of the effect, both answer as on the corrupted prompts and 0 says nothing: `left` is what it leaves.
- **minimality** of a node v: the largest |F(C \\ (K ∪ v)) - F(C \\ K)| over K, of which none is one; as the same share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput
from ..models import Model
from ..patching.corruptions import Corruption
from ..patching.scoring import METRICS, MetricLike, one_metric, refuse_joint
from ..results import Result, analysis
from ..statistics import Interval, Share, bootstrap_ratio
from .circuit import Circuit
from .faithfulness import measure

Edges = Bool[Tensor, "place source slot"]


@dataclass(frozen=True, eq=False)
class CircuitEvidence(Result):
    """The definitions stand at the top of this module.

    Attributes:
        pn, ps: over pairs that are right clean (wrong corrupted); None without right and wrong answers.
        completeness: a row a sampled set of nodes; `left` is the share of the effect that the model keeps without them.
        minimality: a row a node. Both have 95 % intervals over pairs, by bootstrap (`low`, `high`); a difference whose
            interval has 0 in it may be noise of few pairs.
    """

    circuit: Circuit
    metric: str
    sufficiency: Interval
    necessity: Interval
    pn: Share | None
    ps: Share | None
    completeness: pd.DataFrame = field(repr=False)
    minimality: pd.DataFrame = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def pns(self) -> tuple[float, float] | None:
        """Bounds of the probability of necessity and sufficiency: max(0, PN + PS - 1) and min(PN, PS)."""
        if self.pn is None or self.ps is None:
            return None
        pn, ps = self.pn.value, self.ps.value
        return max(0.0, pn + ps - 1), min(pn, ps)

    @property
    def table(self) -> pd.DataFrame:
        """A row a number, with its interval where there is one."""
        rows: list[dict[str, Any]] = []
        for name, interval in (("sufficiency", self.sufficiency), ("necessity", self.necessity)):
            rows.append({"number": name, "value": interval.value, "low": interval.low, "high": interval.high})
        rows += [
            {"number": name, **held.interval._asdict()} for name, held in (("PN", self.pn), ("PS", self.ps)) if held
        ]
        rows += [{"number": f"PNS, {end} bound", "value": at} for end, at in zip(("lower", "upper"), self.pns or ())]
        rows += [
            {"number": "incompleteness, mean over sets", "value": float(self.completeness["gap"].mean())},
            {"number": "effect left to the model, mean over sets", "value": float(self.completeness["left"].mean())},
        ]
        for name, table, column, pick in (
            ("incompleteness, largest", self.completeness, "gap", "idxmax"),
            ("smallest minimality of a node", self.minimality, "share", "idxmin"),
        ):
            if len(table):
                row = table.loc[getattr(table[column], pick)()]
                rows.append({"number": name, "value": row[column], "low": row["low"], "high": row["high"]})
        return pd.DataFrame(rows)


@analysis
def evidence(
    model: Model,
    pairs: TokenPairs,
    circuit: Circuit,
    *,
    sets: int = 8,
    nodes: int = 40,
    metric: MetricLike | None = None,
    corruption: Corruption | None = None,
    batch_size: int = 8,
    seed: int = 0,
    quiet: bool = False,
) -> CircuitEvidence:
    """Sufficiency, necessity, completeness and minimality of a circuit.

    Args:
        sets: sampled sets K, each node in a set with probability 1/2, for completeness; a fourth of them are used for
            minimality as well.
        nodes: how many nodes are taken out one by one for minimality: those with the largest scores.

    Raises:
        BadInput: an empty circuit, or no set.
    """
    if not circuit.n_edges or min(sets, nodes) < 1:
        raise BadInput("there is evidence for a circuit with edges, over one set of nodes and one node at least")
    refuse_joint(pairs, "evidence")
    name, function = one_metric(metric, pairs)
    full = Circuit.full(circuit.graph)
    every = [node for node in circuit.nodes if node != "input"]
    groups, alone = _sets(every, sets, seed), _largest(circuit, every, nodes)
    runs = {"C": circuit, "M without C": circuit.complement()}
    for number, group in enumerate(groups):
        leaving = _leaving(full, group)
        runs |= {f"C without {number}": circuit.without(leaving), f"M without {number}": full.without(leaving)}
    for number, group in enumerate([[], *groups[: max(1, sets // 4)]]):
        for node in alone:
            runs[f"C without {number - 1} and {node}"] = circuit.without(_leaving(full, [*group, node]))
    right, metrics = _tells(pairs), {name: function}
    if right:
        metrics = {**metrics, "log_odds": METRICS["log_odds"]}
    found = measure(model, pairs, runs, metrics, corruption, batch_size, quiet)
    values = dict(zip(runs, found.values[name]))
    gap = found.gap(name)
    values["C without -1"] = values["C"]
    pn, ps = _counts(dict(zip(runs, found.values["log_odds"])), found.clean, found.corrupted) if right else (None, None)
    return CircuitEvidence(
        circuit,
        name,
        bootstrap_ratio(values["C"] - found.corrupted[name], gap),
        bootstrap_ratio(found.clean[name] - values["M without C"], gap),
        pn,
        ps,
        _completeness(values, groups, gap, found.corrupted[name]),
        _minimality(values, alone, len(groups[: max(1, sets // 4)]), gap),
    )


def _sets(nodes: list[str], sets: int, seed: int) -> list[list[str]]:
    draw = torch.rand(sets, len(nodes), generator=torch.Generator().manual_seed(seed)) < 0.5
    return [[node for node, yes in zip(nodes, row) if yes] for row in draw.tolist()]


def _largest(circuit: Circuit, nodes: list[str], n: int) -> list[str]:
    """The n nodes whose kept edges have the largest scores in sum; without scores, the ones with the most edges."""
    sizes = circuit.edges.double() if circuit.values is None else circuit.edges * circuit.values.abs().nan_to_num()
    weight = dict(zip(circuit.graph.sources, sizes.sum((0, 2)).tolist()))
    return sorted(nodes, key=lambda node: -weight[node])[:n]


def _leaving(full: Circuit, nodes: list[str]) -> Edges:
    leaving = torch.zeros_like(full.edges)
    rows = [full.graph.sources.index(node) for node in nodes]
    leaving[:, rows] = full.edges[:, rows]
    return leaving


def _tells(pairs: TokenPairs) -> bool:
    return all(side is not None for side in pairs.answers)


def _counts(
    values: Mapping[str, Tensor], clean: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> tuple[Share, Share]:
    """PN and PS: of the pairs that are right clean, those that M without C gets wrong; of those that are wrong
    corrupted, those that C gets right."""
    right, wrong = clean["log_odds"] > 0, other["log_odds"] <= 0
    broken, repaired = right & (values["M without C"] <= 0), wrong & (values["C"] > 0)
    return Share(int(broken.sum()), int(right.sum())), Share(int(repaired.sum()), int(wrong.sum()))


def _size(part: Tensor, gap: Tensor) -> Interval:
    """|mean(part) / mean(gap)|; from 0 on where both signs are in the interval."""
    value, low, high = bootstrap_ratio(part, gap)
    ends = sorted((abs(low), abs(high)))
    return Interval(abs(value), 0.0 if low < 0 < high else ends[0], ends[1])


def _completeness(
    values: Mapping[str, Tensor], groups: list[list[str]], gap: Tensor, corrupted: Tensor
) -> pd.DataFrame:
    rows = []
    for number, group in enumerate(groups):
        circuit, model = values[f"C without {number}"], values[f"M without {number}"]
        size, low, high = _size(circuit - model, gap)
        rows.append({
            "set": number, "nodes": len(group), "circuit": float(circuit.mean()), "model": float(model.mean()),
            "left": float((model - corrupted).mean() / gap.mean()), "gap": size, "low": low, "high": high,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _minimality(values: Mapping[str, Tensor], nodes: list[str], sets: int, gap: Tensor) -> pd.DataFrame:
    """Each node's largest effect over the sets; set -1 is the one without a node."""
    rows = []
    for node in nodes:
        moved = {k: values[f"C without {k} and {node}"] - values[f"C without {k}"] for k in range(-1, sets)}
        best = max(moved, key=lambda k: abs(float(moved[k].mean())))
        size, low, high = _size(moved[best], gap)
        rows.append({"node": node, "share": size, "low": low, "high": high, "set": best})
    columns = ["node", "share", "low", "high", "set"]
    return pd.DataFrame(rows, columns=columns).sort_values("share", ascending=False, ignore_index=True)
