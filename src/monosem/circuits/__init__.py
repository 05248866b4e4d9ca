"""Circuits: the edges of a model that carry a behaviour, how they are found, run and judged."""

from .acdc import acdc
from .attribute import attribute
from .circuit import Circuit
from .comparison import EdgeCheck, compare_scores
from .curves import SHARES, Curve, cmd, cpr, curve
from .evidence import CircuitEvidence, evidence
from .exact import exact
from .faithfulness import Faithfulness, faithfulness
from .files import load_auto_circuit, load_graph, save_graph
from .graph import Graph
from .job import FoundCircuit, find_circuit
from .learning import learn_circuit
from .methods import EDGE_METHODS
from .nodes import NodeScores, node_scores
from .optimal import OptimalAblation, optimal_ablation
from .scores import EdgeScores
from .stability import Stability, stability
from .truth import Recovery, recovery
from .ungrouping import ungrouped
from .units import Units, latent_units, neuron_units

__all__ = [
    "EDGE_METHODS",
    "SHARES",
    "Circuit",
    "CircuitEvidence",
    "Curve",
    "EdgeCheck",
    "EdgeScores",
    "Faithfulness",
    "FoundCircuit",
    "Graph",
    "NodeScores",
    "OptimalAblation",
    "Recovery",
    "Stability",
    "Units",
    "acdc",
    "attribute",
    "cmd",
    "compare_scores",
    "cpr",
    "curve",
    "evidence",
    "exact",
    "faithfulness",
    "find_circuit",
    "latent_units",
    "learn_circuit",
    "load_auto_circuit",
    "load_graph",
    "neuron_units",
    "node_scores",
    "optimal_ablation",
    "recovery",
    "save_graph",
    "stability",
    "ungrouped",
]
