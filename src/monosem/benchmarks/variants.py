"""Core numbers of a dictionary as each tool computes them, and as they should be: functions of x, x̂ and codes.

`evaluate` measures a dictionary; these say what another tool would print for the same activations, so that published
numbers can be compared. Each is given batches, because some tools average over batches. Sums run in float64.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import BadInput, check_name

Numbers = dict[str, float | Float[Tensor, "width"]]


class CoreBatch(NamedTuple):
    """Activations of some prompts, their reconstruction and their dense codes; `mask` says which tokens count."""

    x: Float[Tensor, "prompts pos d"]
    rebuilt: Float[Tensor, "prompts pos d"]
    acts: Float[Tensor, "prompts pos width"]
    mask: Bool[Tensor, "prompts pos"]


class Rows(NamedTuple):
    """The counted tokens of a batch."""

    x: Float[Tensor, "n d"]
    rebuilt: Float[Tensor, "n d"]
    acts: Float[Tensor, "n width"]

    @property
    def squared_error(self) -> Float[Tensor, "n"]:
        return (self.x - self.rebuilt).square().sum(-1)


def core_variant(name: str, batches: Sequence[CoreBatch]) -> Numbers:
    """The core numbers as one tool reports them (`CORE_VARIANTS`), under the tool's own names.

    Raises:
        UnknownName: no such tool. BadInput: no counted token.
    """
    check_name("variant", name, CORE_VARIANTS)
    if not any(bool(batch.mask.any()) for batch in batches):
        raise BadInput("no token counts: every mask is empty")
    return CORE_VARIANTS[name](batches)


def right(batches: Sequence[CoreBatch]) -> Numbers:
    """The definitions of `evaluate`: over all counted tokens at once, whatever the batches were."""
    rows = _joined(batches)
    error, spread = rows.squared_error, _centred(rows.x).square().sum(-1)
    norm_x, norm_y, dot = rows.x.norm(dim=-1), rows.rebuilt.norm(dim=-1), (rows.x * rows.rebuilt).sum(-1)
    tiny = torch.finfo(torch.float64).tiny
    return {
        "fve": float(1 - error.sum() / spread.sum()),
        "fve_centred_error": float(1 - _centred(rows.x - rows.rebuilt).square().sum() / spread.sum()),
        "mse": float(error.mean()),
        "l0": float((rows.acts != 0).sum(-1).double().mean()),
        "l1": float(rows.acts.abs().sum(-1).mean()),
        "cosine": float((dot / (norm_x * norm_y).clamp(min=tiny)).mean()),
        "l2_ratio": float((norm_y / norm_x.clamp(min=tiny)).mean()),
        "relative_reconstruction_bias": float(norm_y.square().mean() / dot.mean()),
        "density": (rows.acts != 0).double().mean(0),
    }


def saelens(batches: Sequence[CoreBatch]) -> Numbers:
    """SAELens 6.54 `run_evals`. Its explained_variance is the right one; the bias is a mean over batches."""
    parts = _parts(batches)
    numbers = _shared(parts)
    everything = _joined(batches)
    error, spread = everything.squared_error.sum(), _centred(everything.x).square().sum()
    return numbers | {
        "l1": _over_tokens(parts, lambda rows: rows.acts.abs().sum(-1)),
        "mse": _over_tokens(parts, lambda rows: rows.squared_error),
        "explained_variance": float(1 - error / spread),
        **_fired(batches, lambda acts: acts != 0),
    }


def saebench(batches: Sequence[CoreBatch]) -> Numbers:
    """SAEBench 0.6 core.

    explained_variance = 1 - R / (S - m₂²) with R = E|e|², S = E|x|² and m₂ = the mean of x² over all dimensions, each
    a mean over batches: the mean of squares stands where the squared mean belongs. mse is divided by the number of
    tokens twice, l1 is the signed sum, and a latent fires where it is above 0, although l0 counts negative ones, too.
    """
    parts = _parts(batches)
    residual = _over_batches(parts, lambda rows: rows.squared_error.mean())
    power = _over_batches(parts, lambda rows: rows.x.square().sum(-1).mean())
    mean_square = _over_batches(parts, lambda rows: rows.x.square().mean())
    return _shared(parts) | {
        "l1": _over_tokens(parts, lambda rows: rows.acts.sum(-1)),
        "mse": _over_tokens(parts, lambda rows: rows.squared_error / len(rows.x)),
        "explained_variance": 1 - residual / (power - mean_square**2),
        **_fired(batches, lambda acts: acts > 0),
    }


def dictionary_learning(batches: Sequence[CoreBatch]) -> Numbers:
    """dictionary_learning 0.1 `evaluate`: means over batches; the error is centred, so a constant one costs nothing."""
    parts = _parts(batches)
    alive = torch.stack([rows.acts.sum(0) for rows in parts]).sum(0) != 0

    def explained(rows: Rows) -> Tensor:
        return 1 - (rows.x - rows.rebuilt).var(0).sum() / rows.x.var(0).sum()

    return {
        "l2_loss": _over_batches(parts, lambda rows: rows.squared_error.sqrt().mean()),
        "l1_loss": _over_batches(parts, lambda rows: rows.acts.sum(-1).mean()),
        "l0": _over_batches(parts, lambda rows: (rows.acts != 0).sum(-1).double().mean()),
        "frac_variance_explained": _over_batches(parts, explained),
        "cossim": _over_batches(parts, lambda rows: torch.cosine_similarity(rows.x, rows.rebuilt, dim=-1).mean()),
        "l2_ratio": _over_batches(parts, lambda rows: (rows.rebuilt.norm(dim=-1) / rows.x.norm(dim=-1)).mean()),
        "relative_reconstruction_bias": _over_batches(parts, _bias),
        "frac_alive": float(alive.double().mean()),
    }


def sparsify(batches: Sequence[CoreBatch]) -> Numbers:
    """sparsify 1.3: fvu = Σ|e|² / Σ|x - mean|² of each batch, then their mean; 1 - FVE for a single batch."""

    def fvu(rows: Rows) -> Tensor:
        return rows.squared_error.sum() / _centred(rows.x).square().sum()

    return {"fvu": _over_batches(_parts(batches), fvu)}


CORE_VARIANTS: dict[str, Callable[[Sequence[CoreBatch]], Numbers]] = {
    "monosem": right,
    "saelens": saelens,
    "saebench": saebench,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}


# ---------------------------------------------------------------------- parts
def _parts(batches: Sequence[CoreBatch]) -> list[Rows]:
    masked = [Rows(*(part[batch.mask].double() for part in batch[:3])) for batch in batches]
    return [rows for rows in masked if len(rows.x)]


def _joined(batches: Sequence[CoreBatch]) -> Rows:
    return Rows(*map(torch.cat, zip(*_parts(batches))))


def _centred(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return x - x.mean(0)


def _over_tokens(parts: Sequence[Rows], what: Callable[[Rows], Tensor]) -> float:
    return float(torch.cat([what(rows) for rows in parts]).double().mean())


def _over_batches(parts: Sequence[Rows], what: Callable[[Rows], Tensor]) -> float:
    return float(torch.stack([what(rows) for rows in parts]).mean())


def _bias(rows: Rows) -> Tensor:
    return rows.rebuilt.square().sum(-1).mean() / (rows.x * rows.rebuilt).sum(-1).mean()


def _shared(parts: Sequence[Rows]) -> Numbers:
    """What SAELens and its copy in SAEBench define alike."""

    def ratio(rows: Rows) -> Tensor:
        norm = rows.x.norm(dim=-1)
        return rows.rebuilt.norm(dim=-1) / torch.where(norm < 1e-4, 1.0, norm)

    def legacy(rows: Rows) -> Tensor:
        return 1 - rows.squared_error / _centred(rows.x).square().sum(-1)

    def cosine(rows: Rows) -> Tensor:
        return (rows.x * rows.rebuilt).sum(-1) / (rows.x.norm(dim=-1) * rows.rebuilt.norm(dim=-1))

    return {
        "l2_norm_in": _over_tokens(parts, lambda rows: rows.x.norm(dim=-1)),
        "l2_norm_out": _over_tokens(parts, lambda rows: rows.rebuilt.norm(dim=-1)),
        "l2_ratio": _over_tokens(parts, ratio),
        "relative_reconstruction_bias": _over_batches(parts, _bias),
        "l0": _over_tokens(parts, lambda rows: (rows.acts != 0).sum(-1)),
        "explained_variance_legacy": _over_tokens(parts, legacy),
        "cossim": _over_tokens(parts, cosine),
    }


def _fired(batches: Sequence[CoreBatch], active: Callable[[Tensor], Tensor]) -> Numbers:
    """Share of tokens on which each latent fires, and firings a prompt in which it fires (NaN where it never does)."""
    fires = [active(batch.acts) & batch.mask[..., None] for batch in batches]
    total = torch.stack([one.sum((0, 1)) for one in fires]).sum(0).double()
    prompts = torch.stack([one.any(1).sum(0) for one in fires]).sum(0)
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    return {"feature_density": total / tokens, "consistent_activation_heuristic": total / prompts}
