"""Components of the residual stream as stacks: which there are, what each adds, and how a stack is finished."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, UnknownName
from ..places.branches import Branch
from ..places.norms import Norm
from ..places.sites import Site
from ..running.activations import Activations, position_embeddings
from .slices import PosSlice, Slice, at_positions, indices

Parts = list[tuple[str, Tensor]]  # label, and `*batch pos d_model`


@dataclass(frozen=True)
class Ask:
    """What a stack is made for, as TransformerLens's arguments say it.

    Attributes:
        remainder: the stream less the stack is added, as a component.
        onto: `d_model` or `d_model outputs`: projections of the components are wanted instead of the components.
    """

    layer: int | None
    mlp_input: bool
    apply_ln: bool
    pos_slice: PosSlice
    return_labels: bool
    remainder: bool = False
    onto: Tensor | None = None

    @property
    def is_vector(self) -> bool:
        return self.onto is not None and self.onto.ndim == 1

    def end(self, run: Activations) -> Site:
        """The stream that the components add up to."""
        return stream_end(run, layers_before(run, self.layer), self.mlp_input)

    def branches(self, run: Activations) -> list[Branch]:
        return run.model.written_before(self.end(run))

    def carried(self, run: Activations, branch: Branch) -> float:
        """What a branch's output is multiplied by on its way to that stream."""
        return run.model.carried(branch.layer, self.end(run))

    def directions(self, run: Activations) -> Float[Tensor, "d_model outputs"] | None:
        """What components are projected onto before the norm's scale divides."""
        if self.onto is None:
            return None
        if self.onto.shape[0] != run.model.cfg.d_model or self.onto.ndim > 2:
            raise BadInput(f"project_output_onto is d_model or d_model outputs, not {list(self.onto.shape)}")
        directions = self.onto.reshape(len(self.onto), -1).float()
        return norm_at(run, self.layer, self.mlp_input)[0].pull(directions.T).T if self.apply_ln else directions

    def cut(self, run: Activations, whole: Tensor) -> Tensor:
        """The positions of a component, projected where that is wanted."""
        part, onto = at_positions(run, whole, self.pos_slice), self.directions(run)
        return part if onto is None else part.float() @ onto


def layers_before(run: Activations, layer: int | None) -> int:
    """Number of layers that come before `layer`; all for None and -1."""
    n = run.model.cfg.n_layers
    if layer is None or layer == -1:
        return n
    if not 0 <= layer <= n:
        raise UnknownName(f"layer {layer}: {run.model.name} has layers 0 to {n - 1}; None or -1 takes all")
    return layer


def stream_end(run: Activations, upto: int, mlp_input: bool) -> Site:
    """The stream before a layer, or where its MLP reads."""
    if mlp_input and upto < run.model.cfg.n_layers:
        return run.model.branch("mlp", upto).reads
    return Site("resid_pre", upto) if upto < run.model.cfg.n_layers else Site("resid_post", upto - 1)


def norm_at(run: Activations, layer: int | None, mlp_input: bool) -> tuple[Norm, Float[Tensor, "*batch pos 1"]]:
    """The norm before a layer (or its MLP), or the final norm, and what it divided by in this run."""
    upto = layers_before(run, layer)
    if upto == run.model.cfg.n_layers:
        return run.model.final_norm, run["final_scale"]
    branch = run.model.branch("mlp", upto) if mlp_input else run.model.branches(upto)[0]
    if branch.norm is None:
        return branch.pre, branch.pre.scale(run[branch.reads])
    return branch.pre, run[f"{branch.norm}_scale", upto]


def check_held(run: Activations, ask: Ask, units: tuple[str, ...]) -> None:
    """Raises `BadInput` where the parts do not add up to the stream, when branches are taken apart into these units.

    That is where some heads alone were kept, or an edit changed what no part has.
    """
    if run.heads is not None:
        raise BadInput(
            f"this run kept heads {list(run.heads)} alone, which do not add up to the stream: leave heads= out"
        )

    def read(branch: Branch) -> Site:
        return branch.inner if branch.units in units and branch.inner is not None else branch.out

    for site in run.edited:
        if not run.model.is_held(site, ask.end(run), read):
            raise BadInput(
                f"the edit at {site} changed what no part holds, so the parts would not add up to the stream"
            )


