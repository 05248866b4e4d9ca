"""How every command ends: exit codes, one-line errors, Ctrl-C, closed pipes."""

import contextlib
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import MonosemError
from .output import notice

INTERRUPTED, USER_ERROR, PIPE_CLOSED = 130, 2, 141  # 128 + SIGINT, as argparse and click, 128 + SIGPIPE

# The public BadParameter is a usage error; its base catches unknown commands, missing values and the rest as well.
UsageError: Any = typer.BadParameter.__base__


class Application(TyperGroup):
    """The root command. Errors that the user can fix are one line on stderr; the rest are bugs, with a traceback."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            code = super().main(*args, standalone_mode=False, **extra)  # type: ignore[misc]
        except UsageError as error:
            where = error.ctx.command_path if error.ctx else "monosem"
            notice(f"error: {one_line(error.format_message())} (see {where} --help)")
            code = USER_ERROR
        if standalone_mode:
            sys.exit(code or 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe has to show here, not while the interpreter shuts down
            return result
        except MonosemError as error:
            notice(f"error: {one_line(str(error))}")
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as interrupt:
            notice("interrupted")
            raise typer.Exit(INTERRUPTED) from interrupt
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from error


def register(app: typer.Typer, commands: dict[str, Callable[..., Any]]) -> None:
    """Add commands; their docstrings are their help, each paragraph as one line that the terminal wraps."""
    for name, function in commands.items():
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        app.command(name, help="\n\n".join(map(one_line, paragraphs)))(function)


def help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def one_line(message: str) -> str:
    return " ".join(message.split())


@contextlib.contextmanager
def resumable(kept: str) -> Iterator[None]:
    """On Ctrl-C say what is kept and how to go on, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        command = shlex.join(["monosem", *sys.argv[1:]])
        notice(f"interrupted; {kept}\nto go on where it stopped: {command}")
        raise typer.Exit(INTERRUPTED) from interrupt
