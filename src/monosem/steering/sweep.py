"""Clamp every latent to every value and read what the model says: resumable, ranked, saved as text and Parquet."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ..dictionaries import Dictionary
from ..edits import clamp
from ..errors import BadInput, Mismatch, UnknownName, require
from ..files import read_json, replacing, writable_folder, write_json, write_text
from ..metrics import continuation_perplexity, cross_entropy, kl
from ..models import Model
from ..progress import Meter
from .controls import after_first
from .effects import distinct, logits_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS = ["latent", "value", "kl", "kl_text", "perplexity", "score", "distinct_2", "text"]


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep is; a folder holds one sweep, and another config is refused there."""

    model: str
    dictionary: str
    weights: str  # hash of the dictionary's decoder, so that a retrained one is noticed
    latents: list[int]
    values: list[float]
    prompt: str | None  # None: from the BOS token alone
    max_new_tokens: int
    temperature: float
    seed: int
    batch_size: int  # part of the config, because sampling depends on it


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    `table` has one row per (latent, value), best first:

    - `kl`: KL(unsteered ‖ steered) at the next token after the prompt, nats. The effect. From a single token (BOS),
      which is never edited, it is that of the token after the first generated one.
    - `kl_text`: the same, averaged over the tokens of the steered continuation.
    - `perplexity`: of the continuation under the unsteered model. The coherence: high is odd.
    - `score`: `kl / (1 + max(0, ln perplexity - ln baseline perplexity))`, effect divided by one plus the extra nats a
      token that the unsteered model finds in the continuation beyond its own. This project's choice, for ranking only.
    - `distinct_2`: distinct bigrams over bigrams of the continuation; near 0 is a loop.
    """

    table: pd.DataFrame
    baseline: dict[str, Any]  # the unsteered model: text, perplexity
    config: SweepConfig
    folder: Path

    def plot(self) -> "Figure":
        """Effect against coherence, one dot a (latent, value)."""
        express = require("plotly.express", "plots")
        shown = self.table.assign(text=self.table["text"].str.slice(0, 80), value=self.table["value"].astype(str))
        labels = {
            "kl": "effect: KL at the next token (nats)",
            "perplexity": "perplexity of the continuation (unsteered model)",
        }
        figure = express.scatter(
            shown, x="perplexity", y="kl", color="value", log_x=True, hover_data=["latent", "text"], labels=labels
        )
        reference = self.baseline["perplexity"]
        if not math.isnan(reference):
            figure.add_vline(x=reference, line_dash="dot", annotation_text="unsteered")
        return figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """The ranked table, as `.csv` or `.parquet` by the ending."""
        with replacing(path) as temporary:
            _write(self.table, temporary, Path(path).suffix)


def sweep(
    model: Model,
    dictionary: Dictionary,
    latents: Iterable[int] | None = None,
    values: Sequence[float] = (20.0,),
    prompt: str | None = None,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    folder: str | os.PathLike[str] = "monosem-sweep",
    seed: int = 0,
    temperature: float = 0.0,
    quiet: bool = False,
) -> Sweep:
    """Continue one prompt with each latent clamped to each value, many in a batch, error term kept.

    Every token but the first is edited, see `after_first`.

    The folder gets `config.json`, `sweep.txt` (a block per latent), `sweep.parquet` (a row per latent and value) and,
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
    if not values or not all(math.isfinite(value) for value in values):
        raise BadInput(f"values must be one or more finite numbers, not {list(values)}")
    ids = _prompt_ids(model, prompt)
    if len(ids) + max_new_tokens < 3:
        raise BadInput("from a single token at least 2 new tokens are needed: the first token is never edited")
    config = SweepConfig(
        model=model.name,
        dictionary=dictionary.name,
        weights=hashlib.sha256(dictionary.W_dec.detach().float().cpu().numpy().tobytes()).hexdigest()[:16],
        latents=chosen,
        values=[float(value) for value in values],
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    home = _claim(Path(folder), config)
    with torch.no_grad():
        baseline = _baseline(model, ids, config)
        _run_parts(model, dictionary, ids, config, baseline, home, quiet)
    return _collect(home, config, baseline)


def open_sweep(folder: str | os.PathLike[str]) -> Sweep:
    """A sweep that was made before, finished or not (then with the rows that there are)."""
    home = Path(folder)
    config = SweepConfig(**read_json(home / "config.json"))
    return _collect(home, config, read_json(home / "baseline.json"))


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
    return [model.bos] if prompt is None else model.tokens(prompt).rows()[0]


def _claim(folder: Path, config: SweepConfig) -> Path:
    """Make the folder this sweep's, or continue in it."""
    writable_folder(folder)
    path = folder / "config.json"
    if path.exists():
        held = read_json(path)
        other = [name for name, value in asdict(config).items() if held.get(name) != value]
        if other:
            raise Mismatch(
                f"{folder} holds a sweep with another {', '.join(other)}; choose another folder or delete it"
            )
    else:
        write_json(path, asdict(config))
    return writable_folder(folder / "parts").parent


def _baseline(model: Model, ids: list[int], config: SweepConfig) -> dict[str, Any]:
    made = model.generate([ids], max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed)
    perplexity = continuation_perplexity(model, made.ids, made.prompt.lengths)
    return {"text": made.texts[0], "perplexity": float(perplexity[0])}


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
    write_json(home / "baseline.json", baseline)
    total = len(config.latents) * len(config.values)
    waiting = [(number, rows) for number, rows in _batches(config) if not _part(home, number).exists()]
    done = total - sum(len(rows) for _, rows in waiting)
    try:
        with Meter(f"sweep {dictionary.name}", total=total, unit="row", quiet=quiet, start=done) as meter:
            for number, rows in waiting:
                records = _one_batch(model, dictionary, ids, rows, config, baseline, config.seed + number)
                with replacing(_part(home, number)) as temporary:
                    _write(pd.DataFrame(records, columns=COLUMNS), temporary, ".parquet")
                meter.advance(len(rows), kl=sum(record["kl"] for record in records) / len(records))
    except KeyboardInterrupt:
        _write_text(home, _parts(home), config, baseline)  # what is done can be read at once
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
    edit = after_first(clamp(dictionary, latents, torch.tensor([value for _, value in rows])))
    prompts = [ids] * len(rows)
    made = model.generate(
        prompts, edits=edit, max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed
    )
    whole = [ids + new for new in made.new]
    steered = logits_of(model.run(whole, edits=edit))
    plain = logits_of(model.run(whole))
    records = []
    for row, ((latent, value), new, text) in enumerate(zip(rows, made.new, made.texts)):
        span = slice(len(ids) - 1, len(ids) - 1 + len(new))
        edited = slice(max(len(ids) - 1, 1), len(ids) - 1 + len(new))  # predictions that an edited token can move
        moved = kl(plain[row, edited], steered[row, edited])
        first, along = (float(moved[0]), float(moved.mean())) if len(moved) else (0.0, math.nan)
        target = torch.tensor(new, device=plain.device)
        nats = float(cross_entropy(plain[row, span], target).mean()) if new else math.nan
        score = first / (1 + max(0.0, nats - math.log(baseline["perplexity"])))
        values = [latent, value, first, along, math.exp(nats), score, distinct(new), text]
        records.append(dict(zip(COLUMNS, values)))
    return records


def _part(home: Path, number: int) -> Path:
    return home / "parts" / f"part-{number:06}.parquet"


def _parts(home: Path) -> pd.DataFrame:
    files = sorted((home / "parts").glob("part-*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files]) if files else pd.DataFrame(columns=COLUMNS)


def _collect(home: Path, config: SweepConfig, baseline: dict[str, Any]) -> Sweep:
    rows = _parts(home)
    with replacing(home / "sweep.parquet") as temporary:
        _write(rows, temporary, ".parquet")
    _write_text(home, rows, config, baseline)
    ranked = rows.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    return Sweep(ranked, baseline, config, home)


def _write_text(home: Path, rows: pd.DataFrame, config: SweepConfig, baseline: dict[str, Any]) -> None:
    start = "the BOS token alone" if config.prompt is None else json.dumps(config.prompt, ensure_ascii=False)
    lines = [f"{config.dictionary} on {config.model}, continuing {start}", f"unsteered: {_line(baseline['text'])}", ""]
    for latent, group in rows.groupby("latent", sort=True):
        lines.append(f"== latent {latent}")
        lines += [
            f"{value:+8g}  KL {effect:7.3f}  perplexity {odd:9.1f}  {_line(text)}"
            for value, effect, odd, text in zip(group["value"], group["kl"], group["perplexity"], group["text"])
        ]
        lines.append("")
    write_text(home / "sweep.txt", "\n".join(lines))


def _line(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _write(table: pd.DataFrame, path: Path, ending: str) -> None:
    if ending == ".parquet":
        table.to_parquet(path, index=False)
    elif ending == ".csv":
        table.to_csv(path, index=False)
    else:
        raise BadInput(f"a table is saved as .parquet or .csv, not {ending or 'without an ending'}")
