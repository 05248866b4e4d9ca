"""Measure learning rates of training: the table in docs/training.md.

    python recipes/learning_rates.py --corpora PATH --work work 150,1024,4096 600,4096,1024

Each cell is `steps,width,batch`; its rates are the default times `--times`, for each of `--seeds`. Activations are
harvested once to `--work` (210,000 of the training texts, 9,000 of WikiText-2) and read under a global shuffle, again
where a run needs more. A line of JSON is printed for each run: FVE on held-out text, and the share of latents that are
dead at the end.
"""

import argparse
import json
import math
from pathlib import Path

import torch

import monosem as ms
from monosem.activations import ActivationShards
from monosem.data import TokenStore, interleaved, texts
from monosem.dictionaries import TrainConfig
from monosem.dictionaries.training.forward import forward_of
from monosem.dictionaries.training.state import TrainingState
from monosem.dictionaries.training.step import train_step
from monosem.jobs import Health

SITE, CPU = "resid_post.15", torch.device("cpu")
TRAINING = {"openstax_ccby": 4, "standard_ebooks": 3, "peps": 1.5, "factbook": 1, "gsm8k/train.jsonl.gz": 1}
HELD_OUT = "wikitext2/test.txt"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+")
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=212_992)
    parser.add_argument("--times", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--k", type=int, default=32)
    return parser.parse_args()


def shards(args: argparse.Namespace, name: str) -> ActivationShards:
    model = ms.load_model("smollm2", dtype="auto", quiet=True)
    if name == "held_out":
        store = TokenStore.build(model, texts(args.corpora / HELD_OUT), 256, tokens=9_216)
    else:
        mixed = interleaved(
            [texts(args.corpora / path, chat=model) for path in TRAINING], seed=0, weights=list(TRAINING.values())
        )
        store = TokenStore.build(model, mixed, 256, tokens=args.tokens)
    return ActivationShards.build(model, store, SITE, args.work / name, shard_windows=64, quiet=False)


def measured(source: ActivationShards, held_out: torch.Tensor, config: TrainConfig) -> dict[str, float]:
    epochs = math.ceil(config.tokens / source.tokens)
    stream = source.stream(batch_tokens=config.batch_tokens, seed=1000 + config.seed, epochs=epochs)
    first = [next(stream) for _ in range(min(max(32_768 // config.batch_tokens, 1), config.steps))]
    state = TrainingState.begin(config, first, CPU)
    for _ in range(config.steps):
        x = state.pending.pop(0) if state.pending else next(stream)
        train_step(state, config, x, CPU, Health(CPU), logged=False)
    with torch.no_grad():
        error = torch.zeros(())
        for rows in held_out.split(2048):
            done = forward_of(config, CPU)(state.form, rows * state.scales[0], config)
            error += (rows - done.reconstruction / state.scales[0]).square().sum()
    spread = (held_out - held_out.mean(0)).square().sum()
    dead = (state.silent >= config.dead_after).float().mean()
    return {"fve": round(1 - float(error / spread), 4), "dead": round(float(dead), 4)}


def main() -> None:
    args = arguments()
    source, other = shards(args, "training"), shards(args, "held_out")
    held_out = other.rows(SITE, torch.arange(8192)).float()
    for cell in args.cells:
        steps, width, batch = map(int, cell.split(","))
        for seed in args.seeds:
            config = TrainConfig(
                model="smollm2", site=SITE, width=width, k=args.k, tokens=steps * batch, batch_tokens=batch, seed=seed,
                precision="fast",
            )  # fmt: skip
            for times in args.times:
                lr = config.peak_lr * times
                found = measured(source, held_out, config.model_copy(update={"lr": lr}))
                print(json.dumps({"cell": cell, "seed": seed, "times": times, "lr": lr, **found}), flush=True)


if __name__ == "__main__":
    main()
