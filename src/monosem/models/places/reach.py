"""How far a model reads: the tokens of its context, the columns of its attention windows."""

from typing import Any

NO_LIMIT = 2**31 - 1  # of models that only have a memory


def context_of(config: Any) -> int:
    """Number of tokens that a model reads.

    "dynamic" and "yarn" reach `factor` times their original context, which the config's own number may leave out
    (Qwen's instructions for YaRN do); with other kinds it is that number.
    """
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
    known = next((int(number) for number in named if number), None)
    if known is None:  # scores are biased by distance (BLOOM): no length is the last
        return NO_LIMIT
    parameters = getattr(config, "rope_parameters", None) or {}
    layers = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    for rope in layers:
        original = {"dynamic": known, "yarn": rope.get("original_max_position_embeddings")}
        if before := original.get(rope.get("rope_type", "default")):
            known = max(known, int(before * (rope.get("factor") or 1)))
    return known


def window_of(config: Any) -> int | None:
    """Width of the narrowest attention window or chunk, in columns of a batch; None where every layer reads all."""
    types = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ["sliding_attention"]
    names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size", "local": "window_size"}
    widths = [getattr(config, names[kind], None) for kind in set(types) if kind in names]
    return min((width for width in widths if width), default=None)
