"""The arguments and options that several commands share, so that they are spelled and explained once.

Options that belong together are a dataclass: a command takes it as one parameter, its fields are options. An option has
the name of its parameter or field: `drop_unaligned` is `--drop-unaligned`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput, check_name
from ..files import result_path
from ..reading import parse_yaml, read_text
from ..terminal import notice
from .output import as_json, frame

if TYPE_CHECKING:
    from pandas import DataFrame

    from ..data import Document
    from ..dictionaries import Dictionary
    from ..edits import Edit
    from ..models import Model
    from ..results import Result

MODELS = "smollm2, gemma3-270m, an organism, a Hugging Face id, a folder or a .gguf file"
DICTIONARIES = "a shipped name (monosem list dictionaries), a folder, a .pt file or a Hugging Face id"
TEXTS = "Text: .txt, .json, .jsonl[.gz], .parquet or a folder. May be repeated."
MOST_SKIPPED = "Stop when more of a path's rows give no text (default: 0.1)."


def option(metavar: str | None, help: str, *names: str, **limits: Any) -> Any:
    """A typer option whose value is called `metavar` in the help; brackets in the help are not markup.

    Args:
        names: other names than the parameter's, such as "-q".
    """
    return typer.Option(*names, metavar=metavar, help=help.replace("[", r"\["), **limits)


def flag(help: str, *names: str) -> Any:
    return option(None, help, *names)


def argument(metavar: str, help: str, **limits: Any) -> Any:
    return typer.Argument(metavar=metavar, help=help.replace("[", r"\["), **limits)


ModelArgument = Annotated[str, argument("MODEL", f"The model: {MODELS}.")]
DictionaryArgument = Annotated[str, argument("DICTIONARY", f"The dictionary: {DICTIONARIES}.")]
LatentArgument = Annotated[int, argument("LATENT", "The number of the latent.", min=0)]
PromptArguments = Annotated[list[str], argument("PROMPT...", "One or more prompts.")]
Text = Annotated[list[Path], option("PATH", TEXTS)]
TextField = Annotated[str | None, option("NAME", "Column of the text (default: text, or a conversation's columns).")]
MostSkipped = Annotated[float, option("SHARE", MOST_SKIPPED, min=0, max=1)]
TokenLimit = Annotated[int, option("N", "How much of the text to use.", min=1)]
Context = Annotated[int, option("N", "Tokens a window.", min=2)]
Device = Annotated[str | None, option("NAME", "cpu, cuda, cuda:1, mps (default: the best one here).")]
Dtype = Annotated[str | None, option("NAME", "float32, bfloat16, float16 (default: what suits the device).")]
Seed = Annotated[int, option("N", "Seed of everything random.", min=0, max=2**32 - 1)]
Top = Annotated[int, option("N", "Rows to print, the largest first.", min=1)]
Json = Annotated[bool, flag("Print JSON for programs.")]
Quiet = Annotated[bool, flag("No progress and no notices.", "-q")]
Chat = Annotated[bool, flag("Each prompt is a user's turn in the model's chat format.")]
Layers = Annotated[str | None, option("RANGE", "Such as 0:10 or 3,7,-1 (default: all).")]
OutFile = Annotated[Path | None, option("FILE", "Write the picture (.html) or the table (.csv, .json, .parquet).")]
Trust = Annotated[bool, flag("Run Python code that the model's folder or page brings. Not run by default.")]
TrainedOn = Annotated[
    str | None,
    option(
        "RULE",
        "Where the file does not say: all (trained on every token), default (not on first, special and outlying ones), "
        "or fields such as first=1,special=true,outlier=10.",
    ),
]
Set = Annotated[list[str] | None, option("KEY=VALUE", "Any other field of the config. May be repeated.")]


@dataclass(frozen=True, kw_only=True)
class Printing:
    """What reaches the terminal."""

    json: Json = False
    quiet: Quiet = False

    @property
    def silent(self) -> bool:
        """Whether progress is off: programs that read JSON do not want it either."""
        return self.json or self.quiet


@dataclass(frozen=True, kw_only=True)
class OnModel(Printing):
    """A model, where it runs, and in which precision."""

    model: ModelArgument
    dtype: Dtype = None
    device: Device = None
    trust_remote_code: Trust = False

    def load(self) -> "Model":
        return loaded(self, self.model)


def loaded(options: Any, name: str) -> "Model":
    """The model of this name, as the options say."""
    from ..models import load_model

    trust = options.trust_remote_code
    return load_model(name, device=options.device, dtype=options.dtype, trust_remote_code=trust, quiet=options.silent)


def model_of(options: Any, file: object, name: str) -> "Model":
    """The model that a file names, or the one of --model. Raises `BadInput` where neither says it."""
    if not (options.model or name):
        raise BadInput(f"{file} does not say which model it was made for; give --model MODEL")
    return loaded(options, options.model or name)


@dataclass(frozen=True, kw_only=True)
class OnDictionary(Printing):
    """A dictionary, the model that it is used with, and how that runs."""

    dictionary: DictionaryArgument
    model: Annotated[str | None, option("MODEL", f"Another model than the dictionary's own: {MODELS}.")] = None
    trained_on: TrainedOn = None
    dtype: Dtype = None
    device: Device = None
    trust_remote_code: Trust = False

    def load(self) -> "tuple[Dictionary, Model]":
        """The dictionary and its model, or the model that is named instead.

        Raises:
            Mismatch: the dictionary was made for another model. BadInput: its file names none, and none is given.
            UnknownName: there is no such dictionary or model.
        """
        from ..activations import skip_rule
        from ..dictionaries import one_site

        skip = None if self.trained_on is None else skip_rule(self.trained_on)
        sae = one_site(self.dictionary, skip=skip)
        model = model_of(self, self.dictionary, sae.model_name)
        sae.to(model.device)
        sae.check(model)
        return sae, model


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text from files, and how it is read."""

    text: Text
    field: TextField = None
    most_skipped: MostSkipped = 0.1

    def documents(self, model: "Model", seed: int = 0, quiet: bool = False) -> "Iterable[Document]":
        return self.of(self.text, model, seed, quiet)

    def of(self, paths: list[Path], model: "Model", seed: int = 0, quiet: bool = False) -> "Iterable[Document]":
        """Other text, read in the same way."""
        from ..data import corpus

        return corpus(model, paths, seed=seed, field=self.field, most_skipped=self.most_skipped, quiet=quiet)


