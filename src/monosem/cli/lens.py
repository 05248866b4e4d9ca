"""`monosem lens` and `monosem train-lens`: what each layer would say, and learning to read it better."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import BadInput, UnknownName, did_you_mean
from .application import resumable
from .loading import corpus
from .options import MODELS, TEXTS, Device, Dtype, Json, ModelArgument, Prompts, Quiet, Seed, Text, option
from .output import as_json, frame, notice, table

if TYPE_CHECKING:
    from ..lenses import LensResult
    from ..models import Model

Options = dict[str, Any]


@dataclass
class Ask:
    """What the user asked for. `options` go to every lens, `given` to those that know them, `plot` to the picture."""

    model: "Model"
    texts: list[str]
    options: Options
    given: Options
    plot: Options
    place: int
    out: Path | None
    json: bool

    def write(self, found: Any, **plot: Any) -> None:
        if self.out is not None:
            found.save(self.out, **plot)

    def show(self, data: Any, title: str) -> None:
        if self.json:
            as_json(data)
        else:
            frame(data, title)


def lens(
    model: ModelArgument,
    prompts: Prompts,
    kind: Annotated[str, option("--kind", "NAME", "logit, tuned, entropy, gap, trajectory or patchscope.")] = "logit",
    site: Annotated[
        str, option("--site", "NAME", "resid_post, resid_pre, resid_mid, attn_out or mlp_out.")
    ] = "resid_post",
    layers: Annotated[str | None, option("--layers", "RANGE", "Such as 0:10 or 3,7,-1 (default: all).")] = None,
    position: Annotated[
        int | None, option("--position", "N", "The token to show in the table, from 0 or -1 for the last.")
    ] = None,
    top: Annotated[int, option("--top", "N", "Likeliest tokens to show.", min=1)] = 5,
    target: Annotated[
        list[str] | None, option("--target", "TOKEN", "A token to follow, mind the space. May be repeated.")
    ] = None,
    value: Annotated[
        str | None, option("--value", "NAME", "What colours the picture: probability, entropy, rank, kl, js...")
    ] = None,
    lens: Annotated[
        str | None, option("--lens", "DIR", "A tuned lens (default for --kind tuned: the one shipped for MODEL).")
    ] = None,
    a: Annotated[list[str] | None, option("--a", "TOKEN", "gap: a token of the first set. May be repeated.")] = None,
    b: Annotated[list[str] | None, option("--b", "TOKEN", "gap: a token of the second set. May be repeated.")] = None,
    into: Annotated[
        str | None,
        option("--into", "TEXT", "patchscope: the prompt whose last token is overwritten (default: token identity)."),
    ] = None,
    max_new_tokens: Annotated[
        int,
        option(
            "--max-new-tokens", "N", "entropy: read tokens that the model goes on to write. patchscope: write.", min=0
        ),
    ] = 0,
    chat: Annotated[bool, option("--chat", None, "Each prompt is a user's turn in the model's chat format.")] = False,
    out: Annotated[
        Path | None, option("--out", "FILE", "Write the picture (.html) or the table (.csv, .json, .parquet).")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what each layer would predict.

    logit: every layer read as if it were the last. tuned: the same through learned translators. entropy: how sure each
    layer is. gap: how far each layer leans to one set of tokens over another, mean over the prompts. trajectory: two
    prompts of as many tokens side by side. patchscope: what the model says of a state that is put into another prompt.

    Example: monosem lens smollm2 "The capital of France is" --target " Paris" --out lens.html
    """
    from ..models import load_model

    if kind not in KINDS:
        raise UnknownName(f"unknown lens {kind!r}{did_you_mean(kind, KINDS) or '; known: ' + ', '.join(KINDS)}")
    _check(
        kind,
        {"--target": target, "--value": value, "--lens": lens, "--a": a, "--b": b, "--into": into}
        | {"--max-new-tokens": max_new_tokens or None, "--position": position},
    )
    if value is not None and out is None:
        raise BadInput("--value colours the picture, and none is asked for: add --out FILE.html")
    place = -1 if position is None else position
    lm = load_model(model, device=device, dtype=dtype, quiet=quiet or json)
    texts = [lm.chat(prompt) for prompt in prompts] if chat else prompts
    options: Options = {"site": site, "layers": layer_numbers(layers, lm.cfg.n_layers), "quiet": quiet or json}
    given: Options = {"top": top, "targets": target, "lens": lens, "a": a, "b": b, "max_new_tokens": max_new_tokens}
    given |= {"into": into, "position": position}
    plot: Options = {} if value is None else {"value": value}
    KINDS[kind](Ask(lm, texts, options, given, plot, place, out, json))
    if out is not None and not quiet:
        notice(f"written: {out}")


def _layers_of_one_lens(ask: Ask) -> None:
    from .. import lenses

    targets, through = ask.given["targets"] or [], ask.given["lens"]
    shared = ask.options | {"top": ask.given["top"], "targets": targets}
    if through is None:
        found = lenses.logit(ask.model, ask.texts, **shared)
    else:
        found = lenses.tuned(ask.model, ask.texts, None if through == "tuned" else through, **shared)
    target = {"target": targets[0]} if targets and ask.plot else {}
    ask.write(found, **ask.plot, **target)
    if ask.json:
        as_json(found.table)
        return
    for row in range(len(ask.texts)):
        _one_token(ask.model, found, row, ask.place, targets)


