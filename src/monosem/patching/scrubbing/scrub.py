"""Causal scrubbing: test a hypothesis of what carries which feature, by resampling everything that it allows to change.

(Chan et al. 2022, "Causal scrubbing".) A hypothesis is a graph of claims: this place carries this feature of the
prompt, computed from these inputs. It is tested on a set of prompts of one length:

    value of a claim for the prompt x_ref: draw x from the prompts that agree with x_ref on the claim's feature;
        a claim without inputs has its activation on x;
        a claim with inputs is computed from the stream in which each input has its own value for x (drawn again, on
        every path of the tree), and every other place has its activation on a random prompt.

The answer itself is computed in the same way for every x_ref. If what was resampled does not matter, as the hypothesis
says, the metric stays what it is:

    recovered = (E_scrubbed - E_random) / (E_model - E_random)

with E_random for answers taken from a random prompt (of n, so one in n times the prompt itself). 1: the hypothesis
explains the whole metric, 0: nothing.

The stream at a claim is a sum of known activations, so a claim costs one layer and no run of the model below it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...data import TokenPairs
from ...errors import BadInput, require
from ...models import Model
from ...plots import BLUE, GREY, Figure, style
from ...progress import Meter
from ...results import Result, analysis
from ...statistics import Interval, bootstrap_ratio
from ..scoring import MetricLike, measured, one_metric, refuse_joint
from .hypothesis import Claim, Hypothesis, check_claims
from .tree import Draws, Tree


@dataclass(frozen=True, eq=False)
class Scrubbed(Result):
    """A tested hypothesis; metrics are `samples examples`, in the metric's unit.

    Attributes:
        scrubbed: the metric of the scrubbed model. random: of the model on a random prompt, with this prompt's answers.
        model: of the model itself, `examples`.
        claims: a row a claim: how many feature values there are, how large their groups, how often the draw was the
            prompt itself (then nothing was tested).
        notes: what to bear in mind.
    """

    scrubbed: Float[Tensor, "samples examples"]
    random: Float[Tensor, "samples examples"]
    model: Float[Tensor, "examples"]
    metric: str
    claims: pd.DataFrame
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def recovered(self) -> Interval:
        """(E_scrubbed - E_random) / (E_model - E_random), with a bootstrap interval over prompts."""
        base = self.random.mean(0)
        return bootstrap_ratio(self.scrubbed.mean(0) - base, self.model - base)

    def __repr__(self) -> str:
        means = f"{float(self.scrubbed.mean()):.3g} scrubbed, {float(self.model.mean()):.3g} model, "
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"Scrubbed({self.metric}: {means}{float(self.random.mean()):.3g} random; recovered {self.recovered}{notes})"
        )

    @property
    def table(self) -> pd.DataFrame:
        """The claims."""
        return self.claims

    def plot(self) -> Figure:
        """The metric of every prompt, scrubbed against unscrubbed: on the diagonal the hypothesis loses nothing."""
        go = require("plotly.graph_objects", "plots")
        figure = go.Figure()
        for name, values, colour in (("random", self.random, GREY), ("scrubbed", self.scrubbed, BLUE)):
            x = self.model.expand_as(values).flatten().tolist()
            marker = {"color": colour, "size": 6, "opacity": 0.6}
            figure.add_scatter(x=x, y=values.flatten().tolist(), mode="markers", name=name, marker=marker)
        ends = [float(self.model.min()), float(self.model.max())]
        figure.add_scatter(x=ends, y=ends, mode="lines", name="nothing lost", line={"color": GREY, "dash": "dot"})
        return style(figure, f"{self.metric}, model", f"{self.metric}, scrubbed", f"recovered {self.recovered}")


@analysis
def scrub(
    model: Model,
    x: Any,
    hypothesis: Hypothesis | Sequence[Claim],
    *,
    examples: Sequence[Any] | None = None,
    metric: MetricLike | None = None,
    samples: int = 4,
    others: Literal["one", "each"] = "one",
    seed: int = 0,
    batch_size: int = 64,
    quiet: bool = False,
) -> Scrubbed:
    """Test a hypothesis.

    Args:
        x: `TokenPairs` (their clean prompts and answers are used), or anything that `model.tokens` takes; all prompts
            of one length.
        examples: what features are functions of, one for each prompt; default: the prompts' texts.
        metric: as in `sweep`; default: what suits the answers, without answers -KL from the model's own prediction.
        samples: scrubbed computations for each prompt.
        others: places outside the hypothesis that a claim reads come all from "one" random prompt, a new one for each
            claim, or "each" from its own (stricter: mixtures that no prompt brings about).
        seed: of all draws. batch_size: prompts that are computed together.

    Raises:
        BadInput: prompts of several lengths, a claim that reads what comes after it, a place claimed twice, a metric
            that a random prompt's answer satisfies as well; edits that are in force (`model.editing`), which would not
            reach the streams that are put together here. UnknownName: a site that is not there.
    """
    if model.ambient_edits:
        raise BadInput("causal scrubbing inside model.editing(...) would miss its edits; leave that block first")
    hypothesis = hypothesis if isinstance(hypothesis, Hypothesis) else Hypothesis(tuple(hypothesis))
    if samples < 1 or others not in ("one", "each"):
        raise BadInput("samples is at least 1, and others is 'one' or 'each'")
    pairs, examples = _prompts(model, x, examples)
    check_claims(model, hypothesis, pairs)
    refuse_joint(pairs, "scrub")
    name, function = one_metric(metric, pairs)
    tree = Tree(model, pairs, Draws(examples, seed + 1), each=others == "each")
    randoms = Draws(examples, seed).anything(samples * len(pairs))  # the same for every hypothesis

    def score(logits: Tensor, refs: Tensor) -> Tensor:
        return measured({name: function}, logits, pairs[refs], tree.logits[refs])[name]

    scrubbed, random = _scores(tree, hypothesis, score, randoms, batch_size, quiet)
    whole = score(tree.logits, torch.arange(len(pairs)))
    if abs(float(whole.mean() - random.mean())) < 1e-6:
        raise BadInput(f"{name} is the same with a random prompt's answer, so nothing can be recovered")
    claims = tree.draws.table(hypothesis)
    return Scrubbed(scrubbed, random, whole, name, claims, _remarks(claims, len(pairs)))


def _prompts(model: Model, x: Any, examples: Sequence[Any] | None) -> tuple[TokenPairs, list[Any]]:
    """The prompts and what features are functions of. Raises `BadInput` where they do not fit."""
    if isinstance(x, TokenPairs):
        pairs = x[slice(None)].to(model.device)
    else:
        tokens = model.tokens(x)
        pairs = TokenPairs(tokens, tokens).to(model.device)
    if len(set(pairs.clean.lengths.tolist())) != 1:
        raise BadInput("causal scrubbing mixes activations of prompts by position: give prompts of one length")
    examples = [model.text(row) for row in pairs.clean.rows()] if examples is None else list(examples)
    if len(examples) != len(pairs):
        raise BadInput(f"{len(examples)} examples for {len(pairs)} prompts; give one for each")
    return pairs, examples


@torch.no_grad()
def _scores(
    tree: Tree,
    hypothesis: Hypothesis,
    score: Callable[[Tensor, Tensor], Tensor],
    randoms: Tensor,
    batch_size: int,
    quiet: bool,
) -> tuple[Float[Tensor, "samples examples"], Float[Tensor, "samples examples"]]:
    """The metric of the scrubbed model, and with a random prompt's logits."""
    count = len(tree.pairs)
    scrubbed, random = [], []
    with Meter("scrub", total=len(randoms), unit="prompt", quiet=quiet) as meter:
        refs = torch.arange(count).repeat(len(randoms) // count)
        for chunk, others in zip(refs.split(batch_size), randoms.split(batch_size)):
            random.append(score(tree.logits[others], chunk))
            scrubbed.append(score(tree.answer(hypothesis.inputs, chunk, others), chunk))
            meter.advance(len(chunk))
    return torch.cat(scrubbed).reshape(-1, count), torch.cat(random).reshape(-1, count)


def _remarks(table: pd.DataFrame, count: int) -> list[str]:
    paths = table["claim"][table["resampled"] & (table["values"] == count)]
    fixed = [str(path).split(" < ")[-1] for path in paths]
    if not fixed:
        return []
    shown = ", ".join(dict.fromkeys(fixed[:5])) + (", ..." if len(fixed) > 5 else "")
    return [f"the feature differs between all prompts, so that nothing is resampled, at {len(fixed)} claims: {shown}"]
