"""Sites: named places in a model where an activation can be read or written.

A site is data. `Site("resid_post", 15)` prints as `resid_post.15`; TransformerLens names
(`blocks.15.hook_resid_post`) and pairs (`("resid_post", 15)`) mean the same thing everywhere a site is accepted.

| site | shape | what it is |
|---|---|---|
| `embed` | batch pos d_model | token embedding, as the model adds it to the stream (Gemma: already scaled) |
| `pos_embed` | batch pos d_model | learned positions (GPT-2, GPT-Neo) |
| `resid_pre.L` | batch pos d_model | input of block L |
| `ln1_scale.L`, `ln2_scale.L` | batch pos 1 | what the norm before attention (the MLP) divides by |
| `ln1_normalized.L`, `ln2_normalized.L` | batch pos d_model | after centring and division, before gain and bias |
| `q.L` | batch pos head d_head | query projection, before qk-norm and rotation |
| `k.L`, `v.L` | batch pos kv_head d_head | key and value projections (kv heads, not heads) |
| `rot_q.L`, `rot_k.L` | batch pos head d_head | what the scores are computed from: after qk-norm and rotation |
| `scores.L` | batch head query key | after scale, soft cap and mask, before the softmax |
| `pattern.L` | batch head query key | attention probabilities |
| `z.L` | batch pos head d_head | mixed values, the input of the output projection |
| `result.L` | batch pos head d_model | what each head hands to the output projection's sum: z W_O |
| `attn_raw.L`, `mlp_raw.L` | batch pos d_model | output of the branch, before a post-norm or multiplier |
| `attn_out.L` | batch pos d_model | what attention adds to the stream: after post-norm and multiplier, if any |
| `resid_mid.L` | batch pos d_model | the stream between the first two branches; absent in parallel blocks |
| `mlp_pre.L` | batch pos d_mlp | before the activation function (gate projection in gated MLPs) |
| `mlp_pre_linear.L` | batch pos d_mlp | the up projection of gated MLPs |
| `mlp_post.L` | batch pos d_mlp | neurons: the input of the down projection |
| `router_logits.L` | batch pos expert | mixtures of experts: what the router chooses by (read only) |
| `expert_weights.L` | batch pos chosen | weights of the chosen experts |
| `expert_indices.L` | batch pos chosen | which experts were chosen (read only) |
| `mlp_out.L` | batch pos d_model | what the MLP adds to the stream: after post-norm and multiplier, if any |
| `resid_post.L` | batch pos d_model | output of block L, before the final norm also for the last block |
| `final_scale`, `final_normalized` | batch pos 1, batch pos d_model | likewise, of the final norm |
| `final_norm` | batch pos d_model | output of the final norm, what the unembedding reads |
| `logits` | batch pos vocab | after soft cap and scales |
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import UnknownName, did_you_mean
from ..transformerlens.names import ALIASES, HOOKS

IN_BLOCK = [  # in the order of computation
    "resid_pre",
    "ln1_scale",
    "ln1_normalized",
    "q",
    "k",
    "v",
    "rot_q",
    "rot_k",
    "scores",
    "pattern",
    "z",
    "result",
    "attn_raw",
    "attn_out",
    "resid_mid",
    "ln2_scale",
    "ln2_normalized",
    "router_logits",
    "expert_weights",
    "expert_indices",
    "mlp_pre",
    "mlp_pre_linear",
    "mlp_post",
    "mlp_raw",
    "mlp_out",
    "resid_post",
]
ONCE = ["embed", "pos_embed", "final_scale", "final_normalized", "final_norm", "logits"]
ATTENTION = ("rot_q", "rot_k", "scores", "pattern")  # live inside the attention function
NORMS = {  # site -> which norm it belongs to
    f"{norm}_{form}": norm for norm in ("ln1", "ln2", "final") for form in ("scale", "normalized")
}
ROUTER = ("router_logits", "expert_weights", "expert_indices")  # the order in which routers return them
# the same tensors in another form, or large: captured when named, not by "everything"
_BESIDE = {"pos_embed", "result", "attn_raw", "mlp_raw", *NORMS, *ROUTER}
PER_LAYER = [name for name in IN_BLOCK if name not in _BESIDE]
GLOBAL = tuple(name for name in ONCE if name not in _BESIDE)
ON_REQUEST = [name for name in IN_BLOCK if name in _BESIDE]
GLOBAL_ON_REQUEST = tuple(name for name in ONCE if name in _BESIDE)
READ_ONLY = {  # site -> what to write instead
    "router_logits": "the router has chosen by then; write expert_weights",
    "expert_indices": "write expert_weights",
}

# site -> the axes of its tensor without the batch; sites that are not listed: position, and d_model
AXES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("q", "k", "v", "rot_q", "rot_k", "z", "result"), ("position", "head")),
    **dict.fromkeys(("scores", "pattern"), ("head", "position", "key")),
    **dict.fromkeys(("mlp_pre", "mlp_pre_linear", "mlp_post"), ("position", "neuron")),
    **dict.fromkeys(ROUTER, ("position", "expert")),
}


def stream_before(branch: int) -> str:
    """The stream that a block's branch of this number reads where branches follow each other."""
    return "resid_pre" if branch == 0 else f"resid_mid{branch if branch > 1 else ''}"