@dataclass(frozen=True, kw_only=True)
class Giving(Printing):
    """Where a result goes: the terminal, JSON, and a file."""

    out: OutFile = None

    def __post_init__(self) -> None:
        if self.out is not None:
            result_path(self.out)

    def give(
        self,
        result: "Result",
        shown: "DataFrame | Callable[[], None]",
        title: str | None = None,
        *,
        json: Any = None,
        **plot: Any,
    ) -> None:
        """Write the result to the file, print it, and say where it was written.

        Args:
            shown: for the terminal: a table, or a function that prints.
            json: for programs; default: the result's table.
            plot: options of its picture.
        """
        if self.out is not None:
            result.save(self.out, **plot)
        if self.json:
            as_json(result.table if json is None else json)
        elif callable(shown):
            shown()
        else:
            frame(shown, title)
        if self.out is not None and not self.quiet:
            notice(f"written: {self.out}")


@dataclass(frozen=True, kw_only=True)
class Analysis(Giving, OnModel):
    """An analysis of a model, and where its result goes."""


@dataclass(frozen=True, kw_only=True)
class Prompts(Analysis):
    """An analysis of some prompts."""

    prompts: PromptArguments
    chat: Chat = False

    def texts(self, model: "Model") -> list[str]:
        return texts_of(model, self.prompts, self.chat)


def texts_of(model: "Model", prompts: list[str], chat: bool) -> list[str]:
    """The prompts, or the conversations that they begin."""
    return [model.chat(prompt) for prompt in prompts] if chat else prompts


PARTS = ("all", "prompt", "generated")
NewTokens = Annotated[int, option("N", "Length of the continuations.", min=1)]
Temperature = Annotated[float, option("T", "0 is greedy.", min=0)]


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which tokens an edit acts on."""

    everywhere: Annotated[bool, flag("Also at first and special tokens and norm outliers, which are left out.")] = False
    role: Annotated[str | None, option("NAME", "Only at what this role says in a chat: user, assistant.")] = None
    part: Annotated[str, option("PART", f"At which tokens: {', '.join(PARTS)}.")] = "all"

    def narrow(self, edit: "Edit") -> "Edit":
        """Raises `UnknownName` for another part."""
        check_name("part", self.part, PARTS)
        return edit.at(scope=self.part, role=self.role)  # type: ignore[arg-type]


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


def fields(given: list[str] | None, where: str = "--set") -> dict[str, Any]:
    """`["lr=0.001", "skip_first=false"]` -> {"lr": 0.001, "skip_first": False}; values are read as YAML.

    Raises:
        BadInput: an entry without `=`, or a value that YAML cannot read.
    """
    settings = {}
    for entry in given or []:
        name, equals, value = entry.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"{where} {entry}: write KEY=VALUE, such as lr=0.001")
        try:
            settings[name.strip()] = parse_yaml(value)
        except ValueError as error:
            raise BadInput(f"{where} {entry}: {error}") from error
    return settings


def prompt_lines(path: Path) -> list[str]:
    """The lines of a file; blank ones at the end do not count, others are kept and refused later by their number."""
    return read_text(path).rstrip().splitlines()
