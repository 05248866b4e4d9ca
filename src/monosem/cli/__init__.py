"""The command line. Nothing heavy is imported until a command runs, so that `monosem --help` is immediate."""

import io
import sys
from typing import Annotated

import typer

from .. import __version__
from ..terminal import answer_interrupts
from . import (
    benchmarking,
    circuit,
    comparing,
    components,
    converting,
    directing,
    distances,
    exploring,
    graphing,
    latents,
    lens,
    listing,
    patch,
    probing,
    robustness,
    steering,
    studying,
    training,
    verifying,
)
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


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. Also works after a command.")]


@app.callback(invoke_without_command=True)
def options(context: typer.Context, version: Version = False, debug: Debug = False) -> None:
    help_without_command(context)  # --debug is taken out before the command line is parsed


register(
    app,
    {
        "demo": studying.demo,
        "study": studying.study,
        "verify": verifying.verify,
        "train": training.train,
        "evaluate": training.evaluate,
        "benchmark": benchmarking.benchmark,
        "compare-methods": comparing.compare_methods,
        "robustness": robustness.robustness,
        "convert": converting.convert,
        "steer": steering.steer,
        "sweep": steering.sweep,
        "explore": exploring.explore,
        "graph": graphing.graph,
        "circuit": circuit.circuit,
    },
)
GROUPS = {
    "direction": directing,
    "probe": probing,
    "distance": distances,
    "patch": patch,
    "lens": lens,
    "components": components,
    "latents": latents,
    "list": listing,
}
for name, module in GROUPS.items():
    app.add_typer(module.app, name=name)


def main() -> None:
    answer_interrupts()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal's encoding may lack characters of a text
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="monosem")


__all__ = ["app", "main"]
