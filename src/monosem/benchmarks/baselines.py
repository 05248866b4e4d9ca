"""What a dictionary has to beat: a random one of the same shape and L0, and the activation's own dimensions.

A transcoder's output has two more: what is left of the transcoder without its latents, and the best linear map. All
are dictionaries themselves, so that every task measures them with the same code.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations import harvest
from ..dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from ..latents.pooling import prompt_runs
from ..lenses.regression import NormalEquations
from ..models import Model
from .task import DICTIONARY, RANDOM, RAW, WITHOUT

RIDGE = 1e-3  # of the linear map, in units of the mean variance of the input


def arms(model: Model, dictionary: Dictionary, prompts: Sequence[Any], *, seed: int) -> dict[str, Dictionary]:
    """The dictionary and its baselines, by the name of the arm; L0 is measured on the prompts."""
    l0 = mean_l0(model, dictionary, prompts)
    return {
        DICTIONARY: dictionary,
        RANDOM: random_dictionary(dictionary, l0, seed=seed),
        RAW: raw_dimensions(dictionary),
    }


def mean_l0(model: Model, dictionary: Dictionary, prompts: Sequence[Any]) -> float:
    """Mean number of active latents over the tokens of the prompts that the dictionary was trained on."""
    active, tokens = 0, 0
    for run, counted in prompt_runs(model, dictionary, sorted(prompts, key=len)):  # so that little is padded
        counts = dictionary.encode(run[dictionary.site][counted]).l0()
        active, tokens = active + int(counts.sum()), tokens + len(counts)
    return active / tokens


def random_dictionary(dictionary: Dictionary, l0: float, *, seed: int = 0) -> Dictionary:
    """The same shape with random directions: encoder and decoder rows are normal, of the original's norms, and each
    latent reads what it writes (of a transcoder: something else). A TopK of k = L0, rounded, at least 1 (no
    more than about half of the latents are above 0); centred on `b_dec` as the usual encoder is."""
    generator, old = torch.Generator().manual_seed(seed), dictionary.tensors
    W_dec = _rows(dictionary.width, dictionary.d_out, generator).to(old.W_dec)
    W_enc = W_dec if not dictionary.transcoder else _rows(dictionary.width, dictionary.d_in, generator).to(old.W_enc)
    W_enc = (W_enc * old.W_enc.norm(dim=0)[:, None].to(W_enc)).T
    b_enc = torch.zeros_like(old.b_enc) if dictionary.transcoder else -(old.b_dec.to(W_enc) @ W_enc)
    tensors = DictionaryTensors(W_enc, b_enc, W_dec * old.W_dec.norm(dim=1)[:, None], old.b_dec, W_skip=old.W_skip)
    k = min(max(1, round(l0)), dictionary.width)
    parts = replace(dictionary.parts, tensors=tensors, kind="topk", k=k, options={}, name=f"{dictionary.name} {RANDOM}")
    return Dictionary(parts)


def raw_dimensions(dictionary: Dictionary) -> Dictionary:
    """Each dimension of the activation as a latent, with its sign, all always active: codes are the activation itself,
    and decode gives it back (a transcoder's: zeros; see `fitted`)."""
    eye = torch.eye(dictionary.d_in, dtype=dictionary.W_enc.dtype, device=dictionary.W_enc.device)
    W_dec = eye if not dictionary.transcoder else eye.new_zeros(dictionary.d_in, dictionary.d_out)
    tensors = DictionaryTensors(eye, eye.new_zeros(dictionary.d_in), W_dec, eye.new_zeros(dictionary.d_out))
    parts = replace(dictionary.parts, tensors=tensors, kind="abstopk", k=dictionary.d_in, options={})
    return Dictionary(replace(parts, token_norm="none", name=f"{dictionary.name} {RAW}"))


def fitted(
    model: Model, transcoder: Dictionary, windows: Int[Tensor, "windows pos"], *, batch_size: int = 8
) -> dict[str, Dictionary]:
    """Baselines of a transcoder's output that need text, by the name of the arm; `windows` are not measured on.

    Without latents it is its skip connection, or nothing, plus the constant that makes the mean right: of a transcoder
    that has no skip connection the mean output. Raw dimensions write what the best affine map makes of the input (least
    squares with a ridge of `RIDGE`), over the tokens that count.

    Raises:
        BadInput: no token counts.
    """
    sites = list(dict.fromkeys([transcoder.site, transcoder.site_out]))
    thresholds = transcoder.skipper(model).thresholds
    source = harvest(model, windows, sites, batch_size=batch_size, skip=transcoder.skip, thresholds=thresholds)
    sums, left = NormalEquations(), transcoder.b_dec.new_zeros(transcoder.d_out, dtype=torch.float64)
    for batch in source:
        x, y = (batch[site].float() for site in (transcoder.site, transcoder.site_out))
        if len(x):
            sums.add(x, y)
            left += (y if transcoder.W_skip is None else y - x @ transcoder.W_skip.to(x).T).double().sum(0).to(left)
    W_dec, b_dec = sums.solve(RIDGE, "mean")
    raw = raw_dimensions(transcoder).parts
    linear = replace(raw.tensors, W_dec=W_dec.to(raw.tensors.W_dec), b_dec=b_dec.to(raw.tensors.b_dec))
    made = {WITHOUT: _without_latents(transcoder, left / sums.weight), RAW: replace(raw, tensors=linear)}
    return {arm: Dictionary(parts) for arm, parts in made.items()}


def _without_latents(transcoder: Dictionary, constant: Float[Tensor, "d_out"]) -> DictionaryParts:
    """x W_skipᵀ (where there is one) + constant, with one latent that never fires."""
    old = transcoder.tensors
    encoder = (old.W_enc.new_zeros(transcoder.d_in, 1), old.b_enc.new_zeros(1))
    decoder = (old.W_dec.new_zeros(1, transcoder.d_out), constant.to(old.b_dec))
    tensors = DictionaryTensors(*encoder, *decoder, W_skip=old.W_skip)
    parts = replace(transcoder.parts, tensors=tensors, kind="relu", k=None, options={}, token_norm="none")
    return replace(parts, name=f"{transcoder.name} {WITHOUT}")


def _rows(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    rows = torch.randn(n, d, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)
