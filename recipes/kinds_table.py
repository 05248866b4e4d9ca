"""Train every kind on the same activations: the table "which kind" in docs/training.md.

    python recipes/kinds_table.py --corpora PATH --work work

The activations are harvested as in `learning_rates.py`. A line of JSON is printed for each kind: FVE and L0 of the
saved file on held-out text, and seconds of processor time.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from jaxtyping import Float
from learning_rates import SITE, shards
from torch import Tensor

from monosem.activations import ActivationShards
from monosem.dictionaries import Dictionary, TrainConfig
from monosem.dictionaries.training import train_on

KINDS = ["topk", "batchtopk", "matryoshka", "abstopk", "jumprelu", "gated", "relu", "matching_pursuit"]
STEPS, BATCH = 300, 512


def config_of(kind: str) -> TrainConfig:
    aim = {"jumprelu": {"target_l0": 32}, "gated": {}, "relu": {}}.get(kind, {"k": 32})
    return TrainConfig(
        model="smollm2", site=SITE, kind=kind, width=1024, tokens=STEPS * BATCH, batch_tokens=BATCH, seed=0, **aim
    )


def trained(source: ActivationShards, config: TrainConfig) -> tuple[Dictionary, float]:
    """The dictionary, and the processor seconds that it took."""
    stream = source.stream(batch_tokens=BATCH, seed=0, epochs=-(-config.tokens // source.tokens) + 1)
    with tempfile.TemporaryDirectory() as home:
        before = time.process_time()
        made = train_on(stream, config, folder=Path(home) / "run", quiet=True)
        return made, time.process_time() - before


def measured(sae: Dictionary, x: Float[Tensor, "n d_model"]) -> dict[str, float]:
    codes = sae.encode(x)
    fve = 1 - (x - sae.decode(codes)).square().sum() / (x - x.mean(0)).square().sum()
    return {"fve": round(float(fve), 4), "l0": round(float((codes.dense() != 0).sum(-1).float().mean()), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=122_880)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    args = parser.parse_args()
    source, other = shards(args, "training"), shards(args, "held_out")
    held_out = other.rows(SITE, torch.arange(8192)).float()
    for kind in args.kinds:
        sae, seconds = trained(source, config_of(kind))
        print(json.dumps({"kind": kind, **measured(sae, held_out), "seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()
