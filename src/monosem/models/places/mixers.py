"""Kinds of mixers: what a branch of a block computes between the stream that it reads and what it adds to it.

A new kind (linear attention, a state space, a convolution) is a new row of `KINDS`: sites, runs, sweeps, lenses and
attribution follow from it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from torch import nn

from .calls import FUNCTIONS, names_of

# a module's input or output; inside an attention function; a norm's own, which its input determines; what the parts of
# a projection's input add to its output; in a call of a function (`calls.py`)
Side = Literal["in", "out", "inside", "around", "across", "call", "chosen"]
Fused = Literal["stacked", "interleaved", "quarters"]


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


@dataclass(frozen=True)
class Mixer:
    """A mixer of one architecture: its module in the block, and the paths of its parts in that module.

    Attributes:
        fused: how one module for q, k and v lays them out: [q | k | v], q k v for each kv head, or CodeGen's quarters.
        clip: config attribute; q, k, v are clipped in place right after their projection.
        of: name of its module's class, where blocks have modules of several classes at this path.
        calls: functions that its forward calls, by their names there (`calls.FUNCTIONS`).
        axes: of mixers with a memory: the length of an axis, or the attribute of the module that has it.
        gate: what the output gate of an attention goes through, a name of `torch.nn.functional`.
        gate_at: of mixers with a memory: where the gate lies in the output of its part.
        value_scale: config attribute that values are multiplied by before they are mixed.
        ends: modules inside it, where no module is given its input and returns its output: the first one's input and
            the last one's output ("": what the norm after it reads; ".": itself). In an MLP they are the whole chain.
            OPT's MLP is no module of its own, BLOOM's modules add the stream before they return, BERT's norm it.
        bias: parameter that is added to its output outside (GPT-NeoX-Japanese).
        registered: it calls the attention function of transformers' registry. flat: it sees `batch*pos` rows.
        in_place: the block writes into the tensor that it returns (Falcon).
        scales: config attributes that what a part gives is multiplied by ("mlp_multipliers.1": an item of a list).
        more: it is given more than the stream that it reads.
        differs: what is otherwise about a site than its kind says: fields of `Inner`.
    """

    kind: str
    path: str
    parts: dict[str, str] = field(default_factory=dict)
    fused: Fused | None = None
    clip: str | None = None
    of: str | None = None
    calls: tuple[str, ...] = ()
    axes: dict[str, str | int] = field(default_factory=dict)
    gate: str = "sigmoid"
    gate_at: Literal["whole", "first", "last", "grouped"] = "whole"
    value_scale: str | None = None
    ends: tuple[str, ...] = ()
    bias: str | None = None
    registered: bool = True
    flat: bool = False
    in_place: bool = False
    scales: dict[str, str] = field(default_factory=dict)
    more: bool = False
    differs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def row(self) -> Kind:
        return KINDS[self.kind]

    @property
    def projections(self) -> list[str]:
        """The parts of an attention that are linear."""
        return [part for part in ("q", "k", "v", "kv_a", "kv", "gate", "out") if part in self.parts]

    @property
    def gated_queries(self) -> bool:
        """Whether one projection computes [query | gate] head by head."""
        return self.parts.get("gate") == self.parts.get("q")

    def at(self, part: str) -> str:
        """The path of a part in the block; "" is the mixer's module itself."""
        return self._within(self.parts[part]) if part else self.path

    @property
    def chain(self) -> tuple[str, ...]:
        """The modules in the block from its input to its output."""
        return tuple(self._within(path.strip(".")) if path else "" for path in self.ends) if self.ends else (self.path,)

    def _within(self, path: str) -> str:
        return ".".join(filter(None, (self.path, path)))

    def part(self, inner: Inner) -> str:
        """The part that an inner site is at."""
        return inner.instead if inner.instead and inner.part not in self.parts else inner.part

    def is_in(self, block: nn.Module) -> bool:
        """Whether a block has the mixer's module with all its parts, which calls what the mixer calls."""
        if self.of is not None and type(module_at(block, self.path)).__name__ != self.of:
            return False
        if any(module_at(block, path) is None for path in (*map(self.at, ("", *self.parts)), *self.chain)):
            return False
        return not self.calls or set(self.calls) <= names_of(module_at(block, self.path)).keys()

    def found(self, block: nn.Module) -> "Mixer":
        """The mixer with the usual parts that this block has."""
        module = module_at(block, self.path)
        usual = {
            part: next((path for path in paths if module_at(module, path) is not None), None)
            for part, paths in self.row.usual.items()
            if part not in self.parts
        }
        more = {part: path for part, path in usual.items() if path is not None}
        return replace(self, parts=self.parts | more) if more else self

    def sizes(self, block: nn.Module) -> dict[str, int]:
        """The lengths of its own axes in a block that has it."""
        module = module_at(block, self.path)
        return {axis: of if isinstance(of, int) else int(attrgetter(of)(module)) for axis, of in self.axes.items()}

    def inner(self, branch: str) -> Iterator[tuple[str, Inner]]:
        """The inner sites by their names in a branch; a part that this architecture does not have, has no site."""
        roles = {role for name in self.calls for role in FUNCTIONS[name]}
        for name, usual in self.row.sites.items():
            inner = usual._replace(**self.differs.get(name, {}))
            there = inner.role in roles if inner.side == "call" else not inner.part or self.part(inner) in self.parts
            if there and (not inner.needs or any(part in self.parts for part in inner.needs)):
                yield self.row.site(name, branch), inner


def module_at(block: nn.Module, path: str) -> Any:
    """A module of a block by its path, None for what the block does not have."""
    for name in filter(None, path.split(".")):
        block = getattr(block, name, None)  # type: ignore[assignment]
    return block
