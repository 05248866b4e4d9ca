"""Clean and corrupted prompts, aligned token by token: what every patching experiment starts from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import metrics
from ..errors import BadInput
from ..models.numbers import whole_numbers
from ..models.running.run import refuse_rows
from ..models.tokens import texts_of
from .joint import joint_answers, joint_ids

if TYPE_CHECKING:
    from ..models import Model, TokenBatch

Answer = str | int


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """The i-th clean prompt belongs to the i-th corrupted one; both have the same number of tokens.

    Rows may differ in length: batches are padded, spans name positions that mean the same in every row.

    Attributes:
        clean, corrupted: token batches of one layout, `batch pos`.
        right, wrong: the answer tokens whose logits are compared after the last token, `batch`; None where a metric
            needs none (KL), or where the answers are sets.
        spans: named token positions of each row ("io", "s1", "end", ...), `batch`; None entries never occur.
        right_set, wrong_set: several answers a row (a year after another one is any of many), `batch answer`; -1 fills
            up shorter sets.
        right_tokens, wrong_tokens: answers of several tokens, one a row, `batch step`; -1 fills up shorter ones. They
            are measured by their joint probability (`joint`), and right, wrong and the sets are None.
        source: what the pairs are, for reports: "IOI, mixed templates, corruption abc, seed 0".
        notes: what was assumed or left out while they were made, one sentence each.
    """

    clean: "TokenBatch"
    corrupted: "TokenBatch"
    right: Int[Tensor, "batch"] | None = None
    wrong: Int[Tensor, "batch"] | None = None
    spans: dict[str, Int[Tensor, "batch"]] = field(default_factory=dict)
    right_set: Int[Tensor, "batch answer"] | None = None
    wrong_set: Int[Tensor, "batch answer"] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    right_tokens: Int[Tensor, "batch step"] | None = None
    wrong_tokens: Int[Tensor, "batch step"] | None = None

    @staticmethod
    def of(
        model: "Model",
        clean: Any,
        corrupted: Any,
        right: Sequence[Answer | Sequence[Answer]] | None = None,
        wrong: Sequence[Answer | Sequence[Answer]] | None = None,
        *,
        spans: Mapping[str, Sequence[int]] | None = None,
        drop_unaligned: bool = False,
        joint: bool = False,
        source: str = "",
        notes: Sequence[str] = (),
    ) -> "TokenPairs":
        """Tokenise and check the pairs.

        Args:
            clean, corrupted: prompts as for `Model.run`, one of each for a pair.
            right, wrong: answers as text (exactly one token each after the clean prompt, mind the leading space) or
                token ids; or a list of such answers for every pair, in which each counts once.
            spans: token positions of each row, counted from its first token.
            drop_unaligned: leave out pairs that do not align, or whose answers are not single tokens or are the same,
                instead of refusing them all; `notes` says how many and which.
            joint: answers may be several tokens, whose joint probability is measured (a list: the ids of one answer).

        Raises:
            BadInput: sides of different length, pairs whose token counts differ (both tokenisations are shown), an
                answer that is not one token, a wrong answer that is the right one, a span outside its row; or no pair
                is left.
        """
        for what, values in {"clean": clean, "corrupted": corrupted, "right": right, "wrong": wrong}.items():
            if isinstance(values, str | int):
                raise BadInput(f"{what} must be a list with one entry for each pair, not {values!r} alone")
        a, b = (model.tokens(side, padding="right") for side in (clean, corrupted))
        named = {name: whole_numbers(at, f"span {name!r}") for name, at in (spans or {}).items()}
        _check_counts(a, b, right, wrong, named)
        bad = _misaligned(model, a, b)
        prompts = texts_of(clean) or a.rows()
        read: Any = joint_ids if joint else _answers
        answers = [read(model, side, prompts, bad) for side in (right, wrong)]
        _check_distinct(model, answers[0], answers[1], list if joint else set, bad)
        if bad and not drop_unaligned:
            more = f" (and {len(bad) - 1} more: {_listed(list(bad)[1:])})" if len(bad) > 1 else ""
            remedy = "reword them, or leave them out (drop_unaligned=True, --drop-unaligned)"
            raise BadInput(f"{next(iter(bad.values()))}{more}; {remedy}")
        if len(bad) == len(a):
            raise BadInput(f"none of the {len(a)} pairs can be used; the first: {next(iter(bad.values()))}")
        for name, at in named.items():
            _check_span(name, at, a, bad)
        left_out = [f"{len(bad)} of {len(a)} pairs left out ({_listed(list(bad))}); {why}" for why in bad.values()][:1]
        kept = [row for row in range(len(a)) if row not in bad]
        where = {name: torch.as_tensor(at)[kept] for name, at in named.items()}
        held = _held([None if rows is None else [rows[row] for row in kept] for rows in answers], joint)
        return TokenPairs(a[kept], b[kept], spans=where, source=source, notes=(*notes, *left_out), **held)

    def __post_init__(self) -> None:
        """Raises `BadInput` when there is no pair, a position does not mean the same in both prompts of a pair, or the
        right answers of a pair are its wrong ones."""
        if not len(self.clean):
            raise BadInput("there are no pairs; give or keep at least one")
        if self.clean.ids.shape != self.corrupted.ids.shape or not torch.equal(self.clean.mask, self.corrupted.mask):
            raise BadInput(
                "clean and corrupted prompts must have the same numbers of tokens and the same padding; "
                "TokenPairs.of(model, clean, corrupted) says which pair differs"
            )
        right, wrong = (None if side is None else side.tolist() for side in self._told)
        for row, (one, other) in enumerate(zip(right or (), wrong or ())):
            same = [one, other] if self.joint else [set(one), set(other)]
            if [token for token in same[0] if token >= 0] == [token for token in same[1] if token >= 0]:
                raise BadInput(
                    f"{_equal(row)} (token ids {one}), so every difference of the two is 0; give another one"
                )

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        lengths = sorted(set(self.clean.lengths.tolist()))
        tokens = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
        spans = f", spans {', '.join(self.spans)}" if self.spans else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"TokenPairs({self.source or 'pairs'}: {len(self)} of {tokens} tokens{spans}{notes})"

    def __getitem__(self, rows: slice | list[int] | Tensor) -> "TokenPairs":
        """Some of the pairs."""
        clean, corrupted = self.clean[rows], self.corrupted[rows]
        return replace(self, clean=clean, corrupted=corrupted, **self._parts(lambda values: values[rows]))

    def to(self, device: torch.device | str) -> "TokenPairs":
        clean, corrupted = self.clean.to(device), self.corrupted.to(device)
        return replace(self, clean=clean, corrupted=corrupted, **self._parts(lambda values: values.to(device)))

    def flipped(self) -> "TokenPairs":
        """Clean and corrupted change places; the answers stay."""
        return replace(self, clean=self.corrupted, corrupted=self.clean)

    @property
    def differs(self) -> Bool[Tensor, "batch pos"]:
        """Where the two prompts of a pair have different tokens."""
        return (self.clean.ids != self.corrupted.ids) & self.clean.mask

    # ------------------------------------------------------------------ answers
    @property
    def answers(self) -> tuple[Int[Tensor, "batch answer"] | None, Int[Tensor, "batch answer"] | None]:
        """(right, wrong) as sets, whichever way they were given."""
        singles = [None if one is None else one[:, None] for one in (self.right, self.wrong)]
        right, wrong = (
            many if many is not None else one for many, one in zip((self.right_set, self.wrong_set), singles)
        )
        return right, wrong

    @property
    def joint(self) -> bool:
        """Whether answers are several tokens, of which only the joint probability can be measured."""
        return self.right_tokens is not None or self.wrong_tokens is not None

    @property
    def _told(self) -> tuple[Tensor | None, Tensor | None]:
        """The ids of right and wrong answers, however they are meant."""
        return (self.right_tokens, self.wrong_tokens) if self.joint else self.answers

    def advantage(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        """Log odds of the right answers against the wrong ones, in nats: the logit difference for single tokens.

        Raises:
            BadInput: the pairs have no right or no wrong answers, or answers of several tokens.
        """
        if self.joint:
            raise BadInput("answers of several tokens are not told by the logits after the prompt; see joint_answers")
        right, wrong = self.answers
        if right is None or wrong is None:
            raise BadInput("these pairs have no right or no wrong answers; give TokenPairs.of(..., right=, wrong=)")
        return metrics.log_odds(logits, right.to(logits.device), wrong.to(logits.device))

    def solved(self, model: "Model", *, top: bool = False, batch_size: int = 32) -> "TokenPairs":
        """The pairs whose clean prompt the model answers right: the right answer is likelier than the wrong one.

        Args:
            top: the right answer must be the likeliest of all tokens, which needs no wrong answers.
            batch_size: prompts a forward pass.

        Raises:
            BadInput: the model answers none of them right, or they have no answers; edits of `model.editing(...)` that
                name rows.
        """
        refuse_rows(model, "solved")
        kept: list[int] = []
        for start in range(0, len(self), batch_size):
            part = self[slice(start, start + batch_size)]
            good = part._solved_jointly(model, top) if self.joint else part._solved(model, top)
            kept += [start + row for row in good.nonzero().flatten().tolist()]
        if not kept:
            raise BadInput(f"{model.name} answers none of the {len(self)} clean prompts right; nothing to explain")
        note = f"{len(kept)} of {len(self)} pairs kept, those that {model.name} answers right"
        return replace(self[kept], notes=(*self.notes, note))

    def _solved(self, model: "Model", top: bool) -> Tensor:
        logits = model.run(self.clean, logits="last").logits
        assert logits is not None
        return self._on_top(logits) if top else self.advantage(logits) > 0

    def _solved_jointly(self, model: "Model", top: bool) -> Tensor:
        if self.right_tokens is None or (self.wrong_tokens is None and not top):
            raise BadInput("these pairs have no right or no wrong answers; give TokenPairs.of(..., right=, wrong=)")
        right, on_top = joint_answers(model, self.clean, self.right_tokens)
        return (
            on_top
            if self.wrong_tokens is None or top
            else (right > joint_answers(model, self.clean, self.wrong_tokens)[0])
        )

    def _on_top(self, logits: Tensor) -> Tensor:
        right, _ = self.answers
        if right is None:
            raise BadInput("these pairs have no right answers; give TokenPairs.of(..., right=)")
        return (logits.argmax(-1)[:, None] == right.to(logits.device)).any(-1)

    # ------------------------------------------------------------------ to look at
    def table(self, model: "Model") -> pd.DataFrame:
        """A row a pair: both texts, the answers, the number of tokens and what differs where."""
        right, wrong = self._told
        rows = []
        for i, (one, other) in enumerate(zip(self.clean.rows(), self.corrupted.rows())):
            changed = [at for at, (x, y) in enumerate(zip(one, other)) if x != y]
            spelled = [f"{at}: {model.str_token(one[at])!r} → {model.str_token(other[at])!r}" for at in changed]
            texts = {"clean": model.text(one), "corrupted": model.text(other)}
            answers = {"right": _spelled(model, right, i, self.joint), "wrong": _spelled(model, wrong, i, self.joint)}
            rows.append(texts | answers | {"tokens": len(one), "differs": ", ".join(spelled)})
        return pd.DataFrame(rows)

    def show(self, model: "Model", *, n: int = 3) -> str:
        """The first n pairs token by token, `[...]` around tokens that differ, spans and answers below; to print."""
        right, wrong = self._told
        lines = [repr(self)]
        for i, rows in enumerate(zip(self.clean.rows()[:n], self.corrupted.rows()[:n])):
            for side, (row, partner) in (("clean    ", rows), ("corrupted", rows[::-1])):
                tokens = [model.str_token(token) for token in row]
                marked = [f"[{text}]" if x != y else text for text, x, y in zip(tokens, row, partner)]
                lines.append(f"{i:3} {side}  {'|'.join(marked)}")
            spans = [f"{name} {int(at[i])}{model.str_token(rows[0][int(at[i])])!r}" for name, at in self.spans.items()]
            told = [_spelled(model, side, i, self.joint) or "-" for side in (right, wrong)]
            answers = f"right {told[0]}, wrong {told[1]}"
            lines.append(f"    {'; '.join([answers, *spans])}")
        return "\n".join(lines)

    def _parts(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Every tensor of answers and spans, changed."""
        names = ("right", "wrong", "right_set", "wrong_set", "right_tokens", "wrong_tokens")
        changed = {name: None if (value := getattr(self, name)) is None else change(value) for name in names}
        return changed | {"spans": {name: change(at) for name, at in self.spans.items()}}


