"""Unlearning-style selectivity: latents of one kind of text are turned over; how much of it goes, and what else?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ..data import Document, TokenStore, as_store
from ..dictionaries import Codes, Dictionary
from ..dictionaries.rerun import rerun
from ..errors import BadInput, check_name
from ..models import Model, TokenBatch
from ..progress import Meter, say
from ..statistics import Interval, bootstrap_ratio
from .baselines import arms
from .forgetting import best_setting, top_latents, turned_over
from .labelled import labelled
from .task import ALL, Score, Scores, TaskConfig, check_one_site

FORGET, RETAIN = "forget", "retain"
INTERVAL = "95 %, test windows drawn again"


class SelectivityConfig(TaskConfig):
    forget: str = Field(default="facts", description="text to forget: a labelled set, or SET=LABEL")
    retain: str = Field(default="subjectivity", description="text to retain, likewise")
    tokens: int = Field(default=3000, ge=500, description="of each text; half to choose on, half to test")
    context: int = Field(default=64, ge=8, description="tokens a window")
    most_retained: float = Field(
        default=0.01, gt=0, le=1, description="latents that fire on this share of the retained text are left alone"
    )
    latents: tuple[int, ...] = Field(default=(5, 20), min_length=1, description="how many latents are turned over")
    multipliers: tuple[float, ...] = Field(
        default=(0.0, 2.0, 8.0), min_length=1, description="to minus this many of their mean activations"
    )
    least: float = Field(default=0.99, gt=0, le=1, description="share of the retained text's right answers to keep")
    batch_size: int = Field(default=8, ge=1, description="windows a forward pass; decides no number beyond rounding")


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one text: activations, which tokens count, and whether the model's next token is right there."""

    ids: Tensor
    x: Float[Tensor, "n pos d"]
    counted: Bool[Tensor, "n pos"]
    right: Bool[Tensor, "n pos-1"]

    def part(self, start: int) -> "Windows":
        """Every second window."""
        return Windows(*(one[start::2] for one in (self.ids, self.x, self.counted, self.right)))

    def batches(self, size: int) -> Iterator["Windows"]:
        for start in range(0, len(self.ids), size):
            yield Windows(*(one[start : start + size] for one in (self.ids, self.x, self.counted, self.right)))


class Setting(NamedTuple):
    """Which latents, and what they are set to (minus this)."""

    latents: list[int]
    values: Float[Tensor, "n"]
    multiplier: float


def selectivity(
    model: Model, dictionary: Dictionary, config: SelectivityConfig | None = None, *, quiet: bool = False
) -> Scores:
    """Unlearning as SAEBench does it, with two kinds of text in place of its gated questions, and the model's right
    next tokens in place of right answers, of the dictionary and its baselines.

    Latents that fire on less than 1 % of the retained text are sorted by how often they fire on the other. The first n
    are set to minus a multiple of their mean activation, wherever they are active, error term kept, for each n and
    multiple. Of the next tokens that the model predicts rightly at counted tokens (`Dictionary.skip`), some stay right.
    The setting that forgets most while 99 % stay right on the retained text is chosen on half of the windows.

    Measures, of the other half: "forgotten", the share of the forget text's right tokens that are lost (higher is
    better); "retained", the share of the retained text's that stay. Where no setting is good enough, nothing is turned
    over: 0 and 1. "latents" and "multiplier" are the chosen ones.

    Raises:
        BadInput: too little text, or text of which the model predicts nothing. Mismatch: a dictionary of another model.
        UnknownName, BadFile: as `labelled`.
    """
    config = config or SelectivityConfig.parse({})
    dictionary.check(model)
    check_one_site(dictionary, "selectivity")
    named = {FORGET: texts(config.forget), RETAIN: texts(config.retain)}
    windows = {name: read(model, dictionary, name, some, config, quiet) for name, some in named.items()}
    for name, whole in windows.items():
        if min(int(whole.part(half).right.sum()) for half in (0, 1)) == 0:
            raise BadInput(f"{model.name} predicts nothing rightly in half of the {name} text; give other text")
    scores: list[Score] = []
    notes = [
        f"Of {int(one.counted[:, :-1].sum()):,} next tokens of the {name} text the model gets {int(one.right.sum()):,} "
        "right; only these count."
        for name, one in windows.items()
    ]
    sample: Any = [row.tolist() for one in windows.values() for row in one.ids[:20]]
    for arm, one in arms(model, dictionary, sample, seed=config.seed).items():
        say(f"selectivity: {arm}", quiet)
        found = _candidates(one, windows, config)
        if not found:
            notes.append(
                f"{arm}: no latent fires on the forget text and on so little of the other, so that none is turned over."
            )
        scores += _scores(model, arm, one, windows, found, config, quiet)
    return Scores.of(
        "selectivity", scores, "forgotten", notes=notes, **config.model_dump(mode="json"), interval=INTERVAL
    )


