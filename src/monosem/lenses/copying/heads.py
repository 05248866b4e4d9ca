"""Which heads copy: causal scores of every head for copying a token, and for copying a word of several tokens.

Feucht et al. 2025, "The Dual-Route Model of Induction". A prompt says a list of random tokens that ends in an entity e,
a newline, and the same list again; the corrupted prompt begins with another list. What one head writes (z) at the last
token before the repeated entity is taken from the clean run into the corrupted one, and

- token copying: the entity is made of random tokens; how much likelier is its first token e1, which comes next?
- concept copying: the entity is a word of several tokens; how much likelier is its SECOND token e2, after e1?

A head that only knows which token comes next cannot raise e2, one position on; a head that fetches the whole word can.
Different from the paper: the words (`ENTITIES`, where the paper takes subjects of CounterFact); lists drawn evenly from
the vocabulary unless texts are given to draw from; and log-probabilities, in nats, for no single head of a small model
raises the probability itself by a visible amount. `metric="probability"` is the paper's score.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...data import TokenPairs
from ...errors import BadInput, Mismatch, UnknownName
from ...models import Model, TokenBatch
from ...patching import sweep
from ...plots import Figure, heatmap
from ...results import Result, analysis
from ..fitted import Fitted, Header
from .entities import ENTITIES

Kind = Literal["token", "concept"]
Metric = Literal["log_probability", "probability"]


@dataclass(frozen=True)
class CopyingHeader(Header):
    """What was patched.

    Attributes:
        metric: "log_probability" (nats) or "probability".
        clean, corrupted: mean of the metric in the unpatched runs: what there was to gain.
    """

    kind: Kind
    metric: Metric
    clean: float
    corrupted: float
    prompts: int


@dataclass(frozen=True, eq=False)
class CopyingEffects(Result, Fitted):
    """How much each head raises the (log-)probability of what it may copy, when it is patched alone.

    Attributes:
        effects: `layer head`, mean over prompts of the metric in the patched run less the metric in the corrupted one.
        errors: their standard errors.
    """

    kind: ClassVar[str] = "copying effects"
    ranked_by: ClassVar[str | None] = "effect"
    may_be_nan: ClassVar[frozenset[str]] = frozenset({"errors"})  # of a single prompt

    header: CopyingHeader
    effects: Float[Tensor, "layer head"] = field(repr=False)
    errors: Float[Tensor, "layer head"] = field(repr=False)

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {"effects": (self.header.n_layers, None), "errors": tuple(self.effects.shape)}

    def best_heads(self, n: int) -> list[tuple[int, int]]:
        """The n best heads as (layer, head), best first. Raises `BadInput` when the model has fewer."""
        if not 1 <= n <= self.effects.numel():
            raise BadInput(f"n must be within 1..{self.effects.numel()}, the number of heads; got {n}")
        width = self.effects.shape[1]
        return [divmod(place, width) for place in self.effects.flatten().topk(n).indices.tolist()]

    @property
    def best(self) -> tuple[int, int]:
        """The best head, (layer, head)."""
        return self.best_heads(1)[0]

    @property
    def table(self) -> pd.DataFrame:
        """One row a head, best first."""
        layers, heads = self.effects.shape
        rows = {
            "layer": [layer for layer in range(layers) for _ in range(heads)],
            "head": list(range(heads)) * layers,
            "effect": self.effects.flatten().tolist(),
            "effect_se": self.errors.flatten().tolist(),
        }
        return pd.DataFrame(rows).sort_values("effect", ascending=False, ignore_index=True)

    def plot(self) -> Figure:
        """Layers x heads."""
        return heatmap(
            self.effects,
            range(self.effects.shape[1]),
            range(self.effects.shape[0]),
            x_title="head",
            y_title="layer",
            title=f"{self.header.kind.capitalize()} copying in {self.header.model_name}",
            unit="Δ log p (nats)" if self.header.metric == "log_probability" else "Δ p",
        )

    def check(self, model: Model) -> None:
        """Raises `Mismatch` when the model has other heads."""
        if self.effects.shape != (model.cfg.n_layers, model.cfg.n_heads):
            raise Mismatch(
                f"these effects were measured in {self.header.model_name}, which has other heads than {model.name}"
            )

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet); without an ending a folder that `load` reads."""
        return Result.save(self, path, **plot) if Path(path).suffix else Fitted.save(self, path)


