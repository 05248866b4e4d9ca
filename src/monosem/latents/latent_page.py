"""Everything known about one latent, as plain data: what the app, a notebook and an export draw."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import __version__
from ..dictionaries import Dictionary
from ..dictionaries.codes import latent_ids
from ..errors import BadInput
from ..files import json_value, write_json, write_text
from ..models import Model
from ..results import Result
from . import details
from .drawing import export_page, framed
from .effects import CONVENTION, logit_effects, logit_histogram, logit_moments
from .evidence import SHOWN, Evidence
from .geometry import aligned_neurons, head_shares, neighbours, weight_statistics
from .index import Index
from .token_sets import set_effects


@dataclass(frozen=True, repr=False)
class LatentPage(Result):
    """What is known about a latent, as data.

    Attributes:
        latent, dictionary: which. summary: one sentence.
        parts: name -> its data, plain values (`PARTS` says what each holds).
        missing: name -> why there is none: no index, no model, no direct path to the logits.
    """

    latent: int
    dictionary: str
    summary: str
    parts: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it: `latent`, `dictionary`, `summary`, `missing`, and one key a part."""
        about = {"latent": self.latent, "dictionary": self.dictionary, "summary": self.summary}
        return dict(json_value(about | {"missing": dict(self.missing)} | dict(self.parts)))

    def _repr_html_(self) -> str:
        """What a notebook shows: the explorer's page in a frame."""
        return framed(export_page([self.to_json()]))

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """The page as one file (.html), everything (.json), or the examples (.csv, .parquet).

        Raises:
            BadInput: another ending. MissingExtra: .parquet without pyarrow.
        """
        if Path(path).suffix == ".html":
            write_text(path, export_page([self.to_json()]))
        elif Path(path).suffix == ".json":
            write_json(path, self.to_json())
        else:
            return super().save(path, **plot)
        return Path(path)

    @property
    def table(self) -> pd.DataFrame:
        """One row a top example, as `Evidence.table`; without rows where there is no index."""
        rows = self.parts.get("examples", [])
        columns = ["maximum", "text", "document", "position"]
        return pd.DataFrame([{**one, "text": "".join(one["tokens"])} for one in rows], columns=columns)


@dataclass(frozen=True)
class Sources:
    """What a page is made from; a part that needs what is None says so with `BadInput`."""

    latent: int
    index: Index | None
    of: Dictionary | None
    lm: Model | None

    @property
    def dictionary(self) -> Dictionary:
        return self._given(self.of, "the dictionary")

    @property
    def model(self) -> Model:
        return self._given(self.lm, "the model")

    @property
    def opened(self) -> Index:
        index: Index = self._given(self.index, "an index: make one with `monosem latents index`")
        return index

    @cached_property
    def evidence(self) -> Evidence:
        return self.opened.evidence(self.latent)

    @cached_property
    def known(self) -> dict[str, Any]:
        """What the index says, as plain values."""
        return self.evidence.parts()

    def _given(self, held: Any, what: str) -> Any:
        if held is None:
            raise BadInput(f"needs {what}")
        return held


def page(
    index: Index | None, latent: int, *, dictionary: Dictionary | None = None, model: Model | None = None
) -> LatentPage:
    """Everything known about a latent. Parts that need what is not given are in `missing`, with the reason.

    Args:
        index: None gives what the weights alone say; then `dictionary` is needed.
        dictionary: by default the index's own.
        model: for effects on all tokens; without one, the strongest that the index holds.

    Raises:
        UnknownName: no such latent. BadInput: neither index nor dictionary. BadFile: a damaged index.
        Mismatch: a model that the dictionary is not of.
    """
    own = dictionary if dictionary is not None else index.dictionary if index is not None else None
    if own is None and index is None:
        raise BadInput("a page needs an index or a dictionary")
    if own is not None:
        (latent,) = latent_ids(latent, own.width).tolist()
        if model is not None:
            own.check(model)
    sources = Sources(latent, index, own, model)
    evidence = None if index is None else sources.evidence
    name = evidence.dictionary if evidence is not None else own.name if own is not None else ""
    summary = f"latent {latent} of {name}: no corpus was read yet" if evidence is None else evidence.summary
    parts, missing = {}, {}
    for part, made in PARTS.items():
        try:
            parts[part] = made(sources)
        except BadInput as error:
            missing[part] = str(error)
    return LatentPage(latent, name, summary, parts, missing)


# --- the parts ------------------------------------------------------------------------------------------------------


