"""Weight edits as data, applied for the length of a block and checked by a forward of every module that they change."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import BadInput, UnknownName
from ...models import Model, Site
from ...models.places.branches import Branch
from ...models.places.points import unwrap
from ...models.places.weights import embedding_table
from ..along import orthonormal
from ..changes import site_and_vector
from ..depths import stream_basis
from .maps import WriteMap, with_old_norms
from .writers import Writer, writers


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of one parameter: a map of what it writes, or a vector that is added to it (`d_model`)."""

    writer: Writer
    map: WriteMap | None = None
    shift: Float[Tensor, "d"] | None = None

    def new(self, norms: str | None) -> Tensor:
        """The new tensor, in float32. A bias that is not there yet counts as zeros."""
        module, axis = self.writer.module, self.writer.axis
        if self.map is None:
            assert self.shift is not None
            there = module._parameters[self.writer.name]
            return self.shift if there is None else there.float() + self.shift.to(there.device)
        old = self.writer.parameter
        new = old.float() + self.map.delta(old, axis)
        return with_old_norms(new, old, axis) if norms == "columns" else new


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """Changes of weights that were asked for, and nothing changed yet: `with edit.applied(): ...`.

    Attributes:
        label: what it does, in words.
        norms: "columns" where columns get their old norms back.
        untie: the unembedding keeps its weights where it shares them with the embedding.
        gone: directions of which nothing may be left in the stream, as every writer is edited; None for other edits.
    """

    model: Model
    label: str
    changes: tuple[Change, ...]
    norms: Literal["columns"] | None = None
    untie: bool = True
    gone: Float[Tensor, "k d"] | None = None

    @contextmanager
    def applied(self) -> Iterator[Model]:
        """The model with its weights edited. After the block, also after an error in it, every parameter is the very
        object that it was. Other threads wait for the end of the block before they run the model.

        Raises:
            BadInput: a module whose forward does not show the edit (nothing is left changed).
        """
        with self.model.turn():
            before, share = [(one, _shown(one.writer)) for one in self._checked()], self._share()
            put = self._put()
            try:
                for change, (given, old) in before:
                    self._check(change, given, old)
                if self._share() > 0.5 * share + 1e-5:
                    raise BadInput(
                        f"{self.model.name}: every known writer was edited, and the stream has the direction all the "
                        "same, so something else writes into it; nothing was changed"
                    )
                yield self.model
            finally:
                for module, name, parameter in reversed(put):
                    module._parameters[name] = parameter

    def __str__(self) -> str:
        return f"{self.label}: {len(self.changes)} parameters of {self.model.name}"

    def _put(self) -> list[tuple[nn.Module, str, Any]]:
        """Put the new parameters into the modules; what was there."""
        unembed: Any = self.model.hf.get_output_embeddings()
        made = [(one.writer, nn.Parameter(self._held(one), requires_grad=False)) for one in self.changes]
        put: list[tuple[nn.Module, str, Any]] = []
        for writer, new in made:
            old = writer.module._parameters[writer.name]
            put.append((writer.module, writer.name, old))
            writer.module._parameters[writer.name] = new
            if not self.untie and old is not None and getattr(unembed, "weight", None) is old:
                put.append((unembed, "weight", old))
                unembed._parameters["weight"] = new
        return put

    def _held(self, change: Change) -> Tensor:
        module = change.writer.module
        old: Any = module._parameters[change.writer.name]
        like: Any = module._parameters["weight"] if old is None else old
        if change.map is not None and like.shape[change.writer.axis] != len(change.map.left):
            raise BadInput(f"{change.writer} {list(like.shape)} has no {len(change.map.left)} outputs along its axis")
        new = change.new(self.norms).to(like.device, like.dtype)
        if not bool(new.isfinite().all()):
            raise BadInput(f"{change.writer}: the edited weights are not finite in {like.dtype}; give a smaller amount")
        return new

    def _share(self) -> float:
        """The largest share of the stream's last state that lies along what should be gone; 0 where nothing should."""
        if self.gone is None:
            return 0.0
        model, draw = self.model, torch.Generator().manual_seed(0)
        site = Site("resid_post", model.cfg.n_layers - 1)
        ids = torch.randint(model.cfg.d_vocab, (2, min(8, model.cfg.n_ctx)), generator=draw)
        around, model.ambient_edits = model.ambient_edits, []
        try:
            run = model.run(ids, capture=site, logits=False)
        finally:
            model.ambient_edits = around
        state = run[site].float().cpu()
        return float(((state @ self.gone.T).norm(dim=-1) / state.norm(dim=-1)).max())

    def _checked(self) -> list[Change]:
        """One change for each module whose forward shows it."""
        return list({one.writer.shown_by: one for one in self.changes if one.map is not None}.values())

    def _check(self, change: Change, given: Tensor, old: Tensor) -> None:
        """What a module writes now is the map of what it wrote: an edit along the wrong axis is off by more than the
        edit itself. Where columns have old norms, nothing along the directions may be left."""
        assert change.map is not None
        new, wanted = _forward(change.writer, given), change.map.of(old)
        if self.norms is None:
            off, size = (new - wanted).norm(), (old - wanted).norm()
        else:
            off, size = ((x.float() @ change.map.right.to(x.device).T).norm() for x in (new, old))
        if not bool(off <= 0.5 * size + 1e-5 * old.norm()):
            raise BadInput(
                f"{change.writer} does not write what its edit says ({off:.3g} off, of {size:.3g}): its outputs do not "
                "lie where its module's type says; nothing was changed"
            )


