"""Activations to disk, MB/s: monosem's ActivationShards and SAELens' CacheActivationsRunner, model and writing.

Same weights, windows, batch, site and dtype (float32), every token kept; what each wrote is read back and compared. Two
sites: one deep, where the model is most of the time, and the first block's, where writing is.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import datasets
import torch
from jaxtyping import Float, Int
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
from torch import Tensor

import peers
from common import arguments, interleaved, machine, row, windows
from monosem import load_model
from monosem.activations import ActivationShards, SkipRule
from monosem.models.loading.catalogue import EMBEDDED
from monosem.models.loading.embedded import ensure

BATCH, CONTEXT = 8, 256
LAYERS = (15, 0)
EVERYTHING = SkipRule(special=False, first=0, outlier=None)

Ids = Int[Tensor, "n context"]
Harvested = Callable[[], Float[Tensor, "tokens d"]]  # writes, and gives what it wrote where `kept`


def in_new_folder(
    write: Callable[[Path], Any], read: Callable[[Any], Tensor], kept: dict[str, Tensor], name: str
) -> None:
    folder = Path(mkdtemp())
    try:
        written = write(folder / "activations")
        if name not in kept:
            kept[name] = read(written)
    finally:
        shutil.rmtree(folder)


def monosem_write(model: Any, ids: Ids, layer: int, path: Path) -> tuple[ActivationShards, str]:
    site = f"resid_post.{layer}"
    return ActivationShards.build(model, ids, site, path, batch_size=BATCH, skip=EVERYTHING, context=ids.shape[1]), site


def monosem_read(written: tuple[ActivationShards, str]) -> Float[Tensor, "tokens d"]:
    """In the order of a shuffle."""
    shards, _ = written
    return torch.cat(list(shards.stream(batch_tokens=min(shards.tokens, 256), seed=0)))


def saelens_write(ids: Ids, layer: int, path: Path) -> datasets.Dataset:
    """With its defaults, but for a buffer of just these tokens: it writes whole buffers (of 2 GB) and would go through
    the text again and again to fill one."""
    d = 576
    config = CacheActivationsRunnerConfig(
        dataset_path="text",
        model_name="smollm2",
        model_batch_size=min(BATCH, len(ids)),
        hook_name=f"blocks.{layer}.hook_resid_post",
        d_in=d,
        training_tokens=ids.numel(),
        context_size=ids.shape[1],
        new_cached_activations_path=str(path),
        buffer_size_gb=ids.numel() * d * 4 / 1e9,
        prepend_bos=False,
        streaming=False,
        device="cpu",
    )
    return CacheActivationsRunner(
        config, override_dataset=datasets.Dataset.from_dict({"input_ids": ids.tolist()})
    ).run()


def saelens_read(dataset: datasets.Dataset) -> Float[Tensor, "tokens d"]:
    hook = next(name for name in dataset.column_names if name.startswith("blocks"))
    return dataset.with_format("torch")[:][hook].flatten(0, 1)


def same(a: Float[Tensor, "tokens d"], b: Float[Tensor, "tokens d"]) -> bool:
    """Whether the same rows were written, in any order (compared by sorted norms)."""
    norms = [x.double().norm(dim=1).sort().values for x in (a, b)]
    return len(a) == len(b) and torch.allclose(*norms, rtol=1e-4)


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    packages = ["torch", "monosem", "sae-lens", "transformer-lens", "datasets"]
    found: dict[str, Any] = {"machine": machine(options.threads, packages), "rows": []}
    folder = str(ensure(EMBEDDED["smollm2"]))
    model, lens = load_model(folder, dtype=torch.float32, quiet=True), peers.lens(folder, torch.float32)
    cache_activations_runner.load_model = lambda **_: lens  # its list of names lacks SmolLM2
    ids = windows(model, CONTEXT)[: 2 * BATCH if options.tiny else 12 * BATCH]
    for layer in LAYERS:
        kept: dict[str, Tensor] = {}
        writers = {
            "monosem ActivationShards": (partial(monosem_write, model, ids, layer), monosem_read),
            "SAELens CacheActivationsRunner": (partial(saelens_write, ids, layer), saelens_read),
        }
        seconds = interleaved(
            {name: partial(in_new_folder, write, read, kept, name) for name, (write, read) in writers.items()},
            max(options.rounds // 2, 1),
        )
        assert same(*kept.values()), "different activations were written"
        for name in seconds:
            line = row(name, ids.numel(), seconds, "monosem ActivationShards")
            mb = kept[name].numel() * 4 / 1e6
            speeds = {key: line[key] * mb / ids.numel() for key in ("fastest", "slowest")}
            middle = line["tokens_per_second"] * mb / ids.numel()
            found["rows"].append({**line, **speeds, "site": f"resid_post.{layer}", "mb_per_second": middle, "mb": mb})
        print(layer, {name: len(x) for name, x in kept.items()}, flush=True)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