def embeddings(run: Activations, ask: Ask) -> Parts:
    if run.model.entry:  # behind a norm, what enters the first block is one part
        return [("embed", ask.cut(run, run["resid_pre", 0]))]
    parts = [("embed", run["embed"])]
    if run.model.has("pos_embed"):
        parts.append(("pos_embed", position_embeddings(run)))
    carried = run.model.carried(None, ask.end(run))
    return [(label, ask.cut(run, part) * carried) for label, part in parts]


def of_branches(run: Activations, branches: Iterable[Branch], ask: Ask) -> Parts:
    return [(f"{one.layer}_{one.name}_out", ask.cut(run, run[one.out]) * ask.carried(run, one)) for one in branches]


def units_before(run: Activations, kind: str, chosen: Slice, ask: Ask, layers: Iterable[int] | None = None) -> Parts:
    """What each head or neuron adds to the stream.

    Raises:
        UnknownName: neurons of a mixture of experts.
    """
    branches = ask.branches(run) if layers is None else [b for layer in layers for b in run.model.branches(layer)]
    parts: Parts = []
    for branch in branches:
        if kind == "neuron" and branch.inner is None and branch.slot.mixer.row.plain == "mlp":
            run.model.site((f"{branch.name}_post", branch.layer))  # says why it cannot be read
        if branch.units != kind:
            continue
        kept = chosen if kind == "neuron" or run.heads is None else list(run.heads)  # a tuple would be a slice
        units = indices(branch.n_units, kept, f"{kind}_slice")
        units = [units] if isinstance(units, int) else units
        own = kind == "head" and not branch.slot.mixer.row.attends  # a layer may have heads of attention beside them
        letter = f"_{branch.name}_H" if own else kind[0].upper()
        labels = [f"L{branch.layer}{letter}{unit}" for unit in units]
        parts += zip(labels, _unit_writes(run, branch, units, ask))
    return parts


def _unit_writes(run: Activations, branch: Branch, units: list[int], ask: Ask) -> Float[Tensor, "unit *batch d_model"]:
    """What units of a branch add; positions are cut before anything of size unit x d_model is made."""
    assert branch.inner is not None
    whole = run[branch.inner]
    size = at_positions(run, branch.size(whole), ask.pos_slice)
    inner = at_positions(run, whole, ask.pos_slice, -3 if branch.units == "head" else -2)
    inner = inner if branch.units == "head" else inner[..., units]
    onto = ask.directions(run)
    carried = ask.carried(run, branch)
    if onto is None:
        return branch.share(branch.parts(inner, units).movedim(-2, 0), size) * carried
    weight = branch.weight()[units].float() @ branch.pull(onto.T).T
    shape = "...h,hn->h...n" if branch.units == "neuron" else "...hd,hdn->h...n"
    return torch.einsum(shape, inner.float(), weight) / size * carried


def biases(run: Activations, branches: Iterable[Branch], ask: Ask) -> Float[Tensor, "*batch pos d_model"]:
    """What the biases of branches add to the stream, after their units' sums and in the norms after them."""
    total = torch.zeros_like(run[ask.end(run)], dtype=torch.float32)
    for branch in branches:
        assert branch.inner is not None
        share = branch.share(branch.bias().float(), branch.size(run[branch.inner])) + branch.written_bias
        total = total + share * ask.carried(run, branch)
    return ask.cut(run, total)


def finished(run: Activations, parts: Parts, ask: Ask) -> Tensor | tuple[Tensor, list[str]]:
    """One tensor of the parts: with the remainder, the norm and the labels, where asked for."""
    labels = [label for label, _ in parts]
    whole = ask.cut(run, run[ask.end(run)])
    stack = torch.stack([part for _, part in parts]) if parts else whole[None][:0]
    if ask.remainder:
        stack, labels = torch.cat([stack, (whole - stack.sum(0))[None]]), [*labels, "remainder"]
    if ask.apply_ln and ask.onto is None:
        stack = run.apply_ln_to_stack(stack, ask.layer, ask.mlp_input, ask.pos_slice)  # type: ignore[attr-defined]
    elif ask.apply_ln:
        stack = stack / at_positions(run, norm_at(run, ask.layer, ask.mlp_input)[1], ask.pos_slice)
    if ask.is_vector:
        stack = stack[..., 0]
    return (stack, labels) if ask.return_labels else stack
