"""What the unedited model reads in continuations: their perplexity, and the mean of an activation over their tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..metrics import cross_entropy
from ..models import Model, Site

UNEMBEDDED = 512  # tokens whose logits are held at once
END = Site("final_norm")  # what the unembedding reads


@dataclass(frozen=True)
class Reading:
    """Of one text: exp of the mean loss of its continuation; the mean activation over it, where a site was given."""

    perplexity: float = math.nan
    mean: Float[Tensor, "d"] | None = None


Text = tuple[tuple[int, ...], tuple[int, ...]]  # ids of a prompt and of its continuation


@dataclass
class Readings:
    """The reading of every text that was added; equal texts are read once. An empty continuation has NaN and None."""

    model: Model
    site: Site | None
    found: dict[Text, Reading] = field(default_factory=dict)

    def __getitem__(self, text: tuple[Sequence[int], Sequence[int]]) -> Reading:
        return self.found.get((tuple(text[0]), tuple(text[1])), Reading())

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        new: Sequence[Sequence[int]],
        start: tuple[Site, Float[Tensor, "batch pos d_model"]] | None = None,
    ) -> None:
        """Read texts. `start`: the unedited stream of each, right padded, where it is known from another pass."""
        texts = {(tuple(head), tuple(tail)): row for row, (head, tail) in enumerate(zip(prompts, new)) if tail}
        unread = {text: row for text, row in texts.items() if text not in self.found}
        if not unread:
            return
        if start and self.site and self.site.layer is not None and self.site.layer < (start[0].layer or 0):
            start = None  # the site to read lies before
        longest = max(len(head) + len(tail) for head, tail in unread)
        later = start and (start[0], start[1][list(unread.values()), :longest])
        self.found |= zip(unread, self._read(list(unread), later))

    @torch.no_grad()
    def _read(self, texts: Sequence[Text], start: tuple[Site, Tensor] | None) -> list[Reading]:
        model = self.model
        tokens = model.tokens([[*prompt, *new] for prompt, new in texts]).to(model.device)
        edited = any(edit.site.shape[-1] == "vocab" for edit in model.ambient_edits)  # after what is unembedded here
        run = model.run(tokens, capture={END, self.site or END}, logits=edited, start=start)
        begins = torch.tensor([[len(prompt)] for prompt, _ in texts], device=model.device)
        new = tokens.mask & (tokens.positions >= begins)
        states, targets = (run[END] if run.logits is None else run.logits)[:, :-1][new[:, 1:]], tokens.ids[new]
        losses = [
            cross_entropy(part if edited else model.unembed(part, norm=False), target)
            for part, target in zip(states.split(UNEMBEDDED), targets.split(UNEMBEDDED))
        ]
        parts = torch.cat(losses).split([len(continuation) for _, continuation in texts])
        perplexities = [float(part.mean().exp()) for part in parts]
        if self.site is None:
            return [Reading(perplexity) for perplexity in perplexities]
        values, real = run[self.site], new.to(run[self.site].device)
        means = [value[mask].flatten(1).float().mean(0).cpu() for value, mask in zip(values, real)]
        return [Reading(perplexity, mean) for perplexity, mean in zip(perplexities, means)]
