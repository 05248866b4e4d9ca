"""Linear probes of many places at once. Every fit gives weights and a bias in the units of the activation.

Scores are log-odds or grow with them; above 0 they say "positive".
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..covariance import Shrinkage, class_residuals, inverse
from ..logistic import logistic_paths
from .rows import Rows

Places = Float[Tensor, "places n d"]
Parts = dict[str, Tensor]  # tensors with places first
STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # scikit-learn's C, from the strongest penalty to the weakest
CCS_STEPS, CCS_TRIES = 300, 10


def standardised(X: Places) -> tuple[Places, Float[Tensor, "places 1 d"], Float[Tensor, "places 1 d"]]:
    """Rows with mean 0 and standard deviation 1, with both; a dimension that is constant becomes 0."""
    largest = torch.maximum(X.amax(1, keepdim=True), -X.amin(1, keepdim=True)).double()
    Z = X.to(torch.float64, copy=True)
    mean = Z.mean(1, keepdim=True)
    Z -= mean
    scale = torch.linalg.vector_norm(Z, dim=1, keepdim=True) / len(X[0]) ** 0.5
    scale = torch.where(scale > 1e-12 * largest, scale, torch.inf)
    return Z.div_(scale), mean, scale


def in_raw_units(w: Tensor, b: Tensor, mean: Tensor, scale: Tensor) -> Parts:
    """The weights of standardised rows as weights of the activations."""
    raw = w / scale[:, 0]
    return {"weights": raw, "bias": b - (raw * mean[:, 0]).sum(-1)}


def score(parts: Parts, X: Float[Tensor, "places *rows d"]) -> Float[Tensor, "places *rows"]:
    middle = (1,) * (X.ndim - 2)
    return (X.double() @ parts["weights"][:, :, None].reshape(len(X), *middle[1:], -1, 1))[..., 0] + parts[
        "bias"
    ].reshape(-1, *middle)


def pattern(X: Places, weights: Float[Tensor, "places d"]) -> Float[Tensor, "places d"]:
    """Σ w: how the activation moves with the score (Haufe et al. 2014, NeuroImage 87:96), Σ over all rows."""
    C = X.double() - X.double().mean(1, keepdim=True)
    return (C.mT @ (C @ weights[..., None]))[..., 0] / X.shape[1]


def chosen(made: list[Parts], score: Callable[..., Tensor], validation: Rows) -> tuple[Parts, Int[Tensor, "places"]]:
    """Of the parts of several strengths, for each place those with the least validation log loss, and which they are;
    of equal ones, the first."""
    if len(made) == 1:
        return made[0], torch.zeros(len(validation.x), dtype=torch.long)
    target = validation.y.to(validation.x.device).double()
    mask = None if validation.mask is None else validation.mask.to(validation.x.device)
    losses = []
    for parts in made:
        f = score(parts, validation.x, mask)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(f, target.expand_as(f), reduction="none")
        losses.append(loss.mean(1))
    best, rows = torch.stack(losses).argmin(0), torch.arange(len(validation.x))
    return {name: torch.stack([parts[name] for parts in made])[best, rows] for name in made[0]}, best.cpu()


# ---------------------------------------------------------------------- closed forms
def _means(X: Places, y: Bool[Tensor, "n"]) -> tuple[Tensor, Tensor, Tensor]:
    means, residuals = class_residuals(X, y.long())
    return means[:, 1] - means[:, 0], (means[:, 1] + means[:, 0]) / 2, residuals


def _centred(w: Tensor, middle: Tensor, odds: Tensor | float = 0.0) -> Parts:
    return {"weights": w, "bias": odds - (w * middle).sum(1)}


def mass_mean(X: Places, y: Bool[Tensor, "n"]) -> Parts:
    """w = δ, the difference of the class means (Marks & Tegmark 2023, arXiv:2310.06824); 0 half way between them."""
    delta, middle, _ = _means(X, y)
    return _centred(delta, middle)


def lda(X: Places, y: Bool[Tensor, "n"], *, shrinkage: Shrinkage | float = "ledoit_wolf") -> Parts:
    """w = Σ⁻¹δ, Σ the covariance within the classes, shrunken: the best line for two Gaussians of one shape. Mass-mean
    with "iid" is the same without the term for unequal classes. What it writes is δ, not w."""
    delta, middle, residuals = _means(X, y)
    share = y.double().mean()
    w = inverse(residuals, shrinkage).times(delta)
    return _centred(w, middle, (share / (1 - share)).log().to(w.device)) | {"pattern": delta}


def ridge(X: Places, y: Bool[Tensor, "n"], *, strengths: Sequence[float]) -> list[Parts]:
    """Least squares of ±1 on standardised rows with penalty |w|² / C: one eigendecomposition for every C."""
    Z, mean, scale = standardised(X)
    target = (2 * y.double() - 1).to(Z.device)
    wide = Z.shape[1] < Z.shape[2]
    values, vectors = torch.linalg.eigh(Z @ Z.mT if wide else Z.mT @ Z)
    centred = (target - target.mean()).expand(len(Z), -1)[..., None]
    inner = vectors.mT @ (centred if wide else Z.mT @ centred)
    made = []
    for C in strengths:
        w = vectors @ (inner / (values.clamp(min=0)[..., None] + 1 / C))
        w = (Z.mT @ w if wide else w)[..., 0]
        made.append(in_raw_units(w, target.mean().expand(len(Z)), mean, scale))
    return made


# ---------------------------------------------------------------------- by descent
def logistic(X: Places, y: Bool[Tensor, "n"], *, strengths: Sequence[float], balanced: bool = False) -> list[Parts]:
    """scikit-learn's `LogisticRegression(C)` on standardised rows, for every C.

    Args:
        balanced: both classes count alike, however many rows they have.
    """
    Z, mean, scale = standardised(X)
    share = y.double().mean()
    counts = torch.where(y, 0.5 / share, 0.5 / (1 - share)) if balanced else None
    W, b = logistic_paths(Z, y, [1 / C for C in strengths], counts)
    return [in_raw_units(w, bias, mean, scale) for w, bias in zip(W, b)]


def effects(X: Places, y: Bool[Tensor, "n"]) -> Float[Tensor, "places d"]:
    """|difference of the class means| over the standard deviation within the classes, of each dimension: free of scale.

    A dimension that is constant within both classes tells them apart for certain, unless it is constant altogether.
    """
    delta, _, residuals = _means(X, y)
    spread = residuals.square().mean(1).sqrt()
    floor = 1e-12 * X.double().abs().amax(1).clamp(min=1e-300)
    return torch.where(delta != 0, delta.abs() / torch.maximum(spread, floor), 0.0)


def sparse(X: Places, y: Bool[Tensor, "n"], *, strengths: Sequence[float], k: int = 16) -> list[Parts]:
    """`logistic` on the k dimensions (latents, of a dictionary) with the largest `effects`; others have weight 0."""
    chosen = effects(X, y).argsort(dim=1, descending=True, stable=True)[:, :k]
    made = logistic(X.gather(2, chosen[:, None].expand(-1, X.shape[1], -1)), y, strengths=strengths)
    for parts in made:
        whole = torch.zeros(len(X), X.shape[2], dtype=torch.float64, device=X.device)
        parts["weights"] = whole.scatter_(1, chosen, parts["weights"])
    return made


def ccs(X: Places, y: Bool[Tensor, "n"], pairs: Int[Tensor, "pairs 2"], *, seed: int = 0) -> Parts:
    """Contrast-consistent search (Burns et al. 2022, arXiv:2212.03827): unsupervised, a weak baseline.

    Each side of the pairs is normalised by its own mean and standard deviation; of `CCS_TRIES` starts the one with the
    least (p⁺ - (1 - p⁻))² + min(p⁺, p⁻)² is kept. Labels choose the sign alone. On single rows the two sides' means are
    averaged.

    Args:
        pairs: rows of a statement and of its negation.
    """
    up, down = X[:, pairs[:, 0]], X[:, pairs[:, 1]]
    (Zu, mu, su), (Zd, md, sd) = standardised(up), standardised(down)
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(CCS_TRIES, 1, X.shape[2], generator=draw, dtype=torch.float64).to(X.device)
    w = (w / w.norm(dim=-1, keepdim=True)).repeat(1, len(X), 1).requires_grad_()
    b = torch.zeros(CCS_TRIES, len(X), dtype=torch.float64, device=X.device, requires_grad=True)
    adam = torch.optim.Adam([w, b], lr=0.01)

    def losses() -> Tensor:
        p, q = (((Z @ w[..., None])[..., 0] + b[..., None]).sigmoid() for Z in (Zu, Zd))
        return ((p - 1 + q).square() + torch.minimum(p, q).square()).mean(2)

    with torch.enable_grad():
        for _ in range(CCS_STEPS):
            adam.zero_grad()
            losses().sum().backward()
            adam.step()
    with torch.no_grad():
        best = losses().argmin(0)
        rows = torch.arange(len(X))
        made = in_raw_units(w[best, rows], b[best, rows], (mu + md) / 2, (su + sd) / 2)
        wrong = ((score(made, X) > 0) == y.to(X.device)).double().mean(1) < 0.5
        turn = torch.where(wrong, -1.0, 1.0)
        return {"weights": made["weights"].detach() * turn[:, None], "bias": made["bias"].detach() * turn}
