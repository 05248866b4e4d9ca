"""Exact rewrites of a dictionary's weights into the canonical form

    pre = x W_enc + b_enc        acts = phi(pre)        y = acts W_dec + b_dec (+ x W_skip^T)

(and of the gate of a gated linear unit). A training framework may subtract the decoder bias, scale or whiten the
input, or rescale by decoder norms. Each of these is affine and can be folded into the weights, so that everything after
loading deals with one form. The readers compute folds in float64: they are exact up to one rounding to float32 (two,
where b_dec or a mean is taken out of float32 weights).
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from .parts import DictionaryTensors

PARTS = 16  # of a sum that is made in float32


def fold_decoder_bias(w: DictionaryTensors) -> DictionaryTensors:
    """For encoders that read `x - b_dec`: (x - b_dec) W_enc + b_enc = x W_enc + (b_enc - b_dec W_enc)."""
    return _shifted(w, w.b_dec)


def fold_scale(w: DictionaryTensors, scale_in: float, scale_out: float | None = None) -> DictionaryTensors:
    """For weights that read `x * scale_in` and whose output is to be divided by `scale_out` (default: the same).

    Biases of the encoder and thresholds live in pre-activation units and stay. With a subtracted decoder bias, fold
    that first: x s - b_dec = s (x - b_dec / s), and b_dec / s is the new bias, so that both orders agree.
    """
    scale_out = scale_in if scale_out is None else scale_out
    skip = None if w.W_skip is None else w.W_skip * (scale_in / scale_out)
    glu = None if w.W_glu is None else w.W_glu * scale_in
    return replace(
        w, W_enc=w.W_enc * scale_in, W_dec=w.W_dec / scale_out, b_dec=w.b_dec / scale_out, W_skip=skip, W_glu=glu
    )


def fold_activation_scale(w: DictionaryTensors, factor: Float[Tensor, "width"]) -> DictionaryTensors:
    """For codes that are multiplied by a positive factor after the activation function."""
    threshold = None if w.threshold is None else w.threshold * factor
    return replace(w, W_enc=w.W_enc * factor, b_enc=w.b_enc * factor, threshold=threshold)


def fold_decoder_norm(w: DictionaryTensors) -> DictionaryTensors:
    """Unit decoder rows, activations in units of what they add to the output. A row of zeros stays and is never active.

    Not an equivalence for per-token TopK, unless it selects on `pre * norm`.
    """
    norm = w.W_dec.norm(dim=-1)
    unit = w.W_dec / torch.where(norm > 0, norm, 1).unsqueeze(-1)
    return replace(fold_activation_scale(w, norm), W_dec=unit)


def fold_centring(w: DictionaryTensors) -> DictionaryTensors:
    """For weights that read each token's x without its mean over d_in: (x - mean(x)) W = x (W - mean(W))."""
    skip = None if w.W_skip is None else w.W_skip - w.W_skip.mean(1, keepdim=True)
    glu = None if w.W_glu is None else w.W_glu - w.W_glu.mean(0, keepdim=True)
    return replace(w, W_enc=w.W_enc - w.W_enc.mean(0, keepdim=True), W_skip=skip, W_glu=glu)


def fold_whitening(
    w: DictionaryTensors,
    mean: Float[Tensor, "d_in"],
    matrix: Float[Tensor, "d_in d_in"],
    inverse: Float[Tensor, "d_in d_in"],
) -> DictionaryTensors:
    """For weights that live in z = (x - mean) matrix, with x = z inverse + mean (arXiv 2511.13981).

    With a subtracted decoder bias, fold that first.
    """
    glu = None if w.W_glu is None else matrix @ w.W_glu
    raw = replace(w, W_enc=matrix @ w.W_enc, W_glu=glu, W_dec=w.W_dec @ inverse, b_dec=w.b_dec @ inverse + mean)
    return _shifted(raw, mean)


def _shifted(w: DictionaryTensors, by: Float[Tensor, "d_in"]) -> DictionaryTensors:
    """For encoders that read `x - by`."""
    glu = None if w.W_glu is None or w.b_glu is None else _without(w.b_glu, by, w.W_glu)
    return replace(w, b_enc=_without(w.b_enc, by, w.W_enc), b_glu=glu)


def _without(bias: Float[Tensor, "width"], by: Float[Tensor, "d_in"], weight: Float[Tensor, "d_in width"]) -> Tensor:
    """bias - by weight, in float64.

    A float64 copy of float32 weights would take most of the time that a wide dictionary needs to load. One product adds
    up each of `PARTS` parts of `by` in float32, and their sums are added up in float64: the error is about one rounding
    of the bias to float32, which follows in any case.
    """
    if weight.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        apart = torch.block_diag(*by.float().tensor_split(PARTS))  # [parts, d_in]: each with zeros for the others
        taken = (apart @ weight).double().sum(0)
    else:
        taken = by.double() @ weight.double()
    return (bias.double() - taken).to(bias.dtype)


def fold_mean(w: DictionaryTensors, mean: Float[Tensor, "d_in"]) -> DictionaryTensors:
    """For weights that read `x - mean` and whose output is without that mean."""
    return replace(_shifted(w, mean), b_dec=w.b_dec + mean)


def fold_gate(w: DictionaryTensors, b_gate: Float[Tensor, "width"], r_mag: Float[Tensor, "width"]) -> DictionaryTensors:
    """Gated encoders (Rajamanoharan et al. 2024, arXiv 2404.16014) with tied weights are exactly a JumpReLU:

    codes = relu(pre) where x W_enc + b_gate > 0, pre being x W_enc exp(r_mag) + b_mag (`w.b_enc`); that gate is open
    where pre > b_mag - exp(r_mag) b_gate.
    """
    gain = r_mag.exp()
    return replace(w, W_enc=w.W_enc * gain, threshold=w.b_enc - gain * b_gate)


def fold_gain(w: DictionaryTensors, gain: Float[Tensor, "d_in"], bias: Float[Tensor, "d_in"]) -> DictionaryTensors:
    """For encoders that read `x * gain + bias`."""
    return replace(w, W_enc=w.W_enc * gain[:, None], b_enc=w.b_enc + bias @ w.W_enc)


def at_least(threshold: Float[Tensor, "width"]) -> Float[Tensor, "width"]:
    """For codes kept where `pre >= threshold`: the largest float32 below it, as here `pre > threshold` counts."""
    return torch.nextafter(threshold.float(), torch.tensor(-torch.inf)).to(threshold.dtype)
