#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): the decoder alone of a checkpoint that holds BART's encoder and decoder.
# One would guess: `BartForCausalLM.from_pretrained` finds its token embedding in the file, which has the one table that
#   encoder, decoder and unembedding share.
# What happens: the table is saved once, under a name that the decoder alone does not have. The decoder's embedding and its
#   unembedding are drawn anew: two loads of one file give other logits. The report of the load names both as missing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder" && TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'END'
import torch
from transformers import BartConfig, BartForCausalLM, BartForConditionalGeneration

SIZES = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "init_std": 0.3,
}


@torch.no_grad()
def main():
    torch.manual_seed(0)
    both = BartForConditionalGeneration(BartConfig(**SIZES)).eval()
    both.save_pretrained("both")
    logits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        alone, report = BartForCausalLM.from_pretrained("both", output_loading_info=True)
        off = float((alone.get_input_embeddings().weight - both.get_input_embeddings().weight).abs().max())
        print(f"load {seed}: missing are {sorted(report['missing_keys'])}; the embedding differs by {off:.2f}")
        logits.append(alone.eval()(input_ids=torch.arange(3, 9)[None]).logits)
    between = float((logits[0] - logits[1]).abs().max())
    print(f"the logits of the two loads differ by {between:.2f}, of at most {float(logits[0].abs().max()):.2f}")
    return off > 0.1 and between > 0.1 and "lm_head.weight" in report["missing_keys"]


assert main(), "the finding is out of date"
END
