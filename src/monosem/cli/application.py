"""How every command is made and ends: grouped options, near names, one-line errors, exit codes, Ctrl-C, pipes."""

import contextlib
import copy
import dataclasses
import inspect
import os
import re
import shlex
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.models import ArgumentInfo, OptionInfo

from ..errors import MonosemError, did_you_mean
from .output import notice

INTERRUPTED, USER_ERROR, PIPE_CLOSED = 130, 2, 141  # 128 + SIGINT, as argparse and click, 128 + SIGPIPE

# what torch says when an allocation fails, on the CPU and on a GPU (its classes would have to be imported)
NO_MEMORY = re.compile("can't allocate memory|not enough memory|OutOfMemoryError|Storage size calculation overflowed")

# The public BadParameter is a usage error; its base catches unknown commands, missing values and the rest as well.
UsageError: Any = typer.BadParameter.__base__


class Group(TyperGroup):
    """Commands under one name. A wrong name is answered with near ones, also with commands of other groups."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        raise UsageError(f"no command {name!r}{self._near(ctx, name)}", ctx=ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            error.message = f"{one_line(error.format_message()).rstrip('.')}; {self._has(ctx)}"
            raise

    def _near(self, ctx: Any, name: str) -> str:
        words = sorted(name.replace("-", " ").split())
        paths = [" ".join(path) for path in leaves(ctx.find_root().command)]
        moved = [path for path in paths if sorted(path.split()) == words or path.split()[-1] == name]
        if moved:
            return f"; did you mean {' or '.join(repr(path) for path in moved)}?"
        return did_you_mean(name, self.commands) or f"; {self._has(ctx)}"

    def _has(self, ctx: Any) -> str:
        return f"{ctx.command_path} has the commands {', '.join(self.commands)}"


class Application(Group):
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
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or NO_MEMORY.search(f"{type(error).__name__} {error}")):
                raise
            notice(f"error: out of memory; use a smaller model, batch, width or context ({one_line(str(error))})")
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as interrupt:
            notice("interrupted")
            raise typer.Exit(INTERRUPTED) from interrupt
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from error


def leaves(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """The commands below a group, each as the words that call it."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, *path, name)
    if not hasattr(command, "commands"):
        yield path


def group(help: str, commands: dict[str, Callable[..., Any]]) -> typer.Typer:
    """A group of commands; called without one, it shows its help."""
    app = typer.Typer(cls=Group, help=help)
    app.callback(invoke_without_command=True)(help_without_command)
    register(app, commands)
    return app


def register(app: typer.Typer, commands: dict[str, Callable[..., Any]]) -> None:
    """Add commands; their docstrings are their help, each paragraph as one line that the terminal wraps."""
    for name, function in commands.items():
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        app.command(name, help="\n\n".join(map(one_line, paragraphs)))(ungrouped(function))


def ungrouped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with each parameter that is a dataclass of options replaced by these options.

    The help shows the command's own options first, then the options of its groups, last the options that many groups
    inherit.
    """
    groups: dict[str, tuple[Any, list[str]]] = {}
    ranked: list[tuple[int, inspect.Parameter]] = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if not dataclasses.is_dataclass(parameter.annotation):
            ranked.append((0, named(parameter)))
            continue
        group: Any = parameter.annotation
        fields = inspect.signature(group, eval_str=True).parameters
        groups[name] = (group, list(fields))
        for field, one in fields.items():
            argument = isinstance(one.annotation.__metadata__[0], ArgumentInfo)  # arguments keep their order
            depth = next(i for i, base in enumerate(group.__mro__, 1) if field in inspect.get_annotations(base))
            ranked.append((0 if argument else depth, named(one)))

    def command(**given: Any) -> Any:
        made = {name: kind(**{field: given.pop(field) for field in fields}) for name, (kind, fields) in groups.items()}
        return function(**given, **made)

    ordered = [parameter for _, parameter in sorted(ranked, key=lambda pair: pair[0])]
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    return command


def named(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter as typer takes it: an option has its name, and the short ones that it is declared with."""
    kind, declared = typing.get_args(parameter.annotation)
    info = copy.copy(declared)
    names = info.param_decls or ()
    if isinstance(info, OptionInfo) and not any(name.startswith("--") for name in names):
        info.param_decls = (f"--{parameter.name.replace('_', '-')}", *names)
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])


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
