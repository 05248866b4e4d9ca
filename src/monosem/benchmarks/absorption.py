"""First-letter absorption: are the latents of a letter silent where latents of single words take their place?"""

import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadFile, BadInput
from ..models import Model
from ..progress import Meter, say
from ..statistics import PERCENTILES, Interval, bootstrap_mean, wilson
from .absorbing import Absorbed, absorbed, parts, rates, split_size
from .baselines import arms
from .labelled import SETS
from .probes import Probe, f1, logistic
from .task import ALL, Score, Scores, TaskConfig, check_one_site, mean_interval, resampled

SHARES = (0.5, 0.25)  # of the words: those that probes are fitted on, those that models are chosen on; the rest is test
FEWEST = 8  # words of a letter that the model spells, below which the letter is left out
SPELLS = 0.5  # share of words whose letter a model says, below which the notes say that it hardly spells
STRENGTHS = (1.0, 0.1, 0.01, 0.001)  # of the probe's regularisation; ties go to the first
QUESTION = " has the first letter:"  # after " word"; the answer is " W", in a line of its own
VARIANTS = {"monosem": "", "saebench": " (sae-bench)"}  # of `absorbing` -> how its measures end
NOTHING = Interval(float("nan"), float("nan"), float("nan"))
INTERVAL = "95 %, the test words of each letter drawn again; Wilson's of a letter's full absorption"


class AbsorptionConfig(TaskConfig):
    words: str | None = Field(default=None, description="file with a word a line; default: the bundled list")
    words_per_letter: int = Field(default=120, ge=FEWEST, description="words of each letter, drawn by the seed")
    examples: int = Field(default=4, ge=1, description="words with their letters that a prompt begins with")
    questions: int = Field(default=12, ge=1, description="words that a prompt then asks for, each with its answer")
    batch_size: int = Field(8, ge=1, description="prompts a forward pass; decides no number beyond rounding")
    most_latents: int = Field(default=10, ge=1, description="most latents that may share a letter")
    jump: float = Field(default=0.03, ge=0, description="what one more latent must add to F1")
    least_f1: float = Field(
        default=0.6, ge=0, le=1, description="of the probe on validation words; letters below are left out"
    )
    draws: int = Field(default=1000, ge=100, description="of the bootstrap")


class Spelled(NamedTuple):
    """Words that the model was asked about: its activations at them, and whether it knows their letters."""

    words: list[str]
    x: Float[Tensor, "n d"]
    knows: Bool[Tensor, "n"]


class Prompt(NamedTuple):
    """Token ids; which words they ask for, and where each of these stands."""

    ids: list[int]
    words: list[int]
    at: list[int]


class Split(NamedTuple):
    """Rows of words: to fit on, to choose on, to measure on."""

    train: Int[Tensor, "a"]
    validation: Int[Tensor, "b"]
    test: Int[Tensor, "c"]


class Letter(NamedTuple):
    """A letter with its probe; f1: on validation words."""

    letter: str
    probe: Probe
    f1: float

    @property
    def direction(self) -> Float[Tensor, "d"]:
        """The direction in which the probe's score rises."""
        return (self.probe.weights / self.probe.scale).float()