def texts(name: str) -> list[str]:
    """Texts of a labelled set, or of one of its labels (SET=LABEL). Errors as `labelled`."""
    of, _, label = name.partition("=")
    held = labelled(of)
    if label:
        check_name("label", label, held.classes)
    return [text for text, one in zip(held.texts, held.labels) if not label or one == label]


def read(
    model: Model, dictionary: Dictionary, name: str, some: list[str], config: SelectivityConfig, quiet: bool
) -> Windows:
    """The windows of a text, with a clean run of the model."""
    order = np.random.default_rng(config.seed).permutation(len(some))
    document = Document(name, "\n".join(some[i] for i in order))
    store: TokenStore = as_store(model, [document], config.context, tokens=config.tokens)
    if len(store) < 8:
        raise BadInput(
            f"the {name} text has {len(store)} windows of {config.context} tokens; give more, or a shorter context"
        )
    skipper, site, parts = dictionary.skipper(model), dictionary.site, []
    with Meter(f"selectivity: {name} text", total=len(store), unit="window", quiet=quiet) as meter:
        for start in range(0, len(store), config.batch_size):
            tokens = TokenBatch.whole(store[start : start + config.batch_size].to(model.device))
            run = model.run(tokens, capture=[site])
            assert run.logits is not None
            x = run[site].detach()
            counted = skipper.counted(tokens, {str(site): x})
            right = (run.logits[:, :-1].argmax(-1) == tokens.ids[:, 1:]) & counted[:, :-1]
            parts.append((tokens.ids, x, counted, right))
            meter.advance(len(tokens))
    return Windows(*map(torch.cat, zip(*parts)))


def _candidates(dictionary: Dictionary, windows: dict[str, Windows], config: SelectivityConfig) -> list[Setting]:
    """The settings to try, from the windows that are chosen on."""
    densities, means = {}, torch.zeros(dictionary.width)
    for name, whole in windows.items():
        fired, total, tokens = torch.zeros(dictionary.width), torch.zeros(dictionary.width), 0
        for some in whole.part(0).batches(config.batch_size):
            codes = dictionary.encode(some.x.flatten(2)[some.counted])
            flat, values = codes.indices.flatten().cpu(), codes.values.flatten().float().cpu()
            fired.index_add_(0, flat, (values != 0).float())
            total.index_add_(0, flat, values)
            tokens += len(codes.values)
        densities[name] = (fired / max(tokens, 1)).double().numpy()
        if name == FORGET:
            means = total / fired.clamp_min(1)
    order = top_latents(densities[FORGET], densities[RETAIN], config.most_retained)
    made = [
        (order[:n].tolist(), m)
        for n in sorted({min(n, len(order)) for n in config.latents})
        for m in config.multipliers
    ]
    return [Setting(latents, m * means[latents], m) for latents, m in made if latents]


def kept(
    model: Model, dictionary: Dictionary, windows: Windows, setting: Setting | None, size: int
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Right next tokens of each window that stay right, and all of them."""
    stay = [windows.right.sum(1)] if setting is None else []
    for some in windows.batches(size) if setting is not None else ():
        assert setting is not None
        codes: Codes = dictionary.encode(some.x.flatten(2))
        new = turned_over(dictionary, some.x, codes, setting.latents, setting.values, some.counted)
        with torch.no_grad():
            said = rerun(model, TokenBatch.whole(some.ids), dictionary.site, new)[:, :-1].argmax(-1)
        stay.append(((said == some.ids[:, 1:]) & some.right).sum(1))
    return torch.cat(stay).double().cpu(), windows.right.sum(1).double().cpu()


def _scores(
    model: Model,
    arm: str,
    dictionary: Dictionary,
    windows: dict[str, Windows],
    settings: list[Setting],
    config: SelectivityConfig,
    quiet: bool,
) -> list[Score]:
    shares: dict[str, list[float]] = {FORGET: [], RETAIN: []}
    with Meter(f"selectivity: {arm}", total=2 * len(settings), unit="setting", quiet=quiet) as meter:
        for setting in settings:
            for name, whole in windows.items():
                stay, all_right = kept(model, dictionary, whole.part(0), setting, config.batch_size)
                shares[name].append(float(stay.sum() / all_right.sum()))
                meter.advance()
    best = best_setting([1 - one for one in shares[FORGET]], shares[RETAIN], config.least)
    chosen = None if best is None else settings[best]
    tested = {name: kept(model, dictionary, one.part(1), chosen, config.batch_size) for name, one in windows.items()}
    lost, stayed = (bootstrap_ratio(*tested[name], seed=config.seed) for name in (FORGET, RETAIN))
    forgotten = Interval(1 - lost.value, 1 - lost.high, 1 - lost.low)
    told: dict[str, Any] = {"latents": 0, "multiplier": 0.0}
    if chosen is not None:
        told = {"latents": len(chosen.latents), "multiplier": chosen.multiplier}
    nothing = float("nan")
    return [
        Score(arm, ALL, "forgotten", None, forgotten),
        Score(arm, ALL, "retained", None, stayed),
        *(Score(arm, ALL, name, None, Interval(float(value), nothing, nothing)) for name, value in told.items()),
    ]
