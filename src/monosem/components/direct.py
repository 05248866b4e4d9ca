"""Direct attribution: what each part of a model writes straight into a logit, a logit difference or a direction.

The stream before the final norm is a sum of what embedding, attention heads, MLPs (or single neurons) and biases wrote.
With the norms' scales frozen at those of the run, the read-out is linear, so the contributions add up to it exactly:

    Σ contributions = logit before the soft cap         (float32: to 1e-4)

- A post-norm between a branch and the stream (Gemma 2 and 3, OLMo 2) is linear too with its scale frozen; its gain and
  scale go into the branch's contributions. Residual and logit multipliers (Granite, Cohere) do as well.
- LayerNorms subtract the mean: so is it done with the direction. Their biases, and those of the projections, are parts
  of their own: a head's share holds nothing that does not depend on what the head read.
- A soft cap c·tanh(z/c) is not linear. The default stops before it; `capped=True` multiplies by its derivative at the
  run's own logits instead, the first-order share in the capped logit (these do not add up to it).

Direction first: a head's share is z · (W_O[h] u). Nothing of size batch x pos x head x d_model is ever made.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput, UnknownName
from ..models import Model, Norm, Run, Site
from .attribution import DirectAttribution, Part
from .targets import Target, Tokens, direction_target, token_target

By = Literal["layer", "head", "neuron"]


def direct_attribution(
    model: Model,
    x: Any,
    tokens: Tokens | None = None,
    wrong: Tokens | None = None,
    *,
    direction: Any = None,
    by: By = "head",
    positions: Any = "last",
    capped: bool = False,
    memory: str | int | None = None,
) -> DirectAttribution:
    """Contributions of every component to a logit, a logit difference, or the projection on a direction.

    Args:
        x: text, texts, ids or a `TokenBatch`.
        tokens: whose logit: text of exactly one token or an id; one for all rows, or one for each.
        wrong: tokens whose logit is subtracted.
        direction: instead of tokens: a `Direction` or `(site, vector)` with a site in the stream; what the components
            before that site write along v̂.
        by: "layer": one part for each attention and MLP. "head": attention by head. "neuron": also MLPs by neuron.
        positions: which tokens of each row to read at: "last", an index, a list or a slice (as for `Model.run`), None
            for all; as many in every row.
        capped: multiply by the soft cap's derivative.
        memory: as for `Model.run`.

    Raises:
        BadInput: no target or two; text that is not one token; neurons of an MLP without neurons of its own (MoE).
    """
    _check(tokens, direction, by)
    batch = model.tokens(x)
    target = direction_target(model, direction) if tokens is None else token_target(model, tokens, wrong, len(batch))
    stream = _Stream(model, target, by)
    where = slice(None) if positions is None else positions  # all, which rows of different length cannot keep
    run = model.run(batch, stream.sites, logits=False, positions=where, memory=memory)
    assert run.columns is not None
    stream.run = run
    values, totals, parts = [], [], []
    for vectors, weight, ids in stream.reads():
        found = list(stream.contributions(vectors, ids))
        parts = [piece for part, _ in found for piece in part.split()]
        share = torch.cat([value for _, value in found], dim=-1)
        whole = stream.whole(vectors, ids)
        if capped and ids is not None:
            share, whole = share * stream.slope(whole)[..., None], model.logit_transform(whole / stream.linear)
        values.append(weight * share)
        totals.append(weight * whole)
    return DirectAttribution(
        torch.stack(values).sum(0).cpu(),
        parts,
        torch.stack(totals).sum(0).cpu(),
        target.label,
        model.name,
        run.tokens,
        run.columns,
        model.cfg.n_heads,
        capped,
    )


def _check(tokens: Any, direction: Any, by: str) -> None:
    if (tokens is None) == (direction is None):
        raise BadInput("say what to attribute: tokens=' Mary' (with wrong=' John' for a difference), or direction=")
    if by not in ("layer", "head", "neuron"):
        raise BadInput(f"by is 'layer', 'head' or 'neuron', not {by!r}")


@dataclass
class _Stream:
    """The written parts of one run's stream, up to where the target reads it."""

    model: Model
    target: Target
    by: By
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        model, end = self.model, self.target.site
        last = model.cfg.n_layers - 1
        self.end = Site("resid_post", last) if end is None else end
        assert self.end.layer is not None
        # (layer, branch) in the order in which they write
        upto = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2}[self.end.name]
        self.branches: list[tuple[int, Literal["attn", "mlp"]]] = [
            (layer, branch) for layer in range(self.end.layer) for branch in ("attn", "mlp")
        ] + [(self.end.layer, branch) for branch in ("attn", "mlp")[:upto]]
        inner = {
            "attn": "z" if self.by != "layer" else "attn_out",
            "mlp": "mlp_post" if self.by == "neuron" else "mlp_out",
        }
        try:
            self.sites = [Site("embed"), Site("resid_pre", 0), self.end] + [
                model.site((inner[branch], layer)) for layer, branch in self.branches
            ]
        except UnknownName as error:
            raise BadInput(f"{error}; attribute by='head' or by='layer' instead") from None
        self.final = Norm.of(
            model.hf.get_submodule(model.family.final_norm) if end is None else None, model.cfg.d_model
        )
        self.final = self.final.to(model.device)
        # the slope of what follows the unembedding at 0: its multiplier, the soft cap left aside
        step = torch.tensor([1e-3, -1e-3], dtype=torch.float64)
        ends = model.logit_transform(step)
        self.linear = 1.0 if self.target.tokens is None else float((ends[0] - ends[1]) / 2e-3)

    def reads(self) -> Iterator[tuple[Tensor, float, Tensor | None]]:
        """(vectors `row d_model`, weight, token ids or None) of each summand of the target."""
        for i, weight in enumerate(self.target.weights):
            ids = None if self.target.tokens is None else self.target.tokens[i].to(self.model.device)
            yield self.target.vectors[i] * self.linear, weight, ids

    @property
    def scale(self) -> Float[Tensor, "batch pos"]:
        return self.final.scale(self.run[self.end])[..., 0]

    def offset(self, u: Tensor, ids: Tensor | None) -> Float[Tensor, "row 1"]:
        """What no component writes: the final norm's bias and the unembedding's."""
        bias = (u * self.final.bias).sum(-1)
        return (bias if ids is None else bias + self.linear * self.model.b_U[ids].float())[:, None]

    def whole(self, u: Float[Tensor, "row d_model"], ids: Tensor | None) -> Float[Tensor, "batch pos"]:
        """The read-out of the whole stream, by the native norm's formula; the sum of the contributions."""
        x = self.run[self.end]
        return (self.final.frozen(x, self.final.scale(x)) * u[:, None]).sum(-1) + self.offset(u, ids)

    def slope(self, logits: Float[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """Derivative of the soft cap at the run's logits (1 without one), the multiplier left aside."""
        with torch.enable_grad():
            z = (logits / self.linear).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.model.logit_transform(z).sum(), z)
        return slope / self.linear

    def contributions(
        self, u: Float[Tensor, "row d_model"], ids: Tensor | None
    ) -> Iterator[tuple[Part, Float[Tensor, "batch pos n"]]]:
        """Every part with its columns of the result, in the order of the model."""
        run, v, scale = self.run, self.final.pull(u), self.scale
        embed = run["embed"].float()
        yield Part("embed"), (_dot(embed, v) / scale)[..., None]
        if self.model.family.positions is not None:
            yield Part("pos_embed"), (_dot(run["resid_pre", 0].float() - embed, v) / scale)[..., None]
        for layer, branch in self.branches:
            for part, value in self._branch(layer, branch, v):
                yield part, value / scale[..., None]
        offset = self.offset(u, ids)
        if bool(offset.any()):
            yield Part("bias"), offset[:, None].expand(*scale.shape, 1)

    def _branch(self, layer: int, branch: Literal["attn", "mlp"], v: Tensor) -> Iterator[tuple[Part, Tensor]]:
        model, run = self.model, self.run
        if self.by == "layer" or (branch == "mlp" and self.by == "head"):
            yield Part(branch, layer), _dot(run[f"{branch}_out", layer].float(), v)[..., None]
            return
        attention = branch == "attn"
        inner = run["z", layer].flatten(-2) if attention else run["mlp_post", layer]
        W = model.W_O[layer].flatten(0, 1) if attention else model.W_out[layer]
        b = (model.b_O if attention else model.b_out)[layer].float()
        module = model.branch_norm(layer, branch)
        norm = Norm.of(module, model.cfg.d_model).to(model.device)
        raw = inner.float() @ W.float() + b if module is not None else inner[..., :1]  # only its size is needed
        size = norm.scale(raw) / model.residual_multiplier
        pulled = norm.pull(v)
        read = pulled @ W.float().T  # row, then heads x d_head or neurons
        if attention:
            z, along = run["z", layer].float(), read.unflatten(-1, (model.cfg.n_heads, -1))
            yield Part("head", layer, model.cfg.n_heads), (z * along[:, None]).sum(-1) / size
        else:
            yield Part("neuron", layer, model.cfg.d_mlp), inner.float() * read[:, None] / size
        constant = (pulled * b).sum(-1)[:, None, None] / size
        constant = constant + (v * norm.bias).sum(-1)[:, None, None] * model.residual_multiplier
        if bool(constant.any()):
            yield Part(f"{branch} bias", layer), constant.expand(*size.shape[:-1], 1)


def _dot(x: Float[Tensor, "batch pos d_model"], v: Float[Tensor, "row d_model"]) -> Float[Tensor, "batch pos"]:
    return (x * v[:, None]).sum(-1)
