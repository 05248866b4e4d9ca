"""What each head adds to the stream, made only for the layer, heads and positions that are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Model, Norm, Run


@dataclass(frozen=True, eq=False)
class HeadResults:
    """`results[layer]` is `batch pos head d_model`, `results[layer, 3]` head 3 alone, `results[layer, [1, 3]]` two.

    A result is the head's write into the stream: z W_O, through a post-norm with the run's scale and the residual
    multiplier where the model has them. Over all heads they sum to attn_out less its bias.

    Attributes:
        run: a run that captured `z`, with all heads, of the layers that are asked for.
    """

    run: Run

    @staticmethod
    def of(model: Model, x: Any, positions: Any = None, memory: str | int | None = None) -> "HeadResults":
        """Results of any layer for these texts (or ids), at all positions or some; z is captured for every layer."""
        sites = [("z", layer) for layer in range(model.cfg.n_layers)]
        return HeadResults(model.run(x, sites, logits=False, positions=positions, memory=memory))

    def __getitem__(self, index: int | tuple[int, int | Sequence[int]]) -> Float[Tensor, "batch pos *head d_model"]:
        layer, heads = index if isinstance(index, tuple) else (index, slice(None))
        model = self.run.model
        layer = range(model.cfg.n_layers)[layer]
        z, W_O = self.run["z", layer].float(), model.W_O[layer].float()
        norm, scale = self._norm(layer)
        if isinstance(heads, int):
            return norm.frozen(z[..., heads, :] @ W_O[heads], scale) * model.residual_multiplier
        kept = heads if isinstance(heads, slice) else list(heads)
        results = torch.einsum("bphd,hdm->bphm", z[..., kept, :], W_O[kept])
        return norm.frozen(results, scale[..., None, :]) * model.residual_multiplier

    def along(self, direction: Float[Tensor, "d_model"]) -> Float[Tensor, "layer batch pos head"]:
        """Every head's write along a vector, without making any write: z · (W_O[h] u)."""
        model, u = self.run.model, direction.float().to(self.run.model.device)
        if u.shape != (model.cfg.d_model,):
            raise BadInput(f"the direction must be one vector of {model.cfg.d_model}, not {list(u.shape)}")
        found = []
        for layer in range(model.cfg.n_layers):
            norm, scale = self._norm(layer)
            read = model.W_O[layer].float() @ norm.pull(u)
            found.append(torch.einsum("bphd,hd->bph", self.run["z", layer].float(), read) / scale)
        return torch.stack(found) * model.residual_multiplier

    def norms(self) -> Float[Tensor, "layer batch pos head"]:
        """Size of every head's write; one layer's writes are held at a time."""
        return torch.stack([self[layer].norm(dim=-1) for layer in range(self.run.model.cfg.n_layers)])

    def _norm(self, layer: int) -> tuple[Norm, Tensor]:
        """The post-norm and the scale that it divided by in this run (1 where there is none)."""
        model = self.run.model
        if self.run.heads is not None:
            raise BadInput("head results go by the numbers of all heads: capture z without heads=")
        module = model.branch_norm(layer, "attn")
        norm = Norm.of(module, model.cfg.d_model).to(model.device)
        z = self.run["z", layer].float()
        if module is None:
            return norm, torch.ones_like(z[..., 0, :1])
        raw = z.flatten(-2) @ model.W_O[layer].flatten(0, 1).float() + model.b_O[layer].float()
        return norm, norm.scale(raw)
