"""What the identities of `verify.py` share: one run of a model on random tokens, and the rows that they add."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from ..model import Model
from ..places.branches import Branch
from ..places.points import point
from ..places.sites import EMBEDDINGS, PER_LAYER, Site
from ..running.moment import Moment
from ..running.result import Run
from ..running.run import inputs
from ..tokens import TokenBatch
from .routers import Choices

# largest allowed error relative to the largest value of the reference, by dtype; a float64 model of transformers is
# exact to float32 only: whatever its dtype, it computes norms, attention patterns and rotations in float32
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 1.5e-1, torch.float16: 2e-2}


VALUES = ("values", "cross_attn_values")  # what patterns mix: captured when it is named


@dataclass(frozen=True, eq=False)
class Patch:
    """The smallest edit: this room knows nothing of `monosem.edits`."""

    site: Site
    fn: Callable[[Tensor], Tensor]

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        return self.fn(x), True


class Checks:
    """One model's run on random tokens. Of an encoder, which gives no logits, its last states stand for them."""

    def __init__(self, model: Model, tokens: TokenBatch):
        self.model, self.tokens = model, tokens
        self.rows: list[dict[str, object]] = []
        self.choices = Choices(model)

    @cached_property
    def capture(self) -> list[Site]:
        there = ((name, n) for n in self.model.layers() for name in PER_LAYER if name in self.model.anatomy[n].places)
        return [Site(name, n) for name, n in there if self.model.has((name, n))]

    @cached_property
    def run(self) -> Run:
        """With all sites. Raises `BadInput` where nothing can be verified."""
        model = self.model
        self.writable = [site for site in self.capture if not point(model, site).fixed]
        ends = [name for name in (*EMBEDDINGS, "final_norm") if model.has(name)]
        values = [Site(name, n) for name in VALUES for n in model.layers() if model.has((name, n))]
        source = [] if model.encoder is None else [model.source_states]
        runs: list[Run] = []

        def forward() -> Tensor:
            runs.append(model.run(self.tokens, capture=[*self.capture, *values, *ends, *source]))
            return runs[0].logits if runs[0].logits is not None else runs[0][self.last]

        self.choices.of(forward)
        self._check_alive(runs[0])
        return runs[0]

    @cached_property
    def last(self) -> Site:
        """What a model without logits gives."""
        return Site("final_norm") if self.model.has("final_norm") else Site("resid_post", self.model.cfg.n_layers - 1)

    @property
    def given(self) -> str:
        """The name of what is compared at the end."""
        return str(self.last) if self.model.headless else "logits"

    @property
    def explicit(self) -> Tensor:
        return self.run[self.last] if self.model.headless else self.run.logits  # type: ignore[return-value]

    @property
    def precise(self) -> bool:
        """Whether rounding is no matter; elsewhere it is more than what is looked for, and may turn routers."""
        return self.model.dtype in (torch.float32, torch.float64)

    def plain(self, site: Site) -> Tensor:
        """As the model's own attention makes it, where rounding matters: without scores and patterns."""
        return self.run[site] if self.precise else self.model.run(self.tokens, capture=site, logits=False)[site]

    @cached_property
    def native(self) -> Tensor:
        def forward() -> Tensor:
            out = self.model.hf(**inputs(self.model, self.tokens), use_cache=False)
            return out[0] if self.model.headless else out.logits  # type: ignore[no-any-return]

        with torch.no_grad(), self.model.turn():
            return self.choices.of(forward)

    def _check_alive(self, run: Run) -> None:
        """Raises `BadInput` where nothing can be verified: numbers that are not finite, or that are all the same."""
        for site in self.capture:
            values = run[site]
            if site.name != "scores" and not bool(values.isfinite().all()):  # hidden keys have no score
                bad = values[~values.isfinite()][0].item()
                raise BadInput(f"{self.model.name} computes {bad:g} at {site}, so that no identity says anything")
        low, high = (float(end) for end in self.native.float().aminmax())
        if not low < high < float("inf"):
            raise BadInput(
                f"{self.model.name} is degenerate: its logits run from {low:g} to {high:g}, whatever the tokens, so "
                "that every identity holds and none says anything; was it trained?"
            )

    def add(self, site: str, identity: str, value: Tensor, expected: Tensor, *, slack: float = 1.0) -> None:
        """A row; `slack` times the usual tolerance is allowed."""
        error = float("inf")
        if (kept := self.choices.alike(value, expected)) is not None:
            value, expected = value[kept], expected[kept]
        if value.shape == expected.shape:
            worst = (value.float() - expected.float()).abs().max()
            error = float(worst / expected.float().abs().max().clamp(min=1e-12))
        ok = error <= slack * TOLERANCE.get(self.model.dtype, 1e-4)  # NaN compares false
        self.rows.append({"site": site, "identity": identity, "error": error, "ok": ok})

    def add_all(self, site: str, identity: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """One row for several layers, whose sizes may differ; none where there is no layer."""
        values, expected = ([side.float() for side in sides] for sides in zip(*pairs)) if pairs else ((), ())
        if any(one.shape != other.shape for one, other in zip(values, expected)):
            self.add(site, identity, torch.zeros(0), torch.zeros(1))
        elif values:
            self.add(site, identity, *(torch.cat([x.flatten() for x in side]) for side in (values, expected)))

    def logits(self, tokens: TokenBatch | None = None, **options: Any) -> Tensor:
        given, tokens = self.last if self.model.headless else None, tokens or self.tokens
        if given is not None:
            return self.choices.of(lambda: self.model.run(tokens, **options | {"capture": given})[given])
        return self.choices.of(lambda: self.model.run(tokens, **options).logits)  # type: ignore[arg-type, return-value]

    def all_of(self, branches: Iterable[Branch], name: str) -> Tensor:
        """A site of several branches, stacked."""
        return torch.stack([self.run[branch.site(name)] for branch in branches])
