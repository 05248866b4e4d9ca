"""Probes that read every token of a text: what they make of many tokens is one score."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import BadInput
from .descent import Parts, Score, draw, moments, scaled, trained, zeros
from .rows import Rows

SPAN = 10  # tokens over which the weight of a position grows by one unit
STEPS, DECAY = 150, 0.01


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


def positional(train: Rows, validation: Rows, *, heads: int = 1, seed: int = 0) -> Parts:
    """`attention` with q_hᵀ z_t + p_h t / 10 in the softmax: where a token stands counts, too, with a slope that is
    learnt (ALiBi, arXiv:2108.12409, has fixed ones). t numbers the tokens that count; from the start or from the end is
    the same, for a softmax sees differences."""
    slopes = zeros(train, max(heads, 1))
    return _tokenwise(train, validation, positional_score, heads, seed, slope=slopes)


def positional_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    weights, values = _heads(parts, x, mask)
    assert mask is not None
    place = mask.cumsum(1).double()[None, ..., None] / SPAN
    return ((weights + place * parts["slope"][:, None, None]).softmax(2) * values).sum((2, 3)) + parts["bias"][:, None]


# ---------------------------------------------------------------------- of every token, through a hidden layer
def soft_attention(train: Rows, validation: Rows, *, heads: int = 4, hidden: int = 32, seed: int = 0) -> Parts:
    """`attention` of h_t = relu(U z_t + c) instead of z_t: a token may be chosen, and valued, by more than a line."""
    parts = _hidden(train, heads, hidden, seed)
    parts["q"] = 0.1 * draw(seed + 2, *parts["v"].shape, like=train.x)
    return _with_hidden(parts, ("q",), soft_attention_score, train, validation)


def soft_attention_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    h, off = _features(parts, x, mask)
    weights = (h @ parts["q"].mT[:, None]).masked_fill(off, -torch.inf).softmax(2)
    return (weights * (h @ parts["v"].mT[:, None])).sum((2, 3)) + parts["bias"][:, None]


def gated_bipolar(train: Rows, validation: Rows, *, arms: int = 4, hidden: int = 32, seed: int = 0) -> Parts:
    """Σ_k up_k max_t g_kt - down_k min_t g_kt + b, g_kt = v_kᵀ h_t softplus(w_kᵀ h_t + s_k), h_t = relu(U z_t + c): how
    far a gated value goes up anywhere in the text, and how far down, each with a weight of its own."""
    parts = _hidden(train, arms, hidden, seed)
    parts["w"], parts["s"] = 0.1 * draw(seed + 2, *parts["v"].shape, like=train.x), zeros(train, arms)
    # largest and smallest together: a start from which a shift of all tokens shows, whatever its sign
    parts["up"], parts["down"] = (side / arms * torch.ones_like(parts["s"]) for side in (1.0, -1.0))
    return _with_hidden(parts, ("w", "s", "up", "down"), gated_bipolar_score, train, validation)


def gated_bipolar_score(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Tensor:
    h, off = _features(parts, x, mask)
    gate = softplus(h @ parts["w"].mT[:, None] + parts["s"][:, None, None])
    said = (h @ parts["v"].mT[:, None]) * gate
    up, down = said.masked_fill(off, -torch.inf).amax(2), said.masked_fill(off, torch.inf).amin(2)
    return (parts["up"][:, None] * up - parts["down"][:, None] * down).sum(-1) + parts["bias"][:, None]


def _features(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """relu(U z + c) of each token, `places n pos hidden`, and where no token is."""
    z, off = _tokens(parts, x, mask)
    return (z @ parts["u"].mT[:, None] + parts["c"][:, None, None]).relu(), off


def _hidden(train: Rows, heads: int, hidden: int, seed: int) -> Parts:
    """A hidden layer and values v of it. The first two units are the difference of the class means, up and down, and v
    starts as one less the other: linear in it."""
    if heads < 1 or hidden < 2:
        raise BadInput(f"heads (or arms) is 1 or more and hidden 2 or more, not {heads} and {hidden}")
    parts, places, d = moments(train), len(train.x), train.x.shape[-1]
    u, line = draw(seed, places, hidden, d, like=train.x), _start(train, parts) * d**0.5
    u[:, 0], u[:, 1] = line, -line
    v = 0.1 * draw(seed + 1, places, heads, hidden, like=train.x)
    v[..., 0] += 1
    v[..., 1] -= 1
    return parts | {"u": u, "c": zeros(train, hidden), "v": v, "bias": zeros(train, 1)[:, 0]}


def _with_hidden(parts: Parts, free: tuple[str, ...], score: Score, train: Rows, validation: Rows) -> Parts:
    names = ("u", "c", "v", "bias", *free)
    return trained(parts, names, score, train, validation, steps=STEPS, lr=0.01, decay=DECAY)


# ---------------------------------------------------------------------- shared
def _heads(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """q z and v z of each token and head, `places n pos heads`; the former is minus infinity where no token is."""
    z, off = _tokens(parts, x, mask)
    a, v = ((z @ parts[name].mT[:, None]) for name in ("q", "v"))
    return a.masked_fill(off, -torch.inf), v


def _tokens(parts: Mapping[str, Tensor], x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Standardised tokens, and where no token is, `1 n pos 1`."""
    if mask is None:
        raise BadInput("this probe reads every token of a text: read rows with positions='all'")
    there = mask[None, ..., None]
    return scaled(parts, torch.where(there, x, 0.0)), ~there


def _tokenwise(train: Rows, validation: Rows, score: Score, heads: int, seed: int, **more: Tensor) -> Parts:
    if heads < 1:
        raise BadInput(f"heads is 1 or more, not {heads}")
    places, d = len(train.x), train.x.shape[-1]
    parts = (
        moments(train) | more | {"bias": zeros(train, 1)[:, 0], "q": 0.1 * draw(seed, places, heads, d, like=train.x)}
    )
    parts["v"] = _start(train, parts)[:, None] + 0.1 * draw(seed + 1, places, heads, d, like=train.x)
    free = ("q", "v", "bias", *(("slope",) if "slope" in more else ()))
    return trained(parts, free, score, train, validation, steps=STEPS, lr=0.03, decay=DECAY)


def _start(train: Rows, parts: Parts) -> Float[Tensor, "places d"]:
    """The difference of the class means of tokens, standardised, of length one: a start from which little is lost."""
    gap = (_mean_state(train, True) - _mean_state(train, False)) / parts["scale"]
    return gap / gap.norm(dim=1, keepdim=True)


def _mean_state(rows: Rows, label: bool) -> Tensor:
    assert rows.mask is not None
    chosen = (rows.mask & (rows.y == label)[:, None]).to(rows.x.device)
    return rows.x.double()[:, chosen].mean(1)
