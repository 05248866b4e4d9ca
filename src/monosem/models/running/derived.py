"""Sites that a run computes from others it captured, when they are asked for and were not captured themselves.

| site | computed as | from |
|---|---|---|
| `result.L` | z W_O by head, before a post-norm | `z.L` |
| `ln1_scale.L`, `ln1_normalized.L` | what the norm divides by; its input, centred and divided | `resid_pre.L` |
| `ln2_scale.L`, `ln2_normalized.L` | the same before the MLP | `resid_mid.L` (parallel blocks: `resid_pre.L`) |
| `final_scale`, `final_normalized` | the same of the final norm | `resid_post` of the last layer |
| `pos_embed` | learned positions of the tokens | nothing |
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..places.norms import Norm
from ..places.sites import NORMS, Site

if TYPE_CHECKING:
    from ..model import Model
    from .result import Run


def derived(run: "Run", site: Site) -> Tensor | None:
    """The activation of a derived site, None if `site` is none. Raises `UnknownName` when its site was not captured."""
    if site.name == "pos_embed":
        return position_embeddings(run)
    if site.layer is not None and not 0 <= site.layer < run.model.cfg.n_layers:
        return None
    if site.name == "result":
        return head_results(run, site.layer)  # type: ignore[arg-type]
    if site.name not in NORMS:
        return None
    norm, x = norm_and_input(run, site.layer, NORMS[site.name])
    scale = norm.scale(x)
    return scale if site.name.endswith("scale") else norm.centred(x) / scale


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
