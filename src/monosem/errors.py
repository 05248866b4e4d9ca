"""Errors that a user can act on: one line that says what is wrong and what to do.

The CLI prints a `MonosemError` as one line and exits with code 2; anything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Collection, Iterable
from importlib import import_module
from types import ModuleType

__all__ = [
    "BadFile",
    "BadInput",
    "EditDidNotFire",
    "Mismatch",
    "MissingExtra",
    "MonosemError",
    "SiteDidNotFire",
    "UnknownName",
    "cause",
    "check_name",
    "did_you_mean",
    "require",
]


class MonosemError(Exception):
    """Base of every error that the user can fix."""


class UnknownName(MonosemError, KeyError):
    """A site, latent, model, dictionary or option that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class BadInput(MonosemError, ValueError):
    """Input of the wrong shape, kind or content (empty prompt, NaN, unpaired prompts, ...)."""


class BadFile(MonosemError):
    """A file that is missing, truncated, hostile or not what it claims to be."""


class Mismatch(MonosemError):
    """Two things that do not belong together (a dictionary of another model, a resumed run with another config)."""


class EditDidNotFire(MonosemError, RuntimeError):
    """An edit was asked for and never reached its site; results would silently show the unedited model."""


class SiteDidNotFire(MonosemError, RuntimeError):
    """A site was asked for and the forward pass never came by it (compiled or replaced modules)."""


class MissingExtra(MonosemError, ImportError):
    """An optional package is needed; the message names the extra to install."""


def cause(error: BaseException) -> str:
    """What went wrong, in one line that messages of ours quote."""
    words = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in words.splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # torch: "Error(s) in loading state_dict for X:"


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'resid_post.3'?"` or `""` when nothing is near."""
    near = difflib.get_close_matches(str(name), list(options), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def check_name(what: str, name: object, options: Collection[object]) -> None:
    """Raises `UnknownName` for a name that is not among the options: what is near to it, or else all there are."""
    if name not in options:
        known = [str(option) for option in options]
        near = did_you_mean(str(name), known) or f"; there are {', '.join(known) or 'none'}"
        raise UnknownName(f"no {what} {name!r}{near}")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or raise `MissingExtra` naming the extra that brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(f"this needs {module!r}: pip install 'monosem[{extra}]'") from error
