"""The settings of a comparison of methods."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..errors import UnknownName
from ..jobs import JobConfig
from ..jobs.config import Seed
from ..models import Model
from .entrants import ENTRANTS, entrants

DEPTHS = (0.25, 0.4, 0.5, 0.6, 0.75)  # of the model, whose layers are read where none are named
Position = int | Literal["last", "mean"]


class MethodsConfig(JobConfig):
    """What a comparison is made with; concepts may be added to its folder later."""

    job: ClassVar[str] = "comparison of methods"
    not_decisive: ClassVar[frozenset[str]] = frozenset({"concepts", "batch_size"})

    concepts: tuple[str, ...] = Field((), description="names, as the report shows them")
    methods: tuple[str, ...] = Field(tuple(ENTRANTS), description="rows of ENTRANTS")
    layers: tuple[int, ...] | None = Field(None, description="whose outputs are read; default: five, over the depth")
    positions: tuple[Position, ...] = Field(("last", "mean"), min_length=1, description="tokens that are read")
    fit: int = Field(120, ge=4, description="texts of a class that methods are fitted on, at most")
    choose: int = Field(60, ge=2, description="texts of a class by which places are chosen, at most")
    test: int = Field(60, ge=2, description="texts of a class on which detection is measured, at most")
    longest: int = Field(48, ge=4, description="tokens of a text, at most")
    openings: int = Field(16, ge=4, description="openings that are continued, at most")
    max_new_tokens: int = Field(16, ge=2, description="length of a continuation")
    budgets: tuple[float, ...] = Field((0.3, 1.0, 3.0), min_length=1, description="KLs at which methods are compared")
    budget: float = Field(1.0, gt=0, description="the one of them at which methods are ranked")
    seed: Seed = Field(0, description="of everything random")
    batch_size: int = Field(64, ge=1, description="texts of a pass; decides no number beyond rounding")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            entrants(self.methods)
        except UnknownName as error:
            raise ValueError(str(error)) from error
        if not all(0 < one < 100 for one in self.budgets) or len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"budgets are different numbers of nats above 0, not {list(self.budgets)}")
        if self.budget not in self.budgets:
            raise ValueError(f"budget {self.budget:g} is not one of budgets {list(self.budgets)}")
        if len(set(self.positions)) < len(self.positions):
            raise ValueError("a position is named twice")
        return self

    def layers_of(self, model: Model) -> list[int]:
        """The layers that are read. Raises `UnknownName` for one that the model does not have."""
        depth = model.cfg.n_layers
        chosen: Any = sorted({int(share * depth) for share in DEPTHS}) if self.layers is None else list(self.layers)
        return list(dict.fromkeys(model.layers(chosen)))
