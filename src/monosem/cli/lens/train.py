"""`monosem lens train`: a tuned lens from text."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ...errors import BadInput, check_name
from ...terminal import notice
from ..application import resumable
from ..options import MODELS, TEXTS, Corpus, OnModel, Seed, Set, fields, flag, option
from ..output import as_json, frame, line

if TYPE_CHECKING:
    from ...lenses import TuneConfig

# what is asked of a laptop; --paper has the recipe of the paper instead
QUICK = {"steps": 250, "batch_tokens": 4096, "context": 256, "optimizer": "adam", "init": "regression"}

Init = Annotated[
    str | None, option("regression|zero", "Start from least squares or the logit lens (default: regression).")
]


Kind = Annotated[str, option("NAME", "tuned, jacobian, future, head or soft-prompt.")]


@dataclass(frozen=True, kw_only=True)
class Training(OnModel):
    """The model, and the fields of the config that are set most; `None` is the default."""

    model: Annotated[str, option("MODEL", f"The model: {MODELS}.")]
    rank: Annotated[int | None, option("N", "Rank of the translators (default: full; 0: a bias alone).", min=0)] = None
    steps: Annotated[int | None, option("N", "Optimiser steps (default: 250).", min=1)] = None
    batch_tokens: Annotated[int | None, option("N", "Tokens of text a step (default: 4096).", min=2)] = None
    cells: Annotated[int | None, option("N", "Tokens of a step that are read out (default: all).", min=1)] = None
    context: Annotated[int | None, option("N", "Tokens a window (default: 256).", min=2)] = None
    optimizer: Annotated[str | None, option("adam|sgd", "The optimiser (default: adam).")] = None
    lr: Annotated[float | None, option("X", "Peak learning rate (default: by the optimiser).")] = None
    init: Init = None
    paper: Annotated[bool, flag("The paper's recipe: SGD from zero, 250 steps of 262,144 tokens.")] = False
    repeat: Annotated[bool, flag("Read the text repeatedly if it is too short.")] = False
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
    corpus: Corpus,
    out: Annotated[Path, option("DIR", "Folder of the run; the result is DIR/lens.")],
    training: Training,
    held_out: Annotated[list[Path] | None, option("PATH", f"Measure the result here. {TEXTS}")] = None,
    kind: Kind = "tuned",
) -> None:
    """Train a lens for a model: a tuned one, or of another --kind.

    One affine translator a layer learns to predict what the model will say. Interrupted (also killed), the same command
    goes on where it stopped, as for a Jacobian lens; future, head and soft-prompt lenses are made in one go and begin
    again.

    Other kinds have settings of their own, by --set: windows and length (of the text); layers, probes (jacobian);
    layers, offsets (future); layer, steps, offsets (soft-prompt); copying=token or concept, heads (head).

    Example: monosem lens train --kind jacobian --model smollm2 --text books/ --out runs/jacobian

    Example: monosem lens train --model smollm2 --text books/ --rank 64 --steps 200 --cells 512 --out runs/lens
    """
    from ...data import TokenStore, as_store
    from ...files import check_writable
    from ...lenses import TunedLens
    from ...lenses.tuned.evaluation import TOKENS

    check_writable(out / "job.json")
    if kind != "tuned":
        if held_out:
            raise BadInput(f"--held-out measures tuned lenses; evaluate a {kind} lens in Python")
        _other(kind, corpus, out, training)
        return
    config, quiet = training.config(), training.silent
    with resumable(out):
        lm = training.load()
        wanted = config.steps * config.windows * config.context
        measured = None
        if held_out:  # read before the training: what is wrong with it is no surprise after hours
            other = corpus.of(held_out, lm, quiet=quiet)
            measured = as_store(lm, other, config.context, tokens=max(TOKENS, config.context))
        documents = corpus.documents(lm, config.seed, quiet)
        store = TokenStore.build(lm, documents, config.context, tokens=wanted, quiet=quiet)
        trained = TunedLens.fit(lm, store, config, folder=out, quiet=quiet)
    if not quiet:
        notice(f"{trained}\nlook through it: monosem lens tuned {training.model} PROMPT --lens {out / 'lens'}")
    if measured is not None:
        evaluation = trained.evaluate(lm, measured, context=config.context, quiet=quiet)
        columns = ["site", *(f"{arm}_{name}" for name in ("kl", "top1", "entropy") for arm in ("tuned", "logit"))]
        if training.json:
            as_json(evaluation.to_dict())
            return
        frame(evaluation.table[columns], f"on {evaluation.tokens:,} tokens of held-out text, nats")
    _said(out / "lens", training.json)


def _other(kind: str, corpus: Corpus, out: Path, training: Training) -> None:
    """A lens of another kind. Raises `BadInput` for options of tuned lenses."""
    import numpy as np

    from ...data import TokenStore
    from ...lenses.jobs import KINDS

    check_name("kind of lens", kind, ["tuned", *KINDS])
    recipe = [name for name in ("rank", "cells", *QUICK, "lr", "paper", "repeat") if getattr(training, name)]
    if recipe:
        raise BadInput(f"--{recipe[0].replace('_', '-')} is of tuned lenses; settings of a {kind} lens go by --set")
    if kind != "jacobian" and not training.silent:
        notice(f"a {kind} lens is made in one go: interrupted, it begins again")
    config = KINDS[kind].parse({"seed": training.seed} | fields(training.set))
    interruption = resumable(out) if kind == "jacobian" else nullcontext()
    with interruption:
        lm = training.load()
        documents = corpus.documents(lm, config.seed, training.silent)
        tokens = config.windows * config.length
        store = TokenStore.build(lm, documents, config.length, tokens=tokens, quiet=training.silent)
        texts = store[np.arange(min(config.windows, len(store)))].tolist()
        if len(texts) < config.windows and not training.silent:
            notice(f"the text has {len(texts)} windows of {config.length} tokens, not {config.windows}: these are used")
        lens = config.run(lm, texts, out, training.silent)
    if not training.silent:
        notice(f"{lens}")
    _said(out / "lens", training.json)


def _said(lens: Path, json: bool) -> None:
    as_json({"lens": lens}) if json else line(lens)
