"""The peers, each holding the same weights as they are in a folder (nothing folded, centred or fused).

The TransformerLens that is installed decides: `HookedTransformer` up to 3.x, `TransformerBridge` from 4.0 on.
"""

from importlib.metadata import version
from typing import Any

import nnsight
import torch
import transformer_lens
from transformers import AutoModelForCausalLM, AutoTokenizer

LENS = version("transformer-lens")
BRIDGE = int(LENS.split(".")[0]) >= 4
LENS_NAME = f"TransformerLens {LENS} `{'TransformerBridge' if BRIDGE else 'HookedTransformer'}`"
NNSIGHT_NAME = f"nnsight {version('nnsight')}"
PACKAGES = ["torch", "transformers", "monosem", "transformer-lens", "nnsight"]


def native(folder: str, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def lens(folder: str, dtype: torch.dtype) -> Any:
    hf, tokenizer = native(folder, dtype), AutoTokenizer.from_pretrained(folder)
    if BRIDGE:
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=tokenizer, dtype=dtype, device="cpu")
    # 3.9 knows models by a list of names, which lacks SmolLM2: so by its own converter
    from transformer_lens import loading_from_pretrained as loading

    cfg = loading.get_pretrained_model_config(folder, dtype=dtype, device="cpu")
    model = transformer_lens.HookedTransformer(cfg, tokenizer)
    as_they_are = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    model.load_and_process_state_dict(loading.get_pretrained_state_dict(folder, cfg, hf, dtype=dtype), **as_they_are)
    return model


def traced(folder: str, dtype: torch.dtype) -> Any:
    return nnsight.NNsight(native(folder, dtype))
