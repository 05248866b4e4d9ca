"""Meta-structure: are the decoder's rows themselves sums of a few shared directions?"""

import math
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..covariance import same_covariance
from ..dictionaries import Dictionary, TrainConfig, one_site, train_on
from ..errors import BadInput
from ..models import Model
from ..progress import Meter
from ..statistics import Interval, bootstrap_ratio
from .baselines import random_dictionary
from .task import ALL, DICTIONARY, RANDOM, Score, Scores, TaskConfig

COVARIANCE = "random, same covariance"
FEWEST = 32  # rows to test on
INTERVAL = "95 %, rows drawn again"


class MetaStructureConfig(TaskConfig):
    k: int = Field(default=4, ge=1, description="directions a row, in the mean")
    width: float = Field(default=0.25, gt=0, le=1, description="directions, as a share of the rows")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of the rows that are only tested on")
    steps: int = Field(default=600, ge=10, description="of training")
    batch_rows: int = Field(default=512, ge=16, description="rows a step")


class RowStream:
    """Rows of a matrix in batches, in a new order each time round; it goes on exactly from its state."""

    def __init__(self, rows: Float[Tensor, "n d"], batch: int, seed: int):
        self.rows, self.batch, self.seed, self.served = rows, batch, seed, 0

    def __next__(self) -> Float[Tensor, "batch d"]:
        n, start = len(self.rows), self.served * self.batch
        orders: dict[int, np.ndarray] = {}
        chosen = []
        for at in range(start, start + self.batch):
            turn = at // n
            if turn not in orders:
                orders[turn] = np.random.default_rng((self.seed, turn)).permutation(n)
            chosen.append(orders[turn][at % n])
        self.served += 1
        return self.rows[torch.as_tensor(np.array(chosen))]

    def state_dict(self) -> dict[str, Any]:
        return {"served": self.served}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.served = int(state["served"])


def meta_structure(
    model: Model, dictionary: Dictionary, config: MetaStructureConfig | None = None, *, quiet: bool = False
) -> Scores:
    """How much of the decoder's rows a small dictionary of them explains: a BatchTopK of a quarter of the width, k = 4,
    as SAEBench 0.6 (rows as they are, not normalised), beside random rows.

    Baselines: rows of the same norms in random directions; random rows of the same mean and covariance, so that what
    is above these is structure beyond covariance. The activation's own dimensions have no rows of interest.

    Measures: "fve_held_out", 1 - Σ|e|² / Σ|w - mean|² over rows that it was not trained on; "fve", over those that
    it was, which SAEBench reports, and which a dictionary with a direction for every fourth row can reach by heart.

    Raises:
        BadInput: too few rows.
    """
    config = config or MetaStructureConfig.parse({})
    check_rows(dictionary, config)
    rows = dictionary.W_dec.detach().float().cpu()
    seed = config.seed
    made = {
        DICTIONARY: rows,
        RANDOM: random_dictionary(dictionary, 1.0, seed=seed).W_dec.detach().float().cpu(),
        COVARIANCE: same_covariance(rows, seed),
    }
    scores, notes = [], ["Lower is not worse: more meta-structure means that latents are compositions of others."]
    for arm, some in made.items():
        with Meter(f"meta_structure: {arm}", total=config.steps, unit="step", quiet=quiet) as meter:
            found, complaint = _measured(some, config, meter)
        scores += [Score(arm, ALL, name, None, interval) for name, interval in found.items()]
        notes += [f"{arm}: {complaint}."] if complaint else []
    told = config.model_dump(mode="json")
    return Scores.of("meta_structure", scores, "fve_held_out", notes=notes, **told, interval=INTERVAL)


def check_rows(dictionary: Dictionary, config: MetaStructureConfig) -> None:
    """Raises `BadInput` for a decoder of too few rows."""
    n = dictionary.width
    if n * config.held_out < FEWEST or n * config.width < config.k:
        raise BadInput(f"a decoder of {n} rows is too small: {FEWEST} must be held out, and k directions made")


def row_fve(rows: Float[Tensor, "n d"], rebuilt: Float[Tensor, "n d"]) -> Interval:
    """1 - Σ|e|² / Σ|w - mean|² (NaN for equal rows, of which SAEBench says 0)."""
    error = (rows - rebuilt).double().square().sum(1)
    spread = (rows - rows.mean(0)).double().square().sum(1)
    if not bool(spread.sum() > 0):
        return Interval(math.nan, math.nan, math.nan)
    unexplained = bootstrap_ratio(error, spread)
    return Interval(1 - unexplained.value, 1 - unexplained.high, 1 - unexplained.low)


def saebench_fve(rows: Float[Tensor, "n d"], rebuilt: Float[Tensor, "n d"]) -> tuple[float, float]:
    """FVE and mean squared error an element, as sae-bench 0.6.0; FVE 0 where all rows are equal."""
    residual, spread = float((rows - rebuilt).square().sum()), float((rows - rows.mean(0)).square().sum())
    return (1 - residual / spread if spread else 0.0), residual / rows.numel()


def _measured(
    rows: Float[Tensor, "n d"], config: MetaStructureConfig, meter: Meter
) -> tuple[dict[str, Interval], str | None]:
    """The numbers of some rows, and what the trainer had to say against its own result."""
    order = torch.as_tensor(np.random.default_rng(config.seed).permutation(len(rows)))
    test, train = rows[order].tensor_split([round(config.held_out * len(rows))])
    meta, complaint = trained(train, config, meter)
    held = {"fve_held_out": row_fve(test, meta(test)), "fve": row_fve(train, meta(train))}
    l0 = meta.encode(test).l0().double()
    return held | {"l0": Interval(float(l0.mean()), math.nan, math.nan)}, complaint


def trained(rows: Float[Tensor, "n d"], config: MetaStructureConfig, meter: Meter) -> tuple[Dictionary, str | None]:
    """A dictionary of rows, by the trainer; one that it calls unfinished is used all the same, and that is told."""
    settings = TrainConfig.parse(
        {
            "model": "decoder rows",
            "site": "resid_post.0",
            "width": max(math.ceil(len(rows) * config.width), config.k),
            "kind": "batchtopk",
            "k": config.k,
            "tokens": config.steps * config.batch_rows,
            "batch_tokens": config.batch_rows,
            "outlier": None,
            "seed": config.seed,
            "device": "cpu",
        }
    )

    def noted(record: Mapping[str, float | None]) -> None:
        meter.advance(settings.log_every, fve=record["fve"])

    with tempfile.TemporaryDirectory(prefix="monosem-meta-") as folder:
        stream = RowStream(rows, config.batch_rows, config.seed)
        try:
            made = train_on(stream, settings, folder=f"{folder}/run", quiet=True, on_step=noted)
            assert isinstance(made, Dictionary)
            return made, None
        except BadInput as error:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that it is unfinished; the notes say so
                return one_site(f"{folder}/run/dictionary"), str(error).split(". It is saved")[0]
