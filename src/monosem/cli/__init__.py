"""The command line. Nothing heavy is imported until a command runs, so that `monosem --help` is immediate."""

from typing import Annotated

import typer

from .. import __version__
from . import components, latents, lens, listing, patch, steering, studying, training, verifying
from .application import Application, help_without_command, register

app = typer.Typer(
    cls=Application,
    name="monosem",
    help="Open up language models: find what they represent, show it, change it, and report what that costs.",
    epilog="Start with: monosem demo",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"monosem {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")]


@app.callback(invoke_without_command=True)
def options(context: typer.Context, version: Version = False) -> None:
    help_without_command(context)


register(
    app,
    {
        "demo": studying.demo,
        "study": studying.study,
        "verify": verifying.verify,
        "train": training.train,
        "evaluate": training.evaluate,
        "steer": steering.steer,
        "sweep": steering.sweep,
    },
)
GROUPS = {"patch": patch, "lens": lens, "components": components, "latents": latents, "list": listing}
for name, module in GROUPS.items():
    app.add_typer(module.app, name=name)


def main() -> None:
    app(prog_name="monosem")


__all__ = ["app", "main"]
