"""Circuits that are learnt: a mask of edges by gradient descent, as in Edge Pruning (Bhaskar et al. 2024,
arXiv:2406.16778) with the hard concrete distribution (Louizos et al. 2018, arXiv:1712.01312).

Every edge has a gate: with u uniform and a logit α,

    s = σ((ln u - ln(1 - u) + α) / β),    gate = clip(s (r - l) + l, 0, 1),    l = -0.1, r = 1.1, β = 2/3,

which is exactly 0 or 1 in part of its draws, so that edges are really gone while the others are learnt. The loss is
KL(model‖circuit) plus λ₁ (n - t) + λ₂ (n - t)², with n the expected share of edges that are kept and t a target that
falls from 1 to the share that is asked for; λ are raised by gradient ascent.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput
from ..metrics import kl
from ..models import Model
from ..patching.corruptions import Corruption
from ..patching.scoring import METRICS, refuse_joint
from ..progress import Meter
from ..results import analysis
from .batches import Batches
from .circuit import Circuit
from .graph import Graph
from .running import run_masks
from .selection import top_n

LOW, HIGH, BETA = -0.1, 1.1, 2 / 3
SHIFT = BETA * math.log(-LOW / HIGH)  # a gate is above 0 with probability σ(α - SHIFT)
WARM = 0.6  # share of the steps after which the target stands


@analysis
def learn_circuit(
    model: Model,
    pairs: TokenPairs,
    edges: int,
    *,
    steps: int = 300,
    learning_rate: float = 0.3,
    corruption: Corruption | None = None,
    start: Circuit | None = None,
    batch_size: int = 8,
    seed: int = 0,
    quiet: bool = False,
) -> Circuit:
    """Learn which edges to keep so that the circuit's prediction stays the model's: KL after the last token.

    Needs no scores, and costs a forward and backward pass of the whole graph a step.

    Args:
        edges: how many are kept: those whose gates are most often open.
        start: edges that may be kept; default: all.

    Raises:
        BadInput: no step, a rate that is not above 0, or more edges than there are.
    """
    refuse_joint(pairs, "learn_circuit")
    start = Circuit.full(Graph.of(model)) if start is None else start
    if steps < 1 or not 0 < learning_rate < float("inf") or not 1 <= edges <= start.n_edges:
        raise BadInput(f"steps and learning_rate are above 0, and edges 1 to {start.n_edges:,}")
    batches = list(Batches(model, pairs, start.graph, METRICS["negative_kl"], corruption, batch_size))
    allowed = start.edges.to(model.device)
    draw = torch.Generator(device="cpu").manual_seed(seed)
    opened = math.log(0.9 / 0.1) + SHIFT  # gates are above 0 in nine of ten draws
    logits = torch.full((int(allowed.sum()),), opened, device=model.device, requires_grad=True)
    weights = torch.zeros(2, device=model.device, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=learning_rate)
    ascent = torch.optim.Adam([weights], lr=learning_rate, maximize=True)
    goal = edges / len(logits)
    with Meter("learn a circuit", steps, "steps", quiet=quiet) as meter:
        for step in range(steps):
            batch = batches[step % len(batches)]
            target = 1 - (1 - goal) * min(1.0, (step + 1) / max(1, int(WARM * steps)))
            mask = torch.zeros(allowed.shape, dtype=model.dtype, device=model.device)
            mask = mask.masked_scatter(allowed, _drawn(logits, draw).to(model.dtype))
            lost = kl(batch.clean_logits, run_masks(batch, mask[None], grad=True)[0]).mean()
            excess = torch.sigmoid(logits - SHIFT).mean() - target
            loss = lost + weights[0] * excess + weights[1] * excess.square()
            for one in (optimiser, ascent):
                one.zero_grad()
            loss.backward()
            optimiser.step()
            ascent.step()
            meter.advance(1, kl=f"{float(lost.detach()):.3f}", kept=f"{float(excess.detach()) + target:.3f}")
    values = torch.full(start.graph.shape, -torch.inf, dtype=torch.float64)
    values[start.edges] = torch.sigmoid(logits.detach() - SHIFT).double().cpu()
    return top_n(start.graph, values, edges, absolute=False)


def _drawn(logits: Float[Tensor, "edges"], draw: torch.Generator) -> Float[Tensor, "edges"]:
    u = torch.rand(logits.shape, generator=draw).clamp(1e-6, 1 - 1e-6).to(logits)
    s = torch.sigmoid((u.log() - (1 - u).log() + logits) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)