def _tuned(ask: Ask) -> None:
    _layers_of_one_lens(replace(ask, given=ask.given | {"lens": ask.given["lens"] or "tuned"}))


def _one_token(model: "Model", found: "LensResult", row: int, place: int, targets: list[str]) -> None:
    """The table of one token: a line a layer."""
    columns = found.chosen[row].nonzero().flatten().tolist()
    if not -len(columns) <= place < len(columns):
        raise BadInput(f"--position {place}: prompt {row} has {len(columns)} tokens")
    column = columns[place]
    rows = []
    for layer, site in enumerate(found.sites):
        cell = (layer, row, column)
        chances = found.top_probabilities[cell].tolist()
        words = _likeliest(found.top_tokens(*cell), chances)
        numbers = [float(found[name][cell]) for name in ("entropy", "kl")]
        ranks = [int(found.ranks[name][cell]) for name in targets]
        rows.append([str(site), *numbers, *ranks, words])
    token = model.str_token(int(found.tokens.ids[row, column]))
    titles = ["layer", "entropy", "KL to the end", *(f"rank of {name!r}" for name in targets), "likeliest"]
    table(titles, rows, f"{found.lens} after {token!r} (token {columns.index(column)} of prompt {row})")


def _likeliest(words: list[str], probabilities: list[float]) -> str:
    return "  ".join(f"{word!r} {p:.2f}" for word, p in zip(words, probabilities))


def _entropy(ask: Ask) -> None:
    from .. import lenses

    new = ask.given["max_new_tokens"]
    found = lenses.entropy(ask.model, ask.texts, max_new_tokens=new, lens=ask.given["lens"], **ask.options)
    ask.write(found)
    if ask.json:
        as_json(found.table)
        return
    profile = found.profile()
    rows = [[str(site), *map(float, profile[:, layer])] for layer, site in enumerate(found.sites)]
    of = f"the {new} tokens written" if new else "the prompt's tokens"
    columns = [f"prompt {row}" for row in range(len(ask.texts))]
    table(["layer", *columns], rows, f"entropy in nats, mean over {of}")


def _gap(ask: Ask) -> None:
    from .. import lenses

    a, b = ask.given["a"], ask.given["b"]
    if not a or not b:
        raise BadInput("--kind gap needs the tokens of both sets: --a TOKEN --b TOKEN")
    found = lenses.gap(ask.model, ask.texts, a, b, positions=ask.place, lens=ask.given["lens"], **ask.options)
    ask.write(found)
    ask.show(found.table.drop(columns="group"), "log-odds in nats of --a over --b")


def _trajectory(ask: Ask) -> None:
    from .. import lenses

    if len(ask.texts) != 2:
        raise BadInput(f"--kind trajectory compares two prompts; {len(ask.texts)} were given")
    found = lenses.trajectory(ask.model, *ask.texts, lens=ask.given["lens"], **ask.options)
    ask.write(found, **ask.plot)
    cells = found.table
    if not ask.json:
        places = sorted(cells.position.unique())
        if not -len(places) <= ask.place < len(places):
            raise BadInput(f"--position {ask.place}: the prompts have {len(places)} tokens")
        columns = ["site", "token", "other_token", "first", "second", "kl", "js", "cosine"]
        cells = cells[cells.position == places[ask.place]][columns]
    ask.show(cells, "the two prompts at one token")


def _patchscope(ask: Ask) -> None:
    from .. import lenses

    into, position, new = (ask.given[name] for name in ("into", "position", "max_new_tokens"))
    whole = position is None and (ask.json or ask.out is not None)  # a file shows every token of a single prompt
    found = lenses.patchscope(
        ask.model,
        ask.texts,
        lenses.TOKEN_IDENTITY if into is None else into,
        positions=None if whole else ask.place,
        top=ask.given["top"],
        generate=new,
        **ask.options,
    )
    ask.write(found)
    if ask.json:
        as_json(found.table)
        return
    for row, tokens in enumerate(found.tokens):
        rows = []
        for i, layer in enumerate(found.layers):
            words = [ask.model.str_token(token) for token in found.top_ids[row, i, -1].tolist()]
            text = [] if found.texts is None else [repr(found.texts[row * len(found.layers) + i][-1])]
            rows.append([layer, _likeliest(words, found.top_probabilities[row, i, -1].tolist()), *text])
        titles = ["layer", "likeliest", *(["written"] if new else [])]
        table(titles, rows, f"patchscope of {tokens[-1]!r} (token {int(found.positions[row, -1])} of prompt {row})")


KINDS: dict[str, Callable[[Ask], None]] = {
    "logit": _layers_of_one_lens,
    "tuned": _tuned,
    "entropy": _entropy,
    "gap": _gap,
    "trajectory": _trajectory,
    "patchscope": _patchscope,
}

