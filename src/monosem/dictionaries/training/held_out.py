"""How good a dictionary is on text that it was not trained on, for its card."""

from typing import Any

import torch

from ...activations import harvest
from ...data import TextSource, as_store
from ...errors import BadInput
from ...models import Model
from ..dictionary import Dictionary
from ..evaluation import evaluate
from ..several import SeveralSites
from .architectures import ARCHITECTURES
from .config import TrainConfig


def held_out(
    config: TrainConfig,
    model: Model,
    second: Model | None,
    dictionary: Dictionary | SeveralSites,
    text: TextSource,
    quiet: bool,
) -> dict[str, Any]:
    """Of one site: all that `evaluate` measures. Of several: `fit_of_several`."""
    if isinstance(dictionary, SeveralSites):
        return fit_of_several(config, model, second, dictionary, text)
    result = evaluate(model, dictionary, text, tokens=config.held_out_tokens, context=config.context, quiet=quiet)
    return {name: value for name, value in result.to_dict().items() if name != "config"}


@torch.no_grad()
def fit_of_several(
    config: TrainConfig, model: Model, second: Model | None, dictionary: SeveralSites, text: TextSource
) -> dict[str, Any]:
    """fve: of each site that is rebuilt, 1 - Σ|y-ŷ|² / Σ|y-mean(y)|² over the counted tokens; `fve` is its mean.
    l0: mean active latents a token (of a cross-layer transcoder: of all layers together).

    Raises:
        BadInput: text of which every token is skipped.
    """
    architecture = ARCHITECTURES[config.architecture]
    store = as_store(model, text, config.context, tokens=config.held_out_tokens)
    tokens, active, sums = 0, 0, torch.zeros(2, len(config.writes), dtype=torch.float64)
    totals: list[Any] = [0] * len(config.writes)
    for batch in harvest(model, store, config.sites, batch_size=config.batch_size, second=second):
        if not len(batch):
            continue
        rows = [batch[site].float() for site in config.sites]
        rebuilt, codes = architecture.rebuild(dictionary, rows[: len(config.reads)])
        tokens, active = tokens + len(batch), active + sum(int((one.values != 0).sum()) for one in codes)
        written = rows[-len(config.writes) :]
        for n, (y, guess) in enumerate(zip(written, rebuilt.split([y.shape[1] for y in written], dim=1))):
            y = y.double()
            totals[n] = totals[n] + y.sum(0)
            sums[:, n] += torch.stack([(y - guess).square().sum(), y.square().sum()]).cpu()
    if not tokens:
        raise BadInput("no token of this held-out text counts; give other text")
    means = torch.stack([total @ total / tokens for total in totals]).cpu()
    fve = 1 - sums[0] / (sums[1] - means)
    by_site = dict(zip(config.writes, fve.tolist()))
    return {"tokens": tokens, "fve": float(fve.mean()), "fve_by_site": by_site, "l0": active / tokens}
