"""Spurious correlation removal: a probe trained where two attributes always go together; does ablating the latents of
the unwanted one bring back what the probe should have learnt?

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


class ScrConfig(TaskConfig):
    ns: tuple[int, ...] = Field((2, 5, 10, 20, 50), min_length=1, description="numbers of latents that are ablated")
    sentences: int = Field(120, ge=60, description="each comes with he and with she")
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


def scr(model: Model, dictionary: Dictionary, config: ScrConfig | None = None, *, quiet: bool = False) -> Scores:
    """(accuracy after the ablation - before) / (accuracy of an unbiased probe - before), 1 being all that was lost.

    Data "profession": a probe of the profession, biased by gender, whose gender latents are ablated; "gender" the other
    way round. "all" is the ratio of the sums of both. Latents are chosen on training rows by `effects` on a probe of
    the unwanted attribute; probes choose their strength on validation rows. The value is not cut at 0 and 1, and is NaN
    where the bias costs less than 0.02. Ablated to 0, a latent that is active in all texts also moves every score of
    the probe by a constant, as in sae-bench; "scr (set to mean)" leaves the latent at its mean on training rows.
    Intervals are over the test sentences drawn again.

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
    scores, gaps = [], []
    for arm in measured:
        accuracies = {wanted: _accuracies(held, arm, measured, made, probes[wanted], config) for wanted in ATTRIBUTES}
        for n in config.ns:
            scores += _scores(arm, n, accuracies, config)
        gaps = [float((one["clean"] - one["biased"]).mean()) for one in accuracies.values()]
    lost = " and ".join(f"{gap:.3f} ({wanted})" for gap, wanted in zip(gaps, ATTRIBUTES))
    notes = [f"The bias costs the probes {lost} of accuracy; a score is a share of that."]
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


def _accuracies(
    held: Mapping[str, Tensor],
    arm: str,
    measured: Mapping[str, Dictionary],
    made: Texts,
    probes: Probes,
    config: ScrConfig,
) -> dict[str, np.ndarray]:
    """What is right on each test row: of the unbiased probe ("clean"), of the biased one ("biased"), and of the biased
    one after n latents were ablated ("ablated 10"), set to their mean ("mean 10") or ablated as sae-bench does."""
    x, codes, written = means_and_rows(held, arm, measured)
    clean, biased, spurious, wanted = probes
    y, other = made.labels[wanted], made.labels[_unwanted(wanted)]
    test, training = made.part == 2, made.part == 0

    def right(probe: Probe, x: Tensor) -> np.ndarray:
        return ((probe.score(x[test]) > 0) == (y[test] == 1)).double().numpy()

    found = {"clean": right(clean, x), "biased": right(biased, x)}
    given = (codes[training], other[training], written, direction(spurious))
    ours, theirs = effects(*given), saebench_scr_effects(*given)
    for n in config.ns:
        found[f"ablated {n}"] = right(biased, without(x, codes, written, chosen(ours, n)))
        found[f"mean {n}"] = right(biased, without(x, codes, written, chosen(ours, n), codes[training].mean(0)))
        found[f"sae-bench {n}"] = right(biased, without(x, codes, written, saebench_chosen(theirs, n)))
    return found


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


def _scores(arm: str, n: int, accuracies: Mapping[str, Mapping[str, np.ndarray]], config: ScrConfig) -> list[Score]:
    rng = np.random.default_rng(config.seed)
    size = len(next(iter(accuracies.values()))["clean"]) // 2
    times = np.concatenate([np.ones((1, size)), rng.multinomial(size, np.full(size, 1 / size), size=config.draws)])
    times = times.repeat(2, axis=1) / (2 * size)  # the two forms of a sentence go together
    lost = {wanted: times @ (right["clean"] - right["biased"]) for wanted, right in accuracies.items()}
    scores = []
    for measure, how in (("scr", "ablated"), ("scr (set to mean)", "mean")):
        gained = {wanted: times @ (right[f"{how} {n}"] - right["biased"]) for wanted, right in accuracies.items()}
        scores += [Score(arm, wanted, measure, n, _ratio(gained[wanted], lost[wanted])) for wanted in accuracies]
        scores.append(Score(arm, ALL, measure, n, _ratio(sum(gained.values()), sum(lost.values()))))
    means = {wanted: {name: float(one.mean()) for name, one in right.items()} for wanted, right in accuracies.items()}
    worse = min(means.values(), key=lambda one: one["biased"])
    theirs = saebench_scr(worse["clean"], worse["biased"], worse[f"sae-bench {n}"])
    if len({one["biased"] for one in means.values()}) > 1:  # where both are the same, sae-bench reports nothing
        scores.append(Score(arm, ALL, "scr (sae-bench)", n, Interval(theirs, float("nan"), float("nan"))))
    return scores


def _ratio(gained: np.ndarray, lost: np.ndarray) -> Interval:
    """The first number of each belongs to the test rows themselves, the others to draws of them."""
    values = np.divide(gained, lost, out=np.full_like(gained, np.nan), where=lost >= SMALL_GAP)
    if np.isnan(values[0]):
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.nanquantile(values[1:], PERCENTILES)
    return Interval(float(values[0]), float(low), float(high))
