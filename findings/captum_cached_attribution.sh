#!/usr/bin/env bash
# captum 0.9.0 (torch 2.13.0, transformers 5.23.0): `LLMAttribution` over `FeatureAblation`, a target of several tokens.
# One would guess: the row of each target token is by how much its log probability falls without a token of the prompt, with the
#   target tokens before it in place.
# What happens: with the default, `use_cached_outputs=True`, the first row is right and the later ones are not: they differ from
#   what the model says by as much as the values themselves. `use_cached_outputs=False` is right in all rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 captum==0.9.0
cd "$folder" && HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'END'
import torch
from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = "the a cat dog man king sun moon sat ran slept is was very quite now".split()
vocabulary = {word: number for number, word in enumerate(["<pad>", *words])}
inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<pad>")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
    initializer_range=0.3,
)
model = LlamaForCausalLM(config).eval()
prompt, target = "the cat sat now", "very quite moon"
ids, answer = (tokenizer(text, return_tensors="pt").input_ids for text in (prompt, target))


def log_probabilities(prompt_ids):
    """Of each target token, after the prompt and the target tokens before it: one forward pass."""
    with torch.no_grad():
        logits = model(torch.cat([prompt_ids, answer], 1)).logits[0, prompt_ids.shape[1] - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(answer.shape[1]), answer[0]]


rows = []
for place in range(ids.shape[1]):
    without = ids.clone()
    without[0, place] = 0
    rows.append(log_probabilities(ids) - log_probabilities(without))
true = torch.stack(rows, 1)
seen = {}
for cached in (True, False):
    given = TextTokenInput(prompt, tokenizer, baselines=0)
    found = LLMAttribution(FeatureAblation(model), tokenizer).attribute(
        given, target=answer[0], use_cached_outputs=cached
    ).token_attr
    seen[cached] = (found - true).abs().amax(1)
    print(f"use_cached_outputs={cached}: largest error of each target token's row "
          + ", ".join(f"{error:.1e}" for error in seen[cached].tolist()) + f"; largest value {true.abs().max():.2f}")
assert seen[False].max() < 1e-4 and seen[True][0] < 1e-4, "the finding is out of date"
assert seen[True][1:].min() > 0.01, "the finding is out of date"
END
