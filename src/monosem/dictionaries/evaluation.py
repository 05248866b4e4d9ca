"""How good a dictionary is on text: sparsity, reconstruction, and what splicing it into the model costs.

Everything is measured on *counted* tokens: those that the skip rule keeps (no special tokens, no first positions, no
outliers by default). Skipped tokens are counted by reason. Each number has one definition, in `MEANINGS`; sums run in
float64. Names of variants follow the tool that reports them.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import edits, metrics
from ..activations import Skipper, SkipRule, harvest
from ..activations.harvesting import Source
from ..data import TokenStore
from ..errors import BadInput
from ..files import write_json
from ..models import Model, Site
from ..progress import Meter
from .codes import Codes
from .dictionary import Dictionary

if TYPE_CHECKING:
    import pandas as pd

LOGIT_ROWS = 512  # rows of logits compared at once: 100 MB in float32 for a vocabulary of 49,152

MEANINGS = {
    "fve": "headline: 1 - Σ|x-x̂|² / Σ|x-mean(x)|² over all counted tokens (SAELens explained_variance)",
    "fve_centred_error": "1 - Σ|e-mean(e)|² / Σ|x-mean(x)|², forgives a constant error (dictionary_learning)",
    "fve_legacy": "mean over tokens of 1 - |e|² / |x-mean of its batch|² (SAELens explained_variance_legacy)",
    "l0": "mean number of active latents a token",
    "cosine": "mean cosine of x and x̂",
    "mse": "mean over tokens of |x-x̂|², summed over dimensions",
    "l2_ratio": "mean over tokens of |x̂| / |x|",
    "relative_reconstruction_bias": "mean |x̂|² / mean x·x̂; below 1 is shrinkage (Rajamanoharan et al. 2024)",
    "dead_fraction": "share of latents that no counted token activates; depends on how many tokens there are",
    "ce_clean": "next-token loss (nats) of the unedited model, at counted tokens",
    "ce_spliced": "the same with the reconstruction spliced in at the counted tokens",
    "ce_zero": "the same with zeros there",
    "ce_recovered": "(ce_zero - ce_spliced) / (ce_zero - ce_clean)",
    "kl": "mean KL(clean‖spliced) of the next-token distribution (nats), at counted tokens",
    "kl_zero": "the same for zeros",
    "kl_score": "(kl_zero - kl) / kl_zero",
}


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`. What each number means stands in `MEANINGS` (and in `.table`).

    Attributes:
        density: `[width]`, share of counted tokens at which each latent is active.
        tokens: counted tokens. predictions: those of them that have a next token.
        skipped: reason -> number of tokens left out.
        config: what was evaluated and how.
    """

    fve: float
    fve_centred_error: float
    fve_legacy: float
    l0: float
    cosine: float
    mse: float
    l2_ratio: float
    relative_reconstruction_bias: float
    dead_fraction: float
    ce_clean: float
    ce_spliced: float
    ce_zero: float
    ce_recovered: float
    kl: float
    kl_zero: float
    kl_score: float
    tokens: int
    predictions: int
    skipped: dict[str, int]
    density: Float[np.ndarray, "width"] = field(repr=False)
    config: dict[str, Any] = field(repr=False)

    @property
    def table(self) -> "pd.DataFrame":
        """One row a metric: value and definition."""
        import pandas as pd

        rows = [(name, getattr(self, name), meaning) for name, meaning in MEANINGS.items()]
        return pd.DataFrame(rows, columns=["metric", "value", "meaning"]).set_index("metric")

    def to_dict(self, density: bool = False) -> dict[str, Any]:
        """Plain values, ready for JSON (numbers that are not finite become None); densities only when asked for."""
        plain = asdict(self) | {"density": [float(f"{value:.6g}") for value in self.density]}
        if not density:
            del plain["density"]
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything, densities and config included, as JSON."""
        write_json(path, self.to_dict(density=True))


def evaluate(
    dictionary: Dictionary,
    model: Model,
    documents: Source,
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
        documents: texts or `Document`s (packed into windows of `context`), windows of token ids, or a `TokenStore`.
        tokens: how much of the text to use; None for all.
        batch_size: windows a forward pass.
        skip: which tokens are left out; `SkipRule()` by default.
        splice_all: splice (and zero) at every position. By default skipped tokens keep their own activation, as in
            SAELens: a dictionary that never saw attention sinks would otherwise be judged by them alone.

    Raises:
        Mismatch: a dictionary of another model or width.
        BadInput: too little text, or text of which every token is skipped.
    """
    dictionary.check(model)
    store = _store(model, documents, context, tokens)
    rule = skip or SkipRule()
    skipper = harvest(model, store, dictionary.site, batch_size, rule).skipper  # calibrated on windows of this text
    fit, cost = _Fit(dictionary, model.device), _Cost()
    with Meter("evaluate", total=store.tokens, unit="tok", quiet=quiet) as meter:
        for ids in _batches(store, batch_size):
            _measure(dictionary, model, ids.to(model.device), skipper, fit, cost, splice_all)
            meter.advance(ids.numel())
    if not fit.n or not cost.n:
        raise BadInput(f"no token of this text counts (seen: {dict(skipper.counts)}); give other text or another skip")
    config = {
        "dictionary": dictionary.name,
        "model": model.name,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "site": str(dictionary.site),
        "site_out": str(dictionary.site_out),
        "context": store.context,
        "windows": len(store),
        "text_sha256": store.fingerprint,
        "batch_size": batch_size,
        "skip": asdict(rule),
        "outlier_norm": dict(skipper.thresholds),
        "splice_all": splice_all,
    }
    skipped = {reason: count for reason, count in skipper.counts.items() if reason != "kept"}
    return Evaluation(**fit.result(), **cost.result(), skipped=skipped, config=config)


