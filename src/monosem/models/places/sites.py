"""Sites: named places in a model where an activation can be read or written.

A site is data. `Site("resid_post", 15)` prints as `resid_post.15`; TransformerLens names
(`blocks.15.hook_resid_post`) and pairs (`("resid_post", 15)`) mean the same thing everywhere a site is accepted.

| site | shape | what it is |
|---|---|---|
| `embed` | batch pos d_model | token embedding, as the model adds it to the stream (Gemma: already scaled) |
| `pos_embed` | batch pos d_model | positions that are added to it, learned (GPT-2, OPT) or computed (XGLM) |
| `type_embed` | batch pos d_model | token types that are added to it (BERT) |
| `embed_norm` | batch pos d_model | output of the norm between these and the first block (BERT, BLOOM) |
| `resid_pre.L` | batch pos d_model | input of block L; of a model with several streams, `batch pos stream d_model` |
| `ln1_input.L`, `ln2_input.L` | batch pos d_model | the stream as the norm before attention (the MLP) is given it |
| `ln1_scale.L`, `ln2_scale.L` | batch pos 1 | what the norm before attention (the MLP) divides by |
| `ln1_normalized.L`, `ln2_normalized.L` | batch pos d_model | after centring and division, before gain and bias |
| `ln1_output.L`, `ln2_output.L` | batch pos d_model | the norm's output, with gain and bias |
| `attn_input.L`, `mlp_input.L` | batch pos d_model | what the branch's own modules are given, after the norm |
| `q.L` | batch pos head d_head | query projection, before qk-norm and rotation |
| `k.L`, `v.L` | batch pos kv_head d_head | key and value projections (kv heads, not heads) |
| `rot_q.L`, `rot_k.L` | batch pos head d_head | what the scores are computed from: after qk-norm and rotation |
| `values.L` | batch pos kv_head d_head | what the pattern mixes: v, after a norm or factor where a model has one |
| `scores.L` | batch head query key | after scale, soft cap and mask, before the softmax |
| `pattern.L` | batch head query key | attention probabilities |
| `mixed.L` | batch pos head d_head | mixed values, before an output gate or norm; elsewhere they are z |
| `attn_gate.L` | batch pos head d_head or 1 | output gate of attention, before its activation |
| `z.L` | batch pos head d_head | mixed values (gated, normed), the input of the output projection |
| `q_latent.L`, `kv_latent.L` | batch pos width | what queries, and keys with values, are made from, normed |
| `k_rope.L` | batch pos width | the part of the key that is rotated, for all heads, before rotation |
| `k_nope.L` | batch pos head width | the part of the key that is made from the latent |
| `result.L` | batch pos head d_model | what each head hands to the output projection's sum: z W_O |
| `attn_raw.L`, `mlp_raw.L` | batch pos d_model | output of the branch, before a post-norm or multiplier |
| `attn_out.L` | batch pos d_model | what attention adds to the stream: after post-norm and multiplier, if any |
| `mixer_input.L`, `mixer_raw.L`, `mixer_out.L` | batch pos d_model | of the first branch, whatever it computes |
| `resid_mid.L` | batch pos d_model | the stream between the first two branches; absent in parallel blocks |
| `mlp_pre.L` | batch pos d_mlp | before the activation function (gate projection in gated MLPs) |
| `mlp_pre_linear.L` | batch pos d_mlp | the up projection of gated MLPs |
| `mlp_up.L` | batch pos d_mlp | mlp_pre_linear in gated MLPs, mlp_pre in others |
| `mlp_gated.L` | batch pos neuron | activations before a norm inside the MLP (BitNet); elsewhere they are mlp_post |
| `mlp_post.L` | batch pos d_mlp | neurons: the input of the down projection |
| `router_logits.L` | batch pos expert | mixtures of experts: what the router chooses by (read only) |
| `expert_post.L` | batch pos chosen neuron | neurons of the chosen experts |
| `expert_out.L` | batch pos chosen d_model | what each chosen expert computes, before its weight (Llama 4: with it) |
| `experts_out.L` | batch pos d_model | their weighted sum |
| `shared_pre.L`, `shared_pre_linear.L`, `shared_post.L` | batch pos neuron | the shared expert's gate, up, neurons |
| `shared_out.L` | batch pos d_model | the shared expert's output |
| `expert_weights.L` | batch pos chosen | weights of the chosen experts |
| `expert_indices.L` | batch pos chosen | which experts were chosen (read only) |
| `mlp_out.L` | batch pos d_model | what the MLP adds to the stream: after post-norm and multiplier, if any |
| `linear_q.L`, `linear_k.L` | batch pos key_head key_dim | after the convolution (MiniMax: before silu) |
| `linear_v.L` | batch pos mixer_head mixer_dim | what is put into its memory |
| `linear_beta.L` | batch pos mixer_head | how much of it is put there |
| `linear_decay.L` | batch pos mixer_head decay | log of what is kept, for a head or each key number |
| `ssm_x.L` | batch pos mixer_head mixer_dim | what is put into a state space (Mamba 1: each channel is a head) |
| `ssm_dt.L` | batch pos mixer_head | the time step before its bias and softplus |
| `ssm_B.L`, `ssm_C.L` | batch pos group state | where in the state it is put, and read |
| `linear_mixed.L`, `ssm_mixed.L` | batch pos mixer_head mixer_dim | what is read from the memory, before the gate |
| `conv_pregate.L`, `conv_x.L`, `conv_gate.L` | batch pos channel | short convolutions: conv(pregate · x) · gate |
| `recurrent_x.L`, `recurrent_state.L` | batch pos channel | RG-LRU: what enters, and what its memory is then |
| `recurrent_k.L`, `recurrent_v.L`, `recurrent_mixed.L` | batch pos channel | RWKV: weights, values, their mean |
| `mlp_out_gate.L` | batch pos d_model | RWKV: what gates the MLP's output, before its sigmoid |
| `linear_preconv.L`, ... | batch pos channel | what a convolution over the last few tokens is given (read only) |
| `linear_conv.L`, ... | batch pos channel | its output |
| `linear_gate.L`, ... | as z | what the mixed values are gated by, before its activation function |
| `linear_z.L`, `ssm_z.L` | batch pos mixer_head mixer_dim | input of the output projection |
| `conv_z.L`, `recurrent_z.L` | batch pos channel | likewise |
| `linear_result.L`, `ssm_result.L` | batch pos mixer_head d_model | what each head hands to that projection's sum |
| `cross_attn_q.L`, `cross_attn_out.L`, ... | as q, attn_out | cross attention of a decoder beside an encoder |
| `cross_attn_k.L`, `cross_attn_v.L`, ... | batch source kv_head d_head | made of what the encoder gives |
| `cross_attn_pattern.L` | batch head query key | from the target's tokens to the source's |
| `encoder.resid_pre.L`, ... | | the same places in the encoder, with the source's tokens |
| `resid_post.L` | batch pos d_model | output of block L, before the final norm also for the last block |
| `final_input` | batch pos d_model | the stream as the final norm is given it |
| `final_scale`, `final_normalized` | batch pos 1, batch pos d_model | likewise, of the final norm |
| `final_norm` | batch pos d_model | what the unembedding reads: output of the final norm, or of a head (BERT) |
| `logits_raw` | batch pos vocab | the unembedding's output, before soft cap and scales |
| `logits` | batch pos vocab | after soft cap and scales |
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import UnknownName, did_you_mean
from ..transformerlens.names import ALIASES, HOOKS, REFUSED

IN_BLOCK = [  # in the order of computation
    *("resid_pre", "ln1_input", "ln1_scale", "ln1_normalized", "ln1_output", "attn_input"),
    *("q", "k", "v", "rot_q", "rot_k", "scores", "pattern", "z", "result", "attn_raw", "attn_out"),
    *("resid_mid", "ln2_input", "ln2_scale", "ln2_normalized", "ln2_output", "mlp_input"),
    *("router_logits", "expert_weights", "expert_indices", "mlp_pre", "mlp_pre_linear", "mlp_up", "mlp_post"),
    *("mlp_raw", "mlp_out", "resid_post"),
]
ONCE = [
    *("embed", "pos_embed", "type_embed", "embed_norm"),
    *("final_input", "final_scale", "final_normalized", "final_norm", "logits_raw", "logits"),
]
ATTENTION = ("rot_q", "rot_k", "values", "scores", "pattern", "mixed")  # live inside the attention function
KEYS = ("rot_k", "values", "k_nope", "v")  # of all tokens so far, where a cache holds what they are made from
NORMS = {  # site -> which norm it belongs to
    f"{norm}_{form}": norm for norm in ("ln1", "ln2", "final") for form in ("scale", "normalized")
}
EMBEDDINGS = ("embed", "pos_embed", "type_embed", "embed_norm")  # before the first block
SHARED = ("pos_embed", "type_embed")  # which may be one row for all
ROUTER = ("router_logits", "expert_weights", "expert_indices")  # the order in which routers return them


EXPERTS = ("expert_post", "expert_out", "experts_out")  # large: one for each chosen expert
FORMS = ("input", "raw", "out")  # a branch's sites, whatever its mixer is
_BESIDE = ("_input", "_output", "_scale", "_normalized", "_raw", "_up", "_preconv", "result")


def _beside(name: str) -> bool:
    """The same tensor in another form, or a large one: captured when named, not by "everything"."""
    return name.endswith(_BESIDE) or name.startswith("mixer_") or name in (*EMBEDDINGS[1:], "values", *ROUTER, *EXPERTS)


PER_LAYER = [name for name in IN_BLOCK if not _beside(name)]
GLOBAL = tuple(name for name in ONCE if not _beside(name))
ON_REQUEST = [name for name in IN_BLOCK if _beside(name)]
GLOBAL_ON_REQUEST = tuple(name for name in ONCE if _beside(name))
READ_ONLY = {  # site -> what to write instead
    "router_logits": "the router has chosen by then; write expert_weights",
    "expert_indices": "write expert_weights",
    **{
        f"{branch}_preconv": f"the cache keeps what was there; write {branch}_conv"
        for branch in ("linear", "ssm", "conv")
    },
}

HEADS = ("kv_head", "mixer_head", "key_head")  # axes that are cut as "head" is
SIDES = ("encoder", "decoder")  # of a model that has both: its sites without a prefix are the decoder's
# site -> the axes of its tensor without the batch; sites that are not listed: position and d_model. Families declare
# the sites of their branches
SHAPES: dict[str, tuple[str, ...]] = {
    "final_scale": ("position",),
    "logits_raw": ("position", "vocab"),
    "logits": ("position", "vocab"),
}


def stream_before(branch: int) -> str:
    """The stream that a block's branch of this number reads where branches follow each other."""
    return "resid_pre" if branch == 0 else f"resid_mid{branch if branch > 1 else ''}"


