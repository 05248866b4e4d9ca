"""Optimal constants against another optimiser on Hugging Face's own hooks; gates against integrals."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from monosem.circuits import attribute, exact, learn_circuit, optimal_ablation
from monosem.circuits.learning import GATES
from monosem.errors import BadInput, UnknownName
from monosem.metrics import kl
from monosem.models import Site
from monosem.patching import constants
from tiny import tiny_model
from tiny_circuits import random_pairs, wide

NODES = {"m1": ("mlp", 1, slice(None)), "m2": ("mlp", 2, slice(None)), "a1.h2": ("attn.c_proj", 1, slice(16, 24))}


def lost_by_hand(pairs, path: str, layer: int, columns: slice):
    """a -> KL of Hugging Face's model with the constant written by a plain hook, and its slope."""
    hf = wide("gpt2").hf
    ids = [torch.tensor([row]) for row in pairs.clean.rows()]
    with torch.no_grad():
        clean = [hf(one).logits[0, -1] for one in ids]
    module = hf.transformer.h[layer].get_submodule(path)

    def lost(a: np.ndarray) -> tuple[float, np.ndarray]:
        value = torch.from_numpy(a).requires_grad_()

        def before(module, args):
            x = args[0].clone()
            x[..., columns] = value
            return (x,)

        def after(module, args, out):
            return value.expand_as(out)

        handle = (
            module.register_forward_pre_hook(before) if "." in path else module.register_forward_hook(after)
        )  # fmt: skip
        try:
            total = torch.stack([
                (p.softmax(-1) * (p.log_softmax(-1) - hf(one).logits[0, -1].log_softmax(-1))).sum()
                for p, one in zip(clean, ids)
            ]).mean()  # fmt: skip
        finally:
            handle.remove()
        (slope,) = torch.autograd.grad(total, value)
        return float(total.detach()), slope.numpy()

    return lost


def test_constants_are_as_good_as_another_optimisers() -> None:
    model = wide("gpt2")
    pairs = random_pairs(model, (6, 5, 6, 4))
    found = optimal_ablation(model, pairs, steps=300, learning_rate=0.1, quiet=True)
    table = found.table.set_index("node")
    run = model.run(pairs.clean, capture=["mlp_out.1", "mlp_out.2", "z.1"])
    for node, (path, layer, columns) in NODES.items():
        lost = lost_by_hand(pairs, path, layer, columns)
        site = Site("mlp_out" if path == "mlp" else "z", layer)
        values = run[site][pairs.clean.mask]
        start = (values if path == "mlp" else values[:, 2]).mean(0).detach().numpy()
        held = found.constants[site] if path == "mlp" else found.constants[site][2]
        assert table.loc[node, "at_mean"] == pytest.approx(lost(start)[0], abs=1e-7)
        assert table.loc[node, "at_best"] == pytest.approx(lost(held.numpy())[0], abs=1e-7)
        best = minimize(
            lost, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
        )
        assert table.loc[node, "at_best"] == pytest.approx(best.fun, rel=0.02, abs=1e-6)
        assert best.fun < 0.9 * lost(start)[0]
    assert (table["at_best"] <= table["at_mean"]).all()


def test_edges_against_optimal_constants() -> None:
    """The last MLP writes into the logits alone: its one edge costs what the node costs."""
    model = wide("gpt2")
    pairs = random_pairs(model, (6, 5))
    found = optimal_ablation(model, pairs, steps=30, quiet=True)
    edge = exact(model, pairs, ["m2->logits"], metric="negative_kl", corruption=found.corruption, quiet=True)
    cost = found.table.set_index("node").loc["m2", "at_best"]
    assert float(edge.values[edge.graph.index("m2->logits")]) == pytest.approx(cost, abs=1e-6)
    scores = attribute(model, pairs, "eap", corruption=found.corruption, quiet=True)
    assert scores.values.abs().max() > 1e-3


def test_what_no_optimal_ablation_can_do() -> None:
    model = tiny_model("gpt2")
    pairs = random_pairs(model, (5, 5))
    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("inf")}):
        with pytest.raises(BadInput, match="above 0"):
            optimal_ablation(model, pairs, quiet=True, **wrong)
    with pytest.raises(BadInput, match=r"no value was given for resid_pre\.0"):
        attribute(model, pairs, corruption=constants({}), quiet=True)


# ---------------------------------------------------------------------- gates
def integral(name: str, logit: float) -> tuple[float, float, Tensor]:
    """Mean gate, mean slope, and gates, over u on a fine grid of 0..1."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    logits = torch.full_like(u, logit, requires_grad=True)
    gates = GATES[name].drawn(logits, u)
    (slope,) = torch.autograd.grad(gates.sum(), logits)
    return float(gates.detach().mean()), float(slope.mean()), gates.detach()


@pytest.mark.parametrize("logit", [-3.0, -0.5, 0.0, 1.2, 4.0])
def test_a_uniform_window_keeps_an_edge_as_often_as_it_says(logit: float) -> None:
    """E gate = θ, and its slope by θ is 1 wherever θ is (by the logit: θ (1 - θ))."""
    mean, slope, gates = integral("ugs", logit)
    kept = 1 / (1 + np.exp(-logit))
    assert (mean, slope) == pytest.approx((kept, kept * (1 - kept)), rel=1e-3)
    width = kept * (1 - kept)  # the share of draws that are neither open nor closed
    assert float(((gates > 0) & (gates < 1)).double().mean()) == pytest.approx(width, abs=1e-3)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 2.5])
def test_a_hard_concrete_gate_is_open_as_often_as_it_says(logit: float) -> None:
    _, _, gates = integral("edge-pruning", logit)
    opened = float(GATES["edge-pruning"].opened(torch.tensor(logit)))
    assert float((gates > 0).double().mean()) == pytest.approx(opened, abs=1e-3)


def test_options_of_learning() -> None:
    model = tiny_model("gpt2")
    pairs = random_pairs(model, (5, 5))
    with pytest.raises(UnknownName, match="ugs"):
        learn_circuit(model, pairs, 5, "usg", quiet=True)  # type: ignore[arg-type]
    for wrong in ({"method": "edge-pruning", "price": 1.0}, {"method": "ugs", "price": 0.0}):
        with pytest.raises(BadInput, match="price= is above 0"):
            learn_circuit(model, pairs, 5, quiet=True, **wrong)
    loss = kl(model.run(pairs.clean, logits="last").logits, model.run(pairs.corrupted, logits="last").logits)
    found = learn_circuit(model, pairs, 9, "ugs", steps=3, price=float(loss.mean()), quiet=True)
    assert found.n_edges <= 9