def _statistics(s: Sources) -> dict[str, Any]:
    """Counts, density, maximum; moments over active tokens, and over all counted tokens (where silent ones are 0).

    consistency: firings a window in which it fires. run: mean length of its runs of neighbouring tokens.
    """
    e, index = s.evidence, s.opened
    row = {str(name): float(column.to_numpy()[s.latent]) for name, column in index.table.items()}
    active = {name: row[name] for name in ("mean", "sd", "skew", "kurtosis")}
    return s.known["statistics"] | {
        "tokens": int(index.meta["tokens"]),
        "log10_density": float(np.log10(e.density)) if e.count else None,
        "active": active,
        "all": index.moments_of_all(s.latent),
        "consistency": row.get("consistency", np.nan),
        "run": row.get("run", np.nan),
        "skipped": index.meta.get("skipped", {}),
        "skip": index.meta.get("skip", ""),
    }


def _histogram(s: Sources) -> list[dict[str, float]]:
    """Of magnitudes where it is active; bins of equal width in log2, empty ones left out."""
    return list(s.known["histogram"])


def _tokens(s: Sources) -> list[dict[str, Any]]:
    """Tokens that it fires on, most activation first."""
    return list(s.known["tokens"])


def _logits(s: Sources) -> dict[str, Any]:
    """Direct effects on next-token logits: strongest both ways; with a model also of the whole vocabulary."""
    if s.lm is None:
        if not s.evidence.promoted:
            raise BadInput(f"direct effect on the logits: {s.opened.meta.get('effects', 'unknown')}")
        whole = {"histogram": None, "moments": None} if s.opened.meta["schema"] < 2 else _summary(s)
        return s.known["logits"] | {"convention": s.opened.meta.get("effects", "")} | whole
    (effects,) = logit_effects(s.model, s.dictionary, torch.tensor([s.latent]))
    edges, counts = logit_histogram(effects[0])
    moments = logit_moments(effects)[:, 0].tolist()
    up, down = (effects[0].topk(min(SHOWN, effects.shape[1]), largest=largest) for largest in (True, False))
    tokens = {
        side: [
            {"token": s.model.str_token(i), "id": i, "effect": value}
            for i, value in zip(found.indices.tolist(), found.values.tolist())
        ]
        for side, found in (("promoted", up), ("suppressed", down))
    }
    return tokens | {
        "convention": CONVENTION,
        "histogram": {"edges": edges, "counts": counts},
        "moments": dict(zip(("sd", "skew", "kurtosis"), moments)),
    }


def _summary(s: Sources) -> dict[str, Any]:
    return details.logit_summary(s.opened, s.latent)


def _geometry(s: Sources) -> dict[str, Any]:
    """Norms, the angle between encoder and decoder, bias and threshold."""
    row = weight_statistics(s.dictionary, [s.latent]).table.iloc[0].drop("latent")
    return {"kind": s.dictionary.kind, **{str(name): float(value) for name, value in row.items()}}


def _neighbours(s: Sources) -> dict[str, list[dict[str, Any]]]:
    """The most similar decoder and encoder rows."""
    labels = {} if s.index is None or s.index.explanations is None else s.index.explanations.all
    return {
        side: [
            {"latent": other, "cosine": cosine, "label": labels[other].label if other in labels else None}
            for other, cosine in neighbours(s.dictionary, s.latent, n=SHOWN, side=side)
        ]
        for side in ("decoder", "encoder")
    }


def _neurons(s: Sources) -> dict[str, Any]:
    """The largest entries of the decoder row; `privileged` says whether they are neurons, not mere dimensions."""
    named = aligned_neurons(s.dictionary, s.latent)
    privileged = s.dictionary.has_site_out and s.dictionary.site_out.name in ("mlp_post", "mlp_pre", "mlp_gated")
    rows = [{"neuron": neuron, "value": value, "share": share} for neuron, value, share in named]
    return {"rows": rows, "privileged": privileged}


def _heads(s: Sources) -> list[dict[str, float]]:
    """How much of the decoder row lies in each head."""
    if not s.dictionary.per_head:
        raise BadInput("only dictionaries of heads (z, q, k, v) have shares of heads")
    cfg = s.model.cfg
    heads = cfg.n_kv_heads if s.dictionary.site_out.name in ("k", "v") else cfg.n_heads
    shares = head_shares(s.dictionary, s.latent, heads)
    return [{"head": head, "share": share} for head, share in enumerate(shares)]


def _examples(s: Sources) -> list[dict[str, Any]]:
    """Strongest first; at most one a window, two a document, no two with the same wording.

    The strongest token stands at `anchor`; an empty token's character stands at a later one."""
    return list(s.known["examples"])