# ---------------------------------------------------------------------- the edits
def orthogonalise(
    model: Model,
    direction: Any,
    amount: float = 1.0,
    *,
    norms: Literal["columns"] | None = None,
    layers: Any = None,
    embeddings: bool = True,
    untie: bool = True,
) -> WeightEdit:
    """No writer writes along a direction any more: W - amount · RᵀR W, biases and embeddings included (Arditi et al.
    2024, arXiv:2406.11717). Without norms after the branches that equals `edits.ablate_writes` in logits.

    Behind a norm with gain g the direction is removed as g ⊙ r, so that nothing along r is written; the norm then
    divides by another size, and logits are not what `ablate_writes` gives.

    Args:
        direction: a `Direction`, a vector `d_model`, or several as a list or matrix, which are removed together; or a
            mapping of layers to these (`biprojected`): then the layers that it names are edited alone.
        norms: "columns": what each neuron, head dimension or token writes keeps its norm.
        layers: some layers alone, as `model.layers` takes them. embeddings: whether these are edited.
        untie: a tied unembedding keeps its weights, as it reads the stream; False changes it with the embedding.

    Raises:
        BadInput: vectors of another width, zeros, or directions that depend on each other.
        UnknownName: a writer that is not known here, named.
    """
    if norms not in (None, "columns"):
        raise BadInput(f"norms is None or 'columns', not {norms!r}: with the norms of rows, the direction comes back")
    if norms is not None and amount != 1:
        raise BadInput(f"norms='columns' goes with amount 1, not {amount:g}")
    amount, every = _finite(amount), writers(model)
    if isinstance(direction, Mapping):
        chosen: dict[int | None, Tensor] = {
            layer: stream_basis(model, one, "orthogonalise") for layer, one in direction.items()
        }
        model.layers(list(direction))
    else:
        basis = stream_basis(model, direction, "orthogonalise")
        chosen = dict.fromkeys(model.layers(layers), basis) | ({None: basis} if embeddings else {})
    changes = []
    for writer in every:
        if writer.layer in chosen:
            rows = _before_norm(writer.branch, chosen[writer.layer])
            changes.append(Change(writer, WriteMap.along(rows, amount)))
    whole = amount == 1 and len(changes) == len(every) and not isinstance(direction, Mapping)
    gone = chosen[None] if whole else None
    return WeightEdit(model, f"orthogonalise {amount:g}", tuple(changes), norms, untie, gone)


def reflect(model: Model, direction: Any, *, untie: bool = True) -> WeightEdit:
    """Every writer's part along a direction turned round: W - 2 r̂r̂ᵀ W (Householder). Arguments and errors as in
    `orthogonalise`; models with norms after their branches are refused."""
    basis = stream_basis(model, direction, "reflect")
    return _mapped(model, WriteMap.along(basis, 2.0), "reflect", untie)


