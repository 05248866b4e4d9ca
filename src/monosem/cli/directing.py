"""`monosem direction`: find a concept's vector, say how far to trust it, compare, convert and use it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import BadInput
from ..terminal import notice
from .application import group
from .intervening import DirectionFile, calibrate, steer
from .options import (
    Analysis,
    Device,
    Dtype,
    Giving,
    Layers,
    Printing,
    Prompts,
    Seed,
    Top,
    Trust,
    argument,
    flag,
    layer_numbers,
    model_of,
    names,
    option,
    prompt_lines,
)
from .output import as_json, frame, line

if TYPE_CHECKING:
    from ..data import PromptPairs
    from ..directions import Direction, Directions
    from ..models import Model

DirectionFiles = Annotated[list[Path], argument("FILE...", "Two files of directions or more.")]
SHOWN = [
    "site",
    "position",
    "held_out_auroc",
    "held_out_low",
    "held_out_high",
    "stability",
    "chance_stability",
    "p_family",
]


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Prompts with and without a concept."""

    concept: Annotated[
        str | None, option("NAME", "A study's concept: french, sentiment, deception, or its YAML file.")
    ] = None
    positive: Annotated[Path | None, option("FILE", "Instead: prompts with the concept, one a line.")] = None
    negative: Annotated[Path | None, option("FILE", "Prompts without it, one a line.")] = None
    paired: Annotated[bool, flag("Line i of one file belongs to line i of the other.")] = False
    prefilter: Annotated[
        str | None, option("LIST", "Drop prompts that do not begin as their side says, by these tokens (' I').")
    ] = None

    def shown(self, model: "Model", quiet: bool) -> "PromptPairs":
        """The prompts, after the prefilter where one is asked for. Raises `BadInput` where too few are left."""
        from ..directions import prefilter

        pairs = self.load()
        if self.prefilter is None:
            return pairs
        kept = prefilter(model, pairs, self.prefilter.split(","))
        if not quiet:
            notice(str(kept))
        return kept.pairs

    def load(self) -> "PromptPairs":
        """Raises `BadInput` for no prompts, or half of them."""
        from ..data import PromptPairs
        from ..studies import StudyConfig

        if (self.concept is None) == (self.positive is None) or (self.positive is None) != (self.negative is None):
            raise BadInput("give --concept NAME, or --positive FILE and --negative FILE")
        if self.concept is not None:
            return StudyConfig.load(self.concept).pairs
        assert self.positive is not None
        assert self.negative is not None
        return PromptPairs(prompt_lines(self.positive), prompt_lines(self.negative), self.paired)


