"""What every writer needs: whether a format can hold a dictionary, and the file of its tensors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import BadInput
from ...files import replacing
from ..parts import DictionaryParts

# (kind, another kind) -> whether that is the same function with thresholds that it makes of the first's
_SAME: dict[tuple[str, str], tuple[Callable[[Tensor], bool], Callable[[Tensor], Tensor | None]]] = {
    ("jumprelu", "relu"): (lambda threshold: bool((threshold <= 0).all()), lambda threshold: None),
    ("jumprelu", "jump"): (lambda threshold: True, lambda threshold: threshold.clamp(min=0)),
    ("jump", "jumprelu"): (lambda threshold: bool((threshold >= 0).all()), lambda threshold: threshold),
}


def held_by(
    tool: str,
    parts: DictionaryParts,
    kinds: Collection[str],
    *,
    token_norms: Sequence[str] = ("none",),
    square: bool = False,
) -> DictionaryParts:
    """The dictionary as a tool can hold it: itself, or of another kind that is the same function.

    Args:
        kinds: encoders that the tool has. square: whether its output is as wide as its input.

    Raises:
        BadInput: the tool has nothing that is the same function.
    """
    made = next((one for kind in kinds if (one := _as(parts, kind)) is not None), None)
    what = f"a {parts.kind} {'transcoder' if parts.is_transcoder else 'SAE'}"
    what += " with a skip connection" if parts.tensors.W_skip is not None else ""
    (d_in, _), d_out = parts.tensors.W_enc.shape, parts.tensors.W_dec.shape[1]
    if made is None:
        raise BadInput(f"{tool} has no architecture for {what}; it has {', '.join(kinds) or 'none such'}")
    if parts.tensors.W_glu is not None:
        raise BadInput(f"{tool} has no gated linear unit, which this dictionary has")
    if parts.token_norm not in token_norms:
        raise BadInput(f"{tool} does not normalise tokens so: this dictionary has token_norm {parts.token_norm!r}")
    if square and d_in != d_out:
        raise BadInput(f"{tool} has outputs as wide as inputs, and this dictionary has d_in {d_in} and d_out {d_out}")
    return made


def _as(parts: DictionaryParts, kind: str) -> DictionaryParts | None:
    if parts.kind == kind:
        return parts
    fits, made = _SAME.get((parts.kind, kind), (None, None))
    threshold = parts.tensors.threshold
    if fits is None or made is None or threshold is None or not fits(threshold):
        return None
    return replace(parts, kind=kind, tensors=replace(parts.tensors, threshold=made(threshold)))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """All in one dtype; None: each in its own."""
    with replacing(path) as temporary:
        save_file({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}, temporary)
