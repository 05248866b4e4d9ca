"""Targeted probe perturbation: does ablating a class's latents hurt the probe of that class, and no other?"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import Field
from torch import Tensor

from ..dictionaries import Dictionary
from ..models import Model
from ..progress import Meter
from ..statistics import PERCENTILES, Interval
from .baselines import arms
from .labelled import clipped, labelled
from .probes import Probe, fitted
from .removal import (
    check_removable,
    chosen,
    direction,
    effects,
    means_and_rows,
    saebench_chosen,
    saebench_tpp_effects,
    without,
)
from .sparse_probing import L0_TEXTS, Binary, binaries, mean_codes
from .task import ALL, DICTIONARY, RAW, Score, Scores, TaskConfig, mean_interval

MAIN = 10
WAYS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, int], Tensor]]] = {
    "tpp": (effects, chosen),
    "tpp (latents as sae-bench)": (saebench_tpp_effects, saebench_chosen),
}


class TppConfig(TaskConfig):
    sets: tuple[str, ...] = Field(("emotions", "languages"), min_length=1, description="sets of three classes or more")
    ns: tuple[int, ...] = Field((2, 5, 10, 20, 50), min_length=1, description="numbers of latents that are ablated")
    most: int = Field(700, ge=100, description="texts of a set, of each class alike")
    context: int = Field(128, ge=2, description="tokens of a text")
    draws: int = Field(500, ge=20, description="of a bootstrap of the test rows")


def tpp(model: Model, dictionary: Dictionary, config: TppConfig | None = None, *, quiet: bool = False) -> Scores:
    """Mean over classes of [accuracy that the class's own probe loses - what the others lose on average].

    Probes read the mean activation of each text; their strength is chosen on validation rows, effects come from
    training rows, accuracies from test rows. Perfect is about 0.5 (the own probe at chance, the others untouched), 0 is
    no selectivity. Intervals are over the test rows drawn again.

    Raises: as `labelled` and `mean_codes`. BadInput: a transcoder, or a dictionary that normalises each token.
    """
    config = config or TppConfig.parse({})
    check_removable(dictionary)
    sets = [labelled(name).first(config.most) for name in config.sets]
    texts = {one.name: clipped(model, one.texts, config.context) for one in sets}
    measured = arms(model, dictionary, [ids for one in texts.values() for ids in one[:L0_TEXTS]], seed=config.seed)
    scores: list[Score] = []
    found: dict[tuple[str, str, int], list[tuple[float, np.ndarray]]] = {}
    with Meter("tpp", total=sum(map(len, texts.values())), unit="texts", quiet=quiet) as meter:
        for one in sets:
            held = mean_codes(model, measured, texts[one.name], batch_size=config.batch_size, meter=meter)
            x, tasks = held[RAW].double(), list(binaries(one, config.seed))
            probes = [fitted(x[t.train], t.positive[t.train], x[t.validation], t.positive[t.validation]) for t in tasks]
            for arm in measured:
                for (measure, n), value in _selectivity(held, arm, measured, tasks, probes, config).items():
                    found.setdefault((arm, measure, n), []).append(value)
                    low, high = np.quantile(value[1], PERCENTILES)
                    scores.append(Score(arm, one.name, measure, n, Interval(value[0], float(low), float(high))))
    for (arm, measure, n), values in found.items():
        scores.append(Score(arm, ALL, measure, n, mean_interval([v for v, _ in values], [d for _, d in values])))
    main = MAIN if MAIN in config.ns else max(config.ns)
    interval = "95 %, test rows drawn again within their class"
    return Scores.of("tpp", scores, "tpp", main, interval=interval, **config.model_dump(mode="json"))


def _selectivity(
    held: Mapping[str, Tensor],
    arm: str,
    measured: Mapping[str, Dictionary],
    tasks: Sequence[Binary],
    probes: Sequence[Probe],
    config: TppConfig,
) -> dict[tuple[str, int], tuple[float, np.ndarray]]:
    """(measure, n) -> the score and its bootstrap draws."""
    x, codes, rows = means_and_rows(held, arm, measured)
    whole, result = [right(probe, x, task) for probe, task in zip(probes, tasks)], {}
    for measure, (effect, choose) in WAYS.items() if arm == DICTIONARY else [*WAYS.items()][:1]:
        found = [effect(codes[t.train], t.positive[t.train], rows, direction(p)) for p, t in zip(probes, tasks)]
        for n in config.ns:
            lost: list[list[np.ndarray]] = []
            for its_effects in found:
                changed = without(x, codes, rows, choose(its_effects, n))
                after = [right(other, changed, its) for other, its in zip(probes, tasks)]
                lost.append([before - now for before, now in zip(whole, after)])
            result[measure, n] = _score(lost, config)
    return result


def right(probe: Probe, x: Tensor, task: Binary) -> np.ndarray:
    """1 for each test row that the probe gets right, else 0."""
    return ((probe.score(x[task.test]) > 0) == (task.positive[task.test] == 1)).double().numpy()


def _score(lost: list[list[np.ndarray]], config: TppConfig) -> tuple[float, np.ndarray]:
    """From what each probe (column) loses on each test row when a class's latents (row) are ablated."""
    rng = np.random.default_rng(config.seed)
    columns = []
    for number in range(len(lost)):
        rows = np.stack([one[number] for one in lost])  # [class that is ablated, test row]
        half = rows.shape[1] // 2  # the first half are the class's own rows
        sizes = (half, rows.shape[1] - half)
        times = np.concatenate([rng.multinomial(n, np.full(n, 1 / n), size=config.draws) for n in sizes], 1)
        columns.append(np.concatenate([rows.mean(1)[None], times @ rows.T / rows.shape[1]]))
    drops = np.stack(columns, axis=2)  # [1 + draws, ablated, probe]
    own = np.trace(drops, axis1=1, axis2=2)
    others = (drops.sum((1, 2)) - own) / (len(lost) - 1)
    values = (own - others) / len(lost)
    return float(values[0]), values[1:]
