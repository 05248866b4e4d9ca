"""The class that loads a checkpoint. Multimodal ones are loaded for text alone: what reads pictures or sound is neither
built in memory nor read.

Where transformers has a class of the language model that reads whole checkpoints (Qwen 3.5, Llama 4), it is that class.
Elsewhere it is the whole model's own class, whose forward goes past the towers on text: what stands beside the language
model (towers, projectors) is cut off before any weight is loaded. Shards that hold nothing else are not opened.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PretrainedConfig, PreTrainedModel

from ...errors import BadInput
from ..language import language_model

# read through the class of their language model, because the whole needs its towers' packages (timm) to be built
_AS_TEXT = ("gemma3n",)
# names of tensors that nobody misses in a language model; without effect on what is loaded
_OF_OTHER_PARTS = re.compile("vision|visual|image|video|audio|speech|multi_modal")
_LEFT, _NATIVE = "_monosem_left", "_monosem_native"


class Absent(nn.Module):
    """In the place of a part that was not loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise BadInput(
            f"{self.path} was not loaded, because only text is read; load the whole model with transformers, "
            "and give it to load_model"
        )


class Loader(NamedTuple):
    """A class with `from_pretrained`, and the config that it takes; `alone`: of the language model of a larger one."""

    cls: Any
    config: PretrainedConfig
    alone: bool


def loader_of(config: PretrainedConfig) -> Loader | None:
    """Which class loads a checkpoint with this config; None where transformers has none of its own for it."""
    causal: Any = AutoModelForCausalLM._model_mapping
    whole: Any = AutoModelForMultimodalLM._model_mapping
    text = config.get_text_config()
    if text is config:
        cls = causal.get(type(config), None) or whole.get(type(config), None)
        return None if cls is None else Loader(_reading(cls, False), config, False)
    own = causal.get(type(text) if config.model_type in _AS_TEXT else type(config), None)
    if own is not None and own.config_class is type(text):
        for name in ("dtype", "quantization_config"):  # said once, for the whole
            if getattr(text, name, None) is None and getattr(config, name, None) is not None:
                setattr(text, name, getattr(config, name))
        return Loader(_reading(own, True), text, True)
    return Loader(_reading(whole[type(config)], True), config, True) if type(config) in whole else None


def _reading(cls: type[PreTrainedModel], alone: bool) -> type[PreTrainedModel]:
    """The class without what stands beside its language model, which notes the tensors that it has no place for.

    It keeps its name, by which transformers knows it.
    """

    def build(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)  # on the meta device: no memory yet
        if config.get_text_config() is not config:
            for path, _ in list(beside(self)):
                parent, _, name = path.rpartition(".")
                setattr(self.get_submodule(parent), name, Absent(path))
        for number in getattr(config, "cross_attention_layers", None) or ():
            blocks: Any = language_model(self).get_submodule("layers")
            blocks[number] = Absent(f"layers.{number}")

    def load(model: PreTrainedModel, state_dict: Any, files: list[str] | None, config: Any) -> Any:
        files = _needed(model, files, config) if alone else files
        result = cls._load_pretrained_model(model, state_dict, files, config)
        left: set[str] = result[0].unexpected_keys
        vars(model)[_LEFT] = list(left)
        left.clear()  # said in words of our own
        return result

    members = {"__init__": build, "__module__": cls.__module__, "__doc__": cls.__doc__, _NATIVE: cls}
    return type(cls.__name__, (cls,), members | {"_load_pretrained_model": staticmethod(load)})


def settled(hf: PreTrainedModel, alone: bool = False) -> list[str]:
    """Make a model that was just loaded one of its native class; the tensors of its files that it has no place for,
    without what belongs to the parts beside its language model."""
    left: list[str] = vars(hf).pop(_LEFT, [])
    if (native := vars(type(hf)).get(_NATIVE)) is not None:
        hf.__class__ = native
    ends = [f".{path}." if path.startswith("layers") else f".{path.rpartition('.')[2]}." for path in absent(hf)]
    of_others = (
        key for key in left if any(end in f".{key}" for end in ends) or (alone and _OF_OTHER_PARTS.search(key))
    )
    return sorted(set(left).difference(of_others))


def close_up(hf: PreTrainedModel) -> list[int]:
    """Take out the layers that were not loaded, so that the others are numbered on: Mllama's layers that look at
    pictures, which a text goes past. Their numbers before."""
    part: Any = language_model(hf)
    layers = getattr(part, "layers", ())
    if not (gone := [n for n, block in enumerate(layers) if isinstance(block, Absent)]):
        return []
    part.layers = nn.ModuleList(block for block in layers if not isinstance(block, Absent))
    for number, block in enumerate(part.layers):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    part.cross_attention_layers = hf.config.cross_attention_layers = []
    hf.config.num_hidden_layers = len(part.layers)
    return gone


def beside(hf: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The largest parts with weights that are neither in, nor around, what a text goes through."""
    through = [language_model(hf), hf.get_input_embeddings(), hf.get_output_embeddings()]

    def parts(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            inside = set(child.modules())
            if any(child is one for one in through):
                continue
            if any(one in inside for one in through):
                yield from parts(child, f"{path}{name}.")
            elif next(child.parameters(), None) is not None:
                yield f"{path}{name}", child

    return parts(hf, "")


def absent(hf: PreTrainedModel) -> list[str]:
    """The paths of what was not loaded."""
    return [module.path for module in hf.modules() if isinstance(module, Absent)]


def _needed(model: PreTrainedModel, files: list[str] | None, config: Any) -> list[str] | None:
    """The shards that hold a weight of this model, by the checkpoint's index and transformers' own renaming."""
    index = (getattr(config, "sharded_metadata", None) or {}).get("weight_map")
    if not index or not files:
        return files
    from transformers import core_model_loading as loading  # late: the names in it are not public

    try:
        mapping = copy.deepcopy(list(config.weight_mapping or ()))  # renamings remember what they have renamed
        renamings = [one for one in mapping if isinstance(one, loading.WeightRenaming)]
        converters = [one for one in mapping if isinstance(one, loading.WeightConverter)]
        weights, prefix = model.state_dict(), model.base_model_prefix
        used = {
            index[key]
            for key in sorted(index)
            if key in weights or loading.rename_source_key(key, renamings, converters, prefix, weights)[0] in weights
        }
    except (AttributeError, TypeError):  # another release
        return files
    return [file for file in files if re.split(r"[\\/]", file)[-1] in used]
