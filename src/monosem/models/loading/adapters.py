"""Adapters of the package `peft`: models that hold one, and folders that hold one beside the name of its base model.

An adapter that is built into the layers (LoRA, DoRA, IA3, LoHa, OFT, ...) is a part of the Hugging Face model: sites,
runs and weights have it. One that acts around the model (prompt and prefix tuning, ...) is refused.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import BadFile, BadInput, UnknownName
from ...reading import read_object
from ..turns import turn
from .checkpoint import FILE_ERRORS, explain

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # of a whole model
_ADAPTED = ("adapter_model.safetensors", "adapter_model.bin")


def is_peft(x: object) -> bool:
    """Whether it is a model of `peft` around a Hugging Face model; peft is not imported for it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(x, peft.PeftModel | peft.PeftMixedModel)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter instead of a model."""
    whole = any(True for pattern in _WEIGHTS for _ in path.glob(pattern))
    return (path / "adapter_config.json").is_file() and not whole


def base_of(path: Path) -> str:
    """The base model that an adapter's folder names: a path (also seen from the folder), a name or a Hub id.

    Raises:
        BadFile: no base, one that is an adapter itself, or a file that cannot be read.
    """
    base = read_object(path / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise BadFile(f"{path} is an adapter that names no base model; pass a model of peft that has both")
    found = str(path / base) if not Path(base).is_dir() and (path / base).is_dir() else base
    if is_adapter(Path(found)):
        raise BadFile(f"{path} is an adapter of {base!r}, which is an adapter as well: merge that into its model first")
    return found


def with_adapter(hf: PreTrainedModel, path: Path) -> PreTrainedModel:
    """The base model with the adapter of a folder in its layers.

    Raises:
        BadInput: peft is not installed. UnknownName: as `unwrapped`. BadFile: weights that do not fit the base model.
    """
    try:
        import peft
    except ImportError as error:
        raise BadInput(f"{path} is an adapter, and peft is not installed: pip install 'monosem[adapters]'") from error
    if not any((path / name).is_file() for name in _ADAPTED):
        raise BadFile(f"{path} has an adapter_config.json and no weights; an adapter's are in {' or '.join(_ADAPTED)}")
    try:
        config = peft.PeftConfig.from_pretrained(str(path))
        config.inference_mode = True
        config.base_model_name_or_path = hf.name_or_path  # peft warns of another name, as a cached copy has
        _check_kind(config)
        model = peft.get_peft_model(hf, config)
        report = model.load_adapter(str(path), "default")
    except FILE_ERRORS as error:
        raise BadFile(f"cannot load the adapter {path}, of another base model perhaps: {explain(error)}") from error
    if odd := sorted([*report.missing_keys, *report.unexpected_keys]):
        raise BadFile(f"the adapter {path} does not fit its base model: {len(odd)} weights ({', '.join(odd[:3])})")
    return unwrapped(model)


def unwrapped(model: Any) -> PreTrainedModel:
    """The Hugging Face model inside, with the adapter's layers in it.

    Raises:
        UnknownName: the adapter acts outside the layers, so that the model inside gives other logits.
    """
    for name, config in model.peft_config.items():
        if name in _active(model):
            _check_kind(config)
    base = model.base_model.model
    if not isinstance(base, PreTrainedModel):
        raise BadInput(f"a peft model around a {type(base).__name__}; monosem takes one around a Hugging Face model")
    ids = torch.arange(6, device=base.device if base.device.type != "meta" else "cpu")[None]
    model.eval()  # as every model that is loaded
    with torch.no_grad(), turn(base):
        whole, inner = (one(input_ids=ids, use_cache=False).logits for one in (model, base))
    if not torch.allclose(whole, inner, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
        raise UnknownName(f"{type(model).__name__}: its adapter acts outside the layers, where it cannot be read")
    return base


def _active(model: Any) -> list[str]:
    names = model.active_adapters if hasattr(model, "active_adapters") else model.active_adapter
    return [names] if isinstance(names, str) else list(names)


def _check_kind(config: Any) -> None:
    kind = getattr(config.peft_type, "value", str(config.peft_type))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise UnknownName(f"{kind} adds learned vectors to the prompt; monosem reads adapters of layers (LoRA ...)")
    if getattr(config, "alora_invocation_tokens", None):
        raise UnknownName("an activated LoRA acts only after its invocation tokens, which monosem does not look for")


LowRanks = dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]


def merged_loras(hf: PreTrainedModel) -> tuple[PreTrainedModel, LowRanks]:
    """A copy without adapters, whose weights have what the active LoRAs add; and that: name of a layer -> A, B, where
    B A is added to its weight. The model itself stays as it is.

    Raises:
        BadInput: an adapter that is no plain LoRA of linear layers (DoRA, IA3, of embeddings, whole layers saved, ...).
    """
    plain = copy.deepcopy(hf)
    layers: dict[str, Any] = {name: one for name, one in plain.named_modules() if hasattr(one, "base_layer")}
    inside = {id(part) for layer in layers.values() for part in layer.modules()}
    odd = [one for one in plain.modules() if type(one).__module__.startswith("peft.") and id(one) not in inside]
    if odd or not all(map(_is_plain_lora, layers.values())):
        raise BadInput(
            "the model has an adapter that is no plain LoRA of linear layers; merge it into its model first (peft's "
            "merge_and_unload), save that and load it"
        )
    added: LowRanks = {}
    for name, layer in layers.items():
        on = [] if layer.disable_adapters else [one for one in layer.active_adapters if one in layer.lora_A]
        if on:
            added[name] = (
                torch.cat([layer.lora_A[one].weight.detach() for one in on]),
                torch.cat([layer.lora_B[one].weight.detach() * layer.scaling[one] for one in on], dim=1),
            )
        if waiting := [one for one in on if one not in layer.merged_adapters]:
            layer.merge(adapter_names=waiting)
        elif layer.disable_adapters and layer.merged:
            layer.unmerge()
        parent, _, own = name.rpartition(".")
        setattr(plain.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain, added


def _is_plain_lora(layer: Any) -> bool:
    kind = type(layer)
    odd = kind.__name__ != "Linear" or not kind.__module__.startswith("peft.tuners.lora.")
    return not (odd or layer.lora_variant or any(layer.lora_bias.values()))


def adapter_notes(hf: nn.Module) -> list[str]:
    """What the user should know about adapters in the layers; nothing where there are none."""
    layers: list[Any] = [m for m in hf.modules() if hasattr(m, "base_layer") and hasattr(m, "active_adapters")]
    if not layers:
        return []
    kinds = ", ".join(sorted({type(layer).__module__.split(".")[-2] for layer in layers}))
    names = ", ".join(sorted({name for layer in layers for name in layer.active_adapters}))
    if all(layer.disable_adapters for layer in layers):
        return [f"an adapter is there ({names}: {kinds}, {len(layers)} layers), and is switched off"]
    merged = ", merged" if all(layer.merged for layer in layers) else ""
    return [f"an adapter is on ({names}: {kinds}, {len(layers)} layers{merged}); sites and weights have it"]