def absorption(
    model: Model, dictionary: Dictionary, config: AbsorptionConfig | None = None, *, quiet: bool = False
) -> Scores:
    """Absorption of first letters, as SAEBench defines it (arXiv:2409.14507), of the dictionary and its baselines.

    The model spells words after `examples` others (" cat has the first letter: C"), several in a prompt, each with its
    answer. Activations are read at the word. A logistic probe of each letter is fitted on half of the words; its
    penalty, its threshold, and which letters count (F1), are chosen on a quarter; the last quarter is the test. Main
    latents of a letter: k-sparse probes on the latents that separate its training words best, in standard deviations;
    one more is taken while F1 on the second quarter jumps. Then each test word that the probe gets right is judged
    (`absorbing.absorbed`).

    Measures: "fraction" (mean absorption fraction), "full" (share of full absorption), both also "(sae-bench)" by that
    tool's rules for a word, and "latents" (main ones a letter), each a mean over letters; data are "all" and the
    letters. Without "main_share" and "rebuilt_share" a low number says little: what main latents, and what all latents,
    give of the projection on the probe. Where that is next to nothing, nothing can be absorbed.

    Words of more than one token are left out; test words whose letter the model does not say are, too, and counted in
    the notes. Where a model cannot spell, or no letter has a good probe, all numbers are NaN and the notes say why.

    Raises:
        BadInput: a transcoder, a tokenizer with hardly any word of one token.
        BadFile: no such file. Mismatch: a dictionary of another model.
    """
    config = config or AbsorptionConfig.parse({})
    dictionary.check(model)
    check_one_site(dictionary, "absorption")
    asked = spell(model, dictionary, config, quiet)
    spelled = enough(asked)
    letters = [word[0] for word in spelled.words]
    split = split_rows(letters, config.seed)
    probes = probes_of(spelled.x, letters, split) if len(set(letters)) > 1 else []
    good = [one for one in probes if one.f1 > config.least_f1]
    sample = [f" {word}{QUESTION}" for word in asked.words[:200]]
    scores: list[Score] = []
    for arm, one in arms(model, dictionary, sample, seed=config.seed).items():
        say(f"absorption: {arm}", quiet)
        scores += _scores(arm, one, spelled, split, good, config)
    judged = sum(len(judged_rows(one, spelled, split)) for one in good)
    notes = _notes(model.name, asked, spelled, split, probes, good, judged, config)
    told: dict[str, Any] = {"interval": INTERVAL, "letters": [one.letter for one in good]}
    return Scores.of("absorption", scores, "fraction", notes=notes, **config.model_dump(mode="json"), **told)


def _notes(
    name: str,
    asked: Spelled,
    spelled: Spelled,
    split: Split,
    probes: Sequence[Letter],
    good: Sequence[Letter],
    judged: int,
    config: AbsorptionConfig,
) -> list[str]:
    said, total = int(asked.knows.sum()), len(asked.words)
    if not probes:
        return [f"{name} cannot spell: it says the first letter of {said} of {total} words, so that no word is judged."]
    tested = int(spelled.knows[split.test].sum())
    notes = [
        f"{name} says the first letter of {said} of {total} words; the others are not tested ({tested} of "
        f"{len(split.test)} test words are)."
    ]
    if said < SPELLS * total:
        notes.append(f"{name} hardly spells: these numbers are about the few words that it does.")
    notes.append(
        f"{len(good)} of {len(probes)} letters have a probe with F1 above {config.least_f1:g} "
        f"({''.join(one.letter for one in good)}): {judged} words are judged; SAEBench wants 20 letters."
    )
    if not good:
        notes.append("No probe finds a first letter at this site, so that no word is judged.")
    return notes


# ---------------------------------------------------------------------- words
def listed_words(path: str | None = None) -> list[str]:
    """Lower-case words from a file, or the bundled list. Raises `BadFile`."""
    if path is None:
        text = gzip.decompress((SETS / "words.txt.gz").read_bytes()).decode()
    else:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadFile(f"{path} cannot be read as a list of words: {error}") from error
    words = [word for word in text.split() if word.isascii() and word.isalpha() and word.islower() and len(word) > 2]
    return list(dict.fromkeys(words))


def drawn_words(model: Model, config: AbsorptionConfig) -> list[str]:
    """Words that are one token after a space, as many of each letter as the config says (or all there are)."""
    listed = listed_words(config.words)
    order = np.random.default_rng(config.seed).permutation(len(listed))
    drawn: dict[str, list[str]] = {}
    for number in order:
        word = listed[number]
        held = drawn.setdefault(word[0], [])
        if len(held) < config.words_per_letter and len(model.bare(f" {word}")) == 1:
            held.append(word)
    found = [word for letter in sorted(drawn) for word in drawn[letter]]
    if len(found) < 10 * FEWEST:
        raise BadInput(f"only {len(found)} of {len(listed)} words are one token of {model.name}; give more words")
    return found


