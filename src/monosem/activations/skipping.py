"""Which tokens are left out of training, statistics and latent edits, and how many were."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput
from ..models import Model, Moment, Site, TokenBatch
from .medians import median_norms, norms_of

LARGEST = 2**31  # what counts positions and windows here
REASONS = ("first", "special", "not finite", "outlier")  # a token is left out for the first of them that holds


@dataclass(frozen=True)
class SkipRule:
    """Tokens to leave out. The defaults are what training, statistics and latent edits use.

    The norms of a residual stream are not all alike: attention sinks and a few other tokens reach 100 times the median
    (smollm2 `resid_post.15`: median near 170, outliers up to 26,000, not only at position 0), and would dominate any
    mean squared error. The median is estimated once, on `calibration` windows spread over the source, and then kept: a
    threshold that ran along with the data would depend on the order of the batches, and a resumed job would differ.
    Where there is no source, such as for the prompts of an experiment, `median_norms` gives it.
    """

    special: bool = True  # tokens that the tokenizer declares special (separators, chat markup)
    first: int = 1  # this many positions at the start of each window or prompt
    outlier: float | None = 10.0  # norms above this many medians, at any of the wanted sites; None keeps them
    calibration: int = 16  # windows that the median is estimated on

    def __post_init__(self) -> None:
        good = isinstance(self.special, bool) and all(type(n) is int for n in (self.first, self.calibration))
        good = good and 0 <= self.first < LARGEST and 1 <= self.calibration < LARGEST
        if self.outlier is not None:  # an integer may be beyond all floats
            good = good and type(self.outlier) in (int, float) and 1 < self.outlier <= sys.float_info.max
        if not good:
            raise BadInput(
                f"a skip rule needs first >= 0, calibration >= 1 (both below {LARGEST:,}) and a finite outlier > 1 or "
                f"None; got {self!r:.200}"
            )

    @classmethod
    def none(cls) -> "SkipRule":
        """Keep every token (only tokens whose activation is not finite are left out)."""
        return cls(special=False, first=0, outlier=None)

    @classmethod
    def parse(cls, text: str) -> "SkipRule":
        """The rule that `str` wrote. Raises `BadInput` for another text."""
        written = dict(re.findall(r"(\w+)=([\w.+-]+)", text))
        try:
            return cls(**{one.name: ast.literal_eval(written[one.name]) for one in fields(cls)})
        except (KeyError, ValueError, SyntaxError) as error:
            raise BadInput(f"not a skip rule: {text!r:.100}") from error


def skip_rule(text: str) -> SkipRule:
    """A rule as a user says it: "all" (every token is kept), "default", or fields that differ from the default, such
    as "first=4,outlier=none". Raises `BadInput`."""
    named = {"all": SkipRule.none(), "default": SkipRule()}
    if text in named:
        return named[text]
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    try:
        given = dict(part.lower().replace(" ", "").split("=") for part in text.split(","))
        return SkipRule(**{name: words[one] if one in words else ast.literal_eval(one) for name, one in given.items()})
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        why = f" ({error})" if isinstance(error, BadInput) else ""
        raise BadInput(
            f"{text!r:.100} does not say which tokens are left out{why}; write all (a dictionary trained on every "
            "token), default, or fields such as first=1,special=true,outlier=10"
        ) from error


def left_out_words(summary: Mapping[str, Any]) -> str:
    """What was left out, in words: "5 tokens left out (4 first, 1 outlier)"; of `Skipper.summary`."""
    reasons = [f"{count:,} {reason}" for reason, count in summary["left_out"].items()]
    total = sum(summary["left_out"].values())
    return f"{total:,} token{'s' * (total != 1)} left out ({', '.join(reasons)})" if reasons else "no token left out"


class Skipper:
    """Applies a `SkipRule` to batches and counts.

    Attributes:
        counts: tokens by what became of them: `kept`, and left out as `first`, `special`, `not finite` or `outlier`
            (each token under the first of these that holds). They sum to all tokens seen.
        thresholds: site name -> norm above which a token is an outlier; empty until calibrated, or without outliers.
    """

    def __init__(self, rule: SkipRule, special_ids: Iterable[int], vocabulary: int):
        self.rule = rule
        self.counts: Counter[str] = Counter()
        self.thresholds: dict[str, float] = {}
        ids = [i for i in special_ids if i < vocabulary] if rule.special else []
        self._special = torch.zeros(vocabulary, dtype=torch.bool)
        self._special[torch.tensor(ids, dtype=torch.long)] = True

    @classmethod
    def of(
        cls,
        model: Model,
        sites: Sequence[Site],
        rule: SkipRule | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> Self:
        """For prompts: thresholds that are not given are the rule's many `median_norms`, whatever the prompts are."""
        skipper = cls(rule or SkipRule(), model.special_ids, model.cfg.d_vocab)
        outlier, known = skipper.rule.outlier, dict(thresholds or {})
        if outlier is not None:
            unknown = [site for site in sites if str(site) not in known]
            known |= {str(site): outlier * norm for site, norm in median_norms(model, unknown).items()}
            skipper.thresholds = {str(site): known[str(site)] for site in sites}
        return skipper

    def calibrate(self, ids: Int[Tensor, "batch pos"], rows: Mapping[str, Float[Tensor, "tokens d"]]) -> None:
        """Set the thresholds (of a rule that has outliers) from the activations of some windows."""
        assert self.rule.outlier is not None
        wanted = ~((_indices(ids) < self.rule.first) | self._is_special(ids)).flatten()
        for site, x in rows.items():
            norms = norms_of(x, 1)
            norms = norms[wanted & norms.isfinite()]
            if not len(norms):
                raise BadInput(f"{site}: no finite activation to take the median norm of; check the text and the dtype")
            self.thresholds[site] = self.rule.outlier * float(norms.median())

    def keep(self, ids: Int[Tensor, "batch pos"], rows: Mapping[str, Float[Tensor, "tokens d"]]) -> Int[Tensor, "kept"]:
        """Indices of the tokens to keep, in the flattened [batch * pos]. A token that is an outlier at one of the
        sites is left out at all of them, so that the rows of several sites stay aligned."""
        left_out = self.left_out(ids.flatten(), _indices(ids).flatten(), rows)
        return self._kept(torch.ones_like(ids.flatten(), dtype=torch.bool), left_out).nonzero().flatten()

    def counted(self, tokens: TokenBatch, x: Mapping[str, Float[Tensor, "batch pos ..."]]) -> Bool[Tensor, "batch pos"]:
        """The real tokens of prompts that count, by their activations at some sites."""
        return self._kept(tokens.mask, self.left_out(tokens.ids, tokens.positions, x))

    def check_last(
        self,
        model: Model,
        tokens: TokenBatch,
        x: Mapping[str, Float[Tensor, "batch pos ..."]],
        reasons: Sequence[str] = REASONS,
    ) -> None:
        """Raises `BadInput` where the last token of a prompt is left out for one of these reasons."""
        left_out, rows = self.left_out(tokens.ids, tokens.positions, x), torch.arange(len(tokens))
        for reason in reasons:
            if bool((bad := left_out[reason][rows, tokens.last]).any()):
                ids = tokens.rows()[int(bad.nonzero()[0])]
                raise BadInput(
                    f"prompt {model.text(ids, special=True)!r:.100} ends with {model.str_token(ids[-1])!r}, which does "
                    f"not count ({reason}): end it otherwise, pool over all tokens, or give another skip rule"
                )

    def left_out(
        self, ids: Int[Tensor, "*tokens"], index: Int[Tensor, "*tokens"], x: Mapping[str, Float[Tensor, "..."]]
    ) -> dict[str, Bool[Tensor, "*tokens"]]:
        """For each reason, the tokens that it would leave out; nothing is counted.

        Args:
            index: of each token in its window or prompt, the first being 0.
            x: site -> its activations.
        """
        norms = {site: norms_of(one, ids.ndim).to(ids.device) for site, one in x.items()}
        bad, outlier = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for site, norm in norms.items():
            bad |= ~norm.isfinite()
            if site in self.thresholds:
                outlier |= norm > self.thresholds[site]
        return dict(zip(REASONS, (index < self.rule.first, self._is_special(ids), bad, outlier)))

    def summary(self) -> dict[str, Any]:
        """What was left out and by which rule, for the config of a result."""
        left_out = {reason: self.counts[reason] for reason in REASONS if self.counts[reason]}
        return {
            "kept": self.counts["kept"],
            "left_out": left_out,
            "skip": asdict(self.rule),
            "outlier_norm": dict(self.thresholds),
        }

    def _kept(
        self, real: Bool[Tensor, "*tokens"], left_out: Mapping[str, Bool[Tensor, "*tokens"]]
    ) -> Bool[Tensor, "*tokens"]:
        """The tokens without a reason to be left out, which are counted as all others are, by their first reason."""
        kept, totals = real, [real.sum()]
        for tokens in left_out.values():
            kept = kept & ~tokens
            totals.append(kept.sum())
        numbers = torch.stack(totals).tolist()  # one transfer from the accelerator for all counts
        for reason, before, after in zip(left_out, numbers, numbers[1:]):
            self.counts[reason] += before - after
        self.counts["kept"] += numbers[-1]
        return kept

    def _is_special(self, ids: Int[Tensor, "*tokens"]) -> Bool[Tensor, "*tokens"]:
        if self._special.device != ids.device:
            self._special = self._special.to(ids.device)
        return self._special[ids]


def _indices(ids: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


class FittedAt:
    """What was fitted at a site on tokens that count, by the default rule: edits and conditions of it leave out others.

    Attributes:
        learnt: in words, what was not done with the other tokens.
    """

    learnt: ClassVar[str] = "probe was not fitted"
    site: Site

    def check(self, model: Model) -> None:
        """Raises `Mismatch` for another model than it was fitted on."""
        raise NotImplementedError

    def prepare(self, model: Model) -> None:
        """Before a pass: refuse another model, and measure what `left_out` needs in it."""
        self.check(model)
        Skipper.of(model, [self.site])

    def left_out(self, x: Float[Tensor, "batch pos *d"], moment: Moment) -> dict[str, Bool[Tensor, "batch pos"]]:
        """For each reason, the tokens of a moment that a fit leaves out: the first, special ones and norm outliers."""
        model: Any = moment.model
        skipper = Skipper.of(model, [self.site])
        return skipper.left_out(moment.ids, moment.positions, {str(self.site): x})
