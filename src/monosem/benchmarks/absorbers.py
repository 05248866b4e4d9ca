"""Which latents absorb first letters: the words of the absorption benchmark, each with the latents behind it."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch

from ..dictionaries import Dictionary
from ..errors import BadInput
from ..models import Model
from ..results import Result, analysis
from .absorbing import absorbed, parts, standing_in
from .absorption import AbsorptionConfig, enough, judged_rows, main_latents, probes_of, spell, split_rows


@dataclass(frozen=True)
class Absorbers(Result):
    """`table`, one row a judged word.

    Columns: letter; word; fraction and full (`absorbing.absorbed`); main, the share of the word's projection on the
    letter's probe that main latents give, and taken, the share that absorbers do; latents, the absorbers, with shares,
    what each gives (none where fraction is 0).

    Attributes:
        letters: one row a letter with a probe: letter, f1 (of the probe), main (its latents), words (judged), fraction,
            full (means over them).
        notes: what the model spells, in words.
    """

    rows: pd.DataFrame = field(repr=False)
    letters: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()
    config: Any = field(default_factory=dict, repr=False)
    ranked_by: ClassVar[str | None] = "fraction"

    @property
    def table(self) -> pd.DataFrame:
        return self.rows

    @property
    def latents(self) -> pd.DataFrame:
        """One row an absorbing latent: latent, letter, words (that it absorbs), share (mean of what it gives)."""
        columns = (self.rows[name].tolist() for name in ("letter", "word", "latents", "shares"))
        long = [
            (latent, letter, word, share)
            for letter, word, latents, shares in zip(*columns)
            for latent, share in zip(latents, shares)
        ]
        table = pd.DataFrame(long, columns=["latent", "letter", "word", "share"])
        groups = table.groupby(["latent", "letter"], as_index=False)
        found = groups.agg(words=("word", list), share=("share", "mean"))
        return found.sort_values("words", key=lambda words: -words.str.len(), kind="stable", ignore_index=True)


@analysis
@torch.no_grad()
def absorbers(
    model: Model, dictionary: Dictionary, config: AbsorptionConfig | None = None, *, quiet: bool = False
) -> Absorbers:
    """The words, probes and rules of `absorption`, with the latents: a letter's main ones, and those that stand in for
    them at a word.

    Raises:
        BadInput: a transcoder, a tokenizer with hardly any word of one token, or a model or site without a letter to
            judge. BadFile: no such file of words. Mismatch: a dictionary of another model.
    """
    config = config or AbsorptionConfig.parse({})
    dictionary.check(model)
    if dictionary.transcoder:
        raise BadInput("absorption needs a dictionary that reads and writes at one site, not a transcoder")
    asked = spell(model, dictionary, config, quiet)
    spelled = enough(asked)
    first = [word[0] for word in spelled.words]
    said = f"{model.name} says the first letter of {int(asked.knows.sum())} of {len(asked.words)} words"
    if len(set(first)) < 2:
        raise BadInput(f"{said}: too few to judge absorption by")
    split = split_rows(first, config.seed)
    good = [one for one in probes_of(spelled.x, first, split) if one.f1 > config.least_f1]
    if not good:
        raise BadInput(f"no probe finds a first letter at {dictionary.site} (F1 above {config.least_f1:g})")
    acts = dictionary.encode(spelled.x.to(dictionary.W_enc.device)).dense().float().cpu()
    W_dec = dictionary.W_dec.float().cpu()
    rows: list[tuple[Any, ...]] = []
    letters: list[tuple[Any, ...]] = []
    for one in good:
        is_letter = torch.tensor([letter == one.letter for letter in first])
        main = main_latents(acts, is_letter, split, config)
        rest, hits = split.train[~is_letter[split.train]], judged_rows(one, spelled, split)
        means = (spelled.x[rest].mean(0), acts[rest].mean(0))
        given = parts(spelled.x[hits], acts[hits], W_dec, one.direction, rest=means)
        found = absorbed(given, main)
        size, number = standing_in(given, main)
        for at, word in enumerate(hits.tolist()):
            whole, fraction = float(given.projection[at]), float(found.fraction[at])
            kept = [(int(j), float(a) / whole) for j, a in zip(number[at], size[at]) if a > 0 and fraction > 0]
            mains, shares = float(given.given[at, main].sum()) / whole, [share for _, share in kept]
            word_row = (one.letter, spelled.words[word], fraction, bool(found.full[at]), mains, sum(shares))
            rows.append((*word_row, [j for j, _ in kept], shares))
        judged = (len(hits), float(found.fraction.mean()), float(found.full.double().mean()))
        letters.append((one.letter, one.f1, main, *judged))
    columns = ["letter", "word", "fraction", "full", "main", "taken", "latents", "shares"]
    table = pd.DataFrame(rows, columns=columns).sort_values("fraction", ascending=False, kind="stable")
    about = pd.DataFrame(letters, columns=["letter", "f1", "main", "words", "fraction", "full"])
    notes = (f"{said}; {len(table)} words of {len(good)} letters are judged.",)
    return Absorbers(table.reset_index(drop=True), about, notes)
