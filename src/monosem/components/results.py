"""What each head adds to the stream, made only for the layer, heads and positions that are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Branch, Model, Positions, Run, Site


@dataclass(frozen=True, eq=False)
class HeadResults:
    """`results[layer]` is `batch pos head d_model`, `results[layer, 3]` head 3 alone, `results[layer, [1, 3]]` two.

    A result is the head's write into the stream: z W_O, through a post-norm with the run's scale and the residual
    multiplier where the model has them. Over all heads they sum to attn_out less its bias.

    Attributes:
        run: a run that captured `z`, with all heads, of the layers that are asked for.
    """

    run: Run

    @classmethod
    def of(
        cls, model: Model, x: Any, *, positions: Positions | None = None, memory: str | int | None = None
    ) -> "HeadResults":
        """Results of any layer for these texts (or ids), at all positions or some; z is captured for every layer."""
        sites = [branch.inner for branch in _attentions(model) if branch.inner is not None]
        return cls(model.run(x, sites, logits=False, positions=positions, memory=memory))

    def __getitem__(self, index: int | tuple[int, int | Sequence[int]]) -> Float[Tensor, "batch pos *head d_model"]:
        layer, heads = index if isinstance(index, tuple) else (index, slice(None))
        branch, z = self._read(layer)
        kept = [heads] if isinstance(heads, int) else heads if isinstance(heads, slice) else list(heads)
        shares = branch.share(branch.parts(z[..., kept, :], kept), branch.size(z)[..., None, :])
        return shares[..., 0, :] if isinstance(heads, int) else shares

    def along(self, direction: Float[Tensor, "d_model"]) -> Float[Tensor, "layer batch pos head"]:
        """Every head's write along a vector, without making any write: z · (W_O[h] u)."""
        model, u = self.run.model, direction.float().to(self.run.model.device)
        if u.shape != (model.cfg.d_model,):
            raise BadInput(f"the direction must be one vector of {model.cfg.d_model}, not {list(u.shape)}")
        values = []
        for layer in range(model.cfg.n_layers):
            branch, z = self._read(layer)
            read = branch.weight().float() @ branch.pull(u)
            values.append(torch.einsum("bphd,hd->bph", z, read) / branch.size(z))
        return torch.stack(values)

    def norms(self) -> Float[Tensor, "layer batch pos head"]:
        """Size of every head's write; one layer's writes are held at a time."""
        return torch.stack([self[layer].norm(dim=-1) for layer in range(self.run.model.cfg.n_layers)])

    def _read(self, layer: int) -> tuple[Branch, Float[Tensor, "batch pos head d_head"]]:
        if self.run.heads is not None:
            raise BadInput("head results go by the numbers of all heads: capture z without heads=")
        (layer,) = self.run.model.layers(layer)
        branch = self.run.model.branch("attn", layer)
        self._check_edits(branch)
        return branch, self.run[branch.inner].float()

    def _check_edits(self, branch: Branch) -> None:
        """Raises `BadInput` where an edit changed what the heads of a layer add, after z."""
        model = self.run.model
        for site in self.run.edited:
            of = model.branch_of(site)
            if of and (of.layer, of.name) == (branch.layer, branch.name) and not model.is_held(site, None, _inner):
                raise BadInput(
                    f"the edit at {site} changed what the heads of layer {branch.layer} add: edit z, or before"
                )


def _inner(branch: Branch) -> Site:
    return branch.inner or branch.out


def _attentions(model: Model) -> list[Branch]:
    return [one for one in model.branches() if one.units == "head"]
