"""What training gives: monosem's and SAELens' trainers on the same cached activations, judged on held-out text.

Equal tokens, batches in the same order, k, width and float32; all else is each one's default. SAELens runs a second
time on our schedule: its rate rises and falls as ours does, and a latent is dead after as many tokens as ours is (its
own 1,000 steps are more than the run has, so that it never revives one). The learning rate of each is chosen from the
same list by the FVE of the first seed on held-out activations; the other seeds (of the initial weights) run with that
one. Both are judged by `monosem.dictionaries.evaluate` from the files that they save, with no token of the training
text.
"""

import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sae_lens
import torch
from jaxtyping import Float, Int
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from common import SITE, arguments, machine, windows
from monosem import Dictionary, Model, load_dictionary, load_model
from monosem.activations import SkipRule, harvest
from monosem.dictionaries import evaluate
from monosem.dictionaries.training import TrainConfig, train_on
from monosem.errors import BadInput

FULL = {"width": 2048, "k": 32, "batch": 1024, "tokens": 600 * 1024, "held_out": 8192}
TINY = {"width": 256, "k": 8, "batch": 128, "tokens": 4 * 128, "held_out": 512}
RATES = [1e-3, 3e-3, 6e-3, 1.2e-2]
SEEDS = [0, 1, 2]
KINDS = ["TopK", "BatchTopK"]

Size = dict[str, int]
Schedule = Callable[[Size], dict[str, int]]


class Batches:
    """The cached activations again and again, each time in another order."""

    def __init__(self, x: Float[Tensor, "n d"], batch: int):
        self.x, self.batch, self.step = x, batch, 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Float[Tensor, "batch d"]:
        per_epoch = len(self.x) // self.batch
        epoch, at = divmod(self.step, per_epoch)
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(epoch))
        self.step += 1
        return self.x[order[at * self.batch : (at + 1) * self.batch]]

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def by_monosem(x: Tensor, size: Size, kind: str, lr: float, seed: int, folder: Path) -> Path:
    config = TrainConfig(
        model="smollm2",
        site=SITE,
        kind=kind.lower(),
        width=size["width"],
        k=size["k"],
        tokens=size["tokens"],
        batch_tokens=size["batch"],
        lr=lr,
        seed=seed,
        outlier=None,  # the activations have none
    )
    with contextlib.suppress(BadInput):  # of a rate that kills most latents; what it made is judged all the same
        train_on(Batches(x, size["batch"]), config, folder=folder, quiet=True)
    return folder / "dictionary"


def by_saelens(
    x: Tensor, size: Size, kind: str, lr: float, seed: int, folder: Path, schedule: Schedule = lambda size: {}
) -> Path:
    torch.manual_seed(seed)
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(
        d_in=x.shape[1], d_sae=size["width"], k=size["k"], normalize_activations="expected_average_only_in"
    )
    sizes = SAETrainerConfig(
        total_training_samples=size["tokens"],
        train_batch_size_samples=size["batch"],
        lr=lr,
        lr_end=lr,  # its default, None, raises AssertionError
        n_batches_for_norm_estimate=len(x) // size["batch"],
        **schedule(size),
    )
    stream = Batches(x, size["batch"])
    trainer = SAETrainer(sizes, getattr(sae_lens, f"{kind}TrainingSAE")(config), stream)
    scaled = trainer.activation_scaler.estimate_scaling_factor
    trainer.activation_scaler.estimate_scaling_factor = lambda *a, **k: (scaled(*a, **k), setattr(stream, "step", 0))
    trainer.fit().save_inference_model(folder)
    return folder


def our_schedule(size: Size) -> dict[str, int]:
    """SAELens' settings for the schedule that `TrainConfig` has by default."""
    ours = TrainConfig(
        model="smollm2", site=SITE, width=size["width"], k=size["k"], tokens=size["tokens"], batch_tokens=size["batch"]
    )
    rates = [ours.lr_at(step) for step in range(ours.steps)]
    warmup = rates.index(max(rates)) + 1
    falls = sum(rate < max(rates) for rate in rates[warmup:])
    return {
        "lr_warm_up_steps": warmup,
        "lr_decay_steps": falls,
        "dead_feature_window": ours.dead_after // size["batch"],
    }


TRAINERS: dict[str, Callable[..., Path]] = {
    "monosem": by_monosem,
    "SAELens": by_saelens,
    "SAELens, our schedule": partial(by_saelens, schedule=our_schedule),
}


def cached(model: Model, ids: Int[Tensor, "n context"]) -> Float[Tensor, "tokens d"]:
    return torch.cat([batch[SITE] for batch in harvest(model, ids, SITE, batch_size=8, dtype=torch.float32)])


def judged(model: Model, folder: Path, ids: Int[Tensor, "n context"]) -> dict[str, float]:
    found = evaluate(model, saved(folder), ids, quiet=True)
    names = {"fve": "fve", "ce_recovered": "ce_recovered", "l0": "l0", "dead": "dead_fraction"}
    return {name: float(getattr(found, field)) for name, field in names.items()}


def saved(folder: Path) -> Dictionary:
    return load_dictionary(folder, site=SITE, model_name="smollm2", skip=SkipRule())


def fve(folder: Path, x: Float[Tensor, "n d"]) -> float:
    """Of activations that are there already: what a rate is chosen by."""
    rebuilt = saved(folder)(x)
    return float(1 - (x - rebuilt).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@dataclass
class Data:
    """The model, held-out windows, and activations of these and of the other windows."""

    model: Model
    ids: Int[Tensor, "n context"]
    held_out: Float[Tensor, "n d"]
    x: Float[Tensor, "n d"]


def row_of(kind: str, name: str, data: Data, size: Size, rates: list[float], seeds: list[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:

        def train(lr: float, seed: int) -> Path:
            folder = Path(home) / f"{lr}-{seed}"
            folder.mkdir()
            return TRAINERS[name](data.x, size, kind, lr, seed, folder)

        made = {lr: train(lr, seeds[0]) for lr in rates}
        sweep = {lr: fve(folder, data.held_out) for lr, folder in made.items()}
        best = max(sweep, key=lambda lr: sweep[lr])
        runs = [
            judged(data.model, folder, data.ids) for folder in (made[best], *(train(best, seed) for seed in seeds[1:]))
        ]
    values = {key: [run[key] for run in runs] for key in runs[0]}
    spread = {key: [statistics.mean(each), statistics.stdev(each)] for key, each in values.items()}
    return {"kind": kind, "name": name, "lr": best, "sweep": sweep, "cached": len(data.x), **size, **spread}


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    size, rates, seeds = (TINY, RATES[:2], SEEDS[:2]) if options.tiny else (FULL, RATES, SEEDS)
    found: dict[str, Any] = {"machine": machine(options.threads, ["torch", "monosem", "sae-lens"]), "rows": []}
    if options.out.exists():  # it goes on after the last whole row
        found = json.loads(options.out.read_text())
    done = {(row["kind"], row["name"]) for row in found["rows"]}
    missing = [(kind, name) for kind in KINDS for name in TRAINERS if (kind, name) not in done]
    if not missing:
        return
    model = load_model("smollm2", dtype="auto", quiet=True)
    ids = windows(model, 256)
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]  # pages of all subjects in both
    held = -(-size["held_out"] // ids.shape[1])
    rest = ids[held : held + 8] if options.tiny else ids[held:]
    data = Data(model, ids[:held], cached(model, ids[:held]), cached(model, rest))
    for kind, name in missing:
        row = row_of(kind, name, data, size, rates, seeds)
        print(row, flush=True)
        found["rows"].append(row)
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
