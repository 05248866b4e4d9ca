"""The oracle of graphs: Hugging Face's own modules with everything frozen that a graph freezes, and autograd."""

import types
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from monosem.models import Model
from tiny import tiny_model


def exact_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    """A norm in the precision of x (Hugging Face computes RMSNorms in float32), its size detached."""
    if isinstance(module, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        size = (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
        return centred / size.detach() * module.weight + module.bias
    eps = getattr(module, "variance_epsilon", None) or module.eps
    gain = module.weight + 1 if "Gemma" in type(module).__name__ else module.weight
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt().detach() * gain


def exact_model(family: str, **overrides: Any) -> Model:
    """A tiny float64 model whose norms compute in float64 as well."""
    model = tiny_model(family, **overrides)
    model.hf.double()
    for module in model.hf.modules():
        if isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__:
            module.forward = types.MethodType(exact_norm, module)
    return model


def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **kwargs):
    """Causal attention whose pattern is detached; its softmax in float32, as everywhere in transformers."""
    groups, n = query.shape[1] // key.shape[1], query.shape[2]
    scores = query @ repeat_kv(key, groups).mT * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype).detach()
    return (pattern @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


AttentionInterface.register("frozen-oracle", attention)


class Oracle:
    """One frozen pass.

    Attributes:
        embedded: what enters the first block, a leaf. written: what each MLP module returned, leaves.
        read: outputs of linear layers of MLPs by (layer, name of the layer); "input" is what the MLP is given.
        logits: of the last token.
    """

    def __init__(self, model: Model, ids: list[int], skips: dict[int, torch.Tensor] | None = None):
        """skips: layer -> matrix of a linear path beside what the MLP of the layer writes, `d_out d_in`."""
        self.model, self.written, self.read, handles = model, {}, {}, []
        before = model.hf.config._attn_implementation

        def leaf(value: torch.Tensor) -> torch.Tensor:
            return value.detach().requires_grad_()

        def enter(module: Any, args: Any, kwargs: Any) -> Any:
            self.embedded = leaf(args[0] if args else kwargs["hidden_states"])
            return ((self.embedded, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": self.embedded})

        def keep_written(layer: int) -> Any:
            def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
                path = args[0] @ skips[layer].T if skips and layer in skips else torch.zeros_like(output)
                self.written[layer] = leaf(output - path)
                return self.written[layer] + path

            return hook

        def keep_input(layer: int) -> Any:
            return lambda module, args: self.read.__setitem__((layer, "input"), args[0])

        def keep_read(layer: int, name: str) -> Any:
            return lambda module, args, output: self.read.__setitem__((layer, name), output)

        handles.append(model.blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
        for layer, block in enumerate(model.blocks):
            handles.append(block.mlp.register_forward_hook(keep_written(layer)))
            handles.append(block.mlp.register_forward_pre_hook(keep_input(layer)))
            for name, module in block.mlp.named_children():
                handles.append(module.register_forward_hook(keep_read(layer, name)))
        try:
            model.hf.set_attn_implementation("frozen-oracle")
            with torch.enable_grad():
                self.logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        finally:
            model.hf.set_attn_implementation(before)
            for handle in handles:
                handle.remove()

    def gradients(self, value: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Of a number: by what enters the first block, and by what each MLP returned (`pos d_model`)."""
        leaves = [self.embedded, *self.written.values()]
        found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        every = [torch.zeros_like(one)[0] if grad is None else grad[0] for one, grad in zip(leaves, found)]
        return every[0], dict(zip(self.written, every[1:]))
