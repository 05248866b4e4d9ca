"""Probes of one state with more than one vector, for many places at once by gradient descent.

The losses of places are summed and Adam goes by each number's own gradient, so places do not touch each other. Of all
steps the one with the least validation loss is kept, place by place; a probe with more room starts from the logistic
one, so it is not worse on validation rows than that.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as log_loss

from ..errors import BadInput
from .rows import Rows

Parts = dict[str, Tensor]
Score = Callable[[Mapping[str, Tensor], Tensor, Tensor | None], Tensor]
LOOK = 5  # steps between looks at the validation rows


def trained(
    parts: Parts,
    free: tuple[str, ...],
    score: Score,
    train: Rows,
    validation: Rows,
    *,
    steps: int,
    lr: float,
    decay: float,
) -> Parts:
    """The parts after the step with the least validation log loss, of each place.

    Args:
        score: `places n`, or `places exits n`, of which every exit counts alike.
    """
    moving = {name: parts[name].clone().requires_grad_() for name in free}
    adam = torch.optim.AdamW(moving.values(), lr=lr, weight_decay=decay)
    target, held = (rows.y.to(rows.x.device).double() for rows in (train, validation))
    best = {name: value.detach().clone() for name, value in parts.items()}
    least = torch.full((len(train.x),), torch.inf, dtype=torch.float64, device=train.x.device)

    def losses(rows: Rows, y: Tensor) -> Tensor:
        mask = None if rows.mask is None else rows.mask.to(rows.x.device)
        f = score(parts | moving, rows.x, mask)
        return log_loss(f, y.expand_as(f), reduction="none").flatten(1).mean(1)

    for step in range(steps + 1):
        if step % LOOK == 0:
            with torch.no_grad():
                now = losses(validation, held)
            better = now < least
            least = torch.where(better, now, least)
            for name in free:
                best[name][better] = moving[name].detach()[better]
        with torch.enable_grad():
            adam.zero_grad()
            losses(train, target).sum().backward()
        adam.step()
    return best


def draw(seed: int, *shape: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like.device)


def _linear(parts: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return (x @ parts["weights"][..., None])[..., 0] + parts["bias"][:, None]


def scaled(parts: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Standardised, and divided by √d: the product with a vector of normal numbers is about 1."""
    shape = (len(x), *(1,) * (x.ndim - 2), x.shape[-1])
    return (x.double() - parts["mean"].reshape(shape)) / (parts["scale"].reshape(shape) * x.shape[-1] ** 0.5)


def moments(rows: Rows) -> Parts:
    """Mean and standard deviation of the states of each place, over the tokens that count; of a constant dimension
    the latter is infinite, so that it becomes 0."""
    x = rows.x.double()
    if rows.mask is not None:
        x = x[:, rows.mask.to(x.device)]
    scale = x.std(1, unbiased=False)
    return {"mean": x.mean(1), "scale": torch.where(scale > 1e-12 * x.abs().amax(1), scale, torch.inf)}


# ---------------------------------------------------------------------- of one state
def polynomial(train: Rows, validation: Rows, start: Parts, *, orders: int = 3, rank: int = 8, seed: int = 0) -> Parts:
    """A truncated polynomial classifier (arXiv:2509.26238): logistic + Σ_k Σ_r λ_kr (u_krᵀ z)^k for k = 2 ... orders.

    Fitted order by order, the lower ones frozen, so that the score of every lower order is a probe of its own.
    """
    if orders < 2 or rank < 1:
        raise BadInput(f"a polynomial probe has orders >= 2 and rank >= 1, not {orders} and {rank}")
    places, d = len(train.x), train.x.shape[-1]
    parts = start | moments(train)
    for k in range(2, orders + 1):
        parts |= {
            f"u{k}": draw(seed + k, places, rank, d, like=train.x),
            f"l{k}": parts["bias"].new_zeros(places, rank),
        }
        parts = trained(parts, (f"u{k}", f"l{k}"), polynomial_score, train, validation, steps=200, lr=0.02, decay=0.01)
    return parts


def polynomial_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    return by_order(parts, x)[-1]


