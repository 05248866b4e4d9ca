"""How TransformerLens calls the sites: names of 3.x, and of 4.x in its style `module.hook_in`, `module.hook_out`."""

# name within its block (or alone) -> site
ALIASES = {
    "hook_embed": "embed",
    "embed.hook_out": "embed",
    "hook_pos_embed": "pos_embed",
    "pos_embed.hook_out": "pos_embed",
    "hook_type_embed": "type_embed",
    "hook_embed_norm": "embed_norm",
    "ln_final.hook_in": "final_input",
    "ln_final.hook_scale": "final_scale",
    "ln_final.hook_normalized": "final_normalized",
    "ln_final.hook_out": "final_norm",
    "unembed.hook_in": "final_norm",
    "unembed.hook_out": "logits_raw",
    "hook_unembed": "logits_raw",
    "hook_logits": "logits",
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "ln1.hook_in": "ln1_input",
    "ln1.hook_scale": "ln1_scale",
    "ln1.hook_normalized": "ln1_normalized",
    "ln1.hook_out": "ln1_output",
    "attn.hook_in": "attn_input",
    "attn.hook_q": "q",
    "attn.q.hook_out": "q",
    "attn.hook_k": "k",
    "attn.k.hook_out": "k",
    "attn.hook_v": "v",
    "attn.v.hook_out": "v",
    "attn.hook_rot_q": "rot_q",
    "attn.hook_rot_k": "rot_k",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "z",
    "attn.o.hook_in": "z",
    "attn.hook_result": "result",
    "attn.hook_out": "attn_raw",
    "attn.o.hook_out": "attn_raw",
    "ln2.hook_in": "ln2_input",
    "hook_mlp_in": "ln2_input",
    "ln2.hook_scale": "ln2_scale",
    "ln2.hook_normalized": "ln2_normalized",
    "ln2.hook_out": "ln2_output",
    "mlp.hook_in": "mlp_input",
    "mlp.hook_gate": "router_logits",
    "mlp.hook_expert_weights": "expert_weights",
    "mlp.hook_expert_indices": "expert_indices",
    "mlp.hook_pre": "mlp_pre",
    "mlp.gate.hook_out": "mlp_pre",
    "mlp.hook_pre_linear": "mlp_pre_linear",
    "mlp.in.hook_out": "mlp_up",
    "mlp.hook_post": "mlp_post",
    "mlp.out.hook_in": "mlp_post",
    "mlp.hook_out": "mlp_raw",
    "mlp.out.hook_out": "mlp_raw",
    "attn_scores": "scores",
    "attn_logits": "scores",
    "attn": "pattern",
    "mlp_in": "ln2_input",
    "pre": "mlp_pre",
    "post": "mlp_post",
    "pre_linear": "mlp_pre_linear",
}

# site -> its name in files and caches: the first that is listed above
HOOKS = {site: alias for alias, site in reversed(ALIASES.items()) if "hook" in alias}

_ONE_READER = "it is what one projection alone reads; {} is what all of the branch's projections read"
_PER_HEAD = (
    "TransformerLens copies the stream for every head there; blocks.L.ln1.hook_in is what all heads read, and "
    "ms.patching.paths patches what reaches one head's q, k or v"
)
_POST_NORM = "the norm after a branch is inside the branch here: {0}_raw.L is before it, {0}_out.L after it"

# names that are no sites, and what to use
REFUSED = {
    **dict.fromkeys(("mlp.in.hook_in", "mlp.gate.hook_in"), _ONE_READER.format("blocks.L.mlp.hook_in")),
    **dict.fromkeys([f"attn.{x}.hook_in" for x in ("q", "k", "v", "qkv")], _ONE_READER.format("blocks.L.attn.hook_in")),
    **{f"{module}hook_{x}_input": _PER_HEAD for module in ("", "attn.") for x in "qkv"},
    **{name: _PER_HEAD for x in ("attn_in", "q_input", "k_input", "v_input") for name in (x, f"hook_{x}")},
    "attn.hook_attn_in": _PER_HEAD,
    **{f"ln1_post.hook_{form}": _POST_NORM.format("attn") for form in ("in", "scale", "normalized", "out")},
    **{f"ln2_post.hook_{form}": _POST_NORM.format("mlp") for form in ("in", "scale", "normalized", "out")},
    "attn.hook_hidden_states": "it is the output of attention: use blocks.L.attn.hook_out",
    "embed.hook_in": "the token ids are run.tokens.ids",
    "pos_embed.hook_in": "the positions of the tokens are run.tokens.positions",
    **dict.fromkeys(
        ("rotary_emb.hook_in", *(f"{module}.hook_{x}" for module in ("attn", "rotary_emb") for x in ("cos", "sin"))),
        "rotations are no site: rot_q.L and rot_k.L hold queries and keys after them",
    ),
}
