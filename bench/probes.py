"""Logistic probes at all 30 layers × 7 strengths of smollm2, against a loop over scikit-learn on the same states.

The states are those of the bundled sentiment set at the last token, standardised by either side for itself. Before
anything is timed, weights have to agree with scikit-learn's own to 1e-3 of the largest. scikit-learn is run with its
defaults beside the number of iterations, and with a tolerance at which its weights can be compared.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from common import arguments, interleaved, machine, row
from monosem import load_model
from monosem.benchmarks import labelled
from monosem.probes import linear, read_rows

LOOP, EXACT = "scikit-learn, a loop", "scikit-learn, a loop, tol=1e-8"
OURS = "monosem, all at once"


def contestants(X: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], Any]]:
    rows, target = X.double().numpy(), y.numpy()

    def loop(**options: float) -> np.ndarray:
        made = np.empty((len(linear.STRENGTHS), *X[:, 0].shape))
        for layer, x in enumerate(rows):
            mean, scale = x.mean(0), x.std(0)
            z = (x - mean) / scale
            for number, C in enumerate(linear.STRENGTHS):
                found = LogisticRegression(C=C, max_iter=10_000, **options).fit(z, target)
                made[number, layer] = found.coef_[0] / scale
        return made

    def ours() -> np.ndarray:
        made = linear.logistic(X, y, strengths=linear.STRENGTHS)
        return torch.stack([parts["weights"] for parts in made]).numpy()

    return {OURS: ours, LOOP: loop, EXACT: lambda: loop(tol=1e-8)}


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    about = machine(options.threads, ["torch", "transformers", "scikit-learn", "monosem"])
    model, data = load_model("smollm2", dtype="float32", quiet=True), labelled("sentiment")
    texts = list(data.texts)[: 60 if options.tiny else 512]
    labels = [one == "positive" for one in data.labels[: len(texts)]]
    held = read_rows(model, texts, labels, ["resid_post.3", "resid_post.15"] if options.tiny else "resid_post")
    own = contestants(held.x, held.y)
    exact = own[EXACT]()
    size = np.abs(exact).max(-1, keepdims=True)
    errors = {name: float((np.abs(made() - exact) / size).max()) for name, made in own.items() if name != EXACT}
    assert errors[OURS] < 1e-3, errors
    fits = len(linear.STRENGTHS) * len(held.x)
    seconds = interleaved(own, 1 if options.tiny else max(1, options.rounds // 3), warm=False)
    rows = [row(name, fits, seconds, OURS) | {"error": errors.get(name, 0.0)} for name in own]
    found = {"machine": about, "shape": list(held.x.shape), "fits": fits, "rows": rows}
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
