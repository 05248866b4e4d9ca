"""Text to tokens: reading corpora, packing them into windows of token ids, and checked pairs of prompts."""

from .packing import TokenStore, document_separator, packed
from .pair_files import check_pairs, read_pairs
from .pairs import PromptPairs
from .source import TextSource, as_store, corpus
from .tally import SkippedRows
from .tasks import TASKS, capitals, greater_than, ioi, opposites, pronouns, subject_verb, token_at, tokens_at
from .text import Document, interleaved, shuffled, texts
from .token_pairs import TokenPairs

__all__ = [
    "TASKS",
    "Document",
    "PromptPairs",
    "SkippedRows",
    "TextSource",
    "TokenPairs",
    "TokenStore",
    "as_store",
    "capitals",
    "check_pairs",
    "corpus",
    "document_separator",
    "greater_than",
    "interleaved",
    "ioi",
    "opposites",
    "packed",
    "pronouns",
    "read_pairs",
    "shuffled",
    "subject_verb",
    "texts",
    "token_at",
    "tokens_at",
]
