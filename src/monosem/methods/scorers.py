"""What judges continuations: a detector of texts that is fitted on a part of its own, or a judge by name."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..judges import judge
from ..probes import TextDetector
from ..probes.texts import PIECES
from .parts import Material

Chances = Callable[[Sequence[str], Sequence[str]], Float[Tensor, "n"]]  # of prompts and what stands after them


def scorer(name: str, material: Material) -> Chances:
    """How likely it is, from 0 to 1, that a text has the concept."""
    if name in PIECES:
        detector = TextDetector.fit(*material.of_judge(), name)
        return lambda prompts, texts: detector.log_odds(texts).sigmoid()
    by = judge(name)

    def chances(prompts: Sequence[str], texts: Sequence[str]) -> Float[Tensor, "n"]:
        return torch.tensor([by(prompt, text).score for prompt, text in zip(prompts, texts)], dtype=torch.float64)

    return chances