def rotate(model: Model, source: Any, target: Any, *, untie: bool = True) -> WeightEdit:
    """What is written along one direction is written along another: the rotation in their plane, of every writer.
    Arguments and errors as in `reflect`."""
    s, t = (stream_basis(model, one, "rotate")[0] for one in (source, target))
    given = [one if isinstance(one, Tensor) else site_and_vector(one)[1] for one in (source, target)]
    s, t = (row * (row @ one.float().cpu()).sign() for row, one in zip((s, t), given))  # a basis may point back
    return _mapped(model, WriteMap.turning(s, t), "rotate", untie)


def add_as_bias(model: Model, direction: Any, amount: float = 1.0) -> WeightEdit:
    """`edits.add(direction, amount)` at every token as a weight: the bias of what writes last before the site. It needs
    no hook, so that any runtime has it.

    Args:
        direction: a `Direction` or `(site, vector)` at `resid_post.L` or `resid_pre.L`.

    Raises:
        BadInput: another site; a norm after the last branch, or a mixture of experts there, which no bias passes.
    """
    site, vector = site_and_vector(direction)
    site = model.site(site)
    stream_basis(model, vector, "add_as_bias")  # of the right width, finite, not zero
    shift = _finite(amount) * vector.float().cpu().flatten()
    if site.name == "resid_pre" and site.layer == 0:
        table = model.hf.get_input_embeddings()
        scale = embedding_table(table, model)[1] * model.embed_scale
        writer = next(one for one in writers(model) if one.module is table)
        return WeightEdit(model, f"add {amount:g} at {site}", (Change(writer, shift=shift / scale),))
    if site.name not in ("resid_pre", "resid_post") or site.layer is None:
        raise BadInput(f"add_as_bias adds to the stream between blocks, at resid_pre.L or resid_post.L, not at {site}")
    branch = model.branches(site.layer - (site.name == "resid_pre"))[-1]
    if branch.norm_out is not None or branch.inner is None:
        why = (
            "a norm stands between its bias and the stream" if branch.norm_out is not None else f"it is a {branch.kind}"
        )
        raise BadInput(f"add_as_bias: {branch.name}.{branch.layer} writes last before {site}, and {why}; use edits.add")
    weight = next(one for one in writers(model) if one.branch is not None and one.branch.out == branch.out)
    writer = replace(weight, name="bias", axis=0)
    return WeightEdit(model, f"add {amount:g} at {site}", (Change(writer, shift=shift / branch.scale),))


def _mapped(model: Model, map_: WriteMap, what: str, untie: bool) -> WeightEdit:
    every = writers(model)
    for writer in every:
        if writer.branch is not None and writer.branch.norm_out is not None:
            raise BadInput(
                f"{what}: {model.name} has a norm after {writer.branch.name}, behind which no weights turn what is "
                "written; use edits.reflect or edits.rotate at its sites"
            )
    return WeightEdit(model, what, tuple(Change(writer, map_) for writer in every), None, untie)


def _before_norm(branch: Branch | None, basis: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """What to remove from a branch's raw output, so that what it adds to the stream has nothing along the basis."""
    if branch is None or branch.norm_out is None:
        return basis
    bias = branch.written_bias.float().cpu()
    if bool((basis @ bias).abs().max() > 1e-6 * (1 + bias.norm())):
        raise UnknownName(f"the norm after {branch.name}.{branch.layer} has a bias along the direction, which stays")
    return orthonormal(branch.pull(basis.to(branch.post.gain.device)).cpu(), f"{branch.name}.{branch.layer}")


def _finite(amount: Any) -> float:
    value = float(amount)
    if value != value or abs(value) == float("inf"):
        raise BadInput(f"an amount must be a finite number, not {amount!r}")
    return value


@torch.no_grad()
def _shown(writer: Writer) -> tuple[Tensor, Tensor]:
    """Something to give to a module, and what it makes of that."""
    draw, like = torch.Generator().manual_seed(0), writer.parameter
    if writer.takes is None:
        rows = int(like.shape[0])
        given = torch.randint(rows, (1, min(16, rows)), generator=draw).to(like.device)
    else:
        given = torch.randn(1, 8, writer.takes, generator=draw).to(like.device, like.dtype)
    return given, _forward(writer, given)


@torch.no_grad()
def _forward(writer: Writer, given: Tensor) -> Float[Tensor, "rows d"]:
    made = writer.shown_by.forward(given)  # past the hooks of other code
    return unwrap(made).float().reshape(given.numel() if writer.takes is None else given.shape[1], -1)
