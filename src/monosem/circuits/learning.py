"""Circuits that are learnt: a mask of edges by gradient descent on KL(model‖circuit). Every edge has a gate, which is
exactly 0 or 1 in part of its draws, so that edges are really gone while the others are learnt. With u uniform in 0..1
and a logit α for each edge:

| method | gate | what keeps it small |
|---|---|---|
| `edge-pruning` | clip(s (r - l) + l, 0, 1), s = σ((ln u - ln(1 - u) + α) / β) | λ₁ e + λ₂ max(0, e)², e = ln(n / t) |
| `ugs` | 1 - clip((u - θ) / w + 1/2, 0, 1), θ = σ(α), w = θ (1 - θ) | price · Σ θ |

Edge Pruning (Bhaskar et al. 2024, arXiv:2406.16778) has the hard concrete gate (Louizos et al. 2018, arXiv:1712.01312;
l = -0.1, r = 1.1, β = 2/3); n is the expected share of edges that are kept, t a target that falls from 1 to the share
that is asked for, and λ are raised by gradient ascent, up to where an edge costs its share of KL. The paper has n - t
for e, a target that falls in a line, and λ of either sign. In a graph of 70,651 edges that swings: below the target λ
falls far under 0 and opens the gates again, and near a target of 1 % a difference of 4 % hardly raises it.

Uniform gradient sampling (Li & Janson 2024, arXiv:2409.09951) keeps an edge with probability θ, half open within w of
it, so that every θ has the same gradient on average.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput, check_name
from ..metrics import kl
from ..models import Model
from ..patching.corruptions import Corruption
from ..patching.scoring import METRICS, refuse_joint
from ..progress import Meter
from ..results import analysis
from .batches import Batch, Batches, check_apart
from .circuit import Circuit
from .graph import Graph
from .methods import Options, eap_ig
from .running import run_circuits, run_masks
from .selection import greedy, top_n

LOW, HIGH, BETA = -0.1, 1.1, 2 / 3
SHIFT = BETA * math.log(-LOW / HIGH)  # a gate is above 0 with probability σ(α - SHIFT)
ASCENT = 0.05  # rate of λ, in KL of the empty circuit; in proportion to e: steps of one size went on at the target
SETTLED = 1.5  # times the edges that were asked for: gates that are open more often make a mask whose cut takes away
WARM = 0.6  # share of the steps after which the target stands
Edges = Float[Tensor, "edges"]


@dataclass(frozen=True)
class Gates:
    """A row of `GATES`.

    Attributes:
        drawn: logits and u -> gates. opened: logits -> the probability that a gate is kept.
        shift: what `opened` takes off a logit. priced: whether kept edges have a price, or a number that is aimed at.
    """

    drawn: Callable[[Edges, Edges], Edges]
    shift: float
    priced: bool

    def opened(self, logits: Edges) -> Edges:
        return torch.sigmoid(logits - self.shift)


def hard_concrete(logits: Edges, u: Edges) -> Edges:
    s = torch.sigmoid((u.log() - (1 - u).log() + logits) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def uniform_window(logits: Edges, u: Edges) -> Edges:
    kept = torch.sigmoid(logits)
    window = (kept * (1 - kept)).detach().clamp(min=1e-6)  # moving it would add noise to gradients and nothing else
    return 1 - ((u - kept) / window + 0.5).clamp(0, 1)


GATES = {"edge-pruning": Gates(hard_concrete, SHIFT, False), "ugs": Gates(uniform_window, 0.0, True)}


@analysis
def learn_circuit(
    model: Model,
    pairs: TokenPairs,
    edges: int,
    method: Literal["edge-pruning", "ugs"] = "edge-pruning",
    *,
    price: float | None = None,
    steps: int = 300,
    learning_rate: float = 0.3,
    corruption: Corruption | None = None,
    start: Circuit | None = None,
    batch_size: int = 8,
    seed: int = 0,
    quiet: bool = False,
) -> Circuit:
    """Learn which edges to keep so that the circuit's prediction stays the model's: KL after the last token.

    Needs no scores, and costs a forward and backward pass of the whole graph a step. The circuit's notes say so where
    the gates had not settled, and where as many edges chosen greedily by EAP-IG's scores of KL are nearer to the model
    on the same pairs: a mask that loses there has no claim on others.

    Args:
        edges: how many are kept: those whose gates are most often open. Fewer than an answer needs leave nothing that
            answers, and with it nothing to learn from: ask for more, and look at `curve`.
        method: a row of `learning.GATES`.
        price: of "ugs": nats that an edge must save; default: KL of the empty circuit, shared among all edges.
        start: edges that may be kept; default: all.

    Raises:
        BadInput: no step, a rate or price that is not above 0, more edges than there are, or clean and corrupted runs
            that say the same. UnknownName: another method.
    """
    check_name("method", method, GATES)
    gates = GATES[method]
    refuse_joint(pairs, "learn_circuit")
    start = Circuit.full(Graph.of(model)) if start is None else start
    _check(start, edges, steps, learning_rate, gates, price)
    batches = list(Batches(model, pairs, start.graph, METRICS["negative_kl"], corruption, batch_size))
    full, empty = (torch.stack([one.ends() for one in batches]).sum(0) / len(pairs)).tolist()
    check_apart("negative_kl", full, empty)
    if gates.priced and price is None:
        price = (full - empty) / start.n_edges
    learning = _Learning(batches, start, gates, price, edges, learning_rate, seed, full - empty)
    with Meter("learn a circuit", steps, "steps", quiet=quiet) as meter:
        for step in range(steps):
            lost, kept = learning.step(step, steps)
            meter.advance(1, kl=f"{lost:.3f}", kept=f"{kept:.3f}")
    values = torch.full(start.graph.shape, -torch.inf, dtype=torch.float64)
    values[start.edges] = gates.opened(learning.logits.detach()).double().cpu()
    circuit = top_n(start.graph, values, edges, absolute=False)
    doubts = (_unsettled(kept * start.n_edges, edges, steps, gates), _beaten(batches, circuit, start, edges))
    return replace(circuit, notes=(*circuit.notes, *filter(None, doubts)))


def _unsettled(kept: float, edges: int, steps: int, gates: Gates) -> str:
    """What to do where gates are open for many more edges than were asked for, so that the cut takes used ones away."""
    if kept <= SETTLED * edges:
        return ""
    remedy = "more steps or a higher price" if gates.priced else "more steps"
    return (
        f"the mask had not settled: after {steps} steps its gates kept {kept:,.0f} edges on average, so that the cut "
        f"to {edges:,} may take away edges that it used; give it {remedy}"
    )


def _beaten(batches: list[Batch], circuit: Circuit, start: Circuit, edges: int) -> str:
    """That as many edges chosen greedily are nearer to the model, where they are."""
    values = torch.stack([eap_ig(one, Options()) for one in batches]).sum(0).abs()
    other = greedy(start.graph, values.masked_fill(~start.edges, -torch.inf), circuit.n_edges or edges, absolute=False)
    pair = [circuit, replace(other, edges=other.edges & start.edges)]
    lost = torch.cat([kl(one.clean_logits, run_circuits(one, pair)) for one in batches], dim=1)
    learnt, chosen = lost.double().mean(1).tolist()
    if learnt <= chosen:
        return ""
    return (
        f"as many edges chosen greedily by EAP-IG are nearer to the model on the pairs that the mask was learnt from: "
        f"{chosen:.2f} nats against {learnt:.2f}; take attribute(...).greedy({edges})"
    )


class _Learning:
    """Logits of the gates of a circuit's edges, and what is learnt beside them."""

    def __init__(
        self,
        batches: list[Batch],
        start: Circuit,
        gates: Gates,
        price: float | None,
        edges: int,
        rate: float,
        seed: int,
        whole: float,
    ):
        device = batches[0].wiring.model.device
        self.batches, self.gates, self.price, self.goal = batches, gates, price, edges / start.n_edges
        self.allowed, self.draw = start.edges.to(device), torch.Generator(device="cpu").manual_seed(seed)
        opened = math.log(0.9 / 0.1) + gates.shift  # gates are above 0 in nine of ten draws
        self.logits = torch.full((start.n_edges,), opened, device=device, requires_grad=True)
        self.weights = torch.zeros(2, device=device, requires_grad=True)
        # Adam alone makes whole steps of any gradient, and so closed gates that are open in every draw, whose only
        # gradient is the penalty's. And an edge never costs more than its share of the divergence: a price that went on
        # to rise while the target fell closed all
        self.dearest = whole
        self.optimisers = (
            torch.optim.Adam([self.logits], lr=rate, eps=whole / start.n_edges),
            torch.optim.SGD([self.weights], lr=ASCENT * whole, maximize=True),
        )

    def step(self, number: int, steps: int) -> tuple[float, float]:
        """One step of descent; KL, and the expected share of kept edges."""
        batch = self.batches[number % len(self.batches)]
        dtype = batch.wiring.model.dtype
        u = torch.rand(self.logits.shape, generator=self.draw).clamp(1e-6, 1 - 1e-6).to(self.logits)
        mask = torch.zeros(self.allowed.shape, dtype=dtype, device=self.allowed.device)
        mask = mask.masked_scatter(self.allowed, self.gates.drawn(self.logits, u).to(dtype))
        lost = kl(batch.clean_logits, run_masks(batch, mask[None], grad=True)[0]).mean()
        kept = self.gates.opened(self.logits)
        if self.price is None:
            progress = min(1.0, (number + 1) / max(1, int(WARM * steps)))
            excess = (kept.mean() / self.goal**progress).log()
            loss = lost + self.weights[0] * excess + self.weights[1] * excess.clamp(min=0).square()
        else:
            loss = lost + self.price * kept.sum()
        for one in self.optimisers:
            one.zero_grad()
        loss.backward()
        for one in self.optimisers:
            one.step()
        self.weights.data.clamp_(0, self.dearest)
        return float(lost.detach()), float(kept.detach().mean())


def _check(start: Circuit, edges: int, steps: int, learning_rate: float, gates: Gates, price: float | None) -> None:
    if steps < 1 or not 0 < learning_rate < math.inf or not 1 <= edges <= start.n_edges:
        raise BadInput(f"steps and learning_rate are above 0, and edges 1 to {start.n_edges:,}")
    if price is not None and not (gates.priced and 0 < price < math.inf):
        raise BadInput("price= is above 0, and goes with method='ugs'")
