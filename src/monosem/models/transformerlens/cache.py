"""The residual stream of a run taken apart, under the names and shapes of TransformerLens's ActivationCache.

Every stack is `component batch pos d_model` (`component batch d_model` for an integer `pos_slice`), in the order of the
model. Components are what is ADDED to the stream: after post-norms (their scale frozen at the run's) and residual
multipliers, so that they sum to the stream in every family. Norms include their gain: models are never folded, so
`apply_ln_to_stack(stack)` goes with the model's own `W_U`.
"""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, UnknownName
from ..places.norms import Norm
from ..running.activations import Activations, head_results, norm_and_input, position_embeddings
from .text import residual_directions

PosSlice = int | slice | list[int] | Tensor | None
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
        labels = []
        for i in range(upto):
            labels += [(f"{i}_pre", "resid_pre", i)] + ([(f"{i}_mid", "resid_mid", i)] if incl_mid else [])
        if upto == self.model.cfg.n_layers:
            labels.append(("final_post", "resid_post", upto - 1))
        else:
            labels.append((f"{upto}_pre", "resid_pre", upto))
            labels += [(f"{upto}_mid", "resid_mid", upto)] if mlp_input else []
        stack = torch.stack([_at(self[site, i], pos_slice) for _, site, i in labels])
        return _finished(
            self, stack, [label for label, *_ in labels], layer, mlp_input, apply_ln, pos_slice, return_labels
        )

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
        upto = _layers(self, layer)
        parts: list[tuple[str, Tensor]] = []
        if incl_embeds:
            parts.append(("embed", self["embed"]))
            if _has_positions(self):
                parts.append(("pos_embed", position_embeddings(self)))
        for i in range(upto):
            parts += [(f"{i}_attn_out", self["attn_out", i])] if mode in ("all", "attn") else []
            parts += [(f"{i}_mlp_out", self["mlp_out", i])] if mode in ("all", "mlp") else []
        if mlp_input and mode in ("all", "attn"):
            parts.append((f"{upto}_attn_out", self["attn_out", upto]))
        stack = torch.stack([_at(part, pos_slice) for _, part in parts])
        return _finished(
            self, stack, [label for label, _ in parts], layer, mlp_input, apply_ln, pos_slice, return_labels
        )

    def stack_head_results(
        self,
        layer: int | None = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
    ) -> Any:
        """What each head before `layer` (None or -1: all) adds to the stream, labelled L0H0, L0H1, ..."""
        upto = _layers(self, layer)
        stack = torch.cat([_head_writes(self, i, pos_slice) for i in range(upto)] or [_empty(self, pos_slice)])
        heads = self.heads if self.heads is not None else range(self.model.cfg.n_heads)
        labels = [f"L{i}H{head}" for i in range(upto) for head in heads]
        return _finished(
            self, stack, labels, layer, False, apply_ln, pos_slice, return_labels, upto if incl_remainder else None
        )

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: PosSlice = None,
        pos_slice: PosSlice = None,
    ) -> Float[Tensor, "*batch pos neuron d_model"]:
        """What each neuron of a layer adds to the stream: activation times its row of W_out."""
        return _neuron_writes(self, layer, neuron_slice, pos_slice).movedim(0, -2)

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
        upto = _layers(self, layer)
        wanted = _at(torch.arange(self.model.cfg.d_mlp), neuron_slice, axis=0).reshape(-1).tolist()
        parts = [_neuron_writes(self, i, neuron_slice, pos_slice) for i in range(upto)]
        labels = [f"L{i}N{n}" for i in range(upto) for n in wanted]
        return _finished(
            self,
            torch.cat(parts or [_empty(self, pos_slice)]),
            labels,
            layer,
            False,
            apply_ln,
            pos_slice,
            return_labels,
            upto if incl_remainder else None,
        )

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
        at = None if upto == self.model.cfg.n_layers else upto
        norm, x = norm_and_input(self, at, "ln2" if mlp_input else "ln1")
        return norm.frozen(residual_stack, _at(norm.scale(x), pos_slice))

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: PosSlice = None,
    ) -> Float[Tensor, "component *batch pos"]:
        """What each component writes into the logits of `tokens` (less those of `incorrect_tokens`), before a soft cap.

        Args:
            tokens: one token as text or id, or ids `batch` or `batch pos` (that of each row, or each position).
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


def post_norm(run: Cache, layer: int, branch: Literal["attn", "mlp"]) -> tuple[Norm, Tensor] | None:
    """The norm between a branch and the stream, and the scale that it divided by in this run; None without one."""
    model = run.model
    module = model.branch_norm(layer, branch)
    if module is None:
        return None
    if branch == "attn" and run.heads is not None:
        raise BadInput("this model has a post-norm after attention: its size needs all heads, capture z without heads=")
    if branch == "attn":
        raw = head_results(run, layer).sum(-2) + model.b_O[layer]
    else:
        raw = run["mlp_post", layer] @ model.W_out[layer] + model.b_out[layer]
    norm = Norm.of(module, model.cfg.d_model, model.device)
    return norm, norm.scale(raw)


def _head_writes(run: Cache, layer: int, pos_slice: PosSlice) -> Float[Tensor, "head *batch d_model"]:
    """What each head adds to the stream; positions are cut before anything of size head x d_model is made."""
    W_O = run.model.W_O[layer] if run.heads is None else run.model.W_O[layer][list(run.heads)]
    z = _at(run["z", layer], pos_slice, axis=-3)
    return _written(run, layer, "attn", torch.einsum("...hd,hdm->h...m", z, W_O), pos_slice)


def _neuron_writes(
    run: Cache, layer: int, neurons: PosSlice, pos_slice: PosSlice
) -> Float[Tensor, "neuron *batch d_model"]:
    kept = _at(torch.arange(run.model.cfg.d_mlp), neurons, axis=0).reshape(-1).to(run.model.device)
    active = _at(run["mlp_post", layer], pos_slice)[..., kept]
    return _written(run, layer, "mlp", torch.einsum("...n,nm->n...m", active, run.model.W_out[layer][kept]), pos_slice)


def _written(run: Cache, layer: int, branch: Literal["attn", "mlp"], parts: Tensor, pos_slice: PosSlice) -> Tensor:
    if (found := post_norm(run, layer, branch)) is not None:
        norm, scale = found
        parts = norm.frozen(parts, _at(scale, pos_slice))
    return parts * run.model.residual_multiplier


def _finished(
    run: Cache,
    stack: Tensor,
    labels: list[str],
    layer: int | None,
    mlp_input: bool,
    apply_ln: bool,
    pos_slice: PosSlice,
    return_labels: bool,
    remainder: int | None = None,
) -> Any:
    """The remainder (the stream before that layer, less the stack), the norm and the labels, where asked for."""
    if remainder is not None:
        last = remainder == run.model.cfg.n_layers
        whole = run["resid_post", remainder - 1] if last else run["resid_pre", remainder]
        stack = torch.cat([stack, (_at(whole, pos_slice) - stack.sum(0))[None]])
        labels = [*labels, "remainder"]
    if apply_ln:
        stack = run.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
    return (stack, labels) if return_labels else stack


def _layers(run: Cache, layer: int | None) -> int:
    """Number of layers that come before `layer`."""
    n = run.model.cfg.n_layers
    if layer is None or layer == -1:
        return n
    if not 0 <= layer <= n:
        raise UnknownName(f"layer {layer}: {run.model.name} has layers 0 to {n - 1}; None or -1 takes all")
    return layer


def _has_positions(run: Cache) -> bool:
    try:
        _ = run.model.W_pos
    except UnknownName:
        return False
    return True


def _empty(run: Cache, pos_slice: PosSlice) -> Tensor:
    return _at(run["resid_pre", 0], pos_slice)[None][:0]


def _at(x: Tensor, pos_slice: PosSlice, axis: int = -2) -> Tensor:
    """Columns of the position axis: an integer drops the axis, slices and lists keep it."""
    if pos_slice is None:
        return x
    if isinstance(pos_slice, int):
        return x.select(axis, pos_slice)
    if isinstance(pos_slice, slice):
        return x.movedim(axis, 0)[pos_slice].movedim(0, axis)
    return x.index_select(axis, torch.as_tensor(pos_slice, device=x.device) % x.shape[axis])
