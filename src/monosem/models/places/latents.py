"""Latent attention (DeepSeek's MLA) with its latents read directly: weights from the latent, absorbed into the rest."""

from jaxtyping import Float
from torch import Tensor

from ...errors import UnknownName
from ..native import Native
from .sites import Site
from .weights import weight_from


def from_latent(model: Native, site: str, layer: int) -> Float[Tensor, "head latent width"]:
    """What makes a site of heads ("k_nope", "v", "q") from its latent: `kv_latent @ W = v`, head by head.

    Where the model multiplies the latent by a constant (LongCat), the constant is in the weight.

    Raises:
        UnknownName: the layer has no such latent.
    """
    slot = next((slot for slot in model.anatomy[layer].slots if slot.mixer.kind == "latent_attention"), None)
    if slot is None or (site == "q" and "q_latent" not in slot.mixer.parts):
        latent = "query" if site == "q" else "key and value"
        raise UnknownName(f"layer {layer} of {model.name} has no {latent} latent; W_Q, W_K and W_V read the stream")
    module = model.blocks[layer].get_submodule(slot.mixer.path)
    scale = 1.0 if site == "q" else getattr(module, "mla_scale_kv_lora", 1.0)  # queries are scaled after their site
    return weight_from(model, Site(site, layer)) * scale
