"""The other side of a pair, when it is not the pair's own corrupted prompt.

A corruption is either another **run** (noised embeddings, another prompt), whose activations are patched and which can
be restored, or bare **values** (zero, means), which can only be written into the clean run (`direction="noising"`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import SkipRule
from ..data import TokenPairs
from ..edits import Edit
from ..errors import BadInput, check_name
from ..models import Model, Moment, Site, TokenBatch
from ..models.numbers import above, count, seed_of
from ..models.running.moment import EditLike
from .cells import SpanPositions, index_of, listed

OUTLIER = SkipRule.outlier  # the rule of harvests and statistics: norms above so many medians
NOISE_SCALES = ("prompts", "noised", "vocabulary")  # embeddings whose standard deviation is the unit of noise
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


@dataclass(frozen=True)
class Corruption:
    """Makes the other side of every pair.

    Attributes:
        label: in a few words, what it is.
        sides: called once for each sweep, with the model, the pairs and the sites that are patched.
        is_run: whether it is a run that can be restored, or bare values.
    """

    label: str
    sides: Callable[[Model, TokenPairs, Sequence[Site]], Sides] = field(repr=False)
    is_run: bool = True

    def __str__(self) -> str:
        return self.label


def _pairs_own(
    model: Model, pairs: TokenPairs, values: Callable[[Site, Tensor], Tensor] | None = None, latent: float | None = None
) -> Sides:
    """The pairs' corrupted prompts, which stay that end of the scale when values are written instead."""
    return lambda row: [Side(pairs.corrupted[[row]].to(model.device), values=values, latent=latent)]


PROMPT = Corruption("corrupted prompt", lambda model, pairs, sites: _pairs_own(model, pairs))  # the default


