"""`monosem lens train`: a tuned lens from text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ...errors import BadInput
from ..application import resumable
from ..options import MODELS, TEXTS, Machine, Printing, Seed, Set, Text, fields, option
from ..output import as_json, frame, notice

if TYPE_CHECKING:
    from ...lenses import TuneConfig

# what is asked of a laptop; --paper has the recipe of the paper instead
QUICK = {"steps": 250, "batch_tokens": 4096, "context": 256, "optimizer": "adam", "init": "regression"}


@dataclass(frozen=True)
class Training:
    """The fields of the config that are set most; `None` is the default."""

    rank: Annotated[
        int | None, option("--rank", "N", "Rank of the translators (default: full; 0: a bias alone).", min=0)
    ] = None
    steps: Annotated[int | None, option("--steps", "N", "Optimiser steps (default: 250).", min=1)] = None
    batch_tokens: Annotated[
        int | None, option("--batch-tokens", "N", "Tokens of text a step (default: 4096).", min=2)
    ] = None
    cells: Annotated[
        int | None, option("--cells", "N", "Tokens of a step that are read out (default: all).", min=1)
    ] = None
    context: Annotated[int | None, option("--context", "N", "Tokens a window (default: 256).", min=2)] = None
    optimizer: Annotated[str | None, option("--optimizer", "adam|sgd", "How to descend (default: adam).")] = None
    lr: Annotated[float | None, option("--lr", "X", "Peak learning rate (default: by the optimiser).")] = None
    init: Annotated[
        str | None,
        option("--init", "regression|zero", "Start from least squares or the logit lens (default: regression)."),
    ] = None
    paper: Annotated[
        bool, option("--paper", None, "The paper's recipe: SGD from zero, 250 steps of 262,144 tokens.")
    ] = False
    repeat: Annotated[bool, option("--repeat", None, "Read the text again and again if it is too short.")] = False
    seed: Seed = 0
    set: Set = None

    def config(self) -> "TuneConfig":
        """Raises `BadInput`: an unknown field, a value out of its range, or `--paper` with a part of another recipe."""
        from ...lenses import TuneConfig

        recipe: dict[str, Any] = {name: getattr(self, name) for name in (*QUICK, "lr")}
        chosen = {name: value for name, value in recipe.items() if value is not None}
        if self.paper and chosen:
            raise BadInput(f"--paper sets {', '.join(recipe)}; leave --{next(iter(chosen)).replace('_', '-')} out")
        settings = {} if self.paper else QUICK | chosen
        settings |= {"rank": self.rank, "cells": self.cells, "repeat": self.repeat, "seed": self.seed}
        return TuneConfig.parse(settings | fields(self.set))


def train(
    model: Annotated[str, option("--model", "MODEL", f"The model: {MODELS}.")],
    text: Text,
    out: Annotated[Path, option("--out", "DIR", "Folder of the run; the result is DIR/lens.")],
    training: Training,
    machine: Machine,
    printing: Printing,
    held_out: Annotated[list[Path] | None, option("--held-out", "PATH", f"Measure the result here. {TEXTS}")] = None,
) -> None:
    """Train a tuned lens for a model.

    One affine translator a layer learns to predict what the model will say. Interrupted (also killed), the same command
    goes on where it stopped.

    Example: monosem lens train --model smollm2 --text books/ --rank 64 --steps 200 --cells 512 --out runs/lens
    """
    from ...data import TokenStore, corpus
    from ...lenses import TunedLens

    config = training.config()
    with resumable(f"what is done is kept in {out}"):
        lm = machine.load(model, printing.silent)
        wanted = config.steps * config.windows * config.context
        documents = corpus(lm, text, seed=config.seed)
        store = TokenStore.build(lm, documents, config.context, tokens=wanted, quiet=printing.silent)
        trained = TunedLens.fit(lm, store, config, folder=out, quiet=printing.silent)
    if not printing.silent:
        notice(f"{trained}\nlook through it: monosem lens tuned {model} PROMPT --lens {out / 'lens'}")
    if held_out:
        evaluation = trained.evaluate(lm, corpus(lm, held_out), context=config.context, quiet=printing.silent)
        columns = ["site", *(f"{arm}_{name}" for name in ("kl", "top1", "entropy") for arm in ("tuned", "logit"))]
        if printing.json:
            as_json(evaluation.to_dict())
        else:
            frame(evaluation.table[columns], f"on {evaluation.tokens:,} tokens of held-out text, nats")
    if not printing.json:
        print(out / "lens")
