"""How every command is made and ends: grouped options, near names, one-line errors, exit codes, Ctrl-C, pipes."""

import contextlib
import copy
import dataclasses
import errno
import inspect
import os
import re
import shlex
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo, OptionInfo

from ..errors import BadInput, MonosemError, did_you_mean
from ..terminal import INTERRUPTED, notice, one_line

# 128 + SIGPIPE, as Python after a traceback
USER_ERROR, PIPE_CLOSED, FAULT = 2, 141, 1

# what torch says when an allocation fails, on the CPU and on a GPU (its classes would have to be imported)
NO_MEMORY = re.compile("can't allocate memory|not enough memory|OutOfMemoryError|Storage size calculation overflowed")

# what the system says when there is no room to write (a full disk, a quota, the largest file that is allowed)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

LARGEST = 2**62  # what tensors count with
NEGATIVE = re.compile(r"-(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|-inf|-nan", re.IGNORECASE)

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


class Command(TyperCommand):
    """A command. A negative number is a value and no option, so that it needs no `--` before it.

    An empty word is refused wherever it stands: it is what a shell makes of a variable that is not set, and as a path
    it would be the current folder.
    """

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        as_option, parse = parser._process_opts, parser.parse_args

        def process(word: str, state: Any) -> None:
            state.largs.append(word) if NEGATIVE.fullmatch(word) else as_option(word, state)

        def parsed(args: list[str]) -> Any:
            given, *rest = parse(args)
            for one in self.params:
                value = given.get(one.name)
                if "" in (value if isinstance(value, list | tuple) else [value]):
                    name = one.opts[0] if one.param_type_name == "option" else str(one.metavar).strip("[]")
                    otherwise = "" if one.required else ", or leave it out"
                    raise UsageError(f"{name} is empty: give a value{otherwise}", ctx=ctx)
            return given, *rest

        parser._process_opts = process  # type: ignore[method-assign, assignment]
        parser.parse_args = parsed  # type: ignore[method-assign]
        return parser


class Application(Group):
    """The root command. Whatever ends a command is one line on stderr and an exit code; see `ending`."""

    debug = False

    def main(self, args: Any = None, *more: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        self.debug = taken(words, "--debug")
        try:
            with plain_warnings():
                code = self._code(words, *more, **extra)
        except BrokenPipeError:  # of a message
            code = closed()
        except SystemExit as error:  # typer's answer to a closed pipe
            if not isinstance(error.__context__, BrokenPipeError):
                raise
            code = closed()
        except KeyboardInterrupt as error:
            code = ending(error, self.debug)
        if standalone_mode:
            sys.exit(code)
        return code

    def _code(self, *args: Any, **extra: Any) -> int:
        try:
            return int(super().main(*args, standalone_mode=False, **extra) or 0)  # type: ignore[misc]
        except UsageError as error:
            where = error.ctx.command_path if error.ctx else "monosem"
            notice(f"error: {one_line(error.format_message())} (see {where} --help)")
            return USER_ERROR
        except Exception as error:
            return ending(error, self.debug)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().make_context(*args, **extra)
        except KeyboardInterrupt as error:  # typer would say nothing
            raise typer.Exit(ending(error, self.debug)) from error

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            flush()  # a closed pipe has to show here, not while the interpreter shuts down
            return result
        except (typer.Exit, typer.Abort, UsageError, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(ending(error, self.debug)) from error


def taken(words: list[str], flag: str) -> bool:
    """Whether a flag stands anywhere among the words of a command line, before `--`; it is taken out."""
    end = words.index("--") if "--" in words else len(words)
    found = flag in words[:end]
    words[:end] = [word for word in words[:end] if word != flag]
    return found


def ending(error: BaseException, debug: bool) -> int:
    """Say in one line why a command ended (with `--debug` after the traceback); the exit code."""
    if debug:
        notice("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KeyboardInterrupt):
        notice("interrupted")
        return INTERRUPTED
    if isinstance(error, MonosemError):
        notice(f"error: {one_line(str(error))}")
        return USER_ERROR
    told = one_line(str(error))
    if isinstance(error, MemoryError) or NO_MEMORY.search(f"{type(error).__name__} {error}"):
        notice(f"error: out of memory; use a smaller model, batch, width or context ({told})")
        return USER_ERROR
    if isinstance(error, OSError) and error.errno in FULL:
        with contextlib.suppress(OSError):
            flush()
        notice(f"error: {told}; free some space, or write elsewhere")
        return USER_ERROR
    kind = type(error).__name__
    notice(f"error: {kind}{': ' if told else ''}{told} (a fault in monosem; --debug shows where it happened)")
    return FAULT


def flush() -> None:
    """Write what waits on stdout. What cannot be written is dropped, or the interpreter would try once more."""
    try:
        if sys.stdout is not None:  # a program that is started without one has None
            sys.stdout.flush()
    except OSError:
        closed()
        raise


def closed() -> int:
    """Nobody reads the output any more: drop what is left of it. The exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError):  # not a file, in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return PIPE_CLOSED


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings are one line each, without the place in the source."""

    def show(message: Warning | str, *args: Any, **options: Any) -> None:
        notice(f"warning: {one_line(str(message))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


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
        app.command(name, help="\n\n".join(map(one_line, paragraphs)), cls=Command)(ungrouped(function))


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
        for name, value in given.items():
            if isinstance(value, int) and abs(value) > LARGEST:
                raise BadInput(f"--{name.replace('_', '-')} {value:.3g}: no count here is above {LARGEST:.3g}")
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


@contextlib.contextmanager
def resumable(target: str | Path, where: str = "in") -> Iterator[None]:
    """On Ctrl-C say what is kept in the target (or beside it) and how to go on, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        command = shlex.join(["monosem", *sys.argv[1:]])
        begun = where != "in" or Path(target).exists()
        kept = f"what is done is kept {where} {target}" if begun else "nothing had been done yet"
        notice(f"interrupted; {kept}\nto go on where it stopped: {command}")
        raise typer.Exit(INTERRUPTED) from interrupt
