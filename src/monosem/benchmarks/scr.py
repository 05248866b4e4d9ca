"""Spurious correlation removal: a probe trained where two attributes always go together; does ablating the latents of
the unwanted one free the probe from it, and leave it the other?

Texts say a profession (health or trade) and a pronoun (he or she). In the biased rows the two go together; test rows
hold all four kinds alike. No occupation is in two parts.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from ..dictionaries import Dictionary
from ..models import Model
from ..progress import Meter
from ..statistics import PERCENTILES, Interval
from .baselines import arms
from .labelled import clipped, rows
from .probes import Probe, fitted
from .removal import (
    check_removable,
    chosen,
    direction,
    effects,
    means_and_rows,
    saebench_chosen,
    saebench_scr,
    saebench_scr_effects,
    without,
)
from .sparse_probing import L0_TEXTS, PARTS, mean_codes
from .task import ALL, RAW, Score, Scores, TaskConfig

MAIN = 10
SMALL_GAP = 0.02  # accuracy lost to the bias below which there is nothing to bring back
ATTRIBUTES = ("profession", "gender")
MEASURES = ("scr", "unwanted removed", "wanted removed")


class ScrConfig(TaskConfig):
    ns: tuple[int, ...] = Field((2, 5, 10, 20, 50), min_length=1, description="numbers of latents that are ablated")
    sentences: int = Field(460, ge=60, description="each comes with he and with she")
    context: int = Field(128, ge=2, description="tokens of a text")
    draws: int = Field(500, ge=20, description="of a bootstrap of the test rows")


class Texts(NamedTuple):
    """Texts with two attributes each (0 or 1), and the part that each belongs to (0 training, 1 validation, 2 test)."""

    texts: list[str]
    labels: Mapping[str, Int[Tensor, "n"]]
    part: Int[Tensor, "n"]


class Probes(NamedTuple):
    """Of the wanted attribute, unbiased and biased, and of the unwanted one."""

    clean: Probe
    biased: Probe
    spurious: Probe
    wanted: str


class Readings(NamedTuple):
    """What probes say of the test rows (name -> scores), and both of their attributes (0 or 1)."""

    scores: dict[str, Float[np.ndarray, "rows"]]
    wanted: Int[np.ndarray, "rows"]
    unwanted: Int[np.ndarray, "rows"]

    def right(self, name: str) -> Float[np.ndarray, "rows"]:
        """1 for each row that the probe gets right, else 0."""
        return ((self.scores[name] > 0) == (self.wanted == 1)).astype(float)


def scr(model: Model, dictionary: Dictionary, config: ScrConfig | None = None, *, quiet: bool = False) -> Scores:
    """How selectively ablating the latents of the unwanted attribute frees a biased probe from it.

    Data "profession": a probe of the profession, biased by gender, whose gender latents are ablated; "gender" the other
    way round. "all" is the mean of both. Latents are chosen on training rows by `effects` on a probe of the unwanted
    attribute; probes choose their strength on validation rows.

    "scr" compares scores, which have no floor: with u how far the biased probe's mean score of the two kinds of the
    unwanted attribute lies apart on test rows, w the same for the wanted one and u', w' after the ablation, it is
    w' / w - u' / u: 1 where the probe loses the unwanted attribute alone, 0 where it loses both alike or nothing. Its
    parts are "unwanted removed" (1 - u' / u) and "wanted removed" (1 - w' / w). NaN where the probe did not learn the
    unwanted attribute for certain (the 95 % interval of u has 0 in it).

    "scr (accuracy)" is what sae-bench defines: (accuracy after the ablation - before) / (accuracy of an unbiased probe
    - before); of "all", the ratio of the sums; NaN where the bias costs less than 0.02. Where one attribute is much
    plainer than the other, the biased probe reads it alone, and much of it can go before many test rows change sides.
    Ablated to 0, a latent that is active in all texts also moves every score by a constant, as in sae-bench; "(set to
    mean)" leaves it at its mean on training rows. "scr" is the same for both. "scr (sae-bench)" takes that tool's
    latents and rules. Intervals are over the test sentences drawn again.

    Raises: as `mean_codes`. BadInput: a transcoder, or a dictionary that normalises each token.
    """
    config = config or ScrConfig.parse({})
    check_removable(dictionary)
    made = occupation_texts(config)
    prompts = clipped(model, made.texts, config.context)
    measured = arms(model, dictionary, prompts[:L0_TEXTS], seed=config.seed)
    with Meter("scr", total=len(prompts), unit="texts", quiet=quiet) as meter:
        held = mean_codes(model, measured, prompts, batch_size=config.batch_size, meter=meter)
    probes = {wanted: probes_of(held[RAW].double(), made, wanted) for wanted in ATTRIBUTES}
    scores: list[Score] = []
    for arm in measured:
        read = {wanted: readings(held, arm, measured, made, probes[wanted], config) for wanted in ATTRIBUTES}
        for n in config.ns:
            scores += _scores(arm, n, read, config)
    costs = " and ".join(f"{_gap(one):.3f} ({wanted})" for wanted, one in read.items())
    leans = " and ".join(f"{_lean(one):.2f} ({wanted})" for wanted, one in read.items())
    notes = [
        f"The bias costs the probes {costs} of accuracy; an accuracy score is a share of that.",
        f"The biased probes lean on the unwanted attribute {leans} times as much as on the wanted one; much more than "
        "1: accuracy is at its floor and hardly moves.",
    ]
    main = MAIN if MAIN in config.ns else max(config.ns)
    interval = "95 %, test sentences drawn again"
    return Scores.of("scr", scores, "scr", main, notes=notes, interval=interval, **config.model_dump(mode="json"))


def occupation_texts(config: ScrConfig) -> Texts:
    """The bundled sentences, each with he and then with she; whole occupations are in one part."""
    generator = torch.Generator().manual_seed(config.seed)
    held = rows("occupations")[: config.sentences]
    groups = sorted({row["group"] for row in held})
    at = torch.rand(len(groups), generator=generator)
    part_of = {group: int(x > PARTS[0]) + int(x > PARTS[0] + PARTS[1]) for group, x in zip(groups, at.tolist())}
    texts = [row[pronoun] for row in held for pronoun in ("he", "she")]
    profession = torch.tensor([int(row["label"] == "trade") for row in held]).repeat_interleave(2)
    gender = torch.tensor([0, 1]).repeat(len(held))
    part = torch.tensor([part_of[row["group"]] for row in held]).repeat_interleave(2)
    return Texts(texts, {"profession": profession, "gender": gender}, part)


def readings(
    held: Mapping[str, Tensor],
    arm: str,
    measured: Mapping[str, Dictionary],
    made: Texts,
    probes: Probes,
    config: ScrConfig,
) -> Readings:
    """Scores of the test rows: of the unbiased probe ("clean"), of the biased one ("biased"), and of the biased one
    after n latents were ablated ("ablated 10"), set to their mean ("mean 10") or ablated as sae-bench does."""
    x, codes, written = means_and_rows(held, arm, measured)
    clean, biased, spurious, wanted = probes
    y, other = made.labels[wanted], made.labels[_unwanted(wanted)]
    test, training = made.part == 2, made.part == 0

    def scored(probe: Probe, x: Tensor) -> np.ndarray:
        return probe.score(x[test]).numpy()

    found = {"clean": scored(clean, x), "biased": scored(biased, x)}
    given = (codes[training], other[training], written, direction(spurious))
    ours, theirs = effects(*given), saebench_scr_effects(*given)
    for n in config.ns:
        found[f"ablated {n}"] = scored(biased, without(x, codes, written, chosen(ours, n)))
        found[f"mean {n}"] = scored(biased, without(x, codes, written, chosen(ours, n), codes[training].mean(0)))
        found[f"sae-bench {n}"] = scored(biased, without(x, codes, written, saebench_chosen(theirs, n)))
    return Readings(found, y[test].numpy(), other[test].numpy())


def probes_of(x: Float[Tensor, "n d"], made: Texts, wanted: str) -> Probes:
    """The probes of one attribute; they read activations, so that they are the same for every dictionary."""
    y, other = made.labels[wanted], made.labels[_unwanted(wanted)]
    together = y != other  # trades with he, health with she
    clean, spurious = (_probe(x, label, made.part, torch.ones_like(together)) for label in (y, other))
    return Probes(clean, _probe(x, y, made.part, together), spurious, wanted)


def _unwanted(wanted: str) -> str:
    return next(name for name in ATTRIBUTES if name != wanted)


def _probe(x: Tensor, y: Tensor, part: Tensor, used: Tensor) -> Probe:
    first, second = ((part == number) & used for number in (0, 1))
    return fitted(x[first], y[first], x[second], y[second])


def _scores(arm: str, n: int, read: Mapping[str, Readings], config: ScrConfig) -> list[Score]:
    rng = np.random.default_rng(config.seed)
    size = len(next(iter(read.values())).wanted) // 2
    times = np.concatenate([np.ones((1, size)), rng.multinomial(size, np.full(size, 1 / size), size=config.draws)])
    times = times.repeat(2, axis=1)  # the two forms of a sentence go together
    scores = []
    parts = {wanted: _parts(one, n, times) for wanted, one in read.items()}
    for measure in MEASURES:
        drawn = {wanted: part[measure] for wanted, part in parts.items()}
        drawn[ALL] = np.mean(list(drawn.values()), axis=0)
        scores += [Score(arm, data, measure, n, _interval(values)) for data, values in drawn.items()]
    lost = {wanted: times @ (one.right("clean") - one.right("biased")) for wanted, one in read.items()}
    for measure, how in (("scr (accuracy)", "ablated"), ("scr (accuracy, set to mean)", "mean")):
        gained = {data: times @ (one.right(f"{how} {n}") - one.right("biased")) for data, one in read.items()}
        scores += [Score(arm, data, measure, n, _ratio(gained[data], lost[data], 2 * size)) for data in read]
        scores.append(Score(arm, ALL, measure, n, _ratio(sum(gained.values()), sum(lost.values()), 2 * size)))
    means = [{name: float(one.right(name).mean()) for name in one.scores} for one in read.values()]
    worse = min(means, key=lambda one: one["biased"])
    theirs = saebench_scr(worse["clean"], worse["biased"], worse[f"sae-bench {n}"])
    if len({one["biased"] for one in means}) > 1:  # where both are the same, sae-bench reports nothing
        scores.append(Score(arm, ALL, "scr (sae-bench)", n, Interval(theirs, float("nan"), float("nan"))))
    return scores


def _parts(one: Readings, n: int, times: Float[np.ndarray, "draws rows"]) -> dict[str, Float[np.ndarray, "draws"]]:
    """`MEASURES` of a probe, for the test rows themselves and for each draw of them; NaN without a bias."""
    left = []
    for label, sign in ((one.unwanted, -1), (one.wanted, 1)):  # the two go against each other in the biased rows
        before, after = (sign * apart(one.scores[name], label, times) for name in ("biased", f"ablated {n}"))
        learnt = np.quantile(before, PERCENTILES[0]) > 0
        left.append(after / before if learnt else np.full(len(times), np.nan))
    unwanted, wanted = left
    return dict(zip(MEASURES, (wanted - unwanted, 1 - unwanted, 1 - wanted)))


def apart(
    score: Float[np.ndarray, "rows"], label: Int[np.ndarray, "rows"], times: Float[np.ndarray, "draws rows"]
) -> Float[np.ndarray, "draws"]:
    """Mean score of label 1 minus the mean score of label 0, where each row counts so many times."""
    means = [times @ (score * (label == side)) / (times @ (label == side)) for side in (1, 0)]
    return means[0] - means[1]


def _gap(one: Readings) -> float:
    return float((one.right("clean") - one.right("biased")).mean())


def _lean(one: Readings) -> float:
    once = np.ones((1, len(one.wanted)))
    unwanted, wanted = (apart(one.scores["biased"], label, once)[0] for label in (one.unwanted, one.wanted))
    return float(-unwanted / wanted)


def _interval(values: Float[np.ndarray, "draws"]) -> Interval:
    """The first number belongs to the test rows themselves, the others to draws of them."""
    if np.isnan(values[0]):
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.nanquantile(values[1:], PERCENTILES)
    return Interval(float(values[0]), float(low), float(high))


def _ratio(gained: np.ndarray, lost: np.ndarray, rows: int) -> Interval:
    return _interval(np.divide(gained, lost, out=np.full(len(lost), np.nan), where=lost >= SMALL_GAP * rows))