def _check_counts(clean: "TokenBatch", corrupted: "TokenBatch", right: Any, wrong: Any, spans: dict[str, Any]) -> None:
    if len(clean) != len(corrupted):
        raise BadInput(f"{len(clean)} clean but {len(corrupted)} corrupted prompts; pairs need as many of each")
    lists = {"right answers": right, "wrong answers": wrong} | {f"span {name!r}": at for name, at in spans.items()}
    for what, values in lists.items():
        if values is not None and len(values) != len(clean):
            raise BadInput(f"{what}: {len(values)} for {len(clean)} pairs; give one for each")


def _misaligned(model: "Model", clean: "TokenBatch", corrupted: "TokenBatch") -> dict[int, str]:
    """Row -> why it does not align."""
    bad = {}
    for number, (one, other) in enumerate(zip(clean.rows(), corrupted.rows())):
        if len(one) != len(other):
            shown = [" | ".join(map(model.str_token, row)) for row in (one, other)]
            bad[number] = (
                f"pair {number} does not align: {len(one)} clean tokens ({shown[0]}) "
                f"against {len(other)} corrupted ones ({shown[1]})"
            )
    return bad


def _answers(
    model: "Model",
    answers: "Sequence[Answer | Sequence[Answer]] | None",
    prompts: Sequence[str | list[int]],
    bad: dict[int, str],
) -> list[list[int]] | None:
    """Ids of every pair's answers after its prompt; rows whose answers are not single tokens are entered in `bad`."""
    if answers is None:
        return None
    rows = []
    for number, answer in enumerate(answers.tolist() if isinstance(answers, Tensor) else answers):
        several: list[Any] = list(answer) if isinstance(answer, list | tuple | set) else [answer]
        if not several:
            bad.setdefault(number, f"pair {number} has an empty set of answers")
        try:
            rows.append([*dict.fromkeys(model.to_single_token(one, prompts[number]) for one in several)] or [0])
        except BadInput as error:
            bad.setdefault(number, f"answer of pair {number}: {error}")
            rows.append([0])
    return rows


