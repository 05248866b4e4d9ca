"""A stream of another dictionary's decoder rows: what a meta-SAE is trained on (Leask et al. 2025, arXiv 2502.04878).

Its latents are directions that several latents of the other dictionary share.
"""

from collections.abc import Mapping
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from ...activations.schedule import Schedule
from ...errors import BadInput, Mismatch
from ..dictionary import Dictionary
from ..loading import one_site
from .config import AnyConfig, sites_of


class DecoderRows:
    """Batches of unit rows, all of them in every epoch, each time in another order; its state is one number.

    Raises:
        BadInput: a batch would hold more rows than the dictionary has.
        Mismatch: the run is of another site than the rows are written at.
    """

    def __init__(self, dictionary: Dictionary, config: AnyConfig):
        self.rows, self.batch_tokens, self.cursor = dictionary.W_dec.detach().float(), config.batch_tokens, 0
        norms = self.rows.norm(dim=1, keepdim=True)
        self.rows = (self.rows / norms)[norms[:, 0] > 0]
        self.written_by = f"{dictionary.name} {dictionary.fingerprint}"
        if len(self.rows) < self.batch_tokens:
            raise BadInput(
                f"{dictionary.name} has {len(self.rows):,} decoder rows, fewer than a batch; make batch_tokens smaller"
            )
        if dictionary.has_site_out and sites_of(config) != [str(dictionary.site_out)]:
            raise Mismatch(
                f"the rows of {dictionary.name} are written at {dictionary.site_out}; set site to that, not to "
                f"{', '.join(sites_of(config))}"
            )
        wanted = config.steps * self.batch_tokens
        self.schedule = Schedule(len(self.rows), config.seed, -(-wanted // len(self.rows)))

    @classmethod
    def of(cls, config: AnyConfig) -> Self:
        """Of the dictionary that the config names."""
        assert config.meta_of is not None
        return cls(one_site(config.meta_of), config)

    def __next__(self) -> Float[Tensor, "batch d"]:
        if self.cursor + self.batch_tokens > len(self.schedule):
            raise StopIteration
        indices = self.schedule.take(self.cursor, self.batch_tokens)
        self.cursor += self.batch_tokens
        return self.rows[indices]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "rows": self.written_by}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `Mismatch` when the rows are others."""
        if state["rows"] != self.written_by:
            raise Mismatch(f"the run was begun on the rows of {state['rows']}, not of {self.written_by}; start anew")
        self.cursor = int(state["cursor"])
