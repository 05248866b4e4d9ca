"""Latent attention (DeepSeek's MLA) with its latents read directly: weights from the latent, absorbed into the rest."""

from jaxtyping import Float
from torch import Tensor

from ...errors import UnknownName
from .branches import Branch
from .weights import weight_from


def from_latent(branch: Branch, name: str) -> Float[Tensor, "head latent width"]:
    """What makes a site of heads ("k_nope", "v", "q") from its latent: `kv_latent @ W = v`, head by head.

    Where the model multiplies the latent by a constant (LongCat, dots 3), the constant is in the weight. Queries that
    are made of the latent and of what it is the norm of (A.X K2) have twice as many rows.

    Raises:
        UnknownName: the layer has no such latent.
    """
    latent = "q_latent" if name == "q" else "kv_latent"
    if latent not in branch.slot.mixer.parts:
        raise UnknownName(
            f"{branch.name} of layer {branch.layer} of {branch.model.name} has no {latent}: W_Q, W_K and W_V read the "
            "stream there"
        )
    # LongCat scales q after its site
    named = ("q_lora_scale",) if name == "q" else ("mla_scale_kv_lora", "kv_lora_scale")
    scale = next((getattr(branch.module, one) for one in named if hasattr(branch.module, one)), 1.0)
    return weight_from(branch.model, branch.site(name)) * scale
