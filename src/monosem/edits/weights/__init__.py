"""Edits of weights: in memory, for the length of a `with`, and put back to the last bit.

They say what a model does without a direction in any of its weights: a measurement of how much rests on it. Every
constructor returns a `WeightEdit`, which has changed nothing yet.

    with edits.weights.orthogonalise(model, direction).applied():
        model.generate(prompts)
"""

from .adapter import save_adapter
from .editing import WeightEdit, add_as_bias, orthogonalise, reflect, rotate
from .maps import WriteMap, biprojected, projected
from .writers import Writer, writers

__all__ = [
    "WeightEdit",
    "WriteMap",
    "Writer",
    "add_as_bias",
    "biprojected",
    "orthogonalise",
    "projected",
    "reflect",
    "rotate",
    "save_adapter",
    "writers",
]
