"""The arguments and options that several commands share, so that they are spelled and explained once."""

from pathlib import Path
from typing import Annotated, Any

import typer

MODELS = "smollm2, gemma3-270m, a Hugging Face id, a folder or a .gguf file"
DICTIONARIES = "a shipped name (monosem list dictionaries), a folder, a .pt file or a hub id"
TEXTS = "Text: .txt, .json, .jsonl[.gz], .parquet or a folder. May be repeated."


def option(name: str, metavar: str | None, help: str, **limits: Any) -> Any:
    """A typer option whose value is called `metavar` in the help; brackets in the help are no markup."""
    return typer.Option(*name.split(), metavar=metavar, help=help.replace("[", r"\["), **limits)


def argument(metavar: str, help: str, **limits: Any) -> Any:
    return typer.Argument(metavar=metavar, help=help.replace("[", r"\["), **limits)


ModelArgument = Annotated[str, argument("MODEL", f"The model: {MODELS}.")]
ModelOverride = Annotated[str | None, option("--model", "MODEL", f"Another model than the dictionary's own: {MODELS}.")]
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
