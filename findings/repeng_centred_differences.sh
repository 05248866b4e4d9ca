#!/usr/bin/env bash
# repeng 0.4.0 (torch 2.13.0, transformers 4.57.1, scikit-learn 1.7.2): the default method of `ControlVector.train`, `pca_diff`.
# One would guess: the direction along which the positive prompts differ from the negative ones.
# What happens: scikit-learn's PCA takes the mean from the differences first, and the mean is what the pairs have in common. Where
#   all pairs differ in the same way, what is left is how they differ from each other: the vector lies across the mean
#   difference (|cosine| below 0.3 in each layer here, where `pca_center` of the same package has above 0.99).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==4.57.1 scikit-learn==1.7.2 numpy==1.26.4 repeng==0.4.0
cd "$folder" && HF_HUB_OFFLINE=1 TQDM_DISABLE=1 venv/bin/python -W ignore - <<'END'
import torch
from repeng import ControlVector, DatasetEntry
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = "the a cat dog man king sun moon sat ran slept is was very quite now happy sad".split()
vocabulary = {word: number for number, word in enumerate(["<pad>", *words])}
inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<pad>")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, pad_token_id=0
)
model = LlamaForCausalLM(config).eval()
starts = [f"{a} {who} {how} {often}" for a in ("the", "a") for who in ("cat", "dog", "man", "king") for how in ("is", "was")
          for often in ("very", "quite", "now")]
pairs = [DatasetEntry(f"{start} happy", f"{start} sad") for start in starts]
layers = [0, 1, 2]


def states(texts, layer):
    """The output of a block at the last token."""
    with torch.no_grad():
        return torch.stack(
            [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer + 1][0, -1]
             for text in texts]
        )


found = {
    method: ControlVector.train(model, tokenizer, pairs, hidden_layers=layers, method=method).directions
    for method in ("pca_diff", "pca_center")
}
for layer in layers:
    mean = (states([p.positive for p in pairs], layer) - states([p.negative for p in pairs], layer)).mean(0)
    cosines = {
        method: abs(float(torch.cosine_similarity(mean, torch.tensor(made[layer]), dim=0))) for method, made in found.items()
    }
    print(f"layer {layer}: |cosine| with the mean difference: {cosines['pca_diff']:.3f} pca_diff, "
          f"{cosines['pca_center']:.3f} pca_center")
    assert cosines["pca_diff"] < 0.3 and cosines["pca_center"] > 0.99, "the finding is out of date"
END
