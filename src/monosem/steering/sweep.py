"""Clamp every latent to every value and read what the model says: resumable, ranked, saved as text and Parquet."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..dictionaries import Dictionary
from ..edits import clamp
from ..errors import BadInput, UnknownName, require
from ..files import replacing, write_json
from ..jobs import claim, module_fingerprint
from ..metrics import continuation_perplexity, cross_entropy, kl
from ..models import Model
from ..models.numbers import LARGEST
from ..progress import Meter
from ..statistics import finite
from .outcome import distinct, logits_of
from .sweep_result import COLUMNS, LatentSweep, SweepConfig, part_path, parts_of, write_report


def sweep_latents(
    model: Model,
    dictionary: Dictionary,
    latents: Iterable[int] | None = None,
    *,
    values: Sequence[float] = (20.0,),
    prompt: str | None = None,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    folder: str | os.PathLike[str] = "monosem-sweep",
    seed: int = 0,
    temperature: float = 0.0,
    quiet: bool = False,
) -> LatentSweep:
    """Continue one prompt with each latent clamped to each value, many in a batch, error term kept.

    Tokens that the dictionary was not trained on (`Dictionary.skip`), such as the first, are left as they are.

    The folder gets `job.json`, `sweep.txt` (a block per latent), `sweep.parquet` (a row per latent and value) and,
    on the way, `parts/`. Interrupted, it goes on at the first missing batch when called again with the same arguments.

    Args:
        latents: which ones; None is all of the dictionary.
        prompt: what is continued; None starts from the BOS token alone.

    Raises:
        Mismatch: the folder holds a sweep with another config, or the dictionary is not for this model.
        UnknownName: a latent that the dictionary does not have.
        BadInput: no latents or values, a value that is not a number, or no BOS token to start from.
    """
    require("pyarrow", "tables")
    dictionary.check(model)
    chosen = _checked_latents(dictionary, latents)
    if not values or not all(abs(value) <= LARGEST for value in values):
        raise BadInput(f"values must be one or more finite numbers, at most {LARGEST:g}, not {list(values)}")
    ids = _prompt_ids(model, prompt)
    if len(ids) + max_new_tokens < 3:
        raise BadInput("from a single token at least 2 new tokens are needed: the first token is never edited")
    config = SweepConfig.parse(
        {"model": model.name, "dtype": str(model.dtype).removeprefix("torch."), "dictionary": dictionary.name}
        | {"latents": chosen, "values": [float(value) for value in values], "prompt": prompt}
        | {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "batch_size": batch_size}
    )
    # so that another model of the name, or a dictionary that was trained again, is noticed
    made_with = {"weights": dictionary.fingerprint, "model_weights": module_fingerprint(model.hf)}
    with claim(folder, config, work="parts/*.parquet", made_with=made_with) as home, torch.no_grad():
        (home / "parts").mkdir(exist_ok=True)
        baseline = _baseline(model, ids, config)
        _run_parts(model, dictionary, ids, config, baseline, home, quiet)
        rows = parts_of(home)
        _write(rows, home / "sweep.parquet")
        write_report(home, rows, config, baseline)
    return LatentSweep(rows, baseline, config, home)


def _checked_latents(dictionary: Dictionary, latents: Iterable[int] | None) -> list[int]:
    chosen = list(range(dictionary.width)) if latents is None else sorted({int(latent) for latent in latents})
    if not chosen:
        raise BadInput("no latents to sweep; leave latents out for all of them")
    outside = [latent for latent in chosen if not 0 <= latent < dictionary.width]
    if outside:
        raise UnknownName(
            f"latent {outside[0]} is not in {dictionary.name}: it has latents 0 to {dictionary.width - 1}"
        )
    return chosen


def _prompt_ids(model: Model, prompt: str | None) -> list[int]:
    rows = [[model.bos]] if prompt is None else model.tokens(prompt).rows()
    if len(rows) != 1:
        raise BadInput(f"a sweep continues one prompt, not {len(rows)}")
    return rows[0]


def _baseline(model: Model, ids: list[int], config: SweepConfig) -> dict[str, Any]:
    generated = model.generate(
        [ids], max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed
    )
    perplexity = continuation_perplexity(model, generated.ids, generated.prompt.lengths)
    return {"text": generated.texts[0], "perplexity": float(perplexity[0])}


def _batches(config: SweepConfig) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    rows = [(latent, value) for latent in config.latents for value in config.values]
    for number, start in enumerate(range(0, len(rows), config.batch_size)):
        yield number, rows[start : start + config.batch_size]


def _run_parts(
    model: Model,
    dictionary: Dictionary,
    ids: list[int],
    config: SweepConfig,
    baseline: dict[str, Any],
    home: Path,
    quiet: bool,
) -> None:
    total = len(config.latents) * len(config.values)
    waiting = [(number, rows) for number, rows in _batches(config) if not part_path(home, number).exists()]
    done = total - sum(len(rows) for _, rows in waiting)
    try:
        with Meter(f"sweep {dictionary.name}", total=total, unit="row", quiet=quiet, start=done) as meter:
            for number, rows in waiting:
                records = _one_batch(model, dictionary, ids, rows, config, baseline, config.seed + number)
                write_json(home / "baseline.json", baseline)  # with the first part: a sweep that fails leaves nothing
                _write(pd.DataFrame(records, columns=COLUMNS), part_path(home, number))
                meter.advance(len(rows), kl=sum(record["kl"] for record in records) / len(records))
    except KeyboardInterrupt:
        write_report(home, parts_of(home), config, baseline)  # what is done can be read at once
        raise


def _one_batch(
    model: Model,
    dictionary: Dictionary,
    ids: list[int],
    rows: list[tuple[int, float]],
    config: SweepConfig,
    baseline: dict[str, Any],
    seed: int,
) -> list[dict[str, Any]]:
    latents = torch.tensor([latent for latent, _ in rows])
    edit = clamp(dictionary, latents, torch.tensor([value for _, value in rows]))
    prompts = [ids] * len(rows)
    generated = model.generate(
        prompts,
        edits=edit,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        capture="logits",
    )
    steered, plain = (
        generated["logits"].float(),
        logits_of(model.run(generated)),
    )  # edits around it know where its prompt ends, or are refused
    records = []
    for row, ((latent, value), new, text) in enumerate(zip(rows, generated.new, generated.texts)):
        span = slice(len(ids) - 1, len(ids) - 1 + len(new))
        edited = slice(max(len(ids) - 1, 1), len(ids) - 1 + len(new))  # predictions that an edited token can move
        moved = kl(plain[row, edited], steered[row, edited])
        first, along = (float(moved[0]), float(moved.mean())) if len(moved) else (0.0, math.nan)
        for effect in (first, along) if len(moved) else (first,):
            finite(effect, f"the KL of latent {latent} at {value:g}")
        target = torch.tensor(new, device=plain.device)
        nats = float(cross_entropy(plain[row, span], target).mean()) if new else math.nan
        score = first / (1 + max(0.0, nats - math.log(baseline["perplexity"])))
        perplexity = math.inf if nats > 700 else math.exp(nats)  # which no float holds
        if new:
            finite(perplexity, f"the perplexity of latent {latent} at {value:g}")
        values = [latent, value, first, along, perplexity, score, distinct(new), text]
        records.append(dict(zip(COLUMNS, values)))
    return records


def _write(table: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