def declare(name: str, shape: tuple[str, ...] = ("position", "d_model")) -> None:
    """Make a site of blocks known: of a family's branches, with the axes of its tensor."""
    SHAPES[name] = shape
    if name in IN_BLOCK:
        return
    IN_BLOCK.append(name)
    norm, _, form = name.rpartition("_")
    if form in ("scale", "normalized"):
        NORMS[name] = norm
    (ON_REQUEST if _beside(name) else PER_LAYER).append(name)
    HOOKS[name] = f"hook_{name}"
    ALIASES[HOOKS[name]] = name


@dataclass(frozen=True, order=True)
class Site:
    """A named place in a model. `layer` is 0-based, None for places that exist once.

    Attributes:
        side: "encoder" for a place in the encoder beside a decoder (`encoder.resid_pre.3`), and "" everywhere else.
        streams: how many residual streams the model has that it was found in (`model.site`). It is the same place.
    """

    name: str
    layer: int | None = None
    side: str = ""
    streams: int = field(default=1, compare=False, repr=False, kw_only=True)

    def __str__(self) -> str:
        name = f"{self.side}.{self.name}" if self.side else self.name
        return name if self.layer is None else f"{name}.{self.layer}"

    def at(self, name: str) -> "Site":
        """The site of another name in the same layer."""
        return Site(name, self.layer, self.side)

    @property
    def in_source(self) -> bool:
        """Whether it has the positions of what an encoder reads: in the encoder, and keys and values of cross
        attention."""
        return bool(self.side) or "source" in self.shape

    @property
    def shape(self) -> tuple[str, ...]:
        """Every axis but the batch: `("position", "kv_head", "d_head")`; "position" alone is a number a token."""
        if self.streams > 1:
            return ("position", "stream", "d_model")
        return SHAPES.get(self.name, ("position", "d_model"))

    def among(self, streams: int) -> "Site":
        """The place in a model that has several residual streams side by side: where it is the stream, all of them."""
        return replace(self, streams=streams) if self.in_stream and streams != self.streams else self

    @property
    def axes(self) -> tuple[str, ...]:
        """What it can be cut along: "position", and "head" (kv heads at k, v and rot_k), "key" or "neuron"."""
        named = ("head" if axis in HEADS else "position" if axis == "source" else axis for axis in self.shape)
        return tuple(axis for axis in named if axis in ("position", "head", "key", "neuron"))

    @property
    def query_axis(self) -> int:
        """The axis of token positions: 2 for scores and patterns (batch head query key), else 1."""
        return 1 + self.shape.index("source" if "source" in self.shape else "position")

    @property
    def head_axis(self) -> int | None:
        """The axis of heads (kv heads at k, v and rot_k); None at sites without."""
        return 1 + self.axes.index("head") if "head" in self.axes else None

    @property
    def per_head(self) -> bool:
        """Whether it has numbers of its own for each head of a token: `batch pos head width`."""
        return self.head_axis is not None and self.shape[-1] in ("d_head", "mixer_dim", "key_dim")

    @property
    def in_stream(self) -> bool:
        """Whether it is the residual stream itself."""
        return self.name.startswith("resid_")

    @property
    def hook_name(self) -> str:
        """The TransformerLens 3.x name, for files that other tools read."""
        name = HOOKS[self.name] if self.layer is None else f"blocks.{self.layer}.{HOOKS[self.name]}"
        return f"{self.side}.{name}" if self.side else name

    @staticmethod
    def parse(value: "SiteLike") -> "Site":
        """Read a site from any of its spellings.

        Raises:
            UnknownName: no such site, a missing layer, or a layer of a site that exists once; it suggests names.
        """
        if isinstance(value, Site):
            return value
        if isinstance(value, tuple) and len(value) in (1, 2, 3) and isinstance(value[0], str):
            # TransformerLens adds the kind of module, ("q", 5, "attn"), which only norms need
            name, layer, kind = (*value, None, None)[:3]
            if name in ("scale", "normalized"):
                name = f"{'final' if layer is None else kind}_{name}"
            return _site(name, None if layer is None else int(layer), value)
        if isinstance(value, str):
            text = value.strip()
            side, _, rest = text.partition(".")
            if side in SIDES and rest:
                return _on(side, Site.parse(rest))
            if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", text):
                return _site(block[2], int(block[1]), value)
            if plain := re.fullmatch(r"(.+)\.(\d+)", text):
                return _site(plain[1], int(plain[2]), value)
            return _site(text, None, value)
        raise UnknownName(f"{value!r} is not a site; write 'resid_post.15' (a bare layer number never is a site)")


