"""What a run makes: the dictionary, measured as it was saved, and whether it is one that anybody should use."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ... import __version__
from ...activations import SkipRule
from ...files import replacing_folder, write_json
from ...models import Site
from ..dictionary import Dictionary
from ..formats.common import Hints, Place
from ..formats.saelens import CARD, read
from ..trained_on import KEY, written
from .config import TrainConfig
from .export import export
from .forward import forward_of
from .kinds import KINDS, Pass
from .state import TrainingState, sides

FOLDER = "dictionary"  # in the folder of the run
HALVES = 2048  # rows from which the threshold is set on one half of them and checked on the other
FVE_APART, L0_APART = 0.02, 0.15  # most that the file may differ from training: of FVE, of L0 (relative)
MANY_DEAD = 0.5  # share of latents


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
    """

    dictionary: Dictionary
    rows: int
    saved: Fit
    trained: Fit
    dead: float | None

    @property
    def problems(self) -> list[str]:
        """Why this is no result; empty when it is one."""
        saved, trained, found = self.saved, self.trained, []
        if abs(saved.fve - trained.fve) > FVE_APART or abs(saved.l0 - trained.l0) > L0_APART * trained.l0:
            found.append(
                f"its file gives FVE {saved.fve:.3f} at L0 {saved.l0:.1f}, training gave FVE {trained.fve:.3f} at L0 "
                f"{trained.l0:.1f}: train for longer, so that the last batches are alike"
            )
        elif saved.fve < 0:
            worse = f"it rebuilds activations worse than their mean does (FVE {saved.fve:.3f})"
            found.append(f"{worse}: {'make sparsity smaller' if saved.l0 < 1 else 'lower lr'}, or train for longer")
        if self.dead is not None and self.dead > MANY_DEAD:
            found.append(f"{self.dead:.0%} of its latents are dead: make width smaller, or train for longer")
        return found

    @property
    def measured(self) -> dict[str, Any]:
        """As the card and metrics.jsonl have it."""
        numbers = {"saved": self.saved._asdict(), "trained": self.trained._asdict(), "dead": self.dead}
        return {"activations": self.rows, **numbers}


@torch.no_grad()
def save_outcome(config: TrainConfig, state: TrainingState, stream: Any, home: Path, finished: bool) -> Outcome | None:
    """Write `home/dictionary`; None (and nothing is written) when no latent fires yet.

    A threshold that BatchTopK and Matryoshka need at inference is the smallest code among the last batches'
    activations, chosen with the weights as they are now. The card says whether the run that made the dictionary is
    finished.

    Raises:
        BadInput, BadFile: weights that are not finite, a folder that cannot be written to, a full disk.
    """
    both = [torch.cat(part) for part in zip(*map(sides, state.recent))]
    kept = torch.stack([x.isfinite().all(1) for x in both]).all(0)  # without outliers, which would share in k
    rows = [x[kept] for x in both]
    halves = [slice(0, None, 2), slice(1, None, 2)] if len(rows[0]) >= HALVES else [slice(None)] * 2
    chosen = _chosen(config, state, rows[0][halves[0]]) if len(rows[0]) else None
    if chosen is None or not bool(chosen.active):
        return None
    x, y = (side[halves[1]] for side in (rows[0], rows[-1]))
    trained = _chosen(config, state, x)
    threshold = float(chosen.floor) if KINDS[config.kind].one_threshold else None
    scales = (state.scale, state.scale_out)
    dictionary = export(state.form, config, scales, threshold, home.name, _metadata(config, state, stream))
    with replacing_folder(home / FOLDER) as temporary:
        dictionary.save(temporary)
        outcome = Outcome(
            dictionary,
            len(x),
            _as_saved(temporary, x / state.scale, y / state.scale_out),
            Fit.of(y, trained.reconstruction, int(trained.active)),
            state.dead_share(config),
        )
        ended = finished and not outcome.problems
        progress = {"finished": ended, "step": state.step, "steps": config.steps}
        dictionary.card = {**progress, "last_activations": outcome.measured, "problems": outcome.problems}
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
    if config.meta_of is not None:
        metadata["meta_of"] = config.meta_of
    if hasattr(stream, "skipped"):
        metadata["skipped"] = dict(stream.skipped)
    if isinstance(rule := getattr(stream, "skip", None), SkipRule):
        metadata[KEY] = written(rule, getattr(stream, "thresholds", {}).get(str(Site.parse(config.site))))
    return metadata


def _chosen(config: TrainConfig, state: TrainingState, rows: Float[Tensor, "n d"]) -> Pass:
    return forward_of(config, rows.device)(state.form, rows, config)


def _as_saved(folder: Path, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> Fit:
    dictionary = Dictionary(read(Place(folder), Hints())).to(x.device)
    codes = dictionary.encode(x)
    return Fit.of(y, dictionary.decode(codes, like=x), int((codes.values != 0).sum()))
