#!/usr/bin/env bash
# transformer-lens 4.3.0 (transformers 5.23.0, torch 2.13.0): what a hook that writes `blocks.L.hook_resid_mid` changes.
# One would guess: the stream between attention and MLP, as the name says and as HookedTransformer has it, however the
#   hook writes: with the MLP's output set to zero, doubling resid_mid doubles the block's output.
# What happens: the hook sits on the input of the MLP's norm. A hook that RETURNS a new value changes what the MLP reads
#   and not the stream: the block's output stays. A hook that writes IN PLACE changes the stream too, because the tensor is
#   the same one. `get_act_patch_resid_mid` writes in place where no gradients are kept, and returns a copy where they are,
#   so its result depends on requires_grad.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 transformer-lens==4.3.0
cd "$folder" && HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'END'
import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}
core = Tokenizer(models.WordLevel({f"t{i}": i for i in range(64)}, unk_token="t0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="t0", bos_token="t1", eos_token="t2", pad_token="t3")


def doubled(x, hook):
    return x * 2


def doubled_in_place(x, hook):
    return x.mul_(2)


def ratio(kind, settings, write):
    """How much larger the block's output is after resid_mid was doubled, with the MLP's output at zero."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval().requires_grad_(False)
    hf.save_pretrained(kind)
    tokenizer.save_pretrained(kind)
    model = TransformerBridge.boot_transformers(kind, hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(kind), device="cpu")
    seen = []

    def run(write):
        hooks = [
            ("blocks.0.hook_resid_mid", write),
            ("blocks.0.hook_mlp_out", lambda x, hook: torch.zeros_like(x)),
            ("blocks.0.hook_resid_post", lambda x, hook: seen.append(x.detach().clone())),
        ]
        with torch.no_grad():
            model.run_with_hooks(torch.arange(5, 12)[None], fwd_hooks=hooks)
        return seen[-1].norm()

    return float(run(write) / run(lambda x, hook: x))


for kind, settings in (("llama", LLAMA), ("gpt2", GPT2)):
    returned, in_place = ratio(kind, settings, doubled), ratio(kind, settings, doubled_in_place)
    print(f"{kind}: the block's output is {returned:.3f} times as large (in place: {in_place:.3f} times)")
    assert abs(returned - 1) < 1e-4, "a returned value reaches the stream now"
    assert abs(in_place - 2) < 1e-4, "a value written in place does not reach the stream any more"
END