def declare(axes: dict[str, tuple[str, ...]]) -> None:
    """Make further sites of blocks known: the names of a family's branches, with the axes of their tensors."""
    for name, own in axes.items():
        if name in IN_BLOCK:
            continue
        IN_BLOCK.append(name)
        norm, _, form = name.rpartition("_")
        if form in ("scale", "normalized"):
            NORMS[name] = norm
        (ON_REQUEST if form in ("scale", "normalized", "raw") else PER_LAYER).append(name)
        if own != ("position",):
            AXES[name] = own
        HOOKS[name] = f"hook_{name}"
        ALIASES[HOOKS[name]] = name


@dataclass(frozen=True, order=True)
class Site:
    """A named place in a model. `layer` is 0-based, None for places that exist once."""

    name: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes without the batch and d_model: "position", and "head", "key", "neuron" or "expert" where it has one."""
        return AXES.get(self.name, ("position",))

    @property
    def query_axis(self) -> int:
        """The axis of token positions: 2 for scores and patterns (batch head query key), else 1."""
        return 1 + self.axes.index("position")

    @property
    def head_axis(self) -> int | None:
        """The axis of heads (kv heads at k, v and rot_k); None at sites without."""
        return 1 + self.axes.index("head") if "head" in self.axes else None

    @property
    def in_stream(self) -> bool:
        """Whether it is the residual stream itself."""
        return self.name.startswith("resid_")

    @property
    def hook_name(self) -> str:
        """The TransformerLens 3.x name, for files that other tools read."""
        name = HOOKS[self.name]
        return name if self.layer is None else f"blocks.{self.layer}.{name}"

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
            if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", text):
                return _site(block[2], int(block[1]), value)
            if plain := re.fullmatch(r"(.+)\.(\d+)", text):
                return _site(plain[1], int(plain[2]), value)
            return _site(text, None, value)
        raise UnknownName(f"{value!r} is not a site; write 'resid_post.15' (a bare layer number never is a site)")


SiteLike = Site | str | tuple[str, int] | tuple[str, int, str]


def _site(name: str, layer: int | None, given: object) -> Site:
    name = ALIASES.get(name, name)
    if name in ONCE and layer is None:
        return Site(name)
    if name in IN_BLOCK and layer is not None:
        return Site(name, layer)
    if name in IN_BLOCK:
        raise UnknownName(f"site {given!r} needs a layer, such as '{name}.0'")
    if name in ONCE:
        raise UnknownName(f"site {given!r}: '{name}' exists once, write it without a layer")
    near = did_you_mean(name, [*IN_BLOCK, *ONCE]) or f"; known: {', '.join([*ONCE, *IN_BLOCK])}"
    raise UnknownName(f"unknown site {given!r}{near}")


def sites_of(given: "SiteLike | Iterable[SiteLike]") -> list[Site]:
    """One site or several, in any spelling; `("q", 3)` is one site, `("q.3", "k.3")` are two."""
    pair = isinstance(given, tuple) and len(given) > 1 and isinstance(given[1], int)
    single = isinstance(given, str | Site) or pair
    return [Site.parse(site) for site in ([given] if single else given)]  # type: ignore[union-attr, arg-type]
