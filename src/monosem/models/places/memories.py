"""Mixers with a memory, by architecture: linear attention, state spaces, short convolutions, recurrent units.

Each takes its module's path in the block. What they compute is in functions of transformers, so a mixer of a release
that calls other functions is not in a block, and the row's next mixer is (the last one says nothing of its inside).
"""

from typing import Literal

from .families import BranchRow
from .mixers import Mixer

_CONVOLVED = ("causal_conv1d_fn", "causal_conv1d_update")


def row(
    name: str,
    mixer: Mixer,
    before: str | None = "input_layernorm",
    after: str | None = None,
    *,
    parallel: bool = False,
    scale: str | None = None,
) -> BranchRow:
    """A branch with this mixer; where it calls other functions than the mixer names, nothing inside it is read."""
    plain = Mixer("other", mixer.path, mixer.parts, more=mixer.more)
    return BranchRow(name, (mixer, plain), "ln1", before, after, parallel, scale)


def delta_net(
    path: str,
    gate: str,
    beta: str,
    out: str = "out_proj",
    norm: str = "norm",
    gate_at: Literal["whole", "grouped"] = "whole",
) -> Mixer:
    """Gated DeltaNet: a decay for each head."""
    axes: dict[str, str | int] = {
        "mixer_head": "num_v_heads",
        "mixer_dim": "head_v_dim",
        "key_head": "num_k_heads",
        "key_dim": "head_k_dim",
        "decay": 1,
        "channel": "conv_dim",
    }
    calls = (*_CONVOLVED, "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")
    parts = {"gate": gate, "beta": beta, "norm": norm, "out": out}
    return Mixer("linear_attention", path, parts, calls=calls, axes=axes, gate_at=gate_at)


def kimi_delta(path: str, gate: str, out: str = "o_proj") -> Mixer:
    """Kimi delta attention: a decay for each number of a key."""
    axes: dict[str, str | int] = dict.fromkeys(("mixer_head", "key_head"), "num_heads")
    axes |= dict.fromkeys(("mixer_dim", "key_dim", "decay"), "head_dim") | {"channel": "conv_dim"}
    calls = (*_CONVOLVED, "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention")
    parts = {"gate": gate, "beta": "b_proj", "norm": "o_norm", "out": out}
    return Mixer("linear_attention", path, parts, calls=calls, axes=axes)


def mamba(path: str) -> Mixer:
    """Mamba 1: every channel has a memory of its own, so that a head is one channel."""
    axes: dict[str, str | int] = dict.fromkeys(("mixer_head", "channel"), "intermediate_size")
    axes |= {"mixer_dim": 1, "group": 1, "state": "ssm_state_size"}
    calls = (*_CONVOLVED, "mamba_selective_scan", "mamba_selective_state_update")
    return Mixer("state_space", path, {"gate": "in_proj", "out": "out_proj"}, calls=calls, axes=axes, gate_at="last")


def mamba_heads(path: str, more: bool = False) -> Mixer:
    """Zamba's Mamba 1 in heads, whose scans are called one after another: what is convolved, and what is projected."""
    axes: dict[str, str | int] = {"mixer_head": "n_mamba_heads", "mixer_dim": "mamba_head_dim"}
    axes |= {"channel": "intermediate_size"}
    return Mixer("state_space", path, {"out": "out_proj"}, calls=_CONVOLVED, axes=axes, more=more)


def mamba2(path: str, gate_scale: str | None = None, more: bool = False) -> Mixer:
    """Mamba 2: channels in heads, B and C shared by groups of heads."""
    axes: dict[str, str | int] = {
        "mixer_head": "num_heads",
        "mixer_dim": "head_dim",
        "group": "n_groups",
        "state": "ssm_state_size",
        "channel": "conv_dim",
    }
    calls = (*_CONVOLVED, "mamba2_chunk_scan", "mamba2_selective_state_update")
    parts = {"gate": "in_proj", "norm": "norm", "out": "out_proj"}
    scales = {"gate": gate_scale} if gate_scale else {}
    return Mixer("state_space", path, parts, calls=calls, axes=axes, gate_at="first", scales=scales, more=more)


def short_convolution(path: str) -> Mixer:
    """LFM's gated convolution."""
    parts = {"in": "in_proj", "out": "out_proj"}
    return Mixer("convolution", path, parts, calls=_CONVOLVED, axes={"channel": "conv.in_channels"})


def rg_lru(path: str) -> Mixer:
    """Griffin's recurrent block."""
    parts = {"x": "linear_x", "gate": "linear_y", "unit": "rg_lru", "out": "linear_out"}
    return Mixer("recurrent", path, parts, axes={"channel": "lru_width"})


def lightning(path: str) -> Mixer:
    """MiniMax's lightning attention."""
    axes: dict[str, str | int] = dict.fromkeys(("mixer_head", "key_head"), "num_attention_heads")
    axes |= dict.fromkeys(("mixer_dim", "key_dim"), "head_dim")
    parts = {"qkv": "qkv_proj", "gate": "output_gate", "norm": "norm", "out": "out_proj"}
    return Mixer("lightning_attention", path, parts, axes=axes)


def time_mixing(path: str) -> Mixer:
    """RWKV's memory: a running numerator and denominator of each channel, and the logarithm of what scales both."""
    axes: dict[str, str | int] = {"channel": "attention_hidden_size", "number": 3}
    parts = {"gate": "receptance", "out": "output"}
    return Mixer("time_mixing", path, parts, calls=("rwkv_linear_attention",), axes=axes)


def xlstm(path: str) -> Mixer:
    """xLSTM's matrix memory; its cell has no module whose numbers can be read."""
    return Mixer("recurrent", path, {"gate": "ogate_preact", "out": "out_proj"}, axes={"channel": "v_dim"})