@dataclass(frozen=True, eq=False)
class Inner(Site):
    """A place inside what is put at a site, such as the latents of a dictionary (`Dictionary.latents`).

    It is captured and edited as any site. Where no edit puts its owner there, the owner looks on: what it reads and
    rebuilds is computed, and the activation changes only by what edits of inner places change.

    Attributes:
        host: the site that the owner's output belongs to.
        owner: what it is inside of: a dictionary. `owner.observer()` is the edit that looks on, and a pass asks
            `owner.left_out` which tokens mean nothing to it.
        inside: its axes after the position.
        sizes: the length of each of them.
        hook: what SAELens calls it.
        also: owners of later outputs to which it writes as well (the later layers of a cross-layer transcoder).
    """

    host: Site = field(kw_only=True)
    owner: Any = field(kw_only=True)
    inside: tuple[str, ...] = field(kw_only=True)
    sizes: tuple[int, ...] = field(kw_only=True)
    hook: str = field(kw_only=True)
    also: tuple[Any, ...] = field(default=(), kw_only=True)

    def __str__(self) -> str:
        return f"{self.host}.{self.name}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inner) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.name, self.host, id(self.owner)

    @property
    def hosts(self) -> tuple[Site, ...]:
        """The sites whose activations an edit of it changes."""
        return self.host, *(owner.site_out for owner in self.also)

    @property
    def shape(self) -> tuple[str, ...]:
        return ("position", *self.inside)

    @property
    def hook_name(self) -> str:
        return f"{self.host.hook_name}.{self.hook}"


