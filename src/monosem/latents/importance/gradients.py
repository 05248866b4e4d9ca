"""How latents depend on tokens and on earlier latents, and logits on latents: derivatives through the whole model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...components.targets import Tokens, token_target
from ...dictionaries import Dictionary
from ...errors import BadInput
from ...models import Model, Run, Site
from ...models.numbers import whole_numbers
from ...results import Result, analysis
from .codes import counted, one_prompt, written_of

INPUT = Site("resid_pre", 0)


@dataclass(frozen=True, eq=False)
class LatentGradients(Result):
    """A row a target and source: `gradient`, and `effect`, gradient times what the source has.

    Targets are activations of latents, or logits; sources are tokens (what enters the first block at their position:
    `gradient` is then the length of the gradient) or activations of earlier latents.

    Attributes:
        effects, gradients: `target source`. targets, sources: a row each, in that order.
    """

    effects: Float[Tensor, "target source"] = field(repr=False)
    gradients: Float[Tensor, "target source"] = field(repr=False)
    targets: pd.DataFrame = field(repr=False)
    sources: pd.DataFrame = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by: ClassVar[str | None] = "effect"
    either_way: ClassVar[bool] = True

    @property
    def table(self) -> pd.DataFrame:
        frame = self.targets.add_prefix("target_").merge(self.sources.add_prefix("source_"), how="cross")
        return frame.assign(gradient=self.gradients.flatten().tolist(), effect=self.effects.flatten().tolist())


@analysis
def latent_gradients(
    model: Model,
    x: Any,
    target: Dictionary | Literal["logits"],
    source: Dictionary | Literal["tokens"] = "tokens",
    *,
    latents: Sequence[int] | None = None,
    position: int = -1,
    tokens: Tokens | None = None,
    wrong: Tokens | None = None,
    everywhere: bool = False,
) -> LatentGradients:
    """The gradient of latents, or of logits, with respect to tokens or to earlier latents, in the run of one prompt.

        ms.latents.latent_gradients(model, prompt, sae, latents=[381])               # token -> latent
        ms.latents.latent_gradients(model, prompt, late, early)                      # latent -> latent
        ms.latents.latent_gradients(model, prompt, "logits", sae, tokens=" Paris")   # latent -> logit

    Everything between moves: patterns, norms and MLPs (graphs hold the first two). The error of the source stays.

    Args:
        x: one prompt. target: a dictionary, whose `latents` at `position` are asked for (None: all that are active
            there), or "logits" (`tokens`, less the logit of `wrong`; None: the likeliest one), read there as well.
        everywhere: also latents of the source at tokens that it was not trained on (the first one, outliers), where
            they are huge and mean nothing.

    Raises:
        BadInput: several prompts; a source that is not computed before the target, or is the target; latents that are
            not active there, whose gradient is 0. Mismatch: dictionaries of another model.
    """
    batch, at = one_prompt(model, x, position, "gradients of latents")
    dictionaries = [one for one in (target, source) if not isinstance(one, str)]
    for one in dictionaries:
        one.check(model)
    _check_order(model, target, source)
    place = source.site_out if isinstance(source, Dictionary) else INPUT
    reads = {one.site for one in dictionaries}
    run = model.run(batch, capture=list(dict.fromkeys([INPUT, place, *sorted(reads, key=str)])), grad=True)
    with torch.enable_grad():
        targets, values = _targets(model, run, target, latents, at, tokens, wrong)
    slopes = []
    for value in values:
        (slope,) = torch.autograd.grad(value, run[place], retain_graph=True, allow_unused=True)
        slopes.append(torch.zeros_like(run[place][0]) if slope is None else slope[0])
    with torch.no_grad():
        slope = torch.stack(slopes).flatten(2)
        sources, gradients, effects = _sources(model, run, source, slope, everywhere)
    return LatentGradients(effects, gradients, targets, sources)


def _check_order(model: Model, target: Any, source: Any) -> None:
    if isinstance(target, str) and target != "logits":
        raise BadInput(f"target is a dictionary or 'logits', not {target!r}")
    if isinstance(source, str) and source != "tokens":
        raise BadInput(f"source is a dictionary or 'tokens', not {source!r}")
    if isinstance(target, Dictionary) and isinstance(source, Dictionary):
        written, read = source.site_out, target.site
        if written == read or model.depth(written) > model.depth(read):
            raise BadInput(f"{source.name} writes {written}, which does not come before {read}, which the target reads")


def _targets(
    model: Model, run: Run, target: Any, latents: Any, position: int, tokens: Tokens | None, wrong: Tokens | None
) -> tuple[pd.DataFrame, Float[Tensor, "target"]]:
    if isinstance(target, str):
        assert run.logits is not None
        logits = run.logits[0, position]
        asked = [int(logits.argmax())] if tokens is None else tokens
        found = token_target(model, asked, wrong, run.tokens)
        assert found.tokens is not None
        ids = found.tokens.to(logits.device)
        value = sum(weight * logits[row[0]] for weight, row in zip(found.weights, ids))
        return pd.DataFrame({"node": [found.label], "position": [position]}), torch.stack([torch.as_tensor(value)])
    active = target.encode(run[target.site].flatten(2)).dense()[0, position]
    if latents is None:
        ids = active.detach().nonzero()[:, 0]
    else:
        ids = torch.as_tensor(whole_numbers(latents, "latents")).long().flatten().to(active.device)
        silent = [one for one in ids.tolist() if not 0 <= one < target.width or float(active.detach()[one]) == 0]
        if silent:
            raise BadInput(
                f"latent {silent[0]} of {target.name} is not active at token {position} "
                f"({model.str_token(int(run.tokens.ids[0, position]))!r}): its gradient is 0 there"
            )
    if not len(ids):
        raise BadInput(f"no latent of {target.name} is active at token {position}")
    frame = pd.DataFrame({"node": [f"latent {one}" for one in ids.tolist()], "position": position})
    return frame.assign(activation=active[ids].tolist()), active[ids]


def _sources(
    model: Model, run: Run, source: Any, slopes: Float[Tensor, "target pos d"], everywhere: bool
) -> tuple[pd.DataFrame, Tensor, Tensor]:
    """Rows of sources, gradients and effects, `target source`."""
    words = [model.str_token(one) for one in run.tokens.ids[0].tolist()]
    if isinstance(source, str):
        stream = run[INPUT][0].to(slopes)
        frame = pd.DataFrame({"node": "token", "position": range(len(words)), "token": words})
        return frame, slopes.norm(dim=-1), (slopes * stream).sum(-1)
    written = written_of(source, run)[0]
    scale = source.token_scale(run[source.site].flatten(2))
    shown = written if everywhere else written * counted(source, run, model)[0, :, None]
    positions, indices = shown.nonzero(as_tuple=True)
    slopes = slopes.to(written)
    along = (slopes[:, positions] * source.decoder_rows(indices).to(written)).sum(-1)
    active, by = written[positions, indices], torch.ones_like(written[positions, 0])
    if scale is not None:
        by = scale[0, positions, 0].to(written)
    frame = pd.DataFrame({"node": [f"latent {one}" for one in indices.tolist()], "position": positions.tolist()})
    frame = frame.assign(token=[words[one] for one in positions.tolist()], activation=(active / by).tolist())
    return frame, along * by, along * active
