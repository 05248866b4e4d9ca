"""How many heads an attention has, and how wide they are: read off its modules, because layers may differ."""

from typing import Any, NamedTuple

from torch import nn

from .mixers import Mixer


class Heads(NamedTuple):
    """Sizes of one softmax attention.

    Attributes:
        n: query heads. n_kv: kv heads. qk: width of queries and keys. v: width of values, and of what is mixed of them.
        nope: how many numbers of queries and keys are not rotated, of latent attention.
    """

    n: int
    n_kv: int
    qk: int
    v: int
    nope: int = 0


def heads_of(mixer: Mixer, config: Any, block: nn.Module) -> Heads | None:
    """None for mixers that are no softmax attention."""
    if not mixer.row.attends:
        return None
    module = block.get_submodule(mixer.chain[0])
    wide = {part: widths(block.get_submodule(mixer.at(part))) for part in mixer.projections}
    return (
        _latent(module, mixer, config, wide)
        if mixer.kind == "latent_attention"
        else _heads(module, mixer, config, wide)
    )


def _heads(module: Any, mixer: Mixer, config: Any, wide: dict[str, tuple[int, int]]) -> Heads:
    mixed, expected = wide["out"][0], max(getattr(config, "num_attention_heads", 1), 1)
    v = getattr(module, "v_head_dim", None) or getattr(module, "head_dim", None)
    v = v if isinstance(v, int) and v > 0 and mixed % v == 0 else mixed // expected
    n = mixed // v
    if mixer.fused:
        return Heads(n, (wide["q"][1] // v - n) // 2, v, v)
    qk = wide["q"][1] // (2 * n if mixer.gated_queries else n)
    if "v" in wide:
        return Heads(n, wide["v"][1] // v, qk, v)
    if "k" in wide:
        return Heads(n, wide["k"][1] // qk, qk, v)
    return Heads(n, n // getattr(module, "num_key_value_groups", 1), qk, v)  # keys and values of an earlier layer


def _latent(module: Any, mixer: Mixer, config: Any, wide: dict[str, tuple[int, int]]) -> Heads:
    n = getattr(module, "num_heads", None) or config.num_attention_heads
    v = wide["out"][0] // n
    qk = wide["q"][1] // n - (v if mixer.gated_queries else 0)
    return Heads(n, n, qk, v, wide["kv"][1] // n - v)


def widths(linear: Any) -> tuple[int, int]:
    """Numbers of inputs and outputs: Conv1D stores [in, out], and packed weights have any shape."""
    if type(linear).__name__ == "Conv1D":
        return tuple(linear.weight.shape)  # type: ignore[return-value]
    return linear.in_features, linear.out_features
