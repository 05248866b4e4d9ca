"""A finished sweep of latents: the ranked table, the picture, and the files in its folder."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field

from ..errors import BadFile, cause, require
from ..files import write_text
from ..jobs import JobConfig, claimed
from ..jobs.config import Seed
from ..plots import Figure
from ..reading import read_object, regular_file
from ..results import Result

COLUMNS = ["latent", "value", "kl", "kl_text", "perplexity", "score", "distinct_2", "text"]


class SweepConfig(JobConfig):
    """What a sweep is."""

    job: ClassVar[str] = "sweep of latents"

    model: str = Field(description="name of the model")
    dtype: str = Field(description="dtype that the model ran in")
    dictionary: str = Field(description="name of the dictionary")
    latents: list[int] = Field(description="the latents that are clamped")
    values: list[float] = Field(description="the values that each latent is clamped to")
    prompt: str | None = Field(default=None, description="what is continued; None: the BOS token alone")
    max_new_tokens: int = Field(default=20, description="length of the continuations")
    temperature: float = Field(default=0.0, description="0 is greedy")
    seed: Seed = Field(default=0, description="of the sampling")
    batch_size: int = Field(default=64, description="continuations made at once; sampling depends on it")


@dataclass(frozen=True)
class LatentSweep(Result):
    """A finished sweep.

    `table` has one row per (latent, value), best first:

    - `kl`: KL(unsteered ‖ steered) at the next token after the prompt, nats. The effect. After a single token (BOS),
      which is never edited, it is taken at the token after the first generated one.
    - `kl_text`: the same, averaged over the tokens of the steered continuation.
    - `perplexity`: of the continuation under the unsteered model. The coherence: high is odd.
    - `score`: `kl / (1 + max(0, ln perplexity - ln baseline perplexity))`, effect divided by one plus the extra nats a
      token that the unsteered model finds in the continuation beyond its own. This project's choice, for ranking only.
    - `distinct_2`: distinct bigrams over bigrams of the continuation; near 0 is a loop.
    """

    ranked_by: ClassVar[str] = "score"

    rows: pd.DataFrame  # in the order in which they were made
    baseline: dict[str, Any]  # the unsteered model: text, perplexity
    settings: SweepConfig
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", {"analysis": "steering.sweep_latents", **self.settings.model_dump()})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "LatentSweep":
        """A sweep that was made before, finished or not (then with the rows that there are).

        Raises:
            BadFile: the folder holds no sweep, or a file in it is damaged.
        """
        home = Path(folder)
        settings = claimed(home, SweepConfig)
        return cls(parts_of(home), read_object(home / "baseline.json"), settings, home)

    @property
    def table(self) -> pd.DataFrame:
        return self.rows.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def plot(self) -> Figure:
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


# ---------------------------------------------------------------------- files
def part_path(home: Path, number: int) -> Path:
    return home / "parts" / f"part-{number:06}.parquet"


def parts_of(home: Path) -> pd.DataFrame:
    files = sorted((home / "parts").glob("part-*.parquet"))
    return pd.concat([_part(file) for file in files]) if files else pd.DataFrame(columns=COLUMNS)


def _part(file: Path) -> pd.DataFrame:
    """Raises `BadFile` for what is no part of a sweep."""
    try:
        rows = pd.read_parquet(regular_file(file))
        kinds = [rows[name].dtype.kind for name in COLUMNS]
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own errors are among these
        raise BadFile(f"{file} is damaged ({cause(error)}); remove it, and run the sweep again") from error
    if any(kind not in ("O" if name == "text" else "iuf") for name, kind in zip(COLUMNS, kinds)):
        raise BadFile(f"{file} holds other columns than a sweep's; remove it, and run the sweep again")
    return rows


def write_report(home: Path, rows: pd.DataFrame, config: SweepConfig, baseline: dict[str, Any]) -> None:
    """`sweep.txt`: a block per latent, a line per value."""
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
