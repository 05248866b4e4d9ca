"""What hooks cost: a forward pass with logits and nothing, one site, the residual stream, or everything captured.

At two sizes of the embedded model, where the question is how much slower than bare Hugging Face a pass becomes, and on
a tiny model whose arithmetic takes next to no time, where it is how many microseconds a pass and a site cost.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import peers
from common import arguments, interleaved, machine, row, windows
from monosem import load_model
from monosem.models import Model
from monosem.models.loading.catalogue import EMBEDDED
from monosem.models.loading.embedded import ensure
from monosem.models.places.sites import PER_LAYER

BATCHES = [(2, 256), (1, 64)]
NATIVE = "Hugging Face"

Ids = Int[Tensor, "batch pos"]
Pass = Callable[[], Any]


def monosem_passes(folder: str, ids: Ids, layer: int) -> dict[str, tuple[Pass, int]]:
    model = load_model(folder, dtype="float32", quiet=True)
    stream = [f"resid_post.{n}" for n in range(model.cfg.n_layers)]
    every = [f"{name}.{n}" for name in PER_LAYER for n in range(model.cfg.n_layers) if offered(model, name)]
    choices = {
        "no site": [],
        "one site": [f"resid_post.{layer}"],
        "residual stream": stream,
        "every site": every,
    }
    return {f"monosem, {what}": (partial(model.run, ids, capture=sites), len(sites)) for what, sites in choices.items()}


def offered(model: Model, name: str) -> bool:
    """`result`, a vector of the stream for every head, is left out as it is by TransformerLens."""
    return name != "result" and model.has((name, 0))


def lens_passes(folder: str, ids: Ids, layer: int) -> dict[str, tuple[Pass, int]]:
    model = peers.lens(folder, torch.float32)
    stream = [f"blocks.{n}.hook_resid_post" for n in range(model.cfg.n_layers)]
    passes = {
        "no hook": (partial(model, ids), 0),
        "one hook": (partial(model.run_with_cache, ids, names_filter=stream[layer]), 1),
        "residual stream": (partial(model.run_with_cache, ids, names_filter=stream), len(stream)),
        "every hook": (partial(model.run_with_cache, ids), len(model.run_with_cache(ids[:1, :4])[1])),
    }
    return {f"{peers.LENS_NAME}, {what}": value for what, value in passes.items()}


def nnsight_passes(folder: str, ids: Ids, layer: int) -> dict[str, tuple[Pass, int]]:
    model = peers.traced(folder, torch.float32)
    blocks = model.model.layers

    def empty() -> Any:
        with model.trace(input_ids=ids):
            logits = model.output.logits.save()
        return logits

    def one() -> Any:
        with model.trace(input_ids=ids):
            kept = blocks[layer].output.save()
            logits = model.output.logits.save()
        return kept, logits

    def stream() -> Any:
        with model.trace(input_ids=ids):
            kept = [].save()  # type: ignore[attr-defined]
            for block in blocks:
                kept.append(block.output)
            logits = model.output.logits.save()
        return kept, logits

    passes = {"logits only": (empty, 0), "one save": (one, 1), "residual stream": (stream, len(blocks))}
    return {f"{peers.NNSIGHT_NAME}, {what}": value for what, value in passes.items()}


def all_passes(folder: str, ids: Ids, layer: int) -> dict[str, tuple[Pass, int]]:
    """The second TransformerLens is measured beside bare Hugging Face alone."""
    hf = peers.native(folder, torch.float32)
    found: dict[str, tuple[Pass, int]] = {NATIVE: (lambda: hf(ids, use_cache=False).logits, 0)}
    if peers.BRIDGE:
        return found | lens_passes(folder, ids, layer)
    return (
        found
        | monosem_passes(folder, ids, layer)
        | lens_passes(folder, ids, layer)
        | nnsight_passes(folder, ids, layer)
    )


def measure(folder: str, ids: Ids, layer: int, rounds: int) -> list[dict[str, Any]]:
    """Passes that keep much are slow themselves and need few rounds; the others are told apart by a few percent."""
    passes, rows = all_passes(folder, ids, layer), []
    check(passes)
    heavy = [name for name in passes if "stream" in name or "every" in name]
    light = [name for name in passes if name not in heavy]
    for group, times in ((light, rounds), ([NATIVE, *heavy], max(2, rounds // 2))):
        seconds = interleaved({name: passes[name][0] for name in group}, times)
        base = statistics.median(seconds[NATIVE])
        for name in group:
            if group is light or name != NATIVE:
                extra = statistics.median(mine - native for mine, native in zip(seconds[name], seconds[NATIVE]))
                about = {"batch": list(ids.shape), "sites": passes[name][1], "extra_us": extra * 1e6, "native_s": base}
                rows.append(about | row(name, ids.numel(), seconds, NATIVE))
    return rows


def check(passes: dict[str, tuple[Pass, int]]) -> None:
    """Every pass gives Hugging Face's logits."""
    expected = passes[NATIVE][0]()
    for name, (run, _) in passes.items():
        out = run()
        parts = out if isinstance(out, tuple) else (out,)
        logits = next(
            p for p in (getattr(part, "logits", part) for part in parts) if getattr(p, "shape", 0) == expected.shape
        )
        error = float((logits - expected).abs().max() / expected.abs().max())
        print(f"{tuple(expected.shape)} {name}: logits differ by {error:.1e}", flush=True)
        assert error < 1e-4, f"{name} does not compute the same"


def tiny_model(folder: str, tokenizer_folder: str) -> None:
    """Twelve layers of width 64: little else than Python."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"machine": machine(options.threads, peers.PACKAGES)}
    real = str(ensure(EMBEDDED["smollm2"]))
    text = windows(load_model(real, quiet=True), 256)
    batches = [(1, 16)] if options.tiny else BATCHES
    found["rows"] = [
        line
        for batch, context in batches
        for line in measure(real, text[:batch, :context], 15, options.rounds * (1 if batch * context > 100 else 3))
    ]
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(folder, real)
        rounds = 10 if options.tiny else 300
        found["tiny"] = measure(folder, text[:1, :8], 6, rounds)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
