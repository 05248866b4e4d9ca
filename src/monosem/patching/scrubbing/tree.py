"""The tree of a hypothesis, computed: which prompts stand in for which, and what each claim is then worth."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...data import TokenPairs
from ...edits import patch
from ...errors import BadInput
from ...models import Branch, Model, Site
from .hypothesis import HEAD_INPUTS, Claim, Hypothesis, end_of_stream, place, positions_of, read_at

Refs = Int[Tensor, "rows"]  # for each row, the number of a prompt
Stream = Float[Tensor, "rows pos d_model"]
RUN_ROWS = 32  # prompts that run together for the plain activations


class Draws:
    """Which prompts stand in for which, and how often a prompt stood in for itself."""

    def __init__(self, examples: Sequence[Any], seed: int):
        self.examples = examples
        self.generator = torch.Generator().manual_seed(seed)
        self.groups: dict[int, dict[Hashable, list[int]]] = {}
        self.values: dict[int, list[Hashable]] = {}
        self.same: dict[int, list[float]] = defaultdict(list)

    def anything(self, rows: int) -> Refs:
        """A random prompt for each row."""
        return torch.randint(0, len(self.examples), (rows,), generator=self.generator)

    def agreeing(self, claim: Claim, refs: Refs) -> Refs:
        """For each row a random prompt that agrees with the row's on the claim's feature."""
        if claim.feature is None:
            return refs
        groups = self._groups(claim)
        share = torch.rand(len(refs), generator=self.generator).tolist()
        values = self.values[id(claim)]
        mates = [groups[values[ref]] for ref in refs.tolist()]
        drawn = torch.tensor([group[int(part * len(group))] for group, part in zip(mates, share)])
        self.same[id(claim)].append(float((drawn == refs).double().mean()))
        return drawn

    def _groups(self, claim: Claim) -> dict[Hashable, list[int]]:
        assert claim.feature is not None
        if id(claim) not in self.groups:
            values = [claim.feature(example) for example in self.examples]
            groups: dict[Hashable, list[int]] = defaultdict(list)
            for number, value in enumerate(values):
                try:
                    groups[value].append(number)
                except TypeError as error:
                    raise BadInput(f"the feature of {claim} gives {value!r}, which is not hashable") from error
            self.groups[id(claim)], self.values[id(claim)] = groups, values
        return self.groups[id(claim)]

    def table(self, hypothesis: Hypothesis) -> pd.DataFrame:
        rows = []
        for path, claim in hypothesis.claims():
            sizes = [1] * len(self.examples)
            if claim.feature is not None:
                sizes = [len(group) for group in self._groups(claim).values()]
            same = self.same.get(id(claim), [1.0])
            rows.append(
                {
                    "claim": path,
                    "resampled": claim.feature is not None,
                    "values": len(sizes),
                    "largest_group": max(sizes),
                    "same_prompt": sum(same) / len(same),
                }
            )
        return pd.DataFrame(rows, columns=["claim", "resampled", "values", "largest_group", "same_prompt"])


class Tree:
    """Values of claims, for rows that each stand for one prompt.

    Attributes:
        plain: every branch's activation on every prompt, and what enters the first block, `prompts pos ...`.
        logits: the model's own, after the last token, `prompts vocab`.
    """

    def __init__(self, model: Model, pairs: TokenPairs, draws: Draws, each: bool):
        self.model, self.pairs, self.draws, self.each = model, pairs, draws, each
        model.written_before(f"resid_post.{model.cfg.n_layers - 1}")  # refuses streams that are no sums
        branches = model.branches()
        heads = [branch.site("z") for branch in branches if branch.units == "head"]
        sites = [Site("resid_pre", 0), *heads, *(branch.out for branch in branches)]
        runs = [
            model.run(pairs.clean[slice(first, first + RUN_ROWS)], capture=sites, logits="last")
            for first in range(0, len(pairs), RUN_ROWS)
        ]
        self.plain = {site: torch.cat([run[site] for run in runs]) for site in sites}
        self.logits: Tensor = torch.cat([run.logits for run in runs])  # type: ignore[misc]

    def answer(self, inputs: Sequence[Claim], refs: Refs, random: Refs) -> Float[Tensor, "rows vocab"]:
        """Logits after the last token, computed from the inputs."""
        stream = self.stream(end_of_stream(self.model), inputs, refs, random)
        return self.model.unembed(stream[:, -1])

    def value(self, claim: Claim, refs: Refs) -> Tensor:
        """The claimed place's activation for each row, `rows pos ...` (all positions, for z all heads)."""
        drawn = self.draws.agreeing(claim, refs)
        site = place(claim)
        if claim.inputs is None:
            return (
                self.plain[site][drawn]
                if site in self.plain
                else self.stream(read_at(self.model, site), (), drawn, drawn)
            )
        if isinstance(claim.inputs, Mapping):
            return self._head(site, claim.inputs, drawn)
        stream = self.stream(read_at(self.model, site), claim.inputs, drawn, self.draws.anything(len(refs)))
        branch = self.model.branch_of(site)
        if branch is None:
            return stream
        return branch.answer(stream) if branch.pointwise else self._run(branch, site, stream)

    def stream(self, until: int, inputs: Sequence[Claim], refs: Refs, random: Refs) -> Stream:
        """The residual stream at a depth (`claims.read_at`): claimed places have their values, the others are random.

        Args:
            random: the prompt of all places that are not claimed, unless each draws its own.
        """
        claimed: dict[Site, list[tuple[Claim, Tensor]]] = defaultdict(list)
        for claim in inputs:
            claimed[place(claim)].append((claim, self.value(claim, refs)))
        each = self.each and random is not refs  # a leaf's stream comes from one prompt
        pick = (lambda: self.draws.anything(len(refs))) if each else (lambda: random)

        def written(site: Site, otherwise: Callable[[], Tensor]) -> Tensor:
            return self._written(otherwise(), claimed.get(site, ()))

        model = self.model
        hidden = self.plain[Site("resid_pre", 0)][pick()]
        for layer in model.layers():
            passed: set[Site] = set()
            for branch in model.branches(layer):
                if branch.reads not in passed:
                    passed.add(branch.reads)
                    hidden = written(branch.reads, lambda: hidden)  # noqa: B023
                    if until == model.depth(branch.reads):
                        return hidden
                heads = claimed.get(branch.inner, ()) if branch.inner else ()
                hidden = hidden + written(branch.out, lambda: self._output(branch, heads, pick, each))  # noqa: B023
            hidden = hidden * model.anatomy[layer].factor
            hidden = written(Site("resid_post", layer), lambda: hidden)  # noqa: B023
        return hidden

    def _output(
        self, branch: Branch, heads: Sequence[tuple[Claim, Tensor]], pick: Callable[[], Refs], each: bool
    ) -> Float[Tensor, "rows pos d_model"]:
        """What a branch adds: claimed heads have their values."""
        if branch.units != "head" or (not heads and not each):
            return self.plain[branch.out][pick()]
        site = branch.site("z")
        if each:
            z = torch.stack([self.plain[site][pick()][:, :, head] for head in range(branch.n_units)], 2)
        else:
            z = self.plain[site][pick()]
        return branch.write(branch.project(self._written(z, heads)))

    def _written(self, x: Tensor, claims: Sequence[tuple[Claim, Tensor]]) -> Tensor:
        if not claims:
            return x
        x = x.clone()
        for claim, value in claims:
            at = positions_of(claim, self.pairs)
            where = (slice(None), at) if claim.head is None else (slice(None), at, claim.head)
            x[where] = value[where].to(x.dtype)
        return x

    def _head(self, site: Site, inputs: Mapping[str, Sequence[Claim]], drawn: Refs) -> Tensor:
        """z from queries, keys and values that each read their own stream."""
        branch = self.model.branch_of(site)
        assert branch is not None
        edits, stream = [], None
        for kind in HEAD_INPUTS:
            random = self.draws.anything(len(drawn))
            stream = self.stream(read_at(self.model, site), inputs.get(kind, ()), drawn, random)
            edits.append(patch(branch.site(kind), branch.projections([kind], stream)[kind]))
        assert stream is not None
        return self._run(branch, site, stream, edits)

    def _run(self, branch: Branch, site: Site, stream: Stream, edits: Sequence[Any] = ()) -> Tensor:
        """The site in its native layer, when its branch reads `stream`."""
        tokens = self.pairs.clean[[0] * len(stream)]  # only their number counts: the stream is given
        start = (Site("resid_pre", site.layer), stream)
        if branch.reads != start[0]:
            edits = [patch(branch.reads, stream), *edits]
        return self.model.run(tokens, capture=site, edits=edits, logits=False, start=start)[site]
