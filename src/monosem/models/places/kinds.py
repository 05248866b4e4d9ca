"""Kinds of mixers: what a branch of a block computes between the stream that it reads and what it adds to it.

A new kind (linear attention, a state space, a convolution) is a new row of `KINDS`: sites, runs, sweeps, lenses and
attribution follow from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

# a module's input or output; inside an attention function; a norm's own, which its input determines; what the parts of
# a projection's input add to its output; in a call of a function (`calls.py`)
Side = Literal["in", "out", "inside", "around", "across", "call", "chosen"]


class Inner(NamedTuple):
    """Where a site in a mixer is: the input or output of one of the mixer's parts, or inside its attention function.

    `layout` is a row of `points.layout_of`; `shape` are the axes of the site's tensor without the batch; `item` is
    which of the part's outputs; `flat` parts see `batch*pos` rows; `instead` is the part where a mixer lacks the first;
    a site that `needs` parts is there where the mixer has one of these; `role` is which value of the functions that the
    mixer calls; `fixed` is why it can be read alone.
    """

    part: str
    side: Side
    layout: str
    shape: tuple[str, ...]
    item: int = 0
    flat: bool = False
    instead: str = ""
    needs: tuple[str, ...] = ()
    role: str = ""
    fixed: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of mixer.

    Attributes:
        sites: inner sites in the order of computation. A name with a leading underscore follows the branch's name:
            `_post` is mlp_post in the branch `mlp`; another name stands alone in the branch `plain`.
        working: the most numbers that it holds for a token while it computes, from the model's sizes (`Shape`).
        projected: the inner site that the output projection writes into the stream; None: no such projection to read.
        units: what the projected site is made of: "head", "neuron" or "channel".
        pointwise: every token is treated alone, so that the native module can be called on any stream.
        plain: the branch whose inner sites have no prefix.
        usual: parts that a mixer has where its module has one at one of these paths; rows need not name them.
        attends: it is softmax attention: queries, keys, a pattern, and values that the pattern mixes.
    """

    sites: dict[str, Inner]
    working: Callable[[Any], int]
    projected: str | None = None
    units: Literal["head", "neuron", "channel"] | None = None
    pointwise: bool = False
    plain: str = ""
    attends: bool = False
    usual: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def site(self, name: str, branch: str) -> str:
        """The name of an inner site in a branch."""
        if name.startswith("_"):
            return f"{branch}{name}"
        return name if branch == self.plain else f"{branch}_{name}"


_HEADS, _KV_HEADS = ("position", "head", "d_head"), ("position", "kv_head", "d_head")
_TOKEN = ("position", "width")
_PAIRS, _NEURONS, _CHOSEN = ("head", "position", "key"), ("position", "neuron"), ("position", "chosen")
_PROJECTED: dict[str, Inner] = {
    "q": Inner("q", "out", "q", _HEADS),
    "k": Inner("k", "out", "k", _KV_HEADS),
    "v": Inner("v", "out", "v", _KV_HEADS),
}
# what is inside the attention function, and after it; values are as the pattern mixes them
_MIXING: dict[str, Inner] = {
    "rot_q": Inner("", "inside", "whole", _HEADS),
    "rot_k": Inner("", "inside", "whole", _KV_HEADS),
    "values": Inner("", "inside", "whole", _KV_HEADS),
    "scores": Inner("", "inside", "whole", _PAIRS),
    "pattern": Inner("", "inside", "whole", _PAIRS),
    "mixed": Inner("", "inside", "whole", _HEADS, needs=("gate", "mixed_norm")),
    "z": Inner("out", "in", "z", _HEADS),
    "result": Inner("out", "across", "z", ("position", "head", "d_model")),
}
# axes of mixers with a memory: their own heads of `mixer_dim` numbers, and what the heads share
_UNITS, _KEYS = ("position", "mixer_head", "mixer_dim"), ("position", "key_head", "key_dim")
_CHANNELS, _STATES = ("position", "channel"), ("position", "group", "state")


def _called(role: str, shape: tuple[str, ...]) -> Inner:
    return Inner("", "call", "whole", shape, role=role)