@dataclass(frozen=True, kw_only=True)
class OnDirections(Giving):
    """Directions from a file, and the model that they were found in."""

    file: DirectionFile
    model: Annotated[str | None, option("MODEL", "The model, where the file does not name it.")] = None
    dtype: Dtype = None
    device: Device = None
    trust_remote_code: Trust = False

    def open(self) -> "tuple[Directions, Model]":
        from ..directions import Directions

        model = model_of(self, self.file, Directions.load(self.file)[0].model_name)
        return Directions.load(self.file, model), model


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Other texts that a fit may read."""

    held_out_positive: Annotated[
        Path | None, option("FILE", "Other prompts with the concept; they judge, and all of the first ones find.")
    ] = None
    held_out_negative: Annotated[Path | None, option("FILE", "Other prompts without it.")] = None
    background: Annotated[Path | None, option("FILE", "Texts of all kinds, one a line, for mean_centred.")] = None

    def held_out(self) -> "PromptPairs | None":
        """Raises `BadInput` for one side alone."""
        from ..data import PromptPairs

        if (self.held_out_positive is None) != (self.held_out_negative is None):
            raise BadInput("give --held-out-positive FILE and --held-out-negative FILE, or neither")
        if self.held_out_positive is None or self.held_out_negative is None:
            return None
        return PromptPairs(prompt_lines(self.held_out_positive), prompt_lines(self.held_out_negative), paired=False)


def fit(
    asked: Analysis,
    sides: Sides,
    beside: Beside,
    method: Annotated[
        str, option("NAME", "dim, median, pca_pairs, lda, leace, logistic, ... (a wrong one lists all).")
    ] = "dim",
    site: Annotated[
        str, option("NAME", "resid_post, resid_pre, ..., or one site such as resid_post.15.")
    ] = "resid_post",
    layers: Layers = None,
    at: Annotated[str, option("LIST", "Tokens: last, mean, mean:ROLE, template, regex:..., or an index.")] = "last",
    k: Annotated[int, option("N", "How many directions (svd, repe).", min=1)] = 1,
    save: Annotated[Path | None, option("FILE", "Keep the directions (.safetensors, or .gguf for llama.cpp).")] = None,
    top: Top = 10,
    seed: Seed = 0,
) -> None:
    """Find a concept's direction at every layer.

    What half of the prompts give is judged on the other half (by whole styles of a concept): held-out AUROC with its
    95 % interval, stability of two halves beside what chance gives, p corrected for all places, and whether the styles
    give one direction. What these numbers cannot say is said below.

    Example: monosem direction fit smollm2 --concept french --at mean --save french.safetensors
    """
    from ..directions import Directions
    from ..directions.fitting import check_asked
    from ..directions.formats import check_target

    check_target(save)
    held_out = beside.held_out()
    background = None if beside.background is None else prompt_lines(beside.background)
    check_asked(method, sides.load(), background, k)  # refused here, before the model is read
    model = asked.load()
    chosen = layer_numbers(layers, model.cfg.n_layers)
    check_target(save, model, site, chosen, method, k)
    found = Directions.fit(
        model,
        sides.shown(model, asked.quiet),
        site,
        layers=chosen,
        method=method,
        at=[at] if at.startswith("regex:") else names(at),
        background=background,
        held_out=held_out,
        seed=seed,
        k=k,
    )
    if save is not None:
        found.save(save)

    def shown() -> None:
        columns = [name for name in [*SHOWN, "promotes"] if name in found.table]
        frame(found.top(top)[columns], f"{method} at {len(found)} places, by held-out AUROC")
        if across := found.across_topics:
            line(across)
        for doubt in found.doubts:
            line(f"- {doubt}")

    asked.give(found, shown, json={"directions": found.table, "doubts": found.doubts, "config": found.config})


def show(asked: Printing, file: DirectionFile) -> None:
    """What a file of directions holds, and how it was found.

    Example: monosem direction show french.safetensors
    """
    from ..directions import Directions

    found = Directions.load(file)
    if asked.json:
        as_json([{"site": str(one.site), "model": one.model_name, **_said(one)} for one in found])
        return
    table = found.table
    frame(
        table[[name for name in [*SHOWN, "norm"] if name in table]],
        f"{len(found)} directions of {found[0].model_name or 'no model named'}",
    )
    if across := found.across_topics:
        line(across)
    for key in ("method", "tool", "prompts", "seed"):
        if key in found[0].provenance:
            line(f"{key}: {found[0].provenance[key]}")


def _said(one: "Direction") -> dict[str, Any]:
    """Its provenance, without the marks of its prompts."""
    return {name: value for name, value in one.provenance.items() if name != "seen"}


def select(
    asked: OnDirections,
    sides: Sides,
    by: Annotated[str, option("HOW", "cosmic (no tokens), or arditi, by --tokens.")] = "cosmic",
    tokens: Annotated[
        str | None, option("LIST", "With which the behaviour begins, such as ' I' (arditi); several with commas.")
    ] = None,
    most_kl: Annotated[float, option("NATS", "Leave out what changes other prompts more.", min=0.0)] = 0.1,
    save: Annotated[Path | None, option("FILE", "Keep the chosen direction (.safetensors).")] = None,
    top: Top = 10,
) -> None:
    """Choose the layer by what its direction does.

    Each direction is ablated everywhere on prompts that show the behaviour (bypass) and added once on the others
    (induce); late layers and what changes other prompts too much are left out. Give prompts that none of the
    directions was found with.

    Example: monosem direction select french.safetensors --positive new_french.txt --negative new_english.txt
    """
    from ..directions import Directions
    from ..directions import select as choose
    from ..files import check_writable

    if save is not None:
        check_writable(save)
    found, model = asked.open()
    pairs = sides.shown(model, asked.quiet)
    words = None if tokens is None else tokens.split(",")
    chosen = choose(model, found, pairs, by=by, tokens=words, most_kl=most_kl, quiet=asked.silent)
    columns = ["site", "position", "bypass", "induce", "kl", "score", "left_out"]
    held = {"directions": chosen.table, "doubts": chosen.doubts, "config": chosen.config}
    asked.give(chosen, lambda: frame(chosen.table[columns].head(top), f"{by}, {len(found)} directions"), json=held)
    for doubt in chosen.doubts if not asked.quiet else []:
        notice(doubt)
    if save is not None:
        Directions([chosen.best]).save(save)
        if not asked.quiet:
            notice(f"written: {save}, the direction at {chosen.best.site}")


def compare(asked: Printing, files: DirectionFiles) -> None:
    """Cosines of directions of several files, site by site.

    The output of a block and the input of the next are the same stream, and are compared.

    Example: monosem direction compare french.safetensors theirs.gguf
    """
    from ..directions import Directions, alike

    if len(files) < 2:
        raise BadInput("give two files of directions or more")
    table = alike({str(file): Directions.load(file) for file in files})
    if asked.json:
        as_json(table)
    else:
        frame(table, "cosines")


def convert(
    asked: Printing,
    file: DirectionFile,
    out: Annotated[Path, argument("OUT", "What to write: .safetensors, or .gguf for llama.cpp and repeng.")],
) -> None:
    """Write directions in another format.

    Layer numbers are translated; what a control vector cannot say (block 0, erasures, subspaces) is refused.

    Example: monosem direction convert theirs.svec ours.gguf
    """
    from ..directions import Directions

    Directions.load(file).save(out)
    if not asked.silent:
        line(f"written: {out}")


def read(asked: Prompts, directions: Annotated[Path, option("FILE", "The directions, of several layers.")]) -> None:
    """How far each token of prompts lies along directions.

    A heatmap of layers and tokens with --out FILE.html; the table has the last token of each prompt.

    Example: monosem direction read smollm2 "Le chat dort." --directions french.safetensors --out scores.html
    """
    from ..directions import Directions, along

    model = asked.load()
    scores = along(model, asked.texts(model), Directions.load(directions, model))
    table = scores.table
    last = table[table["position"] == table.groupby("row")["position"].transform("max")]
    asked.give(scores, last[["row", "site", "token", "score"]], f"after the last token; {scores.config['units']}")


app = group(
    "Vectors of concepts: find, show, compare, convert, steer.",
    {
        "fit": fit,
        "show": show,
        "compare": compare,
        "convert": convert,
        "select": select,
        "read": read,
        "calibrate": calibrate,
        "steer": steer,
    },
)
