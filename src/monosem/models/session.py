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

from ..errors import EditDidNotFire, UnknownName
from .attention import visiting
from .points import first_input, point, rewrap, unwrap, with_first_input
from .sites import ATTENTION, PER_LAYER, Site

if TYPE_CHECKING:
    from .model import Model

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
    """

    mask: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]
    prompt_lengths: Int[Tensor, "batch"]
    column: int
    ids: Int[Tensor, "batch pos"]
    rows: slice | None = None
    batch: int = 0

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
        return replace(self, mask=mask, positions=positions, column=column, ids=ids)


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
        self.actions: dict[tuple[nn.Module, str], list[Action]] = defaultdict(list)
        self.visits: dict[nn.Module, Callable[[str, Tensor], Tensor]] = {}
        self.pending = self.wanted | set(self.edits)
        self.remembered: dict[Site, Tensor] = {}

    def __enter__(self) -> Self:
        for site in sorted(self.pending, key=_order):
            self._plan(site)
        self.stack = ExitStack()
        try:
            for (module, when), actions in self.actions.items():
                self.stack.callback(_hook(module, when, actions).remove)
            self.stack.enter_context(visiting(self.model.hf, self.visits))
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()
        self.remembered.clear()

    def check_fired(self) -> None:
        """Raises `EditDidNotFire` naming the first edit that reached no token."""
        for edits in self.edits.values():
            for edit in edits:
                if id(edit) not in self.fired:
                    raise EditDidNotFire(
                        f"{edit} reached no token; check its positions and scope, and that the run goes so far"
                    )

    def visit(self, site: Site, value: Tensor) -> Tensor:
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
            self.captured[site] = self.keep(site, found) if self.keep else found
        if self.stop:
            self.pending.discard(site)
            if not self.pending:
                raise Stop
        return value

    def _plan(self, site: Site) -> None:
        if site.name in ATTENTION:
            module = self.model.attention_module(site)
            self.visits[module] = lambda name, value, layer=site.layer: self.visit(Site(name, layer), value)  # type: ignore[misc]
            return
        place = point(self.model, site)
        if site.name == "resid_mid" and self.edits.get(site):
            return self._plan_mid_edit(site)
        # a view that was captured for gradients must be on the path to the logits, so it is joined back
        write = bool(self.edits.get(site)) or (self.grad and site in self.wanted)

        def action(whole: Tensor) -> Tensor:
            part = self.visit(site, place.split(whole))
            return place.join(whole, part) if write else whole

        self.actions[place.module, place.when].append(action)

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

        def edit(attn_out: Tensor) -> Tensor:
            resid_pre = self.remembered[before_site]
            new = self.remembered[site] = self.visit(site, resid_pre + attn_out)
            return new - resid_pre

        before_site = Site("resid_pre", site.layer)
        self.actions[before.module, before.when].append(remember)
        self.actions[write.module, write.when].append(edit)
        self.actions[read.module, read.when].append(lambda _: self.remembered[site])


def _order(site: Site) -> tuple[int, int]:
    """Order of computation, so that actions at one module run in the model's own order."""
    ends = {"embed": -1, "final_norm": 10**6, "logits": 10**6 + 1}
    return (ends[site.name], 0) if site.layer is None else (site.layer, PER_LAYER.index(site.name))


def _hook(module: nn.Module, when: str, actions: list[Action]) -> torch.utils.hooks.RemovableHandle:
    if when == "in":
        return module.register_forward_pre_hook(partial(_before, actions), with_kwargs=True)
    return module.register_forward_hook(partial(_after, actions))


def _before(actions: list[Action], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    old = value = first_input(args, kwargs)
    for action in actions:
        value = action(value)
    return None if value is old else with_first_input(args, kwargs, value)


def _after(actions: list[Action], module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    old = value = unwrap(output)
    for action in actions:
        value = action(value)
    return None if value is old else rewrap(output, value)


def check_site(model: "Model", site: Site) -> Site:
    """Raises `UnknownName` when the model has no such site."""
    if site.layer is not None and not 0 <= site.layer < model.cfg.n_layers:
        raise UnknownName(f"{site}: {model.name} has layers 0 to {model.cfg.n_layers - 1}")
    if site.name in ATTENTION:
        model.attention_module(site)
    else:
        point(model, site)
    return site
