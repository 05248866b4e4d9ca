"""`monosem steer` and `monosem sweep`: change latents and see what the model says."""

import math
from pathlib import Path
from typing import Annotated

from ..errors import BadInput
from ..terminal import notice
from .application import resumable
from .options import (
    Chat,
    LatentArgument,
    NewTokens,
    OnDictionary,
    PromptArguments,
    Seed,
    Temperature,
    Top,
    Where,
    argument,
    decimals,
    flag,
    latent_numbers,
    option,
    texts_of,
)
from .output import as_json, before_and_after, frame


def steer(
    asked: OnDictionary,
    latent: LatentArgument,
    value: Annotated[float, argument("VALUE", "Set the latent to this; 0 switches it off.")],
    prompts: PromptArguments,
    where: Where,
    scale: Annotated[bool, flag("Multiply the latent by VALUE instead of setting it.")] = False,
    add: Annotated[bool, flag("Add VALUE to the latent instead of setting it.")] = False,
    chat: Chat = False,
    max_new_tokens: NewTokens = 20,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
) -> None:
    """Turn one latent up, down or off and compare.

    Shows the continuation of every prompt before and after, and how far the next token's distribution moved (KL, nats).
    The rest of the activation is kept as it is, and so are tokens that the dictionary was not trained on: the first of
    a prompt, special tokens and norm outliers.

    Example: monosem steer smollm2/resid_post.15 123 20 "The film was" "My day was"
    """
    from .. import edits
    from ..steering import compare

    if scale and add:
        raise BadInput("choose one of --scale and --add")
    if not math.isfinite(value):
        raise BadInput(f"VALUE must be a finite number, not {value}")
    change = edits.scale_latent if scale else edits.add_latent if add else edits.clamp
    sae, lm = asked.load()
    edit = where.narrow(change(sae, latent, value, everywhere=where.everywhere))
    texts = texts_of(lm, prompts, chat)
    comparison = compare(lm, texts, edit, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    if asked.json:
        as_json({"summary": comparison.summary, "prompts": comparison.table})
        return
    before_and_after(prompts, comparison)


def sweep(
    asked: OnDictionary,
    out: Annotated[Path, option("DIR", "Folder of the results; a sweep begun there is continued.")],
    latents: Annotated[str | None, option("RANGE", "Such as 0:100 or 3,17,200:210 (default: all).")] = None,
    values: Annotated[str, option("LIST", "Values to set each latent to, separated by commas.")] = "20",
    prompt: Annotated[str | None, option("TEXT", "What is continued (default: from BOS alone).")] = None,
    max_new_tokens: NewTokens = 20,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    batch: Annotated[int, option("N", "Continuations made at once.", min=1)] = 64,
    top: Top = 10,
) -> None:
    """Turn up every latent in turn; rank by effect and coherence.

    Keeps what the model says as text and as Parquet. Interrupted, the same command goes on where it stopped.

    Example: monosem sweep smollm2/resid_post.15 --latents 0:100 --values 10,20 --out runs/sweep
    """
    from ..files import check_writable
    from ..steering import sweep_latents

    doses = decimals(values)
    check_writable(out / "job.json")
    sae, lm = asked.load()
    with resumable(out):
        done = sweep_latents(
            lm,
            sae,
            latent_numbers(latents, sae.width),
            values=doses,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            batch_size=batch,
            folder=out,
            seed=seed,
            temperature=temperature,
            quiet=asked.silent,
        )
    best = done.top(top)[["latent", "value", "kl", "perplexity", "score", "text"]]
    if asked.json:
        as_json({"baseline": done.baseline, "best": best})
    else:
        frame(best, f"best {len(best)} of {len(done.table):,}, by effect and coherence")
    if not asked.silent:
        notice(f"all of them: {out / 'sweep.txt'} and {out / 'sweep.parquet'}")
