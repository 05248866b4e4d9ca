"""Direct attribution: what each part of a model writes straight into a logit, a logit difference or a direction.

The stream before the final norm is a sum of what embedding, attention heads, MLPs (or single neurons) and biases wrote.
With the norms' scales frozen as the run had them, the read-out is linear, so the contributions add up to it exactly:

    Σ contributions = logit before the soft cap         (float32: to 1e-4)

- A post-norm between a branch and the stream (Gemma 2 and 3, OLMo 2) is linear too with its scale frozen; its gain and
  scale go into the branch's contributions. Residual and logit multipliers (Granite, Cohere) do as well.
- LayerNorms subtract the mean, and so is it done with the direction. Biases, of norms and of projections, are parts of
  their own: a head's share holds nothing that does not depend on what the head read.
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

from ..errors import BadInput
from ..models import Branch, Model, Norm, Run, Site
from ..results import analysis
from .attribution import DirectAttribution, Part
from .targets import Target, Tokens, direction_target, token_target

By = Literal["layer", "head", "neuron"]
SPLIT = {"layer": (), "head": ("head",), "neuron": ("head", "neuron")}  # what is taken apart into units


@analysis
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
        tokens: whose logit: text of one token (at "last": after the prompt) or an id; one for all rows, or for each.
        wrong: tokens whose logit is subtracted.
        direction: instead of tokens: a `Direction` or `(site, vector)` with a site in the stream; what the components
            before that site write along v̂.
        by: "layer": one part for each attention and MLP. "head": attention by head. "neuron": also MLPs by neuron.
        positions: which tokens of each row to read at: "last", an index, a list or a slice (as for `Model.run`), None
            for all; as many in every row.
        capped: multiply by the soft cap's derivative.
        memory: as for `Model.run`.

    Raises:
        BadInput: no target or two; text that is not one token; neurons of an MLP without neurons of its own (MoE);
            edits of `model.editing(...)` that no part holds.
    """
    _check(tokens, direction, by)
    batch = model.tokens(x)
    end = positions == "last"
    target = direction_target(model, direction) if tokens is None else token_target(model, tokens, wrong, batch, end)
    stream = _Stream(model, target, by)
    where = slice(None) if positions is None else positions  # all, which rows of different length cannot keep
    run = stream.run = model.run(batch, stream.sites, logits=False, positions=where, memory=memory)
    assert run.columns is not None
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
        self.branches = model.written_before(self.end)
        self.sites = [Site("embed"), Site("resid_pre", 0), self.end, *(self.read_site(one) for one in self.branches)]
        nothing = Norm.of(None, model.cfg.d_model, model.device)  # a direction is read as it stands
        self.final = model.final_norm if end is None else nothing
        self.linear = 1.0 if self.target.tokens is None else model.logit_slope
        for edit in model.ambient_edits:
            if not model.is_held(edit.site, end, self.read_site):
                raise BadInput(
                    f"{edit}, of model.editing(...), changes what no part holds, so the parts would not add up: leave "
                    "that block, or edit what heads, neurons or branches write"
                )

    def splits(self, branch: Branch) -> bool:
        """Whether the branch's units are parts of their own. Raises `BadInput` for neurons that cannot be read."""
        if branch.units is None and self.by == "neuron":
            raise BadInput(
                f"{branch.name} of layer {branch.layer} of {self.model.name} is a {branch.kind}, whose neurons cannot "
                "be read; attribute by='head' or by='layer' instead"
            )
        return branch.units in SPLIT[self.by]

    def read_site(self, branch: Branch) -> Site:
        found = branch.inner if self.splits(branch) else branch.out
        assert found is not None
        return found

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
        with torch.inference_mode(False), torch.enable_grad():
            z = (logits / self.linear).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.model.logit_transform(z).sum(), z)
        return slope / self.linear

    def contributions(
        self, u: Float[Tensor, "row d_model"], ids: Tensor | None
    ) -> Iterator[tuple[Part, Float[Tensor, "batch pos n"]]]:
        """Every part with its columns of the result, in the order of the model."""
        run, v, scale = self.run, self.final.pull(u), self.scale
        plain = not self.model.entry  # behind a norm, what enters the first block is one part
        embed = run["embed"].float() if plain else run["resid_pre", 0].float()
        first = v * self.model.carried(None, self.end)
        yield Part("embed"), (_dot(embed, first) / scale)[..., None]
        if plain and self.model.adds_positions:
            yield Part("pos_embed"), (_dot(run["resid_pre", 0].float() - embed, first) / scale)[..., None]
        for branch in self.branches:
            for part, value in self._branch(branch, v * self.model.carried(branch.layer, self.end)):
                yield part, value / scale[..., None]
        offset = self.offset(u, ids)
        if bool(offset.any()):
            yield Part("bias"), offset[:, None].expand(*scale.shape, 1)

    def _branch(self, branch: Branch, v: Float[Tensor, "row d_model"]) -> Iterator[tuple[Part, Tensor]]:
        """Direction first: the share of a unit is its activation times what its weights have along the direction."""
        value = self.run[self.read_site(branch)].float()
        if not self.splits(branch):
            yield Part(branch.name, branch.layer), _dot(value, v)[..., None]
            return
        size, pulled = branch.size(value), branch.pull(v)
        read = pulled @ branch.weight().flatten(0, -2).float().T  # row, then heads x d_head or neurons
        if branch.units == "head":
            along = read.unflatten(-1, (branch.n_units, -1))
            share = (value * along[:, None]).sum(-1) / size
        else:
            share = value * read[:, None] / size
        own = branch.units == "head" and not branch.slot.mixer.row.attends  # heads of a memory have another number
        kind = f"{branch.name} head" if own else str(branch.units)
        yield Part(kind, branch.layer, branch.n_units), share
        constant = (pulled * branch.bias().float()).sum(-1)[:, None, None] / size
        constant = constant + (v * branch.written_bias).sum(-1)[:, None, None]
        if bool(constant.any()):
            yield Part(f"{branch.name} bias", branch.layer), constant.expand(*size.shape[:-1], 1)


def _dot(x: Float[Tensor, "batch pos d_model"], v: Float[Tensor, "row d_model"]) -> Float[Tensor, "batch pos"]:
    return (x * v[:, None]).sum(-1)