# what a convolution over the last few tokens reads, and what it gives (with the activation function after it)
_CONVOLUTION = {"preconv": _called("preconv", _CHANNELS), "conv": _called("conv", _CHANNELS)}
_WRITTEN = {
    "z": Inner("out", "in", "units", _UNITS),
    "result": Inner("out", "across", "units", ("position", "mixer_head", "d_model")),
}
_SHARED = ("shared_experts", "shared_expert", "shared_mlp")
_USUAL = {
    "experts": ("experts",),
    "shared": _SHARED,
    "shared_gate": ("shared_expert_gate",),
    "shared_pre": tuple(f"{path}.gate_proj" for path in _SHARED),
    "shared_pre_linear": tuple(f"{path}.up_proj" for path in _SHARED),
    "shared_down": tuple(f"{path}.down_proj" for path in _SHARED),
    "out_norm": ("post_mlp_layernorm",),
}
_MIXTURE: dict[str, Inner] = {
    "router_logits": Inner("router", "out", "whole", ("position", "expert"), 0, True),
    "expert_weights": Inner("router", "out", "whole", _CHOSEN, 1, True),
    "expert_indices": Inner("router", "out", "whole", _CHOSEN, 2, True),
    "expert_post": Inner("experts", "chosen", "whole", (*_CHOSEN, "neuron"), role="neurons"),
    "expert_out": Inner("experts", "chosen", "whole", (*_CHOSEN, "d_model"), role="outputs"),
    "experts_out": Inner("experts", "out", "whole", ("position", "d_model"), flat=True),
    "shared_pre": Inner("shared_pre", "out", "whole", _NEURONS, flat=True),
    "shared_pre_linear": Inner("shared_pre_linear", "out", "whole", _NEURONS, flat=True),
    "shared_post": Inner("shared_down", "in", "whole", _NEURONS, flat=True),
    "shared_out": Inner("shared_down", "out", "kept", ("position", "d_model"), flat=True),
}
_TWICE = "the model mixes with it twice, for two halves of the values"
# keys and values are made of what an encoder gives: their positions are the source's
_SOURCE = dict.fromkeys(("k", "v", "rot_k", "values"), ("source", "kv_head", "d_head"))
KINDS: dict[str, Kind] = {
    "attention": Kind(
        _PROJECTED | {"attn_gate": Inner("gate", "out", "attn_gate", _HEADS)} | _MIXING,
        working=lambda cfg: 2 * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head,
        projected="z",
        units="head",
        plain="attn",
        attends=True,
    ),
    "cross_attention": Kind(
        {
            name: inner._replace(shape=_SOURCE.get(name, inner.shape))
            for name, inner in (_PROJECTED | _MIXING).items()
            if name != "mixed"
        },
        working=lambda cfg: 2 * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head,
        projected="z",
        units="head",
        attends=True,
    ),
    # two patterns a pair of heads, the second subtracted times a learnt number (arXiv:2410.05258)
    "differential_attention": Kind(
        _PROJECTED | {name: _MIXING[name]._replace(fixed=_TWICE) for name in ("rot_q", "rot_k", "scores", "pattern")},
        working=lambda cfg: 4 * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head,
        plain="attn",
        attends=True,
    ),
    # queries, and keys with values, come through a narrow latent each; a part of the key, one for all heads, is rotated
    "latent_attention": Kind(
        {
            "q_latent": Inner("q_latent", "out", "whole", _TOKEN),
            "kv_latent": Inner("kv_latent", "out", "whole", _TOKEN),
            "k_rope": Inner("kv_a", "out", "k_rope", _TOKEN),
            "q": Inner("q", "out", "q", _HEADS),
            "k_nope": Inner("kv", "out", "k_nope", _HEADS),
            "v": Inner("kv", "out", "v_of_latent", _KV_HEADS),
            "attn_gate": Inner("gate", "out", "attn_gate", _HEADS),
            **_MIXING,
        },
        working=lambda cfg: 6 * cfg.n_heads * cfg.d_head,
        projected="z",
        units="head",
        plain="attn",
        attends=True,
    ),
    "mlp": Kind(
        {
            "_pre": Inner("pre", "out", "gate", _NEURONS),
            "_pre_linear": Inner("pre_linear", "out", "up", _NEURONS),
            "_up": Inner("pre_linear", "out", "up", _NEURONS, instead="pre"),
            "_gated": Inner("inner_norm", "in", "whole", _NEURONS),
            "_post": Inner("down", "in", "whole", _NEURONS),
        },
        working=lambda cfg: 4 * cfg.d_mlp,
        projected="_post",
        units="neuron",
        pointwise=True,
    ),
    "mixture": Kind(  # its experts are batched parameters of one module; a shared one is an MLP beside them
        _MIXTURE,
        working=lambda cfg: 4 * cfg.d_mlp,
        pointwise=True,
        plain="mlp",
        usual=_USUAL,
    ),
    "joined_mixture": Kind(  # experts and an MLP, each with norms of its own, summed before one norm (Gemma 4)
        _MIXTURE | {"router_logits": _MIXTURE["router_logits"]._replace(part="scores")},
        working=lambda cfg: 4 * cfg.d_mlp,
        plain="mlp",
    ),
    "scaled_mixture": Kind(  # every expert is given each token, times a weight that is 0 for most of them (Llama 4)
        {
            "router_logits": Inner("router", "out", "whole", ("position", "expert"), 1, True),
            "expert_weights": Inner("router", "out", "whole", _CHOSEN, 0, True),
            "expert_out": Inner("experts", "chosen", "whole", (*_CHOSEN, "d_model"), role="scaled"),
        }
        | {name: inner for name, inner in _MIXTURE.items() if name.startswith("shared")},
        working=lambda cfg: 4 * cfg.d_mlp,
        pointwise=True,
        plain="mlp",
        usual=_USUAL,
    ),
    "linear_attention": Kind(
        _CONVOLUTION
        | {
            "q": _called("q", _KEYS),
            "k": _called("k", _KEYS),
            "v": _called("v", _UNITS),
            "beta": _called("beta", ("position", "mixer_head")),
            "decay": _called("decay", ("position", "mixer_head", "decay")),
            "mixed": _called("mixed", _UNITS),
            "gate": Inner("gate", "out", "gate_units", _UNITS),
        }
        | _WRITTEN,
        working=lambda cfg: 12 * cfg.d_model,
        projected="z",
        units="head",
    ),
    "state_space": Kind(
        {"gate": Inner("gate", "out", "gate_units", _UNITS)}
        | _CONVOLUTION
        | {
            "x": _called("x", _UNITS),
            "dt": _called("dt", ("position", "mixer_head")),
            "B": _called("B", _STATES),
            "C": _called("C", _STATES),
            "mixed": _called("mixed", _UNITS),
        }
        | _WRITTEN,
        working=lambda cfg: 16 * cfg.d_model,
        projected="z",
        units="head",
    ),
    # Lightning attention (arXiv:2501.08313): no softmax, and heads that forget at fixed rates
    "lightning_attention": Kind(
        {
            "q": Inner("qkv", "out", "head0", _KEYS),
            "k": Inner("qkv", "out", "head1", _KEYS),
            "v": Inner("qkv", "out", "head2", _UNITS),
            "mixed": Inner("norm", "in", "units", _UNITS),
            "gate": Inner("gate", "out", "units", _UNITS),
        }
        | _WRITTEN,
        working=lambda cfg: 12 * cfg.d_model,
        projected="z",
        units="head",
    ),
    # RWKV 4 (arXiv:2305.13048): every channel is a mean of its values, with weights that fade
    "time_mixing": Kind(
        {
            "k": _called("k", _CHANNELS),
            "v": _called("v", _CHANNELS),
            "mixed": _called("mixed", _CHANNELS),
            "gate": Inner("gate", "out", "whole", _CHANNELS),
            "z": Inner("out", "in", "whole", _CHANNELS),
        },
        working=lambda cfg: 8 * cfg.d_model,
        projected="z",
        units="channel",
    ),
    # its MLP, which also reads the token before, and gates what it writes
    "channel_mixing": Kind(
        {
            "_pre": Inner("pre", "out", "whole", _NEURONS),
            "_post": Inner("down", "in", "whole", _NEURONS),
            "_out_gate": Inner("gate", "out", "whole", ("position", "d_model")),
        },
        working=lambda cfg: 4 * cfg.d_mlp,
    ),
    "convolution": Kind(
        {
            "pregate": Inner("in", "out", "third0", _CHANNELS),
            "gate": Inner("in", "out", "third1", _CHANNELS),
            "x": Inner("in", "out", "third2", _CHANNELS),
        }
        | _CONVOLUTION
        | {"z": Inner("out", "in", "whole", _CHANNELS)},
        working=lambda cfg: 6 * cfg.d_model,
        projected="z",
        units="channel",
    ),
    "recurrent": Kind(
        {
            "gate": Inner("gate", "out", "whole", _CHANNELS),
            "x": Inner("x", "out", "whole", _CHANNELS),
            "conv": Inner("unit", "in", "whole", _CHANNELS),
            "state": Inner("unit", "out", "whole", _CHANNELS),
            "z": Inner("out", "in", "whole", _CHANNELS),
        },
        working=lambda cfg: 8 * cfg.d_model,
        projected="z",
        units="channel",
    ),
    # an input of its own for every layer, gated by the stream (Gemma 4, Gemma 3n)
    "layer_input": Kind(
        {
            "per_layer_input": Inner("", "in", "whole", _TOKEN, item=1),
            "_pre": Inner("pre", "out", "whole", _NEURONS),
            "_post": Inner("out", "in", "whole", _NEURONS),
        },
        working=lambda cfg: 4 * cfg.d_model,
        projected="_post",
        units="neuron",
        plain="ple",
    ),
    # what it computes is not known: its input and output can be read and written, and nothing inside
    "other": Kind({}, working=lambda cfg: 4 * cfg.d_model),
}
