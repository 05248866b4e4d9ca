"""Products of two thin matrices, never multiplied out: the QK and OV circuits of a head.

    QK(model, 5, 1)    x_query · (W_Q W_Kᵀ) · x_key: what the head attends to, `d_model d_model` of rank d_head
    OV(model, 5, 1)    x · (W_V W_O): what it writes when it attends to x

Everything is right-multiplied, as in "A Mathematical Framework for Transformer Circuits" (Elhage et al. 2021).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..models import Branch, FactoredMatrix, Model
from ..models.places.latents import from_latent


# ---------------------------------------------------------------------- circuits of a model
def QK(model: Model, layer: int | None = None, head: int | None = None, folded: bool = False) -> FactoredMatrix:
    """W_Q W_Kᵀ, `[layer head] d_model d_model`, float32: scores before their scale are x_query QK x_keyᵀ.

    Rotation and qk-norm are left out: with rotation this is the score of a query and a key at the same position.
    `folded`: for x before the norm (up to its scale): ln1's gain, and the mean taken out by a LayerNorm, are in it.
    """
    W_Q, W_K = _heads(model.W_Q, layer, head), _heads(model.W_K, layer, head)
    if folded:
        W_Q, W_K = _read(model, W_Q, layer), _read(model, W_K, layer)
    return FactoredMatrix(W_Q, W_K.mT)


def OV(model: Model, layer: int | None = None, head: int | None = None, folded: bool = False) -> FactoredMatrix:
    """W_V W_O, `[layer head] d_model d_model`, float32: the head writes x OV for what it attends to.

    `folded`: from x before ln1 to what is added to the stream, both up to a norm's scale: ln1's gain (and a LayerNorm's
    mean) on the left; a post-norm's gain and the residual multiplier on the right.
    """
    W_V, W_O = _heads(model.W_V, layer, head), _heads(model.W_O, layer, head)
    if folded:
        W_V, W_O = _read(model, W_V, layer), _write(model, W_O, layer)
    return FactoredMatrix(W_V, W_O)


def latent_QK(model: Model, layer: int, head: int | None = None) -> FactoredMatrix:
    """Latent attention with its projections absorbed: q_latent QK kv_latentᵀ, `[head] q_latent kv_latent`, float32.

    That is the part of a score, before its scale, that does not rotate; rot_q and rot_k hold the part that does. Where
    queries are made from the stream directly, QK reads attn_input.

    Raises:
        UnknownName: the layer has no key and value latent.
    """
    branch = model.branch("attn", layer)
    W_K = from_latent(branch, "k_nope")
    W_Q = from_latent(branch, "q") if model.has(("q_latent", layer)) else model.W_Q[layer]
    W_Q, W_K = W_Q[..., : W_K.shape[-1]].float(), W_K.float().mT
    return FactoredMatrix(W_Q, W_K) if head is None else FactoredMatrix(W_Q[head], W_K[head])


def latent_OV(model: Model, layer: int, head: int | None = None) -> FactoredMatrix:
    """W_V W_O from the latent, `[head] kv_latent d_model`, float32: a head writes kv_latent OV for what it attends to.

    Raises:
        UnknownName: the layer has no key and value latent.
    """
    W_V, W_O = from_latent(model.branch("attn", layer), "v"), model.W_O[layer]
    W_V, W_O = W_V.float(), W_O.float()
    return FactoredMatrix(W_V, W_O) if head is None else FactoredMatrix(W_V[head], W_O[head])


def full_OV(model: Model, layer: int, head: int) -> FactoredMatrix:
    """W_E OV W_U, `vocab vocab`: which logits a head raises when it attends to each token's embedding, up to norms'
    scales; all gains (ln1, post-norm, final norm) are folded in."""
    final = model.final_norm
    circuit = OV(model, layer, head, folded=True)
    return FactoredMatrix(model.W_E.float() @ circuit.A, (final.centred(circuit.B) * final.gain) @ model.W_U.float())


def full_QK(model: Model, layer: int, head: int) -> FactoredMatrix:
    """W_E QK W_Eᵀ, `vocab vocab`: how much each token (as an embedding) attends to each other one, up to scales."""
    circuit, W_E = QK(model, layer, head, folded=True), model.W_E.float()
    return FactoredMatrix(W_E @ circuit.A, circuit.B @ W_E.T)


def copying_scores(model: Model) -> Float[Tensor, "layer head"]:
    """Σλ / Σ|λ| over the eigenvalues of each head's full OV circuit: 1 is a head that only copies, -1 one that only
    suppresses what it attends to (Elhage et al. 2021, "copying / primarily positive eigenvalues")."""
    rows = []
    final = model.final_norm
    through = model.W_U.float() @ model.W_E.float()  # d_model d_model: from the normed stream to logits to embeddings
    for layer in range(model.cfg.n_layers):
        circuit = OV(model, layer, folded=True)
        small = (final.centred(circuit.B) * final.gain) @ through @ circuit.A
        values = torch.linalg.eigvals(small)
        rows.append((values.sum(-1) / values.abs().sum(-1)).real)
    return torch.stack(rows)


def _heads(weights: Any, layer: int | None, head: int | None) -> Tensor:
    index = (slice(None) if layer is None else layer, *(() if head is None else (head,)))
    return weights[index].float()


def _read(model: Model, W: Float[Tensor, "... d_model d_head"], layer: int | None) -> Tensor:
    """Through the norm in front: rows times its gain, less their mean over the input for a LayerNorm."""
    return _folded(model, W, layer, lambda one, w: one.pre.pull(w.mT).mT)


def _write(model: Model, W: Float[Tensor, "... d_head d_model"], layer: int | None) -> Tensor:
    """Through what is between the projection and the stream, up to the post-norm's scale."""
    return _folded(model, W, layer, lambda one, w: one.share(w, w.new_ones(())))


def _folded(model: Model, W: Tensor, layer: int | None, fold: Callable[[Branch, Tensor], Tensor]) -> Tensor:
    if layer is not None:
        return fold(model.branch("attn", layer), W)
    return torch.stack([fold(model.branch("attn", at), w) for at, w in enumerate(W)])