@analysis
def copying_effects(
    model: Model,
    kind: Kind,
    n: int = 32,
    *,
    metric: Metric = "log_probability",
    words: Sequence[str] = ENTITIES,
    texts: Any = None,
    length: int = 30,
    seed: int = 0,
    quiet: bool = False,
) -> CopyingEffects:
    """Patch every head alone, on `n` prompts.

    Args:
        kind: "token" or "concept".
        words: entities for concept copying; words of fewer than two tokens are passed over.
        texts: draw the lists from the tokens of these texts; None: from the whole vocabulary without special tokens.
        length: tokens of a list, entity included.
        seed: of the lists and of the choice of words.

    Raises:
        UnknownName: another kind or metric. BadInput: no word of two tokens, lists shorter than an entity.
    """
    pairs = copying_pairs(model, kind, n, words=words, texts=texts, length=length, seed=seed)
    position = -2 if kind == "concept" else -1
    swept = sweep(
        model, pairs, "z", ("layer", "head"), metric=metric, direction="denoising", positions=position, quiet=quiet
    )
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    clean, corrupted = (float(side[metric].mean()) for side in (swept.clean, swept.corrupted))
    return CopyingEffects(
        CopyingHeader(model.name, model.cfg.d_model, model.cfg.n_layers, kind, metric, clean, corrupted, len(pairs)),
        swept.effect(metric).reshape(shape).float(),
        swept.effect_se(metric).reshape(shape).float(),
    )


def copying_pairs(
    model: Model,
    kind: Kind,
    n: int = 32,
    *,
    words: Sequence[str] = ENTITIES,
    texts: Any = None,
    length: int = 30,
    seed: int = 0,
) -> TokenPairs:
    """The prompts: clean `[a..., e] newline [a..., (e1)]`, corrupted with another list in front; the answer is e1 for
    "token" (the prompt ends before it) and e2 for "concept". Arguments and errors as `copying_effects`."""
    if kind not in get_args(Kind):
        raise UnknownName(f"kind is 'token' or 'concept', not {kind!r}")
    if model.tokenizer is None:
        raise BadInput(f"{model.name} has no tokenizer; the words and the newline need one")
    if n < 1:
        raise BadInput(f"n counts prompts, at least 1, not {n}")
    draw = torch.Generator().manual_seed(seed)
    pool = _pool(model, texts)
    pick = lambda count: pool[torch.randint(len(pool), (count,), generator=draw)].tolist()  # noqa: E731
    prefix = model.prefix
    newline = list(model.tokenizer("\n", add_special_tokens=False).input_ids)[-1:]
    entities = _entities(model, words, n, draw) if kind == "concept" else [pick(2 + i % 4) for i in range(n)]
    if length <= max(map(len, entities)):
        raise BadInput(f"length {length} leaves no room before an entity of {max(map(len, entities))} tokens")
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for entity in entities:
        before = pick(length - len(entity))
        again = [*newline, *before, *(entity[:1] if kind == "concept" else [])]
        sides[0].append([*prefix, *before, *entity, *again])
        sides[1].append([*prefix, *pick(length), *again])
    clean, corrupted = (TokenBatch.of(side, model.pad) for side in sides)
    right = torch.tensor([entity[1 if kind == "concept" else 0] for entity in entities])
    return TokenPairs(clean, corrupted, right, source=f"{kind} copying, {n} prompts, seed {seed}")


def _pool(model: Model, texts: Any) -> Tensor:
    if texts is not None:
        ids = torch.cat([torch.tensor(row) for row in model.tokens(texts).rows()])
        ids = ids[~torch.isin(ids, torch.tensor(sorted(model.special_ids)))]
        if not len(ids):
            raise BadInput("the texts hold nothing but special tokens; there is nothing to make lists of")
        return ids
    special = torch.zeros(model.cfg.d_vocab, dtype=torch.bool)
    special[[i for i in model.special_ids if i < model.cfg.d_vocab]] = True
    known = min(len(model.tokenizer), model.cfg.d_vocab)  # type: ignore[arg-type]  # padded embeddings have no text
    return (~special[:known]).nonzero()[:, 0]


def _entities(model: Model, words: Sequence[str], n: int, draw: torch.Generator) -> list[list[int]]:
    """n entities of two to five tokens, with the space before them, in random order; used again when they run out."""
    split = [model.continuation("the", f" {word.strip()}") or [] for word in words]
    split = [ids for ids in split if 2 <= len(ids) <= 5]
    if not split:
        raise BadInput(f"none of the {len(words)} words has two to five tokens for {model.name}; give longer ones")
    order = torch.randperm(len(split), generator=draw).tolist()
    return [split[order[i % len(order)]] for i in range(n)]
