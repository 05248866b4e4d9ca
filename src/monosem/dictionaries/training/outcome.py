"""What a run makes: the dictionary, measured as it was saved, and whether it is one that anybody should use."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ... import __version__
from ...activations import SkipRule
from ...files import replacing_folder, write_json
from ..codes import Codes
from ..dictionary import Dictionary
from ..formats.saelens import CARD
from ..several import SeveralSites
from ..trained_on import KEY, written
from .architectures import ARCHITECTURES
from .config import TrainConfig
from .end_to_end import Cost, EndToEnd
from .export import About
from .forward import passes_of, together
from .kinds import KINDS, Pass
from .state import TrainingState

FOLDER = "dictionary"  # in the folder of the run
HALVES = 2048  # rows from which the threshold is set on one half of them and checked on the other
FVE_APART, L0_APART = 0.02, 0.15  # most that the file may differ from training: of FVE, of L0 (relative)
HIGH = 1e30  # the threshold of a layer of which no latent fires yet
MANY_DEAD = 0.5  # share of latents


Rebuild = Callable[[Sequence[Tensor]], tuple[Tensor, Sequence[Codes]]]


class Fit(NamedTuple):
    """How well some activations are rebuilt."""

    fve: float
    l0: float

    @classmethod
    def of(cls, y: Float[Tensor, "n d"], rebuilt: Float[Tensor, "n d"], active: int) -> "Fit":
        y = y.double()
        spread = float((y - y.mean(0)).square().sum())
        error = float((y - rebuilt).square().sum())
        return cls(1 - error / spread if spread else math.nan, active / len(y))


class Outcome(NamedTuple):
    """The dictionary of a state, saved, and what was measured on the last activations that were trained on.

    Attributes:
        saved: of the file as it was saved and read again. trained: of the same weights, chosen from as in training.
        dead: share of latents silent for `dead_after` tokens; None after fewer than that.
        cost: end to end, what the file costs the model; a poor fit of the activations is then no problem.
    """

    dictionary: Dictionary | SeveralSites
    rows: int
    saved: Fit
    trained: Fit
    dead: float | None
    cost: Cost | None = None

    @property
    def problems(self) -> list[str]:
        """Why this is no result; empty when it is one."""
        saved, trained, found = self.saved, self.trained, []
        apart = FVE_APART * max(1.0, 1 - trained.fve)  # of the error, where it is more than the spread
        if abs(saved.fve - trained.fve) > apart or abs(saved.l0 - trained.l0) > L0_APART * trained.l0:
            found.append(
                f"its file gives FVE {saved.fve:.3f} at L0 {saved.l0:.1f}, training gave FVE {trained.fve:.3f} at L0 "
                f"{trained.l0:.1f}: train for longer, so that the last batches are alike"
            )
        elif not saved.fve >= 0 and self.cost is None:
            worse = f"it rebuilds activations worse than their mean does (FVE {saved.fve:.3f})"
            found.append(f"{worse}: {'make sparsity smaller' if saved.l0 < 1 else 'lower lr'}, or train for longer")
        if self.cost is not None and not self.cost.spliced < self.cost.zeros:  # NaN is less than nothing
            found.append(
                f"spliced into the model it costs {self.cost.spliced:.3f} nats, and zeros in its place "
                f"{self.cost.zeros:.3f}: lower lr, or train for longer"
            )
        if self.dead is not None and self.dead > MANY_DEAD:
            found.append(f"{self.dead:.0%} of its latents are dead: make width smaller, or train for longer")
        return found

    @property
    def measured(self) -> dict[str, Any]:
        """As the card and metrics.jsonl have it."""
        numbers = {"saved": self.saved._asdict(), "trained": self.trained._asdict(), "dead": self.dead}
        cost = {} if self.cost is None else {"cost": self.cost._asdict()}
        return {"activations": self.rows, **numbers, **cost}


@torch.no_grad()
def save_outcome(
    config: TrainConfig, state: TrainingState, stream: Any, home: Path, end_to_end: EndToEnd | None, finished: bool
) -> Outcome | None:
    """Write `home/dictionary`; None (and nothing is written) when no latent fires yet.

    A threshold that BatchTopK and Matryoshka need at inference is the smallest code among the last batches'
    activations, chosen with the weights as they are now. The card says whether the run that made the dictionary is
    finished.

    Raises:
        BadInput, BadFile: weights that are not finite, a folder that cannot be written to, a full disk.
    """
    both = [torch.cat(part) for part in zip(*state.recent)]
    kept = torch.stack([x.isfinite().all(1) for x in both]).all(0)  # without outliers, which would share in k
    rows = [x[kept] for x in both]
    halves = [slice(0, None, 2), slice(1, None, 2)] if len(rows[0]) >= HALVES else [slice(None)] * 2
    chosen = _chosen(config, state, [x[halves[0]] for x in rows]) if len(rows[0]) else None
    if chosen is None or not any(bool(one.active) for one in chosen):
        return None
    rows = [x[halves[1]] for x in rows]
    trained = together(state.form, _chosen(config, state, rows))
    thresholds = [min(float(one.floor), HIGH) for one in chosen] if KINDS[config.kind].one_threshold else None
    architecture = ARCHITECTURES[config.architecture]
    about = About(config.model, home.name, _metadata(config, state, stream))
    dictionary = architecture.exported(state.form, config, state.scales, thresholds, about)
    _, y = state.split(rows)
    raw = [x / scale for x, scale in zip(rows, state.scales)]
    with replacing_folder(home / FOLDER) as temporary:
        dictionary.save(temporary)
        loaded = architecture.load(temporary).to(raw[0].device)
        rebuild = partial(architecture.rebuild, loaded)
        cost = None
        if end_to_end is not None and state.tokens is not None:
            cost = end_to_end.cost(config, state.tokens, lambda x: rebuild(x)[0])
        outcome = Outcome(
            dictionary,
            len(y),
            _as_saved(rebuild, raw, state),
            Fit.of(y, trained.reconstruction, int(trained.active)),
            state.dead_share(config),
            cost,
        )
        ended = finished and not outcome.problems
        progress = {"finished": ended, "step": state.step, "steps": config.steps}
        dictionary.card = {**progress, "last_activations": outcome.measured, "problems": outcome.problems}
        if isinstance(dictionary, SeveralSites):  # its files have no place for what they were made of
            dictionary.card["metadata"] = dict(dictionary.metadata)
        write_json(temporary / CARD, dictionary.card)
    return outcome


def _metadata(config: TrainConfig, state: TrainingState, stream: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "context_size": config.context,
        "seed": config.seed,
        "training_tokens": state.step * config.batch_tokens,
        "monosem_version": __version__,
        "training": config.model_dump(mode="json"),
        "outliers": int(state.outliers),
    }
    if config.second_model is not None:
        metadata["models"] = [config.model, config.second_model]
    if config.meta_of is not None:
        metadata["meta_of"] = config.meta_of
    if hasattr(stream, "skipped"):
        metadata["skipped"] = dict(stream.skipped)
    if isinstance(rule := getattr(stream, "skip", None), SkipRule):
        metadata[KEY] = written(rule, getattr(stream, "thresholds", {}).get(config.reads[0]))
    return metadata


def _chosen(config: TrainConfig, state: TrainingState, rows: list[Float[Tensor, "n d"]]) -> list[Pass]:
    """Of each layer."""
    return passes_of(state.form, state.split(rows)[0], config, rows[0].device)


def _as_saved(rebuild: Rebuild, raw: list[Float[Tensor, "n d"]], state: TrainingState) -> Fit:
    """Of what the file rebuilds, in the scaled units in which sites count alike."""
    rebuilt, codes = rebuild(raw[: state.reads])
    written, scales = (
        (raw, state.scales) if len(raw) == state.reads else (raw[state.reads :], state.scales[state.reads :])
    )
    columns = torch.cat([scale * torch.ones_like(y[0]) for y, scale in zip(written, scales)])
    active = sum(int((one.values != 0).sum()) for one in codes)
    return Fit.of(torch.cat(written, 1) * columns, rebuilt * columns, active)
