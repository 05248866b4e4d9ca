"""The rotations that a GGUF file asks for, as `rope_parameters` of a transformers config.

transformers reads the base alone (`<arch>.rope.freq_base`). llama.cpp, whose files these are, knows these ways more:

- `rope.scaling.type` with a factor: "linear" (the default of a factor without a type) or "yarn";
- the tensor `rope_freqs.weight` (Llama 3.1 and later): what each frequency is divided by;
- the tensors `rope_factors_long.weight` and `rope_factors_short.weight` (Phi-3 128k): the same beyond the original
  context and up to it, with `rope.scaling.attn_factor` for both.

A factor of a model with two kinds of layers (Gemma 3) is for the layers with full attention alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import BadFile

Keys = Mapping[str, Any]
Factors = list[float]

FREQS, LONG, SHORT = (f"rope_{name}.weight" for name in ("freqs", "factors_long", "factors_short"))
TENSORS = frozenset({FREQS, LONG, SHORT})
_SCALING = "rope.scaling."
_TYPES = (None, "none", "linear", "yarn", "longrope")
# keys that are read below, and keys of which transformers can hold one value alone
READ = frozenset(
    {
        *("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scale_linear"),
        *(_SCALING + name for name in ("type", "factor", "attn_factor", "original_context_length")),
        *(_SCALING + name for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
    }
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    _SCALING + "yarn_ext_factor": (1.0, -1.0),
    _SCALING + "yarn_log_multiplier": (0.0,),
    _SCALING + "alpha": (0.0, 1.0),
}


def rope_parameters(
    keys: Keys, old: dict[str, Any], d_head: int, context: int, factors: Callable[[str], Factors | None]
) -> dict[str, Any]:
    """What takes the place of a config's `rope_parameters`, which transformers made of the base alone.

    Args:
        keys: the file's metadata, without the name of the architecture.
        d_head: width of a head. context: tokens of the file's context.
        factors: the numbers in a tensor of the file, None where it has no such tensor.

    Raises:
        BadFile: a value that cannot be, or a way of scaling that transformers has no parameters for; it is named.
    """
    nested = "full_attention" in old
    base = dict(old["full_attention"] if nested else old)
    base["rope_theta"] = number(keys, "rope.freq_base", base["rope_theta"])
    if (rotary := count(keys, "rope.dimension_count", d_head)) != d_head or "partial_rotary_factor" in base:
        if "partial_rotary_factor" not in base or rotary > d_head:
            raise BadFile(f"rope.dimension_count is {rotary}, and heads of this architecture turn all {d_head} numbers")
        base["partial_rotary_factor"] = rotary / d_head
        if int(d_head * base["partial_rotary_factor"]) != rotary:  # transformers multiplies, and rounds down
            base["partial_rotary_factor"] = math.nextafter(rotary / d_head, 1)
    scaled = base | _scaling(keys, rotary, context, factors)
    local = number(keys, "rope.freq_base_swa", old["sliding_attention"]["rope_theta"] if nested else base["rope_theta"])
    if nested:
        return {"full_attention": scaled, "sliding_attention": {**old["sliding_attention"], "rope_theta": local}}
    if local != base["rope_theta"]:
        raise BadFile(f"rope.freq_base_swa is {local:g}, and all layers of this architecture have one base")
    return scaled


def _scaling(keys: Keys, rotary: int, context: int, factors: Callable[[str], Factors | None]) -> dict[str, Any]:
    kind = keys.get(_SCALING + "type")
    if kind not in _TYPES:
        raise BadFile(f"{_SCALING}type is {kind!r}, which is none of {', '.join(str(one) for one in _TYPES[1:])}")
    name = _SCALING + "factor" if _SCALING + "factor" in keys else "rope.scale_linear"
    factor = 1.0 if kind == "none" or keys.get(name) == 0 else number(keys, name, 1.0)  # 0: not scaled
    original = count(keys, _SCALING + "original_context_length", context)
    attention = number(keys, _SCALING + "attn_factor", None)
    divisors, long, short = (_checked(name, factors(name), rotary) for name in (FREQS, LONG, SHORT))
    if (long is None) != (short is None) or (kind == "longrope" and long is None):
        raise BadFile(f"{LONG} and {SHORT} belong together, and one is missing")
    if kind == "yarn" and factor != 1:
        if divisors or long:
            raise BadFile(f"{_SCALING}type is 'yarn', and the file has {FREQS if divisors else LONG} as well")
        return _yarn(keys, factor, original, attention)
    if long and short:
        if factor != 1 or divisors:
            raise BadFile(f"{_SCALING}factor is {factor:g}, and the file has {FREQS if divisors else LONG} as well")
        return _longrope(short, long, original, attention)
    if divisors:  # short and long alike, so that no length changes anything
        divisors = [factor * divisor for divisor in divisors]
        return _longrope(divisors, divisors, context, attention or 1.0)
    if attention not in (None, 1.0):
        raise BadFile(f"{_SCALING}attn_factor is {attention:g}, which goes with factors by frequency or yarn alone")
    return {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}


def _longrope(short: Factors, long: Factors, original: int, attention: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    found |= {"original_max_position_embeddings": original}
    return found if attention is None else found | {"attention_factor": attention}


def _yarn(keys: Keys, factor: float, original: int, attention: float | None) -> dict[str, Any]:
    """`yarn_attn_factor` is the original config's own number, which `attn_factor` multiplies."""
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if (beta := number(keys, f"{_SCALING}yarn_{name}", None)) is not None:
            found[name] = beta
    own = number(keys, _SCALING + "yarn_attn_factor", None)
    if own is not None or attention is not None:
        usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        found["attention_factor"] = (usual if own is None else own) * (1.0 if attention is None else attention)
    return found


def number(keys: Keys, key: str, default: Any) -> Any:
    """A finite positive number. Raises `BadFile` naming the key."""
    value = keys.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise BadFile(f"{key} is {value!r}, which is no positive number")
    return value


def count(keys: Keys, key: str, default: Any) -> Any:
    """A whole number above 0. Raises `BadFile` naming the key."""
    value = number(keys, key, default)
    if value is not None and not isinstance(value, int):
        raise BadFile(f"{key} is {value!r}, which is no whole number")
    return value


def _checked(name: str, values: Factors | None, rotary: int) -> Factors | None:
    if values is None:
        return None
    if len(values) != rotary // 2 or not all(math.isfinite(value) and value > 0 for value in values):
        raise BadFile(f"{name} must hold {rotary // 2} positive numbers, one for each frequency")
    return None if name == FREQS and all(value == 1 for value in values) else values
