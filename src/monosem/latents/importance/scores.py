"""What each latent does for an answer, to first order: `latent_scores`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...data import TokenPairs
from ...dictionaries import Dictionary
from ...errors import BadInput, check_name
from ...models import Model, Site
from ...patching.scoring import MetricLike, logit_diff, one_metric
from ...progress import Meter
from ...results import Result, analysis
from ..effects import reaches_logits
from .states import Other, States, states

By = Literal["latent", "token"]


@dataclass(frozen=True, eq=False)
class LatentScores(Result):
    """A row a node (a latent, or the dictionary's error): by how much the metric falls without it.

    Above zero, it helps. Scores are sums over tokens ("latent") or stand at one token ("token"), and means over pairs.

    Attributes:
        values: `place node`: places are tokens, or one for all; nodes are the latents, the last one is the error.
        activations: of the latents in the clean run, summed over the tokens of a place, mean over pairs.
        present: nodes that differ from their other value in some pair; the others have no row.
        tokens: of the places, as text; empty where there is one for all.
    """

    values: Float[Tensor, "place node"] = field(repr=False)
    activations: Float[Tensor, "place node"] = field(repr=False)
    present: Tensor = field(repr=False)
    method: str
    metric: str
    dictionary: str
    tokens: list[str] = field(default_factory=list, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by = "score"
    either_way = True

    def __repr__(self) -> str:
        return f"LatentScores({self.method} of {self.metric}: {len(self.index):,} nodes of {self.dictionary})"

    @property
    def error(self) -> Float[Tensor, "place"]:
        """The scores of the dictionary's error."""
        return self.values[:, -1]

    @cached_property
    def index(self) -> Int[Tensor, "nodes"]:
        """Flat indices of the nodes that have a row."""
        return self.present.flatten().nonzero()[:, 0]

    def rows_of(self, index: Int[Tensor, "nodes"]) -> pd.DataFrame:
        """A row for each flat index."""
        width = self.values.shape[1]
        frame = pd.DataFrame({"latent": (index % width).tolist()})
        frame["latent"] = frame["latent"].where(frame["latent"] < width - 1, -1)
        frame.insert(0, "node", ["error" if one < 0 else f"latent {one}" for one in frame["latent"]])
        if self.tokens:
            frame["position"] = (index // width).tolist()
            frame["token"] = [self.tokens[one] for one in frame["position"]]
            frame["node"] = [f"{node} at {place}" for node, place in zip(frame["node"], frame["position"])]
        frame["activation"] = self.activations.flatten()[index].tolist()
        return frame.assign(score=self.values.flatten()[index].tolist())

    @property
    def table(self) -> pd.DataFrame:
        return self.rows_of(self.index)


class Options(NamedTuple):
    """steps: gradients of "integrated". rule: where they are taken, a row of `RULES`."""

    steps: int = 10
    rule: str = "midpoint"


RULES: dict[str, Callable[[int, int], float]] = {
    "midpoint": lambda k, steps: (k + 0.5) / steps,
    "left": lambda k, steps: k / steps,
    "right": lambda k, steps: (k + 1) / steps,
}


def _attribution(one: States, options: Options) -> Float[Tensor, "pairs pos node"]:
    return along(one, one.slope())


def _integrated(one: States, options: Options) -> Float[Tensor, "pairs pos node"]:
    return along(one, mean_slope(one, options))


def _direct(one: States, options: Options) -> Float[Tensor, "pairs pos node"]:
    return along(one, direct_slope(one))


# name -> (states, options) -> scores of every latent, and of the error, at every token
LATENT_METHODS: dict[str, Callable[[States, Options], Float[Tensor, "pairs pos node"]]] = {
    "direct": _direct,
    "attribution": _attribution,
    "integrated": _integrated,
}


def along(one: States, slope: Float[Tensor, "pairs pos d_out"]) -> Float[Tensor, "pairs pos node"]:
    """-Δ · slope of each latent, then of the error."""
    latents = -one.change * (slope @ one.rows.T)
    error = -(one.error_change * slope).sum(-1, keepdim=True)
    return torch.cat([latents, error], -1)


def mean_slope(one: States, options: Options) -> Float[Tensor, "pairs pos d_out"]:
    """The mean gradient between x and x', latents and error moved together (Marks et al. 2024, feature circuits)."""
    shares = [RULES[options.rule](k, options.steps) for k in range(options.steps)]
    return torch.stack([one.slope(share) for share in shares]).mean(0)


def direct_slope(one: States) -> Float[Tensor, "pairs pos d_out"]:
    """The gradient of the logit difference straight into the logits: no branch in between, and the final norm divides
    by what it did in the run."""
    model, pairs, dictionary = one.model, one.pairs, one.dictionary
    if one.metric is not logit_diff or pairs.right is None or pairs.wrong is None:
        raise BadInput(
            "direct attribution is of the logit difference of a right and a wrong token: metric='logit_diff'"
        )
    if not reaches_logits(model, dictionary):
        raise BadInput(f"latents at {dictionary.site_out} have no direct effect on the logits: it is not in the stream")
    model.written_before(end := Site("resid_post", model.cfg.n_layers - 1))  # refuses streams that are no sum
    dtype = one.x.dtype
    with torch.no_grad():
        stream = model.run(pairs.clean, capture=end, logits=False, positions="last")[end][:, 0]
    norm = model.unembedding_norm(dtype)
    vectors = (model.W_U[:, pairs.right] - model.W_U[:, pairs.wrong]).T.to(dtype) * model.logit_slope
    out = dictionary.site_out
    layer = out.layer + 1 if out.name == "resid_post" and out.layer is not None else out.layer
    read = norm.pull(vectors) / norm.scale(stream) * model.carried(layer, end)
    branch = model.branch_of(out)
    if branch is not None and out == branch.inner:
        read = branch.scale * read @ branch.weight().flatten(0, 1).to(dtype).T
    slope = torch.zeros_like(one.x)
    slope[torch.arange(len(pairs)), pairs.clean.last] = read
    return slope


@analysis
def latent_scores(
    model: Model,
    pairs: TokenPairs,
    dictionary: Dictionary,
    method: str = "attribution",
    *,
    metric: MetricLike | None = None,
    other: Other = "zero",
    by: By = "latent",
    steps: int = 10,
    rule: str = "midpoint",
    batch_size: int = 4,
    quiet: bool = False,
) -> LatentScores:
    """By how much the metric falls without each latent, to first order, and without the dictionary's error.

        pairs = ms.data.TokenPairs.of(model, prompts, corrupted, right=[" Mary"], wrong=[" John"])
        ms.latents.latent_scores(model, pairs, sae).top(10)

    Args:
        method: "direct": straight into the logits, nothing between them; "attribution": one gradient of the clean run
            (attribution patching); "integrated": the mean gradient between the clean activation and the other one, all
            nodes moved together (integrated gradients; Marks et al. 2024, arXiv:2403.19647), so that scores add up.
        other: what a node has when it is taken away: "zero", "corrupted", its value in the corrupted prompt, or
            `Means`, its mean over other prompts.
        by: "latent": summed over tokens; "token": at each token (prompts of one length).
        steps, rule: of "integrated": gradients, and where they are taken ("midpoint"; "left" as feature-circuits does).

    Tokens that the dictionary was not trained on (the first one, special ones, outliers) stay as they are.

    Raises:
        UnknownName: no such method, other value or rule. Mismatch: another model's dictionary. BadInput: a metric
            without gradient; prompts of several lengths by token; "direct" of another metric than the logit difference,
            or where the dictionary does not write to the stream.
    """
    check_name("method", method, LATENT_METHODS)
    check_name("rule", rule, RULES)
    if isinstance(steps, bool) or steps < 1:
        raise BadInput(f"steps counts gradients, at least 1, not {steps!r}")
    name, function = one_metric(metric, pairs)
    score = LATENT_METHODS[method]
    with Meter(f"score latents ({method})", len(pairs), "pairs", quiet=quiet) as meter:
        sums = Sums.of(model, pairs, by)
        for one in states(model, pairs, dictionary, function, other, batch_size):
            sums.add(one, score(one, Options(steps, rule)))
            meter.advance(len(one.pairs))
    return sums.scores(len(pairs), method, name, dictionary)


@dataclass
class Sums:
    """Scores, activations and presence summed over pairs, `place node`."""

    tokens: list[str]
    by: By
    parts: list[Tensor] = field(default_factory=list)

    @staticmethod
    def of(model: Model, pairs: TokenPairs, by: By) -> "Sums":
        check_name("way to sum", by, ("latent", "token"))
        if by == "token" and not bool(pairs.clean.mask.all()):
            raise BadInput("by='token' needs prompts of one length; by='latent' sums over tokens")
        return Sums([model.str_token(one) for one in pairs.clean.rows()[0]] if by == "token" else [], by)

    def add(self, one: States, scores: Float[Tensor, "pairs pos node"]) -> None:
        blank = one.written.new_zeros(*one.written.shape[:2], 1)
        present = torch.cat([one.change != 0, (one.error_change != 0).any(-1, keepdim=True)], -1)
        active = torch.cat([one.written * one.keep[..., None], blank], -1)
        found = [part.double().cpu() for part in (scores, active, present)]
        found = [part.sum(0) if self.by == "token" else part.sum((0, 1))[None] for part in found]
        self.parts = [a + b for a, b in zip(self.parts, found)] if self.parts else found

    def scores(self, n: int, method: str, metric: str, dictionary: Dictionary) -> LatentScores:
        scores, active, present = self.parts
        name = dictionary.name or str(dictionary.site)
        return LatentScores(scores / n, active / n, present > 0, method, metric, name, self.tokens)
