"""`monosem direction`: find a concept's vector, say how far to trust it, compare, convert and use it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import BadInput
from .application import group
from .intervening import DirectionFile, calibrate, steer
from .options import (
    Analysis,
    Layers,
    Printing,
    Prompts,
    Seed,
    Top,
    argument,
    flag,
    layer_numbers,
    names,
    option,
    prompt_lines,
)
from .output import as_json, frame, line

if TYPE_CHECKING:
    from ..data import PromptPairs

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


def fit(
    asked: Analysis,
    sides: Sides,
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
    95 % interval, stability of two halves beside what chance gives, p corrected for all places. What these numbers
    cannot say is said below.

    Example: monosem direction fit smollm2 --concept french --at mean --save french.safetensors
    """
    from ..directions import Directions

    pairs, model = sides.load(), asked.load()
    found = Directions.fit(
        model,
        pairs,
        site,
        layers=layer_numbers(layers, model.cfg.n_layers),
        method=method,
        at=[at] if at.startswith("regex:") else names(at),
        seed=seed,
        k=k,
    )
    if save is not None:
        found.save(save)
    columns = [name for name in [*SHOWN, "promotes"] if name in found.table]

    def shown() -> None:
        frame(found.top(top)[columns], f"{method} at {len(found)} places, by held-out AUROC")
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
        as_json([{"site": str(one.site), "model": one.model_name, **one.provenance} for one in found])
        return
    table = found.table
    frame(
        table[[name for name in [*SHOWN, "norm"] if name in table]],
        f"{len(found)} directions of {found[0].model_name or 'no model named'}",
    )
    for key in ("method", "tool", "prompts", "seed"):
        if key in found[0].provenance:
            line(f"{key}: {found[0].provenance[key]}")


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
        "read": read,
        "calibrate": calibrate,
        "steer": steer,
    },
)
