"""Checkpoints whose weights are quantised: refused where they would be read wrongly, and a note on what is exact."""

import re
from collections.abc import Iterable
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from ...errors import BadFile

# tensors without which the numbers of packed weights mean nothing
_SCALES = re.compile(r"weight_scale(_inv|_2)?$|\.(scales|absmax|qzeros)$|_scales$")


def method_of(config: PretrainedConfig) -> str | None:
    """How a config says that the weights are quantised; None where it does not. "" where it does not say how."""
    for one in (config, config.get_text_config()):
        given: Any = getattr(one, "quantization_config", None)
        if given:
            given = given if isinstance(given, dict) else given.to_dict()
            found = given.get("quant_method")
            return str(getattr(found, "value", found) or ("bitsandbytes" if _by_bits(given) else ""))
    return None


def _by_bits(given: dict[str, Any]) -> bool:
    return bool(given.get("load_in_4bit") or given.get("load_in_8bit"))


def refuse_unreadable(config: PretrainedConfig, name: str) -> None:
    """Raises `BadFile` for a quantisation that transformers does not know: it would take packed numbers for weights."""
    method = method_of(config)
    if method is None or method.startswith("bitsandbytes") or method in AUTO_QUANTIZER_MAPPING:
        return
    how = f"by {method!r}, which transformers does not read" if method else "and not how (no quant_method, as in MLX's)"
    raise BadFile(f"cannot load {name}: config.json says that its weights are quantised {how}; take the original")


def refuse_scales(left: Iterable[str], name: str) -> None:
    """Raises `BadFile` where the files hold scales of packed weights that the model has no place for."""
    if found := sorted(key for key in left if _SCALES.search(key)):
        raise BadFile(
            f"cannot load {name}: its weights are quantised ({found[0]} is the scale of one), and config.json has no "
            "quantization_config that says how; take the whole folder anew, or the original"
        )


def quantisation_notes(hf: PreTrainedModel, method: str | None = None) -> list[str]:
    """What is exact in a model whose weights are, or were, quantised.

    Args:
        method: what the checkpoint's config said; None for a model that was loaded elsewhere.
    """
    method = method_of(hf.config) or method
    if not method:
        return []
    if getattr(hf, "is_quantized", False):
        return [
            f"its layers stay quantised ({method}): sites hold what they compute, weights are read as the layers act, "
            "and `monosem verify` shows how far rounding parts the two"
        ]
    dtype = str(hf.dtype).removeprefix("torch.")
    return [
        f"its weights are quantised in the file ({method}) and were unpacked to {dtype}: sites and weights are exact "
        "for these numbers, and a program that computes on packed ones rounds otherwise"
    ]
