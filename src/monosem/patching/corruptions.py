"""The other side of a pair, when it is not the pair's own corrupted prompt.

A corruption is either another **run** (noised embeddings, another prompt), whose activations are patched and which can
be restored, or bare **values** (zero, means), which can only be written into the clean run (`direction="noising"`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..edits import Edit
from ..errors import BadInput
from ..models import Model, Site, TokenBatch
from ..models.running.moment import EditLike
from .cells import Position, SpanPositions, index_of, listed

REFERENCE_ROWS = 32  # prompts of a reference that run together


@dataclass(frozen=True)
class Side:
    """One side of a pair: a run, and what a patch takes from it.

    Attributes:
        tokens, edits: the run.
        values: (site, clean activation without batch axis) -> what is written; None: the run's own activations.
        latent: what latents are set to when `values` are written; None: latents cannot be set.
    """

    tokens: TokenBatch
    edits: Sequence[EditLike] = ()
    values: Callable[[Site, Tensor], Tensor] | None = None
    latent: float | None = None


Sides = Callable[[int], list[Side]]  # number of the pair -> its other side, once for each draw


class Corruption(Protocol):
    """Makes the other side of every pair.

    Attributes:
        label: in a few words, what it is. is_run: whether it is a run that can be restored, or bare values.
    """

    @property
    def label(self) -> str: ...

    @property
    def is_run(self) -> bool: ...

    def sides(self, model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        """Called once for each sweep, with the sites that it patches."""
        ...


@dataclass(frozen=True)
class Prompt:
    """The pair's own corrupted prompt: the default."""

    label: str = "corrupted prompt"
    is_run: bool = True

    def sides(self, model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        return lambda row: [Side(pairs.corrupted[[row]].to(model.device))]


@dataclass(frozen=True)
class _Noise:
    sd: float
    samples: int
    positions: SpanPositions | None
    seed: int
    is_run: bool = True

    @property
    def label(self) -> str:
        return f"embedding noise of {self.sd:g} sd"

    def sides(self, model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        spread = embedding_sd(model, pairs.clean)
        positions = None if self.positions is None else listed(pairs, self.positions)

        def draws(row: int) -> list[Side]:
            tokens = pairs.clean[[row]].to(model.device)
            where = _differing(pairs, row) if positions is None else _indices(positions, pairs, row)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + row)
            sides = []
            for _ in range(self.samples):
                noise = torch.zeros(tokens.ids.shape[1], model.cfg.d_model)
                noise[where] = self.sd * spread * torch.randn(len(where), model.cfg.d_model, generator=generator)
                sides.append(Side(tokens, [_added(noise.to(model.device), self.label)]))
            return sides

        return draws


def _indices(positions: Sequence[Position], pairs: TokenPairs, row: int) -> list[int]:
    return sorted({index_of(position, pairs, row) for position in positions})


def _differing(pairs: TokenPairs, row: int) -> list[int]:
    where: list[int] = pairs.differs[row][pairs.clean.mask[row]].nonzero()[:, 0].tolist()
    if not where:
        raise BadInput(f"pair {row} has no differing token to noise; say which with noise(positions=[...])")
    return where


def noise(sd: float = 3.0, samples: int = 10, positions: SpanPositions | None = None, seed: int = 0) -> Corruption:
    """The clean prompt with Gaussian noise added to token embeddings, as in causal tracing (Meng et al. 2022).

    Args:
        sd: of the noise, in units of the standard deviation of the embeddings of the pairs' clean tokens (over tokens
            and dimensions together; 3 in the paper).
        samples: draws for each pair; results are averaged over them.
        positions: noised tokens, indices or span names; default: where clean and corrupted prompt differ.
        seed: draws depend on it and on the number of the pair alone.

    Raises:
        BadInput: sd or samples not positive; when swept, a pair whose prompts do not differ and no positions.
    """
    if not sd > 0 or samples < 1:
        raise BadInput(f"noise needs sd > 0 and samples >= 1, not {sd} and {samples}")
    return _Noise(float(sd), int(samples), positions, int(seed))


def embedding_sd(model: Model, tokens: TokenBatch) -> float:
    """Standard deviation over real tokens and dimensions of the embeddings, as the model adds them to the stream."""
    values = model.run(tokens, capture="embed", logits=False)["embed"]
    return float(values[tokens.mask.to(values.device)].float().std())


def _added(noise: Float[Tensor, "pos d_model"], label: str) -> Edit:
    return Edit(Site("embed"), lambda x, _: x.float() + noise, label)


# ---------------------------------------------------------------------- values


@dataclass(frozen=True)
class _Zero:
    label: str = "zero"
    is_run: bool = False

    def sides(self, model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        return _valued(model, pairs, lambda site, clean: torch.zeros_like(clean), latent=0.0)


def zero() -> Corruption:
    """Zeros: what the place contributes is removed, which is often far from anything the model has seen."""
    return _Zero()


@dataclass(frozen=True)
class _Mean:
    reference: Any
    by_position: bool
    is_run: bool = False

    @property
    def label(self) -> str:
        return "positional mean" if self.by_position else "mean"

    def sides(self, model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        tokens = _reference(model, pairs, self.reference)
        means = positional_means(model, tokens, sites) if self.by_position else token_means(model, tokens, sites)

        def values(site: Site, clean: Tensor) -> Tensor:
            mean = means[site].to(clean)
            if not self.by_position:
                return mean.expand_as(clean)
            axes = (1, 2) if site.query_axis == 2 else (0,)
            if any(mean.shape[axis] < clean.shape[axis] for axis in axes):
                raise BadInput(
                    f"the reference has no prompt of {clean.shape[axes[0]]} tokens, so there is no mean at the last "
                    "position; give longer prompts, or use mean()"
                )
            for axis in axes:
                mean = mean.narrow(axis, 0, clean.shape[axis])
            return mean

        return _valued(model, pairs, values)


def mean(reference: Any = None) -> Corruption:
    """The mean over all real tokens of a reference: one value for every position.

    Args:
        reference: text, texts, ids or a `TokenBatch`; default: clean and corrupted prompts of the pairs.
    """
    return _Mean(reference, by_position=False)


def positional_mean(reference: Any = None) -> Corruption:
    """The mean at each token position, over the prompts of a reference that have that position."""
    return _Mean(reference, by_position=True)


def token_means(model: Model, tokens: TokenBatch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Mean over all real tokens, for every site, without batch and position axis.

    Raises:
        BadInput: a pattern, whose rows mean different keys at different positions.
    """
    for site in sites:
        if site.query_axis == 2:
            raise BadInput(f"a mean of {site} over positions has no meaning; use positional_mean() or zero()")
    sums = {site: torch.zeros((), dtype=torch.float64) for site in sites}
    for part, captured in _reference_runs(model, tokens, sites):
        for site, value in captured.items():
            sums[site] = sums[site] + value[part.mask.to(value.device)].double().sum(0).cpu()
    return {site: total / int(tokens.mask.sum()) for site, total in sums.items()}


def positional_means(model: Model, tokens: TokenBatch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Mean at each token index over the rows that have it, without batch axis; position 0 is the first real token."""
    longest = int(tokens.lengths.max())
    counts = (tokens.lengths.cpu()[:, None] > torch.arange(longest)).sum(0).double()
    sums: dict[Site, Tensor] = {}
    for part, captured in _reference_runs(model, tokens, sites):
        for site, value in captured.items():
            for row, length in enumerate(part.lengths.tolist()):
                real = part.mask[row].to(value.device)
                values = (value[row][:, real][:, :, real] if site.query_axis == 2 else value[row][real]).double().cpu()
                if site not in sums:
                    shape = [
                        longest if n == length and _is_token_axis(site, i) else n for i, n in enumerate(values.shape)
                    ]
                    sums[site] = torch.zeros(shape, dtype=torch.float64)
                block = (slice(None), slice(length), slice(length)) if site.query_axis == 2 else (slice(length),)
                sums[site][block] += values
    return {site: total / _along(counts, site, total) for site, total in sums.items()}


def _is_token_axis(site: Site, axis: int) -> bool:
    return axis in ((1, 2) if site.query_axis == 2 else (0,))


def _along(counts: Tensor, site: Site, total: Tensor) -> Tensor:
    """Counts along the (query) position axis; a query is there in as many rows as it has keys from."""
    axis = site.query_axis - 1
    return counts.reshape(*[1] * axis, -1, *[1] * (total.ndim - axis - 1))


def _valued(
    model: Model, pairs: TokenPairs, values: Callable[[Site, Tensor], Tensor], latent: float | None = None
) -> Sides:
    """Values to write; the corrupted end of the scale is still the pair's corrupted prompt."""
    return lambda row: [Side(pairs.corrupted[[row]].to(model.device), values=values, latent=latent)]


# ---------------------------------------------------------------------- other prompts


@dataclass(frozen=True)
class _Resample:
    reference: Any
    samples: int
    seed: int
    label: str = "resampled prompt"
    is_run: bool = True

    def sides(self, model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        among_pairs = self.reference is None
        rows = (pairs.clean if among_pairs else model.tokens(self.reference)).rows()

        def draws(row: int) -> list[Side]:
            length = int(pairs.clean.lengths[row])
            fitting = [i for i, ids in enumerate(rows) if len(ids) >= length and not (among_pairs and i == row)]
            if not fitting:
                raise BadInput(f"no other reference prompt has the {length} tokens of pair {row}; give longer ones")
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + row)
            drawn = torch.randint(0, len(fitting), (self.samples,), generator=generator).tolist()
            # attention is causal: the first tokens of a longer prompt have the activations that they have in it
            cut = [rows[fitting[i]][:length] for i in drawn]
            return [Side(model.tokens([ids]).to(model.device)) for ids in cut]

        return draws


def resample(reference: Any = None, samples: int = 1, seed: int = 0) -> Corruption:
    """Activations of another prompt at the same token positions, drawn at random for each pair.

    Args:
        reference: text, texts, ids or a `TokenBatch`; prompts at least as long as the pair are drawn from. Default:
            the clean prompts of the other pairs.
        samples: draws for each pair; results are averaged over them.

    Raises:
        BadInput: samples below 1; when swept, a pair for which no prompt is long enough.
    """
    if samples < 1:
        raise BadInput(f"resample needs samples >= 1, not {samples}")
    return _Resample(reference, int(samples), int(seed))


def _reference(model: Model, pairs: TokenPairs, reference: Any) -> TokenBatch:
    return model.tokens([*pairs.clean.rows(), *pairs.corrupted.rows()] if reference is None else reference)


def _reference_runs(model: Model, tokens: TokenBatch, sites: Sequence[Site]) -> Any:
    for start in range(0, len(tokens), REFERENCE_ROWS):
        part = tokens[slice(start, start + REFERENCE_ROWS)].to(model.device)
        yield part, model.run(part, capture=sites, logits=False).activations
