"""Matching pursuit: codes found one after the other, each in what the ones before leave over."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def pursue(
    z: Float[Tensor, "n d_in"], tensors: Mapping[str, Tensor], k: int | None, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor, None]:
    """Values, indices `[n, slots]` and nothing that is predicted, as SAELens 6.54.12's `matching_pursuit` finds them.

    From r = z - b_dec on: the latent with the largest r . W_dec[j] (above 0; rows as they are, not of norm 1) is active
    by that much more, and r loses its part. At most `steps` times for each token, or until |r| < `tolerance` (0: never
    for that), or, with `stop_at_repeat`, after a step that made no further latent active.
    """
    W_dec, left = tensors["W_dec"], z - tensors["b_dec"]
    acts = z.new_zeros(len(z), W_dec.shape[0])
    ongoing = torch.ones(len(z), dtype=torch.bool, device=z.device)
    for _ in range(options["steps"]):
        if not bool(ongoing.any()):
            break
        chosen = (left.detach() @ W_dec.T).relu().max(1).indices
        rows = W_dec[chosen]
        values = (left * rows).sum(-1).relu() * ongoing
        before = acts.detach() != 0
        acts = acts.scatter_add(1, chosen[:, None], values[:, None])
        left = left - values[:, None] * rows
        ongoing = ongoing & left.detach().isfinite().all(-1)  # long rows make it grow without end
        if options["stop_at_repeat"]:
            ongoing = ongoing & ((acts.detach() != 0) != before).any(1)
        if options["tolerance"] > 0:
            ongoing = ongoing & (left.detach().norm(dim=-1) >= options["tolerance"])
    most = int((acts.detach() != 0).sum(-1).max()) if len(z) else 0
    indices = acts.detach().abs().topk(most, dim=-1).indices
    values = acts.gather(-1, indices)
    return values, torch.where(values.detach() != 0, indices, 0), None
