"""A folder as a user has it: a tiny model, a dictionary of it, text, prompts and a concept."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from tiny import tiny_hf, tiny_tokenizer

SITE, WIDTH = "resid_post.1", 64
HAPPY = [f"the {who} is happy and good" for who in ("cat", "dog", "man", "woman", "child", "moon")]
SAD = [line.replace("happy and good", "sad and bad") for line in HAPPY]
CONCEPT = {
    "name": "feeling",
    "positive": HAPPY,
    "negative": SAD,
    "test": ["the man was", "she is", "a house"],
    "control": ["three four five", "one two"],
    "candidates": 4,
    "doses": [0.5, 1.0],
    "random_latents": 4,
    "random_continuations": 3,
    "max_new_tokens": 8,
}


def save_model(folder: Path, **overrides: Any) -> Path:
    tiny_hf("llama", **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def make_dictionary(model: Path | str, d: int = 32, site: str = SITE) -> Dictionary:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(WIDTH, d, generator=draw)
    rows = rows / rows.norm(dim=1, keepdim=True)
    weights = DictionaryTensors(rows.T.clone(), torch.zeros(WIDTH), rows, torch.zeros(d))
    return Dictionary(DictionaryParts(weights, "topk", k=4, site=site, model_name=str(model), name="sae"))


def make_home(folder: Path) -> Path:
    """Fill the folder."""
    model = save_model(folder / "tiny")
    make_dictionary(model).save(folder / "sae")
    rng = random.Random(0)
    words = "the a cat dog sat on mat ran to big small red blue and or is was it he she they we you"
    rows = [json.dumps({"text": " ".join(rng.choices(words.split(), k=200))}) for _ in range(100)]
    (folder / "text.jsonl").write_text("\n".join(rows))
    (folder / "happy.txt").write_text("\n".join(HAPPY) + "\n")
    (folder / "sad.txt").write_text("\n".join(SAD) + "\n")
    concept = CONCEPT | {"model": str(model), "dictionary": str(folder / "sae")}
    (folder / "concept.yaml").write_text(yaml.safe_dump(concept))
    return folder
