"""The target's side of a patchscope: many activations put into one prompt, some rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...edits import Edit
from ...errors import BadInput
from ...models import Model, Site, TokenBatch
from ...models.running.run import refuse_rows
from ...progress import Meter
from .target import Position


@dataclass(frozen=True, eq=False)
class Transplants:
    """Combinations layer x prompt x position, flat, ordered by target layer: the rows of the batches."""

    h: Float[Tensor, "cell d_target"]
    target_layer: Int[Tensor, "cell"]
    at: Int[Tensor, "cell"]  # token of the target that is overwritten
    read: Int[Tensor, "cell"]  # token of the target that is read
    order: Int[Tensor, "cell"]  # place of each cell in the grid [layer, prompt, position]

    @classmethod
    def of(
        cls, h: Float[Tensor, "layer prompt position d_target"], targets: list[int], at: Tensor, read: Tensor
    ) -> "Transplants":
        """
        Args:
            targets: the target layer of each source layer.
            at, read: tokens of the target, `prompt position`.
        """
        shape = h.shape[:3]
        layer = torch.tensor(targets)[:, None, None].expand(shape).flatten()
        order = layer.argsort(stable=True)
        overwritten, after = (part.expand(shape).flatten()[order] for part in (at, read))
        return cls(h.flatten(0, 2)[order.to(h.device)], layer[order], overwritten, after, order)

    def __len__(self) -> int:
        return len(self.h)

    def chunks(self, size: int) -> Iterator["Transplants"]:
        for start in range(0, len(self), size):
            yield Transplants(*(getattr(self, field.name)[start : start + size] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Host:
    """The target prompt in its model; `site` is "resid_post" or "resid_pre"."""

    model: Model
    tokens: TokenBatch
    site: str

    def places(self, position: Position, index: Int[Tensor, "prompt position"]) -> Int[Tensor, "prompt position"]:
        """Token of the target for each source position. Raises `BadInput` for one that the target does not have."""
        length = self.tokens.ids.shape[1]
        if position == "same":
            if int(index.max()) >= length:
                raise BadInput(
                    f"source position {int(index.max())} does not exist in the target, which has {length} tokens"
                )
            return index
        if not -length <= position < length:
            raise BadInput(f"the target has tokens 0 to {length - 1}, there is no token {position}")
        return torch.full_like(index, position % length)

    def rescaled(self, h: Float[Tensor, "layer prompt position d_target"], targets: list[int], at: Tensor) -> Tensor:
        """h with the norms of what it is about to overwrite."""
        names = [f"{self.site}.{layer}" for layer in targets]
        base = self.model.run(self.tokens, capture=set(names), logits=False)
        overwritten = torch.stack([base[name][0][at.to(self.model.device)] for name in names])
        norm = torch.linalg.vector_norm
        size = norm(overwritten.float(), dim=-1, keepdim=True)
        return h.float() * size / norm(h.float(), dim=-1, keepdim=True).clamp(min=1e-30)

    def tell(
        self, cells: Transplants, batch_size: int, max_new_tokens: int, quiet: bool
    ) -> tuple[Float[Tensor, "cell d_model"], list[str]]:
        """The last stream at the position that is read, and the continuation, of every cell, in the grid's order."""
        model = self.model
        refuse_rows(model, "a patchscope")
        states = torch.empty(len(cells), model.cfg.d_model, device=model.device, dtype=model.dtype)
        texts = [""] * len(cells)
        with Meter("patchscope", total=len(cells), unit="cell", quiet=quiet) as meter:
            for chunk in cells.chunks(batch_size):
                states[chunk.order.to(states.device)] = self._final_states(chunk)
                for place, text in zip(chunk.order.tolist(), self._continued(chunk, max_new_tokens)):
                    texts[place] = text
                meter.advance(len(chunk))
        return states, texts

    def _edits(self, cells: Transplants) -> list[Edit]:
        """One edit for each target layer of these rows; it writes row r's activation at its position, in the prompt."""
        at = cells.at[:, None].to(cells.h.device)
        made = Edit(
            Site(self.site, 0),
            lambda x, _: cells.h[:, None].to(x.device, x.dtype).expand_as(x),
            "patchscope",
            scope="prompt",
            gate=lambda _, moment: moment.positions == at,
        )
        return [
            replace(made, site=Site(self.site, layer), rows=(cells.target_layer == layer).nonzero()[:, 0].tolist())
            for layer in cells.target_layer.unique().tolist()
        ]

    def _final_states(self, cells: Transplants) -> Float[Tensor, "cell d_model"]:
        """The last residual stream at the position that is read. The blocks before the first edit run once for all
        rows."""
        rows, first = len(cells), int(cells.target_layer.min())
        last = f"resid_post.{self.model.cfg.n_layers - 1}"
        start = None
        if first > 0 and not self.model.ambient_edits:
            entry = f"resid_pre.{first}"
            start = (entry, self.model.run(self.tokens, capture=entry, logits=False)[entry].expand(rows, -1, -1))
        tokens = self.tokens.copies(rows)
        final = self.model.run(tokens, capture=last, edits=self._edits(cells), logits=False, start=start)[last]
        return final[torch.arange(rows, device=final.device), cells.read.to(final.device)]

    def _continued(self, cells: Transplants, max_new_tokens: int) -> list[str]:
        if max_new_tokens == 0:
            return []
        prompts = self.tokens.ids.expand(len(cells), -1)
        return self.model.generate(prompts, edits=self._edits(cells), max_new_tokens=max_new_tokens).texts
