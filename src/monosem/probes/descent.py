"""Probes with more than one vector, for many places at once by gradient descent: polynomial, bilinear, MLP, and those
that read every token of a text.

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
FIXED = ("mean", "scale", "weights", "bias", "orders")  # what is not trained where a part of that name is given


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
    """The parts after the step with the least validation log loss, of each place."""
    moving = {name: parts[name].clone().requires_grad_() for name in free}
    adam = torch.optim.AdamW(moving.values(), lr=lr, weight_decay=decay)
    target, held = (rows.y.to(rows.x.device).double() for rows in (train, validation))
    best = {name: value.detach().clone() for name, value in parts.items()}
    least = torch.full((len(train.x),), torch.inf, dtype=torch.float64, device=train.x.device)

    def losses(rows: Rows, y: Tensor) -> Tensor:
        mask = None if rows.mask is None else rows.mask.to(rows.x.device)
        f = score(parts | moving, rows.x, mask)
        return log_loss(f, y.expand_as(f), reduction="none").mean(1)

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


def _draw(seed: int, *shape: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like.device)


def _linear(parts: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return (x @ parts["weights"][..., None])[..., 0] + parts["bias"][:, None]


def _z(parts: Mapping[str, Tensor], x: Tensor) -> Tensor:
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
            f"u{k}": _draw(seed + k, places, rank, d, like=train.x),
            f"l{k}": parts["bias"].new_zeros(places, rank),
        }
        parts = trained(parts, (f"u{k}", f"l{k}"), polynomial_score, train, validation, steps=200, lr=0.02, decay=0.01)
    return parts


def polynomial_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    return by_order(parts, x)[-1]


def by_order(parts: Mapping[str, Tensor], x: Float[Tensor, "places n d"]) -> Float[Tensor, "orders places n"]:
    """The score with all terms up to each order, the linear one first."""
    x, z, k = x.double(), _z(parts, x), 2
    scores = [_linear(parts, x)]
    while f"u{k}" in parts:
        term = ((z @ parts[f"u{k}"].mT) ** k * parts[f"l{k}"][:, None]).sum(-1)
        scores.append(scores[-1] + term)
        k += 1
    return torch.stack(scores)


def bilinear(train: Rows, validation: Rows, start: Parts, *, rank: int = 8, seed: int = 0) -> Parts:
    """logistic + Σ_r (u_rᵀ z) (v_rᵀ z): products of two directions."""
    places, d = len(train.x), train.x.shape[-1]
    u = _draw(seed, places, rank, d, like=train.x)
    parts = start | moments(train) | {"u": u, "v": 0.01 * _draw(seed + 1, places, rank, d, like=train.x)}
    return trained(parts, ("u", "v"), bilinear_score, train, validation, steps=200, lr=0.02, decay=0.01)


def bilinear_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    z = _z(parts, x)
    return _linear(parts, x.double()) + ((z @ parts["u"].mT) * (z @ parts["v"].mT)).sum(-1)


def mlp(train: Rows, validation: Rows, start: Parts, *, hidden: int = 32, seed: int = 0) -> Parts:
    """One hidden layer of ReLUs beside the logistic score. What it finds may be its own work: see `selectivity`."""
    places, d = len(train.x), train.x.shape[-1]
    inner = {"u": _draw(seed, places, hidden, d, like=train.x), "c": parts_zero(train, hidden)}
    parts = start | moments(train) | inner | {"v": 0.01 * _draw(seed + 1, places, hidden, like=train.x)}
    return trained(parts, ("u", "c", "v"), mlp_score, train, validation, steps=200, lr=0.01, decay=0.01)


def parts_zero(rows: Rows, n: int) -> Tensor:
    return torch.zeros(len(rows.x), n, dtype=torch.float64, device=rows.x.device)


def mlp_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    inside = (_z(parts, x) @ parts["u"].mT + parts["c"][:, None]).relu()
    return _linear(parts, x.double()) + (inside * parts["v"][:, None]).sum(-1)


# ---------------------------------------------------------------------- of every token
def attention(train: Rows, validation: Rows, *, heads: int = 1, seed: int = 0) -> Parts:
    """Σ_h Σ_t softmax_t(q_hᵀ z_t) v_hᵀ z_t + b: the probe chooses the tokens that it reads; `heads` of them."""
    return _tokenwise(train, validation, attention_score, heads, seed)


def attention_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    weights, values = _heads(parts, x, mask)
    return (weights.softmax(2) * values).sum((2, 3)) + parts["bias"][:, None]


def multimax(train: Rows, validation: Rows, *, heads: int = 4, seed: int = 0) -> Parts:
    """Σ_h max_t v_hᵀ z_t + b: one loud token is enough, however long the text is."""
    return _tokenwise(train, validation, multimax_score, heads, seed)


def multimax_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    weights, values = _heads(parts, x, mask)
    return values.masked_fill(weights.isneginf(), -torch.inf).amax(2).sum(-1) + parts["bias"][:, None]


def rolling(train: Rows, validation: Rows, *, heads: int = 1, window: int = 10, seed: int = 0) -> Parts:
    """The largest, over windows of tokens, of what `attention` says of a window: a passage is enough."""
    if window < 1:
        raise BadInput(f"a window has 1 token or more, not {window}")
    windows = torch.full((len(train.x),), float(window), dtype=torch.float64, device=train.x.device)
    return _tokenwise(train, validation, rolling_score, heads, seed, window=windows)


def rolling_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    weights, values = _heads(parts, x, mask)
    size = int(parts["window"][0])

    def windows(one: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(one, (0, 0, size - 1, 0), value=fill).unfold(2, size, 1)

    a, v = windows(weights, -torch.inf), windows(values, 0.0)
    over = weights.isneginf()[..., None]  # a window ends with a token that counts
    said = (a.masked_fill(over, 0.0).softmax(-1) * v).sum((-1, -2))
    return said.masked_fill(over[..., 0, 0], -torch.inf).amax(2) + parts["bias"][:, None]


def _heads(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """q z and v z of each token and head, `places n pos heads`; the former is minus infinity where no token is."""
    if mask is None:
        raise BadInput("this probe reads every token of a text: read rows with positions='all'")
    z = _z(parts, torch.where(mask[None, ..., None], x, 0.0))
    a, v = ((z @ parts[name].mT[:, None]) for name in ("q", "v"))
    return a.masked_fill(~mask[None, ..., None], -torch.inf), v


def _tokenwise(train: Rows, validation: Rows, score: Score, heads: int, seed: int, **more: Tensor) -> Parts:
    if heads < 1:
        raise BadInput(f"heads is 1 or more, not {heads}")
    places, d = len(train.x), train.x.shape[-1]
    means = torch.stack([_mean_state(train, label) for label in (True, False)])
    parts = (
        moments(train)
        | more
        | {"bias": parts_zero(train, 1)[:, 0], "q": 0.1 * _draw(seed, places, heads, d, like=train.x)}
    )
    # the difference of the class means, on a scale at which scores are about 1, is a start from which little is lost
    gap = (means[0] - means[1]) / parts["scale"]
    start = gap / gap.norm(dim=1, keepdim=True)
    parts["v"] = start[:, None] + 0.1 * _draw(seed + 1, places, heads, d, like=train.x)
    return trained(parts, ("q", "v", "bias"), score, train, validation, steps=150, lr=0.03, decay=0.01)


def _mean_state(rows: Rows, label: bool) -> Tensor:
    assert rows.mask is not None
    chosen = (rows.mask & (rows.y == label)[:, None]).to(rows.x.device)
    return rows.x.double()[:, chosen].mean(1)
