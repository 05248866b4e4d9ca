"""The arguments and options that several commands share, so that they are spelled and explained once.

Options that belong together are a dataclass: a command takes it as one parameter, its fields are options.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput
from .output import as_json, frame, notice

if TYPE_CHECKING:
    from pandas import DataFrame

    from ..models import Model
    from ..results import Result

MODELS = "smollm2, gemma3-270m, a Hugging Face id, a folder or a .gguf file"
DICTIONARIES = "a shipped name (monosem list dictionaries), a folder, a .pt file or a Hugging Face id"
TEXTS = "Text: .txt, .json, .jsonl[.gz], .parquet or a folder. May be repeated."


def option(name: str, metavar: str | None, help: str, **limits: Any) -> Any:
    """A typer option whose value is called `metavar` in the help; brackets in the help are not markup."""
    return typer.Option(*name.split(), metavar=metavar, help=help.replace("[", r"\["), **limits)


def argument(metavar: str, help: str, **limits: Any) -> Any:
    return typer.Argument(metavar=metavar, help=help.replace("[", r"\["), **limits)


ModelArgument = Annotated[str, argument("MODEL", f"The model: {MODELS}.")]
DictionaryArgument = Annotated[str, argument("DICTIONARY", f"The dictionary: {DICTIONARIES}.")]
LatentArgument = Annotated[int, argument("LATENT", "The number of the latent.", min=0)]
Prompts = Annotated[list[str], argument("PROMPT...", "One or more prompts.")]
Text = Annotated[list[Path], option("--text", "PATH", TEXTS)]
TokenLimit = Annotated[int, option("--tokens", "N", "How much of the text to use.", min=1)]
Context = Annotated[int, option("--context", "N", "Tokens a window.", min=2)]
Device = Annotated[str | None, option("--device", "NAME", "cpu, cuda, cuda:1, mps (default: the best one here).")]
Dtype = Annotated[str | None, option("--dtype", "NAME", "float32, bfloat16, float16 (default: what suits the device).")]
Seed = Annotated[int, option("--seed", "N", "Seed of everything random.")]
Json = Annotated[bool, option("--json", None, "Print JSON for programs.")]
Quiet = Annotated[bool, option("--quiet -q", None, "No progress and no notices.")]
Chat = Annotated[bool, option("--chat", None, "Each prompt is a user's turn in the model's chat format.")]
Layers = Annotated[str | None, option("--layers", "RANGE", "Such as 0:10 or 3,7,-1 (default: all).")]
OutFile = Annotated[
    Path | None, option("--out", "FILE", "Write the picture (.html) or the table (.csv, .json, .parquet).")
]
Set = Annotated[list[str] | None, option("--set", "KEY=VALUE", "Any other field of the config. May be repeated.")]


@dataclass(frozen=True)
class Printing:
    """What reaches the terminal."""

    json: Json = False
    quiet: Quiet = False

    @property
    def silent(self) -> bool:
        """Whether progress is off: programs that read JSON do not want it either."""
        return self.json or self.quiet


@dataclass(frozen=True)
class Written(Printing):
    """Where the result goes: the terminal, JSON, and a file."""

    out: OutFile = None

    def check_colour(self, value: str | None) -> dict[str, str]:
        """The option of a picture. Raises `BadInput` when no picture is written."""
        if value is not None and self.out is None:
            raise BadInput("--value colours the picture, and no picture is asked for: add --out FILE.html")
        return {} if value is None else {"value": value}

    def save(self, result: "Result", **plot: Any) -> None:
        if self.out is not None:
            result.save(self.out, **plot)

    def show(self, table: "DataFrame", title: str) -> None:
        as_json(table) if self.json else frame(table, title)

    def say_where(self) -> None:
        if self.out is not None and not self.quiet:
            notice(f"written: {self.out}")


@dataclass(frozen=True)
class Machine:
    """Where a model runs, and in which precision."""

    dtype: Dtype = None
    device: Device = None

    def load(self, model: str, quiet: bool) -> "Model":
        from ..models import load_model

        return load_model(model, device=self.device, dtype=self.dtype, quiet=quiet)


# ---------------------------------------------------------------------- what is written as text
def whole_numbers(text: str, count: int, name: str, example: str, negative: bool = False) -> list[int]:
    """`"3,17,200:203"` -> [3, 17, 200, 201, 202]; each at most once, in this order; `"5:"` goes to the end.

    Args:
        count: all numbers lie below it. name, example: of the option, for its errors.
        negative: whether a number below 0 counts from the end.

    Raises:
        BadInput: not written like this, or a number out of range.
    """
    chosen: dict[int, None] = {}
    for part in text.split(","):
        first, colon, last = (piece.strip() for piece in part.partition(":"))
        try:
            start = int(first or 0) if colon else int(first)
            stop = int(last or count) if colon else start + 1
        except ValueError as error:
            raise BadInput(f"{name} {text}: write numbers and ranges such as {example}") from error
        if negative and not colon and start < 0:
            start, stop = start + count, stop + count
        if not 0 <= start < stop <= count:
            raise BadInput(f"{name} {text}: {part.strip()!r} is not inside 0:{count}")
        chosen.update(dict.fromkeys(range(start, stop)))
    return list(chosen)


def latent_numbers(text: str | None, width: int) -> list[int] | None:
    """A `--latents` option as numbers; None for all."""
    return None if text is None else whole_numbers(text, width, "--latents", "0:100 or 3,17,200:210")


def layer_numbers(text: str | None, count: int) -> list[int] | None:
    """A `--layers` option as numbers, `-1` for the last; None for all."""
    return None if text is None else whole_numbers(text, count, "--layers", "0:10 or 3,7,-1", negative=True)


def decimals(text: str) -> list[float]:
    """`"10, 20"` -> [10.0, 20.0]. Raises `BadInput` when one is not a number."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"--values {text}: write numbers separated by commas, such as 10,20") from error


def names(text: str) -> list[str]:
    """`"z, mlp_out"` -> ["z", "mlp_out"]."""
    return [part.strip() for part in text.split(",")]


def fields(given: list[str] | None) -> dict[str, Any]:
    """`["lr=0.001", "skip_first=false"]` -> {"lr": 0.001, "skip_first": False}; values are read as YAML.

    Raises:
        BadInput: an entry without `=`, or a value that YAML cannot read.
    """
    import yaml

    settings = {}
    for entry in given or []:
        name, equals, value = entry.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"--set {entry}: write KEY=VALUE, such as lr=0.001")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise BadInput(f"--set {entry}: {' '.join(str(error).split())}") from error
    return settings