# option -> the kinds that it changes; with another one it would do nothing, and nobody would know
GOES_WITH: dict[str, tuple[str, ...]] = {
    "--target": ("logit", "tuned"),
    "--value": ("logit", "tuned", "trajectory"),
    "--lens": ("logit", "tuned", "entropy", "gap", "trajectory"),
    "--a": ("gap",),
    "--b": ("gap",),
    "--into": ("patchscope",),
    "--max-new-tokens": ("entropy", "patchscope"),
    "--position": ("logit", "tuned", "gap", "trajectory", "patchscope"),
}


def _check(kind: str, given: Options) -> None:
    """Raises `BadInput` for an option that the kind does not know, before anything is loaded."""
    for name, value in given.items():
        if value not in (None, []) and kind not in GOES_WITH[name]:
            raise BadInput(f"{name} goes with --kind {' or '.join(GOES_WITH[name])}, not with {kind}")


def layer_numbers(text: str | None, count: int) -> list[int] | None:
    """`"0:3,-1"` -> [0, 1, 2, count - 1]; None for all.

    Raises:
        BadInput: not written like this, or a layer that is not there.
    """
    if text is None:
        return None
    found: dict[int, None] = {}
    for part in text.split(","):
        first, colon, last = (piece.strip() for piece in part.partition(":"))
        try:
            start, stop = (int(first or 0), int(last or count)) if colon else (int(first), int(first) + 1)
        except ValueError as error:
            raise BadInput(f"--layers {text}: write numbers and ranges such as 0:10 or 3,7,-1") from error
        if not colon and start < 0:
            start, stop = start + count, start + count + 1
        if not 0 <= start < stop <= count:
            raise BadInput(f"--layers {text}: {part.strip()!r} is not inside 0:{count}")
        found.update(dict.fromkeys(range(start, stop)))
    return list(found)


def train_lens(
    model: Annotated[str, option("--model", "MODEL", f"The model: {MODELS}.")],
    text: Text,
    out: Annotated[Path, option("--out", "DIR", "Folder of the run; the result is DIR/lens.")],
    rank: Annotated[
        int | None, option("--rank", "N", "Rank of the translators (default: full; 0: a bias alone).", min=0)
    ] = None,
    steps: Annotated[int, option("--steps", "N", "Optimiser steps.", min=1)] = 250,
    batch_tokens: Annotated[int, option("--batch-tokens", "N", "Tokens of text a step.", min=2)] = 4096,
    cells: Annotated[
        int | None, option("--cells", "N", "Tokens of a step that are read out (default: all).", min=1)
    ] = None,
    context: Annotated[int, option("--context", "N", "Tokens a window.", min=2)] = 256,
    optimizer: Annotated[str, option("--optimizer", "adam|sgd", "How to descend.")] = "adam",
    lr: Annotated[float | None, option("--lr", "X", "Peak learning rate (default: by the optimiser).")] = None,
    init: Annotated[
        str, option("--init", "regression|zero", "Start from least squares or the logit lens.")
    ] = "regression",
    paper: Annotated[
        bool, option("--paper", None, "The paper's recipe: SGD from zero, 250 steps of 262,144 tokens.")
    ] = False,
    held_out: Annotated[list[Path] | None, option("--held-out", "PATH", f"Measure the result here. {TEXTS}")] = None,
    repeat: Annotated[bool, option("--repeat", None, "Read the text again and again if it is too short.")] = False,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a tuned lens for a model.

    One affine translator a layer learns to predict what the model will say. Interrupted (also killed), the same command
    goes on where it stopped.

    Example: monosem train-lens --model smollm2 --text books/ --rank 64 --steps 200 --cells 512 --out runs/lens
    """
    from ..data import TokenStore
    from ..lenses import TuneConfig, evaluate_tuned, train_tuned
    from ..models import load_model

    choices: Options = {"rank": rank, "repeat": repeat, "seed": seed, "cells": cells}
    if not paper:
        choices |= {"steps": steps, "batch_tokens": batch_tokens, "context": context, "optimizer": optimizer}
        choices |= {"lr": lr, "init": init}
    config = TuneConfig.parse(choices)
    with resumable(f"what is done is kept in {out}"):
        lm = load_model(model, device=device, dtype=dtype, quiet=quiet or json)
        wanted = config.steps * config.windows * config.context
        store = TokenStore.build(lm, corpus(lm, text, seed), config.context, tokens=wanted, quiet=quiet or json)
        trained = train_tuned(lm, store, config, out, quiet=quiet or json)
    if not quiet and not json:
        notice(f"{trained}\nlook through it: monosem lens {model} PROMPT --kind tuned --lens {out / 'lens'}")
    if held_out:
        found = evaluate_tuned(trained, lm, corpus(lm, held_out), context=config.context, quiet=quiet or json)
        columns = ["site", *(f"{arm}_{name}" for name in ("kl", "top1", "entropy") for arm in ("tuned", "logit"))]
        if json:
            as_json(found.to_dict())
        else:
            frame(found.table[columns], f"on {found.tokens:,} tokens of held-out text, nats")
    if not json:
        print(out / "lens")
