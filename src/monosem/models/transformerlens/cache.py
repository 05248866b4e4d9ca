"""The residual stream of a run taken apart, under the names and shapes of TransformerLens's ActivationCache.

Every stack is `component batch pos d_model` (`component batch d_model` for an integer `pos_slice`), in the order of the
model. Components are what is ADDED to the stream: after post-norms (their scale frozen at the run's) and residual
multipliers, so that they sum to the stream in every family. Norms include their gain: models are never folded, so
`apply_ln_to_stack(stack)` goes with the model's own `W_U`.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, UnknownName
from ..places.branches import Branch
from ..places.sites import Site
from ..running.activations import Activations, norm_and_input, position_embeddings
from ..running.selection import Positions
from .text import residual_directions

PosSlice = Positions | Tensor | None
Stack = Float[Tensor, "component *batch pos d_model"]


class Cache(Activations):
    """The activations as a mapping by TransformerLens names, and the stream taken apart."""

    def _named(self) -> dict[str, Tensor]:
        return {site.hook_name: value for site, value in self.activations.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._named())

    def __len__(self) -> int:
        return len(self.activations)

    def keys(self) -> KeysView[str]:
        return self._named().keys()

    def values(self) -> ValuesView[Tensor]:
        return self._named().values()

    def items(self) -> ItemsView[str, Tensor]:
        return self._named().items()

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Any:
        """The stream before each layer up to `layer` (None or -1: all, and the final one): the logit lens's input."""
        upto = _layers(self, layer)
        sites = []
        for i in range(upto):
            sites += [Site("resid_pre", i), *(_between(self, i) if incl_mid else ())]
        sites += dict.fromkeys((_end(self, upto, False), _end(self, upto, mlp_input)))
        names = [f"{site.layer}_{site.name.removeprefix('resid_')}" for site in sites]
        if upto == self.model.cfg.n_layers:
            names[-1] = "final_post"
        stack = torch.stack([_at(self[site], pos_slice) for site in sites])
        return _finished(self, stack, names, _Ask(layer, mlp_input, apply_ln, pos_slice, return_labels))

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """What embedding, positions, and each attention and MLP before `layer` (None or -1: all) add to the stream."""
        parts: list[tuple[str, Tensor]] = []
        if incl_embeds:
            parts.append(("embed", self["embed"]))
            if self.model.has("pos_embed"):
                parts.append(("pos_embed", position_embeddings(self)))
        for branch in self.model.written_before(_end(self, _layers(self, layer), mlp_input)):
            if mode in ("all", branch.name):
                parts.append((f"{branch.layer}_{branch.name}_out", self[branch.out]))
        stack = torch.stack([_at(part, pos_slice) for _, part in parts])
        ask = _Ask(layer, mlp_input, apply_ln, pos_slice, return_labels)
        return _finished(self, stack, [label for label, _ in parts], ask)

    def stack_head_results(
        self,
        layer: int | None = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
    ) -> Any:
        """What each head before `layer` (None or -1: all) adds to the stream, labelled L0H0, L0H1, ..."""
        heads = list(range(self.model.cfg.n_heads) if self.heads is None else self.heads)
        ask = _Ask(layer, False, apply_ln, pos_slice, return_labels, incl_remainder)
        return _of_units(self, "head", heads, ask)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: PosSlice = None,
        pos_slice: PosSlice = None,
    ) -> Float[Tensor, "*batch pos neuron d_model"]:
        """What each neuron of a layer adds to the stream: activation times its row of W_out."""
        chosen = _at(torch.arange(self.model.cfg.d_mlp), neuron_slice, axis=0).reshape(-1).tolist()
        writes = [_unit_writes(self, branch, chosen, pos_slice) for branch in _made_of(self, [layer], "neuron")]
        return torch.cat(writes).movedim(0, -2)

    def stack_neuron_results(
        self,
        layer: int | None = None,
        pos_slice: PosSlice = None,
        neuron_slice: PosSlice = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
    ) -> Any:
        """What each neuron before `layer` (None or -1: all) adds to the stream, labelled L0N0, ... Mind the size."""
        chosen = _at(torch.arange(self.model.cfg.d_mlp), neuron_slice, axis=0).reshape(-1).tolist()
        ask = _Ask(layer, False, apply_ln, pos_slice, return_labels, incl_remainder)
        return _of_units(self, "neuron", chosen, ask)

    def apply_ln_to_stack(
        self,
        residual_stack: Stack,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
    ) -> Stack:
        """The norm before `layer` (None or -1: the final norm) with this run's scale: centred / scale · gain, no bias.

        With `mlp_input` it is the norm that the layer's MLP reads through. `pos_slice` is the one that made the stack.
        """
        upto = _layers(self, layer)
        if upto == self.model.cfg.n_layers:
            norm, x = norm_and_input(self, None, "final")
        else:
            branch = self.model.branch("mlp", upto) if mlp_input else self.model.branches(upto)[0]
            norm, x = branch.pre, self[branch.reads]
        return norm.frozen(residual_stack, _at(norm.scale(x), pos_slice))

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: PosSlice = None,
    ) -> Float[Tensor, "component *batch pos"]:
        """What each component writes into the logits of `tokens` (less `incorrect_tokens`), before a soft cap.

        Args:
            tokens: one token as text or id, or ids `batch` or `batch pos` (one for each row, or each position).
        """
        direction = residual_directions(self.model, tokens)
        if incorrect_tokens is not None:
            other = residual_directions(self.model, incorrect_tokens)
            if other.shape != direction.shape:
                raise BadInput(f"tokens and incorrect_tokens differ in shape: {direction.shape} and {other.shape}")
            direction = direction - other
        scaled = self.apply_ln_to_stack(residual_stack, pos_slice=pos_slice)
        direction = direction.float().to(scaled.device)
        if direction.ndim == 2 and scaled.ndim == 4:  # one for each row, over all positions
            direction = direction[:, None]
        return (scaled * direction).sum(-1)


