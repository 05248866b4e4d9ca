"""Text to tokens: reading corpora, packing them into windows of token ids, and checked pairs of prompts."""

from .packing import TokenStore, document_separator, packed, window_prefix
from .pairs import PromptPairs
from .text import Document, interleaved, shuffled, texts

__all__ = [
    "Document",
    "PromptPairs",
    "TokenStore",
    "document_separator",
    "interleaved",
    "packed",
    "shuffled",
    "texts",
    "window_prefix",
]
