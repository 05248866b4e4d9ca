"""One forward pass of the training form, sparse or dense, and the losses.

The two give the same numbers. On a CPU the sparse one is several times faster; on a GPU, where a dense product of these
sizes takes less than a millisecond and gathers do not, the dense one is simpler and fast.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from .config import TrainConfig
from .form import TrainingForm
from .selection import SELECTIONS
from .sparse import decode_at, encode_at


@dataclass
class Pass:
    """What the loop needs of a forward pass. Everything stays on the device."""

    reconstruction: Float[Tensor, "batch d"]
    fired: Bool[Tensor, "width"]
    active: Int[Tensor, ""]  # positive codes in the batch
    floor: Float[Tensor, ""]  # smallest positive activation; infinity when no activation is positive


def _pass(reconstruction: Tensor, columns: Tensor, values: Tensor, width: int) -> Pass:
    values, positive = values.detach(), values.detach() > 0
    fired = torch.zeros(width, dtype=torch.int32, device=values.device)
    fired.index_add_(0, columns, positive.int())
    floor = torch.where(positive, values, torch.inf).amin() if values.numel() else values.new_tensor(torch.inf)
    return Pass(reconstruction, fired > 0, positive.sum(), floor)


def sparse_forward(form: TrainingForm, x: Float[Tensor, "batch d"], kind: str, k: int, fast: bool) -> Pass:
    """Choose the active latents without gradient, then compute only those codes with it."""
    with torch.no_grad():
        support = SELECTIONS[kind](x - form.b_dec, (form.W_enc.detach(), form.b_enc.detach()), k, fast)
    values = encode_at(x, form.b_dec, form.W_enc, form.b_enc, support)
    return _pass(decode_at(values, form.W_dec, support) + form.b_dec, support.columns, values, form.width)


def dense_forward(form: TrainingForm, x: Float[Tensor, "batch d"], kind: str, k: int, fast: bool) -> Pass:
    """The same through ordinary autograd and [batch, width] arrays. `fast` (TF32) is set by the loop."""
    pre = F.linear(x - form.b_dec, form.W_enc, form.b_enc)
    if kind == "batchtopk":
        flat = pre.relu().flatten()
        values, places = flat.topk(min(k * len(x), flat.numel()), sorted=False)
        codes = torch.zeros_like(flat).scatter(0, places, values).view_as(pre)
        columns = places % form.width
    else:
        values, columns = pre.topk(k, sorted=False)
        values = values.relu()
        codes = torch.zeros_like(pre).scatter(1, columns, values)
    return _pass(codes @ form.W_dec + form.b_dec, columns.flatten(), values.flatten(), form.width)


Forward = Callable[[TrainingForm, Tensor, str, int, bool], Pass]
FORWARDS: dict[str, Forward] = {"sparse": sparse_forward, "dense": dense_forward}
BEST_ON = {"cpu": "sparse", "cuda": "dense"}


def forward_of(config: TrainConfig, device: torch.device) -> Forward:
    return FORWARDS[BEST_ON.get(device.type, "dense") if config.kernels == "auto" else config.kernels]


def reconstruction_loss(residual: Float[Tensor, "batch d"], variance: float) -> Float[Tensor, ""]:
    """Mean squared error norm over the variance of the calibration batches: the fraction of variance unexplained.

    The variance is a constant of the run, so that a batch's spread does not change the weight of its errors.
    """
    return residual.square().sum() / (len(residual) * variance)


def auxiliary_loss(
    form: TrainingForm,
    x: Float[Tensor, "batch d"],
    residual: Float[Tensor, "batch d"],
    dead: Int[Tensor, "n"],
    k: int,
) -> Float[Tensor, ""]:
    """AuxK: how badly the k most active dead latents explain what the living ones left over.

    Gao et al., arXiv 2406.04093, appendix A.2, as in their code: ReLU on the chosen codes, decoded without bias, the
    target detached, the error divided by the target's variance over the batch, NaN → 0. Scaled down when fewer than k
    are dead, as SAELens and sparsify do. Only the dead latents' columns are computed.
    """
    target = residual.detach()
    pre = F.linear(x - form.b_dec, form.W_enc.index_select(0, dead), form.b_enc.index_select(0, dead))
    codes = pre.relu()
    if k < len(dead):
        places = pre.detach().topk(k, sorted=False).indices
        codes = codes * torch.zeros_like(codes).scatter_(1, places, 1.0)
    error = (target - codes @ form.W_dec.index_select(0, dead)).square().sum(1).mean()
    variance = (target - target.mean(0)).square().sum(1).mean()
    return (error / variance).nan_to_num(0.0, 0.0, 0.0) * min(len(dead) / k, 1.0)
