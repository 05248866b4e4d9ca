"""Reading graph files, of this tool and of circuit-tracer."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pydantic
import torch

from ..errors import BadFile
from ..models.running.budget import shown
from ..reading import read_object
from .files import TYPES, UNITS
from .graph import AttributionGraph

LARGEST = 10**6  # layers, positions
MOST = 2**30  # bytes of the matrix of edges; scores and pruning take six times as much
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Position = pydantic.Field(ge=0, lt=LARGEST)


class _Node(pydantic.BaseModel):
    node_id: str
    feature: int | None = None
    layer: str
    ctx_idx: int = Position
    feature_type: Literal["cross layer transcoder", "mlp reconstruction error", "embedding", "logit"]
    token_prob: float = pydantic.Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    clerp: str | None = ""
    activation: float | None = pydantic.Field(default=None, allow_inf_nan=False)


class _Link(pydantic.BaseModel):
    source: str
    target: str
    weight: Finite


class _Metadata(pydantic.BaseModel):
    prompt_tokens: list[str] = pydantic.Field(min_length=1)
    scan: str | list[str] | None = ""
    transcoder_list: list[str] = []


class _Ours(pydantic.BaseModel):
    kinds: dict[str, Literal["neuron", "latent"]] = {}
    bias: dict[str, Finite] | None = None


class _File(pydantic.BaseModel):
    metadata: _Metadata
    nodes: list[_Node] = pydantic.Field(min_length=1)
    links: list[_Link]
    monosem: _Ours = _Ours()


def read_graph(path: str | os.PathLike[str]) -> AttributionGraph:
    """A graph of this or another tool, without a model behind it: interventions need one of `attribution_graph`.

    Raises:
        BadFile: no graph of this format, ids that stand for two nodes, links from or to no node, or links that run
            backwards.
    """
    try:
        file = _File.model_validate(read_object(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadFile(f"{path} is no attribution graph: {where}: {first['msg']}") from error
    return _Reader(str(path), file).graph()


class _Reader:
    def __init__(self, path: str, file: _File):
        self.path, self.file = path, file
        kinds = {name: kind for kind, name in TYPES.items() if kind != "neuron"}
        order = ("latent", "error", "token", "bias", "logit")
        found = [(kinds[node.feature_type], node) for node in file.nodes]
        self.layers = 1 + max((self._layer(node) for kind, node in found if kind in ("latent", "error")), default=-1)
        rows = [self._row(kind, node) for kind, node in found]
        if file.monosem.bias is not None:
            rows.append({"id": "bias", "kind": "bias", "layer": -1, "position": 0, "index": -1, "label": "bias"})
        rows.sort(key=lambda row: (order.index(row["kind"]), row["layer"] if row["kind"] != "logit" else 0))
        for row in rows:
            row["kind"] = file.monosem.kinds.get(row["id"], row["kind"])
            row["depth"] = row["layer"]
        columns = ["id", "kind", "layer", "position", "index", "activation", "label", "probability", "depth"]
        self.nodes = pd.DataFrame(rows).reindex(columns=columns)
        ids = self.nodes["id"]
        if twice := ids[ids.duplicated()].tolist():
            raise BadFile(
                f"{path}: {twice[0]!r} is the id of two nodes (circuit-tracer's error nodes may have the id of a "
                "latent of layer 0), so that its links cannot be told apart"
            )

    def _layer(self, node: _Node) -> int:
        try:
            layer = int(node.layer)
        except ValueError:
            layer = -1
        if not 0 <= layer < LARGEST:
            raise BadFile(f"{self.path}: node {node.node_id!r:.60} has no layer, but {node.layer!r:.40}")
        return layer

    def _row(self, kind: str, node: _Node) -> dict[str, Any]:
        if node.ctx_idx >= len(self.file.metadata.prompt_tokens):
            raise BadFile(f"{self.path}: node {node.node_id!r:.60} is at token {node.ctx_idx}, after the prompt's end")
        layer = {"token": -1, "logit": self.layers}.get(kind)
        layer = self._layer(node) if layer is None else layer
        parts = node.node_id.split("_")
        named = len(parts) == 3 and kind in ("latent", "logit", "token") and parts[1].isdecimal()
        label = (node.clerp or "").strip()
        if kind == "logit" and label.startswith('Output "'):
            label = label[len('Output "') :].rpartition('" (p=')[0] or label
        return {
            "id": node.node_id,
            "kind": kind,
            "layer": layer,
            "position": node.ctx_idx,
            "index": int(parts[1][:18]) if named else -1,
            "activation": node.activation,
            "label": label or (self.file.metadata.prompt_tokens[node.ctx_idx] if kind == "token" else ""),
            "probability": node.token_prob if kind == "logit" else None,
        }

    def graph(self) -> AttributionGraph:
        kinds, depths = self.nodes["kind"].to_numpy(), self.nodes["depth"].to_numpy()
        rows = np.flatnonzero(np.isin(kinds, (*UNITS, "logit")))
        if not (kinds == "logit").any():
            raise BadFile(f"{self.path}: a graph ends in logits, and this one has none")
        if (needed := 8 * len(rows) * len(self.nodes)) > MOST:
            raise BadFile(
                f"{self.path}: a graph of {len(self.nodes):,} nodes needs {shown(needed)}, and {shown(MOST)} "
                "is the most that is read: prune it where it was made"
            )
        number = {one: at for at, one in enumerate(self.nodes["id"])}
        row_of = {int(node): row for row, node in enumerate(rows)}
        edges = torch.zeros(len(rows), len(self.nodes), dtype=torch.float64)
        bias = [("bias", target, weight) for target, weight in (self.file.monosem.bias or {}).items()]
        for source, target, weight in [(one.source, one.target, one.weight) for one in self.file.links] + bias:
            if source not in number or target not in number:
                raise BadFile(f"{self.path}: the link from {source!r:.60} to {target!r:.60} is of no node")
            start, end = number[source], number[target]
            if end not in row_of or depths[start] >= depths[end]:
                raise BadFile(f"{self.path}: the link from {source!r:.60} to {target!r:.60} runs backwards")
            edges[row_of[end], start] += weight
        if not bool(edges.sum(-1).isfinite().all()):
            raise BadFile(f"{self.path}: the links into a node add up to infinity")
        metadata = self.file.metadata
        weights = torch.tensor(self.nodes.loc[kinds == "logit", "probability"].to_numpy(dtype=float))
        if float(weights.sum()) <= 0:
            weights = torch.ones_like(weights)
        model = metadata.scan if isinstance(metadata.scan, str) else ", ".join(metadata.scan or [])
        facts = {"file": Path(self.path).name, "transcoders": metadata.transcoder_list}
        at = torch.from_numpy(rows.copy())
        return AttributionGraph(self.nodes, edges, at, edges.sum(-1), weights, metadata.prompt_tokens, model, facts)
