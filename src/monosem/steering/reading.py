"""What the unedited model reads in continuations: their perplexity, and the mean of an activation over their tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import Skipper
from ..metrics import cross_entropy
from ..models import Model, Run, Site

UNEMBEDDED = 512  # tokens whose logits are held at once
END = Site("final_norm")  # what the unembedding reads


@dataclass(frozen=True)
class Reading:
    """Of one text: exp of the mean loss of its continuation; the mean activation over its tokens that count, where a
    site was given, and the number of those that do not."""

    perplexity: float = math.nan
    mean: Float[Tensor, "d"] | None = None
    left_out: int = 0


Text = tuple[tuple[int, ...], tuple[int, ...]]  # ids of a prompt and of its continuation


@dataclass
class Readings:
    """The reading of every text that was added; equal texts are read once. An empty continuation has NaN and None.

    Attributes:
        skipper: which tokens count for means at the site.
    """

    model: Model
    site: Site | None
    skipper: Skipper | None = None
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
        return [Reading(perplexity, *mean) for perplexity, mean in zip(perplexities, self._means(run, new))]

    def _means(self, run: Run, new: Bool[Tensor, "batch pos"]) -> Iterator[tuple[Float[Tensor, "d"] | None, int]]:
        """Of each text the mean over its new tokens that count, None where none does, and how many do not."""
        assert self.site is not None
        values, tokens, counted = run[self.site], run.tokens, new
        if self.skipper is not None:
            left_out = self.skipper.left_out(tokens.ids, tokens.positions, {str(self.site): values})
            counted = new & ~torch.stack(list(left_out.values())).any(0)
        for value, mask, total in zip(values, counted.to(values.device), new.sum(1).tolist()):
            part = value[mask].flatten(1).float()
            yield (part.mean(0).cpu() if len(part) else None), total - len(part)
