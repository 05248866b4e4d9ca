"""Which forward pass a run uses, and the losses."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .form import CrossLayerForm, Form, TrainingForm
from .kinds import KINDS, Forward, Pass
from .settings import DictionarySettings

BEST_ON = {"cpu": "sparse", "cuda": "dense"}


def forward_of(settings: DictionarySettings, device: torch.device) -> Forward:
    forward = KINDS[settings.kind].forward
    best = BEST_ON.get(device.type, "dense") if settings.kernels == "auto" else settings.kernels
    return forward.get(best, next(iter(forward.values())))


def passes_of(
    form: Form, x: Float[Tensor, "batch d"], settings: DictionarySettings, device: torch.device
) -> list[Pass]:
    """The forward pass of each layer, from its columns of x."""
    forward = forward_of(settings, device)
    return [forward(layer.form, x[:, layer.reads], settings) for layer in form.layers]


def together(form: Form, passes: list[Pass]) -> Pass:
    """The passes of all layers as one: what they write summed up, their latents one after the other."""
    if not isinstance(form, CrossLayerForm):
        return passes[0]
    return Pass(
        form.summed([one.reconstruction for one in passes]),
        torch.cat([one.fired for one in passes]),
        torch.stack([one.active for one in passes]).sum(),
        torch.stack([one.floor for one in passes]).amin(),
    )


def unexplained(
    done: Pass, y: Float[Tensor, "batch d"], settings: DictionarySettings, variance: float
) -> Float[Tensor, ""]:
    """Mean squared error norm over the variance of the calibration batches: the fraction of variance unexplained; its
    mean over prefixes for kind matryoshka.

    The variance is a constant of the run, so that a batch's spread does not change the weight of its errors.
    """
    return KINDS[settings.kind].error(done, y) / (len(y) * variance)


def revival(
    form: Form,
    x: Float[Tensor, "batch d"],
    residual: Float[Tensor, "batch d"],
    dead: list[Int[Tensor, "n"]],
    k: int,
    signed: bool,
) -> Float[Tensor, ""]:
    """The auxiliary loss, its mean over layers; `dead` are the dead latents of each."""
    losses = [
        auxiliary_loss(layer.form, x[:, layer.reads], residual[:, layer.writes], some, k, signed)
        for layer, some in zip(form.layers, dead)
        if len(some)
    ]
    return torch.stack(losses).sum() / len(dead)


def auxiliary_loss(
    form: TrainingForm,
    x: Float[Tensor, "batch d"],
    residual: Float[Tensor, "batch d"],
    dead: Int[Tensor, "n"],
    k: int,
    signed: bool = False,
) -> Float[Tensor, ""]:
    """AuxK: how badly the k most active dead latents explain what the living ones left over.

    Gao et al., arXiv 2406.04093, appendix A.2, as in their code: ReLU on the chosen codes, decoded without bias, the
    target detached, the error divided by the target's variance over the batch, 0 where that is 0. Scaled down when
    fewer than k are dead, as SAELens and sparsify do. Only the dead latents' columns are computed.
    """
    target = residual.detach()
    pre = F.linear(x - form.centre, form.W_enc.index_select(0, dead), form.b_enc.index_select(0, dead))
    codes = pre if signed else pre.relu()
    if k < len(dead):
        ranked = pre.detach().abs() if signed else pre.detach()
        places = ranked.topk(k, sorted=False).indices
        codes = codes * torch.zeros_like(codes).scatter_(1, places, 1.0)
    error = (target - codes @ form.W_dec.index_select(0, dead)).square().sum(1).mean()
    variance = (target - target.mean(0)).square().sum(1).mean()
    share = error / torch.where(variance > 0, variance, torch.inf)  # a quotient by 0 would have NaN gradients
    return share.nan_to_num(0.0, 0.0, 0.0) * min(len(dead) / k, 1.0)
