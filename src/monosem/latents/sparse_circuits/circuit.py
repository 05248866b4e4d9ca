"""`feature_circuit`: which latents and errors carry an answer, and through which edges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data import TokenPairs
from ...dictionaries import Dictionary
from ...errors import BadInput, Mismatch, check_name, require
from ...models import Model
from ...models.numbers import count
from ...patching.scoring import MetricLike, one_metric
from ...plots import BLUE, FAINT, ORANGE, Figure, style
from ...progress import Meter
from ...results import Result, analysis
from ..importance.scores import By, LatentScores, Options, latent_scores, mean_slope
from ..importance.states import Other, States
from .edges import Cut
from .running import CircuitRun, measured

METRIC = "metric"
METHODS = ("attribution", "integrated")


@dataclass(frozen=True, eq=False)
class FeatureCircuit(Result):
    """A row a node: a latent, or the error, of one of the dictionaries; `score` as in `LatentScores`.

    Attributes:
        nodes: `id` (`resid_post.3/381`, `resid_post.3/error`, with `@5` at a token), `dictionary` (its number), `site`,
            `latent` (-1: the error), `position` (-1: all tokens), `score`.
        edges: `source`, `target` (ids, or "metric"), `weight`: by how much the metric falls along this edge alone.
        scores: of every dictionary, the nodes that were left out as well.
    """

    nodes: pd.DataFrame = field(repr=False)
    edges: pd.DataFrame = field(repr=False)
    scores: list[LatentScores] = field(repr=False)
    dictionaries: list[Dictionary] = field(repr=False)
    metric: MetricLike
    other: Other
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by = "score"
    either_way = True

    def __repr__(self) -> str:
        return (
            f"FeatureCircuit({len(self.nodes)} nodes of {len(self.dictionaries)} dictionaries, {len(self.edges)} edges)"
        )

    @property
    def table(self) -> pd.DataFrame:
        return self.nodes

    def inputs(self, node: str, n: int = 10) -> pd.DataFrame:
        """The strongest edges into a node, or into "metric"."""
        return self._strongest("target", node, n)

    def outputs(self, node: str, n: int = 10) -> pd.DataFrame:
        """The strongest edges out of a node."""
        return self._strongest("source", node, n)

    def _strongest(self, side: str, node: str, n: int) -> pd.DataFrame:
        check_name("node", node, [METRIC, *self.nodes["id"]])
        found = self.edges[self.edges[side] == node]
        return found.sort_values("weight", key=abs, ascending=False, ignore_index=True).head(count(n, "n"))

    @property
    def masks(self) -> list[Bool[Tensor, "place node"]]:
        """Of each dictionary: its nodes that are in the circuit."""
        found = []
        for number, scores in enumerate(self.scores):
            mask = torch.zeros_like(scores.present)
            own = self.nodes[self.nodes["dictionary"] == number]
            columns = [one if one >= 0 else mask.shape[1] - 1 for one in own["latent"]]
            mask[[max(0, one) for one in own["position"]], columns] = True
            found.append(mask)
        return found

    def faithfulness(self, model: Model, pairs: TokenPairs, *, batch_size: int = 4) -> CircuitRun:
        """Run the circuit alone, and all but the circuit: nodes that are left out have their other value.

        faithfulness = (m(circuit) - m(nothing)) / (m(model) - m(nothing)); completeness is that share for all but the
        circuit, and is low where little is left to find. Means over pairs first, as everywhere.

        Raises:
            Mismatch: another model; BadInput: pairs of other lengths, for nodes at tokens.
        """
        places = len(self.scores[0].tokens)
        if places and (pairs.clean.ids.shape[1] != places or not bool(pairs.clean.mask.all())):
            raise BadInput(f"the circuit's nodes stand at {places} tokens: give prompts of as many")
        name, function = one_metric(self.metric, pairs)
        return measured(model, pairs, self.dictionaries, self.masks, name, function, self.other, batch_size)

    def plot(self) -> Figure:
        """Nodes by dictionary (the deepest on top), strongest first, and the edges between them."""
        go = require("plotly.graph_objects", "plots")
        figure, places = go.Figure(), dict[str, tuple[float, float]]()
        for number in range(len(self.dictionaries)):
            own = self.nodes[self.nodes["dictionary"] == number].sort_values("score", key=abs, ascending=False)
            places |= {one: (float(at), float(number)) for at, one in enumerate(own["id"])}
        places[METRIC] = (0.0, float(len(self.dictionaries)))
        most = max(float(self.edges["weight"].abs().max()) if len(self.edges) else 0.0, 1e-12)
        for source, target, weight in zip(*(self.edges[one].tolist() for one in ("source", "target", "weight"))):
            ends = [places[source], places[target]]
            figure.add_scatter(
                x=[x for x, _ in ends], y=[y for _, y in ends], mode="lines", hoverinfo="skip", showlegend=False,
                line={"color": BLUE if weight > 0 else ORANGE, "width": 0.5 + 4 * abs(weight) / most},
            )  # fmt: skip
        words = [f"{one}: {score:.3f}" for one, score in zip(self.nodes["id"], self.nodes["score"])] + [METRIC]
        figure.add_scatter(
            x=[places[one][0] for one in [*self.nodes["id"], METRIC]],
            y=[places[one][1] for one in [*self.nodes["id"], METRIC]],
            mode="markers", text=words, hovertemplate="%{text}<extra></extra>", showlegend=False,
            marker={"size": 9, "color": [*(BLUE if s > 0 else ORANGE for s in self.nodes["score"]), FAINT]},
        )  # fmt: skip
        labels = [*(str(one.site_out) for one in self.dictionaries), METRIC]
        figure.update_yaxes(tickvals=[*range(len(labels))], ticktext=labels)
        return style(figure, "strongest first", "", f"{len(self.nodes)} nodes, {len(self.edges)} edges")


@analysis
def feature_circuit(
    model: Model,
    pairs: TokenPairs,
    dictionaries: Sequence[Dictionary],
    *,
    method: str = "attribution",
    metric: MetricLike | None = None,
    other: Other = "zero",
    by: By = "latent",
    node_threshold: float = 0.1,
    edge_threshold: float = 0.01,
    n_nodes: int = 200,
    steps: int = 10,
    quiet: bool = False,
) -> FeatureCircuit:
    """Sparse feature circuits (Marks et al. 2024, arXiv:2403.19647): latents and errors whose score is large, and the
    edges between them.

        circuit = ms.latents.feature_circuit(model, pairs, [early, middle, late])
        circuit.top(10), circuit.inputs("metric"), circuit.faithfulness(model, held_out)

    Args:
        dictionaries: of any sites of the model, one for each.
        method, metric, other, by, steps: as in `latent_scores` ("attribution" or "integrated").
        node_threshold, edge_threshold: sizes below which nodes and edges are left out, in units of the metric.
        n_nodes: so many nodes at most, the largest; each costs a backward pass.

    Raises:
        BadInput: no node over the threshold, two dictionaries of one site, thresholds below 0, no dictionary. Others as
            `latent_scores`.
    """
    check_name("method", method, METHODS)
    listed = _in_order(model, dictionaries)
    limit = count(n_nodes, "n_nodes")
    for what, value in {"node_threshold": node_threshold, "edge_threshold": edge_threshold}.items():
        if not 0 <= value < float("inf"):
            raise BadInput(f"{what}= is a size of the metric, 0 or more, not {value!r}")
    name, function = one_metric(metric, pairs)
    about: dict[str, Any] = {"metric": {name: function}, "other": other, "by": by, "steps": steps, "quiet": quiet}
    scores = [latent_scores(model, pairs, one, method, **about) for one in listed]
    nodes = _nodes(listed, scores, node_threshold, limit)
    options = Options(steps if method == "integrated" else 0)
    edges = torch.zeros(len(nodes) + 1, len(nodes), dtype=torch.float64)
    with Meter("edges", (len(nodes) + 1) * len(pairs), "backward passes", quiet=quiet) as meter:
        for row in range(len(pairs)):
            batch = [States.of(model, pairs[[row]], one, function, other) for one in listed]
            edges += _edges(batch, nodes, options, meter)
    targets, sources = (edges.abs() / len(pairs) >= max(edge_threshold, 1e-12)).nonzero(as_tuple=True)
    ids = [*nodes["id"], METRIC]
    frame = pd.DataFrame({"source": [ids[one] for one in sources], "target": [ids[one] for one in targets]})
    frame["weight"] = (edges[targets, sources] / len(pairs)).tolist()
    return FeatureCircuit(nodes, frame, scores, listed, {name: function}, other)


def _in_order(model: Model, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
    given = [dictionaries] if isinstance(dictionaries, Dictionary) else list(dictionaries)
    if not given or not all(isinstance(one, Dictionary) for one in given):
        raise BadInput("dictionaries= are dictionaries of one site each (load_dictionary), one at least")
    for one in given:
        one.check(model)
        if one.whole_texts:
            raise Mismatch(f"{one.name!r} reads whole texts: codes of one token depend on others, which no edge shows")
    sites = [one.site_out for one in given]
    double = next((site for at, site in enumerate(sites) if site in sites[:at]), None)
    if double is not None:
        raise BadInput(f"two dictionaries write {double}: give one for each site")
    return sorted(given, key=lambda one: (model.depth(one.site_out), str(one.site_out)))


def _nodes(listed: list[Dictionary], scores: list[LatentScores], threshold: float, limit: int) -> pd.DataFrame:
    frames = []
    for number, (one, found) in enumerate(zip(listed, scores)):
        rows = found.table
        rows = rows[rows["score"].abs() >= threshold]
        rows = rows.assign(dictionary=number, site=str(one.site_out))
        frames.append(rows if "position" in rows else rows.assign(position=-1))
    nodes = pd.concat(frames, ignore_index=True)
    if not len(nodes):
        most = max(float(one.values.abs().max()) for one in scores)
        raise BadInput(
            f"no node has a score of {threshold:g} or more; the largest has {most:.3g}: lower node_threshold="
        )
    nodes = nodes.sort_values("score", key=abs, ascending=False).head(limit).sort_index(ignore_index=True)
    at = ["" if one < 0 else f"@{one}" for one in nodes["position"]]
    what = ["error" if one < 0 else str(one) for one in nodes["latent"]]
    nodes.insert(0, "id", [f"{site}/{node}{place}" for site, node, place in zip(nodes["site"], what, at)])
    return nodes.drop(columns="node")


def _edges(batch: list[States], nodes: pd.DataFrame, options: Options, meter: Meter) -> Float[Tensor, "target source"]:
    """Of some pairs, summed: nodes, then the metric, by nodes."""
    cut = Cut(batch)
    slopes = [mean_slope(one, options) if options.steps else one.slope() for one in batch]
    rows = []
    for number, position, latent in _columns_of(nodes):
        place = None if position < 0 else position
        column = latent if latent >= 0 else batch[number].written.shape[-1]
        rows.append(_columns(cut.flow(cut.node(number, slopes[number], place, column)), nodes))
        meter.advance(len(batch[0].pairs))
    rows.append(_columns(cut.flow(cut.number), nodes))
    meter.advance(len(batch[0].pairs))
    return torch.stack(rows).double().cpu()


def _columns(flow: Sequence[Float[Tensor, "pairs pos node"]], nodes: pd.DataFrame) -> Float[Tensor, "source"]:
    whole, apart = [one.sum((0, 1)) for one in flow], [one.sum(0) for one in flow]
    return torch.stack(
        [
            (whole[number] if position < 0 else apart[number][position])[latent]  # -1 is the error, the last one
            for number, position, latent in _columns_of(nodes)
        ]
    )


def _columns_of(nodes: pd.DataFrame) -> list[tuple[int, int, int]]:
    """Dictionary, position and latent of each node."""
    return list(zip(*(nodes[name].tolist() for name in ("dictionary", "position", "latent"))))
