"""Logistic probes at all 30 layers × 7 strengths of smollm2, against a loop over scikit-learn on the same states.

The states are those of the bundled sentiment set at the last token, standardised by either side for itself. Before
anything is timed, weights have to agree with scikit-learn's own to 1e-3 of the largest. scikit-learn is run with its
defaults beside the number of iterations, and with a tolerance at which its weights can be compared.

Then a probe a layer whose strength is chosen on validation rows, as a user has it: `monosem.probes.fit` against the
practice of sae-probes 0.4.2, written again with scikit-learn after its description (the package itself needs other
versions): ten strengths from 1e5 to 1e-5, no scaling, at most 1,000 iterations, the last fifth of the rows (at most
100) to choose by area, and a last fit on all of them. What both reach on held-out rows stands beside the time.

Times are processor time of one thread, which other work on the machine changes little.
"""

import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from common import arguments, interleaved, machine, row
from monosem import load_model
from monosem.benchmarks import labelled
from monosem.probes import Rows, fit, linear, read_rows

LOOP, EXACT = "scikit-learn, a loop", "scikit-learn, a loop, tol=1e-8"
OURS = "monosem, all at once"
FIT, PRACTICE = "monosem `probes.fit`, 7 strengths", "sae-probes' practice, 10 strengths"


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


def sae_probes_practice(X: np.ndarray, y: np.ndarray) -> list[LogisticRegression]:
    """Layer by layer; the larger strength of two that are equally good, as the package takes it."""
    held = min(len(y) // 5, 100)
    made = []
    for x in X:
        areas = {}
        for C in np.logspace(5, -5, 10):
            found = LogisticRegression(C=C, max_iter=1000).fit(x[:-held], y[:-held])
            areas[C] = roc_auc_score(y[-held:], found.decision_function(x[-held:]))
        made.append(LogisticRegression(C=max(areas, key=areas.get), max_iter=1000).fit(x, y))
    return made


def choosing(rows: Rows, rounds: int) -> dict[str, Any]:
    """Layers a second, and the mean area over layers on a fifth of the rows that nobody saw."""
    n = 4 * len(rows) // 5
    few = n - min(n // 5, 100)
    train, validation, held = (rows.part(slice(*ends)) for ends in ((0, few), (few, n), (n, None)))
    seen = rows.part(slice(0, n))
    X, y = seen.x.numpy(), seen.y.numpy()
    own = {FIT: lambda: fit(train, validation), PRACTICE: lambda: sae_probes_practice(X, y)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of its fits do not converge in 1,000 iterations
        theirs = [one.decision_function(x) for one, x in zip(own[PRACTICE](), held.x.numpy())]
        seconds = interleaved(own, rounds, warm=False, clock=time.process_time)
    scores = {FIT: own[FIT]().score(held).numpy(), PRACTICE: theirs}
    areas = {name: float(np.mean([roc_auc_score(held.y.numpy(), f) for f in some])) for name, some in scores.items()}
    return {"rows": [row(name, len(rows.x), seconds, FIT) | {"auroc": areas[name]} for name in own]}


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    about = machine(1, ["torch", "transformers", "scikit-learn", "monosem"])
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
    seconds = interleaved(own, 1 if options.tiny else max(1, options.rounds // 3), warm=False, clock=time.process_time)
    rows = [row(name, fits, seconds, OURS) | {"error": errors.get(name, 0.0)} for name in own]
    chosen = choosing(held, 1 if options.tiny else max(1, options.rounds // 3))
    found = {"machine": about, "shape": list(held.x.shape), "fits": fits, "rows": rows, "chosen": chosen}
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
