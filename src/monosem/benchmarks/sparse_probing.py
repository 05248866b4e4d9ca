"""Sparse probing: how well one, two or a few latents tell labelled texts apart.

A probe reads the latents' mean over the tokens of each text that count (no padding, no special tokens, nothing that the
dictionary was not trained on). A class of several is probed against as many texts of the others, drawn by a
generator of its own: the same texts for every dictionary, every baseline and every number of latents.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from ..dictionaries import Dictionary
from ..latents.pooling import pooled_run, prompt_runs
from ..models import Model
from ..progress import Meter
from ..statistics import PERCENTILES, Interval
from .baselines import arms
from .labelled import Labelled, bundled_sets, clipped, labelled
from .probes import fitted, ranked, sae_probes_order, sae_probes_probe, saebench_probe
from .task import ALL, Score, Scores, TaskConfig, mean_interval

PARTS = (0.5, 0.2, 0.3)  # of each class: training, validation, test
L0_TEXTS = 64  # of each set, on which L0 is measured


class ProbingConfig(TaskConfig):
    sets: tuple[str, ...] = Field((), description="bundled names, files, sae-probes:NAME; default: all bundled sets")
    ks: tuple[int, ...] = Field((1, 2, 5, 16), min_length=1, description="numbers of latents")
    most: int = Field(700, ge=100, description="texts of a set, of each class alike; the first of a larger set")
    context: int = Field(128, ge=2, description="tokens of a text; the rest of a longer one is left out")
    draws: int = Field(500, ge=20, description="of a bootstrap of the test rows")
    peers: bool = Field(False, description="also what sae-bench and sae-probes would report (needs scikit-learn)")


class Binary(NamedTuple):
    """One class against the others: rows of the set, and whether they are of the class, by part."""

    name: str
    train: Int[Tensor, "n"]
    validation: Int[Tensor, "n"]
    test: Int[Tensor, "n"]
    positive: Int[Tensor, "rows"]


@dataclass(frozen=True)
class Held:
    """AUROC and accuracy of a probe on the test rows, each with its bootstrap draws."""

    auroc: float
    accuracy: float
    auroc_draws: np.ndarray
    accuracy_draws: np.ndarray


def sparse_probing(
    model: Model, dictionary: Dictionary, config: ProbingConfig | None = None, *, quiet: bool = False
) -> Scores:
    """Probes on k latents of a dictionary, of a random one, and on k raw dimensions; AUROC and accuracy on test rows.

    Intervals are over the test rows drawn again within their class; they do not include the luck of the split. Rows of
    data "all" are means over the sets (of a set: over its classes).

    Raises: as `labelled` and `latents.pooled`.
    """
    config = config or ProbingConfig.parse({})
    sets = [labelled(name).first(config.most) for name in config.sets or bundled_sets()]
    texts = {one.name: clipped(model, one.texts, config.context) for one in sets}
    measured = arms(model, dictionary, [ids for one in texts.values() for ids in one[:L0_TEXTS]], seed=config.seed)
    found: dict[tuple[str, str, int], list[Held]] = {}
    scores: list[Score] = []
    training: list[int] = []
    with Meter("sparse probing", total=sum(map(len, texts.values())), unit="texts", quiet=quiet) as meter:
        for one in sets:
            held = mean_codes(model, measured, texts[one.name], batch_size=config.batch_size, meter=meter)
            for task in binaries(one, config.seed):
                training.append(len(task.train))
                for arm, X in held.items():
                    order = ranked(X[task.train], task.positive[task.train])
                    for k in config.ks:
                        probe = _probed(X, order[:k], task, config)
                        found.setdefault((arm, one.name, k), []).append(probe)
                    if config.peers:
                        scores += _peers(X, task, arm, f"{one.name}: {task.name}", config.ks)
    scores += _summary(found, list(measured), [one.name for one in sets], config.ks)
    main = 5 if 5 in config.ks else max(config.ks)
    interval = "95 %, test rows drawn again within their class"
    notes = [
        f"The best of {dictionary.width:,} latents are chosen on {min(training):,} to {max(training):,} texts; "
        "on a hundred or so that is partly luck, and more latents may then do worse than fewer."
    ]
    settings = config.model_dump(mode="json")
    return Scores.of("sparse_probing", scores, "auroc", main, notes=notes, interval=interval, **settings)


def mean_codes(
    model: Model,
    measured: Mapping[str, Dictionary],
    prompts: Sequence[list[int]],
    *,
    batch_size: int,
    meter: Meter | None = None,
) -> dict[str, Float[Tensor, "prompts width"]]:
    """Mean code of each prompt over its tokens that count, of several dictionaries of one site from one pass.

    Prompts run in the order of their lengths, so that little is padded; the first dictionary says which tokens count.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    parts: dict[str, list[Tensor]] = {arm: [] for arm in measured}
    first = next(iter(measured.values()))
    for run, counted in prompt_runs(model, first, [prompts[i] for i in order], batch_size=batch_size):
        for arm, dictionary in measured.items():
            parts[arm].append(pooled_run(dictionary, run, counted, "mean"))
        if meter is not None:
            meter.advance(len(run.tokens))
    back = torch.tensor(order).argsort()
    return {arm: torch.cat(rows)[back] for arm, rows in parts.items()}