def spell(model: Model, dictionary: Dictionary, config: AbsorptionConfig, quiet: bool = False) -> Spelled:
    """Asks the model for the first letter of each drawn word."""
    words = drawn_words(model, config)
    x: list[Tensor | None] = [None] * len(words)
    knows = torch.zeros(len(words), dtype=torch.bool)
    after = len(model.bare(QUESTION))
    with Meter("absorption: words", total=len(words), unit="word", quiet=quiet) as meter:
        for _, alike in groupby(prompts_of(model, words, config), key=lambda prompt: len(prompt.ids)):  # no padding
            for some in _sliced(list(alike), config.batch_size):
                run = model.run([prompt.ids for prompt in some], capture=[dictionary.site])
                assert run.logits is not None
                for row, prompt in enumerate(some):
                    said = run.logits[row, [place + after for place in prompt.at]].argmax(-1).tolist()
                    states = run[dictionary.site][row, prompt.at].flatten(1).float().cpu()
                    for number, token, state in zip(prompt.words, said, states):
                        x[number] = state
                        knows[number] = model.text([token]).strip().lower() == words[number][0]
                    meter.advance(len(said))
    return Spelled(words, torch.stack([state for state in x if state is not None]), knows)


def enough(asked: Spelled) -> Spelled:
    """The words of letters of which the model knows enough words."""
    known = Counter(word[0] for word, knows in zip(asked.words, asked.knows.tolist()) if knows)
    kept = [number for number, word in enumerate(asked.words) if known[word[0]] >= FEWEST]
    return Spelled([asked.words[number] for number in kept], asked.x[kept], asked.knows[kept])


def prompts_of(model: Model, words: Sequence[str], config: AbsorptionConfig) -> list[Prompt]:
    """Prompts that together ask for each word once, after examples that they do not ask for; sorted by length."""
    rng = np.random.default_rng(config.seed + 1)
    order, question, line = rng.permutation(len(words)).tolist(), model.bare(QUESTION), model.bare("\n")
    found = []
    for asked in _sliced(order, config.questions):
        drawn = rng.permutation(len(words))[: config.examples + len(asked)].tolist()
        examples = [number for number in drawn if number not in asked][: config.examples]
        ids, at = list(model.prefix), []
        for number in (*examples, *asked):
            at.append(len(ids))
            word = words[number]
            ids += [*model.bare(f" {word}"), *question, *model.bare(f" {word[0].upper()}"), *line]
        found.append(Prompt(ids, asked, at[len(examples) :]))
    return sorted(found, key=lambda prompt: len(prompt.ids))


