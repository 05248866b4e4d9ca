"""How good a tuned lens is: layer by layer, beside the logit lens, and how well translators fit other layers."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...data import TextSource, as_store
from ...errors import BadInput
from ...files import write_json
from ...models import Model, Site, TokenBatch
from ...plots import Figure, heatmap, lines
from ...progress import Meter
from ...results import Result, analysis
from ...statistics import clustered_error
from ..grid import layer_axis
from ..measures import Measure, agreement, entropy, kl, log_probability
from ..states import Logits, States, read_out, states_of
from .translators import Translators

ARMS = ("tuned", "logit")
TOKENS = 16_384  # of held-out text, from its beginning


@dataclass(frozen=True, eq=False)
class TunedEvaluation(Result):
    """Means over tokens of held-out text.

    Attributes:
        layers: the table: one row a translator and a last one for the model itself. For each arm ("tuned", "logit"):
            `kl` to the model's prediction (nats), `ce` of the text's next token (nats), `bits_per_byte` (the same per
            byte of text), `entropy` of the lens (nats), `top1`: how often its likeliest token is the model's. Each with
            its standard error `<column>_se`, by windows of text, whose tokens are not independent.
        transfer: KL to the model of translator i (row) used on the states of layer j (column), nats; None if not asked.
        tokens: cells that were read out.
        sample: how they were drawn: tokens of text, cells, context, seed.
    """

    layers: pd.DataFrame = field(repr=False)
    transfer: Float[Tensor, "translator layer"] | None = field(repr=False)
    tokens: int
    sample: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        return self.layers

    def plot(self, value: str = "kl") -> Figure:
        """The tuned and the logit lens over layers."""
        rows = self.table.iloc[:-1]
        column = lambda name: rows[name].to_numpy()  # noqa: E731
        curves = {f"{arm} lens": (column(f"{arm}_{value}"), column(f"{arm}_{value}_se")) for arm in ARMS}
        labels, x_title = layer_axis([Site("resid_pre", layer) for layer in rows.layer])
        title = f"{value} on {self.tokens:,} tokens of held-out text"
        return lines(curves, labels, x_title=x_title, y_title=value, title=title)

    def plot_transfer(self) -> Figure:
        """The layer-transfer matrix. Raises `BadInput` when it was not asked for."""
        if self.transfer is None:
            raise BadInput("the transfer matrix was not computed; evaluate with transfer=True")
        names = [str(layer) for layer in range(len(self.transfer))]
        return heatmap(
            self.transfer.log10(),
            names,
            names,
            x_title="states of layer",
            y_title="translator",
            diverging=False,
            less_is_better=True,
            title="KL to the model's prediction (log10 nats)",
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "config": self.sample,
            "layers": self.table.to_dict(orient="records"),
            "transfer": None if self.transfer is None else self.transfer.tolist(),
        }

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """Everything as .json; else the picture (.html) or the table (.csv, .parquet)."""
        if Path(path).suffix.lower() != ".json":
            return super().save(path, **plot)
        write_json(path, self.to_dict())
        return Path(path)


class Translating(Protocol):
    """A tuned lens."""

    @property
    def translators(self) -> Translators: ...

    def check(self, model: Model) -> None: ...


@analysis
def evaluate(
    lens: Translating,
    model: Model,
    texts: TextSource,
    *,
    tokens: int = TOKENS,
    cells: int | None = 2048,
    context: int = 256,
    transfer: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> TunedEvaluation:
    """Measure a tuned lens, and the logit lens beside it, on text that it was not trained on.

    Args:
        texts: documents, a `TokenStore`, or windows of token ids.
        tokens: how much of the text to read, from its beginning.
        cells: how many of these tokens to read out, drawn at random (None: all): the unembedding is what costs.
        transfer: also every translator on the states of every layer, on an eighth of the cells.

    Raises:
        Mismatch: the lens belongs to another model. BadInput: too little text.
    """
    lens.check(model)
    translators = lens.translators.to(model.device)
    store = as_store(model, texts, context, tokens=max(tokens, context))
    windows = store[torch.arange(min(len(store), max(1, tokens // store.context))).numpy()]
    total = windows.numel()
    draw = torch.Generator().manual_seed(seed)
    kept = torch.zeros(total, dtype=torch.bool)
    kept[torch.randperm(total, generator=draw)[: cells or total]] = True
    kept = kept.view(windows.shape)
    measured: list[Tensor] = []
    crossed: list[Tensor] = []
    with Meter("evaluate lens", int(kept.sum()), "cell", quiet) as meter:
        for start in range(0, len(windows), 4):
            part = slice(start, start + 4)
            if not bool(kept[part].any()):
                continue
            states = _states(model, windows[part], kept[part])
            measured.append(_measured(translators, states))
            if transfer:
                crossed.append(_crossed(translators, states, max(1, len(states) // 8)))
            meter.advance(len(states))
    every = torch.cat(measured, -1)  # arm measure layer cell
    windows_of = kept.nonzero()[:, 0]
    means, errors = every.nanmean(-1), clustered_error(every, windows_of)
    between = torch.stack([matrix.mean(-1) for matrix in crossed]).mean(0) if transfer else None
    sample = {"tokens": total, "cells": int(kept.sum()), "context": store.context, "seed": seed}
    return TunedEvaluation(_table(means, errors, _bytes_per_token(model, windows)), between, int(kept.sum()), sample)


MEASURED: tuple[str, ...] = ("kl", "ce", "entropy", "top1")


def _states(model: Model, ids: Tensor, kept: Tensor) -> States:
    layers = model.cfg.n_layers
    sites = [Site("resid_pre", layer) for layer in range(layers)] + [Site("resid_post", layers - 1)]
    states = states_of(model, TokenBatch(ids, torch.ones_like(kept)), sites)
    where = kept.flatten().to(states.final.device)
    by_site = {site: h[where] for site, h in states.by_site.items()}
    return States(model, states.tokens, kept.to(states.chosen.device), by_site, states.final[where])


def _measured(translators: Translators, states: States) -> Float[Tensor, "arm measure layer cell"]:
    likelihood = log_probability(states.next_ids())
    measures: dict[str, Measure] = {"kl": kl, "ce": lambda view: -likelihood(view), "entropy": entropy}
    measures["top1"] = agreement
    both = states.lens(translators.translate) + states.lens()
    seen = read_out(both, states.prediction, len(states), states.model.cfg.d_vocab, measures)
    grid = torch.stack([seen.measures[name] for name in MEASURED])  # measure (arm layer) cell
    return grid.unflatten(1, (2, -1)).transpose(0, 1)


def _crossed(translators: Translators, states: States, cells: int) -> Float[Tensor, "translator layer cell"]:
    """KL of every translator on every layer's states, for the first cells."""
    model = states.model
    inputs = [h[:cells] for h in list(states.by_site.values())[:-1]]

    def at(translator: int, h: Tensor) -> Logits:
        return lambda part: model.unembed(translators[translator](h[part]))

    every = [at(translator, h) for translator in range(len(translators)) for h in inputs]
    seen = read_out(every, states.prediction, cells, model.cfg.d_vocab, {"kl": kl})
    return seen.measures["kl"].unflatten(0, (len(translators), -1))


def _table(
    means: Float[Tensor, "arm measure layer"], errors: Float[Tensor, "arm measure layer"], bytes_per_token: float
) -> pd.DataFrame:
    layers = means.shape[-1]
    data: dict[str, Any] = {
        "site": [f"resid_pre.{layer}" for layer in range(layers - 1)] + [f"resid_post.{layers - 2}"],
        "layer": list(range(layers)),
    }
    for end, numbers in (("", means), ("_se", errors)):
        for arm, grid in zip(ARMS, numbers):
            values = dict(zip(MEASURED, grid))
            values["bits_per_byte"] = values["ce"] / math.log(2) / bytes_per_token
            data |= {f"{arm}_{name}{end}": value.tolist() for name, value in values.items()}
    return pd.DataFrame(data)


def _bytes_per_token(model: Model, windows: Tensor) -> float:
    """UTF-8 bytes of text a predicted token (the first of a window is not predicted); NaN without a tokenizer."""
    if model.tokenizer is None:
        return float("nan")
    texts = [model.text(row[1:].tolist()) for row in windows]
    return sum(len(text.encode()) for text in texts) / (windows.shape[0] * (windows.shape[1] - 1))
