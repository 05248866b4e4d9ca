"""Gradients at slots: one backward pass gives the gradient of every slot's input in the residual stream.

A run has one stream, and many slots read it. The gradient at one slot alone is pulled back from what the slot computes
first (its query, key or value; what the MLP is given) through its projection and through the norm's Jacobian in that
run, so nothing is copied and no head has a stream of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import BadInput
from ..models import Site, TokenBatch
from ..models.running.moment import EditLike
from .graph import Part
from .wiring import INPUT, Wiring

# logits after the last token of `rows` runs -> one number a run
Measure = Callable[[Float[Tensor, "rows vocab"]], Float[Tensor, "rows"]]


@dataclass(frozen=True, eq=False)
class Slopes:
    """Gradients of a sum of runs' numbers, of `steps` runs of each prompt.

    Attributes:
        at: part of slots -> gradient at what it computes first (logits: at the last stream), `steps rows pos ...`.
        streams: place -> what slots read there, `steps rows pos d_model`.
        numbers: the number of each run, `steps rows`.
        inner: part of sources -> what it wrote in these runs, where that was asked for.
    """

    wiring: Wiring
    at: dict[Part, Tensor]
    streams: dict[Site, Tensor]
    numbers: Float[Tensor, "steps rows"]
    inner: dict[Part, Tensor]

    def of(
        self,
        part: Part,
        keep: Bool[Tensor, "rows pos"],
        weights: Sequence[float] | None = None,
        held: bool = False,
    ) -> Float[Tensor, "slot token d_model"]:
        """The gradient at the input of each of a part's slots, at the kept tokens, summed over steps with weights
        (default: their mean).

        held: the norm's scale does not move (RelP), so that the second term below is left out.

        With the norm's gain γ and scale σ, x̂ = centred(x) / σ, and a projection W, the pull-back of a gradient g is
        centred(γ W g - x̂ <γ x̂ W, g> / d) / σ; both sums over steps are taken before W and x̂ widen them.
        """
        g = self.at[part][:, keep]
        share = torch.tensor(weights or [1 / len(g)] * len(g), dtype=g.dtype, device=g.device)
        if part.kind == "logits":
            return torch.einsum("s,std->td", share, g)[None]
        branch = self.wiring.branches[part]
        norm, x = branch.pre, self.streams[branch.reads][:, keep].to(g)
        if norm.eps == float("inf"):
            scale, unit = torch.ones_like(x[..., :1]), torch.zeros_like(x)
        else:
            x = x - x.mean(-1, keepdim=True) if norm.centres else x
            scale = (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            unit = x / scale
        gain, width = norm.gain.to(g), x.shape[-1]
        by = share[:, None, None] / scale  # steps token 1
        if part.kind == "whole":
            straight = (by * g).sum(0)[None] * gain
            bent = (by * unit * ((unit * gain * g).sum(-1, keepdim=True) / width)).sum(0)[None]
        else:
            weight = self.wiring.weight(part)[0].to(g)
            straight = torch.einsum("thk,hdk->htd", (by[..., None] * g).sum(0), weight) * gain
            ahead = torch.einsum("std,hdk->sthk", unit * gain, weight)
            along = (ahead * g).sum(-1) * by / width  # steps token slot
            bent = torch.einsum("sth,std->htd", along, unit)
        pulled = straight if held else straight - bent
        return pulled - pulled.mean(-1, keepdim=True) if norm.centres else pulled


def slopes(
    wiring: Wiring,
    tokens: TokenBatch,
    embeds: Float[Tensor, "steps rows pos d_model"],
    measure: Measure,
    *,
    edits: Iterable[EditLike] = (),
    inner: bool = False,
) -> Slopes:
    """Gradients of runs of the same prompts that enter the first block with each of these streams.

    Raises:
        BadInput: a metric that carries no gradient.
    """
    steps, rows = embeds.shape[:2]
    graph = wiring.graph
    repeated = TokenBatch(tokens.ids.repeat(steps, 1), tokens.mask.repeat(steps, 1))
    sites = {part: wiring.site(part) for part in graph.reads}
    streams = list(dict.fromkeys(wiring.reads(part) for part in graph.reads))
    sent = {part: wiring.sent(part) for part in graph.writes} if inner else {}
    run = wiring.model.run(
        repeated,
        capture=list(dict.fromkeys([INPUT, *sites.values(), *streams, *sent.values()])),
        edits=edits,
        start=(INPUT, embeds.flatten(0, 1)),
        logits="last",
        grad=True,
    )
    assert run.logits is not None
    numbers = torch.as_tensor(measure(run.logits))
    if not numbers.requires_grad:
        raise BadInput("the metric carries no gradient; compute it from the logits with torch alone")
    parts = torch.autograd.grad(numbers.sum(), [run[site] for site in sites.values()], allow_unused=True)
    at = {
        part: (torch.zeros_like(run[site]) if value is None else value).unflatten(0, (steps, rows))
        for (part, site), value in zip(sites.items(), parts)
    }
    held = {site: run[site].detach().unflatten(0, (steps, rows)) for site in streams}
    wrote = wiring.inner(lambda site: run[site].detach().unflatten(0, (steps, rows))) if inner else {}
    return Slopes(wiring, at, held, numbers.detach().unflatten(0, (steps, rows)), wrote)
