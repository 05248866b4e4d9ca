"""Names of TransformerLens that are not taken over: why, and what to use.

`docs/transformerlens-names.md` lists every public name of `HookedTransformer`, `TransformerBridge` and
`ActivationCache`; `make test-peers` compares it, and these tables, with the installed packages.
"""

from collections.abc import Mapping
from typing import Any

from ...errors import UnknownName


class AbsentName(UnknownName, AttributeError):
    """A name of TransformerLens that has no counterpart of the same meaning; the message says what to use."""


class Absent:
    """An attribute that raises `AbsentName` with its reason."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason

    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        raise AbsentName(f"TransformerLens's {self.name} is not here: {self.reason}")


HOOKS = "no hook outlives its call here: use run_with_hooks(...) or `with model.hooks(fwd_hooks=[...]):`"
_CACHES = "run_with_cache(...) and run(x, capture=[...]) cache without hooks of yours"
_POINTS = "sites are names, not modules: `monosem list sites MODEL`, or model.has(name)"
_WEIGHTS = "weights are never rewritten; norms' gains and means are taken into account where they are needed"
_LOADS = "ms.load_model(...) loads a Hub id, a folder, a GGUF file or a Hugging Face model"
_NATIVE = "a block is native: model.hf is the model, model.blocks its blocks; model.branches(layer) says what is in one"
_ON_REQUEST = "nothing needs a flag: the site is computed when it is asked for"
_NO_INPUTS = "heads have no copies of the stream: use blocks.L.ln1.hook_in, or ms.patching.paths for one head's input"
_ENCODERS = "only causal language models are read here"
_STATES = "no state-space layer is read here"
_TRAINING = "models are not made or trained here"

ABSENT_FROM_MODELS = {
    **dict.fromkeys(
        ("add_hook", "add_perma_hook", "check_and_add_hook", "check_hooks_to_add", "list_hooks", "remove_all_hook_fns"),
        HOOKS,
    ),
    **dict.fromkeys(("add_caching_hooks", "get_caching_hooks", "cache_all", "cache_some"), _CACHES),
    **dict.fromkeys(
        (
            "hook_dict",
            "hook_points",
            "mod_dict",
            "get_hook_point",
            "hook_aliases",
            "block_hooks",
            "clear_hook_registry",
        ),
        _POINTS,
    ),
    **dict.fromkeys(
        ("center_unembed", "center_writing_weights", "fold_layer_norm", "fold_value_biases", "process_weights")
        + ("process_weights_", "refactor_factored_attn_matrices", "load_and_process_state_dict", "fill_missing_keys")
        + ("enable_compatibility_mode",),
        _WEIGHTS,
    ),
    **dict.fromkeys(
        ("from_pretrained", "from_pretrained_no_processing", "boot_native", "boot_tl_legacy", "boot_transformers")
        + ("check_model_support", "list_supported_models"),
        _LOADS,
    ),
    **dict.fromkeys(
        ("block_submodules", "blocks_with", "layer_types", "stack_params_for", "original_model", "get_params")
        + ("tl_named_parameters", "tl_parameters", "composition_layer_indices", "attn_head_labels", "setup"),
        _NATIVE,
    ),
    "set_use_hook_mlp_in": _ON_REQUEST,
    **dict.fromkeys(("set_use_attn_in", "set_use_split_qkv_input"), _NO_INPUTS),
    **dict.fromkeys(
        ("encoder_output", "predict_next_sentence", "to_sentence_pair_tokens", "prepare_multimodal_inputs")
        + ("diffusion_generate",),
        _ENCODERS,
    ),
    **dict.fromkeys(("init_weights", "load_sample_training_dataset", "sample_datapoint"), _TRAINING),
    **dict.fromkeys(("OV_for_attn_layers", "QK_for_attn_layers"), "ms.components.OV(model, layer) and QK take a layer"),
    "all_composition_scores": "use ms.components.composition_scores(model, kind)",
    "set_ungroup_grouped_query_attention": "W_K and W_V go by query head, W_K.kv_heads by kv head; k and v by kv head",
    "input_to_embed": 'use model.run(x, capture=["embed", "resid_pre.0"])',
    "get_residual": 'use model.run(x, capture="resid_pre.0")',
    "get_pos_offset": "positions follow from the tokens: run.tokens.positions",
    "generate_stream": "use model.generate(x, max_new_tokens=...)",
    "hf_generate": "use model.hf.generate(...), or model.generate(x, sampling=...)",
    "n_params_total": "use model.cfg.n_params",
    "set_tokenizer": "use ms.load_model(model.hf, tokenizer=...)",
    **dict.fromkeys(("to", "cpu", "cuda", "mps", "move_model_modules_to_device"), "use ms.load_model(..., device=...)"),
    "close": "use ms.models.free(model)",
    "forward": "call the model: model(x), or model.run(x)",
    **dict.fromkeys(
        ("parameters", "named_parameters", "state_dict", "load_state_dict", "train"), "it is the model's own: model.hf"
    ),
    "embed": 'use model.W_E[ids], or model.run(x, capture="embed")',
    "pos_embed": 'use model.W_pos, or model.run(x, capture="pos_embed")',
    "ln_final": "model.unembed(stream) goes through the final norm, and model.final_norm says what the norm does",
    "rotary_emb": "rotations are inside attention: the sites rot_q.L and rot_k.L are after them",
    **dict.fromkeys(("hook_embed", "hook_pos_embed", "hook_unembed", "hook_tokens"), _POINTS),
    **dict.fromkeys(("adapter", "real_components", "processor"), _NATIVE),
    "compatibility_mode": _WEIGHTS,
    **dict.fromkeys(("context_level", "is_caching", "clear_contexts"), HOOKS),
    "dataset": _TRAINING,
}
ABSENT_FROM_CACHES = {
    **dict.fromkeys(("compute_ssm_state", "compute_ssm_effective_attention", "ssm_layers"), _STATES),
    "toggle_autodiff": "it switches gradients for the whole program; use model.run(x, capture=..., grad=True)",
    "cache_dict": "the cache is the mapping: dict(cache.items())",
    "has_embed": 'use "embed" in cache',
    "has_pos_embed": 'use model.has("pos_embed")',
}


def put_absent(cls: type, reasons: Mapping[str, str]) -> None:
    for name, reason in reasons.items():
        setattr(cls, name, Absent(name, reason))
