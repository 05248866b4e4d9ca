"""Distances of several layers as one detector, with weights from a few unusual examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import BadInput
from ..jobs import known_again, marks
from ..logistic import logistic_paths
from .distances import Distances, States
from .rows import Rows


@dataclass(frozen=True, eq=False)
class LayerEnsemble:
    """Logistic regression on standardised scores (Anthony et al. 2023, arXiv:2309.01488: no single layer is best).

    Attributes:
        weights, bias: of the log-odds, weights @ z + bias, where z are `Distances.standardised` scores.
        log: whether z are of log scores.
        examples: marks of the unusual texts that gave the weights.
    """

    distances: Distances
    weights: Float[Tensor, "places"]
    bias: float
    log: bool
    examples: str

    @classmethod
    def fit(cls, distances: Distances, unusual: Rows, *, log: bool | None = None, penalty: float = 1.0) -> Self:
        """Held-out usual rows of the distances (`against`) beside a few unusual rows; both sides weigh alike.

        Args:
            log: log scores; default: where the kind has no negative ones.
            penalty: half of it times the squared weights is added to the loss: 1 / C of scikit-learn.

        Raises:
            BadInput: no held-out scores, a place where they are all equal, no unusual row, one that the distance has
                seen, a penalty that is not above 0. Mismatch: as `Distances.score`.
        """
        if not len(unusual) or not 0 < penalty < math.inf:
            raise BadInput("an ensemble needs at least one unusual example, and a penalty above 0")
        if seen := int(distances.seen(unusual.texts).sum()):
            raise BadInput(f"{seen} of the unusual examples are usual texts of the distance: give others")
        log = not distances.signed if log is None else log
        below = distances.standardised(log=log)
        if bool((below.std(1) < 0.5).any()):
            raise BadInput("held-out rows are all equally far at one place, which says nothing: leave that place out")
        above = distances.standardised(unusual, log=log)
        z, n, m = torch.cat([below, above], 1), below.shape[1], above.shape[1]
        counts = torch.tensor([(n + m) / (2 * n)] * n + [(n + m) / (2 * m)] * m)
        W, b = logistic_paths(z.T[None], torch.arange(n + m) >= n, [penalty], counts)
        return cls(distances, W[0, 0], float(b[0, 0]), log, marks(unusual.texts))

    def __call__(self, x: Rows | States) -> Float[Tensor, "n"]:
        """Log-odds that a row is unusual, where both kinds are equally frequent."""
        return self.weights @ self.distances.standardised(x, log=self.log) + self.bias

    def seen(self, texts: Sequence[str]) -> Bool[Tensor, "n"]:
        """Which texts the distance has seen, or gave the weights."""
        return self.distances.seen(texts) | torch.tensor(known_again(self.examples, texts), dtype=torch.bool)
