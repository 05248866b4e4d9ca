"""Rows of the family table for attention with latents, gates, norms or sinks, and for mixtures of experts."""

from .families import Family, attn, latent, mlp

VARIANTS: tuple[Family, ...] = (
    Family(
        "latent",
        (
            *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
            *("youtu", "sarvam_mla", "axk1", "mistral4"),
        ),
        (latent(), mlp(router="gate")),
    ),
    Family("laguna", ("laguna",), (attn(gate="g_proj", gating="softplus"), mlp(router="gate"))),
    Family(
        "afmoe",
        ("afmoe",),
        (
            attn(after="post_attention_layernorm", gate="gate_proj"),
            mlp("pre_mlp_layernorm", "post_mlp_layernorm", router="router"),
        ),
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
