"""The optimiser of translators: one group a parameter, with the size of what it changes."""

import torch

from .config import TuneConfig
from .translators import Translators


def optimizer_of(translators: Translators, config: TuneConfig, sizes: list[float]) -> torch.optim.Optimizer:
    """SGD or Adam; a training multiplies its learning rate by each group's "size".

    Adam's step does not know the scale of what it changes, so it is told: A maps states of a layer's size to changes of
    the last stream's size.

    Args:
        sizes: of the states of each layer, and of the last stream.
    """
    adam = config.optimizer == "adam"
    *layer_sizes, last = sizes
    scale = {"bias": lambda h: last, "A": lambda h: last / h, "down": lambda h: (last / h) ** 0.5}
    scale["up"] = scale["down"]
    groups = [
        {"params": [parameter], "size": scale[name](h) if adam else 1.0}
        for translator, h in zip(translators, layer_sizes, strict=True)
        for name, parameter in translator.named_parameters()
    ]
    if adam:
        # decoupled decay multiplies by lr * decay, and lr holds the size: divide it out
        for group in groups:
            group["weight_decay"] = config.weight_decay / group["size"]  # type: ignore[operator]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))
    nesterov = config.momentum > 0
    return torch.optim.SGD(
        groups, lr=0.0, momentum=config.momentum, nesterov=nesterov, weight_decay=config.weight_decay
    )
