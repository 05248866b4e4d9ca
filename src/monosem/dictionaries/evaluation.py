"""How good a dictionary is on text: sparsity, reconstruction, and what splicing it into the model costs.

Everything is measured on *counted* tokens, which the skip rule keeps (no special tokens, no first positions, no
outliers by default). Skipped tokens are counted by reason. Each number has one definition, beside it; sums run in
float64. Names of variants follow the tool that reports them.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..activations import Skipper, SkipRule, harvest
from ..data import TextSource, TokenStore, as_store
from ..errors import BadInput
from ..files import write_json
from ..models import Model, TokenBatch
from ..progress import Meter
from ..results import Result, analysis
from ..statistics import Interval
from .dictionary import Dictionary
from .rerun import entry
from .splices import Splices
from .sums import CostSums, FitSums


@dataclass(frozen=True)
class Evaluation(Result):
    """Result of `evaluate`. What each number means stands beside it, in `MEANINGS` and in `.table`.

    Attributes:
        density: `[width]`, share of counted tokens at which each latent is active.
        tokens: counted tokens. predictions: counted tokens that have a next token.
        skipped: reason -> number of tokens left out.
        intervals: metric -> its 95 % interval over the windows of text drawn again (of the headline numbers; NaN for a
            single window).
        config: what was evaluated and how.
    """

    fve: Annotated[float, "headline: 1 - Σ|x-x̂|² / Σ|x-mean(x)|² over all counted tokens (SAELens explained_variance)"]
    fve_centred_error: Annotated[
        float, "1 - Σ|e-mean(e)|² / Σ|x-mean(x)|², forgives a constant error (dictionary_learning)"
    ]
    fve_legacy: Annotated[
        float, "mean over tokens of 1 - |e|² / |x-mean of its batch|² (SAELens explained_variance_legacy)"
    ]
    l0: Annotated[float, "mean number of active latents a token"]
    cosine: Annotated[float, "mean cosine of x and x̂"]
    mse: Annotated[float, "mean over tokens of |x-x̂|², summed over dimensions"]
    l2_ratio: Annotated[float, "mean over tokens of |x̂| / |x|"]
    relative_reconstruction_bias: Annotated[
        float, "mean |x̂|² / mean x·x̂; below 1 is shrinkage (Rajamanoharan et al. 2024)"
    ]
    dead_fraction: Annotated[
        float, "share of latents that no counted token activates; depends on how many tokens there are"
    ]
    ce_clean: Annotated[float, "next-token loss (nats) of the unedited model, at counted tokens"]
    ce_spliced: Annotated[float, "the same with the reconstruction spliced in at the counted tokens"]
    ce_zero: Annotated[float, "the same with zeros at every position, skipped ones too (SAELens)"]
    ce_recovered: Annotated[float, "(ce_zero - ce_spliced) / (ce_zero - ce_clean) (SAELens ce_loss_score)"]
    kl: Annotated[float, "mean KL(clean‖spliced) of the next-token distribution (nats), at counted tokens"]
    kl_zero: Annotated[float, "the same for zeros at every position"]
    kl_score: Annotated[float, "(kl_zero - kl) / kl_zero (SAELens kl_div_score)"]
    ce_zero_counted: Annotated[
        float, "with zeros at the counted tokens only: skipped ones, such as attention sinks, keep their activation"
    ]
    ce_recovered_counted: Annotated[
        float, "ce_recovered against ce_zero_counted; flatters where that is worse than knowing nothing"
    ]
    kl_zero_counted: Annotated[float, "KL for zeros at the counted tokens only"]
    kl_score_counted: Annotated[float, "kl_score against kl_zero_counted"]
    tokens: int
    predictions: int
    skipped: dict[str, int]
    intervals: dict[str, Interval] = field(repr=False)
    density: Float[np.ndarray, "width"] = field(repr=False)
    config: dict[str, Any] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """One row a metric: metric, value, low, high (95 %, NaN where there is none), meaning (its definition)."""
        unknown = Interval(math.nan, math.nan, math.nan)
        bounds = {name: self.intervals.get(name, unknown)[1:] for name in MEANINGS}
        rows = [(name, getattr(self, name), *bounds[name], meaning) for name, meaning in MEANINGS.items()]
        return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "meaning"])

    def to_dict(self, density: bool = False) -> dict[str, Any]:
        """Plain values, ready for JSON (numbers that are not finite become None); densities only when asked for."""
        plain = asdict(self) | {"intervals": {name: _ends(one) for name, one in self.intervals.items()}}
        plain |= {"density": [float(f"{value:.6g}") for value in self.density]}
        if not density:
            del plain["density"]
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """Everything, densities and config included, as JSON; or the table, where the path ends in .csv or .parquet."""
        if Path(path).suffix.lower() in (".csv", ".parquet"):
            return super().save(path, **plot)
        write_json(path, self.to_dict(density=True))
        return Path(path)


MEANINGS = {one.name: get_args(one.type)[1] for one in fields(Evaluation) if get_origin(one.type) is Annotated}


def _ends(interval: Interval) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in interval[1:]]


@analysis
def evaluate(
    model: Model,
    dictionary: Dictionary,
    texts: TextSource,
    *,
    tokens: int | None = 100_000,
    context: int = 256,
    batch_size: int = 8,
    skip: SkipRule | None = None,
    splice_all: bool = False,
    quiet: bool = False,
) -> Evaluation:
    """Measure a dictionary on text that it was not trained on.

    Args:
        texts: texts or `Document`s (packed into windows of `context`), windows of token ids, or a `TokenStore`.
        tokens: how much of the text to use; None for all.
        batch_size: windows a forward pass.
        skip: which tokens are left out; by default what the dictionary was not trained on (`Dictionary.skip`).
        splice_all: splice at every position. By default skipped tokens keep their own activation: a dictionary that
            never saw attention sinks would otherwise be judged by them alone. SAELens' own evaluation is
            `skip=SkipRule(first=0, outlier=None)`: it splices and counts all tokens that are not special.

    Raises:
        Mismatch: a dictionary of another model or width.
        BadInput: too little text, or text of which every token is skipped; a meta-SAE, which codes no activations.
    """
    return _evaluated(model, {"": dictionary}, texts, tokens, context, batch_size, skip, splice_all, quiet)[""]


def evaluate_each(
    model: Model,
    dictionaries: Mapping[str, Dictionary],
    texts: TextSource,
    *,
    tokens: int | None = 100_000,
    context: int = 256,
    batch_size: int = 8,
    skip: SkipRule | None = None,
    splice_all: bool = False,
    quiet: bool = False,
) -> dict[str, Evaluation]:
    """`evaluate` for several dictionaries of a model at once: the same numbers, from fewer passes.

    All share the clean pass, and dictionaries of one site that count the same tokens share the passes with zeros.

    Args:
        dictionaries: name -> dictionary, of any sites. The others: as `evaluate`, with its errors.
    """
    if not dictionaries:
        raise BadInput("give at least one dictionary")
    settings = {"tokens": tokens, "batch_size": batch_size, "splice_all": splice_all}
    found = _evaluated(model, dictionaries, texts, tokens, context, batch_size, skip, splice_all, quiet)
    for name, one in found.items():
        told = {"analysis": "dictionaries.evaluate_each", "model": model.name, "dictionary": dictionaries[name].name}
        one.config.update(told | settings)
    return found


def check_reads_activations(dictionary: Dictionary) -> None:
    """Raises `BadInput` for a meta-SAE, which codes decoder rows."""
    if rows_of := dictionary.metadata.get("meta_of"):
        raise BadInput(
            f"{dictionary.name} codes the decoder rows of {rows_of}, not activations; its card says how well it does so"
        )


def _evaluated(
    model: Model,
    dictionaries: Mapping[str, Dictionary],
    texts: TextSource,
    tokens: int | None,
    context: int,
    batch_size: int,
    skip: SkipRule | None,
    splice_all: bool,
    quiet: bool,
) -> dict[str, Evaluation]:
    for dictionary in dictionaries.values():
        dictionary.check(model)
        check_reads_activations(dictionary)
    store = as_store(model, texts, context, tokens=tokens)
    arms: dict[str, _Arm] = {}
    skippers: dict[str, Skipper] = {}  # what counts the same tokens counts them once
    for name, dictionary in dictionaries.items():
        rule, thresholds = skip or dictionary.skip, None if skip else dictionary.skipper(model).thresholds
        same = f"{dictionary.site} {rule} {thresholds}"
        if same not in skippers:
            source = harvest(model, store, dictionary.site, batch_size=batch_size, skip=rule, thresholds=thresholds)
            skippers[same] = source.skipper
        arms[name] = _Arm(dictionary, skippers[same], FitSums(dictionary, model.device), CostSums())
    with Meter("evaluate", total=store.tokens, unit="tok", quiet=quiet) as meter:
        for start in range(0, len(store), batch_size):
            ids = store[start : start + batch_size].to(model.device)
            _measure(list(arms.values()), model, ids, splice_all)
            meter.advance(ids.numel())
    return {name: arm.result(model, store) for name, arm in arms.items()}


@dataclass
class _Arm:
    """A dictionary, which tokens count for it, and what was summed so far."""

    dictionary: Dictionary
    skipper: Skipper
    fit: FitSums
    cost: CostSums

    def result(self, model: Model, store: TokenStore) -> Evaluation:
        dictionary, counts = self.dictionary, self.skipper.counts
        if not self.fit.n or not self.cost.n:
            raise BadInput(f"no token of this text counts (seen: {dict(counts)}); give other text or another skip")
        config = {
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "site": str(dictionary.site),
            "site_out": str(dictionary.site_out),
            "texts": f"{len(store)} windows of {store.context} tokens",  # however the text was given
            "context": store.context,
            "windows": len(store),
            "text_sha256": store.fingerprint,
            "skip": asdict(self.skipper.rule),
            "outlier_norm": dict(self.skipper.thresholds),
        }
        skipped = {reason: count for reason, count in counts.items() if reason != "kept"}
        intervals = self.fit.intervals() | self.cost.intervals()
        return Evaluation(
            **self.fit.result(), **self.cost.result(), intervals=intervals, skipped=skipped, config=config
        )

    def add(
        self, splices: Splices, kept: Bool[Tensor, "batch pos"], clean: Float[Tensor, "n"], splice_all: bool
    ) -> None:
        """A batch: what is rebuilt of it, and what it costs that the reconstruction or zeros are put in, these
        everywhere and at the counted tokens."""
        dictionary, run = self.dictionary, splices.run
        whole = run[dictionary.site_out]  # heads stand apart at z; flattened below, as dictionaries want them
        x, target = run[dictionary.site].flatten(2), whole.flatten(2)
        rebuilt = self.fit.add(x, target, kept)
        if splice_all:
            swapped = dictionary.decode(dictionary.encode(x), like=x).to(target)
        else:
            swapped = torch.where(kept[..., None], rebuilt, target)
        values = {
            "zero": torch.zeros_like(target),
            "zero_counted": target.masked_fill(kept[..., None], 0),
            "spliced": swapped,
        }
        site = dictionary.site_out
        costs = {name: splices.cost(site, x.reshape(whole.shape), kept) for name, x in values.items()}
        self.cost.add(kept, clean, costs)


def _measure(arms: Sequence[_Arm], model: Model, ids: Int[Tensor, "batch pos"], splice_all: bool) -> None:
    """One batch: the clean run, then the rest of it with what each arm puts in."""
    tokens = TokenBatch.whole(ids)
    sites = {site for arm in arms for site in (arm.dictionary.site, arm.dictionary.site_out)}
    entries = {before for arm in arms if (before := entry(model, arm.dictionary.site_out)) is not None}
    splices = Splices(model, tokens, model.run(tokens, capture=sites | entries))
    counted: dict[int, tuple[Tensor, Tensor]] = {}  # of each skipper: the tokens, and their clean loss
    for arm in arms:
        if id(arm.skipper) not in counted:
            kept = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device)
            x = splices.run[arm.dictionary.site].flatten(2)
            kept[arm.skipper.keep(ids, {str(arm.dictionary.site): x.flatten(0, 1)})] = True
            kept = kept.view(ids.shape)
            counted[id(arm.skipper)] = kept, splices.clean(kept)
        kept, clean = counted[id(arm.skipper)]
        if kept.any():
            arm.add(splices, kept, clean, splice_all)
