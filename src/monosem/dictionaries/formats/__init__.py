"""Checkpoint formats: one small file each, and a row here. The first one that recognises a path reads it."""

from . import openai, saelens
from .common import Format

FORMATS: dict[str, Format] = {
    "saelens": saelens.FORMAT,
    "openai": openai.FORMAT,
}
# a file's name -> whose it is: formats that are not read, for messages
OTHER_FORMATS = {
    "sae.safetensors": "sparsify or latentsae",
    "ae.pt": "dictionary_learning",
    "params.npz": "Gemma Scope",
}
