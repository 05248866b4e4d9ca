"""Reading vectors instead of states: the tokens that a neuron, or any direction that is written, promotes directly.

The convention is the one of latents (`monosem.latents`): vector × gain of the final norm (less its mean, if that is a
LayerNorm), through the unembedding with its mean over the vocabulary taken out. The division by the size of the stream
is left out, so that effects compare within a model, and so are soft caps, which are no linear map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput, UnknownName, require
from ..models import Model
from ..plots import BLUE, ORANGE, Figure, style
from ..results import Result, analysis
from .grid import visible
from .states import ELEMENTS


@dataclass(frozen=True, eq=False)
class VectorReading(Result):
    """Direct effects on the logits, per unit of the vector.

    Attributes:
        names: of the vectors.
        promoted, suppressed: token ids, `vector k`, strongest first; `up`, `down`: their effects.
    """

    model: Model = field(repr=False)
    names: list[str]
    promoted: Int[Tensor, "vector k"] = field(repr=False)
    up: Float[Tensor, "vector k"] = field(repr=False)
    suppressed: Int[Tensor, "vector k"] = field(repr=False)
    down: Float[Tensor, "vector k"] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """One row a vector: the tokens and the strongest effect either way."""
        word = self.model.str_token
        return pd.DataFrame(
            {
                "vector": self.names,
                "promotes": [[word(i) for i in row] for row in self.promoted.tolist()],
                "suppresses": [[word(i) for i in row] for row in self.suppressed.tolist()],
                "most": self.up[:, 0].tolist(),
                "least": self.down[:, 0].tolist(),
            }
        )

    def plot(self, vector: int = 0) -> Figure:
        """Bars of one vector's effects."""
        go = require("plotly.graph_objects", "plots")
        figure = go.Figure()
        sides = ((self.promoted, self.up, BLUE, "promoted"), (self.suppressed, self.down, ORANGE, "suppressed"))
        for ids, effects, colour, name in sides:
            # the id keeps two tokens of one spelling apart
            labels = [f"{visible(self.model.str_token(i))} · {i}" for i in ids[vector].tolist()]
            figure.add_bar(x=labels, y=effects[vector].tolist(), marker={"color": colour}, name=name)
        return style(figure, "token", "effect on the logit", self.names[vector])


@analysis
@torch.no_grad()
def vectors(
    model: Model,
    directions: Float[Tensor, "vector d_model"] | Float[Tensor, "d_model"],
    *,
    top: int = 10,
    names: Sequence[str] | None = None,
) -> VectorReading:
    """The tokens whose logits vectors of the residual stream raise and lower most.

    Raises:
        BadInput: vectors of another width than the model's, another number of names than vectors, top below 1.
    """
    rows = directions[None] if directions.ndim == 1 else directions
    if rows.ndim != 2 or rows.shape[1] != model.cfg.d_model or not len(rows):
        raise BadInput(f"vectors must be [n, {model.cfg.d_model}], got {list(directions.shape)}")
    labels = [str(name) for name in names] if names is not None else [str(number) for number in range(len(rows))]
    if len(labels) != len(rows) or top < 1:
        raise BadInput(f"{len(labels)} names for {len(rows)} vectors, top {top}: give one name each, and top >= 1")
    norm, W_U, parts = model.final_norm, model.W_U.float(), []
    for chunk in rows.float().split(max(1, ELEMENTS // model.cfg.d_vocab)):
        effects = norm.frozen(chunk.to(norm.gain.device), torch.ones(1, device=norm.gain.device)).to(W_U.device) @ W_U
        effects -= effects.mean(-1, keepdim=True)  # a logit that all tokens gain says nothing
        up, down = (effects.topk(min(top, model.cfg.d_vocab), largest=largest) for largest in (True, False))
        parts.append([x.cpu() for x in (up.indices, up.values, down.indices, down.values)])
    return VectorReading(model, labels, *(torch.cat(column) for column in zip(*parts)))


@analysis
def neurons(model: Model, layer: int, indices: Sequence[int] | None = None, *, top: int = 10) -> VectorReading:
    """What neurons of an MLP write, read as tokens: their rows of the output projection, through the gain of the
    branch's post-norm where there is one.

    Args:
        indices: which neurons; None for all of the layer.

    Raises:
        UnknownName: no such layer or neuron.
    """
    (layer,) = model.layers(layer)
    wanted = list(range(model.cfg.d_mlp)) if indices is None else list(indices)
    if wrong := [i for i in wanted if not 0 <= i < model.cfg.d_mlp]:
        raise UnknownName(f"there is no neuron {wrong[0]}; an MLP of {model.name} has 0 to {model.cfg.d_mlp - 1}")
    mlp = model.branch("mlp", layer)
    rows = mlp.weight()[wanted].float()
    written = mlp.share(rows, torch.ones(1, device=rows.device))
    return vectors(model, written, top=top, names=[f"neuron {layer}.{i}" for i in wanted])
