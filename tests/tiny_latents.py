"""A tiny model with a random dictionary for it, and prompts that differ in one word."""

import itertools

import torch

from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from monosem.models import Model
from tiny import tiny_hf, tiny_tokenizer

MODEL = Model(tiny_hf("llama"), tiny_tokenizer(), "llama")
SITE = "resid_post.1"
WIDTH = 40
POSITIVE = [f"{a} good {b}" for a, b in itertools.product("abcd", "efgh")]
NEGATIVE = [f"{a} bad {b}" for a, b in itertools.product("abcd", "efgh")]


def dictionary(kind: str = "relu", model_name: str = "llama", d: int = 32, **options) -> Dictionary:
    rng = torch.Generator().manual_seed(0)
    weights = DictionaryTensors(
        W_enc=torch.randn(d, WIDTH, generator=rng) / 6,
        b_enc=torch.randn(WIDTH, generator=rng) / 4,
        W_dec=torch.randn(WIDTH, d, generator=rng),
        b_dec=torch.randn(d, generator=rng),
    )
    return Dictionary(DictionaryParts(weights, kind, site=SITE, model_name=model_name, name="tiny", **options))


SAE = dictionary()
TOPK = dictionary("topk", k=5)
