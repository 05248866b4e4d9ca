"""What a run starts from: b_dec of the data, and weights that are random or taken from a dictionary."""

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import Mismatch
from ..dictionary import Dictionary
from ..folds import fold_decoder_norm
from ..loading import load_dictionary
from .config import TrainConfig
from .form import TrainingForm

MEDIAN_SAMPLES = 16_384


@torch.no_grad()
def geometric_median(x: Float[Tensor, "n d"], tolerance: float = 1e-5, most: int = 100) -> Float[Tensor, "d"]:
    """The point with the least summed distance to all rows, by Weiszfeld's iteration (Weiszfeld 1937).

    On at most `MEDIAN_SAMPLES` rows, evenly taken.
    """
    x = x[:: max(len(x) // MEDIAN_SAMPLES, 1)]
    point = x.mean(0)
    size = float(x.square().sum(1).mean()) ** 0.5
    for _ in range(most):
        weights = 1 / torch.linalg.vector_norm(x - point, dim=1).clamp(min=1e-8 * size)
        moved = (weights / weights.sum()) @ x
        distance = float(torch.linalg.vector_norm(moved - point))
        point = moved
        if distance < tolerance * size:
            break
    return point


STARTS = {"median": geometric_median, "mean": lambda x: x.mean(0), "zero": lambda x: torch.zeros_like(x[0])}


def start_of(config: TrainConfig) -> Dictionary | None:
    """The dictionary that the weights start from; None: random ones.

    Raises:
        Mismatch: it has another width, or another form than a trained one. UnknownName, BadFile: as `load_dictionary`.
    """
    if config.start is None:
        return None
    start = load_dictionary(config.start)
    if start.width != config.width:
        raise Mismatch(f"start {config.start} has {start.width:,} latents, not {config.width:,}; set width to that")
    if start.token_norm != "none" or start.transcoder:
        form = "is a transcoder" if start.transcoder else f"normalises tokens by {start.token_norm}"
        raise Mismatch(f"start {config.start} {form}, which cannot be trained; start from another one, or anew")
    return start


@torch.no_grad()
def started_form(config: TrainConfig, b_dec: Float[Tensor, "d"], scale: float) -> TrainingForm:
    """The form before the first step, for activations that are multiplied by `scale`.

    Raises:
        Mismatch: `start_of`'s, or it reads rows of another length.
    """
    form, start = TrainingForm(config.width, b_dec, config.seed), start_of(config)
    if start is None:
        return form
    if start.d_in != len(b_dec):
        raise Mismatch(f"start {config.start} reads rows of {start.d_in}, but the stream gives rows of {len(b_dec)}")
    # pre = x W + b in raw units; the form's is s·pre = (s·x - s·b_dec) W + s·(b + b_dec W), its output s·y
    weights = fold_decoder_norm(start.tensors.to(torch.float64))
    values = {
        "W_enc": weights.W_enc.T,
        "b_enc": scale * (weights.b_enc + weights.b_dec @ weights.W_enc),
        "W_dec": torch.where(weights.W_dec.any(1, keepdim=True), weights.W_dec, form.W_dec.cpu().double()),
        "b_dec": scale * weights.b_dec,
    }
    for name, value in values.items():
        getattr(form, name).copy_(value)
    return form
