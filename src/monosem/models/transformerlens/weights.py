"""Weights and circuits under TransformerLens's names, of models that are never rewritten."""

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ..places.factored import FactoredMatrix
from .text import Text


class Weights(Text):
    """What a `HookedTransformer` has of weights beside `W_Q` ... `b_U`."""

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O, `layer head d_model d_model`; `ms.components.OV` takes norms and multipliers in where asked."""
        return FactoredMatrix(self.W_V.stacked(), self.W_O.stacked())

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ, `layer head d_model d_model`, without biases, qk-norm and rotation."""
        return FactoredMatrix(self.W_Q.stacked(), self.W_K.stacked().mT)

    @property
    def W_E_pos(self) -> Float[Tensor, "vocab_and_n_ctx d_model"]:
        """Token and position embeddings, one after the other. Raises `UnknownName` without learned positions."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def all_head_labels(self) -> list[str]:
        """L0H0, L0H1, ... of all layers with attention."""
        heads = [branch for branch in self.branches() if branch.units == "head"]
        return [f"L{branch.layer}H{head}" for branch in heads for head in range(branch.n_units)]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """The sum of the output biases of everything that writes before a layer (or, with `mlp_input`, its MLP).

        Raises:
            UnknownName: a mixture of experts, whose biases depend on what it chooses.
            BadInput: norms after the branches, which make of a bias what the input allows.
        """
        if not 0 <= layer <= self.cfg.n_layers or (mlp_input and layer == self.cfg.n_layers):
            raise BadInput(f"layer {layer}: {self.name} has {self.cfg.n_layers} layers")
        end = ("resid_post", layer - 1) if layer == self.cfg.n_layers else ("resid_pre", layer)
        branches = self.written_before(self.branch("mlp", layer).reads if mlp_input else end)
        total = torch.zeros(self.cfg.d_model, device=self.device, dtype=self.dtype)
        for branch in branches:
            if branch.units != "head" and not include_mlp_biases:
                continue
            if branch.norm_out is not None:
                raise BadInput(
                    f"{self.name} has a norm after {branch.name}, so its bias adds something else to every token: "
                    "the last component of cache.get_full_resid_decomposition() has it"
                )
            total = total + branch.bias() * branch.scale
        return total
