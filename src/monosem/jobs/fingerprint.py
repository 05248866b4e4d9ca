"""One number for weights and settings, to notice that something else is used than before."""

import hashlib
from collections.abc import Sequence

from torch import Tensor, nn

MARK = 10  # hexadecimal digits by which a text is known again
SAMPLED = 4096  # at least so many values of each parameter of a large module are read, at most twice as many


def fingerprint(*parts: str | Tensor) -> str:
    """16 hexadecimal digits of the SHA-256 of texts and of tensors as float32, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part.detach().float().cpu().contiguous().numpy().tobytes()
        digest.update(content)
    return digest.hexdigest()[:16]


def marks(texts: Sequence[str], kept: object = "") -> str:
    """What these texts are known again by (`known_again`), without keeping them, beside marks that are kept already."""
    return " ".join(sorted({*str(kept or "").split(), *(fingerprint(text)[:MARK] for text in texts)}))


def known_again(kept: object, texts: Sequence[str]) -> list[bool]:
    """Which texts have one of these `marks`."""
    known = set(str(kept or "").split())
    return [fingerprint(text)[:MARK] in known for text in texts]


def module_fingerprint(module: nn.Module) -> str:
    """Of every parameter's name, shape and some thousand evenly spaced values: quick, and notices training."""
    parts: list[str | Tensor] = []
    for name, parameter in sorted(module.named_parameters()):
        values = parameter.detach().flatten()
        parts += [f"{name} {tuple(parameter.shape)}", values[:: max(1, len(values) // SAMPLED)]]
    return fingerprint(*parts)
