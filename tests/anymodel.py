"""A tiny random model of any causal type of the installed transformers, also of types without a row in `tiny.py`.

The type's own default config is shrunk by the names of its values (`small` in anymodel.json); where that is not enough,
or would leave out a kind of layer, `types` has what is special. A type that cannot be built so raises transformers'
own error. `tiny.py` has the hand-made models of the families in the table.
"""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 10_000_000  # parameters; more means that a size has a name of its own

_DATA = json.loads((Path(__file__).parent / "anymodel.json").read_text())
_SMALL, _SPECIAL = _DATA["small"], _DATA["types"]
_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "hybrid_override_pattern")  # follow the sizes
_OWN_START = ("A_log", "dt_bias", "lambda", "decay")  # values that only make sense near where they start


def tiny_config(kind: str, **changes: Any) -> PretrainedConfig:
    """The config of a tiny model of this type; `changes` go before everything else."""
    settings = _shrunk(AutoConfig.for_model(kind).to_dict())
    special = {key: value for key, value in _SPECIAL.get(kind, {}).items() if key != "_drop"}
    _merge(settings, special)
    _merge(settings, changes)
    for name in _SPECIAL.get(kind, {}).get("_drop", ()):
        settings.pop(name, None)
    return AutoConfig.for_model(kind, **settings)


def tiny_any(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The tiny model itself: float32, evaluated, without gradients, with random gains and biases."""
    config = tiny_config(kind, **changes)
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    if sum(sizes.values()) > LARGEST:
        raise ValueError(f"{kind} is not tiny: {max(sizes, key=lambda name: sizes[name])} is the largest parameter")
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of what keeps the values that it starts with, such as time steps
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return randomised(model, seed)


def randomised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Gains 1 + 0.3 randn, biases 0.3 randn, matrices with std 1/sqrt(fan_in), embeddings with std 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter, torch.randn(parameter.shape, generator=draw))
        for name, buffer in model.named_buffers():
            if "correction_bias" in name or name.endswith("expert_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=draw))
    return model.eval().requires_grad_(False)


def _fill(name: str, parameter: nn.Parameter, noise: torch.Tensor) -> None:
    if not (parameter.is_floating_point() and parameter.requires_grad):  # a table of sines is fixed (RoFormer)
        return
    if name.endswith("A_log"):
        parameter.add_(0.1 * noise)
    elif parameter.ndim < 2 or "norm" in name:
        if not any(part in name for part in _OWN_START):
            parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.3 * noise)
    elif name.endswith((".D", "conv1d.weight")):
        parameter.copy_(0.3 * noise)
    else:
        parameter.copy_(noise if "embed" in name else noise / math.sqrt(parameter.shape[-1]))


def _shrunk(settings: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for key, value in settings.items():
        if key.endswith("_config") and isinstance(value, dict):
            kept = {"model_type": value["model_type"]} if "model_type" in value else {}
            small[key] = _shrunk(value) | kept
        elif key in _SMALL and value is not None and key not in _PER_LAYER:
            small[key] = _SMALL[key]
    return small


def _merge(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            _merge(settings[key], value)
        else:
            settings[key] = deepcopy(value)  # Gemma 4 writes into its list of layers