def binaries(one: Labelled, seed: int) -> Iterator[Binary]:
    """Each class against as many texts of the others (of two classes: the second against the first), split for good.

    The generator belongs to the seed and the set's name: nothing else moves a row.
    """
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(one.name.encode()))
    rows = {name: torch.tensor([i for i, label in enumerate(one.labels) if label == name]) for name in one.classes}
    cut = {name: _split(ids, generator) for name, ids in rows.items()}
    for name in one.classes if len(one.classes) > 2 else one.classes[-1:]:
        parts, others = [], [other for other in one.classes if other != name]
        for own, *negative in zip(cut[name], *(cut[other] for other in others)):
            each = -(-len(own) // len(others))
            drawn = [ids[torch.randperm(len(ids), generator=generator)[:each]] for ids in negative]
            negatives = torch.cat(drawn)
            parts.append(torch.cat([own, negatives[torch.randperm(len(negatives), generator=generator)[: len(own)]]]))
        positive = torch.tensor([label == name for label in one.labels]).long()
        yield Binary(name, parts[0], parts[1], parts[2], positive)


def _split(ids: Int[Tensor, "n"], generator: torch.Generator) -> list[Int[Tensor, "_"]]:
    ids = ids[torch.randperm(len(ids), generator=generator)]
    first, second = round(PARTS[0] * len(ids)), round((PARTS[0] + PARTS[1]) * len(ids))
    return [ids[:first], ids[first:second], ids[second:]]


def _probed(X: Tensor, latents: Tensor, task: Binary, config: ProbingConfig) -> Held:
    def part(rows: Tensor) -> tuple[Tensor, Tensor]:
        return X[rows][:, latents], task.positive[rows]

    probe = fitted(*part(task.train), *part(task.validation))
    X_test, y_test = part(task.test)
    scores = probe.score(X_test).numpy()
    return held_out(scores, y_test.numpy() == 1, draws=config.draws, seed=config.seed)


def held_out(scores: np.ndarray, positive: np.ndarray, *, draws: int, seed: int) -> Held:
    """AUROC (ties count half) and accuracy (above 0 says positive) of test scores, with draws of both: rows of each
    class are drawn again, the same ones for every probe of as many rows."""
    above, below = scores[positive], scores[~positive]
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    rng = np.random.default_rng(seed)
    times = [rng.multinomial(n, np.full(n, 1 / n), size=draws) for n in (len(above), len(below))]
    areas = np.einsum("dp,pn,dn->d", times[0], wins, times[1], optimize=True) / wins.size
    right = [above > 0, below <= 0]
    accuracy = (times[0] @ right[0] + times[1] @ right[1]) / len(scores)
    return Held(float(wins.mean()), float(np.concatenate(right).mean()), areas, accuracy)


def _summary(
    found: Mapping[tuple[str, str, int], list[Held]], measured: list[str], sets: list[str], ks: Sequence[int]
) -> list[Score]:
    """A row for each arm, set and k, and for the mean over sets."""
    scores = []
    for measure in ("auroc", "accuracy"):
        for arm in measured:
            for k in ks:
                means, draws = [], []
                for name in sets:
                    held = found[arm, name, k]
                    drawn = np.mean([getattr(one, f"{measure}_draws") for one in held], axis=0)
                    means.append(float(np.mean([getattr(one, measure) for one in held])))
                    draws.append(drawn)
                    low, high = np.quantile(drawn, PERCENTILES)
                    scores.append(Score(arm, name, measure, k, Interval(means[-1], float(low), float(high))))
                scores.append(Score(arm, ALL, measure, k, mean_interval(means, draws)))
    return scores


def _peers(X: Tensor, task: Binary, arm: str, data: str, ks: Sequence[int]) -> Iterator[Score]:
    """What the other tools' probes give on the same rows; without intervals, which they do not report."""
    y, train = task.positive, torch.cat([task.train, task.validation])
    order = sae_probes_order(X[train], y[train])
    for k in ks:
        bench = saebench_probe(X[train], y[train], X[task.test], y[task.test], k).numbers["test_accuracy"]
        columns = [part[:, order[:k]].numpy() for part in (X[train], X[task.test])]
        probes = sae_probes_probe(columns[0], y[train].numpy(), columns[1], y[task.test].numpy()).numbers["test_auc"]
        for measure, value in (("accuracy (sae-bench)", bench), ("auroc (sae-probes)", probes)):
            yield Score(arm, data, measure, k, Interval(value, float("nan"), float("nan")))
