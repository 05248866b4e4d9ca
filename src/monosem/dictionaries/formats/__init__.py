"""Checkpoint formats: one small file each, and a row here. The first one that recognises a path reads it."""

from . import openai, saelens
from .common import Format

FORMATS: dict[str, Format] = {
    "saelens": saelens.FORMAT,
    "openai": openai.FORMAT,
}
# names of files that lie together -> whose they are: formats that are not read, for messages
OTHER_FORMATS = {
    ("sae.safetensors",): "sparsify or latentsae",
    ("ae.pt",): "dictionary_learning",
    ("params.npz",): "Gemma Scope",
    ("layer_*.safetensors",): "circuit-tracer",
    ("W_enc_*.safetensors",): "circuit-tracer",
    ("W_dec_*.safetensors",): "circuit-tracer",
    ("config.json", "sae_weights.safetensors"): "llamascopium",
}
