"""First-letter absorption: are the latents of a letter silent where latents of single words take their place?"""

import gzip
from collections.abc import Sequence
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
from .task import ALL, Score, Scores, TaskConfig, mean_interval, resampled

SHARES = (0.5, 0.25)  # of the words: those that probes are fitted on, those that models are chosen on; the rest is test
FEWEST = 8  # words of a letter that the model spells, below which the letter is left out
STRENGTHS = (1.0, 0.1, 0.01, 0.001)  # of the probe's regularisation; ties go to the first
TEMPLATE = " {word} has the first letter:"
INTERVAL = "95 %, the test words of each letter drawn again; Wilson's of a letter's full absorption"


class AbsorptionConfig(TaskConfig):
    words: str | None = Field(default=None, description="file with a word a line; default: the bundled list")
    words_per_letter: int = Field(default=60, ge=FEWEST, description="words of each letter, drawn by the seed")
    examples: int = Field(default=4, ge=1, description="other words, with their letters, before the word in its prompt")
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

    The model spells words after `examples` others (" cat has the first letter:"). Activations are read at the word. A
    logistic probe of each letter is fitted on half of the words; its penalty, and which letters count (F1), are chosen
    on a quarter; the last quarter is the test. Main latents of a letter: k-sparse probes on the latents that separate
    its training words best, in standard deviations; one more is taken while F1 on the second quarter jumps. Then each
    test word that the probe gets right is judged (`absorbing.absorbed`).

    Measures: "fraction" (mean absorption fraction), "full" (share of full absorption), "latents" (main ones a letter),
    each a mean over letters; data are "all" and the letters. Without "main_share" and "rebuilt_share" a low number says
    little: what main latents, and what all latents, give of the projection on the probe. Where that is next to
    nothing, nothing can be absorbed.

    Words of more than one token are left out; test words whose letter the model does not say are, too, and counted in
    the notes.

    Raises:
        BadInput: a transcoder, a tokenizer with hardly any word of one token, a model that can spell next to nothing.
        BadFile: no such file. Mismatch: a dictionary of another model.
    """
    config = config or AbsorptionConfig.parse({})
    dictionary.check(model)
    if dictionary.transcoder:
        raise BadInput("absorption needs a dictionary that reads and writes at one site, not a transcoder")
    spelled = spell(model, dictionary, config, quiet)
    letters = [word[0] for word in spelled.words]
    split = split_rows(letters, config.seed)
    probes = probes_of(spelled.x, letters, split)
    good = [one for one in probes if one.f1 > config.least_f1]
    prompts = [TEMPLATE.format(word=word) for word in spelled.words[:200]]
    scores: list[Score] = []
    for arm, one in arms(model, dictionary, prompts, seed=config.seed).items():
        say(f"absorption: {arm}", quiet)
        scores += _scores(arm, one, spelled, split, good, config)
    known, tested = int(spelled.knows.sum()), int(spelled.knows[split.test].sum())
    judged = sum(len(judged_rows(one, spelled, split)) for one in good)
    notes = [
        f"{model.name} says the first letter of {known} of {len(letters)} words; the others are not tested "
        f"({tested} of {len(split.test)} test words are)",
        f"{len(good)} of {len(probes)} letters have a probe with F1 above {config.least_f1:g} "
        f"({''.join(one.letter for one in good)}): {judged} words; SAEBench reports nothing below 20 letters",
    ]
    told: dict[str, Any] = {"interval": INTERVAL, "letters": [one.letter for one in good]}
    return Scores.of("absorption", scores, "fraction", notes=notes, **config.model_dump(mode="json"), **told)


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
    """Words of the letters that the model says often enough."""
    words = drawn_words(model, config)
    rng = np.random.default_rng(config.seed + 1)
    after = len(model.bare(TEMPLATE.format(word="")[1:]))
    prompts = [_prompt(word, words, config.examples, rng) for word in words]
    x, knows = [], []
    with Meter("absorption: words", total=len(words), unit="word", quiet=quiet) as meter:
        for start in range(0, len(words), config.batch_size):
            some = slice(start, start + config.batch_size)
            run = model.run(prompts[some], capture=[dictionary.site], positions=-1 - after, logits="last")
            said = [model.text([token]) for token in _last(run.logits).argmax(-1).tolist()]
            knows += [one.strip().lower() == word[0] for one, word in zip(said, words[some])]
            x.append(run[dictionary.site].flatten(1).float().cpu())
            meter.advance(len(said))
    enough = [w[0] for w, known in zip(words, knows) if known]
    kept = [i for i, word in enumerate(words) if enough.count(word[0]) >= FEWEST]
    if len({words[i][0] for i in kept}) < 2:
        raise BadInput(f"{model.name} says the first letter of {sum(knows)} of {len(words)} words: it cannot spell")
    return Spelled([words[i] for i in kept], torch.cat(x)[kept], torch.tensor(knows)[kept])


def _prompt(word: str, words: Sequence[str], n: int, rng: np.random.Generator) -> str:
    others = [other for other in rng.choice(words, n + 1, replace=False) if other != word][:n]
    shown = [f"{TEMPLATE.format(word=other)} {other[0].upper()}\n" for other in others]
    return "".join(shown) + TEMPLATE.format(word=word)


def _last(logits: Tensor | None) -> Float[Tensor, "batch vocab"]:
    assert logits is not None
    return logits.flatten(0, -2)


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
            made.append(Letter(letter, probe, f1(probe.score(x[split.validation]) > 0, y[split.validation])))
        if not best or np.mean([one.f1 for one in made]) > np.mean([one.f1 for one in best]):
            best = made
    return best


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
    judged: list[Absorbed] = []
    sizes, main_shares, rebuilt_shares = [], [], []
    for one in good:
        is_letter = torch.tensor([letter == one.letter for letter in letters])
        main = main_latents(acts, is_letter, split, config)
        rest = split.train[~is_letter[split.train]]
        hits = judged_rows(one, spelled, split)
        means = (x[rest].mean(0), acts[rest].mean(0))
        given = parts(x[hits], acts[hits], W_dec, one.direction, rest=means)
        judged.append(absorbed(given, main))
        sizes.append(float(len(main)))
        if len(hits):
            total = float(given.projection.sum())
            main_shares.append(float(given.given[:, main].sum()) / total)
            rebuilt_shares.append(float(given.given.sum()) / total)
    rng = np.random.default_rng(config.seed + 3)
    kept = [(one.letter, found) for one, found in zip(good, judged) if len(found.full)]
    fractions, fulls = rates([found for _, found in kept])
    scores = []
    for measure, values in (("fraction", fractions), ("full", fulls)):
        drawn = []
        for (letter, found), value in zip(kept, values):
            each = getattr(found, measure).double().numpy()
            drawn.append(_drawn_means(each, config.draws, rng))
            low, high = np.quantile(drawn[-1], PERCENTILES)
            own = Interval(value, float(low), float(high))
            if measure == "full":
                own = wilson(int(each.sum()), len(each))
            scores.append(Score(arm, letter, measure, None, own))
        whole = mean_interval(values, drawn) if kept else Interval(float("nan"), float("nan"), float("nan"))
        scores.append(Score(arm, ALL, measure, None, whole))
    beside = {"latents": sizes, "main_share": main_shares, "rebuilt_share": rebuilt_shares}
    scores += [Score(arm, ALL, name, None, bootstrap_mean(values, seed=config.seed)) for name, values in beside.items()]
    return scores


def _drawn_means(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    return resampled(lambda rows: float(values[rows].mean()), len(values), draws=draws, rng=rng)
