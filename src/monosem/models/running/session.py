"""Hooks for the length of one run or generation: captures and edits go in, nothing stays behind."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ...errors import BadInput, EditDidNotFire, SiteDidNotFire, UnknownName
from ..places.attention import visiting
from ..places.norms import Norm
from ..places.points import Point, first_input, point, rewrap, unwrap, with_first_input
from ..places.sites import ATTENTION, IN_BLOCK, NORMS, ONCE, READ_ONLY, Site

if TYPE_CHECKING:
    from ..model import Model

Action = Callable[[Tensor], Tensor]


@dataclass
class Moment:
    """What an edit knows about the activation it is given.

    Attributes:
        mask: which tokens of this chunk are real, `batch pos`.
        positions: index of each token among the real tokens of its row, counted from the start of the prompt.
        prompt_lengths: number of prompt tokens of each row, `batch`.
        column: column of the first token of this chunk in the (padded) whole sequence; > 0 with a KV cache.
        ids: token ids of this chunk.
        rows: which rows of the whole batch these are, when it runs in parts; None for all of them.
        batch: number of rows of the whole batch.
        columns: for a chunk of each row's last token alone, which columns these are in the whole sequence.
    """

    mask: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]
    prompt_lengths: Int[Tensor, "batch"]
    column: int
    ids: Int[Tensor, "batch pos"]
    rows: slice | None = None
    batch: int = 0
    columns: Int[Tensor, "batch 1"] | None = None

    def own(self, per_row: Tensor) -> Tensor:
        """Of a tensor with one item for each row of the whole batch, the items of these rows; others stay as given."""
        return per_row[self.rows] if self.rows is not None and len(per_row) == self.batch else per_row

    @property
    def last(self) -> "Moment":
        """The same for the last real token of each row alone (`batch 1`)."""
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        at = torch.where(self.mask, columns, -1).amax(-1, keepdim=True)
        mask, positions, ids = (part.gather(1, at) for part in (self.mask, self.positions, self.ids))
        column = self.column + self.mask.shape[1] - 1
        return replace(self, mask=mask, positions=positions, column=column, ids=ids, columns=self.column + at)


class EditLike(Protocol):
    """What a session needs of an edit (`monosem.edits.Edit`)."""

    @property
    def site(self) -> Site: ...

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        """The new activation, and whether the edit reached at least one token."""
        ...


class Stop(Exception):
    """Raised inside the forward pass after the last wanted site."""


class Session:
    """`with Session(model, capture, edits) as session:` then call the model; `session.captured` fills.

    A captured value is the one after the edits at its site: what the rest of the model reads.
    """

    def __init__(
        self,
        model: "Model",
        capture: Iterable[Site],
        edits: Iterable[EditLike],
        stop: bool = False,
        grad: bool = False,
        keep: Callable[[Site, Tensor], Tensor] | None = None,
    ):
        self.model, self.stop, self.grad, self.keep = model, stop, grad, keep
        self.wanted = set(capture)
        self.edits: dict[Site, list[EditLike]] = defaultdict(list)
        for edit in edits:
            self.edits[edit.site].append(edit)
        self.captured: dict[Site, Tensor] = {}
        self.fired: set[int] = set()
        self.moment: Moment
        self.actions: dict[tuple[nn.Module, str, int], list[Action]] = defaultdict(list)
        self.visits: dict[nn.Module, Callable[[str, Tensor], Tensor]] = {}
        self.pending = self.wanted | set(self.edits)
        self.remembered: dict[Site, Tensor] = {}

    def __enter__(self) -> Self:
        """Raises `BadInput` inside another pass of the same model, whose hooks would act in this one as well."""
        if self.model.in_pass:
            raise BadInput(
                f"an edit or hook runs {self.model.name} in the middle of a run of it: run what it needs beforehand"
            )
        for site in sorted(self.pending, key=_order):
            self._plan(site)
        self.stack = ExitStack()
        self.model.in_pass = True
        self.stack.callback(setattr, self.model, "in_pass", False)
        try:
            for (module, when, item), actions in self.actions.items():
                self.stack.callback(_hook(module, when, item, actions).remove)
            self.stack.enter_context(visiting(self.model.hf, self.visits))
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()
        self.remembered.clear()

    def check_captured(self) -> None:
        """Raises `SiteDidNotFire` naming the first site that the pass did not come by."""
        if missing := sorted(self.wanted - set(self.captured), key=_order):
            raise SiteDidNotFire(
                f"{missing[0]} was not computed by the modules of this model: a compiled forward or a replacement "
                "kernel goes past them; load the model without torch.compile and use_kernels"
            )

    def check_fired(self) -> None:
        """Raises `EditDidNotFire` naming the first edit that reached no token."""
        for edits in self.edits.values():
            for edit in edits:
                if id(edit) not in self.fired:
                    raise EditDidNotFire(
                        f"{edit} reached no token; check its positions and scope, and that the run goes so far"
                    )

    def visit(self, site: Site, value: Tensor, cut: bool = False) -> Tensor:
        """Edits, then capture. `cut`: the value is already the part that is kept."""
        moment = self.moment
        if site.name == "logits" and value.shape[1] != moment.mask.shape[1]:
            moment = moment.last  # only the last token of each row was unembedded
        for edit in self.edits.get(site, ()):
            value, reached = edit.apply(value, moment)
            if reached:
                self.fired.add(id(edit))
        if site in self.wanted:
            if self.grad and not value.requires_grad:
                value = value.detach().requires_grad_()
            found = value if self.grad else value.detach()
            self.captured[site] = self.keep(site, found) if self.keep and not cut else found
        if self.stop:
            self.pending.discard(site)
            if not self.pending:
                raise Stop
        return value

    def _plan(self, site: Site) -> None:
        if self.edits.get(site) and site.name in READ_ONLY:
            raise BadInput(f"{site} cannot be written: {READ_ONLY[site.name]}")
        if site.name in ATTENTION:
            module = self.model.attention_module(site)
            self.visits[module] = lambda name, value, layer=site.layer: self.visit(Site(name, layer), value)  # type: ignore[misc]
        elif site.name in NORMS:
            self._plan_norm(site)
        elif site.name == "result":
            self._plan_result(site)
        elif site.name == "resid_mid" and self.edits.get(site):
            self._plan_mid_edit(site)
        else:
            self._plan_point(site, point(self.model, site))

    def _writes(self, site: Site) -> bool:
        """A view that was captured for gradients must be on the path to the logits, so it is joined back."""
        return bool(self.edits.get(site)) or (self.grad and site in self.wanted)

    def _add(self, place: Point, action: Action) -> None:
        self.actions[place.module, place.when, place.item].append(action)

    def _plan_point(self, site: Site, place: Point) -> None:
        write = self._writes(site) and site.name not in READ_ONLY

        def action(whole: Tensor) -> Tensor:
            part = place.split(whole)
            rows, columns = self.moment.mask.shape
            if place.flat:
                part = part.unflatten(0, (rows, columns))
            elif site.name == "pos_embed":  # the same for every row, where nothing is padded
                part = part.expand(rows, -1, -1)
            part = self.visit(site, part)
            if not write:
                return whole
            return place.join(whole, part.flatten(0, 1) if place.flat else part)

        self._add(place, action)

    def _plan_norm(self, site: Site) -> None:
        """Scale and normalised value are computed from the norm's input; writing one replaces the norm's output.

        y = normalised · gain + bias; another scale s' gives (y - bias) · s / s' + bias.
        """
        module = norm_of(self.model, site)
        norm = Norm.of(module, self.model.cfg.d_model, self.model.device)
        write, is_scale = self._writes(site), site.name.endswith("scale")
        input_of, scale_of = (
            Site(f"{NORMS[site.name]}_normalized", site.layer),
            Site(f"{NORMS[site.name]}_scale", site.layer),
        )

        def remember(x: Tensor) -> Tensor:
            self.remembered[input_of] = x
            self.remembered[scale_of] = norm.scale(x)
            return x

        def action(y: Tensor) -> Tensor:
            x, scale = self.remembered[input_of], self.remembered[scale_of]
            new = self.visit(site, scale if is_scale else norm.centred(x) / scale)
            if not write:
                return y
            if is_scale:  # what the normalised value is then divided by
                self.remembered[scale_of] = new
                return ((y - norm.bias) * (scale / new) + norm.bias).to(y.dtype)
            return (new * norm.gain + norm.bias).to(y.dtype)

        self.actions[module, "in", 0].append(remember)
        self.actions[module, "out", 0].append(action)

    def _plan_result(self, site: Site) -> None:
        """Per-head outputs, made for the kept heads and positions alone unless they are written.

        A write goes through the output projection: the sum of what the heads' outputs change by is added to it.
        """
        place, z_site = point(self.model, Site("z", site.layer)), Site("z", site.layer)
        weight = self.model.W_O[site.layer]  # type: ignore[index]
        write = self._writes(site)

        def remember(whole: Tensor) -> Tensor:
            self.remembered[site] = place.split(whole)
            return whole

        def action(out: Tensor) -> Tensor:
            z, W_O = self.remembered[site], weight
            if self.keep and not write:
                heads = getattr(self.keep, "heads", None)
                z, W_O = self.keep(z_site, z), W_O if heads is None else W_O[list(heads)]
            value = torch.einsum("bthd,hdm->bthm", z, W_O)
            new = self.visit(site, value, cut=not write)
            # through `new` alone, so that gradients reach it
            return new.sum(2) + (out - value.sum(2)).detach() if write else out

        self._add(place, remember)
        self.actions[place.module, "out", 0].append(action)

    def _plan_mid_edit(self, site: Site) -> None:
        """Write resid_mid through attn_out: the native code saved the residual before the norm that reads resid_mid.

        attn_out becomes f(resid_pre + attn_out) - resid_pre; the norm is given the exact f(...), because in bf16 the
        subtraction and re-addition may lose one unit in the last place of the larger term.
        """
        before = point(self.model, Site("resid_pre", site.layer))
        write = point(self.model, Site("attn_out", site.layer))
        read = point(self.model, site)

        def remember(resid_pre: Tensor) -> Tensor:
            self.remembered[before_site] = resid_pre
            return resid_pre

        def edit(whole: Tensor) -> Tensor:
            resid_pre = self.remembered[before_site]
            new = self.remembered[site] = self.visit(site, resid_pre + write.split(whole))
            return write.join(whole, new - resid_pre)

        before_site = Site("resid_pre", site.layer)
        self._add(before, remember)
        self._add(write, edit)
        self._add(read, lambda _: self.remembered[site])


def _order(site: Site) -> tuple[int, int]:
    """Order of computation, so that actions at one module run in the model's own order."""
    if site.layer is not None:
        return site.layer, IN_BLOCK.index(site.name)
    place = ONCE.index(site.name)
    return (-1 if site.name in ("embed", "pos_embed") else 10**6), place


