"""The TransformerLens that is installed, on the weights of a tiny model: `TransformerBridge` from 4.0 on, else
`HookedTransformer`. Nothing is folded, centred or fused unless that is asked for."""

import json
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformer_lens
from transformers import AutoTokenizer

from tiny import FAMILIES, tiny_hf, tiny_tokenizer

VERSION = version("transformer-lens")
BRIDGE = int(VERSION.split(".")[0]) >= 4
IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5))
OTHER = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(6))
AS_THEY_ARE = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)


@cache
def folder(family: str) -> Path:
    """A tiny model and its tokenizer, saved."""
    path = Path(mkdtemp(prefix="tiny-"))
    tiny_hf(family).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    if "n_positions" in config:  # 3.9 reads a name that transformers 5 no longer writes
        (path / "config.json").write_text(json.dumps(config | {"n_ctx": config["n_positions"]}))
    return path


@cache
def lens(family: str, fold_ln: bool = False, refactored: bool = False) -> Any:
    path, hf = str(folder(family)), tiny_hf(family)
    options = AS_THEY_ARE | {"fold_ln": fold_ln, "refactor_factored_attn_matrices": refactored}
    if BRIDGE:
        from transformer_lens.model_bridge import TransformerBridge

        tokenizer = AutoTokenizer.from_pretrained(path)
        model = TransformerBridge.boot_transformers(path, hf_model=hf, tokenizer=tokenizer, device="cpu")
        if fold_ln or refactored:
            model.enable_compatibility_mode(disable_warnings=True, **options)
        return model
    from transformer_lens import loading_from_pretrained as loading

    cfg = loading.get_pretrained_model_config(path, device="cpu")
    cfg.d_mlp = getattr(hf.config, "n_inner", None) or cfg.d_mlp  # 3.9 assumes 4 d_model
    model = transformer_lens.HookedTransformer(cfg, AutoTokenizer.from_pretrained(path))
    model.load_and_process_state_dict(loading.get_pretrained_state_dict(path, cfg, hf), **options)
    return model


def public_names(instance: Any) -> set[str]:
    """What a TransformerLens object offers; names of torch's modules only where TransformerLens writes them anew."""
    own = [cls for cls in type(instance).__mro__ if cls.__module__.startswith("transformer_lens")]
    names = {name for cls in own for name in vars(cls)} | set(vars(instance)) | set(getattr(instance, "_modules", ()))
    inherited = set(dir(torch.nn.Module())) if isinstance(instance, torch.nn.Module) else set()
    written = {name for cls in own for name in vars(cls)}
    return {name for name in names if not name.startswith("_") and (name in written or name not in inherited)}


__all__ = ["BRIDGE", "FAMILIES", "IDS", "OTHER", "VERSION", "lens", "public_names"]
