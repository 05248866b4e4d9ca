"""What came after some tokens: the states that future lenses are learned and scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...models import Model
from ..corpus import batches, prompts_of


class Drawing(TypedDict, total=False):
    """Which tokens of some texts are drawn.

    Attributes:
        n: how many of the texts to use; all by default.
        length: tokens of each text to use; 256 by default.
        per_text: random tokens of each text, all of a shorter one; 16 by default.
        skip_first: leading tokens that are left out, being attention sinks; 1 by default.
        seed: of the choice.
    """

    n: int | None
    length: int
    per_text: int
    skip_first: int
    seed: int


@dataclass(frozen=True, eq=False)
class Futures:
    """States of some tokens t and what came of them.

    Attributes:
        h: at the layer, `n d_model`.
        ids: tokens t + 1 .. t + N + 1 of the text, `n N+1`, N the largest offset.
        final: last streams at t + offset, `n offset d_model`: through the unembedding, what the model predicted.
    """

    h: Float[Tensor, "n d_model"]
    ids: Int[Tensor, "n ahead"]
    final: Float[Tensor, "n offset d_model"]

    def __len__(self) -> int:
        return len(self.h)

    def take(self, rows: Int[Tensor, "part"], device: torch.device) -> "Futures":
        return Futures(self.h[rows].to(device), self.ids[rows].to(device), self.final[rows].to(device))

    @classmethod
    def of(
        cls,
        model: Model,
        texts: Any,
        layer: int,
        offsets: Sequence[int],
        *,
        n: int | None = None,
        length: int = 256,
        per_text: int = 16,
        skip_first: int = 1,
        seed: int = 0,
    ) -> "Futures":
        """Random tokens of each text (see `Drawing`), their states on the CPU."""
        most = max(offsets)
        prompts = prompts_of(model, texts, n, length, skip_first + most + 1)
        draw = torch.Generator().manual_seed(seed)
        names = (f"resid_post.{layer}", f"resid_post.{model.cfg.n_layers - 1}")
        parts = []
        for tokens in batches(model, prompts, 8):
            run = model.run(tokens, capture=set(names), logits=False)
            for row, count in enumerate(tokens.lengths.tolist()):
                at = skip_first + torch.randperm(count - skip_first - most - 1, generator=draw)[:per_text]
                ahead, later = at[:, None] + torch.arange(1, most + 2), at[:, None] + torch.tensor(list(offsets))
                states = [run[name][row].cpu() for name in names]
                parts.append((states[0][at], tokens.ids[row].cpu()[ahead], states[1][later]))
        return cls(*(torch.cat(column) for column in zip(*parts)))