def noise(
    sd: float = 3.0,
    samples: int = 10,
    positions: SpanPositions | Bool[Tensor, "batch pos"] | None = None,
    seed: int = 0,
    *,
    of: Literal["prompts", "noised", "vocabulary"] | float = "prompts",
) -> Corruption:
    """The clean prompt with Gaussian noise added to token embeddings, as in causal tracing (Meng et al. 2022).

    Args:
        sd: of the noise, in units of `of` (3 in the paper).
        samples: draws for each pair; results are averaged over them.
        positions: noised tokens, indices or span names, or a mask `batch pos` in the layout of the pairs' clean tokens;
            default: where clean and corrupted prompt differ.
        seed: draws depend on it and on the number of the pair alone.
        of: the standard deviation of which embeddings, over tokens and dimensions together: of the pairs' clean
            "prompts", of their "noised" tokens (the paper's code: subjects), or of the whole "vocabulary"; or a number.

    Raises:
        BadInput: sd, samples or the number not positive; when swept, a pair without a token to noise.
        UnknownName: no such embeddings.
    """
    sd, samples, seed = above(sd, "sd"), count(samples, "samples"), seed_of(seed)
    if isinstance(of, str):
        check_name("scale of noise", of, NOISE_SCALES)
    else:
        of = above(of, "of=", others=f"{', '.join(NOISE_SCALES)} or ")
    label = f"embedding noise of {sd:g} sd" if isinstance(of, str) else f"embedding noise of {sd * of:g}"

    def sides(model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        where = _noised(pairs, positions)
        size = sd * (_noise_scale(model, pairs, where, of) if isinstance(of, str) else of)

        def draws(row: int) -> list[Side]:
            tokens = pairs.clean[[row]].to(model.device)
            generator = _generator(seed, row)
            made = []
            for _ in range(samples):
                drawn = torch.zeros(tokens.ids.shape[1], model.cfg.d_model)
                drawn[where[row]] = size * torch.randn(len(where[row]), model.cfg.d_model, generator=generator)
                made.append(Side(tokens, [_added(drawn.to(model.device), label)]))
            return made

        return draws

    return Corruption(label, sides)


def _generator(seed: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**64)


def _noised(pairs: TokenPairs, positions: SpanPositions | Tensor | None) -> list[list[int]]:
    """The token indices of every pair that get noise."""
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        mask = positions
        if mask.shape != pairs.clean.mask.shape:
            raise BadInput(f"a mask of positions is {tuple(pairs.clean.mask.shape)} here, not {tuple(mask.shape)}")
    elif positions is None:
        mask = pairs.differs
    else:
        chosen = listed(pairs, positions)  # type: ignore[arg-type]  # no mask
        return [sorted({index_of(at, pairs, row) for at in chosen}) for row in range(len(pairs))]
    mask, real = mask.cpu(), pairs.clean.mask.cpu()
    where = [mask[row][real[row]].nonzero()[:, 0].tolist() for row in range(len(pairs))]
    for row, indices in enumerate(where):
        if not indices:
            raise BadInput(f"pair {row} has no differing token to noise; say which with noise(positions=[...])")
    return where


def _noise_scale(model: Model, pairs: TokenPairs, where: Sequence[Sequence[int]], of: str) -> float:
    if of == "vocabulary":
        return float(model.W_E.float().std())
    noised = pairs.clean.mask.cpu().clone()
    if of == "noised":
        for row, indices in enumerate(where):
            noised[row] &= torch.isin(pairs.clean.positions[row].cpu(), torch.tensor(indices))
    return embedding_sd(model, pairs.clean, noised)


def embedding_sd(model: Model, tokens: TokenBatch, chosen: Bool[Tensor, "batch pos"] | None = None) -> float:
    """Standard deviation over real tokens (or the chosen ones) and dimensions of the embeddings, as the model adds them
    to the stream."""
    values = model.run(tokens, capture="embed", logits=False)["embed"]
    return float(values[(tokens.mask if chosen is None else chosen).to(values.device)].float().std())


def _added(noise: Float[Tensor, "pos d_model"], label: str) -> Edit:
    def fn(x: Tensor, moment: Moment) -> Tensor:  # an answer may follow the prompt
        return x.float() + torch.nn.functional.pad(noise, (0, 0, 0, x.shape[1] - len(noise)))

    return Edit(Site("embed"), fn, label)


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

    def sides(model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        rows = (pairs.clean if reference is None else model.tokens(reference)).rows()

        def draws(row: int) -> list[Side]:
            length = int(pairs.clean.lengths[row])
            fitting = [i for i, ids in enumerate(rows) if len(ids) >= length and (reference is not None or i != row)]
            if not fitting:
                raise BadInput(f"no other reference prompt has the {length} tokens of pair {row}; give longer ones")
            drawn = torch.randint(0, len(fitting), (samples,), generator=_generator(seed, row)).tolist()
            # attention is causal: the first tokens of a longer prompt have the activations that they have in it
            cut = [rows[fitting[i]][:length] for i in drawn]
            return [Side(model.tokens([ids]).to(model.device)) for ids in cut]

        return draws

    return Corruption("resampled prompt", sides)


# ---------------------------------------------------------------------- values
def zero() -> Corruption:
    """Zeros: what the place contributes is removed, which is often far from anything the model has seen."""
    zeros = lambda site, clean: torch.zeros_like(clean)  # noqa: E731
    return Corruption("zero", lambda model, pairs, sites: _pairs_own(model, pairs, zeros, latent=0.0), is_run=False)


def constants(values: Mapping[Site, Tensor], label: str = "constant") -> Corruption:
    """One value for every token of a site, as it is given: `site -> d`, or `head d_head`.

    Raises:
        BadInput: when swept, a site without a value.
    """

    def sides(model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        if missing := [str(site) for site in sites if site not in values]:
            raise BadInput(f"{label}: no value was given for {missing[0]} ({len(missing)} sites lack one)")
        return _pairs_own(model, pairs, lambda site, clean: values[site].to(clean).expand_as(clean))

    return Corruption(label, sides, is_run=False)


def mean(reference: Any = None, *, outlier: float | None = OUTLIER) -> Corruption:
    """The mean over all real tokens of a reference: one value for every position.

    Args:
        reference: text, texts, ids or a `TokenBatch`; default: clean and corrupted prompts of the pairs.
        outlier: tokens whose norm at a site is above so many medians are left out of its mean there: a few attention
            sinks, with norms a hundred times the others', would be all of it. None keeps them.
    """
    return _one_value("mean", reference, outlier, last=False)


def last_mean(reference: Any = None, *, outlier: float | None = OUTLIER) -> Corruption:
    """The mean over the last tokens of a reference's prompts: one value for every position that is patched.

    With the last position alone (`positions=-1`) it puts what the reference's prompts have there on average into
    another prompt, as function vectors do (Todd et al. 2024).

    Args:
        reference, outlier: as in `mean`.
    """
    return _one_value("mean at the last token", reference, outlier, last=True)


def _one_value(label: str, reference: Any, outlier: float | None, last: bool) -> Corruption:
    if outlier is not None:
        above(outlier, "outlier=, in medians of the norm,", 1, others="None or ")

    def sides(model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        means = token_means(model, _reference(model, pairs, reference), sites, last=last, outlier=outlier)
        return _pairs_own(model, pairs, lambda site, clean: means[site].to(clean).expand_as(clean))

    return Corruption(label, sides, is_run=False)


def positional_mean(reference: Any = None) -> Corruption:
    """The mean at each token position, over the prompts of a reference (as in `mean`) that have that position."""

    def sides(model: Model, pairs: TokenPairs, sites: Sequence[Site]) -> Sides:
        means = positional_means(model, _reference(model, pairs, reference), sites)

        def values(site: Site, clean: Tensor) -> Tensor:
            here = means[site].to(clean)
            for axis in token_axes(site):
                length = clean.shape[axis]
                if here.shape[axis] < length:
                    raise BadInput(
                        f"the reference has no prompt of {length} tokens, so there is no mean at the last position; "
                        "give longer prompts, or use mean()"
                    )
                here = here.narrow(axis, 0, length)
            return here

        return _pairs_own(model, pairs, values)

    return Corruption("positional mean", sides, is_run=False)


def token_means(
    model: Model, tokens: TokenBatch, sites: Sequence[Site], *, last: bool = False, outlier: float | None = OUTLIER
) -> dict[Site, Tensor]:
    """Mean over all real tokens (or the last one of each row) but outliers, for every site, without batch and position
    axis. The median that outliers are told by is of the first `REFERENCE_ROWS` rows.

    Raises:
        BadInput: a pattern, whose rows mean different keys at different positions.
    """
    for site in sites:
        if site.query_axis == 2:
            raise BadInput(f"a mean of {site} over positions has no meaning; use positional_mean() or zero()")
    sums = {site: torch.zeros((), dtype=torch.float64) for site in sites}
    counts, limits = dict.fromkeys(sites, 0), dict[Site, float]()
    for part, site, value in _reference_runs(model, tokens, sites):
        x = value[range(len(value)), part.last] if last else value[part.mask.to(value.device)]
        norms = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
        limit = limits.setdefault(site, (outlier or torch.inf) * float(norms.median()) or torch.inf)
        kept = norms <= limit
        sums[site] = sums[site] + x[kept].double().sum(0).cpu()
        counts[site] += int(kept.sum())
    return {site: total / counts[site] for site, total in sums.items()}


def positional_means(model: Model, tokens: TokenBatch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Mean at each token index over the rows that have it, without batch axis; position 0 is the first real token."""
    longest = int(tokens.lengths.max())
    sums: dict[Site, Tensor] = {}
    for part, site, value in _reference_runs(model, tokens, sites):
        for row, mask in enumerate(part.mask.to(value.device)):
            real, here = mask.nonzero()[:, 0], value[row]
            shape = list(here.shape)
            for axis in token_axes(site):
                here, shape[axis] = here.index_select(axis, real), longest
            total = sums.setdefault(site, torch.zeros(shape, dtype=torch.float64))
            for axis in token_axes(site):
                total = total.narrow(axis, 0, len(real))
            total += here.double().cpu()
    # a query is there in as many rows as it has keys from
    counts = (tokens.lengths.cpu()[:, None] > torch.arange(longest)).sum(0).double()
    axes = {site: token_axes(site)[0] for site in sums}
    return {
        site: total / counts.reshape(*[1] * axes[site], -1, *[1] * (total.ndim - axes[site] - 1))
        for site, total in sums.items()
    }


def token_axes(site: Site) -> tuple[int, ...]:
    """The axes of token positions, without a batch axis; of a pattern `head query key`."""
    return (1, 2) if site.query_axis == 2 else (0,)


def _reference(model: Model, pairs: TokenPairs, reference: Any) -> TokenBatch:
    return model.tokens([*pairs.clean.rows(), *pairs.corrupted.rows()] if reference is None else reference)


def _reference_runs(
    model: Model, tokens: TokenBatch, sites: Sequence[Site]
) -> Iterator[tuple[TokenBatch, Site, Float[Tensor, "row ..."]]]:
    """Some rows of the reference at a time, and what they have at each site."""
    for start in range(0, len(tokens), REFERENCE_ROWS):
        part = tokens[slice(start, start + REFERENCE_ROWS)].to(model.device)
        captured = model.run(part, capture=sites, logits=False).activations
        yield from ((part, site, value) for site, value in captured.items())
