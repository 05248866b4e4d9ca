"""The table (with `hybrids.py`): per architecture family, where each site lives in the native Hugging Face modules.

A new family is a new row. Names alone prove nothing (`post_attention_layernorm` is the MLP's pre-norm in Llama and the
attention's post-norm in Gemma 2), so the identities in `checking/verify.py` check every row. `load_model` infers a row
for a model type without one (`checking/infer.py`).

A block is a list of branches in the order in which they write into the stream. A branch reads the stream through a
norm, its mixer computes, and the result is added, through another norm and times a scale where the family has them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .mixers import Fused, Mixer
from .sites import FORMS, declare, stream_before


@dataclass(frozen=True)
class BranchRow:
    """One branch of a block; paths are relative to the block.

    Attributes:
        name: prefix of its sites: `attn` has attn_input, attn_raw and attn_out.
        mixers: what it may compute: the first whose modules a block has. Blocks with none of them lack the branch, and
            so do blocks that do not know its norms; of several rows of one name a block takes the first that it has.
        norm: name of the sites of the norm before it: `ln1` has ln1_input, ln1_scale, ln1_normalized and ln1_output.
        before: the norm through which it reads the stream, or its path in several sizes of the architecture.
        after: the norm between it and the stream.
        parallel: it reads the same stream as the branch before it; or the config attribute that says so.
        streams: the module that mixes several residual streams into the one that the branch reads, and says how its
            output is spread over them (hyper-connections).
        beside: the earlier branch, by its name, whose stream it reads, where that is not the branch before it.
        scale: what it is multiplied by: an attribute of the block, or else of the config, or a function of the block.
        closing: the norm that the stream goes through after the branch was added (BERT and other post-LN blocks).
        norm_first: config attribute that says whether the norm stands before the branch, or closes the sum instead.
        given: config attribute that what the norm gives is multiplied by before the mixer has it.
        reads: the stream that it reads, where that has a name of its own (AltUp).
        keeps: of the block and the stream, what the branch is added to, where that is not the stream itself: MiniMax
            goes on from its norm, Doge multiplies it.
    """

    name: str
    mixers: tuple[Mixer, ...]
    norm: str
    before: str | tuple[str, ...] | None = None
    after: str | None = None
    parallel: str | bool = False
    scale: str | Callable[[Any], float] | None = None
    closing: str | None = None
    norm_first: str | None = None
    given: str | None = None
    beside: str = ""
    streams: str = ""
    reads: str = ""
    keeps: Callable[[Any, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        declare(f"{self.norm}_scale", ("position",))
        for name in ("input", "normalized", "output"):
            declare(f"{self.norm}_{name}")
        for name in (*(f"{self.name}_{form}" for form in FORMS), *filter(None, [self.reads])):
            declare(name)
        for mixer in self.mixers:
            for name, inner in mixer.row.sites.items():  # also of parts that it may lack
                declare(mixer.row.site(name, self.name), inner.shape)

    def mixer(self, block: nn.Module) -> Mixer | None:
        named = (self.before if isinstance(self.before, str) else None, self.after, self.closing)
        if not all(_knows(block, norm) for norm in named if norm):
            return None
        return next((mixer.found(block) for mixer in self.mixers if mixer.is_in(block)), None)


def _knows(block: nn.Module, path: str) -> bool:
    """Whether a block has an attribute of this path; None is one (norms that a config switched off)."""
    *parents, name = path.split(".")
    holder: Any = block
    for parent in parents:
        holder = getattr(holder, parent, None)
    return hasattr(holder, name)


def attn(
    before: str | tuple[str, ...] | None = "input_layernorm",
    after: str | None = None,
    *,
    path: str = "self_attn",
    q: str = "q_proj",
    k: str | None = "k_proj",
    v: str | None = "v_proj",
    out: str = "o_proj",
    qkv: str | None = None,
    fused: Fused = "stacked",
    scale: str | None = None,
    **more: str | None,
) -> BranchRow:
    """The branch `attn`; `qkv` is one module instead of three, laid out as `fused` says.

    `more` are other parts (gate, mixed_norm, v_norm), and `gating` (`Mixer.gate`), `clip` and `value_scale`.
    """
    named = {"clip": "clip", "gating": "gate", "value_scale": "value_scale"}
    known: dict[str, Any] = {named[name]: more.pop(name) for name in [*more] if name in named}
    there = {"q": qkv or q, "k": qkv or k, "v": qkv or v, "out": out, **more}
    parts = {part: found for part, found in there.items() if found}
    mixer = Mixer("attention", path, parts, fused if qkv else None, **known)
    return BranchRow("attn", (mixer,), "ln1", before, after, scale=scale)


def crossing(row: BranchRow) -> BranchRow:
    """A row of attention as the branch `cross_attn`, whose keys and values are made of what the encoder gives."""
    mixers = tuple(replace(mixer, kind="cross_attention") for mixer in row.mixers)
    return replace(row, name="cross_attn", norm="ln_cross", mixers=mixers)


def either(*rows: BranchRow) -> BranchRow:
    """One branch that computes in several ways: each block takes the first row whose modules it has."""
    return replace(rows[0], mixers=tuple(mixer for row in rows for mixer in row.mixers))


def latent(
    before: str | None = "input_layernorm",
    after: str | None = None,
    *,
    path: str = "self_attn",
    q_latent: str = "q_a_layernorm",
    scale: str | None = None,
    **parts: str,
) -> BranchRow:
    """The branch `attn` where keys and values (and mostly queries) come through latents, as in DeepSeek's models."""
    kv = {"kv_a": "kv_a_proj_with_mqa", "kv_latent": "kv_a_layernorm", "kv": "kv_b_proj", "out": "o_proj"} | parts
    through = Mixer("latent_attention", path, {"q_latent": q_latent, "q": "q_b_proj"} | kv)
    direct = Mixer("latent_attention", path, {"q": "q_proj"} | kv)
    return BranchRow("attn", (through, direct), "ln1", before, after, scale=scale)


