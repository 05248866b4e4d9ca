"""Through which latents a direction acts: what each changes when the direction is taken out of the whole model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..dictionaries import Dictionary
from ..edits import Edit, ablate_writes, patch
from ..errors import BadInput
from ..latents.pooling import prompt_runs
from ..models import Model
from ..models.numbers import count
from ..models.transformerlens.text import single_token
from ..results import Tabled, analysis
from ..statistics import standard_error
from .direction import Direction

Metric = Callable[[Float[Tensor, "prompts vocab"]], Float[Tensor, "prompts"]]


@dataclass(frozen=True)
class LatentAttributions(Tabled):
    """`table`: latent; `attribution` (mean over prompts) with `attribution_se`; `decoder_cos`, cosine of its row with
    the direction; `rate`, share of prompts on which it fires, with the direction or without.

    `config["metric"]` has the mean metric with the direction (`clean`) and without it (`ablated`): the attributions of
    all latents and what the dictionary does not reconstruct add up to about the difference.

    Attributes:
        values: of each prompt, `prompt latent`, in the order of the table.
    """

    values: Float[Tensor, "prompt latent"] = field(default_factory=lambda: torch.empty(0), repr=False)

    ranked_by: ClassVar[str | None] = "attribution"
    either_way: ClassVar[bool] = True


@analysis
def latent_attributions(
    model: Model,
    dictionary: Dictionary,
    direction: Direction,
    prompts: Sequence[str],
    metric: Metric | Sequence[str | int],
    *,
    steps: int = 10,
    candidates: int | None = None,
    batch_size: int = 16,
) -> LatentAttributions:
    """Attribution of a direction's effect to latents: Σ over tokens of (f - f°) · ∂metric/∂f, where f° are activations
    with the direction ablated at every write into the stream.

    The gradient is a mean over `steps` points between both activations of the dictionary's site (midpoints), as
    Refusal-SAE (SenticNet) takes it; `steps=1` takes it in the clean run. What follows the site runs without
    ablation, so that only what the site carries counts.

    Args:
        metric: of logits after the last token, one number a prompt; or tokens with which a behaviour begins, such as
            [" I"]: their logit (log Σ exp) less the logit of the token that the ablated model would say.
        candidates: only so many latents, whose decoder rows have the largest cosines with the direction (either way).

    Raises:
        BadInput: latents that are not written into the stream, no prompts, or one without a token that counts.
        Mismatch: a dictionary or direction of another model.
    """
    direction.check(model)
    if not (dictionary.has_site_out and dictionary.site_out.shape == ("position", "d_model")):
        raise BadInput("latents of this dictionary are not written into the stream, where the direction is")
    rows = dictionary.W_dec.detach().float().to(model.device)
    cosines = torch.nn.functional.normalize(rows, dim=1) @ direction.unit.to(rows)
    n = len(rows) if candidates is None else min(count(candidates, "candidates"), len(rows))
    ids = cosines.abs().topk(n).indices if candidates is not None else torch.arange(n, device=rows.device)
    wanted = [single_token(model, one) for one in metric] if not callable(metric) else None
    job = _Job(model, dictionary, ablate_writes(model, direction.vector), ids, metric, wanted, count(steps, "steps"))
    starts = range(0, len(prompts), batch_size)
    parts = [job.batch(list(prompts[start : start + batch_size])) for start in starts]
    if not parts:
        raise BadInput("latent_attributions needs prompts that show what the direction does")
    every, fires, ends = (torch.cat(part) for part in zip(*parts))
    with_, less = ends.double().mean(0).tolist()
    table = pd.DataFrame(
        {
            "latent": ids.cpu(),
            "attribution": every.mean(0),
            "attribution_se": standard_error(every.T),
            "decoder_cos": cosines[ids].cpu(),
            "rate": fires.double().mean(0),
        }
    )
    order = table["attribution"].abs().sort_values(ascending=False, kind="stable").index
    config = {"metric": {"clean": with_, "ablated": less}, "prompts": len(every)}
    return LatentAttributions(table.loc[order].reset_index(drop=True), config, every[:, torch.tensor(order.to_numpy())])


@dataclass(frozen=True)
class _Job:
    model: Model
    dictionary: Dictionary
    away: list[Edit]
    ids: Int[Tensor, "latents"]
    metric: Any
    tokens: list[int] | None
    steps: int

    @torch.no_grad()
    def batch(self, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Attributions and whether a latent fires, `prompt latent`; the metric with and without the direction."""
        model, dictionary = self.model, self.dictionary
        counted = torch.cat([mask for _, mask in prompt_runs(model, dictionary, prompts)])[..., None]
        sites = [dictionary.site, dictionary.site_out]
        clean, without = (model.run(prompts, capture=sites, edits=edits, logits="last") for edits in ((), self.away))
        said, unsaid = (cast(Tensor, run.logits) for run in (clean, without))
        metric = self.metric if self.tokens is None else _begins(self.tokens, unsaid)
        along = self._slope(prompts, without[sites[1]], clean[sites[1]], metric) @ dictionary.decoder_rows(self.ids).T
        x, x0 = (run[dictionary.site] for run in (clean, without))
        if (scale := dictionary.token_scale(x)) is not None:
            along = along * scale
        f, f0 = (dictionary.latent_activations(one, self.ids).float() for one in (x, x0))
        effects = ((f - f0) * along * counted.to(f.device)).double().sum(1)
        fires = (((f != 0) | (f0 != 0)) & counted.to(f.device)).any(1)
        return effects.cpu(), fires.cpu(), torch.stack([metric(said), metric(unsaid)], 1).cpu()

    @torch.enable_grad()
    def _slope(self, prompts: list[str], start: Tensor, end: Tensor, metric: Metric) -> Float[Tensor, "prompt pos d"]:
        """The mean gradient of the metric at the site, between both of its activations."""
        site, total = self.dictionary.site_out, torch.zeros_like(start, dtype=torch.float32)
        for step in range(self.steps):
            share = 1.0 if self.steps == 1 else (step + 0.5) / self.steps
            between = torch.lerp(start.float(), end.float(), share).to(start)
            run = self.model.run(prompts, capture=site, edits=patch(site, between), logits="last", grad=True)
            value = metric(cast(Tensor, run.logits))
            if not value.requires_grad:
                raise BadInput("the metric carries no gradient; compute it from the logits with torch alone")
            total += torch.autograd.grad(value.sum(), run[site])[0].float() / self.steps
        return total


def _begins(tokens: list[int], ablated: Float[Tensor, "prompts vocab"]) -> Metric:
    said = ablated.argmax(-1, keepdim=True)
    return lambda logits: logits[:, tokens].logsumexp(-1) - logits.gather(1, said)[:, 0]
