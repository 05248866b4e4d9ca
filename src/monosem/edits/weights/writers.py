"""Writers: every module whose weights write into the residual stream, and the axis along which its outputs lie.

The axis comes from the type of the module (or, of experts, from its class), never from a shape: a square matrix would
not show it. What is not known is refused by name, because an edit that skips a writer looks like one that does nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...errors import UnknownName
from ...models import Model
from ...models.places.branches import Branch
from ...models.places.points import point

AXIS: dict[type[nn.Module], int] = {nn.Linear: 0, Conv1D: 1, nn.Embedding: 1}  # axis of the outputs in `weight`

# class of batched experts -> its parameters that write: the axis of the outputs; and those that do not write
EXPERTS: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
    **{
        f"{name}Experts": ({"down_proj": 1}, ("gate_up_proj",))
        for name in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Qwen3VLMoeText", "Olmoe", "FlexOlmo", "Phimoe", "GraniteMoe")
    },
    "GptOssExperts": ({"down_proj": 2, "down_proj_bias": 1}, ("gate_up_proj", "gate_up_proj_bias")),
}
# plain modules in a mixture of experts, by the last part of their path
WRITE, READ = ("down_proj",), ("gate_proj", "up_proj", "shared_expert_gate", "gate", "router")


@dataclass(frozen=True, eq=False)
class Writer:
    """One parameter that writes into the stream.

    Attributes:
        path: of its module in the Hugging Face model. name: of the parameter there.
        axis: along which its outputs (`d_model`) lie.
        branch: None for embeddings.
        shown_by: the module whose forward shows what it writes: its own, or the mixture that it is a part of.
        takes: the width of what that one is given; None: token ids.
    """

    path: str
    module: nn.Module
    name: str
    axis: int
    branch: Branch | None
    shown_by: nn.Module
    takes: int | None

    def __str__(self) -> str:
        return f"{self.path}.{self.name}"

    @property
    def layer(self) -> int | None:
        return None if self.branch is None else self.branch.layer

    @property
    def parameter(self) -> nn.Parameter:
        """Raises `KeyError` for a bias that is not there."""
        parameter = self.module._parameters[self.name]
        if parameter is None:
            raise KeyError(self.name)
        return parameter


def writers(model: Model) -> list[Writer]:
    """All parameters that write into the stream: token and position embeddings, output projections of attention and
    MLPs, experts, and their biases.

    Raises:
        UnknownName: a module that writes in a way that is not known here (named), or whose weights are not plain (4 or
            8 bits, an adapter, offloaded).
    """
    paths = {module: path for path, module in model.hf.named_modules()}
    model.written_before(f"resid_post.{model.cfg.n_layers - 1}")  # refuses streams that are no sums
    found = list(_embeddings(model, paths))
    for branch in model.branches():
        found += _mixture(branch, paths) if branch.kind == "mixture" else _projection(model, branch, paths)
    _check_own(found)
    return found


def _check_own(found: list[Writer]) -> None:
    """Raises `UnknownName` for a weight that several layers write with: an edit for one would be made once for each."""
    first: dict[int, Writer] = {}
    for one in found:
        other = first.setdefault(id(one.parameter), one)
        if other is not one and other.branch is not None and one.branch is not None:
            raise UnknownName(
                f"{other} is one weight in layers {other.layer} and {one.layer}, so that an edit of one layer would be "
                "an edit of both; edits.ablate_writes and other edits of activations are a layer's own"
            )


def _embeddings(model: Model, paths: dict[nn.Module, str]) -> Iterator[Writer]:
    table: Any = model.hf.get_input_embeddings()
    if (entry := [*model.entry, model.embedding][0]) is not table:
        between: Any = entry
        raise UnknownName(f"the embedding of {model.name} goes through {paths[between]}: it does not write alone")
    if model.adds_positions and model.position_module is None:
        raise UnknownName(f"{model.name} adds computed positions, which are no weights that can be edited")
    for module in filter(None, (table, model.position_module, model.type_module)):
        path = paths[module]
        if not isinstance(module, nn.Embedding):
            raise UnknownName(f"{path} is a {type(module).__name__}, whose weights are not known to be an embedding's")
        _check_plain(path, module.weight)
        yield Writer(path, module, "weight", AXIS[nn.Embedding], None, module, None)


def _projection(model: Model, branch: Branch, paths: dict[nn.Module, str]) -> list[Writer]:
    """The output projection of attention or an MLP."""
    if branch.inner is None:
        raise UnknownName(f"{paths[branch.module]} is a {branch.kind}; how it writes into the stream is not known here")
    module = point(model, branch.inner).module
    width = int(branch.weight().flatten(0, -2).shape[0])
    found = list(_plain(paths[module], module, branch, module, width))
    if branch.added is not None:
        name = str(branch.slot.mixer.bias)
        found.append(Writer(paths[branch.module], branch.module, name, 0, branch, branch.module, width))
    return found


def _plain(path: str, module: nn.Module, branch: Branch, shown_by: nn.Module, width: int) -> Iterator[Writer]:
    if type(module) not in AXIS:
        raise UnknownName(
            f"{path} is a {type(module).__name__}; its weights cannot be edited as a Linear's or Conv1D's"
        )
    for name, axis in (("weight", AXIS[type(module)]), ("bias", 0)):
        if (parameter := module._parameters.get(name)) is not None:
            _check_plain(f"{path}.{name}", parameter)
            yield Writer(path, module, name, axis, branch, shown_by, width)


def _mixture(branch: Branch, paths: dict[nn.Module, str]) -> list[Writer]:
    """The experts of a mixture, and what it has beside them."""
    found: list[Writer] = []
    width = branch.model.cfg.d_model
    for module in branch.module.modules():
        path, last = paths[module], paths[module].rpartition(".")[2]
        own = dict(module._parameters)
        if type(module).__name__ in EXPERTS:
            axes, others = EXPERTS[type(module).__name__]
            if unknown := [name for name in own if name not in axes and name not in others]:
                raise UnknownName(f"{path}.{unknown[0]}: whether it writes into the stream is not known here")
            for name, axis in axes.items():
                _check_plain(f"{path}.{name}", own[name])
                found.append(Writer(path, module, name, axis, branch, branch.module, width))
        elif last in WRITE:
            found += _plain(path, module, branch, branch.module, width)
        elif own and last not in READ:
            raise UnknownName(f"{path} ({type(module).__name__}): whether it writes into the stream is not known here")
    if not found:
        raise UnknownName(f"{paths[branch.module]}: none of its modules is known to write into the stream")
    return found


def _check_plain(path: str, weight: Tensor | None) -> None:
    if weight is None or type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point() or weight.is_meta:
        raise UnknownName(f"{path} is not a plain tensor of floats here (packed, adapted or offloaded): load it plain")
