"""An edit, and which tokens, rows and heads it is narrowed to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import BadInput, EditDidNotFire
from ..models import Model, Moment, Positions, Site
from ..models.numbers import whole_numbers
from ..models.places.sites import Inner
from ..models.running.roles import markup, turn_mask
from ..models.running.selection import at_positions, check_heads, listed
from ..models.transformerlens.text import single_token

Scope = Literal["all", "prompt", "generated"]
Gate = Callable[[Tensor, Moment], Bool[Tensor, "batch pos"]]
Token = int | str


class Trained(Protocol):
    """What an edit asks a dictionary about the tokens that it was trained on, or a direction that it was fitted on."""

    def prepare(self, model: Any) -> None:
        """Called before a pass of the model, as nothing can be run inside one."""
        ...

    def left_out(self, x: Tensor, moment: Moment) -> Mapping[str, Bool[Tensor, "batch pos"]]:
        """For each reason, the tokens that it was not trained on."""
        ...


@dataclass(frozen=True, eq=False)
class Edit:
    """`fn(x, moment)` at a site; x has its shape (`monosem.models.places.sites`), or one chunk of it with a KV cache.

    At `scores`, keys that a query may not see are NaN for `fn`, so that no arithmetic reads them unnoticed; at
    `pattern` they are 0. Whatever `fn` makes of them, they stay hidden. At `rot_k` x has all keys, with the cache's.

    Attributes:
        positions: token indices in a row (0 = its first real token, negative counts from the end of the prompt),
            a slice of the same, "last" for the last prompt token, None for all.
        rows: batch rows to edit; None for all.
        heads: heads to edit, by the site's own numbers (kv heads at k, v and rot_k); None for all.
        scope: "prompt" tokens, "generated" tokens (which the model has written and now reads), or "all".
        gate: which tokens to edit, decided from the activation itself; a closed gate is not a missed edit.
        by_row: every row is edited alone (with `moment.rows_of` of data by row), so that a run may split the batch.
        tokens: ids of tokens to edit, or texts of one token each; None for all.
        role: whose turn of a chat to edit ("user", "assistant", ...), without the tokens that open and close it.
        special: False leaves out special tokens (BOS, what opens and closes a chat's turns), True edits them alone.
        dictionary: tokens that it was not trained on (a direction: not fitted on) are left out: `everywhere=True` of
            an edit of latents makes it None. An index in `positions`, or a special token in `tokens`, that would be
            left out is refused. At a place inside a dictionary (`Dictionary.latents`) it is that one, unless the edit
            is `.at(everywhere=True)`.
        made_of: what must belong to the model, such as a `Direction`: its `check(model)` is called before a pass.
    """

    site: Site
    fn: Callable[[Tensor, Moment], Tensor]
    label: str
    positions: Positions | None = None
    rows: int | Sequence[int] | None = None
    scope: Scope = "all"
    gate: Gate | None = None
    by_row: bool = False
    heads: int | Sequence[int] | None = None
    tokens: Token | Sequence[Token] | None = None
    role: str | None = None
    special: bool | None = None
    dictionary: Trained | None = None
    everywhere: bool = False
    made_of: Any = None

    def __str__(self) -> str:
        return f"edit {self.label} at {self.site}"

    def at(
        self,
        positions: Positions | None = None,
        rows: int | Sequence[int] | None = None,
        scope: Scope | None = None,
        heads: int | Sequence[int] | None = None,
        tokens: Token | Sequence[Token] | None = None,
        role: str | None = None,
        special: bool | None = None,
        everywhere: bool | None = None,
    ) -> "Edit":
        """The same edit at some token positions, batch rows or heads, or only on the prompt or the generated tokens.

        What is not given stays as it is: `.at(rows=[1]).at(positions=-1)` is both. Every row must have the positions
        (a slice: one of them at least; in a run also the tokens and the role), else the edit is refused.

        Args:
            tokens: ids, or texts of one token each such as "<|im_start|>": wherever they stand.
            role: "user", "assistant", ...: what it says in a chat that the model's template wrote.
            special: False for all tokens but special ones, as one steers past the markup of a chat; True for these.
            everywhere: True acts on tokens that an edit's dictionary was not trained on, too.
        """
        if scope not in (None, "all", "prompt", "generated"):
            raise BadInput(f"scope is 'all', 'prompt' or 'generated', not {scope!r}")
        if special not in (None, True, False):
            raise BadInput(f"special= is False (all but special tokens) or True (these alone), not {special!r}")
        if heads is not None and self.site.head_axis is None:
            raise BadInput(f"{self.site} has no heads; attention has heads at z, result, q, k, v, pattern")
        narrower: dict[str, Any] = {"positions": positions, "rows": rows, "scope": scope, "heads": heads}
        narrower |= {"tokens": tokens, "role": role, "special": special, "everywhere": everywhere}
        return replace(self, **{name: value for name, value in narrower.items() if value is not None})

    def when(self, gate: Gate) -> "Edit":
        """The same edit where `gate(x, moment)`, a boolean `batch pos`, is true; of each row alone, for batches may be
        split. A `condition(...)` decides for whole rows, from any site before. Raises `BadInput` for no function."""
        if not callable(gate):
            raise BadInput(f"{self}: a gate is a function of activation and moment, or a condition, not {gate!r}")
        return replace(self, gate=gate)

    @property
    def reads(self) -> Sequence[Site]:
        """Sites beside its own whose activations it is told: what its condition reads."""
        return [site for site in getattr(self.gate, "sites", ()) if site != self.site]

    def prepare(self, model: Model) -> None:
        """Called before the pass in which the edit is applied."""
        if prepare := getattr(self.gate, "prepare", None):
            prepare(model)
        if self.made_of is not None:
            self.made_of.check(model)
        if self.trained is not None:
            self.trained.prepare(model)

    @property
    def trained(self) -> Trained | None:
        """The dictionary whose untrained tokens are left out."""
        inside = self.site.owner if isinstance(self.site, Inner) else None
        return None if self.everywhere else self.dictionary or inside

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        """The edited activation, and whether any token was reached.

        Raises:
            EditDidNotFire: a row that the edit does not reach. BadInput: what `fn` returns does not fit.
        """
        chosen = self._reached(x, moment)
        heads = None if self.heads is None else tuple(whole_numbers(self.heads, "heads"))
        if not bool(chosen.any()) or heads == ():
            return x, False
        moment, seen = replace(moment, chosen=chosen, heads=heads), x
        if moment.visible is not None and self.site.name.endswith("scores"):
            seen = x.masked_fill(~moment.visible, torch.nan)
        new = self.fn(seen.clone(), moment)  # functions may write into it
        if not isinstance(new, Tensor) or new.shape != x.shape:
            shape = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise BadInput(f"{self} returned shape {shape} for an activation of shape {tuple(x.shape)}")
        if new.is_complex() or new.device != x.device:
            raise BadInput(f"{self} returned {new.dtype} on {new.device} for an activation {x.dtype} on {x.device}")
        new = new.to(x.dtype)
        if self.gate is not None:
            chosen = chosen & self._opened(seen, moment)
        if bool(chosen.all()) and heads is None:
            return new, True
        where = spread(chosen, x, self.site.query_axis)
        return torch.where(where if heads is None else where & self._of_heads(x, heads, moment), new, x), True

    def _opened(self, x: Tensor, moment: Moment) -> Bool[Tensor, "batch pos"]:
        """Where the gate is open. Raises `BadInput` for one that does not answer for each token."""
        assert self.gate is not None
        if self.site in getattr(self.gate, "sites", ()):  # as the activation came, before the edits here
            notes = {self.site: (x if moment.before is None else moment.before, x), **moment.notes}
            moment = replace(moment, notes=notes)
        gate: Any = self.gate(x, moment)
        if not isinstance(gate, Tensor) or gate.dtype != torch.bool or gate.shape != moment.mask.shape:
            shape = f"{gate.dtype} of shape {tuple(gate.shape)}" if isinstance(gate, Tensor) else type(gate).__name__
            raise BadInput(
                f"{self}: its gate gives {shape}; one boolean a token, {tuple(moment.mask.shape)}, is needed"
            )
        return gate

    def _of_heads(self, x: Tensor, heads: tuple[int, ...], moment: Moment) -> Bool[Tensor, "..."]:
        """Which entries of x belong to the heads, in a shape that broadcasts."""
        axis = self.site.head_axis
        assert axis is not None
        check_heads(self.site, heads, x.shape[axis], moment.model.cfg.n_heads if moment.model else x.shape[axis])
        chosen = torch.isin(torch.arange(x.shape[axis]), torch.tensor(heads, dtype=torch.long)).to(x.device)
        return chosen.reshape(*[1] * axis, -1, *[1] * (x.ndim - axis - 1))

    # ------------------------------------------------------------------ tokens
    def _reached(self, x: Tensor, moment: Moment) -> Bool[Tensor, "batch pos"]:
        """The tokens that it acts on, where a gate lets it."""
        chosen = self._chosen(moment)
        if (trained := self.trained) is None or not bool(chosen.any()):
            return chosen
        return self._trained_on(trained, x, chosen, moment)

    def _chosen(self, moment: Moment) -> Bool[Tensor, "batch pos"]:
        chosen, in_rows = moment.mask, self._rows(moment)
        lengths = moment.prompt_lengths[:, None]
        if self.scope != "all":
            in_prompt = moment.positions < lengths
            chosen = chosen & (in_prompt if self.scope == "prompt" else ~in_prompt)
        if self.positions is not None:
            if moment.column == 0 and (moment.room or self.scope != "generated"):
                self._check_positions(moment, in_rows)
            chosen = chosen & at_positions(self.positions, moment.positions, lengths)
        if self.tokens is not None:
            chosen = chosen & torch.isin(moment.ids, self._ids(moment))
        if self.role is not None:
            assert moment.model is not None
            chosen = chosen & moment.part(turn_mask(moment.model, moment.tokens, self.role))
        if self.special is not None:
            assert moment.model is not None
            ids = torch.tensor(sorted(markup(moment.model)), dtype=torch.long, device=moment.ids.device)
            chosen = chosen & (torch.isin(moment.ids, ids) == self.special)
        chosen = chosen & in_rows[:, None]
        narrowed = any(part is not None for part in (self.positions, self.tokens, self.role, self.special))
        if narrowed and moment.room == 0 and self.scope != "generated":
            self._check_rows(moment, in_rows & ~chosen.any(1))
        return chosen

    def _trained_on(
        self, dictionary: Trained, x: Tensor, chosen: Bool[Tensor, "batch pos"], moment: Moment
    ) -> Bool[Tensor, "batch pos"]:
        """The chosen tokens that the dictionary was trained on, by their activation before any edit of it.

        Raises:
            EditDidNotFire: others of a prompt that are named, or all that are chosen in a row (in generation, some may
            come).
        """
        left_out = dictionary.left_out(x if moment.before is None else moment.before, moment)
        bad = torch.stack(list(left_out.values())).any(0)
        kept, named = chosen & ~bad, chosen & bad & (moment.positions < moment.prompt_lengths[:, None])
        if self.positions is None or isinstance(self.positions, slice):
            named = named & left_out["special"] if self.tokens is not None else torch.zeros_like(named)
        no_more = self.scope == "prompt" or (moment.room == 0 and self.scope == "all")
        missed = chosen.any(1) & ~kept.any(1) & no_more
        refused = named | (chosen & missed[:, None])
        if bool(refused.any()):
            row, column = refused.nonzero()[0].tolist()
            reason = next(name for name, tokens in left_out.items() if bool(tokens[row, column]))
            token = int(moment.ids[row, column])
            shown = repr(moment.model.str_token(token)) if moment.model is not None else str(token)
            raise EditDidNotFire(
                f"{self}: its {getattr(dictionary, 'learnt', 'dictionary was not trained')} on "
                f"{'any token' if bool(missed[row]) else 'what is named'} of row {moment.row(row)} "
                f"(token {int(moment.positions[row, column])}, {shown}: {reason}); choose "
                "other tokens, or make it with everywhere=True to act on these, too"
            )
        return kept

    def _rows(self, moment: Moment) -> Bool[Tensor, "batch"]:
        """Which rows of this part are edited."""
        device = moment.mask.device
        if self.rows is None:
            return torch.ones(len(moment.mask), dtype=torch.bool, device=device)
        rows, n = whole_numbers(self.rows, "rows"), moment.size
        if bad := [row for row in rows if not -n <= row < n]:
            raise BadInput(f"{self}: the batch has rows 0 to {n - 1}, not {bad[0]}")
        chosen = torch.zeros(n, dtype=torch.bool, device=device)
        chosen[torch.tensor(rows, dtype=torch.long, device=device)] = True
        return moment.rows_of(chosen)

    def _ids(self, moment: Moment) -> Tensor:
        """The ids that `tokens` names."""
        assert moment.model is not None
        given: Any = self.tokens.tolist() if isinstance(self.tokens, Tensor) else self.tokens
        named = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
        return torch.tensor([single_token(moment.model, token) for token in named], device=moment.mask.device)

    def _check_positions(self, moment: Moment, in_rows: Bool[Tensor, "batch"]) -> None:
        """Raises `EditDidNotFire` for a position that a row lacks, also with all tokens that may be generated."""
        lengths = moment.prompt_lengths
        ends = lengths + moment.room
        if isinstance(self.positions, slice):
            index = torch.arange(int(ends.max()), device=lengths.device).expand(len(lengths), -1)
            here = at_positions(self.positions, index, lengths[:, None]) & (index < ends[:, None])
            return self._check_rows(moment, in_rows & ~here.any(1))
        for position in listed(0 if self.positions is None else self.positions):
            far = position > 2**62 or position < -(2**62)  # torch has no such numbers
            lacks = torch.full_like(lengths, far, dtype=torch.bool)
            lacks = lacks if far else lengths + position < 0 if position < 0 else ends <= position
            self._check_rows(moment, in_rows & lacks, f"position {position}")
        return None

    def _check_rows(self, moment: Moment, missed: Bool[Tensor, "batch"], what: str = "such token") -> None:
        """Raises `EditDidNotFire` naming the first of the rows that are missed."""
        if not bool(missed.any()):
            return
        row = int(missed.nonzero()[0, 0])
        tokens = int(moment.prompt_lengths[row])
        raise EditDidNotFire(
            f"{self} reaches no token of row {moment.row(row)}: it has {tokens} tokens and no {what}; choose another "
            "one, or the rows that have it with .at(rows=[...])"
        )


def spread(chosen: Tensor, x: Tensor, axis: int) -> Tensor:
    """`batch pos` to a shape that broadcasts over x, whose positions are on `axis`."""
    return chosen.reshape(chosen.shape[0], *([1] * (axis - 1)), chosen.shape[1], *([1] * (x.ndim - axis - 1)))
