"""SAE training tokens/s: one optimiser step of monosem, of SAELens' trainer, and of a plain dense PyTorch loop.

Same activations (harvested from the embedded model), sizes, optimiser (Adam) and learning rate, in float32. Each trains
as it does in use: with its dead-latent counts, clipping and, where it has one, the norm constraint, and reports the
explained variance of its step. No latent is dead so early, so nobody has an auxiliary loss. Every fit has to
improve on the batch that it saw first.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import sae_lens
import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor, nn

from common import SITE, arguments, interleaved, machine, row, windows
from monosem import load_model
from monosem.activations import harvest
from monosem.dictionaries.training.config import TrainConfig
from monosem.dictionaries.training.state import TrainingState
from monosem.dictionaries.training.step import train_step
from monosem.jobs import Health

FULL = {"width": 8192, "k": 32, "batch": 4096, "batches": 4}
TINY = {"width": 1024, "k": 8, "batch": 256, "batches": 1}
LR = 3e-4
RUN = 100_000_000  # tokens of the run that these are the first steps of

Batches = list[Float[Tensor, "batch d"]]
Step = Callable[[], float]  # one optimiser step on the next batch; gives the fraction of variance explained before it


def explained(x: Float[Tensor, "batch d"], reconstruction: Float[Tensor, "batch d"]) -> float:
    return 1 - float((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())


def monosem_step(batches: Batches, size: dict[str, int], **changes: Any) -> Step:
    config = TrainConfig(
        model="smollm2",
        site=SITE,
        width=size["width"],
        k=size["k"],
        batch_tokens=size["batch"],
        tokens=RUN,
        lr=LR,
        warmup_steps=0,
        **changes,
    )
    device = torch.device("cpu")
    state, health, stream = TrainingState.begin(config, batches, device), Health(device), itertools.cycle(batches)

    def step() -> float:
        record = train_step(state, config, next(stream), device, health, logged=True)
        health.check(None)
        return record["fve"]

    return step


def saelens_step(batches: Batches, size: dict[str, int], kind: str = "TopK", **changes: Any) -> Step:
    """Its training SAE and trainer with their defaults; activations scaled to norm √d by its own scaler."""
    sizes = {"d_in": batches[0].shape[1], "d_sae": size["width"], "k": size["k"]}
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(
        **sizes, normalize_activations="expected_average_only_in", **changes
    )
    stream: Iterator[Tensor] = itertools.cycle(batches)
    trainer = SAETrainer(
        SAETrainerConfig(total_training_samples=RUN, train_batch_size_samples=size["batch"], lr=LR, lr_end=LR),
        getattr(sae_lens, f"{kind}TrainingSAE")(config),
        stream,
    )
    trainer.activation_scaler.estimate_scaling_factor(sizes["d_in"], stream, len(batches))

    def step() -> float:
        trainer.maybe_reset_sparsity()
        output = trainer.step(next(stream))
        trainer.n_training_steps += 1
        return explained(output.sae_in, output.sae_out.detach())

    return step


def plain_step(batches: Batches, size: dict[str, int]) -> Step:
    """The few lines of PyTorch that one would write first: dense products and autograd, nothing else."""
    scale = 1 / torch.cat(batches).square().mean().sqrt()
    rows = nn.functional.normalize(torch.randn(size["width"], batches[0].shape[1]), dim=1)
    W_enc, W_dec = nn.Parameter(rows.T.clone()), nn.Parameter(rows)
    b_enc, b_dec = nn.Parameter(torch.zeros(len(rows))), nn.Parameter(torch.zeros(rows.shape[1]))
    optimizer = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=LR)
    stream = itertools.cycle(batches)

    def step() -> float:
        x = next(stream) * scale
        pre = (x - b_dec) @ W_enc + b_enc
        values, columns = pre.topk(size["k"], sorted=False)
        reconstruction = torch.zeros_like(pre).scatter(1, columns, values.relu()) @ W_dec + b_dec
        (x - reconstruction).square().sum(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return explained(x, reconstruction.detach())

    return step


CONTESTANTS: dict[str, Callable[[Batches, dict[str, int]], Step]] = {
    "monosem TopK": monosem_step,
    "monosem TopK, precision: fast": partial(monosem_step, precision="fast"),
    "SAELens TopK": saelens_step,
    # its sparse codes raise NotImplementedError in the backward pass together with its default rescaling (torch 2.13)
    "SAELens TopK, sparse codes": partial(
        saelens_step, use_sparse_activations=True, rescale_acts_by_decoder_norm=False
    ),
    "plain PyTorch TopK": plain_step,
    "monosem BatchTopK": partial(monosem_step, kind="batchtopk"),
    "SAELens BatchTopK": partial(saelens_step, kind="BatchTopK"),
}


def activations(size: dict[str, int]) -> Batches:
    """Shuffled activations of the embedded model on English text."""
    model = load_model("smollm2", dtype="auto", quiet=True)
    wanted = size["batch"] * size["batches"]
    parts: Batches = []
    for batch in harvest(model, windows(model, 256), SITE, batch_size=8, dtype=torch.float32):
        parts.append(batch[SITE])
        if sum(map(len, parts)) >= wanted:
            break
    x = torch.cat(parts)[:wanted]
    assert len(x) == wanted, "too little text"
    return list(x[torch.randperm(wanted)].split(size["batch"]))


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found = {"machine": machine(options.threads, ["torch", "monosem", "sae-lens", "transformer-lens"])}
    size = TINY if options.tiny else FULL
    batches = activations(size)
    steps = {name: prepare(batches, size) for name, prepare in CONTESTANTS.items()}
    fits: dict[str, list[float]] = {name: [] for name in steps}
    timed = {name: lambda name=name: fits[name].append(steps[name]()) for name in steps}
    seconds = interleaved(timed, options.rounds)
    last = options.rounds - options.rounds % len(batches)  # the last step on the batch of the first
    for name, fit in fits.items():
        print(f"{name}: explained variance {fit[0]:.3f}, {last} steps later {fit[last]:.3f}", flush=True)
        assert fit[last] > fit[0], f"{name} does not learn"
    found |= {"d": batches[0].shape[1], **size}
    found["rows"] = [
        {**row(name, size["batch"], seconds, "monosem TopK"), "fve": [fits[name][0], fits[name][-1]]}
        for name in seconds
    ]
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
