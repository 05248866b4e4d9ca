"""Attribution graphs: how a prompt's tokens become its logits, through neurons or latents, as an exact linear graph."""

from .attention import QKAttribution, qk_attribution
from .attributing import attribution_graph
from .files import graph_json
from .graph import AttributionGraph
from .interventions import NodeIntervention, intervene, node_edits
from .reading import read_graph
from .supernodes import suggest_supernodes

__all__ = [
    "AttributionGraph",
    "NodeIntervention",
    "QKAttribution",
    "attribution_graph",
    "graph_json",
    "intervene",
    "node_edits",
    "qk_attribution",
    "read_graph",
    "suggest_supernodes",
]
