"""Rows of the family table for attention with latents, gates, norms or sinks, and for mixtures of experts."""

from dataclasses import replace
from typing import Any

from .families import BranchRow, Family, attn, either, latent, mlp
from .mixers import Mixer

_SEPARATE = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
_PER_LAYER = {"pre": "per_layer_input_gate", "out": "per_layer_projection"}
_PLE_ENDS = tuple(_PER_LAYER.values())
_LLAMA4 = Mixer("scaled_mixture", "feed_forward", {"router": "router", "experts": "experts"}, flat=True)
_GEMMA4 = Mixer(  # a mixture and an MLP
    "joined_mixture",
    "",
    {
        "router": "router",
        "scores": "router.proj",
        "experts": "experts",
        "experts_norm": "pre_feedforward_layernorm_2",
        "routed_norm": "post_feedforward_layernorm_2",
        "shared": "mlp",
        "shared_pre": "mlp.gate_proj",
        "shared_pre_linear": "mlp.up_proj",
        "shared_down": "mlp.down_proj",
        "shared_norm": "post_feedforward_layernorm_1",
    },
    ends=("mlp", ""),
)
# values of their own, values that are the keys, keys and values of an earlier layer
_SHARED = ({"v_norm": "v_norm"}, {"v": None, "v_norm": "v_norm"}, {"k": None, "v": None})


def _share(name: str, row: BranchRow) -> BranchRow:
    """Beam's: of n writings the newest counts 1/√n, and the sum of the others √((n-1)/n)."""

    def number(block: Any) -> int:
        return int(getattr(block, f"{name}_residual_add_idx"))

    return replace(
        row,
        scale=lambda block: float(number(block) ** -0.5),
        keeps=lambda block, stream: stream * ((number(block) - 1) / number(block)) ** 0.5,
    )


