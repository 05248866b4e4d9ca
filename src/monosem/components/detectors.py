"""Heads by what they attend to.

`head_scores` gives the standard scores on [BOS, r, r], r random tokens of length n (Olsson et al. 2022):

| score | mean attention of a token at t | over |
|---|---|---|
| previous | to t - 1 | all t |
| duplicate | to t - n, the same token one repeat before | the second repeat |
| induction | to t - n + 1, what followed it there | the second repeat |
| first | to the first token (a sink) | all t |

`detect_head` compares the patterns on a given text with a pattern that is given, as TransformerLens's function does.
Scores are taken inside the attention: no pattern is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput, UnknownName, check_name
from ..models import Model, Moment, Site, TokenBatch
from ..models.running.run import refuse_rows
from ..plots import Figure, heatmap
from ..results import Result, analysis

SCORES = ("previous", "duplicate", "induction", "first")


@dataclass(frozen=True, eq=False)
class HeadScores(Result):
    """Scores of all heads, from 0 (never) to 1 (all of the attention, always).

    Attributes:
        values: score -> `layer head`, mean over the sequences; NaN in layers without attention.
        n: length of the repeated part. rows: number of sequences.
    """

    ranked_by: ClassVar[str] = "induction"

    values: dict[str, Float[Tensor, "layer head"]]
    n: int
    rows: int
    model: str

    def __repr__(self) -> str:
        layers, heads = self["induction"].shape
        return f"HeadScores({layers} x {heads} heads of {self.model}, {self.rows} sequences of 2 x {self.n} tokens)"

    def __getitem__(self, score: str) -> Float[Tensor, "layer head"]:
        check_name("score", score, self.values)
        return self.values[score]

    @property
    def table(self) -> pd.DataFrame:
        """A row for each head that there is: layer, head and its scores."""
        there = ~self["induction"].isnan()
        places = there.nonzero().tolist()
        columns = {name: value[there].tolist() for name, value in self.values.items()}
        names = [f"L{layer}H{head}" for layer, head in places]
        return pd.DataFrame(
            {"head": names, "layer": [p[0] for p in places], "index": [p[1] for p in places], **columns}
        )

    def plot(self, score: str = "induction") -> Figure:
        """Layers x heads."""
        value = self[score]
        title = f"{score} score of heads in {self.model}"
        labels = range(value.shape[1]), range(value.shape[0])
        return heatmap(
            value,
            *labels,
            x_title="head",
            y_title="layer",
            title=title,
            unit="attention",
            diverging=False,
            limits=(0, 1),
        )


@analysis
def head_scores(model: Model, *, n: int = 25, rows: int = 8, seed: int = 0) -> HeadScores:
    """Previous-token, duplicate-token, induction and first-token scores of all heads.

    Args:
        n: length of the random part that is repeated; keep 2 n below a sliding window.
        rows: number of sequences.

    Raises:
        BadInput: 2 n + 1 tokens are longer than the context.
    """
    if n < 2 or rows < 1 or 2 * n + 1 > model.cfg.n_ctx:
        raise BadInput(f"n must be from 2 to {(model.cfg.n_ctx - 1) // 2} ({model.name}'s context), rows at least 1")
    generator = torch.Generator().manual_seed(seed)
    special = model.special_ids
    plain = torch.tensor([i for i in range(model.cfg.d_vocab) if i not in special])
    drawn = plain[torch.randint(len(plain), (rows, n), generator=generator)]
    ids = torch.cat([torch.full((rows, 1), model.bos), drawn, drawn], 1)

    def measure(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "score head"]:
        later = pattern[:, :, n + 1 :]  # queries of the second repeat; key t - n of the first of them is 1
        diagonals = [pattern.diagonal(-1, 2, 3), later.diagonal(1, 2, 3), later.diagonal(2, 2, 3), pattern[:, :, 1:, 0]]
        return torch.stack([diagonal.mean((0, 2)) for diagonal in diagonals])

    found = _watched(model, ids, measure)
    return HeadScores({name: found[:, i] for i, name in enumerate(SCORES)}, n, rows, model.name)


# ---------------------------------------------------------------------- on a text
def previous_token_pattern(ids: Int[Tensor, "pos"]) -> Float[Tensor, "query key"]:
    """1 at the token before."""
    return torch.ones(len(ids) - 1).diag(-1)


def duplicate_token_pattern(ids: Int[Tensor, "pos"]) -> Float[Tensor, "query key"]:
    """1 at every earlier token that is the same."""
    return (ids[:, None] == ids[None]).float().tril(-1)


def induction_pattern(ids: Int[Tensor, "pos"]) -> Float[Tensor, "query key"]:
    """1 at every token that followed an earlier token which is the same."""
    return duplicate_token_pattern(ids).roll(1, dims=1).index_fill(1, torch.tensor([0]), 0.0).tril()


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "previous_token_head": previous_token_pattern,
    "duplicate_token_head": duplicate_token_pattern,
    "induction_head": induction_pattern,
}


def detect_head(
    model: Model,
    text: Any,
    detection_pattern: str | Float[Tensor, "query key"] = "induction_head",
    heads: Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: Literal["mul", "abs"] = "mul",
) -> Float[Tensor, "layer head"]:
    """How well each head's attention on a text follows a pattern, mean over the texts.

    Args:
        text: a prompt or several, as for `Model.run`.
        detection_pattern: "previous_token_head", "duplicate_token_head", "induction_head", or a lower triangle.
        heads: (layer, head) pairs to score, or layer -> heads; the others are -1.
        exclude_bos, exclude_current_token: leave out attention to the first token, or of tokens to themselves.
        error_measure: "mul": the share of the attention that is on the pattern, ΣAD/ΣA. "abs": 1 - T·mean|A - D|.

    Raises:
        UnknownName: no such pattern, measure or head. BadInput: a pattern of another size than the text, or with
            entries above the diagonal.
    """
    if error_measure not in ("mul", "abs"):
        raise UnknownName(f"error_measure is 'mul' or 'abs', not {error_measure!r}")
    if isinstance(detection_pattern, str):
        check_name("detection pattern", detection_pattern, PATTERNS)
    layers, width = model.cfg.n_layers, model.cfg.n_heads
    if isinstance(heads, Mapping):
        heads = [(layer, head) for layer, several in heads.items() for head in several]
    for layer, head in heads or ():
        if not (0 <= layer < layers and 0 <= head < width):
            raise UnknownName(f"no head {(layer, head)}: there are layers 0 to {layers - 1} of heads 0 to {width - 1}")
    totals = []
    for row in model.tokens(text).rows():
        ids = torch.tensor(row)
        wanted = PATTERNS[detection_pattern](ids) if isinstance(detection_pattern, str) else detection_pattern.float()
        if wanted.shape != (len(ids), len(ids)) or bool(wanted.triu(1).any()):
            raise BadInput(f"a detection pattern of a text of {len(ids)} tokens is a lower triangle of that size")
        measure = partial(
            _similarity, wanted=wanted, no_bos=exclude_bos, no_current=exclude_current_token, measure=error_measure
        )
        totals.append(_watched(model, ids[None], measure))
    found = torch.stack(totals).mean(0)
    if heads is None:
        return found
    scores = torch.full_like(found, -1.0)
    for layer, head in heads:
        scores[layer, head] = found[layer, head]
    return scores


def _similarity(
    patterns: Float[Tensor, "batch head query key"], wanted: Tensor, no_bos: bool, no_current: bool, measure: str
) -> Float[Tensor, "head"]:
    pattern = patterns[0]
    wanted = wanted.to(pattern.device)
    kept = torch.ones_like(wanted)
    if no_bos:
        kept[:, 0] = 0
    if no_current:
        kept.fill_diagonal_(0)
    if measure == "mul":
        attended = pattern * kept
        return (attended * wanted).sum((1, 2)) / attended.sum((1, 2))
    return 1 - ((pattern - wanted).abs() * kept).mean((1, 2)) * len(wanted)


@dataclass(eq=False)
class _Watch:
    """An edit that changes nothing and notes what `measure` says of the activation."""

    site: Site
    measure: Callable[[Tensor], Tensor]
    found: Tensor | None = None

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        self.found = self.measure(x.float()).cpu()
        return x, True


def _watched(
    model: Model, ids: Int[Tensor, "batch pos"], measure: Callable[[Tensor], Tensor]
) -> Float[Tensor, "layer ..."]:
    """Layers without attention are NaN."""
    refuse_rows(model, "a head detector")
    layers = model.layers_with("pattern")
    watches = [_Watch(Site("pattern", layer), measure) for layer in layers]
    model.run(TokenBatch.whole(ids), watches[-1].site, edits=watches, logits=False, positions=-1)
    found = torch.stack([watch.found for watch in watches if watch.found is not None])
    whole = found.new_full((model.cfg.n_layers, *found.shape[1:]), torch.nan)
    whole[layers] = found
    return whole
