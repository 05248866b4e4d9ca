"""Activations that are no tensors of the native model, computed from captured sites when they are asked for.

| name (and TransformerLens spelling) | shape | computed as | needs |
|---|---|---|---|
| `("result", L)`, `blocks.L.attn.hook_result` | batch pos head d_model | z W_O by head, before a post-norm | `z.L` |
| `("scale", L, "ln1")`, `blocks.L.ln1.hook_scale` | batch pos 1 | what the norm divides by | `resid_pre.L`, `_mid` |
| `("normalized", L, "ln2")`, `blocks.L.ln2.hook_normalized` | batch pos d_model | before gain and bias | the same |
| `("scale",)`, `ln_final.hook_scale`, `ln_final.hook_normalized` | | of the final norm | last `resid_post` |
| `pos_embed`, `hook_pos_embed` | batch pos d_model | learned positions of the tokens | nothing |
"""

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UnknownName
from .norms import Norm

if TYPE_CHECKING:
    from .model import Model
    from .result import Run

_NORMS = ("ln1", "ln2")


def derived(run: "Run", key: Any) -> Tensor | None:
    """The activation of a derived name, None if `key` is none. Raises `UnknownName` when its site was not captured."""
    name, layer, where = _parsed(key)
    if name == "pos_embed":
        return position_embeddings(run)
    if name not in ("result", "scale", "normalized"):
        return None
    layers = run.model.cfg.n_layers
    if layer is not None:
        if not -layers <= layer < layers:
            raise UnknownName(f"{key!r}: {run.model.name} has layers 0 to {layers - 1}")
        layer %= layers
    if name == "result":
        if layer is None:
            raise UnknownName("result needs a layer, such as ('result', 0)")
        return head_results(run, layer)
    if layer is not None and where not in _NORMS:
        raise UnknownName(f"{key!r}: say which norm of layer {layer}, such as ('{name}', {layer}, 'ln1')")
    norm, x = norm_and_input(run, layer, where)
    scale = norm.scale(x)
    return scale if name == "scale" else norm.centred(x) / scale


def _parsed(key: Any) -> tuple[str, int | None, str]:
    """(name, layer, norm) of a tuple or a TransformerLens name; an unknown name comes back as it is."""
    if isinstance(key, tuple) and key and isinstance(key[0], str):
        layer = key[1] if len(key) > 1 else None
        return key[0], layer, str(key[2]) if len(key) > 2 else "ln_final"
    text = key if isinstance(key, str) else ""
    if text in ("pos_embed", "hook_pos_embed", "pos_embed.hook_out"):
        return "pos_embed", None, ""
    if found := re.fullmatch(r"ln_final\.hook_(scale|normalized)", text):
        return found[1], None, "ln_final"
    if found := re.fullmatch(r"blocks\.(\d+)\.(attn|ln1|ln2)\.hook_(result|scale|normalized)", text):
        return found[3], int(found[1]), found[2]
    if found := re.fullmatch(r"result\.(\d+)", text):
        return "result", int(found[1]), "attn"
    return text, None, ""


def head_results(run: "Run", layer: int) -> Tensor:
    """What each kept head hands to the output projection's sum, `batch pos head d_model`; plus b_O it is the output."""
    W_O = run.model.W_O[layer]
    if run.heads is not None:
        W_O = W_O[list(run.heads)]
    return torch.einsum("...hd,hdm->...hm", run["z", layer], W_O)


def position_embeddings(run: "Run") -> Tensor:
    """Learned positions of the run's tokens. Raises `UnknownName` in models without them."""
    positions = run.tokens.positions
    if run.columns is not None:
        positions = positions.gather(1, run.columns.to(positions.device))
    value = run.model.W_pos[positions]
    return value if run.has_batch_dim else value[0]


def final_norm(model: "Model") -> Norm:
    return Norm.of(model.hf.get_submodule(model.family.final_norm), model.cfg.d_model, model.device)


def norm_and_input(run: "Run", layer: int | None, which: str) -> tuple[Norm, Tensor]:
    """A norm, and what this run gave it: "ln1" or "ln2" of a layer; the final norm where the layer is None."""
    model = run.model
    if layer is None:
        return final_norm(model), run["resid_post", model.cfg.n_layers - 1]
    norm = Norm.of(model.norm_module(layer, which), model.cfg.d_model, model.device)  # type: ignore[arg-type]
    return norm, run["resid_pre" if which == "ln1" or model.parallel else "resid_mid", layer]