VARIANTS: tuple[Family, ...] = (
    Family(
        "latent",
        (
            *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
            *("youtu", "sarvam_mla", "axk1", "mistral4"),
        ),
        (latent(), mlp(router="gate")),
    ),
    Family(  # constants that latents are multiplied by, a gate for each head
        "dots3_note",
        ("dots3_note_text",),
        (latent(gate="g_proj"), mlp(router="gate")),
    ),
    Family(  # queries and gates are made of the latent and of what it is the norm of
        "axk2",
        ("axk2",),
        (latent(q="q_gate_proj", gate="q_gate_proj", q_a="q_a_proj"), mlp(router="gate")),
    ),
    Family(
        "diffllama",
        ("diffllama",),
        (
            BranchRow("attn", (Mixer("differential_attention", "self_attn", _SEPARATE),), "ln1", "input_layernorm"),
            mlp(),
        ),
    ),
    Family(
        "moshi",
        ("moshi",),
        (
            attn(q="q_proj.linear", k="k_proj.linear", v="v_proj.linear", out="o_proj.linear"),
            mlp(pre="fc1", pre_linear="fc1", down="fc2"),
        ),
        cached=False,
    ),
    Family("laguna", ("laguna",), (attn(gate="g_proj", gating="softplus"), mlp(router="gate"))),
    Family(
        "afmoe",
        ("afmoe",),
        (
            attn(after="post_attention_layernorm", gate="gate_proj"),
            mlp("pre_mlp_layernorm", "post_mlp_layernorm", router="router"),
        ),
        embed_scale="sqrt(d_model) where mup_enabled",
    ),
    Family(
        "gemma4",
        ("gemma4_text", "gemma4_unified_text"),
        (
            either(*(attn(after="post_attention_layernorm", **parts) for parts in _SHARED)),
            either(
                BranchRow("mlp", (_GEMMA4,), "ln2", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
                mlp("pre_feedforward_layernorm", "post_feedforward_layernorm"),
            ),
            BranchRow(
                "ple",
                (Mixer("layer_input", "", _PER_LAYER, ends=_PLE_ENDS),),
                "ln3",
                after="post_per_layer_input_norm",
            ),
        ),
        factor="layer_scalar",
        carries="keys and values, or an input for each layer,",
        carries_if=("num_kv_shared_layers", "hidden_size_per_layer_input"),
        logit_steps=(("soft_cap", "final_logit_softcapping"),),
    ),
    Family(  # four streams, of which blocks read and write one (AltUp), a learned way beside attention (LAuReL)
        "gemma3n",
        ("gemma3n_text",),
        (
            replace(
                either(*(attn(after="post_attention_layernorm", **parts) for parts in (_SHARED[0], _SHARED[2]))),
                reads="active",
            ),
            BranchRow("laurel", (Mixer("other", "laurel"),), "ln1", "input_layernorm", parallel=True, reads="active"),
            replace(mlp("pre_feedforward_layernorm", "post_feedforward_layernorm"), reads="resid_mid"),
            BranchRow(
                "ple",
                (Mixer("layer_input", "", _PER_LAYER, ends=_PLE_ENDS, differs={"per_layer_input": {"item": 2}}),),
                "ln3",
                after="post_per_layer_input_norm",
                reads="corrected",
            ),
        ),
        streams="altup_num_inputs",
        collapse="altup_unembed_projections",
        spread="altup_projections",
        alternating="altup",
        carries="keys and values, and an input for each layer,",
        logit_steps=(("soft_cap", "final_logit_softcapping"),),
    ),
    Family(
        "llama4",
        ("llama4_text",),
        (
            attn(),
            either(
                BranchRow("mlp", (_LLAMA4,), "ln2", "post_attention_layernorm"),
                mlp(path="feed_forward"),
            ),
        ),
    ),
    Family(  # two attentions and two MLPs a block, and a mixture that reads beside the first MLP and writes at the end
        "longcat_flash",
        ("longcat_flash",),
        (
            latent("input_layernorm.0", path="self_attn.0"),
            mlp("post_attention_layernorm.0", path="mlps.0"),
            replace(latent("input_layernorm.1", path="self_attn.1"), name="attn2", norm="ln3"),
            replace(mlp("post_attention_layernorm.1", path="mlps.1"), name="mlp2", norm="ln4"),
            BranchRow(
                "moe",
                (Mixer("mixture", "mlp", {"router": "router"}),),
                "ln2",
                "post_attention_layernorm.0",
                beside="mlp",
            ),
        ),
    ),
    Family(  # hyper-connections: four streams, mixed into one before each branch
        "hy_v4",
        ("hy_v4",),
        (
            replace(latent(gate="gate_proj"), streams="attn_hc"),
            replace(mlp(router="gate"), streams="ffn_hc"),
        ),
        streams="hc_mult",
        collapse="hc_head",
        carries="the keys that queries may see",
    ),
    Family(
        "deepseek_v4",
        ("deepseek_v4",),
        (
            BranchRow("attn", (Mixer("other", "self_attn"),), "ln1", "input_layernorm", streams="attn_hc"),
            replace(mlp(router="gate"), streams="ffn_hc"),
        ),
        streams="hc_mult",
        collapse="hc_head",
        carries="the tokens, by whose numbers some layers choose experts,",
        cached=False,  # transformers' own cache gives other numbers (5.24), and padding counts in its compressed keys
        padded=False,
    ),
    Family(  # a convolution follows each branch, and others the keys and values
        "inkling_text",
        ("inkling_text",),
        (
            BranchRow("attn", (Mixer("other", "", ends=("self_attn", "attn_sconv")),), "ln1", "input_layernorm"),
            BranchRow("mlp", (Mixer("other", "", ends=("mlp", "mlp_sconv")),), "ln2", "post_attention_layernorm"),
        ),
        logit_steps=(("divide", "logits_mup_width_multiplier"), ("first", "unpadded_vocab_size")),
    ),
    Family(  # the stream is multiplied, number by number, before a branch is added
        "doge",
        ("doge",),
        (
            replace(attn(), keeps=lambda block, stream: block.input_residual * stream),
            replace(mlp(), keeps=lambda block, stream: block.post_attention_residual * stream),
        ),
    ),
    Family(  # the mean of everything that was written so far, times the root of their number
        "beam",
        ("beam",),
        (
            _share("attn", attn(after="post_attention_layernorm", gate="gate_proj", gate_bias="gate_bias")),
            _share("mlp", mlp("pre_feedforward_layernorm", "post_feedforward_layernorm", router="gate")),
        ),
        logit_steps=(("soft_cap", "final_logit_softcapping"),),
    ),
    Family("mimo_v2_flash", ("mimo_v2_flash",), (attn(value_scale="attention_value_scale"), mlp(router="gate"))),
    Family("bitnet", ("bitnet",), (attn(mixed_norm="attn_sub_norm"), mlp(inner_norm="ffn_sub_norm"))),
    Family("glm_moe_dsa", ("glm_moe_dsa",), (latent(), mlp(router="gate")), carries="the keys that queries may see"),
    Family(
        "minicpm3",
        ("minicpm3",),
        (latent(scale="residual_scale"), mlp(scale="residual_scale")),
        logit_steps=(("divide", "logits_scaling"),),
    ),
)
