"""`monosem latents`: which latents fire on a prompt, which tell two kinds of prompt apart, what one latent is about."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BadFile, BadInput
from .application import help_without_command, register
from .loading import corpus, dictionary_and_model
from .options import (
    Context,
    Device,
    DictionaryArgument,
    Dtype,
    Json,
    LatentArgument,
    ModelOverride,
    Prompts,
    Quiet,
    Seed,
    Text,
    TokenLimit,
    option,
)
from .output import as_json, cell, console, frame

if TYPE_CHECKING:
    import rich.text

    from ..latents import Evidence

app = typer.Typer(help="Latents: what fires, what tells prompts apart, what one is about.")
app.callback(invoke_without_command=True)(help_without_command)

Count = Annotated[int, option("--count -k", "N", "How many latents.", min=1)]
IndexFile = Annotated[Path | None, option("--index", "FILE", "Another index than the dictionary's own.")]


def top(
    dictionary: DictionaryArgument,
    prompts: Prompts,
    count: Count = 10,
    model: ModelOverride = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Latents that fire most on a prompt's tokens.

    Example: monosem latents top smollm2/resid_post.15 "The capital of France is"
    """
    from .. import latents

    sae, lm = dictionary_and_model(dictionary, model, device, dtype)
    found = latents.top(lm, sae, prompts, k=count)
    as_json(found.table) if json else frame(found.table)


def search(
    dictionary: DictionaryArgument,
    positive: Annotated[Path | None, option("--positive", "FILE", "Prompts that have it, one a line.")] = None,
    negative: Annotated[Path | None, option("--negative", "FILE", "Their partners without it, line by line.")] = None,
    text: Annotated[str | None, option("--text", "QUERY", "Instead: words that the examples in the index have.")] = None,
    count: Count = 10,
    index: IndexFile = None,
    seed: Seed = 0,
    model: ModelOverride = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Find latents by contrasting prompts, or by words.

    Half of the prompts is held out: the ranking does not see it, and the held-out AUROC is measured on it.

    Example: monosem latents search smollm2/resid_post.15 --positive happy.txt --negative sad.txt

    Example: monosem latents search smollm2/resid_post.15 --text "chess opening"
    """
    if text is not None and positive is None and negative is None:
        found = index_of(dictionary, index).search(text, count)
    elif text is None and positive is not None and negative is not None:
        from ..latents import contrast

        sae, lm = dictionary_and_model(dictionary, model, device, dtype)
        found = contrast(lm, sae, prompt_lines(positive), prompt_lines(negative), seed=seed).table.head(count)
    else:
        raise BadInput("give --positive FILE and --negative FILE, or --text QUERY")
    as_json(found) if json else frame(found)
