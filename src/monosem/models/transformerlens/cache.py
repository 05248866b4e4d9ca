"""The residual stream of a run taken apart, under the names and shapes of TransformerLens's ActivationCache.

Every stack is `component batch pos d_model` (`component batch d_model` for an integer `pos_slice`), in the order of the
model. Components are what is ADDED to the stream: after post-norms (their scale frozen at the run's) and residual
multipliers, so that they sum to the stream in every family. Norms include their gain: models are never folded, so
`apply_ln_to_stack(stack)` goes with the model's own `W_U`. Positions: see `slices`.
"""

from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, UnknownName, check_name
from ..places.sites import Site
from ..running.activations import Activations
from .absent import ABSENT_FROM_CACHES, put_absent
from .readout import LogitLens, Selection, Targets, read_logits
from .slices import PosSlice, Slice, along, at_positions, indices
from .stacks import (
    Ask,
    biases,
    check_held,
    embeddings,
    finished,
    layers_before,
    norm_at,
    of_branches,
    stream_end,
    units_before,
)
from .text import Tokens, residual_directions

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

    def to(self, device: torch.device | str) -> Self:
        """Move what was captured, in place, and the logits."""
        self.activations = {site: value.to(device) for site, value in self.activations.items()}
        self.logits = None if self.logits is None else self.logits.to(device)
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Slice) -> Self:
        """The cache of some rows; of one row, without the batch axis, for an integer. Raises `BadInput` without one."""
        if not self.has_batch_dim:
            raise BadInput("the batch dimension was removed: there are no rows to choose from")
        rows = indices(len(self.tokens), batch_slice, "batch_slice")
        listed = [rows] if isinstance(rows, int) else rows
        columns = None if self.columns is None else self.columns[listed]
        logits = None if self.logits is None else self.logits[listed]
        part = type(self)(
            self.model,
            self.tokens.of_rows(listed),
            logits,
            {site: value[rows] for site, value in self.activations.items()},
            columns,
            self.heads,
            self.edited,
        )
        part.has_batch_dim = not isinstance(rows, int)
        return part

    def compute_head_results(self) -> None:
        """Nothing to do: `cache["result", layer]` is computed from z when it is asked for."""

    def stack_activation(
        self, activation_name: str, layer: int | None = None, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer ..."]:
        """One activation of every layer before `layer` (None or -1: all)."""
        kind = () if sublayer_type is None else (sublayer_type,)
        return torch.stack([self[(activation_name, at, *kind)] for at in range(layers_before(self, layer))])

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Any:
        """The stream before each layer up to `layer` (None or -1: all, and the final one): the logit lens's input.

        With `apply_ln` and all layers, each stream goes through the final norm with a scale of its own, and the norm's
        bias; up to a layer, all go through that layer's norm with this run's scale.
        """
        upto = layers_before(self, layer)
        sites = []
        for i in range(upto):
            sites += [Site("resid_pre", i), *(_streams_between(self, i) if incl_mid else ())]
        sites += dict.fromkeys((stream_end(self, upto, False), stream_end(self, upto, mlp_input)))
        names = [f"{site.layer}_{site.name.removeprefix('resid_')}" for site in sites]
        final = upto == self.model.cfg.n_layers
        if final:
            names[-1] = "final_post"
        stack = torch.stack([at_positions(self, self[site], pos_slice) for site in sites])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice, recompute_ln=final)
        return (stack, names) if return_labels else stack

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
        check_name("mode", mode, ("all", *dict.fromkeys(branch.name for branch in self.model.branches())))
        ask = Ask(layer, mlp_input, apply_ln, pos_slice, return_labels)
        branches = [branch for branch in ask.branches(self) if mode in ("all", branch.name)]
        parts = [*(embeddings(self, ask) if incl_embeds else ()), *of_branches(self, branches, ask)]
        return finished(self, parts, ask)

    def stack_head_results(
        self,
        layer: int | None = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
    ) -> Any:
        """What each head before `layer` (None or -1: all) adds to the stream, labelled L0H0, L0H1, ..."""
        ask = Ask(layer, False, apply_ln, pos_slice, return_labels, incl_remainder)
        return finished(self, units_before(self, "head", None, ask), ask)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Slice = None,
        pos_slice: PosSlice = None,
        project_output_onto: Float[Tensor, "d_model *outputs"] | None = None,
    ) -> Float[Tensor, "*batch pos neuron d_model"]:
        """What each neuron of a layer adds to the stream: activation times its row of W_out.

        An integer `neuron_slice` drops the axis. `project_output_onto` gives projections of what is added instead.
        """
        (at,) = self.model.layers(layer)
        ask = Ask(at + 1, False, False, pos_slice, False, onto=project_output_onto)
        writes: Any = finished(self, units_before(self, "neuron", neuron_slice, ask, layers=[at]), ask)
        if isinstance(indices(self.model.cfg.d_mlp, neuron_slice, "neuron_slice"), int):
            return writes[0]  # type: ignore[no-any-return]
        return writes.movedim(0, -1 if ask.is_vector else -2)  # type: ignore[no-any-return]

    def stack_neuron_results(
        self,
        layer: int | None = None,
        pos_slice: PosSlice = None,
        neuron_slice: Slice = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Float[Tensor, "d_model *outputs"] | None = None,
        mlp_input: bool = False,
    ) -> Any:
        """What each neuron before `layer` (None or -1: all) adds to the stream, labelled L0N0, ... Mind the size.

        `project_output_onto` gives projections of the components instead, `d_model` or `d_model outputs`, and never
        makes the components.
        """
        ask = Ask(layer, mlp_input, apply_ln, pos_slice, return_labels, incl_remainder, project_output_onto)
        return finished(self, units_before(self, "neuron", neuron_slice, ask), ask)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        return_labels: bool = False,
        project_output_onto: Float[Tensor, "d_model *outputs"] | None = None,
    ) -> Any:
        """The stream before `layer` as heads, neurons (or MLPs), embeddings and the sum of all biases, in order.

        Raises:
            BadInput: an edit of the run changed the stream where no part has it, so that the parts would not add up.
        """
        ask = Ask(layer, mlp_input, apply_ln, pos_slice, return_labels, onto=project_output_onto)
        units = ("head", "neuron") if expand_neurons else ("head",)
        check_held(self, ask, units)
        parts = [part for unit in units for part in units_before(self, unit, None, ask)]
        parts += of_branches(self, [branch for branch in ask.branches(self) if branch.units not in units], ask)
        expanded = [branch for branch in ask.branches(self) if branch.units in units]
        parts += [*embeddings(self, ask), ("bias", biases(self, expanded, ask))]
        return finished(self, parts, ask)

    def apply_ln_to_stack(
        self,
        residual_stack: Stack,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
        batch_slice: Slice = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Stack:
        """The norm before `layer` (None or -1: the final norm) with this run's scale: centred / scale · gain, no bias.

        Args:
            mlp_input: the norm that the layer's MLP reads through.
            pos_slice: the one that made the stack.
            batch_slice: rows to keep; of a stack without a batch axis (`has_batch_dim=False`), the rows that it is of.
            recompute_ln: each component through the final norm with a scale of its own, and the norm's bias.

        Raises:
            BadInput: a stack whose rows or positions are not the run's, after these slices.
        """
        has_batch = has_batch_dim and self.has_batch_dim
        if batch_slice is not None and has_batch:
            residual_stack = along(residual_stack, batch_slice, "batch_slice", 1)
        norm, scale = norm_at(self, layer, mlp_input)
        if recompute_ln and layers_before(self, layer) == self.model.cfg.n_layers:
            return norm.frozen(residual_stack, norm.scale(residual_stack)) + norm.bias
        scale = at_positions(self, scale, pos_slice)
        if batch_slice is not None:
            if not self.has_batch_dim:
                raise BadInput("the batch dimension was removed: leave out batch_slice=")
            scale = along(scale, batch_slice, "batch_slice")
        elif self.has_batch_dim and not has_batch and len(self.tokens) == 1:
            scale = scale[0]
        if residual_stack.shape[1:-1] != scale.shape[:-1]:
            raise BadInput(
                f"the stack has components of shape {list(residual_stack.shape[1:])}, the run's norm has one scale for "
                f"each of {list(scale.shape[:-1])}: give the pos_slice=, batch_slice= and has_batch_dim= of the stack"
            )
        return norm.frozen(residual_stack, scale)

    def logit_lens(
        self,
        *,
        layers: Sequence[int] | None = None,
        incl_mid: bool = False,
        positions: PosSlice = -1,
        batch_slice: Slice = None,
        lens: Callable[[Tensor, int], Tensor] | None = None,
        apply_ln: bool = True,
        vocab: Sequence[int] | Tensor | None = None,
        targets: Targets = None,
        return_type: str = "logits",
        top_k: int | None = None,
        chunk_size: int = 64,
        enable_grad: bool = False,
    ) -> LogitLens:
        """Every stream of `accumulated_resid` as if it were the last: final norm, unembedding, soft caps and scales.

        Args:
            layers: entries to keep, by their place in the stack, negative from its end.
            positions: as a `pos_slice`; the last token by default, whose axis is dropped.
            lens: a function of an entry and its place, before the norm: a translator.
            vocab, targets, top_k: at most one of them: ids to keep; tokens to keep with their ranks (a tensor has one
                for each row, from the right); the number of likeliest ones to keep. Without them all are kept.
            return_type: "logits", "log_probs" (nats) or "probs".
            chunk_size: rows whose logits are held at once. enable_grad: keep the graph.

        Raises:
            UnknownName: no such entry or `return_type`. BadInput: no such position, row or token.
        """
        selection = Selection.of(self.model, vocab, targets, top_k)
        stack, labels = self.accumulated_resid(incl_mid=incl_mid, pos_slice=positions, return_labels=True)
        kept = list(range(len(labels))) if layers is None else list(layers)
        if wrong := [place for place in kept if not -len(labels) <= place < len(labels)]:
            raise UnknownName(f"no entry {wrong[0]}: the stack has {len(labels)}, {', '.join(labels)}")
        kept, stack = [place % len(labels) for place in kept], stack[kept]
        has_batch_dim = self.has_batch_dim
        if batch_slice is not None:
            if not has_batch_dim:
                raise BadInput("the batch dimension was removed: leave out batch_slice=")
            axes, stack = stack.ndim, along(stack, batch_slice, "batch_slice", 1)
            has_batch_dim = stack.ndim == axes
        with torch.set_grad_enabled(enable_grad):
            if lens is not None:
                stack = torch.stack([lens(entry, place) for entry, place in zip(stack, kept)])
            readout = read_logits(
                self.model, stack, selection, return_type=return_type, norm=apply_ln, chunk_size=chunk_size
            )
        return LogitLens(readout, [labels[place] for place in kept], has_batch_dim)

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: Tokens,
        incorrect_tokens: Tokens | None = None,
        pos_slice: PosSlice = None,
        batch_slice: Slice = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component *batch pos"]:
        """What each component writes into the logits of `tokens` (less `incorrect_tokens`), before a soft cap; with the
        model's multiplier of logits (Granite, Cohere).

        Args:
            tokens: one token as text or id; or several: `batch` (one for each row), `pos` (one for each position, of
                another number than the rows; else `1 pos`) or `batch pos`.
            pos_slice, batch_slice, has_batch_dim: as for `apply_ln_to_stack`.
        """
        direction = residual_directions(self.model, tokens)
        if incorrect_tokens is not None:
            other = residual_directions(self.model, incorrect_tokens)
            if other.shape != direction.shape:
                raise BadInput(f"tokens and incorrect_tokens differ in shape: {direction.shape} and {other.shape}")
            direction = direction - other
        scaled = self.apply_ln_to_stack(residual_stack, None, False, pos_slice, batch_slice, has_batch_dim)
        direction = direction.float().to(scaled.device) * self.model.logit_slope
        asked = list(direction.shape[:-1])
        if direction.ndim == 2 and scaled.ndim == 4 and len(direction) == scaled.shape[1]:
            direction = direction[:, None]  # one for each row, over all positions
        try:
            return (scaled * direction.expand(scaled.shape[1:])).sum(-1)
        except RuntimeError:
            raise BadInput(
                f"tokens of shape {asked} for a stack of rows and positions {list(scaled.shape[1:-1])}: give one "
                "token, one for each row, or one for each row and position"
            ) from None


put_absent(Cache, ABSENT_FROM_CACHES)


def _streams_between(run: Cache, layer: int) -> list[Site]:
    """The streams between the branches of a layer. Raises `UnknownName` for parallel blocks."""
    streams = dict.fromkeys(branch.reads for branch in run.model.branches(layer))
    return list(streams)[1:] or [run.model.site(("resid_mid", layer))]
