"""Text to tokens: reading corpora, packing them into windows of token ids, and checked pairs of prompts."""

from .packing import TokenStore, document_separator, packed, window_prefix
from .pairs import PromptPairs
from .text import Document, interleaved, shuffled, texts
from .token_pairs import TokenPairs, single_token

__all__ = [
    "Document",
    "PromptPairs",
    "TokenPairs",
    "TokenStore",
    "document_separator",
    "interleaved",
    "packed",
    "shuffled",
    "single_token",
    "texts",
    "window_prefix",
]
