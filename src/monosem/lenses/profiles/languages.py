"""Which language the layers think in: the probability of each language's words, layer by layer.

Source: Wendler et al., "Do Llamas Work in English?" (arXiv 2402.10588): prompts whose answer is known in several
languages; at each layer the lens's probability of the tokens that begin the answer in each of them.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ...files import write_result
from ...models import Model, Positions, Site
from ...models.running.moment import EditLike
from ...statistics import standard_error
from ..figures import as_numbers, profile_figure
from ..states import capture, entropy, log_mass, sites_at, stream
from ..tuned.lens import LensLike, translate_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Words = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class LanguageProfile:
    """Probability of each language over layers.

    Attributes:
        probabilities: language -> `layer row`, the mass of its tokens, mean over the row's tokens.
        entropies: `layer row`, of the whole distribution, nats.
        tokens: language -> the token ids that stand for it, one list for all rows or one a row.
        dropped: tokens that begin words of several languages and so tell nothing; they were left out.
    """

    model: Model = field(repr=False)
    sites: list[Site]
    probabilities: dict[str, Float[Tensor, "layer row"]] = field(repr=False)
    entropies: Float[Tensor, "layer row"] = field(repr=False)
    tokens: dict[str, list[list[int]]] = field(repr=False)
    dropped: list[str] = field(repr=False)

    @property
    def shares(self) -> dict[str, Float[Tensor, "layer row"]]:
        """Of the probability that all languages have together; they sum to 1."""
        total = torch.stack(list(self.probabilities.values())).sum(0)
        return {name: p / total for name, p in self.probabilities.items()}

    @property
    def table(self) -> pd.DataFrame:
        """One row a layer and language: mean probability and share, with standard errors over prompts."""
        rows = []
        shares = self.shares
        for name, p in self.probabilities.items():
            errors = standard_error(p), standard_error(shares[name])
            rows += [
                {
                    "language": name,
                    "site": str(site),
                    "layer": site.layer,
                    "probability": float(p[i].mean()),
                    "probability_se": float(errors[0][i]),
                    "share": float(shares[name][i].mean()),
                    "share_se": float(errors[1][i]),
                    "entropy": float(self.entropies[i].mean()),
                }
                for i, site in enumerate(self.sites)
            ]
        return pd.DataFrame(rows)

    def plot(self, value: str = "probability") -> "Figure":
        """One line a language over layers; `value` is "probability" or "share"."""
        if value not in ("probability", "share"):
            raise BadInput(f"value is 'probability' or 'share', not {value!r}")
        held = self.probabilities if value == "probability" else self.shares
        curves = {
            name: (as_numbers(p.mean(-1)), as_numbers(standard_error(p)) if p.shape[1] > 1 else None)
            for name, p in held.items()
        }
        return profile_figure(curves, self.sites, value, f"languages inside {self.model.name}")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet)."""
        return write_result(path, self.table, self.plot)


def languages(
    model: Model,
    prompts: Any,
    words: Mapping[str, Words],
    site: str = "resid_post",
    layers: Sequence[int] | int | None = None,
    positions: Positions | None = "last",
    lens: LensLike = None,
    edits: EditLike | Iterable[EditLike] = (),
    quiet: bool = False,
) -> LanguageProfile:
    """The probability that each layer gives to the words of each language.

    Args:
        words: language -> words. One list of words serves all prompts; a list of lists has one list for each prompt,
            its answer in that language (with synonyms). A word stands for every token that may begin it, with and
            without a space before it (`first_tokens`).

    Raises:
        BadInput: fewer than two languages, a language none of whose tokens is its own, as many lists as there are not
            prompts. Others as `logit`.
    """
    if len(words) < 2:
        raise BadInput("give the words of at least two languages")
    sites, translate = sites_at(model, site, layers), translate_of(model, lens)
    states = capture(model, prompts, sites, positions, edits)
    states.check_rows()
    rows = len(states.tokens)
    lists = {name: _per_row(name, given, rows) for name, given in words.items()}
    per_row = any(len(given) > 1 for given in lists.values())
    sets, dropped = _own_tokens(model, lists, rows if per_row else 1)
    row_of = states.chosen.nonzero()[:, 0].cpu()
    measures: dict[Any, Any] = {"": entropy}
    for name, found in sets.items():
        width = max(map(len, found))
        table = torch.tensor([ids + [-1] * (width - len(ids)) for ids in found])
        measures[(name,)] = log_mass(table[row_of] if per_row else table[0])
    seen = stream(states.lens(translate), states.prediction, len(states), model.cfg.d_vocab, measures, quiet=quiet)
    mean = lambda values: states.spread(values).nanmean(-1)  # noqa: E731
    probabilities = {name: mean(seen.measures[(name,)].exp()) for name in sets}
    spelled = sorted({model.str_token(token) for token in dropped})
    return LanguageProfile(model, sites, probabilities, mean(seen.measures[""]), sets, spelled)


def first_tokens(model: Model, word: str) -> list[int]:
    """The tokens that a text going on with this word may begin with: the first token of the tokenizer's own split,
    and every token whose text is a beginning of the word of two characters or more, or all of it; each with and without
    a space before it. Single letters begin words of every language.

    Raises:
        BadInput: an empty word, a model without a tokenizer.
    """
    bare = word.strip()
    if not bare or model.tokenizer is None:
        raise BadInput(f"no token begins {word!r}" if not bare else f"{model.name} has no tokenizer")
    found: dict[int, None] = {}
    for text in (f" {bare}", bare):
        split = model.tokenizer(text, add_special_tokens=False).input_ids
        lead = len(text) - len(bare)
        candidates = [text[: lead + n] for n in range(min(2, len(bare)), len(bare) + 1)]
        for ids in (model.tokenizer(part, add_special_tokens=False).input_ids for part in candidates):
            if len(ids) == 1:
                found[int(ids[0])] = None
        if len(model.str_token(int(split[0])).strip()) >= min(2, len(bare)):
            found[int(split[0])] = None
    return list(found)


def _per_row(name: str, given: Words, rows: int) -> list[list[str]]:
    if isinstance(given, str):
        raise BadInput(f"the words of {name} are a single string; give a list of words")
    items = list(given)
    if not items or all(isinstance(item, str) for item in items):
        return [[str(item) for item in items]]
    if len(items) != rows:
        raise BadInput(f"{name} has {len(items)} lists of words for {rows} prompts; give one for each, or one for all")
    return [[item] if isinstance(item, str) else list(item) for item in items]


def _own_tokens(
    model: Model, lists: dict[str, list[list[str]]], rows: int
) -> tuple[dict[str, list[list[int]]], set[int]]:
    """Tokens that begin words of one language only, row by row."""
    sets: dict[str, list[list[int]]] = {name: [] for name in lists}
    dropped: set[int] = set()
    for row in range(rows):
        found = {}
        for name, given in lists.items():
            chosen = given[row if len(given) > 1 else 0]
            found[name] = dict.fromkeys(token for word in chosen for token in first_tokens(model, word))
        for name, ids in found.items():
            others = {token for other, theirs in found.items() if other != name for token in theirs}
            own = [token for token in ids if token not in others]
            dropped |= set(ids) & others
            if not own:
                told = f" of prompt {row}" if rows > 1 else ""
                raise BadInput(
                    f"{name} has no token of its own{told}: its words begin as those of the others; add words"
                )
            sets[name].append(own)
    return sets, dropped
