"""Some pairs at the site of a dictionary: what its latents and its error write, and what is written in their place.

    x = Σ w_i row_i + bias + error        x' = Σ w'_i row_i + bias + error'

w are activations in raw units (times the token's scale, where a dictionary normalises each token). `error` is all that
latents and bias do not write, so that x' - x is what all nodes together change.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data import TokenPairs
from ...dictionaries import Dictionary
from ...edits import Edit
from ...errors import BadInput, check_name
from ...models import Model, Moment, Site
from ...patching.scoring import Metric, refuse_joint
from .codes import Means, counted, written_of

Other = Literal["zero", "corrupted"] | Means
OTHERS = ("zero", "corrupted")


@dataclass(frozen=True, eq=False)
class States:
    """Attributes:
    x, other: at `site_out`, heads flat: in the clean run, and where every node has its other value.
    written, other_written: of every latent. keep: the tokens that the dictionary was trained on, in both runs.
    begin: the stream in front of the layer, from which runs go on.
    """

    model: Model
    dictionary: Dictionary
    pairs: TokenPairs
    metric: Metric
    x: Float[Tensor, "pairs pos d_out"]
    other: Float[Tensor, "pairs pos d_out"]
    written: Float[Tensor, "pairs pos width"]
    other_written: Float[Tensor, "pairs pos width"]
    keep: Bool[Tensor, "pairs pos"]
    clean_logits: Float[Tensor, "pairs vocab"]
    begin: tuple[Site, Float[Tensor, "pairs pos d_model"]]

    @staticmethod
    def of(model: Model, pairs: TokenPairs, dictionary: Dictionary, metric: Metric, other: Other) -> "States":
        """Runs both sides (without a corrupted one the clean one alone)."""
        site, out = dictionary.site, dictionary.site_out
        begin = Site("resid_pre", out.layer or 0)
        capture = list(dict.fromkeys([begin, site, out]))
        with torch.no_grad():
            clean = model.run(pairs.clean, capture=capture, logits="last")
            keep = counted(dictionary, clean, model)
            written, x = written_of(dictionary, clean), clean[out].flatten(2)
            x = x.to(written.dtype)
            if isinstance(other, Means):
                zero, there = (mean.expand_as(at) for mean, at in zip(other.at(out, x), (written, x)))
            elif other == "zero":
                zero = torch.zeros_like(written)
                there = dictionary.b_dec.to(x).expand_as(x)
                if dictionary.W_skip is not None:
                    there = there + clean[site].flatten(2).to(x) @ dictionary.W_skip.to(x).T
            else:
                run = model.run(pairs.corrupted, capture=[site, out], logits=False)
                keep &= counted(dictionary, run, model)
                zero, there = written_of(dictionary, run), run[out].flatten(2).to(x)
            apart = keep[..., None]
            zero, there = torch.where(apart, zero, written), torch.where(apart, there, x)
        assert clean.logits is not None
        return States(
            model, dictionary, pairs, metric, x, there, written, zero, keep, clean.logits, (begin, clean[begin])
        )

    @cached_property
    def change(self) -> Float[Tensor, "pairs pos node"]:
        """By how much latents change; 0 at tokens that are left out."""
        return self.other_written - self.written

    @cached_property
    def error_change(self) -> Float[Tensor, "pairs pos d_out"]:
        """By how much the error changes: what is left of x' - x."""
        return self.other - self.x - self.change @ self.rows

    @cached_property
    def rows(self) -> Float[Tensor, "width d_out"]:
        return self.dictionary.W_dec.to(self.written)

    def measured(self, logits: Float[Tensor, "rows vocab"], rows: list[int]) -> Float[Tensor, "rows"]:
        """The metric of runs that stand for these pairs."""
        value: Tensor = torch.as_tensor(self.metric(logits, self.pairs[rows], self.clean_logits[rows]))
        return value

    def slope(self, share: float = 0.0) -> Float[Tensor, "pairs pos d_out"]:
        """The metric's gradient at `site_out`, that share of the way from x to x'. Raises `BadInput` without one."""
        out, (begin, stream) = self.dictionary.site_out, self.begin
        run = self.model.run(
            self.pairs.clean,
            capture=list(dict.fromkeys([begin, out])),
            edits=[self.put(share * (self.other - self.x))] if share else [],
            start=(begin, stream),
            logits="last",
            grad=True,
        )
        assert run.logits is not None
        value = self.measured(run.logits, [*range(len(self.pairs))]).sum()
        if not value.requires_grad:
            raise BadInput("the metric carries no gradient; compute it from the logits with torch alone")
        (slope,) = torch.autograd.grad(value, run[out])
        return slope.flatten(2).to(self.x) * self.pairs.clean.mask[..., None]

    def fallen(self, row: int, changes: Float[Tensor, "runs pos d_out"]) -> Float[Tensor, "runs"]:
        """By how much the metric of one pair falls where `site_out` changes by this: a run for each."""
        begin, stream = self.begin
        rows = [row] * len(changes)
        with torch.no_grad():
            run = self.model.run(
                self.pairs.clean[rows],
                edits=[self.put(changes)],
                start=(begin, stream[rows]),
                logits="last",
            )
            assert run.logits is not None
            whole = self.measured(self.clean_logits[[row]], [row])
            return (whole - self.measured(run.logits, rows)).double()

    def put(self, change: Float[Tensor, "rows pos d_out"]) -> Edit:
        """Adds a change at `site_out`."""

        def fn(x: Tensor, moment: Moment) -> Tensor:
            return x + change.reshape(x.shape).to(x)

        return Edit(self.dictionary.site_out, fn, "change of latents")


def states(
    model: Model, pairs: TokenPairs, dictionary: Dictionary, metric: Metric, other: Other, batch_size: int
) -> Iterator[States]:
    """Batches of pairs.

    Raises:
        Mismatch: a dictionary of another model. BadInput: answers of several tokens, edits of `model.editing`.
        UnknownName: no such other value.
    """
    dictionary = getattr(dictionary, "dictionary", dictionary)
    if not isinstance(other, Means):
        check_name("other value", other, OTHERS)
    refuse_joint(pairs, "latent_scores")
    dictionary.check(model)
    if model.ambient_edits:
        raise BadInput(f"{model.ambient_edits[0]}, of model.editing(...): leave it, scores are of the model as it is")
    if isinstance(batch_size, bool) or batch_size < 1:
        raise BadInput(f"batch_size counts pairs, 1 or more, not {batch_size!r}")
    for first in range(0, len(pairs), batch_size):
        yield States.of(model, pairs[slice(first, first + batch_size)], dictionary, metric, other)
