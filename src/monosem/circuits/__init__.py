"""Circuits: the edges of a model that carry a behaviour, how they are found, run and judged."""

from .attribute import attribute
from .circuit import Circuit
from .curves import SHARES, Curve, cmd, cpr, curve
from .exact import exact
from .faithfulness import Faithfulness, faithfulness
from .graph import Graph
from .methods import EDGE_METHODS
from .scores import EdgeScores
from .truth import Recovery, recovery

__all__ = [
    "EDGE_METHODS",
    "SHARES",
    "Circuit",
    "Curve",
    "EdgeScores",
    "Faithfulness",
    "Graph",
    "Recovery",
    "attribute",
    "cmd",
    "cpr",
    "curve",
    "exact",
    "faithfulness",
    "recovery",
]
