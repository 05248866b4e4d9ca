"""Exact rewrites of a dictionary's weights into the canonical form

    pre = x W_enc + b_enc        acts = phi(pre)        y = acts W_dec + b_dec (+ x W_skip^T)

A training framework may subtract the decoder bias, scale or whiten the input, or rescale by decoder norms. Each of
these is affine and can be folded into the weights, so that everything after loading deals with one form. The readers
compute folds in float64, which makes them exact up to one rounding to float32.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from .parts import DictionaryTensors


def fold_decoder_bias(w: DictionaryTensors) -> DictionaryTensors:
    """For encoders that read `x - b_dec`: (x - b_dec) W_enc + b_enc = x W_enc + (b_enc - b_dec W_enc)."""
    return replace(w, b_enc=w.b_enc - w.b_dec @ w.W_enc)


def fold_scale(w: DictionaryTensors, scale_in: float, scale_out: float | None = None) -> DictionaryTensors:
    """For weights that read `x * scale_in` and whose output is to be divided by `scale_out` (default: the same).

    Biases of the encoder and thresholds live in pre-activation units and stay. With a subtracted decoder bias, fold
    that first: x s - b_dec = s (x - b_dec / s), and b_dec / s is the new bias, so that both orders agree.
    """
    scale_out = scale_in if scale_out is None else scale_out
    skip = None if w.W_skip is None else w.W_skip * (scale_in / scale_out)
    return replace(w, W_enc=w.W_enc * scale_in, W_dec=w.W_dec / scale_out, b_dec=w.b_dec / scale_out, W_skip=skip)


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
    return replace(w, W_enc=w.W_enc - w.W_enc.mean(0, keepdim=True), W_skip=skip)


def fold_whitening(
    w: DictionaryTensors,
    mean: Float[Tensor, "d_in"],
    matrix: Float[Tensor, "d_in d_in"],
    inverse: Float[Tensor, "d_in d_in"],
) -> DictionaryTensors:
    """For weights that live in z = (x - mean) matrix, with x = z inverse + mean (arXiv 2511.13981).

    With a subtracted decoder bias, fold that first.
    """
    W_enc = matrix @ w.W_enc
    return replace(
        w, W_enc=W_enc, b_enc=w.b_enc - mean @ W_enc, W_dec=w.W_dec @ inverse, b_dec=w.b_dec @ inverse + mean
    )