@dataclass(frozen=True)
class _Ask:
    """What a stack is finished with."""

    layer: int | None
    mlp_input: bool
    apply_ln: bool
    pos_slice: PosSlice
    return_labels: bool
    remainder: bool = False


def _finished(run: Cache, stack: Tensor, labels: list[str], ask: _Ask) -> Any:
    """The remainder (the stream before that layer, less the stack), the norm and the labels, where asked for."""
    if ask.remainder:
        whole = run[_end(run, _layers(run, ask.layer), False)]
        stack = torch.cat([stack, (_at(whole, ask.pos_slice) - stack.sum(0))[None]])
        labels = [*labels, "remainder"]
    if ask.apply_ln:
        stack = run.apply_ln_to_stack(stack, ask.layer, ask.mlp_input, ask.pos_slice)
    return (stack, labels) if ask.return_labels else stack


def _of_units(run: Cache, kind: str, units: list[int], ask: _Ask) -> Any:
    """The stack of what units of all branches before a layer add to the stream."""
    branches = _made_of(run, range(_layers(run, ask.layer)), kind)
    stacks = [_unit_writes(run, branch, units, ask.pos_slice) for branch in branches]
    stack = torch.cat(stacks or [_at(run["resid_pre", 0], ask.pos_slice)[None][:0]])
    labels = [f"L{branch.layer}{kind[0].upper()}{unit}" for branch in branches for unit in units]
    return _finished(run, stack, labels, ask)


def _made_of(run: Cache, layers: Iterable[int], kind: str) -> list[Branch]:
    """Branches made of heads or of neurons. Raises `UnknownName` where neurons are asked of a mixture of experts."""
    branches = [branch for layer in layers for branch in run.model.branches(layer)]
    for branch in branches:
        if kind == "neuron" and branch.pointwise and branch.inner is None:
            run.model.site((f"{branch.name}_post", branch.layer))  # says why it cannot be read
    return [branch for branch in branches if branch.units == kind]


def _unit_writes(
    run: Cache, branch: Branch, units: list[int], pos_slice: PosSlice
) -> Float[Tensor, "unit *batch d_model"]:
    """What units of a branch add to the stream; positions are cut before anything of size unit x d_model is made."""
    assert branch.inner is not None
    whole = run[branch.inner]
    inner = _at(whole, pos_slice, axis=-3) if branch.units == "head" else _at(whole, pos_slice)[..., units]
    parts = branch.parts(inner, units).movedim(-2, 0)
    return branch.share(parts, _at(branch.size(whole), pos_slice))


def _between(run: Cache, layer: int) -> list[Site]:
    """The streams between the branches of a layer. Raises `UnknownName` for parallel blocks."""
    streams = dict.fromkeys(branch.reads for branch in run.model.branches(layer))
    return list(streams)[1:] or [run.model.site(("resid_mid", layer))]


def _end(run: Cache, upto: int, mlp_input: bool) -> Site:
    """The stream before a layer, or where its MLP reads."""
    if mlp_input and upto < run.model.cfg.n_layers:
        return run.model.branch("mlp", upto).reads
    return Site("resid_pre", upto) if upto < run.model.cfg.n_layers else Site("resid_post", upto - 1)


def _layers(run: Cache, layer: int | None) -> int:
    """Number of layers that come before `layer`."""
    n = run.model.cfg.n_layers
    if layer is None or layer == -1:
        return n
    if not 0 <= layer <= n:
        raise UnknownName(f"layer {layer}: {run.model.name} has layers 0 to {n - 1}; None or -1 takes all")
    return layer


def _at(x: Tensor, pos_slice: PosSlice, axis: int = -2) -> Tensor:
    """Columns of the position axis: an integer drops the axis, slices, lists and "last" keep it."""
    if pos_slice is None:
        return x
    if isinstance(pos_slice, str):
        pos_slice = [-1]
    if isinstance(pos_slice, int):
        return x.select(axis, pos_slice)
    if isinstance(pos_slice, slice):
        pos_slice = list(range(x.shape[axis]))[pos_slice]
    return x.index_select(axis, torch.as_tensor(pos_slice, device=x.device) % x.shape[axis])