def _check_distinct(
    model: "Model", right: list[list[int]] | None, wrong: list[list[int]] | None, kind: Any, bad: dict[int, str]
) -> None:
    """Enter rows whose right answers are their wrong ones in `bad`; kind: `set` where their order means nothing."""
    for row, (one, other) in enumerate(zip(right or (), wrong or ())):
        if kind(one) == kind(other):
            shown = ", ".join(f"{model.str_token(token)!r} ({token})" for token in one)
            bad.setdefault(row, f"{_equal(row)}, {shown}, so every difference of the two is 0")


def _equal(row: int) -> str:
    return f"right and wrong answer of pair {row} are the same"


def _held(sides: Sequence[list[list[int]] | None], joint: bool) -> dict[str, Tensor]:
    """The fields of right and wrong answers: one token a row, a set of them, or the tokens of one answer."""
    joint = joint and any(len(row) > 1 for rows in sides for row in rows or ())
    held = {}
    for name, rows in zip(("right", "wrong"), sides):
        if rows and not joint and all(len(row) == 1 for row in rows):
            held[name] = torch.tensor([row[0] for row in rows])
        elif rows:
            width = max(map(len, rows))
            filled = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
            held[f"{name}_tokens" if joint else f"{name}_set"] = filled
    return held


def _check_span(name: str, at: list[int], tokens: "TokenBatch", bad: dict[int, str]) -> None:
    for row, (place, length) in enumerate(zip(at, tokens.lengths.tolist())):
        if row not in bad and not -length <= place < length:
            raise BadInput(f"span {name!r} of pair {row} is at {place}, but the prompt has {length} tokens")


def _spelled(model: "Model", answers: Tensor | None, row: int, joint: bool) -> str:
    ids = [] if answers is None else [token for token in answers[row].tolist() if token >= 0]
    if joint and ids:
        return repr("".join(map(model.str_token, ids)))
    shown = " ".join(repr(model.str_token(token)) for token in ids[:5])
    return f"{shown} … ({len(ids)})" if len(ids) > 5 else shown


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
