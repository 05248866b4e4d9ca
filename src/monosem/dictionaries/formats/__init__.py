"""Checkpoint formats: one small file each, and a row here. The first one that recognises a place reads it."""

from . import (
    bussmann,
    circuit_tracer,
    compact,
    cross_layer,
    crosscoder,
    dictionary_learning,
    gemma_scope,
    hypothesaes,
    latentsae,
    llama_scope,
    llamascopium,
    openai,
    overcomplete,
    saelens,
    saev,
    sparsify,
    state_dicts,
    temporal_saes,
)
from .common import Format

FORMATS: dict[str, Format] = {
    "compact": compact.FORMAT,
    "saelens": saelens.FORMAT,
    "openai": openai.FORMAT,
    "sparsify": sparsify.FORMAT,
    "latentsae": latentsae.FORMAT,
    "gemma_scope": gemma_scope.FORMAT,
    "gemma_scope_2": gemma_scope.FORMAT_2,
    "llama_scope": llama_scope.FORMAT,
    "llama_scope_r1": llama_scope.FORMAT_R1,
    "llamascopium": llamascopium.FORMAT,
    "circuit_tracer": circuit_tracer.FORMAT,
    "circuit_tracer_clt": cross_layer.FORMAT,
    "gemma_scope_2_clt": cross_layer.FORMAT_GEMMA,
    "crosscoder": crosscoder.FORMAT,
    "temporal_saes": temporal_saes.FORMAT,
    "dictionary_learning": dictionary_learning.FORMAT,
    "bussmann": bussmann.FORMAT,
    "hypothesaes": hypothesaes.FORMAT,
    "prefscope": hypothesaes.FORMAT_PREFSCOPE,
    "saev": saev.FORMAT,
    "overcomplete": overcomplete.FORMAT,
    **state_dicts.FORMATS,
}
# weights that cannot be read alone -> the config that belongs beside them, for messages
CONFIGS = {
    "sae_weights.safetensors": "cfg.json (SAELens), or config.json (llamascopium, whose save_pretrained leaves it out: "
    "cfg.save_hyperparameters writes it)",
    "sae.safetensors": "cfg.json (sparsify, latentsae)",
    "latest_ckpt.safetensors": "conf.yaml (temporal SAEs)",
    "checkpoints/final.safetensors": "hyperparams.json (Llama Scope), or config.json (llamascopium)",
}
# names of files that lie together -> whose they are: formats that are not read, for messages
OTHER_FORMATS = {
    ("config.json", "sae_weights.dcp"): "llamascopium (a distributed checkpoint; save it as safetensors)",
}
