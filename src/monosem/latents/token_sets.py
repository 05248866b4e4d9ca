"""Sets of tokens by their text, and what is over-represented in them: tokens that latents fire on, or promote.

After Bloom & Lin (2024, Understanding SAE features with the logit lens), but signed, with p-values and a false
discovery rate instead of a running sum.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..dictionaries import Dictionary
from ..dictionaries.codes import latent_ids
from ..errors import BadInput
from ..models import Model
from ..results import Tabled, analysis
from ..statistics import benjamini_hochberg
from .effects import logit_effects
from .spelling import token_text
from .tallies import Firings, starts

SMALLEST = 5  # tokens in a set that is tested
FEWEST = 30  # latents whose effects on a set have a spread

_WORDS = {
    "weekdays": "monday tuesday wednesday thursday friday saturday sunday",
    "months": "january february march april may june july august september october november december",
    "colours": "red green blue yellow orange purple pink brown black white grey gray violet crimson golden silver",
    "numbers in words": "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty "
    "hundred thousand million billion first second third",
    "pronouns": "i you he she it we they me him her us them my your his its our their mine yours myself himself",
    "question words": "who what when where why how which whose whom",
    "conjunctions": "and or but nor so yet because although while if unless since though whereas",
    "prepositions": "in on at by for with from to of about over under between through during before after above below",
    "auxiliary verbs": "is are was were be been being am have has had do does did will would shall should can could "
    "may might must",
    "negations": "not no never none nothing nobody nor neither cannot n't without",
    "positive words": "good great excellent happy love best beautiful wonderful nice amazing perfect joy kind better",
    "negative words": "bad terrible awful sad hate worst ugly horrible nasty poor wrong pain cruel worse",
    "emotions": "anger fear joy sadness disgust surprise love hate shame guilt pride envy hope grief angry afraid",
    "family": "mother father sister brother son daughter wife husband parent child uncle aunt cousin family",
    "body": "head hand eye heart arm leg foot face mouth ear nose hair skin blood bone brain finger",
    "animals": "dog cat horse cow bird fish lion tiger bear wolf sheep pig mouse rabbit snake monkey",
    "countries": "france germany italy spain china japan india russia canada brazil mexico england australia egypt "
    "america greece turkey iran israel poland sweden norway",
    "languages": "english french german spanish italian chinese japanese russian arabic latin greek portuguese hindi",
    "first names": "john mary james robert michael david william richard thomas charles anna emma sarah peter paul "
    "george henry alice jane jack",
    "code words": "def class return import from function var let const public static void int float string if else for "
    "while try except print null none true false self",
}


def _listed(words: str) -> Callable[[str], bool]:
    held = frozenset(words.split())
    return lambda text: text.strip().lower() in held


def _begins(letter: str) -> Callable[[str], bool]:
    return lambda text: text.strip(" ").lower()[:1] == letter


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text.strip(" ")) is not None


PREDICATES: dict[str, Callable[[str], bool]] = {
    **{f"starts with {letter}": _begins(letter) for letter in "abcdefghijklmnopqrstuvwxyz"},
    "space before": lambda text: text[:1] == " " and bool(text.strip()),
    "letters without space": lambda text: text.isalpha(),
    "capitalised": lambda text: (t := text.strip(" "))[:1].isupper() and t[1:].islower(),
    "all capitals": lambda text: (t := text.strip(" ")).isupper() and len(t) > 1,
    "digits": _matches(r"[0-9]+"),
    **{f"{n} digits": _matches(rf"[0-9]{{{n}}}") for n in (2, 3, 4)},
    "years and decades": _matches(r"(1[5-9]|20)[0-9]{2}(s)?|[0-9]0s"),
    "punctuation": _matches(r"[!-/:-@\[-`{-~‘’“”–—…]+"),
    "brackets": _matches(r"[()\[\]{}<>]+"),
    "quotation marks": _matches(r"[\"'‘’“”«»`]+"),
    "line breaks": lambda text: "\n" in text,
    "blank": lambda text: bool(text) and not text.strip(),
    "outside ASCII": lambda text: not text.isascii(),
    **{f"{n} characters": _matches(f"[^ ]{{{n}}}") for n in (1, 2, 3, 4, 5)},
    **{name: _listed(words) for name, words in _WORDS.items()},
}


@dataclass(frozen=True, eq=False)
class TokenSets:
    """`members[i, t]` says whether token t is in set `names[i]`. Special tokens are in none."""

    names: tuple[str, ...]
    members: Bool[np.ndarray, "n vocab"]

    @classmethod
    @lru_cache(maxsize=2)
    def of(cls, model: Model) -> "TokenSets":
        """The sets of `PREDICATES` in a model's vocabulary that have members."""
        members = np.zeros((len(PREDICATES), model.cfg.d_vocab), dtype=bool)
        if model.tokenizer is not None:
            special = set(model.special_ids)
            for token in range(min(model.cfg.d_vocab, len(model.tokenizer))):
                text = "" if token in special else token_text(model, token)
                if isinstance(text, str) and text:
                    members[:, token] = [holds(text) for holds in PREDICATES.values()]
        kept = np.flatnonzero(members.any(1))
        names = [*PREDICATES]
        return cls(tuple(names[i] for i in kept.tolist()), members[kept])


