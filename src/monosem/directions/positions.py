"""Which tokens of a prompt are read: selectors that can be combined with `&`, `|` and `~`, and written as text."""

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import BadInput, UnknownName
from ..models import Model, TokenBatch
from ..models.running.roles import turn_mask
from ..models.running.selection import at_positions

Mask = Bool[Tensor, "batch pos"]


class Selector:
    """Chooses tokens of each prompt; what is read there is their mean (of one token, itself).

    Attributes:
        named: tokens that are named one by one (the last, an offset) are read whatever they are; in what is chosen
            broadly, tokens that the skip rule leaves out (the first, special ones, outliers) do not count.
    """

    named: bool = False

    def mask(self, model: Model, tokens: TokenBatch) -> Mask:
        """The chosen tokens. Raises `BadInput` where a prompt cannot have them."""
        raise NotImplementedError

    def each(self, model: Model) -> "list[Selector]":
        """The places that are read one by one."""
        return [self]

    def __and__(self, other: "Selector") -> "Selector":
        return _Both(self, other)

    def __or__(self, other: "Selector") -> "Selector":
        return _Either(self, other)

    def __invert__(self) -> "Selector":
        return _Not(self)


@dataclass(frozen=True)
class Offset(Selector):
    """One token by its index among the prompt's own tokens; negative numbers count from the end."""

    index: int
    named = True

    def __str__(self) -> str:
        return "last" if self.index == -1 else str(self.index)

    def mask(self, model: Model, tokens: TokenBatch) -> Mask:
        lengths = tokens.lengths
        short = ~((-lengths <= self.index) & (self.index < lengths))
        if bool(short.any()):
            row = int(short.nonzero()[0, 0])
            raise BadInput(f"prompt {row} of a batch has {int(lengths[row])} tokens, so no token {self.index}")
        return tokens.mask & at_positions(self.index, tokens.positions, lengths[:, None])


def Last() -> Offset:
    """The last token of the prompt."""
    return Offset(-1)


@dataclass(frozen=True)
class Mean(Selector):
    """All tokens that count, or those that a role says ("user", "assistant", ...) in a chat."""

    role: str | None = None

    def __str__(self) -> str:
        return "mean" if self.role is None else f"mean:{self.role}"

    def mask(self, model: Model, tokens: TokenBatch) -> Mask:
        return tokens.mask if self.role is None else turn_mask(model, tokens, self.role)


@dataclass(frozen=True)
class Regex(Selector):
    """The tokens that hold a part of any match of an expression in the prompt's text, as its tokens spell it."""

    pattern: str
    named = True

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise BadInput(f"{self.pattern!r} is no regular expression: {error}") from error

    def __str__(self) -> str:
        return f"regex:{self.pattern}"

    def mask(self, model: Model, tokens: TokenBatch) -> Mask:
        chosen = torch.zeros_like(tokens.mask)
        for row, (ids, real) in enumerate(zip(tokens.rows(), tokens.mask)):
            pieces = [model.str_token(token) for token in ids]
            ends = list(accumulate(map(len, pieces)))
            spans = [found.span() for found in re.finditer(self.pattern, "".join(pieces))]
            holds = [
                any(start < end and stop > end - len(piece) for start, stop in spans)
                for piece, end in zip(pieces, ends)
            ]
            chosen[row, real.nonzero()[:, 0]] = torch.tensor(holds, device=chosen.device)
        return chosen


@dataclass(frozen=True)
class TemplateSuffix(Selector):
    """The tokens that the model's chat template writes after what a user says, up to where the answer begins.

    They are read one by one, as Arditi et al. (2024, arXiv:2406.11717) search them; `token` (-1 is the last) is one.
    """

    token: int | None = None
    named = True

    def __str__(self) -> str:
        return "template" if self.token is None else f"template:{self.token}"

    def suffix(self, model: Model) -> list[int]:
        """Its ids. Raises `BadInput` for a template without any."""
        one, two = (model.bare(model.chat(text))[::-1] for text in ("first words", "others, and more?"))
        same = next((n for n, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
        if not same:
            raise BadInput(f"the chat template of {model.name} writes nothing after what a user says; use 'last'")
        return one[:same][::-1]

    def mask(self, model: Model, tokens: TokenBatch) -> Mask:
        suffix = self.suffix(model)
        for ids in tokens.rows():
            if ids[-len(suffix) :] != suffix:
                end = model.text(suffix, special=True)
                raise BadInput(
                    f"prompt {model.text(ids, special=True)!r:.80} does not end as a chat does ({end!r}): give prompts "
                    "as model.chat(prompt) writes them"
                )
        if self.token is not None:
            return Offset(self.token).mask(model, tokens)
        return tokens.mask & (tokens.positions >= tokens.lengths[:, None] - len(suffix))

    def each(self, model: Model) -> list[Selector]:
        count = len(self.suffix(model))
        return [self] if self.token is not None else [TemplateSuffix(-back) for back in range(count, 0, -1)]


@dataclass(frozen=True)
class _Both(Selector):
    one: Selector
    other: Selector

    @property
    def named(self) -> bool:  # type: ignore[override]
        return self.one.named or self.other.named

    def __str__(self) -> str:
        return f"{self.one}&{self.other}"

    def mask(self, model: Model, tokens: TokenBatch) -> Mask:
        return self.one.mask(model, tokens) & self.other.mask(model, tokens)


@dataclass(frozen=True)
class _Either(_Both):
    def __str__(self) -> str:
        return f"{self.one}|{self.other}"

    def mask(self, model: Model, tokens: TokenBatch) -> Mask:
        return self.one.mask(model, tokens) | self.other.mask(model, tokens)


@dataclass(frozen=True)
class _Not(Selector):
    one: Selector

    def __str__(self) -> str:
        return f"~{self.one}"

    def mask(self, model: Model, tokens: TokenBatch) -> Mask:
        return tokens.mask & ~self.one.mask(model, tokens)


def selector(given: Any) -> Selector:
    """A selector, or its text: "last", "mean", "mean:assistant", "template", "regex:...", or an index such as -3."""
    if isinstance(given, Selector):
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return Offset(given)
    text = str(given)
    name, _, rest = text.partition(":")
    if re.fullmatch("-?[0-9]+", text):
        return Offset(int(text))
    if text in (simple := {"last": Offset(-1), "mean": Mean(), "template": TemplateSuffix()}):
        return simple[text]
    if name == "mean" and rest:
        return Mean(rest)
    if name == "regex" and rest:
        return Regex(rest)
    if name == "template" and re.fullmatch("-[0-9]+", rest):
        return TemplateSuffix(int(rest))
    raise UnknownName(
        f"no position {text!r}: write last, mean, mean:ROLE, template, regex:EXPRESSION or an index such as -2"
    )