def _measure(
    dictionary: Dictionary,
    model: Model,
    ids: Int[Tensor, "batch pos"],
    skipper: Skipper,
    fit: "_Fit",
    cost: "_Cost",
    splice_all: bool,
) -> None:
    """One batch: the clean run, then runs from its activations with the reconstruction and with zeros put in."""
    run = model.run(ids, capture={dictionary.site, dictionary.site_out})
    whole = run[dictionary.site_out]  # heads stand apart at z; flattened below, as dictionaries want them
    x, target = run[dictionary.site].flatten(2), whole.flatten(2)
    kept = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device)
    kept[skipper.keep(ids, {str(dictionary.site): x.flatten(0, 1)})] = True
    kept = kept.view(ids.shape)
    if not kept.any():
        return
    rebuilt = fit.add(x, target, kept)
    if splice_all:
        swapped, zeroed = dictionary.decode(dictionary.encode(x), like=x), torch.zeros_like(target)
    else:
        swapped = torch.where(kept[..., None], rebuilt, target)
        zeroed = target.masked_fill(kept[..., None], 0)
    values = (value.reshape(whole.shape) for value in (swapped, zeroed))
    cost.add(run.logits, (_rerun(model, ids, dictionary.site_out, value) for value in values), ids, kept)


def _store(model: Model, documents: Source, context: int, tokens: int | None) -> TokenStore:
    if tokens is not None and tokens < 1:
        raise BadInput(f"tokens must be at least 1, not {tokens}")
    if isinstance(documents, str):
        raise BadInput("a single string is no corpus; give a list of texts, monosem.data.texts(path), or a TokenStore")
    if not isinstance(documents, TokenStore | Tensor | np.ndarray):
        return TokenStore.build(model, documents, context, tokens=tokens)
    store = documents if isinstance(documents, TokenStore) else TokenStore.of(documents)
    if store.context > model.cfg.n_ctx:
        raise BadInput(f"windows of {store.context} tokens are longer than the model's context {model.cfg.n_ctx}")
    return store if tokens is None else TokenStore.of(store[: max(1, tokens // store.context)])


def _batches(store: TokenStore, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
    if batch_size < 1:
        raise BadInput(f"batch_size must be at least 1, not {batch_size}")
    for start in range(0, len(store), batch_size):
        yield store[start : start + batch_size]


def _rerun(model: Model, ids: Int[Tensor, "batch pos"], site: Site, value: Tensor) -> Float[Tensor, "batch pos vocab"]:
    """Logits with the activation at `site` replaced. What lies before it does not change, so the blocks up to it are
    left out where a run can start there."""
    layer = site.layer
    if site.name == "resid_post" and layer is not None and layer + 1 < model.cfg.n_layers and not model.ambient_edits:
        return model.run(ids, start=(("resid_pre", layer + 1), value)).logits  # type: ignore[return-value]
    return model.run(ids, edits=edits.patch(site, value)).logits  # type: ignore[return-value]


class _Fit:
    """Sparsity and reconstruction, as running sums over counted tokens."""

    def __init__(self, dictionary: Dictionary, device: torch.device):
        self.dictionary, self.n = dictionary, 0
        self.fired = torch.zeros(dictionary.width, dtype=torch.long, device=device)
        self.sum_x = torch.zeros(dictionary.d_out, dtype=torch.float64, device=device)
        self.sum_e = torch.zeros_like(self.sum_x)
        self.sums = dict.fromkeys(("xx", "ee", "yy", "xy", "legacy", "off_mean", "cosine", "ratio"), 0.0)

    def add(
        self,
        x: Float[Tensor, "batch pos d_in"],
        target: Float[Tensor, "batch pos d_out"],
        kept: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_out"]:
        """Count these tokens; returns their reconstructions in place (zeros elsewhere), in the dtype of `target`."""
        inputs = x[kept].float()
        codes = self.dictionary.encode(inputs)
        rebuilt = self.dictionary.decode(codes, like=inputs)
        self._count(codes)
        self._compare(target[kept].double(), rebuilt.double())
        out = torch.zeros_like(target)
        out[kept] = rebuilt.to(target)
        return out

    def _count(self, codes: Codes) -> None:
        active = codes.indices[codes.values != 0]
        self.fired += torch.bincount(active, minlength=self.dictionary.width).to(self.fired.device)
        self.n += codes.values.shape[0]

    def _compare(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> None:
        error = x - y
        self.sum_x += x.sum(0)
        self.sum_e += error.sum(0)
        squared, norm_x, norm_y = error.square().sum(-1), x.norm(dim=-1), y.norm(dim=-1)
        dot, spread = (x * y).sum(-1), (x - x.mean(0)).square().sum(-1)
        added = {
            "xx": norm_x.square(),
            "ee": squared,
            "yy": norm_y.square(),
            "xy": dot,
            "legacy": torch.where(spread > 0, 1 - squared / spread, 0),  # a batch of one token has no spread
            "off_mean": spread > 0,
            "cosine": dot / (norm_x * norm_y).clamp(min=torch.finfo(x.dtype).tiny),
            "ratio": norm_y / norm_x.clamp(min=torch.finfo(x.dtype).tiny),
        }
        for name, per_token in added.items():
            self.sums[name] += float(per_token.sum())

    def result(self) -> dict[str, Any]:
        n, s = self.n, self.sums
        variance = s["xx"] - float(self.sum_x.square().sum()) / n
        centred = s["ee"] - float(self.sum_e.square().sum()) / n
        return {
            "fve": 1 - _ratio(s["ee"], variance),
            "fve_centred_error": 1 - _ratio(centred, variance),
            "fve_legacy": _ratio(s["legacy"], s["off_mean"]),
            "l0": float(self.fired.sum()) / n,
            "cosine": s["cosine"] / n,
            "mse": s["ee"] / n,
            "l2_ratio": s["ratio"] / n,
            "relative_reconstruction_bias": _ratio(s["yy"], s["xy"]),
            "dead_fraction": float((self.fired == 0).double().mean()),
            "tokens": n,
            "density": (self.fired.double() / n).cpu().numpy(),
        }


class _Cost:
    """Loss and KL of the edited model, as running sums over counted tokens that have a next one."""

    def __init__(self) -> None:
        self.n = 0
        self.sums = dict.fromkeys(("ce_clean", "ce_spliced", "ce_zero", "kl", "kl_zero"), 0.0)

    def add(
        self,
        clean: Tensor | None,
        edited: Iterator[Float[Tensor, "batch pos vocab"]],
        ids: Int[Tensor, "batch pos"],
        kept: Bool[Tensor, "batch pos"],
    ) -> None:
        """`edited` gives the logits with the reconstruction, then those with zeros (made one after the other)."""
        assert clean is not None
        rows, columns = kept[:, :-1].nonzero(as_tuple=True)
        self.n += len(rows)
        chunks = list(zip(rows.split(LOGIT_ROWS), columns.split(LOGIT_ROWS)))
        for row, column in chunks:
            self._sum("ce_clean", metrics.cross_entropy(clean[row, column], ids[row, column + 1]))
        for logits, ce, kl in zip(edited, ("ce_spliced", "ce_zero"), ("kl", "kl_zero")):
            for row, column in chunks:
                self._sum(ce, metrics.cross_entropy(logits[row, column], ids[row, column + 1]))
                self._sum(kl, metrics.kl(clean[row, column], logits[row, column]))

    def _sum(self, name: str, per_token: Tensor) -> None:
        self.sums[name] += float(per_token.double().sum())

    def result(self) -> dict[str, Any]:
        mean = {name: total / self.n for name, total in self.sums.items()}
        recovered = _ratio(mean["ce_zero"] - mean["ce_spliced"], mean["ce_zero"] - mean["ce_clean"])
        score = _ratio(mean["kl_zero"] - mean["kl"], mean["kl_zero"])
        return mean | {"ce_recovered": recovered, "kl_score": score, "predictions": self.n}


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where the denominator is zero: a constant activation has no variance to explain."""
    return numerator / denominator if denominator else math.nan
