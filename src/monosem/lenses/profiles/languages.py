"""Which language the layers think in: the probability of each language's words, layer by layer.

Source: Wendler et al., "Do Llamas Work in English?" (arXiv 2402.10588): prompts whose answer is known in several
languages; at each layer the lens's probability of the tokens that begin the answer in each of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ...models import Layers, Model, Positions
from ...models.running.moment import EditLike
from ...plots import Figure
from ...results import analysis
from ...statistics import standard_error
from ..lookup import LensLike, sight
from ..measures import entropy, log_mass
from ..states import states_of
from .profile import Profile

Words = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class LanguageProfile(Profile):
    """Probability of each language over layers.

    Attributes:
        probabilities: language -> `layer row`, the mass of its tokens, mean over the row's tokens.
        entropies: `layer row`, of the whole distribution, nats.
        tokens: language -> the token ids that stand for it, one list for all rows or one a row.
        dropped: tokens that begin words of several languages and so tell nothing; they were left out.
    """

    ranked_by: ClassVar[str | None] = "probability"

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
        table = self.layer_table("language", {"probability": self.probabilities, "share": self.shares})
        n, errors = len(self.probabilities), standard_error(self.entropies)
        return table.assign(entropy=self.entropies.mean(-1).tolist() * n, entropy_se=errors.tolist() * n)

    def plot(self, value: str = "probability") -> Figure:
        """One line a language over layers; `value` is "probability" or "share"."""
        if value not in ("probability", "share"):
            raise BadInput(f"value is 'probability' or 'share', not {value!r}")
        samples = self.probabilities if value == "probability" else self.shares
        return self.plot_lines(samples, value, self.title("words of languages"))


@analysis
def languages(
    model: Model,
    x: Any,
    words: Mapping[str, Words],
    *,
    site: str = "resid_post",
    layers: Layers = None,
    positions: Positions = "last",
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
        BadInput: fewer than two languages, a language that shares all of its tokens with others, another number of
            lists than prompts. Others as `read`.
    """
    if len(words) < 2:
        raise BadInput("give the words of at least two languages")
    through = sight(model, lens, site, layers)
    states = states_of(model, x, through.sites, positions, edits)
    states.check_rows()
    rows = len(states.tokens)
    lists = {name: _per_row(name, one, rows) for name, one in words.items()}
    per_row = any(len(by_row) > 1 for by_row in lists.values())
    sets, dropped = _distinct_tokens(model, lists, rows if per_row else 1)
    row_of = states.chosen.nonzero()[:, 0].cpu()
    measures: dict[Any, Any] = {"": entropy}
    for name, ids_by_row in sets.items():
        width = max(map(len, ids_by_row))
        ids = torch.tensor([ids + [-1] * (width - len(ids)) for ids in ids_by_row])
        measures[(name,)] = log_mass(ids[row_of] if per_row else ids[0])
    seen = states.read_out(through.translate, measures, quiet=quiet)
    mean = lambda values: states.spread(values).nanmean(-1)  # noqa: E731
    probabilities = {name: mean(seen.measures[(name,)].exp()) for name in sets}
    spelled = sorted({model.str_token(token) for token in dropped})
    return LanguageProfile(model, through.sites, through.lens, probabilities, mean(seen.measures[""]), sets, spelled)


def first_tokens(model: Model, word: str) -> list[int]:
    """The tokens that a text going on with this word may begin with, each with and without a space before it: the first
    token of the tokenizer's own split, and every token whose text is a beginning of the word (of two characters or
    more, for single letters begin words of every language) or all of it.

    Raises:
        BadInput: an empty word, a model without a tokenizer.
    """
    bare = word.strip()
    if not bare or model.tokenizer is None:
        raise BadInput(f"no token begins {word!r}" if not bare else f"{model.name} has no tokenizer")
    tokens: dict[int, None] = {}
    for text in (f" {bare}", bare):
        lead = len(text) - len(bare)
        candidates = (model.shown_as(text[: lead + n]) for n in range(min(2, len(bare)), len(bare) + 1))
        tokens |= dict.fromkeys(token for token in candidates if token is not None)
        first = model.continuation("a" if lead else "\n", text) or model.bare(text)
        if len(model.str_token(first[0]).strip()) >= min(2, len(bare)):
            tokens[first[0]] = None
    return list(tokens)


def _per_row(name: str, words: Words, rows: int) -> list[list[str]]:
    """The words of each prompt; a single list where all prompts share it."""
    if isinstance(words, str):
        raise BadInput(f"the words of {name} are a single string; give a list of words")
    items = list(words)
    if not items or all(isinstance(item, str) for item in items):
        return [[str(item) for item in items]]
    if len(items) != rows:
        raise BadInput(f"{name} has {len(items)} lists of words for {rows} prompts; give one for each, or one for all")
    return [[item] if isinstance(item, str) else list(item) for item in items]


def _distinct_tokens(
    model: Model, lists: dict[str, list[list[str]]], rows: int
) -> tuple[dict[str, list[list[int]]], set[int]]:
    """Tokens that begin words of one language only, row by row; and the tokens that begin words of several."""
    sets: dict[str, list[list[int]]] = {name: [] for name in lists}
    dropped: set[int] = set()
    for row in range(rows):
        begin = {}
        for name, by_row in lists.items():
            words = by_row[row if len(by_row) > 1 else 0]
            begin[name] = dict.fromkeys(token for word in words for token in first_tokens(model, word))
        for name, ids in begin.items():
            others = {token for other, tokens in begin.items() if other != name for token in tokens}
            distinct = [token for token in ids if token not in others]
            dropped |= set(ids) & others
            if not distinct:
                told = f" in prompt {row}" if rows > 1 else ""
                raise BadInput(
                    f"{name} has no token of its own{told}: its words begin like words of other languages; add words"
                )
            sets[name].append(distinct)
    return sets, dropped
