"""Numbers inside a mixer that are in no module's input or output: arguments and results of functions that it calls.

Linear attention, state spaces and short convolutions compute in functions of their modelling file
(`torch_chunk_gated_delta_rule`, `causal_conv1d_fn`, ...), which kernels may stand behind. For the length of a pass, a
function of this file stands under each of these names. It hands calls of mixers that nobody asked about on as they are,
and lets the values of the others be read and written.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Action = Callable[[Tensor], Tensor]
Actions = Mapping[str, list[Action]]  # by the role of a value: "q", "dt", "conv", ...


class Form(NamedTuple):
    """How a value lies in a call: `read(value, n)` is `batch pos ...` of the last n tokens, `write` puts it back."""

    read: Callable[[Tensor, int], Tensor]
    write: Callable[[Tensor, Tensor], Tensor]


class Spot(NamedTuple):
    """A value of a call: the argument of this name, or (without a name) what the function returns, or its first."""

    argument: str
    form: Form


def _last(value: Tensor, part: Tensor) -> Tensor:
    """Channels first, and with a cache some columns of earlier tokens before."""
    return torch.cat([value[..., : value.shape[-1] - part.shape[1]], part.transpose(1, 2)], dim=-1)


_PLAIN = Form(lambda value, n: value, lambda value, part: part)
_CHANNELS = Form(lambda value, n: value[..., -n:].transpose(1, 2), _last)  # batch channel pos
_NUMBER = Form(lambda value, n: value[..., None], lambda value, part: part[..., 0])  # one for each head
_STEP = Form(lambda value, n: value[:, None], lambda value, part: part[:, 0])  # one token, without its axis
# Mamba 1: each channel is a head of one number, with B and C shared by all
_LONE = Form(lambda value, n: value.transpose(1, 2)[..., None], lambda value, part: part[..., 0].transpose(1, 2))
_SHARED = Form(lambda value, n: value.transpose(1, 2)[:, :, None], lambda value, part: part[:, :, 0].transpose(1, 2))
_LONE_STEP = Form(lambda value, n: value[:, None, :, None], lambda value, part: part[:, 0, :, 0])
_SHARED_STEP = Form(lambda value, n: value[:, None, None], lambda value, part: part[:, 0, 0])
# Mamba 2, one token: the time step is repeated for the numbers of a head
_REPEATED = Form(lambda value, n: value[:, None, :, 0], lambda value, part: part[:, 0, :, None].expand_as(value))

_CONVOLUTION = {"preconv": Spot("hidden_states", _CHANNELS), "conv": Spot("", _CHANNELS)}
_KDA = {
    "q": Spot("query", _PLAIN),
    "k": Spot("key", _PLAIN),
    "v": Spot("value", _PLAIN),
    "beta": Spot("beta", _PLAIN),
    "decay": Spot("g", _PLAIN),
    "mixed": Spot("", _PLAIN),
}
_DELTA = _KDA | {"decay": Spot("g", _NUMBER)}


def _scan(x: Form, dt: Form, group: Form, mixed: Form | None) -> dict[str, Spot]:
    spots = {"x": Spot("hidden_states", x), "dt": Spot("dt", dt), "B": Spot("B", group), "C": Spot("C", group)}
    return spots if mixed is None else spots | {"mixed": Spot("", mixed)}


# function -> role of a value -> where it is in a call
FUNCTIONS: dict[str, dict[str, Spot]] = {
    "causal_conv1d_fn": _CONVOLUTION,
    "causal_conv1d_update": _CONVOLUTION,
    "torch_chunk_gated_delta_rule": _DELTA,
    "torch_recurrent_gated_delta_rule": _DELTA,
    "chunk_kimi_delta_attention": _KDA,
    "recurrent_kimi_delta_attention": _KDA,
    "rwkv_linear_attention": {
        "k": Spot("key", _PLAIN),
        "v": Spot("value", _PLAIN),
        "mixed": Spot("", _PLAIN),
    },
    # what Mamba 1's scans return is multiplied by the gate already: what the output projection reads
    "mamba_selective_scan": _scan(_LONE, _CHANNELS, _SHARED, None),
    "mamba_selective_state_update": _scan(_LONE_STEP, _STEP, _SHARED_STEP, None),
    "mamba2_chunk_scan": _scan(_PLAIN, _PLAIN, _PLAIN, _PLAIN),
    "mamba2_selective_state_update": _scan(_STEP, _REPEATED, _STEP, _STEP),
}


def names_of(module: nn.Module) -> dict[str, Any]:
    """What the names in a module's forward stand for."""
    forward: Any = inspect.unwrap(type(module).forward)
    return forward.__globals__  # type: ignore[no-any-return]


class _Running(NamedTuple):
    """A mixer that is running, of those that were asked about: what is done at its values, and with how many tokens."""

    actions: Actions
    tokens: int


_RUNNING: ContextVar[_Running | None] = ContextVar("monosem_running_mixer", default=None)


@contextmanager
def calling(places: Mapping[nn.Module, Actions]) -> Iterator[None]:
    """Within, the functions that these mixers call show their values; the native functions are back after."""
    with ExitStack() as stack:
        before = _RUNNING.get()
        stack.callback(_RUNNING.set, before)
        for module, actions in places.items():
            stack.enter_context(_shown(names_of(module)))
            stack.callback(module.register_forward_pre_hook(_begin(actions), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(_end).remove)
        yield


def _begin(actions: Actions) -> Callable[..., None]:
    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        _RUNNING.set(_Running(actions, given.shape[1]))

    return begin


def _end(*_: Any) -> None:
    _RUNNING.set(None)


# passes of several threads may need the same file's functions: the last one puts the native ones back
_GUARD = Lock()
_SHOWN: dict[tuple[int, str], tuple[int, Any]] = {}


@contextmanager
def _shown(names: dict[str, Any]) -> Iterator[None]:
    called = [name for name in FUNCTIONS if name in names]
    with _GUARD:
        for name in called:
            count, native = _SHOWN.get((id(names), name), (0, names[name]))
            _SHOWN[id(names), name] = count + 1, native
            if count == 0:
                names[name] = _showing(native, FUNCTIONS[name])
    try:
        yield
    finally:
        with _GUARD:
            for name in called:
                count, native = _SHOWN.pop((id(names), name))
                if count > 1:
                    _SHOWN[id(names), name] = count - 1, native
                else:
                    names[name] = native


def _showing(native: Callable[..., Any], spots: dict[str, Spot]) -> Callable[..., Any]:
    signature = inspect.signature(native)

    @wraps(native)
    def call(*args: Any, **kwargs: Any) -> Any:
        running = _RUNNING.get()
        if running is None:
            return native(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        for role, spot in spots.items():
            if spot.argument and role in running.actions:
                bound.arguments[spot.argument] = _acted(running, role, spot.form, bound.arguments[spot.argument])
        out = native(*bound.args, **bound.kwargs)
        for role, spot in spots.items():
            if not spot.argument and role in running.actions:
                first = _acted(running, role, spot.form, out if isinstance(out, Tensor) else out[0])
                out = first if isinstance(out, Tensor) else (first, *out[1:])
        return out

    return call


def _acted(running: _Running, role: str, form: Form, value: Tensor) -> Tensor:
    old = part = form.read(value, running.tokens)
    for action in running.actions[role]:
        part = action(part)
    # where gradients are asked for, what was seen must be what the function is given
    return value if part is old and not part.requires_grad else form.write(value, part)