def host_of(site: Site) -> Site:
    """The site itself, or the one that an inner place belongs to."""
    return site.host if isinstance(site, Inner) else site


SiteLike = Site | str | tuple[str, int] | tuple[str, int, str]


def _on(side: str, site: Site) -> Site:
    """The site on a side; the decoder's go without a prefix, as a decoder's do that stands alone."""
    return replace(site, side=side) if side == "encoder" else site


def _site(name: str, layer: int | None, spelling: object) -> Site:
    side, _, rest = name.partition(".")
    if side in SIDES and rest:
        return _on(side, _site(rest, layer, spelling))
    name = ALIASES.get(name, name)
    if name in ONCE and layer is None:
        return Site(name)
    if name in IN_BLOCK and layer is not None:
        return Site(name, layer)
    if name in IN_BLOCK:
        raise UnknownName(f"site {spelling!r} needs a layer, such as '{name}.0'")
    if name in ONCE:
        raise UnknownName(f"site {spelling!r}: '{name}' exists once, write it without a layer")
    if name in REFUSED:
        raise UnknownName(f"{spelling!r} is no site here: {REFUSED[name]}")
    near = did_you_mean(name, [*IN_BLOCK, *ONCE]) or f"; known: {', '.join([*ONCE, *IN_BLOCK])}"
    raise UnknownName(f"unknown site {spelling!r}{near}")


def sites_of(sites: "SiteLike | Iterable[SiteLike]") -> list[Site]:
    """One site or several, in any spelling; `("q", 3)` is one site, `("q.3", "k.3")` are two."""
    pair = isinstance(sites, tuple) and len(sites) > 1 and isinstance(sites[1], int)
    single = (
        isinstance(sites, str | Site) or pair or not (hasattr(sites, "__iter__") and getattr(sites, "ndim", 1) != 0)
    )
    return [Site.parse(site) for site in ([sites] if single else sites)]  # type: ignore[union-attr, arg-type]