class SetTallies:
    """How often each latent fires on a token of each set; exact, however large the corpus is."""

    def __init__(self, width: int, sets: TokenSets):
        self.sets = sets
        self.count = np.zeros((width, len(sets.names)), dtype=np.int64)
        self._members = torch.from_numpy(sets.members.T.astype(np.float32))  # [vocab, n]

    def add(self, f: Firings) -> None:
        begins = np.flatnonzero(starts(f.latent))
        if len(begins):
            bags = torch.nn.functional.embedding_bag(
                torch.from_numpy(f.token), self._members, torch.from_numpy(begins), mode="sum"
            )
            self.count[f.latent[begins]] += bags.numpy().astype(np.int64)

    def state(self) -> dict[str, np.ndarray]:
        return {"set_count": self.count}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.count = state["set_count"]


def enriched(names: list[str], hits: Int[np.ndarray, "n"], active: int, inside: list[int], tokens: int) -> pd.DataFrame:
    """Which sets hold more, or less, of a latent's active tokens than of all counted tokens.

    Columns: set; hits (active tokens in it); share (of active tokens); base (share of all counted tokens); lift =
    share / base; p (hypergeometric, two-sided: twice the smaller tail); q (Benjamini & Hochberg 1995, over the sets).
    The test takes tokens as independent; tokens of one text are not, so p is too small, and the order is what counts.
    """
    rows = []
    for name, hit, whole in zip(names, hits.tolist(), inside):
        if whole and active:
            share, base = hit / active, whole / tokens
            rows.append((name, hit, share, base, share / base, hypergeometric_p(hit, active, whole, tokens)))
    table = pd.DataFrame(rows, columns=["set", "hits", "share", "base", "lift", "p"])
    table["q"] = benjamini_hochberg(table["p"].to_numpy(dtype=float))
    return table.sort_values(["q", "p", "lift"], ascending=[True, True, False], kind="stable", ignore_index=True)


def hypergeometric_p(hits: int, drawn: int, inside: int, total: int) -> float:
    """Two-sided p (twice the smaller tail, at most 1) of so many hits among `drawn` of `total` things, `inside` of
    which would be hits."""
    low, high = max(0, drawn + inside - total), min(drawn, inside)
    k = torch.arange(low, high + 1, dtype=torch.float64)

    def choose(n: Tensor | float, of: Tensor | float) -> Tensor:
        n, of = torch.as_tensor(n, dtype=torch.float64), torch.as_tensor(of, dtype=torch.float64)
        return torch.lgamma(n + 1) - torch.lgamma(of + 1) - torch.lgamma(n - of + 1)

    mass = (choose(inside, k) + choose(total - inside, drawn - k) - choose(total, drawn)).exp()
    at = hits - low
    return min(1.0, 2 * min(float(mass[: at + 1].sum()), float(mass[at:].sum())))


@dataclass(frozen=True)
class SetEffects(Tabled):
    """`table`, one row a latent and set, a latent's strongest first.

    Columns: latent; set; size; effect = 2 AUC - 1 (Mann-Whitney: how often a token of the set has a larger direct
    effect than another token, less how often a smaller one; -1 to 1); p (two-sided, normal approximation, ties left
    alone); q (Benjamini & Hochberg 1995, over the latent's sets).
    """

    ranked_by: ClassVar[str | None] = "effect"
    either_way: ClassVar[bool] = True


