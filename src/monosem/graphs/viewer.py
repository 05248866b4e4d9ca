"""The graph as one HTML file that needs no network: templates/graph.js draws it, and can be embedded as it is."""

import base64
import gzip
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..files import check_writable, write_text
from ..pages import environment
from .evidence import evidence
from .files import graph_json

PAIRS = 40  # of a head, in the page


def page(
    graph: Any,
    title: str | None = None,
    pinned: Sequence[str] = (),
    supernodes: Mapping[str, Sequence[str]] | None = None,
    heads: Sequence[Any] = (),
    indexes: Sequence[Any] = (),
) -> str:
    """The viewer of a graph; a pruned one is easier to read.

    Args:
        graph: an `AttributionGraph`.
        pinned: ids of nodes. supernodes: label -> ids of its nodes.
        heads: why heads look where they look (`qk_attribution`), each with a button.
        indexes: of the graph's transcoders (`latents.index_of`): where their latents fire in a corpus.

    Raises:
        UnknownName: an id that the graph does not have. Mismatch: an index of no transcoder of the graph.
    """
    groups = dict(supernodes or {})
    for one in [*pinned, *(node for nodes in groups.values() for node in nodes)]:
        graph.number(one)
    pins = {"pinnedIds": list(pinned), "supernodes": [[label, *nodes] for label, nodes in groups.items()]}
    file = graph_json(graph, pins=pins)
    file["monosem"]["evidence"] = evidence(graph, indexes=indexes)
    file["monosem"]["heads"] = [_head(one) for one in heads]
    packed = gzip.compress(json.dumps(file, ensure_ascii=False, allow_nan=False).encode(), mtime=0)
    own = files("monosem.graphs") / "templates"
    return (
        environment("monosem.graphs", escape=True)
        .get_template("graph.html.jinja")
        .render(
            title=title or f"{graph.model}: {''.join(graph.tokens)}",
            data=base64.b64encode(packed).decode(),
            style=(own / "graph.css").read_text(encoding="utf-8"),
            script=(own / "graph.js").read_text(encoding="utf-8"),
        )
    )


def _head(one: Any) -> dict[str, Any]:
    """The largest terms of a score, as the viewer lists them."""
    pairs = one.table.head(PAIRS).rename(columns={"query_node": "query", "key_node": "key"})
    sides = {name: one.side(side, PAIRS).to_dict("records") for name, side in [("queries", "query"), ("keys", "key")]}
    about = {"label": one.label, "score": one.score, "pattern": one.pattern}
    return about | {"pairs": pairs.to_dict("records")} | sides


def write_page(graph: Any, path: str | os.PathLike[str], **options: Any) -> Path:
    """Writes `page`. Raises `BadInput` for a place that cannot be written to; errors as `page`."""
    target = check_writable(path)
    write_text(target, page(graph, **options))
    return target
