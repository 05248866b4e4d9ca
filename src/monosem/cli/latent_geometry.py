"""`monosem latents map, splits, cycle, meta, writes, absorbers`: how latents lie to each other, and what all write."""

from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import BadInput
from ..terminal import notice
from . import output
from .options import (
    DICTIONARIES,
    DictionaryArgument,
    Giving,
    OnDictionary,
    Printing,
    Seed,
    Set,
    Top,
    argument,
    fields,
    option,
)
from .output import as_json, frame

Dictionaries = Annotated[list[str], argument("DICTIONARY...", f"One or more: {DICTIONARIES}.")]
Latents = Annotated[str | None, option("NUMBERS", "Such as 3,17 (default: all).")]


@dataclass(frozen=True, kw_only=True)
class Measured(Giving, OnDictionary):
    """An analysis of a dictionary and its model, and where its result goes."""


def map_latents(
    dictionaries: Dictionaries,
    giving: Giving,
    method: Annotated[str, option("NAME", "pca or umap (which needs monosem[maps]).")] = "pca",
    smallest: Annotated[int, option("N", "Latents that make a cluster.", min=2)] = 5,
    seed: Seed = 0,
) -> None:
    """Lay decoder rows out on a plane, and find clusters.

    The rows of all dictionaries lie on one map. --out map.html draws it, --out map.csv has the places.

    Example: monosem latents map smollm2/resid_post.15 --method umap --out map.html
    """
    from ..dictionaries import one_site
    from ..latents import decoder_map

    tell = None if giving.silent else notice
    opened = [one_site(name) for name in dictionaries]
    found = decoder_map(opened, method, names=dictionaries, smallest=smallest, seed=seed, tell=tell)  # type: ignore[arg-type]
    giving.give(found, found.table.head(20))


def splits(
    dictionaries: Annotated[list[str], argument("DICTIONARY...", "Two or more of one site, of different widths.")],
    giving: Giving,
    threshold: Annotated[float, option("COSINE", "From which on a latent is another one's child.", min=0, max=1)] = 0.7,
    family: Annotated[str | None, option("DICTIONARY:LATENT", "Show the tree that this latent is in.")] = None,
    seed: Seed = 0,
) -> None:
    """Which latents of wider dictionaries come from which.

    Each latent's parent is the latent of the next narrower dictionary with the nearest decoder row. Random rows of the
    same covariance say how many parents chance would give.

    Example: monosem latents splits runs/narrow/dictionary runs/wide/dictionary --family runs/narrow/dictionary:12
    """
    from ..dictionaries import one_site
    from ..latents import splitting

    found = splitting([one_site(name) for name in dictionaries], names=dictionaries, threshold=threshold, seed=seed)
    if family is not None:
        name, _, number = family.rpartition(":")
        if not name or not number.isdecimal():
            raise BadInput(f"--family takes DICTIONARY:LATENT, such as {dictionaries[0]}:12, not {family!r}")
        tree = found.family(name, int(number))
        as_json(tree) if giving.json else output.show("\n".join(branches(tree)))
        return
    giving.give(found, found.shares, f"a parent: cosine of {threshold:g} or more")


def branches(tree: dict[str, Any], depth: int = 0) -> list[str]:
    """A tree as lines, children indented."""
    cosine = "" if tree["cosine"] is None else f"  {tree['cosine']:.2f}"
    line = f"{'   ' * depth}{tree['dictionary']} {tree['latent']}{cosine}{'  <' if tree['asked'] else ''}"
    return [line, *(below for child in tree["children"] for below in branches(child, depth + 1))]


def cycle(
    asked: Measured,
    names: Annotated[str, option("NAMES", "weekdays or months.")] = "weekdays",
    site: Annotated[str | None, option("SITE", "Where to read (default: the dictionary's site).")] = None,
    seed: Seed = 0,
) -> None:
    """Test whether weekdays, or months, lie on a circle, in order.

    In the stream, and in what latents that fire at these names write. p is how often another order of the names is at
    least as round; p_best counts that the best plane was looked for.

    Example: monosem latents cycle smollm2/resid_post.15 --names months --out months.html
    """
    from .. import latents

    sae, lm = asked.load()
    found = latents.cycle(lm, sae, names, site=site, seed=seed)
    if not asked.silent:
        notice(f"{len(found.latents)} latents of these names; {found.orders[0]:,} orders")
    asked.give(found, found.table)


def meta(
    dictionary: DictionaryArgument,
    meta_sae: Annotated[str, argument("META", f"A meta-SAE of its decoder rows: {DICTIONARIES}.")],
    printing: Printing,
    latents: Latents = None,
    top: Top = 20,
) -> None:
    """Latents as sums of the latents of a meta-SAE.

    `monosem train --meta-of DICTIONARY` makes a meta-SAE.

    Example: monosem latents meta smollm2/resid_post.15 runs/meta/dictionary --latents 4077
    """
    from ..dictionaries import one_site
    from ..latents import meta_latents

    found = meta_latents(one_site(dictionary), one_site(meta_sae), numbers(latents))
    as_json(found.table) if printing.json else frame(found.table.head(top))
    if not printing.silent:
        notice(f"explained of the rows: {found.explained.mean():.3f} in the mean")


def writes(asked: Measured, latents: Latents = None, top: Top = 20) -> None:
    """What all latents promote and suppress, in one pass.

    The logit lens of every decoder row: tokens, moments, and the set of tokens (first letters, countries, digits, ...)
    that it raises or lowers most beside the others. --out FILE.csv has all rows.

    Example: monosem latents writes smollm2/resid_post.15 --out writes.csv
    """
    from ..latents import written

    sae, lm = asked.load()
    found = written(lm, sae, numbers(latents))
    asked.give(found, found.top(top))


def absorbers(asked: Measured, set: Set = None, top: Top = 20) -> None:
    """Which latents absorb first letters, word by word.

    The words and rules of the benchmark `absorption`; --set words_per_letter=40 asks for fewer words.

    Example: monosem latents absorbers smollm2/resid_post.15 --set words_per_letter=40
    """
    from ..benchmarks import AbsorptionConfig
    from ..benchmarks import absorbers as measure

    config = AbsorptionConfig.parse(fields(set))
    sae, lm = asked.load()
    found = measure(lm, sae, config, quiet=asked.silent)

    def show() -> None:
        frame(found.letters, "letters")
        frame(found.latents.head(top), "latents that absorb")

    asked.give(found, show)
    if not asked.silent:
        notice(found.notes[0])


def numbers(text: str | None) -> list[int] | None:
    """Whole numbers between commas. Raises `BadInput`."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise BadInput(f"--latents takes whole numbers between commas, such as 3,17, not {text!r}")
    return [int(part) for part in parts]
