"""Checkpoint formats: one small file each, and a row here. The first one that recognises a path reads it."""

from . import openai, saelens
from .common import Format

FORMATS: dict[str, Format] = {
    "saelens": saelens.FORMAT,
    "openai": openai.FORMAT,
}
