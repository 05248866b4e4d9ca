"""What `cache.logit_lens(...)` gives: rows of the stream through the final norm and the unembedding, under the names of
TransformerLens 4.x. For pictures, divergences and other lenses see `monosem.lenses`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput, UnknownName, check_name
from ..numbers import whole_numbers
from ..places.places import Places
from .text import single_token

Targets = str | int | Sequence[str | int] | Tensor | None

# what is kept of logits and log-probabilities, and the column of a table
QUANTITIES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "logits": (lambda logits, log: logits, "logit"),
    "log_probs": (lambda logits, log: log, "log_prob"),
    "probs": (lambda logits, log: log.exp(), "probability"),
}


@dataclass(frozen=True, eq=False)
class Selection:
    """Which tokens of each row are kept.

    Attributes:
        by: "vocab", "targets" (the same for every row), "rows" (a target for each row), "top" or "all".
        ids: `token`, of "rows" `*shape` that goes with the rows' own from the right; None for "top" and "all".
        names: of "targets", the texts that were given, None for ids.
    """

    by: str
    ids: Tensor | None = None
    names: tuple[str | None, ...] = ()
    count: int = 0

    @classmethod
    def of(cls, model: Places, vocab: Any, targets: Targets, top_k: int | None) -> Self:
        """Raises `BadInput` for two of the three at once, and for what is no token of the model."""
        if sum(one is not None for one in (vocab, targets, top_k)) > 1:
            raise BadInput("give one of vocab=, targets= and top_k=")
        if top_k is not None:
            if not 1 <= top_k <= model.cfg.d_vocab:
                raise BadInput(f"top_k={top_k}: the vocabulary has {model.cfg.d_vocab} tokens")
            return cls("top", count=top_k)
        if vocab is not None:
            return cls("vocab", _ids(model, vocab).reshape(-1))
        if targets is None:
            return cls("all")
        if isinstance(targets, Tensor) and targets.ndim:
            return cls("rows", _ids(model, targets))
        listed: list[Any] = [targets] if isinstance(targets, str | int | Tensor) else list(targets)
        names = tuple(one if isinstance(one, str) else None for one in listed)
        return cls("targets", _ids(model, [single_token(model, one) for one in listed]), names)

    def of_rows(self, shape: torch.Size) -> Int[Tensor, "row token"] | None:
        """The ids of each row, the rows flattened. Raises `BadInput` for targets of another shape than the rows."""
        if self.ids is None:
            return None
        if self.by != "rows":
            return self.ids.expand(shape.numel(), -1)
        try:
            return self.ids.expand(shape).reshape(-1, 1)
        except RuntimeError:
            raise BadInput(
                f"targets of shape {list(self.ids.shape)} for rows of shape {list(shape)}: a tensor has one target "
                "a row, from the right; a list has targets for all rows"
            ) from None


@dataclass(frozen=True, eq=False)
class LogitReadout:
    """Numbers of every row, `*row` being the leading axes of what was read.

    Attributes:
        values: `*row token`: logits, log-probabilities (nats) or probabilities of the tokens that were selected.
        entropy: `*row`, of the whole vocabulary, in nats.
        token_ids: `*row token`, the tokens of `values`; None for the whole vocabulary.
        target_ranks: `*row token`, tokens with a larger logit than the target's, 0 being the likeliest; or None.
        applied_ln: whether the final norm came first. Soft caps and scales always follow.
    """

    applied_output_transform: ClassVar[bool] = True

    values: Float[Tensor, "*row token"]
    return_type: str
    entropy: Float[Tensor, "*row"]
    selection: Selection
    token_ids: Int[Tensor, "*row token"] | None
    target_ranks: Int[Tensor, "*row token"] | None
    applied_ln: bool

    @property
    def top_ids(self) -> Int[Tensor, "*row k"] | None:
        return self.token_ids if self.selection.by == "top" else None

    @property
    def vocab_ids(self) -> Int[Tensor, "token"] | None:
        return self.selection.ids if self.selection.by == "vocab" else None

    @property
    def per_row_targets(self) -> bool:
        return self.selection.by == "rows"

    @property
    def target_ids(self) -> Int[Tensor, "..."] | None:
        """`target`; with a target for each row `*row`."""
        if self.per_row_targets:
            return self.token_ids[..., 0] if self.token_ids is not None else None
        return self.selection.ids if self.selection.by == "targets" else None

    @property
    def selected_ids(self) -> Int[Tensor, "..."] | None:
        """The ids that the readout was asked for; None for the whole vocabulary."""
        return next((ids for ids in (self.target_ids, self.vocab_ids, self.top_ids) if ids is not None), None)

    def decode(self, tokenizer: Any) -> Any:
        """`selected_ids` as nested lists of texts. Raises `BadInput` for the whole vocabulary."""
        if self.selected_ids is None:
            raise BadInput("the whole vocabulary was read: give vocab=, targets= or top_k=")
        return _decoded(self.token_ids if self.per_row_targets else self.selected_ids, tokenizer)


@dataclass(frozen=True, eq=False)
class LogitLens:
    """The logit lens of a cache.

    Attributes:
        readout: its rows are `entry *batch *pos`: an axis that a number chose is not there.
        labels: of the entries: "0_pre", "0_mid", ..., "final_post".
    """

    readout: LogitReadout
    labels: list[str]
    has_batch_dim: bool

    @property
    def values(self) -> Tensor:
        return self.readout.values

    @property
    def target_names(self) -> list[str | None] | None:
        """The texts that were given as targets, None for ids."""
        return list(self.readout.selection.names) or None

    def rank_trajectory(self, target: str | int | None = None) -> Int[Tensor, "entry *row"]:
        """The rank of one target (0 is the likeliest) at every entry; None: the only one, or each row's own.

        Raises:
            BadInput: no targets, or several and none named. UnknownName: not one of the targets.
        """
        ranks, chosen = self.readout.target_ranks, self.readout.selection
        if ranks is None or chosen.ids is None:
            raise BadInput("no token was followed: give targets=")
        if target is None or chosen.by == "rows":
            if target is not None or ranks.shape[-1] != 1:
                raise BadInput(
                    "name one of the targets" if target is None else "each row has its own target: name none"
                )
            return ranks[..., 0]
        known = list(chosen.names) if isinstance(target, str) else chosen.ids.tolist()
        if target not in known:
            raise UnknownName(f"{target!r} is not among the targets {known}; name one as it was given")
        return ranks[..., known.index(target)]

    def top_tokens(self, tokenizer: Any) -> dict[str, Any]:
        """Texts of the likeliest tokens by entry. Raises `BadInput` without `top_k`."""
        if (ids := self.readout.top_ids) is None:
            raise BadInput("no likeliest tokens were kept: give top_k=")
        return {label: _decoded(one, tokenizer) for label, one in zip(self.labels, ids)}

    def to_dataframe(self, tokenizer: Any = None, top_k: int | None = None) -> pd.DataFrame:
        """One row an entry, place and token, the largest first: `layer`, `batch`, `pos`, `token_index`, `token_string`
        with a tokenizer, and the values; of whole-vocabulary logits also `log_prob` and `probability`."""
        values, kind = self.values.detach().cpu(), self.readout.return_type
        axes = ("batch", "pos") if self.has_batch_dim else ("pos",)
        parts = []
        for at in product(*(range(n) for n in values.shape[:-1])):
            row = values[at]
            order = row.argsort(descending=True)[:top_k]
            ids = order if self.readout.token_ids is None else self.readout.token_ids[at].cpu()[order]
            data: dict[str, Any] = {"layer": self.labels[at[0]], **dict(zip(axes, at[1:])), "token_index": ids.tolist()}
            if tokenizer is not None:
                data["token_string"] = [tokenizer.decode([token]) for token in ids.tolist()]
            data[QUANTITIES[kind][1]] = row[order].tolist()
            if kind == "logits" and self.readout.token_ids is None:
                log = row.float().log_softmax(-1)[order]
                data |= {"log_prob": log.tolist(), "probability": log.exp().tolist()}
            parts.append(pd.DataFrame(data))
        return pd.concat(parts, ignore_index=True)


def read_logits(
    model: Places,
    states: Float[Tensor, "*row d_model"],
    selection: Selection,
    *,
    return_type: str,
    norm: bool,
    chunk_size: int,
) -> LogitReadout:
    """States through the final norm (unless `norm` is False), the unembedding, soft caps and scales.

    Raises:
        UnknownName: no such `return_type`. BadInput: no row, a `chunk_size` below 1, targets of another shape.
    """
    check_name("return_type", return_type, QUANTITIES)
    if chunk_size < 1 or not states.numel():
        raise BadInput(f"chunk_size must be at least 1, got {chunk_size}" if chunk_size < 1 else "no row is chosen")
    shape = states.shape[:-1]
    wanted = selection.of_rows(shape)
    parts: list[tuple[Any, ...]] = []
    for start in range(0, shape.numel(), chunk_size):
        logits = model.unembed(states.reshape(-1, states.shape[-1])[start : start + chunk_size], norm)
        log = logits.float().log_softmax(-1)
        values, ids, ranks = QUANTITIES[return_type][0](logits, log), None, None
        if wanted is not None:
            ids = wanted[start : start + chunk_size].to(logits.device)
        elif selection.by == "top":
            ids = logits.topk(selection.count).indices
        if ids is not None:
            values = values.gather(-1, ids)
        if ids is not None and selection.by in ("targets", "rows"):
            own = logits.gather(-1, ids)
            ranks = torch.stack([(logits > one[:, None]).sum(-1) for one in own.unbind(-1)], -1)
        parts.append((values, -torch.linalg.vecdot(log.exp(), log)[:, None], ids, ranks))
    columns = [None if column[0] is None else torch.cat(column) for column in zip(*parts)]
    whole: list[Any] = [None if one is None else one.reshape(*shape, -1) for one in columns]
    return LogitReadout(whole[0], return_type, whole[1][..., 0], selection, whole[2], whole[3], norm)


def _ids(model: Places, tokens: Any) -> Int[Tensor, "..."]:
    """Raises `BadInput` for no token, for what is no whole number, and for ids outside the vocabulary."""
    flat = whole_numbers(tokens.reshape(-1) if isinstance(tokens, Tensor) else tokens, "token ids")
    if not flat or not 0 <= min(flat) <= max(flat) < model.cfg.d_vocab:
        raise BadInput(f"token ids must be from 0 to {model.cfg.d_vocab - 1}, got {flat}")
    return torch.tensor(flat).reshape(tokens.shape if isinstance(tokens, Tensor) else (-1,))


def _decoded(ids: Any, tokenizer: Any) -> Any:
    if ids.ndim == 0:
        return str(tokenizer.decode([int(ids)]))
    return [_decoded(one, tokenizer) for one in ids]