def _sliced(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def split_rows(letters: Sequence[str], seed: int) -> Split:
    """Each letter's rows, shuffled, in the shares of `SHARES`."""
    rng = np.random.default_rng(seed + 2)
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    for letter in sorted(set(letters)):
        rows = rng.permutation([i for i, one in enumerate(letters) if one == letter]).tolist()
        first, second = round(SHARES[0] * len(rows)), round(sum(SHARES) * len(rows))
        for part, chosen in zip(found, (rows[:first], rows[first:second], rows[second:])):
            part.extend(chosen)
    return Split(*(torch.tensor(sorted(part)) for part in found))


# ---------------------------------------------------------------------- probes
def probes_of(x: Float[Tensor, "n d"], letters: Sequence[str], split: Split) -> list[Letter]:
    """A probe for each letter; one regularisation for all, the best mean F1 on validation words."""
    alphabet = sorted(set(letters))
    is_letter = {letter: torch.tensor([one == letter for one in letters]) for letter in alphabet}
    best: list[Letter] = []
    for strength in STRENGTHS:
        made = []
        for letter, y in is_letter.items():
            probe = logistic(x[split.train], y[split.train], strength, balanced=True)
            shift, reached = best_threshold(probe.score(x[split.validation]), y[split.validation])
            made.append(Letter(letter, replace(probe, bias=probe.bias - shift), reached))
        if not best or np.mean([one.f1 for one in made]) > np.mean([one.f1 for one in best]):
            best = made
    return best


def best_threshold(scores: Float[Tensor, "n"], y: Bool[Tensor, "n"]) -> tuple[float, float]:
    """The threshold above which F1 is the largest, and that F1; of equal ones the lowest.

    Classes in balance put the threshold where both are mistaken for each other equally often; of 25 letters, the other
    24 then win by number, and F1 stays low although the probe sees the letter.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked, hits = scores[order], y[order].cumsum(0).double()
    found = 2 * hits / (torch.arange(1, len(y) + 1) + int(y.sum()))
    last = torch.cat([ranked[1:] < ranked[:-1], torch.ones(1, dtype=torch.bool)])  # equal scores go together
    found = torch.where(last, found, 0.0)
    at = int((found == found.max()).nonzero()[-1])
    below = ranked[at + 1] if at + 1 < len(ranked) else ranked[at] - 1
    return float((ranked[at] + below) / 2), float(found[at])


def main_latents(
    acts: Float[Tensor, "n width"], is_letter: Bool[Tensor, "n"], split: Split, config: AbsorptionConfig
) -> list[int]:
    """The latents of a letter: those that separate its training words best, as many as `split_size` says."""
    train, y = acts[split.train], is_letter[split.train]
    spread = train.std(0)
    apart = (train[y].mean(0) - train[~y].mean(0)) / spread.clamp_min(1e-6)
    order = torch.where(spread > 0, apart, -torch.inf).argsort(descending=True, stable=True)[: config.most_latents]
    scores: list[float] = []
    for k in range(1, len(order) + 1):
        probe = logistic(train[:, order[:k]], y, 1 / len(y), balanced=True)
        predicted = probe.score(acts[split.validation][:, order[:k]]) > 0
        scores.append(f1(predicted, is_letter[split.validation]))
        if split_size(scores, config.jump) < k:
            break
    return [int(one) for one in order[: split_size(scores, config.jump)]]


def judged_rows(letter: Letter, spelled: Spelled, split: Split) -> Int[Tensor, "n"]:
    """Test words of a letter that the model spells and the probe gets right."""
    own = torch.tensor([word[0] == letter.letter for word in spelled.words])
    return split.test[(own & spelled.knows & (letter.probe.score(spelled.x) > 0))[split.test]]


def _scores(
    arm: str,
    dictionary: Dictionary,
    spelled: Spelled,
    split: Split,
    good: Sequence[Letter],
    config: AbsorptionConfig,
) -> list[Score]:
    x, letters = spelled.x, [word[0] for word in spelled.words]
    acts = dictionary.encode(x.to(dictionary.W_enc.device)).dense().float().cpu()
    W_dec = dictionary.W_dec.float().cpu()
    judged: dict[str, list[tuple[str, Absorbed]]] = {variant: [] for variant in VARIANTS}
    sizes, main_shares, rebuilt_shares = [], [], []
    for one in good:
        is_letter = torch.tensor([letter == one.letter for letter in letters])
        main = main_latents(acts, is_letter, split, config)
        rest = split.train[~is_letter[split.train]]
        hits = judged_rows(one, spelled, split)
        means = (x[rest].mean(0), acts[rest].mean(0))
        sizes.append(float(len(main)))
        if len(hits):
            for variant, kept in judged.items():
                rows = parts(x[hits], acts[hits], W_dec, one.direction, rest=means, variant=variant)
                kept.append((one.letter, absorbed(rows, main, variant=variant)))
            given = parts(x[hits], acts[hits], W_dec, one.direction, rest=means)
            total = float(given.projection.sum())
            main_shares.append(float(given.given[:, main].sum()) / total)
            rebuilt_shares.append(float(given.given.sum()) / total)
    scores = [score for variant, kept in judged.items() for score in _rates(arm, kept, VARIANTS[variant], config)]
    beside = {"latents": sizes, "main_share": main_shares, "rebuilt_share": rebuilt_shares}
    for name, values in beside.items():
        scores.append(Score(arm, ALL, name, None, bootstrap_mean(values, seed=config.seed)))
    return scores


def _rates(arm: str, kept: Sequence[tuple[str, Absorbed]], suffix: str, config: AbsorptionConfig) -> list[Score]:
    """ "fraction" and "full" of each letter and of all."""
    rng = np.random.default_rng(config.seed + 3)
    scores = []
    for measure, values in zip(("fraction", "full"), rates([found for _, found in kept])):
        drawn = []
        for (letter, found), value in zip(kept, values):
            each = getattr(found, measure).double().numpy()
            drawn.append(_drawn_means(each, config.draws, rng))
            low, high = np.quantile(drawn[-1], PERCENTILES)
            own = Interval(value, float(low), float(high))
            if measure == "full":
                own = wilson(int(each.sum()), len(each))
            scores.append(Score(arm, letter, measure + suffix, None, own))
        scores.append(Score(arm, ALL, measure + suffix, None, mean_interval(values, drawn) if kept else NOTHING))
    return scores


def _drawn_means(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    return resampled(lambda rows: float(values[rows].mean()), len(values), draws=draws, rng=rng)
