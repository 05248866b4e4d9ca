"""What a mixer's memory holds after chosen tokens: linear attention, state spaces, Griffin's recurrent units.

No module has it as an input or output, and for every token it would be many times an activation: it is computed anew,
token by token, from sites that are captured. The identities of `verify` hold the same recurrences against the model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import BadInput
from ..numbers import ranges
from ..places.branches import Branch
from ..places.places import Places
from .budget import bytes_of, shown
from .moment import EditLike
from .run import run
from .selection import Positions, columns_of

Values = Mapping[str, Tensor]  # by the names that a kind of mixer gives its sites, `batch pos ...`
Steps = Iterator[tuple[Tensor, Tensor]]  # output and memory after each token


def delta_rule(module: Any, values: Values) -> Steps:
    """S = exp(decay) S; S = S + k ⊗ beta (v - k S); out = q S / sqrt(d), with q and k of length 1.

    The memory is `batch mixer_head key_dim mixer_dim`.
    """
    v, beta, decay = (values[name] for name in ("v", "beta", "decay"))
    heads = v.shape[2]
    q, k = (
        (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()).repeat_interleave(heads // x.shape[2], 2)
        for x in (values["q"], values["k"])
    )
    state = v.new_zeros(len(v), heads, k.shape[3], v.shape[3])
    for t in range(v.shape[1]):
        state = decay[:, t].exp()[..., None] * state
        change = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state))
        state = state + k[:, t, ..., None] * change[..., None, :]
        yield torch.einsum("bhk,bhkv->bhv", q[:, t], state) * k.shape[3] ** -0.5, state


def state_space(module: Any, values: Values) -> Steps:
    """h = exp(dt A) h + dt B x; out = C h + D x, with dt = softplus(dt + bias) between its limits.

    The memory is `batch mixer_head mixer_dim state`.
    """
    x, dt = values["x"], values["dt"]
    heads = x.shape[2]
    bias = module.dt_bias if hasattr(module, "dt_bias") else module.dt_proj.bias
    low, high = getattr(module, "time_step_limit", (0.0, float("inf")))
    dt = nn.functional.softplus(dt + bias.to(dt.dtype)).clamp(low, high)
    B, C = (values[name].repeat_interleave(heads // values[name].shape[2], 2) for name in ("B", "C"))
    A = -module.A_log.to(x.dtype).exp().view(heads, -1)  # one for the whole head, or for each number of its state
    D = module.D.to(x.dtype)[:, None]
    state = x.new_zeros(len(x), heads, x.shape[3], B.shape[3])
    for t in range(x.shape[1]):
        put = (dt[:, t, :, None] * B[:, t])[:, :, None] * x[:, t, ..., None]
        state = (dt[:, t, :, None] * A).exp()[:, :, None] * state + put
        yield torch.einsum("bhdn,bhn->bhd", state, C[:, t]) + D * x[:, t], state


def recurrent_unit(module: Any, values: Values) -> Steps:
    """h = a h + sqrt(1 - a²) i x with a = exp(-8 r softplus(λ)); at first h = i x. r and i are gates of blocks of x.

    The memory is `batch channel`, and is the output.
    """
    unit, x = module.rg_lru, values["conv"]
    blocks = x.unflatten(-1, (unit.num_attention_heads, -1))
    enters, stays = (
        (torch.einsum("bthi,hio->btho", blocks, weight.to(x.dtype)) + offset.to(x.dtype)).sigmoid().flatten(2)
        for weight, offset in (
            (unit.input_gate_weight, unit.input_gate_bias),
            (unit.recurrent_gate_weight, unit.recurrent_gate_bias),
        )
    )
    a = (-8.0 * stays * nn.functional.softplus(unit.recurrent_param.to(x.dtype))).exp()
    state = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        size = (1 - a[:, t] ** 2).sqrt() if t else 1.0
        state = (a[:, t] * state if t else 0.0) + size * enters[:, t] * x[:, t]
        yield state, state


def lightning(module: Any, values: Values) -> Steps:
    """S = exp(-slope) S + k ⊗ v; out = q S, with q, k and v through the activation function.

    The memory is `batch mixer_head mixer_dim mixer_dim` (of keys, of values).
    """
    q, k, v = (module.act_fn(values[name]) for name in "qkv")
    stays = (-module.slope_rate).exp().to(q.dtype)
    state = v.new_zeros(len(v), v.shape[2], v.shape[3], v.shape[3])
    for t in range(v.shape[1]):
        state = stays * state + k[:, t, :, :, None] * v[:, t, :, None]
        yield torch.einsum("bhk,bhkv->bhv", q[:, t], state), state


def time_mixing(module: Any, values: Values) -> Steps:
    """out = (N + exp(u + k) v) / (D + exp(u + k)); then N = exp(-w) N + exp(k) v, D = exp(-w) D + exp(k).

    The memory is `batch channel 3`: N and D over the exponential of the third, which keeps them in range.
    """
    k, v = values["k"], values["v"]
    fades, first = module.time_decay.to(k.dtype).exp(), module.time_first.to(k.dtype)
    above, below, largest = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), torch.full_like(v[:, 0], -1e38)

    def added(size: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        top = torch.maximum(size, key)
        old, new = (size - top).exp(), (key - top).exp()
        return old * above + new * value, old * below + new, top

    for t in range(k.shape[1]):
        whole, weights, _ = added(largest, first + k[:, t], v[:, t])
        above, below, largest = added(largest - fades, k[:, t], v[:, t])
        yield whole / weights, torch.stack([above, below, largest], -1)


# kind -> its recurrence, the sites that it needs, the axes of its memory
_KINDS: dict[str, tuple[Callable[[Any, Values], Steps], tuple[str, ...], tuple[str, ...]]] = {
    "linear_attention": (delta_rule, ("q", "k", "v", "beta", "decay"), ("mixer_head", "key_dim", "mixer_dim")),
    "state_space": (state_space, ("x", "dt", "B", "C"), ("mixer_head", "mixer_dim", "state")),
    "recurrent": (recurrent_unit, ("conv",), ("channel",)),
    "lightning_attention": (lightning, ("q", "k", "v"), ("mixer_head", "mixer_dim", "mixer_dim")),
    "time_mixing": (time_mixing, ("k", "v"), ("channel", "number")),
}


def state_of(
    model: Places,
    x: Any,
    layer: int,
    positions: Positions = "last",
    *,
    edits: EditLike | Iterable[EditLike] = (),
    memory: str | int = "2GB",
) -> Float[Tensor, "batch kept ..."]:
    """What the memory of a layer's mixer holds after chosen tokens, in float32.

    Linear attention: `batch kept mixer_head key_dim mixer_dim`; state spaces: `batch kept mixer_head mixer_dim state`;
    Griffin's recurrent units: `batch kept channel`; RWKV: `batch kept channel 3` (numerator,
    denominator, log of their scale).

    Args:
        positions: token positions, as for `Model.run`; of n tokens, n memories are kept.
        edits: of the run that it is taken from.
        memory: what the result may take, such as "4GB".

    Raises:
        BadInput: a layer without such a memory, or a result larger than `memory`, with its size.
    """
    branch = _with_memory(model, model.layers(layer)[0])
    step, names, axes = _KINDS[branch.kind]
    tokens = model.tokens(x).to(model.device)
    columns = columns_of(tokens, positions).to(model.device)
    size = 4 * columns.numel() * prod(branch.slot.sizes[axis] for axis in axes)
    if size > bytes_of(memory):
        raise BadInput(
            f"the memory of {branch.name}.{branch.layer} after {columns.shape[1]} tokens of {len(tokens)} rows takes "
            f"{shown(size)}, over memory={shown(bytes_of(memory))}; give fewer positions= or more memory="
        )
    sites = {name: branch.site(name) for name in names}
    found = run(model, tokens, capture=sites.values(), edits=edits, logits=False)
    values = {name: found[site].float() for name, site in sites.items()}
    kept: dict[int, Tensor] = {}
    wanted, last = set(columns.flatten().tolist()), int(columns.max())
    with torch.no_grad(), model.turn():
        for t, (_, state) in zip(range(last + 1), step(branch.module, values)):
            if t in wanted:
                kept[t] = state
    rows = [torch.stack([kept[t][row] for t in of_row]) for row, of_row in enumerate(columns.tolist())]
    return torch.stack(rows)


def _with_memory(model: Places, layer: int) -> Branch:
    def has(branch: Branch) -> bool:
        known = _KINDS.get(branch.kind)
        return known is not None and all(model.has(branch.site(name)) for name in known[1])

    if (branch := next(filter(has, model.branches(layer)), None)) is not None:
        return branch
    others = sorted({branch.layer for branch in model.branches() if has(branch)})
    which = f"; layers {ranges(others)} do" if others else ""
    raise BadInput(f"layer {layer} of {model.name} keeps no state of its mixer that can be read{which}")