def _hook(module: nn.Module, when: str, item: int, actions: list[Action]) -> torch.utils.hooks.RemovableHandle:
    if when == "in":
        return module.register_forward_pre_hook(partial(_before, actions), with_kwargs=True)
    return module.register_forward_hook(partial(_after, actions, item))


def _before(actions: list[Action], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    old = value = first_input(args, kwargs)
    for action in actions:
        value = action(value)
    return None if value is old else with_first_input(args, kwargs, value)


def _after(actions: list[Action], item: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    old = value = unwrap(output, item)
    for action in actions:
        value = action(value)
    return None if value is old else rewrap(output, value, item)


def norm_of(model: "Model", site: Site) -> nn.Module:
    """The norm that a scale or normalized site belongs to. Raises `UnknownName` where the model has none."""
    which = NORMS[site.name]
    if which == "final":
        return model.hf.get_submodule(model.family.final_norm)
    module = model.norm_module(site.layer, which)  # type: ignore[arg-type]
    if module is None:
        raise UnknownName(f"{site}: blocks of {model.name} have no norm before this branch, only one after it")
    if which == "ln2" and module is model.norm_module(site.layer, "ln1"):  # type: ignore[arg-type]
        raise UnknownName(f"{site}: one norm serves both branches of {model.name}; use {site.name.replace('2', '1')}")
    return module


def check_site(model: "Model", site: Site) -> Site:
    """Raises `UnknownName` when the model has no such site."""
    if site.layer is not None and not 0 <= site.layer < model.cfg.n_layers:
        raise UnknownName(f"{site}: {model.name} has layers 0 to {model.cfg.n_layers - 1}")
    if site.name in ATTENTION:
        model.attention_module(site)
    elif site.name in NORMS:
        norm_of(model, site)
    else:
        point(model, Site("z", site.layer) if site.name == "result" else site)
    return site