@analysis
@torch.no_grad()
def set_effects(model: Model, dictionary: Dictionary, latents: Any = None) -> SetEffects:
    """Which sets of tokens the decoder rows of latents promote or suppress as a whole, by their direct effects.

    Raises:
        BadInput: the dictionary has no direct path to the logits, or the model no tokenizer.
        UnknownName: no such latent.
    """
    sets = large_sets(model)
    if not sets.names:
        raise BadInput(f"{model.name} has no tokens with text, so there are no sets of tokens")
    ids = torch.arange(dictionary.width) if latents is None else latent_ids(latents, dictionary.width)
    parts, done = [], 0
    for effects in logit_effects(model, dictionary, ids):
        for effect, p in zip(*sets.effects(effects.cpu())):
            parts.append(_effects_of(int(ids[done]), sets, effect, p))
            done += 1
    return SetEffects(pd.concat(parts, ignore_index=True), {"vocabulary": model.cfg.d_vocab})


def _effects_of(
    latent: int, sets: "LargeSets", effect: Float[Tensor, "sets"], p: Float[Tensor, "sets"]
) -> pd.DataFrame:
    table = pd.DataFrame({"latent": latent, "set": sets.names, "size": sets.sizes.long(), "effect": effect, "p": p})
    table["q"] = benjamini_hochberg(p.numpy())
    return table.sort_values("effect", key=lambda values: -values.abs(), kind="stable", ignore_index=True)


@dataclass(frozen=True, eq=False)
class LargeSets:
    """The sets with enough tokens to be tested."""

    names: tuple[str, ...]
    members: Float[Tensor, "n vocab"]

    @property
    def sizes(self) -> Float[Tensor, "n"]:
        return self.members.sum(1)

    def effects(
        self, effects: Float[Tensor, "latents vocab"]
    ) -> tuple[Float[Tensor, "latents n"], Float[Tensor, "latents n"]]:
        """(2 AUC - 1, p) of each set, as `SetEffects` says."""
        vocabulary, size = effects.shape[1], self.sizes
        ranks = torch.empty(effects.shape, dtype=torch.float64)
        ranks.scatter_(1, effects.argsort(1), torch.arange(1, vocabulary + 1).double().expand_as(ranks))
        u = ranks @ self.members.T - size * (size + 1) / 2
        pairs = size * (vocabulary - size)
        z = (u - pairs / 2) / (pairs * (vocabulary + 1) / 12).sqrt()
        return 2 * u / pairs - 1, torch.special.erfc(z.abs() / 2**0.5)

    def strongest(
        self, effect: Float[Tensor, "latents n"], p: Float[Tensor, "latents n"]
    ) -> list[tuple[str, float, float, float]]:
        """Of each latent: the set that it moves most beside what other latents do to that set, the effect, its q over
        the sets, and how many standard deviations it is from the mean over latents.

        Small sets of frequent tokens (digits) have large effects in most latents, and would be everybody's strongest.
        Fewer than 30 latents have no such deviations (NaN): the set with the largest effect either way is taken.
        """
        few = len(effect) < FEWEST
        unusual = (effect - effect.mean(0)) / (1.0 if few else effect.std(0).clamp_min(1e-12))
        at = (effect if few else unusual).abs().argmax(1, keepdim=True)
        q = [float(benjamini_hochberg(row.numpy())[i]) for row, (i,) in zip(p, at.tolist())]
        away = [float("nan")] * len(q) if few else unusual.gather(1, at)[:, 0].tolist()
        return list(zip([self.names[i] for (i,) in at.tolist()], effect.gather(1, at)[:, 0].tolist(), q, away))


def large_sets(model: Model) -> LargeSets:
    """Sets of a model that are large enough; none for one without a tokenizer."""
    sets = TokenSets.of(model)
    kept = sets.members.sum(1) >= SMALLEST
    names = tuple(name for name, has in zip(sets.names, kept) if has)
    return LargeSets(names, torch.from_numpy(sets.members[kept]).double())
