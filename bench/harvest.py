"""Harvest tokens/s at resid_post.15 of the embedded model: monosem, bare Hugging Face, TransformerLens, nnsight.

Every contestant gets the same weights, ids, dtype and batch, stops after block 15, and is checked before it is timed.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import peers
from common import LAYERS, SITE, arguments, interleaved, machine, row, windows
from monosem import load_model
from monosem.activations import ActivationBatch, Harvest, harvest
from monosem.models.loading.catalogue import EMBEDDED
from monosem.models.loading.embedded import ensure

SHAPES = [(8, 256)]  # batch, context
DTYPES = [torch.float32, torch.bfloat16]
HOOK = f"blocks.{LAYERS - 1}.hook_resid_post"
# relative error of the median token, against Hugging Face in float32, that still counts as the same activations
SAME = {torch.float32: 1e-5, torch.bfloat16: 0.03}

Ids = Int[Tensor, "batch pos"]
Read = Callable[[Ids], Any]


def monosem_run(folder: str, dtype: torch.dtype) -> Read:
    """One forward pass with one capture."""
    model = load_model(folder, dtype=dtype, quiet=True)
    return lambda ids: model.run(ids, capture=SITE, logits=False)[SITE]


def monosem_harvest(folder: str, dtype: torch.dtype) -> Read:
    """What training reads: special tokens, first positions and outliers are found and left out."""
    model = load_model(folder, dtype=dtype, quiet=True)
    everything: dict[int, Harvest] = {}

    def read(ids: Ids) -> ActivationBatch:
        batch, context = ids.shape
        if context not in everything:  # measures the norms of some windows once, in the untimed call
            everything[context] = harvest(model, windows(model, context), SITE, batch_size=batch)
        return everything[context].read(torch.arange(batch))

    return read


def bare_hf(folder: str, dtype: torch.dtype) -> Read:
    """The base model cut to 16 blocks, and one hook."""
    model = peers.native(folder, dtype).model
    model.layers = model.layers[:LAYERS]
    kept: list[Tensor] = []
    model.layers[-1].register_forward_hook(lambda _module, _args, output: kept.append(output))

    def read(ids: Ids) -> Tensor:
        kept.clear()
        model(ids, use_cache=False)
        return kept[0]

    return read


def lens(folder: str, dtype: torch.dtype) -> Read:
    """One cached hook, early stop."""
    model = peers.lens(folder, dtype)
    return lambda ids: model.run_with_cache(ids, names_filter=HOOK, stop_at_layer=LAYERS)[1][HOOK]


def nnsight(folder: str, dtype: torch.dtype) -> Read:
    """One save, early stop."""
    model = peers.traced(folder, dtype)
    block = model.model.layers[LAYERS - 1]

    def read(ids: Ids) -> Tensor:
        with model.trace(input_ids=ids) as tracer:
            kept = block.output.save()
            tracer.stop()
        return kept

    return read


# the second TransformerLens is measured beside one contestant of the others
CONTESTANTS = {"monosem run": monosem_run, peers.LENS_NAME: lens}
if not peers.BRIDGE:
    CONTESTANTS |= {
        "monosem harvest": monosem_harvest,
        "Hugging Face, 16 blocks + hook": bare_hf,
        peers.NNSIGHT_NAME: nnsight,
    }


def errors(result: Any, truth: Float[Tensor, "batch pos d"]) -> dict[str, float]:
    """Relative errors against Hugging Face in float32: of the median token, and of the worst."""
    if isinstance(result, ActivationBatch):
        truth, result = truth[result.windows, result.positions], result[SITE]
    of_tokens = (result.float() - truth).norm(dim=-1) / truth.norm(dim=-1)
    return {"median_error": float(of_tokens.median()), "largest_error": float(of_tokens.max())}


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    found = {"machine": machine(options.threads, peers.PACKAGES), "rows": []}
    folder = str(ensure(EMBEDDED["smollm2"]))
    model = load_model(folder, quiet=True)
    shapes = [(1, 32)] if options.tiny else SHAPES
    inputs = [windows(model, context)[:batch] for batch, context in shapes]
    truths = [bare_hf(folder, torch.float32)(ids) for ids in inputs]
    for dtype in DTYPES:
        readers = {name: prepare(folder, dtype) for name, prepare in CONTESTANTS.items()}
        for ids, truth in zip(inputs, truths):
            found_errors = {name: errors(read(ids), truth) for name, read in readers.items()}
            print(dtype, tuple(ids.shape), found_errors, flush=True)
            for name, error in found_errors.items():
                assert error["median_error"] < SAME[dtype], f"{name} does not compute the same activations"
            seconds = interleaved({name: partial(read, ids) for name, read in readers.items()}, options.rounds)
            case = {"dtype": str(dtype).removeprefix("torch."), "batch": list(ids.shape)}
            found["rows"] += [
                {**case, **row(name, ids.numel(), seconds, "monosem run"), **found_errors[name]} for name in seconds
            ]
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