def by_order(parts: Mapping[str, Tensor], x: Float[Tensor, "places n d"]) -> Float[Tensor, "orders places n"]:
    """The score with all terms up to each order, the linear one first."""
    x, z, k = x.double(), scaled(parts, x), 2
    scores = [_linear(parts, x)]
    while f"u{k}" in parts:
        term = ((z @ parts[f"u{k}"].mT) ** k * parts[f"l{k}"][:, None]).sum(-1)
        scores.append(scores[-1] + term)
        k += 1
    return torch.stack(scores)


def bilinear(train: Rows, validation: Rows, start: Parts, *, rank: int = 8, seed: int = 0) -> Parts:
    """logistic + Σ_r (u_rᵀ z) (v_rᵀ z): products of two directions."""
    places, d = len(train.x), train.x.shape[-1]
    u = draw(seed, places, rank, d, like=train.x)
    parts = start | moments(train) | {"u": u, "v": 0.01 * draw(seed + 1, places, rank, d, like=train.x)}
    return trained(parts, ("u", "v"), bilinear_score, train, validation, steps=200, lr=0.02, decay=0.01)


def bilinear_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    z = scaled(parts, x)
    return _linear(parts, x.double()) + ((z @ parts["u"].mT) * (z @ parts["v"].mT)).sum(-1)


def mlp(train: Rows, validation: Rows, start: Parts, *, hidden: int = 32, seed: int = 0) -> Parts:
    """One hidden layer of ReLUs beside the logistic score. What it finds may be its own work: see `selectivity`."""
    places, d = len(train.x), train.x.shape[-1]
    inner = {"u": draw(seed, places, hidden, d, like=train.x), "c": zeros(train, hidden)}
    parts = start | moments(train) | inner | {"v": 0.01 * draw(seed + 1, places, hidden, like=train.x)}
    return trained(parts, ("u", "c", "v"), mlp_score, train, validation, steps=200, lr=0.01, decay=0.01)


def zeros(rows: Rows, n: int) -> Tensor:
    return torch.zeros(len(rows.x), n, dtype=torch.float64, device=rows.x.device)


def mlp_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    inside = (scaled(parts, x) @ parts["u"].mT + parts["c"][:, None]).relu()
    return _linear(parts, x.double()) + (inside * parts["v"][:, None]).sum(-1)


def early_exit(
    train: Rows, validation: Rows, start: Parts, *, layers: int = 2, hidden: int = 32, seed: int = 0
) -> Parts:
    """An MLP with a head after every layer (the EE-MLP of arXiv:2509.26238): h_0 = z, h_k = relu(U_k h_(k-1) + c_k),
    exit k says logistic + v_k h_k, and exit 0 is the logistic probe. All exits are trained together, each counts alike,
    so that every one is a probe and a cascade may stop at it.
    """
    if layers < 1 or hidden < 1:
        raise BadInput(f"an early-exit probe has layers >= 1 and hidden >= 1, not {layers} and {hidden}")
    places, width, parts, free = len(train.x), train.x.shape[-1], start | moments(train), list[str]()
    for k in range(1, layers + 1):
        u = draw(seed + 2 * k, places, hidden, width, like=train.x) / (1.0 if k == 1 else width**0.5)
        v = 0.01 * draw(seed + 2 * k + 1, places, hidden, like=train.x)
        parts |= {f"u{k}": u, f"c{k}": zeros(train, hidden), f"v{k}": v}
        free += [f"u{k}", f"c{k}", f"v{k}"]
        width = hidden

    def exits(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
        return by_exit(parts, x).movedim(0, 1)

    return trained(parts, tuple(free), exits, train, validation, steps=200, lr=0.01, decay=0.01)


def early_exit_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    return by_exit(parts, x)[-1]


def by_exit(parts: Mapping[str, Tensor], x: Float[Tensor, "places n d"]) -> Float[Tensor, "exits places n"]:
    """The score of every exit, the linear one first."""
    h, k = scaled(parts, x), 1
    scores = [_linear(parts, x.double())]
    while f"u{k}" in parts:
        h = (h @ parts[f"u{k}"].mT + parts[f"c{k}"][:, None]).relu()
        scores.append(scores[0] + (h * parts[f"v{k}"][:, None]).sum(-1))
        k += 1
    return torch.stack(scores)
