"""Hooks for the length of one run or generation: captures and edits go in, nothing stays behind."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from ...errors import BadInput, EditDidNotFire, SiteDidNotFire
from ..places.attention import Visit, visiting
from ..places.branches import Branch
from ..places.calls import calling
from ..places.places import Places
from ..places.points import Point, given, point, rewrap, unwrap, with_given
from ..places.rotations import row_by_row
from ..places.sites import KEYS, NORMS, READ_ONLY, SHARED, Inner, Site, host_of
from ..turns import refuse_inference_mode
from .effects import check_attended, check_logits, checked, on_a_graph, refuse_fixed, unreached
from .experts import plan_experts
from .heads import plan_result
from .moment import Acting, EditLike, Moment
from .selection import Kept

Action = Callable[[Tensor], Tensor]
Result = TypeVar("Result")


class Stop(Exception):
    """Raised inside the forward pass after the last wanted site."""


class Session:
    """`with Session(model, capture, edits) as session: session.forward(moment, call)`; `session.captured` fills.

    A captured value is the one after the edits at its site: what the rest of the model reads. Every site is resolved
    once, here; a session can be entered again for the next rows of a batch.

    Args:
        stop: end the pass (`Stop`) after the last wanted site.
        grad: captured values stay on the graph.
        keep: cuts out the part of a captured value that is kept.
        room: how many generated tokens go through the model; None in a run.

    Raises:
        UnknownName: a site that the model does not have.
        BadInput: an edit at a site that cannot be written; gradients inside `torch.inference_mode()`.
    """

    def __init__(
        self,
        model: Places,
        capture: Iterable[Site],
        edits: Iterable[EditLike],
        *,
        stop: bool = False,
        grad: bool = False,
        keep: Kept | None = None,
        room: int | None = None,
    ):
        if grad:
            refuse_inference_mode("run(grad=True)", model.hf)
        self.model, self.stop, self.grad, self.keep, self.room = model, stop, grad, keep, room
        capture, edits = list(capture), list(edits)
        self.wanted = set(capture)
        inside = edits or any(isinstance(site, Inner) for site in capture)
        acting = Acting.of(edits, capture, grad) if inside else Acting()
        self.edits, self.chains, self.observers, self.narrow = (
            acting.edits,
            acting.chains,
            acting.observed,
            acting.columns,
        )
        self.noted = {site for edits in self.chains.values() for edit in edits for site in getattr(edit, "reads", ())}
        self.fired: set[int] = set()
        self.generated = False  # whether a pass has come by a generated token
        self.remembered: dict[Site, Tensor] = {}
        self.actions: dict[tuple[nn.Module, str, int | str], list[Action]] = defaultdict(list)
        self.visits: dict[nn.Module, Visit] = {}
        self.calls: Counter[object] = Counter()  # of modules that a pass calls several times
        self.attending: dict[nn.Module, dict[int, Branch]] = defaultdict(dict)  # the branch of each call
        self.points = {site: point(model, host_of(site)) for site in self.wanted | set(self.edits)}
        places = {site for site in self.points if not isinstance(site, Inner)} | self.observers | self.noted
        self.points |= {site: point(model, site) for site in places}
        if not model.takes_positions:
            self._add(point(model, Site("pos_embed")), self._positions)
        if model.encoder is not None and not model.encoder.takes_positions:
            self._add(point(model.encoder, Site("pos_embed")), self._source_positions)
        for site in sorted(places, key=lambda site: self.points[site].order):
            self._plan(site, self.points[site])
        for edit in itertools.chain(*self.chains.values()):
            if prepare := getattr(edit, "prepare", None):
                prepare(model)

    def __enter__(self) -> Self:
        """Waits for other threads. Raises `BadInput` inside another pass of the same Hugging Face model in this thread,
        whose hooks would act in this one as well."""
        stack = ExitStack()
        turns = stack.enter_context(self.model.turn())
        if turns.in_pass:
            stack.close()
            raise BadInput(
                f"an edit or hook runs {self.model.name} while {self.model.name} is running: "
                "run what the edit needs beforehand"
            )
        self.captured: dict[Site, Tensor] = {}
        self.lasting: dict[Any, Any] = {}
        self.pending = self.wanted | set(self.edits)
        self.stack, turns.in_pass = stack, True
        stack.callback(setattr, turns, "in_pass", False)
        try:
            if self.model.rotations:
                self.stack.enter_context(row_by_row(self.model.rotations))
            called: dict[nn.Module, dict[str, list[Action]]] = defaultdict(dict)
            for (module, when, item), actions in self.actions.items():
                if when == "call":
                    called[module][str(item)] = actions
                else:
                    self.stack.callback(_hook(module, when, int(item), actions).remove)
            if called:
                self.stack.enter_context(calling(called))
            if self.visits:
                self.stack.enter_context(visiting(self.model.hf, self.visits))
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()
        self.remembered.clear()
        if hasattr(self, "moment"):
            self.moment.notes.clear()
            self.moment.memory.clear()

    def forward(self, moment: Moment, call: Callable[[], Result]) -> Result:
        """A call of the model (or of a part of it) on the tokens of this moment.

        Raises:
            BadInput: logits that are NaN or infinite.
        """
        self.moment = replace(
            moment, model=self.model, room=self.room or 0, notes={}, memory={}, lasting=self.lasting, inside=self
        )
        if self.room:
            self.generated |= bool((moment.tokens.lengths > moment.prompt_lengths).any())
        self.calls.clear()
        out = call()
        logits = getattr(out, "logits", None)
        # a sum shows each number that is not finite, several times faster than a look at all
        if isinstance(logits, Tensor) and not logits.is_meta and not bool(logits.sum(dtype=torch.float32).isfinite()):
            check_logits([edit for edits in self.edits.values() for edit in edits], logits, self.moment)
        return out

    @property
    def edited(self) -> frozenset[Site]:
        """The sites that edits write."""
        return frozenset({*self.edits, *(site for site in self.observers if self._observed(site))})

    def check_captured(self) -> None:
        """Raises `SiteDidNotFire` naming the first site that the pass did not come by."""
        if missing := sorted(self.wanted - set(self.captured), key=lambda site: self.points[site].order):
            place = self.points[missing[0]]
            kind = type(place.module).__name__
            raise SiteDidNotFire(
                f"{missing[0]} was not computed: {kind} has no softmax attention of transformers' registry"
                if place.when == "inside"
                else f"{missing[0]} was not computed: the model goes past its module {kind}, as it does where a kernel "
                "replaces modules; read another site, or load the model without use_kernels and torch.compile"
            )

    def check_fired(self) -> None:
        """Raises `EditDidNotFire` naming the first edit that reached no token.

        An edit of generated tokens had none to reach where generation ended with its first: that token was chosen from
        what the prompt's last one gave.
        """
        for edits in self.edits.values():
            for edit in edits:
                if self.room is not None and not self.generated and getattr(edit, "scope", None) == "generated":
                    continue
                if id(edit) not in self.fired:
                    raise EditDidNotFire(unreached(edit))

    def visit(self, site: Site, value: Tensor, cut: bool = False, moment: Moment | None = None) -> Tensor:
        """Edits, then capture. `cut`: the value is already the part that is kept."""
        moment = moment or (self.moment.of_source if self._of_source(site) else self.moment)
        if site.shape[-1] == "vocab" and value.shape[1] != moment.mask.shape[1]:
            moment = moment.last  # only the last token of each row was unembedded
        came = value
        if site in self.chains and not isinstance(site, Inner):  # before edits inside one, it is the edit's activation
            moment = replace(moment, before=came)
        for edit in self.chains.get(site, ()):
            new, reached = edit.apply(value, moment)
            if reached:
                self.fired.add(id(edit))
            value = new if new is value else checked(edit, value, new, moment)
        if site in self.wanted:
            if self.grad and not value.requires_grad and value.is_floating_point():
                value = value.detach().requires_grad_()
            elif self.grad and site.name.endswith("_input"):
                value = value.view_as(value)  # the tensor is the stream's too, and this gradient is one reader's
            seen = value if self.grad else value.detach()
            self.captured[site] = self.keep(site, seen, moment.rows) if self.keep and not cut else seen
        if site in self.noted:
            moment.notes[site] = (came, value)
        if self.stop:
            self.pending.discard(site)
            if not self.pending:
                raise Stop
        return value

    def _of_source(self, site: Site) -> bool:
        """Whether a site has the positions of the source, where the tokens of a pass are the target's."""
        return host_of(site).in_source and self.model.encoder is not None

    # ------------------------------------------------------------------ places inside an edit
    def asked(self, site: Site) -> bool:
        """Whether a place is captured or edited."""
        return site in self.wanted or site in self.edits

    def written(self, site: Site) -> bool:
        """Whether a place is edited."""
        return site in self.edits

    def columns(self, site: Site) -> Tensor | None:
        """The latents that are visited at a place, in this order; None for all."""
        return self.narrow.get(site)

    def _observed(self, host: Site) -> bool:
        """Whether the activation at a host changes by edits of its inner places."""
        return any(isinstance(site, Inner) and host in site.hosts for site in self.edits)

    def _joined(self, host: Site) -> bool:
        """Whether what an observer gives is on the path to the logits."""
        return host in self.observers and (self.grad or self._observed(host))

    def _visit_inside(self, module: nn.Module, name: str, value: Tensor, visible: Tensor | None) -> Tensor:
        """A visit of attention. Rotated keys come with the cache's, which holds them as they were before edits."""
        self.calls[module] += name == "rot_q"  # a call begins with its queries
        branch = self.attending[module].get(self.calls[module] - 1 if self.model.loops else 0)
        if branch is None:
            return value
        site, moment = branch.site(name), self.moment
        if self._of_source(site):
            moment = moment.of_source
        elif name in KEYS:
            moment = moment.of_keys(value.shape[1])
        else:
            moment = replace(moment, across=branch.crosses)
        if name == "pattern" and (edits := self.edits.get(branch.site("scores"))):
            check_attended(edits, value)
        return self.visit(site, value, moment=replace(moment, visible=visible))

    def _plan(self, site: Site, place: Point) -> None:
        if place.fixed or site.name in READ_ONLY:
            refuse_fixed(site, place, bool(self.edits.get(site)) or self._observed(site), self.grad)
        if place.when == "inside":
            branch = self.model.branch_of(site)
            assert branch is not None
            self.attending[place.module][place.call or 0] = branch
            self.visits[place.module] = partial(self._visit_inside, place.module)
        elif place.when == "around":
            self._plan_norm(site, place)
        elif place.when == "chosen":
            plan_experts(self, site, place, self._writes(site))
        elif place.when == "across":
            plan_result(self, site, place, self._writes(site))
        elif place.sum_of and (self.edits.get(site) or self._joined(site)):
            self._plan_mid_edit(site, place)
        else:
            if place.sum_of and self.grad:
                self._add(point(self.model, site.at(place.sum_of[-1])), on_a_graph)
            self._plan_point(site, place)

    def _writes(self, site: Site) -> bool:
        """A view that was captured for gradients must be on the path to the logits, so it is joined back."""
        return bool(self.edits.get(site)) or self._joined(site) or (self.grad and site in self.wanted)

    def _add(self, place: Point, action: Action, when: str = "") -> None:
        """An action on a place's tensor; `when` names another side of its module."""
        if place.flat:
            action = partial(self._unflattened, place.side, action)
        if place.call is not None:
            action = partial(self._at_call, object(), place.call, action)
        self.actions[place.module, when or place.when, place.role or place.item].append(action)

    def _positions(self, columns: Tensor) -> Tensor:
        """Positions of tokens in place of columns, in models that are told none."""
        return self.model.W_pos[self.moment.positions] if self.moment.tokens.padded else columns

    def _source_positions(self, columns: Tensor) -> Tensor:
        """The same for what the encoder reads."""
        assert self.model.encoder is not None
        source = self.moment.tokens.source
        padded = source is not None and source.padded
        return self.model.encoder.W_pos[source.positions] if source is not None and padded else columns

    def _unflattened(self, side: str, action: Action, rows: Tensor) -> Tensor:
        mask = self.moment.of_source.mask if side else self.moment.mask
        return action(rows.unflatten(0, mask.shape)).flatten(0, 1) if rows.ndim == 2 else action(rows)

    def _at_call(self, key: object, call: int, action: Action, x: Tensor) -> Tensor:
        """The action, where it is this call of a module that a pass calls several times."""
        self.calls[key] += 1
        return action(x) if self.calls[key] == call + 1 else x

    def _plan_point(self, site: Site, place: Point) -> None:
        write = self._writes(site) and site.name not in READ_ONLY

        def action(whole: Tensor) -> Tensor:
            part = place.split(whole)
            if site.name in SHARED:  # the same for every row, where nothing is padded
                part = part.expand(len(self.moment.tokens), part.shape[-2], -1)
            # keys and values that are made of a cache's latents come with the earlier tokens' own
            longer = site.name in KEYS and part.shape[1] > self.moment.mask.shape[1]
            part = self.visit(site, part, moment=self.moment.of_keys(part.shape[1]) if longer else None)
            return place.join(whole, part) if write else whole

        self._add(place, action)

    def _plan_norm(self, site: Site, place: Point) -> None:
        """Scale and normalised value are computed from the norm's input; writing one replaces the norm's output.

        y = normalised · gain + bias; another scale s' gives (y - bias) · s / s' + bias.
        """
        norm = self.model.norm(place.module)
        write, is_scale = self._writes(site), site.name.endswith("scale")
        input_of, scale_of = (site.at(f"{NORMS[site.name]}_{form}") for form in ("normalized", "scale"))

        def remember(x: Tensor) -> Tensor:
            self.remembered[input_of] = x
            self.remembered[scale_of] = norm.scale(x)
            return x

        def action(y: Tensor) -> Tensor:
            x, scale = self.remembered[input_of], self.remembered[scale_of]
            # the scale as a tensor of its own: what is divided below is the norm's, and has another gradient
            new = self.visit(site, scale.view_as(scale) if is_scale else norm.centred(x) / scale)
            if not write:
                return y
            if is_scale:  # what the normalised value is then divided by
                self.remembered[scale_of] = new
                return ((y - norm.bias) * (scale / new) + norm.bias).to(y.dtype)
            return (new * norm.gain + norm.bias).to(y.dtype)

        self._add(place, remember, "in")
        self._add(place, action, "out")

    def _plan_mid_edit(self, site: Site, read: Point) -> None:
        """Write a stream between branches through the last branch before it: native code saved the residual earlier.

        With resid_mid = resid_pre + attn_out, attn_out becomes f(resid_mid) - resid_pre; the norm that reads resid_mid
        is given the exact f(...), because in bf16 the subtraction and re-addition may lose one unit in the last place
        of the larger term.
        """
        *before, last = map(site.at, read.sum_of)
        write = point(self.model, last)

        def remember(at: Site, place: Point, whole: Tensor) -> Tensor:
            part = place.split(whole)
            self.remembered[at] = read.keeps(part) if read.keeps is not None and at == before[0] else part
            return whole

        def edit(whole: Tensor) -> Tensor:
            first, *others = (self.remembered[at] for at in before)
            earlier = sum(others, first)
            new = self.remembered[site] = self.visit(site, earlier + write.split(whole))
            return write.join(whole, new - earlier)

        for at in before:
            place = point(self.model, at)
            self._add(place, partial(remember, at, place))
        self._add(write, edit)
        self._add(read, lambda _: self.remembered[site])


def _hook(module: nn.Module, when: str, item: int, actions: list[Action]) -> torch.utils.hooks.RemovableHandle:
    if when == "in":
        return module.register_forward_pre_hook(partial(_before, actions, item), with_kwargs=True)
    return module.register_forward_hook(partial(_after, actions, item))


def _before(actions: list[Action], item: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    old = value = given(module, args, kwargs, item)
    for action in actions:
        value = action(value)
    return None if value is old else with_given(module, args, kwargs, item, value)


def _after(actions: list[Action], item: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    old = value = unwrap(output, item)
    for action in actions:
        value = action(value)
    return None if value is old else rewrap(output, value, item)
