"""A checkpoint's tensors beside what its config calls for: what is missing, what is left over, and what both say."""

import re
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedModel

from ...errors import BadFile, BadInput
from ..language import text_config
from .quantised import refuse_scales

# ONNX, OpenVINO, TensorFlow, Flax, Core ML, TensorRT, ExecuTorch, the first format of Llama and Mistral
_OF_OTHER_PROGRAMS = (".onnx", ".xml", ".h5", ".msgpack", ".mlpackage", ".engine", ".tflite", ".pte", ".pth")
# classes whose logits, or some of them, are not of tokens
_OTHER_HEADS = re.compile(r"(Classification|QuestionAnswering|MultipleChoice|SentencePrediction|DoubleHeadsModel)$")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.*)")
# heads that predict several tokens ahead: transformers has no place for them, and texts are continued without
_AHEAD = re.compile(r"(^|[._])(mtp|nextn|eh_proj|shared_head|enorm|hnorm)")


def refuse_heads(classes: Iterable[str] | None, name: str, both: bool = False) -> None:
    """Raises `BadInput` for a model whose head does not predict tokens, by the classes that its config names.

    both: also for one that has such a head beside an unembedding, whose logits nothing would read.
    """
    named = [kind for kind in classes or () if isinstance(kind, str)]  # a config may hold anything
    others = [kind for kind in named if _OTHER_HEADS.search(kind)]
    two = [kind for kind in others if kind.endswith("DoubleHeadsModel")]
    if two and both:
        raise BadInput(
            f"{name} is a {two[0]}, with a second head that is not read; load it with transformers' "
            "AutoModelForCausalLM, and give load_model that model"
        )
    if others and len(others) == len(named) and not two:
        streams = (
            ", or, for its streams, AutoModelForCausalLM.from_pretrained(...) and give load_model that model"
            if others[0].endswith("Classification")
            else ""
        )
        raise BadInput(
            f"{name} is a {others[0]}, whose head does not predict tokens; load the language model that it was made "
            f"from{streams}"
        )


def check_contents(hf: PreTrainedModel, lost: Iterable[str], left: Iterable[str], name: str) -> None:
    """Raises `BadFile` for weights that are missing or of another shape, and where layers are left over.

    Args:
        lost: weights of the model that the files lack. left: tensors of the files that the model has no place for.
    """
    lost, left = sorted(lost), sorted(left)
    if lost:  # transformers would go on with random numbers in their place
        raise BadFile(f"cannot load {name}: {_why_lost(hf, lost, left)}")
    refuse_scales(left, name)
    layers = getattr(text_config(hf), "num_hidden_layers", None)
    beyond = [layer for layer in _by_layer(left) if layers is not None and layer >= layers]
    if beyond and not any(_AHEAD.search(key) for key in left):
        raise BadFile(
            f"cannot load {name}: config.json says {layers} layers, and the weights have layer {max(beyond)} as well; "
            "correct num_hidden_layers, or load the first layers with transformers and give load_model the model"
        )


def check_files(path: Path) -> None:
    """Raises `BadFile` for a folder whose weights are for another program than transformers alone."""
    inside = sorted(file.relative_to(path).as_posix() for file in (*path.glob("*"), *path.glob("*/*")))
    if any(re.search(r"^[^/]+\.(safetensors|bin|gguf)(\.index\.json)?$", file) for file in inside):
        return
    if others := [file for file in inside if file.endswith(_OF_OTHER_PROGRAMS)]:
        raise BadFile(
            f"{path} has no weights for transformers: it holds {others[0]}, for another program; take the original, "
            "with model.safetensors"
        )


def notes_on(left: Iterable[str]) -> list[str]:
    """What the user is told about tensors that were not used."""
    left = sorted(left)
    layers = {layer for layer, rests in _by_layer(left).items() if any(_AHEAD.search(rest) for rest in rests)}
    ahead = [key for key in left if _AHEAD.search(key) or ((found := _LAYER.search(key)) and int(found[1]) in layers)]
    others = unused_tensors(key for key in left if key not in ahead)
    return [*([f"its head that predicts several tokens ahead is not read ({some(ahead)})"] if ahead else []), *others]


def unused_tensors(names: Iterable[str]) -> list[str]:
    """A note on them, if there are any."""
    ignored = sorted(names)
    return [f"{len(ignored)} unused tensors in the file ({some(ignored)})"] if ignored else []


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _why_lost(hf: PreTrainedModel, lost: list[str], left: list[str]) -> str:
    many = f"{len(lost)} weights are missing or of another shape ({some(lost)})"
    head = hf.get_output_embeddings()
    heads = {key for key, parameter in hf.named_parameters() if head is not None and parameter is head.weight}
    if heads.issuperset(lost):
        kinds = " and ".join(hf.config.architectures or ()) or "a model"
        return f"{many}: {kinds} without an unembedding, not a language model"
    if any(key.endswith(".scales") for key in left):
        return f"{many}: the file's are quantised in a way that transformers does not read (MLX); take the original"
    ours, theirs = _by_layer(lost), _by_layer(left)
    if both := sorted(ours.keys() & theirs.keys()):
        first = both[0]
        return (
            f"config.json and the weights disagree about layer{'s' if len(both) > 1 else ''} "
            f"{', '.join(map(str, both[:5]))}{', ...' if len(both) > 5 else ''}: by the config layer {first} has "
            f"{ours[first][0]}, in the file it has {theirs[first][0]}; correct the list of layers in config.json"
        )
    return many


def _by_layer(keys: Iterable[str]) -> dict[int, list[str]]:
    """The tensors of each layer, by their names in it."""
    layers: dict[int, list[str]] = {}
    for key in keys:
        if found := _LAYER.search(key):
            layers.setdefault(int(found[1]), []).append(found[2])
    return layers