def mlp(
    before: str | tuple[str, ...] | None = "post_attention_layernorm",
    after: str | None = None,
    *,
    path: str = "mlp",
    pre: str = "gate_proj",
    pre_linear: str | None = "up_proj",
    down: str = "down_proj",
    router: str | None = None,
    parallel: str | bool = False,
    scale: str | None = None,
    **more: str | None,
) -> BranchRow:
    """The branch `mlp`.

    Args:
        pre_linear: the same module as `pre` where one computes [gate | up]; None where the MLP is not gated.
        router: in a mixture of experts, the module that returns (logits, weights, indices); layers without it have a
            plain MLP.
        more: other parts of the plain MLP: inner_norm, between its activation and its last layer.
    """
    gated = {"pre_linear": pre_linear} if pre_linear else {}
    plain = Mixer("mlp", path, {"pre": pre, **gated, "down": down, **{k: v for k, v in more.items() if v}})
    mixers = (Mixer("mixture", path, {"router": router}), plain) if router else (plain,)
    return BranchRow("mlp", mixers, "ln2", before, after, parallel, scale)


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture, as its language model names them (`models/language.py`): no "model." before.

    Attributes:
        cached: it generates with transformers' cache; without it, every new token is a run of all tokens.
        padded: it leaves out padding before a prompt; else its memory would begin with padding.
        encoder: the row of the encoder beside it, whose paths begin in the encoder's module; None in other models.

    What a row names at the ends, and a model does not have, is left out: OPT has projections in one size alone.
    """

    name: str
    model_types: tuple[str, ...]
    branches: tuple[BranchRow, ...] = (attn(), mlp())
    embed: str = "embed_tokens"
    embed_projection: str | None = None  # what the token embedding goes through before anything is added to it
    # what it is multiplied by outside its module: an attribute, or "sqrt(d_model)", also "... where ATTRIBUTE" is on
    embed_scale: str | None = None
    positions: str | None = None  # module (or buffer) with positions that are added to it
    numbered_after_padding: bool = False  # its positions begin behind the `padding_idx` of their table (RoBERTa)
    types: str | None = None  # module with token types that are added to it
    entry: tuple[str, ...] = ()  # what the sum goes through before the first block: a norm, a projection
    layers: str = "layers"
    opening: str | None = None  # a module of the first block that the stream goes through before all branches (RWKV)
    # the blocks in the order in which they are called, from the module at `layers` and the config (ALBERT calls one for
    # many layers); None: each block of the list once
    order: Callable[[Any, Any], list[nn.Module]] | None = None
    final_norm: str | None = "norm"
    head: tuple[
        str, ...
    ] = ()  # what follows it, and is no projection: modules (paths in the whole model), ACT2FN names
    unembed_projection: str | None = None  # projection before the unembedding
    unembed_scale: str | None = None  # config attribute: what it reads is divided by sqrt(d_model) (T5)
    streams: str | None = None  # config attribute: how many residual streams there are side by side
    collapse: str | None = None  # the module that makes one of them, before the final norm
    spread: str | None = None  # the projections that make them from the embedding; None: copies of it
    alternating: str = ""  # the module of a block that predicts them, and corrects them behind its branches (AltUp)
    factor: str | None = None  # attribute of a block that the stream is multiplied by at its end
    carries: str = ""  # what blocks hand on to later ones, or are given, beside the stream
    carries_if: tuple[str, ...] = ()  # config attributes of which one at least says that they do; none: all models do
    logit_bias: str | None = None  # buffer that is added to the unembedding's output (BART)
    logit_steps: tuple[tuple[str, str], ...] = ()  # what follows the unembedding: (step, config attribute)
    cached: bool = True
    padded: bool = True
    encoder: "Family | None" = None

    def __post_init__(self) -> None:
        for number in range(len(self.branches)):
            declare(stream_before(number))


_SOFT_CAP = (("soft_cap", "final_logit_softcapping"),)
_GPT2 = Family(
    "gpt2",
    ("gpt2",),
    (
        attn("ln_1", path="attn", qkv="c_attn", out="c_proj"),
        mlp("ln_2", pre="c_fc", pre_linear=None, down="c_proj"),
    ),
    embed="wte",
    positions="wpe",
    layers="h",
    final_norm="ln_f",
)

PLAIN: tuple[Family, ...] = (
    Family(
        "llama",
        (
            *("llama", "mistral", "qwen2", "qwen3", "smollm3"),
            *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"),
        ),
    ),
    Family("olmo", ("olmo",), (attn(clip="clip_qkv"), mlp())),
    Family("gemma", ("gemma",)),
    Family(
        "gemma2",
        ("gemma2", "gemma3_text"),
        (
            attn(after="post_attention_layernorm"),
            mlp("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        ),
        logit_steps=_SOFT_CAP,
    ),
    Family(  # no norm before the branches, only after them
        "olmo2",
        ("olmo2", "olmo3"),
        (attn(None, "post_attention_layernorm"), mlp(None, "post_feedforward_layernorm")),
    ),
    Family(
        "phi3",
        ("phi3",),
        (attn(qkv="qkv_proj"), mlp(pre="gate_up_proj", pre_linear="gate_up_proj")),
    ),
    Family("glm", ("glm",), (attn(), mlp(pre="gate_up_proj", pre_linear="gate_up_proj"))),
    Family(
        "glm4",
        ("glm4",),
        (
            attn(after="post_self_attn_layernorm"),
            mlp(after="post_mlp_layernorm", pre="gate_up_proj", pre_linear="gate_up_proj"),
        ),
    ),
    Family(
        "granite",
        ("granite",),
        (attn(scale="residual_multiplier"), mlp(scale="residual_multiplier")),
        embed_scale="embedding_multiplier",
        logit_steps=(("divide", "logits_scaling"),),
    ),
    Family(
        "cohere",
        ("cohere", "cohere2"),
        (attn(), mlp("input_layernorm", parallel=True)),
        logit_steps=(("multiply", "logit_scale"),),
    ),
    # in its parallel blocks the MLP reads through attention's norm
    Family("stablelm", ("stablelm",), (attn(), mlp(parallel="use_parallel_residual"))),
    Family("starcoder2", ("starcoder2",), (attn(), mlp(pre="c_fc", pre_linear=None, down="c_proj"))),
    Family(
        "phi",
        ("phi",),
        (attn(out="dense"), mlp("input_layernorm", pre="fc1", pre_linear=None, down="fc2", parallel=True)),
        final_norm="final_layernorm",
    ),
    _GPT2,
    replace(  # TinyStories, GPT-Neo; not on transformers' attention registry
        _GPT2,
        name="gpt_neo",
        model_types=("gpt_neo",),
        branches=(attn("ln_1", path="attn.attention", out="out_proj"), _GPT2.branches[1]),
    ),
    Family(  # on transformers' attention registry from 5.24 on
        "gptj",
        ("gptj",),
        (
            attn("ln_1", path="attn", out="out_proj"),
            mlp("ln_1", pre="fc_in", pre_linear=None, down="fc_out", parallel=True),
        ),
        embed="wte",
        layers="h",
        final_norm="ln_f",
    ),
    Family(
        "gpt_neox",
        ("gpt_neox",),
        (
            attn(path="attention", qkv="query_key_value", fused="interleaved", out="dense"),
            mlp(pre="dense_h_to_4h", pre_linear=None, down="dense_4h_to_h", parallel="use_parallel_residual"),
        ),
        embed="embed_in",
        layers="layers",
        final_norm="final_layer_norm",
    ),
    Family("mixture", ("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text"), (attn(), mlp(router="gate"))),
    Family("gpt_oss", ("gpt_oss",), (attn(), mlp(router="router"))),
)


# what may follow the unembedding
LOGIT_STEPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "soft_cap": lambda logits, cap: cap * torch.tanh(logits / cap),
    "divide": lambda logits, by: logits / by,
    "multiply": lambda logits, by: logits * by,
    "first": lambda logits, n: logits[..., : int(n)],  # the rest only fills up the unembedding
}
