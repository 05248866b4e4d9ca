"""SAE training tokens/s: one optimiser step of monosem, of SAELens' trainer, of sparsify and of a plain PyTorch loop.

Same activations (harvested from the embedded model), sizes, optimiser (Adam) and learning rate, in float32. Each trains
as it does in use: with its dead-latent counts, clipping and, where it has one, the norm constraint, and reports the
explained variance of its step. No latent is dead so early, so nobody has an auxiliary loss. Every fit has to
improve on the batch that it saw first. Each contestant has a process of its own, and they take turns. Memory: by how
much the highest resident memory of its process is, after two steps, above what was there before its first weights.
"""

import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sae_lens
import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor, nn

from common import SITE, arguments, forget_highest, interleaved, machine, resident, row, windows
from monosem import load_model
from monosem.activations import harvest
from monosem.dictionaries.training.config import TrainConfig
from monosem.dictionaries.training.state import TrainingState
from monosem.dictionaries.training.step import train_step
from monosem.jobs import Health, keep_freed_memory

FULL = [{"width": width, "k": 32, "batch": 4096, "batches": 4} for width in (8192, 32768)]
TINY = [{"width": width, "k": 8, "batch": 256, "batches": 1} for width in (1024, 2048)]
LR = 3e-4
D = 576  # of the embedded model
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
    keep_freed_memory()  # as `train` does
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


def sparsify_step(batches: Batches, size: dict[str, int]) -> Step:
    """What its trainer does in a step, with its Adam; activations as they are."""
    config = SparseCoderConfig(num_latents=size["width"], k=size["k"])
    sae = SparseCoder(batches[0].shape[1], config, dtype=torch.float32)
    sae.b_dec.data = batches[0].mean(0)
    optimizer, silent = torch.optim.Adam(sae.parameters(), lr=LR), torch.zeros(size["width"], dtype=torch.long)
    stream = itertools.cycle(batches)

    def step() -> float:
        x = next(stream)
        sae.set_decoder_norm_to_unit_norm()
        output = sae(x, x, total_variance=(x - x.mean(0)).pow(2).sum())
        fired = torch.zeros(size["width"], dtype=torch.bool)
        fired[output.latent_indices.flatten()] = True
        output.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent.add_(len(x))
        silent[fired] = 0
        return 1 - float(output.fvu)

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


SPARSE = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
CONTESTANTS: dict[str, dict[str, Callable[[Batches, dict[str, int]], Step]]] = {  # of each table, monosem first
    "TopK": {
        "monosem": monosem_step,
        "SAELens": saelens_step,
        # with its default rescaling, its sparse codes raise NotImplementedError in the backward pass (torch 2.13)
        "SAELens, sparse codes": partial(saelens_step, **SPARSE),
        "sparsify": sparsify_step,
        "plain PyTorch": plain_step,
    },
    "BatchTopK": {
        "monosem": partial(monosem_step, kind="batchtopk"),
        "SAELens": partial(saelens_step, kind="BatchTopK"),
        "SAELens, no rescaling": partial(saelens_step, kind="BatchTopK", rescale_acts_by_decoder_norm=False),
    },
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


def work(pipe: Connection, kind: str, name: str, size: dict[str, int], threads: int, saved: Path) -> None:
    """A contestant's process: it sends by how many MB two steps raise its highest resident memory, and how well each of
    them fits; then it makes a step and sends its fit whenever it is asked."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batches = torch.load(saved)
    forget_highest()
    before = resident("VmRSS")
    step = CONTESTANTS[kind][name](batches, size)
    fits = [step(), step()]
    pipe.send((resident("VmHWM") - before, fits))
    while pipe.recv():
        pipe.send(step())


class Contestant:
    """A process of its own, so that what one package does to the memory of its process does nothing to the others."""

    def __init__(self, kind: str, name: str, size: dict[str, int], threads: int, saved: Path):
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=work, args=(far, kind, name, size, threads, saved), daemon=True)
        self.process.start()
        far.close()
        self.megabytes, self.fits = self.pipe.recv()

    def step(self) -> None:
        self.pipe.send(True)
        self.fits.append(self.pipe.recv())

    def end(self) -> None:
        self.pipe.send(False)
        self.process.join()


def compared(kind: str, size: dict[str, int], rounds: int, threads: int, saved: Path) -> list[dict[str, Any]]:
    """The rows of a table."""
    started = {name: Contestant(kind, name, size, threads, saved) for name in CONTESTANTS[kind]}
    seconds = interleaved({name: one.step for name, one in started.items()}, rounds)
    rows = []
    for name, one in started.items():
        one.end()
        last = (len(one.fits) - 1) // size["batches"] * size["batches"]  # the last step on the batch of the first
        print(f"{size['width']} {kind} {name}: explained {one.fits[0]:.3f}, {last} steps later {one.fits[last]:.3f}")
        assert one.fits[last] > one.fits[0], f"{name} does not learn"
        line = {**row(name, size["batch"], seconds, "monosem"), "fve": [one.fits[0], one.fits[-1]]}
        rows.append({"kind": kind, "d": D, **size, **line, "mb": one.megabytes})
    return rows


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    packages = ["torch", "monosem", "sae-lens", "transformer-lens", "eai-sparsify"]
    found: dict[str, Any] = {"machine": machine(options.threads, packages), "rows": []}
    sizes = TINY if options.tiny else FULL
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "activations.pt"
        torch.save(activations(sizes[0]), saved)
        for size, kind in itertools.product(sizes, CONTESTANTS):
            found["rows"] += compared(kind, size, options.rounds, options.threads, saved)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
