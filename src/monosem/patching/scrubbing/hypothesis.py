"""Hypotheses for causal scrubbing: claims that a place carries a feature of the prompt, computed from other places."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data import TokenPairs
from ...errors import BadInput
from ...models import Branch, Model, Site, SiteLike
from ..cells import SpanPositions, index_of, listed

Feature = Callable[[Any], Hashable]
Inputs = Sequence["Claim"] | Mapping[str, Sequence["Claim"]]

HEAD_INPUTS = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Claim:
    """A place, the feature of the prompt that it is said to carry, and what it is said to compute it from.

    Attributes:
        site: "z.L" (with a head), "attn_out.L", "mlp_out.L", a residual site, or "embed" (what enters the first block).
        feature: function of an example; prompts with an equal value are interchangeable here. None: only the prompt
            itself is, so nothing is resampled.
        inputs: what it reads, as claims; every other place is random. For a head also {"q": ..., "k": ..., "v": ...},
            claims for each of its three inputs. None: everything it reads comes from the one drawn prompt.
        head: for z. positions: token indices, or spans that lie alike in all prompts; None for all.
        name: shown in tables; default: the place.
    """

    site: SiteLike
    feature: Feature | None = None
    inputs: Inputs | None = None
    head: int | None = None
    positions: SpanPositions | None = None
    name: str = ""

    def __str__(self) -> str:
        if self.name:
            return self.name
        at = "" if self.positions is None else f" at {self.positions}"
        return f"{place(self)}{'' if self.head is None else f' head {self.head}'}{at}"


@dataclass(frozen=True)
class Hypothesis:
    """What the answer is said to be computed from; everything else is said not to matter."""

    inputs: Sequence[Claim] = ()

    def claims(self) -> list[tuple[str, Claim]]:
        """Every claim with its path from the answer, as the tree has it."""
        claims: list[tuple[str, Claim]] = []

        def walk(inputs: Inputs, path: str) -> None:
            for key, several in _by_input(inputs).items():
                for claim in several:
                    here = f"{path} < {f'{key} ' if key else ''}{claim}"
                    claims.append((here, claim))
                    walk(claim.inputs or (), here)

        walk(self.inputs, "answer")
        return claims


def place(claim: Claim) -> Site:
    """The claim's site; "embed" means everything that enters the first block (positions included)."""
    site = Site.parse(claim.site)
    return Site("resid_pre", 0) if site.name == "embed" else site


def _by_input(inputs: Inputs | None) -> dict[str, Sequence[Claim]]:
    """Claims by the head's input that they feed; one entry without a name where it is not said."""
    return dict(inputs) if isinstance(inputs, Mapping) else {"": inputs or ()}


def read_at(model: Model, site: Site) -> int:
    """How far along the stream a site's branch reads (`Model.depth`); a stream site is its own input."""
    branch = model.branch_of(site)
    return model.depth(site if branch is None else branch.reads)


def positions_of(claim: Claim, pairs: TokenPairs) -> list[int] | slice:
    """Token indices of a claim, the same in every prompt.

    Raises:
        BadInput: a span that lies elsewhere in some prompts. UnknownName: no such span.
    """
    if claim.positions is None:
        return slice(None)
    indices: list[int] = []
    for position in listed(pairs, claim.positions):
        places = {index_of(position, pairs, row) for row in range(len(pairs))}
        if len(places) > 1:
            raise BadInput(
                f"{claim}: {position!r} lies at different tokens in different prompts; use prompts of one form"
            )
        indices += places
    return sorted(set(indices))


def end_of_stream(model: Model) -> int:
    return model.depth(("resid_post", model.cfg.n_layers - 1))


def _claimed_of(branch: Branch) -> tuple[Site | None, ...]:
    """Where claims about a branch can be: its heads, and what it adds to the stream."""
    return (branch.inner, branch.out) if branch.units == "head" else (branch.out,)


def _claimable(model: Model, layer: int | None) -> str:
    branches = model.branches(layer or 0)
    streams = dict.fromkeys(["resid_pre", *(branch.reads.name for branch in branches), "resid_post"])
    return ", ".join([*(site.name for one in branches for site in _claimed_of(one) if site), *streams])


def check_claims(model: Model, hypothesis: Hypothesis, pairs: TokenPairs) -> None:
    """Raises `BadInput` or `UnknownName` for claims that cannot be computed; names the claim."""
    for path, claim in hypothesis.claims():
        site = model.site(place(claim))
        branch = model.branch_of(site)
        if not site.in_stream and (branch is None or site not in _claimed_of(branch)):
            raise BadInput(f"{path}: claims are about {_claimable(model, site.layer)} or embed, not {site}")
        of_heads = branch is not None and branch.units == "head" and site == branch.inner
        if claim.head is not None and (not of_heads or not 0 <= claim.head < model.cfg.n_heads):
            raise BadInput(f"{path}: a head goes with z, and there are 0 to {model.cfg.n_heads - 1}")
        if isinstance(claim.inputs, Mapping) and (not of_heads or not set(claim.inputs) <= set(HEAD_INPUTS)):
            raise BadInput(f"{path}: inputs by name are q, k and v of a z claim")
        for claims in _by_input(claim.inputs).values():
            _check_inputs(model, path, claims, read_at(model, site), site.in_stream, pairs)
    _check_inputs(model, "answer", hypothesis.inputs, end_of_stream(model), False, pairs)


def _check_inputs(
    model: Model, path: str, claims: Sequence[Claim], read: int, strictly: bool, pairs: TokenPairs
) -> None:
    taken: set[tuple[Site | None, int | None, int]] = set()
    for claim in claims:
        site = model.site(place(claim))
        if model.depth(site) + strictly > read:
            raise BadInput(f"{path} cannot read {claim}: it is computed later")
        branch = model.branch_of(site)
        of_heads = branch is not None and branch.units == "head"
        heads = range(model.cfg.n_heads) if of_heads and claim.head is None else [claim.head]
        whole = branch.inner if branch is not None and of_heads else site
        at = positions_of(claim, pairs)
        parts = {
            (whole, head, position)
            for head in heads
            for position in (range(int(pairs.clean.lengths[0])) if isinstance(at, slice) else at)
        }
        if parts & taken:
            raise BadInput(f"{path} reads {claim}, which another of its inputs covers as well")
        taken |= parts