def _intervals(s: Sources) -> list[dict[str, Any]]:
    """Equal widths from 0 (left out) to the maximum, strongest first; shares of the active tokens and of their whole
    activation (of magnitudes, as far as the histogram tells)."""
    return list(s.known["intervals"])


def _deciles(s: Sources) -> list[dict[str, Any]]:
    """Tenths of its active tokens, strongest first, with examples drawn from each."""
    return [s.evidence.interval(band) for band in details.deciles(s.opened, s.latent)]


def _uniform(s: Sources) -> list[dict[str, Any]]:
    """Drawn from all tokens at which it is active alike."""
    return [example.as_data() for example in details.uniform(s.opened, s.latent)]


def _near(s: Sources) -> list[dict[str, Any]]:
    """Silent tokens with its highest pre-activations."""
    found = details.near_misses(s.opened, s.latent)
    return [example.as_data() | {"preactivation": value} for example, value in found]


def _silent(s: Sources) -> list[dict[str, Any]]:
    """Places drawn from the whole corpus around which it is silent."""
    return [example.as_data() for example in details.silent(s.opened, s.latent)]


def _patterns(s: Sources) -> dict[str, Any]:
    """Tokens, tokens before and pairs of tokens that it fires on, with lift; how varied they are, in bits."""
    found = details.token_patterns(s.opened, s.latent)
    names = ("token", "count", "mass", "lift")
    for listed in ("tokens", "before"):
        found[listed] = [dict(zip(names, row)) for row in found[listed]]
    found["bigrams"] = [dict(zip(("before", "token", "count", "mass"), row)) for row in found["bigrams"]]
    return found


def _coactive(s: Sources) -> list[dict[str, Any]]:
    """Latents that fire with it, by exact counts over all counted tokens."""
    labels = {} if s.opened.explanations is None else s.opened.explanations.all
    rows = details.coactive(s.opened, s.latent).to_dict(orient="records")
    return [
        {str(k): v for k, v in row.items()}
        | {"label": labels[row["latent"]].label if row["latent"] in labels else None}
        for row in rows
    ]


def _correlated_neurons(s: Sources) -> list[dict[str, Any]]:
    """Neurons of the block's MLP that are active with it, the largest correlation either way first."""
    rows = details.correlated_neurons(s.opened, s.latent).to_dict(orient="records")
    return [{str(k): v for k, v in row.items()} for row in rows]


def _enrichment(s: Sources) -> list[dict[str, Any]]:
    """Sets of tokens that it fires on more, or less, than their share of the corpus; the surest first."""
    table = details.enrichment(s.opened, s.latent).head(SHOWN)
    return [{str(k): v for k, v in row.items()} for row in table.to_dict(orient="records")]


def _set_effects(s: Sources) -> list[dict[str, Any]]:
    """Sets of tokens that it promotes or suppresses as a whole, by its direct effects; the strongest first."""
    table = set_effects(s.model, s.dictionary, [s.latent]).table.head(SHOWN).drop(columns="latent")
    return [{str(k): v for k, v in row.items()} for row in table.to_dict(orient="records")]


def _explanation(s: Sources) -> dict[str, Any]:
    """Its label, with held-out counts."""
    if "explanation" not in s.known:
        raise BadInput("has no explanation; docs/latents.md says what explanations.json holds")
    return dict(s.known["explanation"])


def _provenance(s: Sources) -> dict[str, Any]:
    """What all of this was made with."""
    meta = {} if s.index is None else s.index.meta
    own = {} if s.of is None else {"site": str(s.of.site), "weights": s.of.fingerprint, "kind": s.of.kind}
    own |= {} if s.of is None or not s.of.model_name else {"model": s.of.model_name}
    return {**own, **meta, "monosem": __version__}


PARTS: dict[str, Callable[[Sources], Any]] = {
    "statistics": _statistics,
    "histogram": _histogram,
    "tokens": _tokens,
    "logits": _logits,
    "geometry": _geometry,
    "neighbours": _neighbours,
    "neurons": _neurons,
    "heads": _heads,
    "examples": _examples,
    "intervals": _intervals,
    "deciles": _deciles,
    "uniform": _uniform,
    "near": _near,
    "silent": _silent,
    "patterns": _patterns,
    "coactive": _coactive,
    "correlated_neurons": _correlated_neurons,
    "enrichment": _enrichment,
    "set_effects": _set_effects,
    "explanation": _explanation,
    "provenance": _provenance,
}
