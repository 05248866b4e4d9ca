"""A weight edit as a LoRA adapter of `peft`: a folder that this library and peft load, of an edit that its caller made.

W + left (right W) is a LoRA with A = right W and B = left, of the edit's rank, without loss. A weight whose outputs lie
last (Conv1D, embeddings) has its transpose there.
"""

import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...errors import BadInput
from ...files import replacing, write_json, write_text
from .editing import Change, WeightEdit

USAGE = """\
# {label}

A LoRA adapter of {base}, made by monosem from an edit that its user stated. It changes what the model writes into its
residual stream; it was made to measure what rests on a direction, and the model with it may lack behaviours, refusals
among them, that the model has without it. It is meant for evaluation, not for use in front of people: whoever loads it
or passes it on answers for what the edited model says, under the licence of the base model.
"""


def save_adapter(edit: WeightEdit, folder: str | os.PathLike[str]) -> Path:
    """Write `adapter_config.json`, `adapter_model.safetensors` and a README with a note on its use.

    Raises:
        BadInput: an edit that no LoRA holds without loss: columns with old norms, a vector that is added as a bias,
            experts in one tensor, a tied unembedding that changes as well; or a folder that is not empty.
    """
    home, tensors, targets = Path(folder), dict[str, Tensor](), list[str]()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BadInput(f"{home} is there and not empty; give a new folder")
    unembed: Any = edit.model.hf.get_output_embeddings()
    table: Any = edit.model.hf.get_input_embeddings()
    shared = table.weight is getattr(unembed, "weight", None) and any(
        one.writer.module is table for one in edit.changes
    )
    if edit.norms is not None or (shared and not edit.untie):
        what = "columns with their old norms" if edit.norms is not None else "a tied unembedding that changes as well"
        raise BadInput(f"a LoRA does not hold {what} without loss; apply the edit in memory")
    for change in edit.changes:
        _add(edit, change, tensors, targets)
    ranks = {change.map.left.shape[1] for change in edit.changes if change.map is not None}
    if len(ranks) != 1:
        raise BadInput("an adapter has one rank for all layers, and this edit has another number of directions in some")
    home.mkdir(parents=True, exist_ok=True)
    with replacing(home / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    base = str(edit.model.hf.config._name_or_path or edit.model.name)
    write_json(home / "adapter_config.json", _config(edit, base, ranks.pop(), targets))
    write_text(home / "README.md", USAGE.format(label=edit.label, base=base))
    return home


def _add(edit: WeightEdit, change: Change, tensors: dict[str, Tensor], targets: list[str]) -> None:
    """The tensors of one change, under the names that peft gives them."""
    writer, map_ = change.writer, change.map
    if map_ is None or writer.name not in ("weight", "bias"):
        what = "a bias that is added" if map_ is None else "experts in one tensor"
        raise BadInput(f"a LoRA does not hold {what} ({writer}); apply the edit in memory")
    weight, path = writer.parameter, f"base_model.model.{writer.path}"
    if writer.name == "bias":
        new = (weight.float() + map_.delta(weight, 0)).to(weight.dtype)
        tensors[f"{path}.base_layer.bias"] = new.detach().cpu().contiguous()
        return
    targets.append(writer.path)
    A = map_.right.to(weight.device) @ weight.float().movedim(writer.axis, 0)
    embedding = isinstance(writer.module, nn.Embedding)
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    for name, value in zip(names, (A, map_.left)):
        tensors[f"{path}.{name}"] = value.detach().cpu().contiguous()


def _config(edit: WeightEdit, base: str, rank: int, targets: list[str]) -> dict[str, Any]:
    biases = any(change.writer.name == "bias" for change in edit.changes)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "lora_only" if biases else "none",
        "fan_in_fan_out": any(type(change.writer.module) is Conv1D for change in edit.changes),
        "target_modules": targets,
        "inference_mode": True,
    }
