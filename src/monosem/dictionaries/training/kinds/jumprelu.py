"""JumpReLU with a threshold for each latent that is learned (Rajamanoharan et al. 2024, arXiv 2407.14435).

codes = pre where pre > θ. The derivative by θ is estimated in a window of the width of `bandwidth` around it:
−(θ / ε) rect((pre − θ) / ε) of the codes, −(1 / ε) rect((pre − θ) / ε) of the number of active latents. With
`straight_through: both` the pre-activations get the opposite, too (Anthropic's January 2025 update).

The penalty is of the mean number of active latents, L0: `quadratic` (L0 / target_l0 − 1)², `step` L0, or `tanh` the
mean of Σ tanh(4 · codes), codes in units of the root variance.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..derivatives import Jump
from ..form import TrainingForm
from ..settings import DictionarySettings
from ..sparse import Support
from .kind import Kind, Moment, Pass, encoded_at, places, rebuilt, risen, total

BANDWIDTH, THRESHOLD, SLOPE = 0.02, 0.02, 4.0  # see docs/training.md
DEFAULTS = {"quadratic": 1.0, "step": 1e-3, "tanh": 1e-3}


def _bandwidth(settings: DictionarySettings) -> float:
    return BANDWIDTH if settings.bandwidth is None else settings.bandwidth


def _jumped(pre: Tensor, threshold: Tensor, settings: DictionarySettings, count: bool) -> Tensor:
    both = settings.straight_through == "both"
    result: Tensor = Jump.apply(pre, threshold.expand_as(pre), _bandwidth(settings), both, count)
    return result


def _forward(form: TrainingForm, x: Tensor, settings: DictionarySettings, support: Support | None) -> Pass:
    pre, threshold = encoded_at(form, x, support), form.own["threshold"]
    threshold = threshold if support is None else threshold[support.columns]
    done = rebuilt(form, x, _jumped(pre, threshold, settings, count=False), support)
    done.pre = pre
    return done


def _sparse(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    """With all places of the window, so that thresholds learn from codes that are just 0."""
    return _forward(form, x, settings, places(form, x, form.own["threshold"].detach() - _bandwidth(settings) / 2))


def _dense(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    return _forward(form, x, settings, None)


def _l0(form: TrainingForm, done: Pass, settings: DictionarySettings, tokens: int) -> Tensor:
    assert done.pre is not None
    return total(_jumped(done.pre, done.at(form.own["threshold"]), settings, count=True)) / tokens


def _quadratic(form: TrainingForm, done: Pass, settings: DictionarySettings, tokens: int, unit: float) -> Tensor:
    assert settings.target_l0 is not None
    return (_l0(form, done, settings, tokens) / settings.target_l0 - 1).square()


def _step(form: TrainingForm, done: Pass, settings: DictionarySettings, tokens: int, unit: float) -> Tensor:
    return _l0(form, done, settings, tokens)


def _tanh(form: TrainingForm, done: Pass, settings: DictionarySettings, tokens: int, unit: float) -> Tensor:
    assert done.values is not None
    return total((SLOPE * done.values / unit).tanh()) / tokens


PENALTIES: dict[str, Callable[..., Tensor]] = {"quadratic": _quadratic, "step": _step, "tanh": _tanh}


def _penalty(form: TrainingForm, done: Pass, y: Tensor, settings: DictionarySettings, moment: Moment) -> Tensor:
    name = settings.penalty or "quadratic"
    weight = DEFAULTS[name] if settings.sparsity is None else settings.sparsity
    return weight * risen(settings, moment) * PENALTIES[name](form, done, settings, len(y), moment.unit)


def _complaint(settings: DictionarySettings) -> str | None:
    aimed = settings.penalty in (None, "quadratic")
    if aimed == (settings.target_l0 is not None):
        return None
    return f"the {settings.penalty or 'quadratic'} penalty {'needs' if aimed else 'has no'} target_l0"


@torch.no_grad()
def _constrain(form: TrainingForm) -> None:
    form.own["threshold"].clamp_(min=0)


JUMPRELU = Kind(
    use="a threshold for each latent, learned for the number of active latents that --target-l0 asks for",
    forward={"sparse": _sparse, "dense": _dense},
    saved="jumprelu",
    architecture="jumprelu",
    penalty=_penalty,
    revives=False,
    own=("sparsity", "sparsity_warmup", "penalty", "target_l0", "bandwidth", "first_threshold", "straight_through"),
    own_parameters=lambda settings: {
        "threshold": torch.full(
            (settings.width,), THRESHOLD if settings.first_threshold is None else settings.first_threshold
        )
    },
    constrain=_constrain,
    canonical=lambda weights: {"threshold": weights["own.threshold"]},
    filled=lambda b_enc, threshold: {} if threshold is None else {"own.threshold": threshold},
    complaint=_complaint,
)
