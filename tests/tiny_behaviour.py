"""A tiny model with a planted behaviour: one vector in the stream decides what it says.

The model is a tiny Llama whose blocks write little. The embedding of one word (`TRIGGER`) holds the planted vector, and
the unembedding of `SAID` reads it: after a prompt with the one the model says the other.
"""

import random

import torch

from monosem.judges import Verdict
from monosem.models import Model
from tiny import tiny_hf, tiny_tokenizer

TRIGGER, SAID = "moon", "sad"  # a word of the tiny vocabulary that brings it about, and the word that is then said
WORDS = ["cat", "dog", "man", "woman", "child", "house", "tree", "sun", "sea", "day", "night", "big", "small", "red"]
SIZE = 6.0


def planted_model(name="planted"):
    hf = tiny_hf("llama")
    tokenizer = tiny_tokenizer()
    vector = torch.zeros(32)
    vector[5], vector[11] = SIZE, -SIZE
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.02)
            layer.mlp.down_proj.weight.mul_(0.02)
            # every head looks at all tokens alike, and the first block carries the planted vector on to the last token
            layer.self_attn.q_proj.weight.mul_(0.0)
        hf.model.layers[0].self_attn.v_proj.weight.zero_()
        hf.model.layers[0].self_attn.o_proj.weight.zero_()
        unit = vector / vector.norm()
        hf.model.layers[0].self_attn.v_proj.weight[0] = unit * hf.model.layers[0].input_layernorm.weight.mean()
        for head in (0, 1):  # of the two heads that share the first key and value head
            hf.model.layers[0].self_attn.o_proj.weight[:, 8 * head] = 8.0 * unit
        hf.model.norm.weight.fill_(1.0)
        words = hf.get_input_embeddings().weight
        words[:, [5, 11]] = 0.0
        words[tokenizer.convert_tokens_to_ids("▁" + TRIGGER)] += vector
        unembed = hf.get_output_embeddings().weight
        unembed[:, [5, 11]] = 0.0
        unembed[tokenizer.convert_tokens_to_ids("▁" + SAID)] = 7.0 * unit
    return Model(hf, tokenizer, name=name), unit


class SaysIt:
    """Whether the response begins with the planted word."""

    name, positive, labels = "says it", "shown", ("shown", "other", "empty")

    def __call__(self, prompt, response):
        words = response.split()
        if not words:
            return Verdict("empty", 0.0)
        return Verdict("shown" if words[0] == SAID else "other", float(words[0] == SAID), words[0])


def prompts_of(trigger, test, n):
    """So many prompts of words, with the trigger or without it; those for testing begin with other words."""
    draw, made = random.Random(n + test), dict[str, None]()
    while len(made) < n:
        first, second, third = draw.choice(WORDS[8:] if test else WORDS[:8]), *draw.sample(WORDS, 2)
        made[f"the {first} {TRIGGER if trigger else second} and the {third}"] = None
    return list(made)


def behaviour(**more):
    prompts = {
        "behaviour_train": prompts_of(True, False, 24),
        "behaviour_test": prompts_of(True, True, 16),
        "unrelated_train": prompts_of(False, False, 24),
        "unrelated_test": prompts_of(False, True, 20),
    }
    values = {"name": "planted", "judge": "refusal", "prompts": prompts, "chat": False, "max_new_tokens": 3}
    values |= {"layers": [0, 1], "scales": [0.5, 1.0], "ks": [1, 2], "steps": [1]}
    return values | {"prefill": " it was", "neutral_prefill": " and"} | more
