"""Clean and corrupted prompts, aligned token by token: what every patching experiment starts from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import BadInput

if TYPE_CHECKING:
    from ..models import Model, TokenBatch


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """The i-th clean prompt belongs to the i-th corrupted one; both have the same number of tokens.

    Attributes:
        clean, corrupted: token batches of one layout, `batch pos`.
        right, wrong: the answer tokens whose logits are compared after the last token, `batch`; None where a metric
            needs none (KL).
        spans: named token positions of each row ("io", "s1", "end", ...), `batch`; None entries never occur.
    """

    clean: "TokenBatch"
    corrupted: "TokenBatch"
    right: Int[Tensor, "batch"] | None = None
    wrong: Int[Tensor, "batch"] | None = None
    spans: dict[str, Int[Tensor, "batch"]] = field(default_factory=dict)

    @staticmethod
    def of(
        model: "Model",
        clean: Sequence[str],
        corrupted: Sequence[str],
        right: Sequence[str | int] | None = None,
        wrong: Sequence[str | int] | None = None,
        spans: dict[str, Sequence[int]] | None = None,
    ) -> "TokenPairs":
        """Tokenise and check the pairs.

        Args:
            right, wrong: answers as text (exactly one token each, mind the leading space) or token ids.

        Raises:
            BadInput: sides of different length, a pair whose token counts differ (both tokenisations are shown), an
                answer that is not one token.
        """
        clean, corrupted = list(clean), list(corrupted)
        if len(clean) != len(corrupted):
            raise BadInput(f"{len(clean)} clean but {len(corrupted)} corrupted prompts; pairs need as many of each")
        a, b = model.tokens(clean), model.tokens(corrupted)
        for number, (one, other) in enumerate(zip(a.rows(), b.rows())):
            if len(one) != len(other):
                shown = [" | ".join(map(model.str_token, row)) for row in (one, other)]
                raise BadInput(
                    f"pair {number} does not align: {len(one)} clean tokens ({shown[0]}) "
                    f"against {len(other)} corrupted ones ({shown[1]}); reword one of them"
                )
        named = {name: torch.as_tensor(list(at)) for name, at in (spans or {}).items()}
        return TokenPairs(a, b, _answers(model, right, len(clean)), _answers(model, wrong, len(clean)), named)

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, rows: slice | list[int] | Tensor) -> "TokenPairs":
        """Some of the pairs."""
        clean, corrupted = self.clean[rows], self.corrupted[rows]
        pick = lambda values: None if values is None else values[rows]  # noqa: E731
        spans = {name: at[rows] for name, at in self.spans.items()}
        return TokenPairs(clean, corrupted, pick(self.right), pick(self.wrong), spans)

    def to(self, device: torch.device | str) -> "TokenPairs":
        move = lambda values: None if values is None else values.to(device)  # noqa: E731
        spans = {name: at.to(device) for name, at in self.spans.items()}
        return TokenPairs(self.clean.to(device), self.corrupted.to(device), move(self.right), move(self.wrong), spans)

    def flipped(self) -> "TokenPairs":
        """Clean and corrupted change places; the answers stay."""
        return replace(self, clean=self.corrupted, corrupted=self.clean)

    @property
    def differs(self) -> Bool[Tensor, "batch pos"]:
        """Where the two prompts of a pair have different tokens."""
        return (self.clean.ids != self.corrupted.ids) & self.clean.mask


def _answers(model: "Model", given: Sequence[str | int] | None, count: int) -> Tensor | None:
    if given is None:
        return None
    if len(given) != count:
        raise BadInput(f"{len(given)} answers for {count} pairs; give one for each")
    return torch.tensor([answer if isinstance(answer, int) else single_token(model, answer) for answer in given])


def single_token(model: "Model", text: str) -> int:
    """The id of a text that is exactly one token, without special tokens.

    Raises:
        BadInput: it is none, or more than one; the message shows the split.
    """
    if model.tokenizer is None:
        raise BadInput(f"{model.name} has no tokenizer: give answers as token ids")
    ids = list(model.tokenizer(text, add_special_tokens=False).input_ids)
    if len(ids) != 1:
        split = " | ".join(map(model.str_token, ids))
        hint = "" if text.startswith(" ") else "; a word inside a text mostly starts with a space, as ' Mary'"
        raise BadInput(f"{text!r} is {len(ids)} tokens ({split}), one is needed{hint}")
    return ids[0]
