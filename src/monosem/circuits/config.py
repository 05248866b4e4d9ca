"""The settings of a circuit job."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from ..errors import UnknownName
from ..jobs import JobConfig
from ..jobs.config import Seed
from .methods import known_method


class CircuitConfig(JobConfig):
    """What decides which circuit is found, and what is measured of it."""

    job: ClassVar[str] = "circuit"
    not_decisive: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    method: str = Field("eap-ig", description="How edges are scored: a row of circuits.EDGE_METHODS.")
    steps: int = Field(5, ge=1, le=1000, description="Gradients of methods with a path.")
    rule: Literal["midpoint", "left", "right"] = Field("midpoint", description="Where on each stretch they are taken.")
    metric: str | None = Field(None, description="Whose fall a score is; default: by the answers.")
    how: Literal["greedy", "top_n"] = Field("greedy", description="How edges are chosen.")
    by: Literal["signed", "absolute"] = Field(
        "absolute",
        description="absolute: edges that help and edges that work against the answer; signed: the first alone, which "
        "may give more than the model and be far from it.",
    )
    edges: int = Field(1000, ge=1, description="How many edges the circuit has, before pruning.")
    check: int = Field(60, ge=0, description="Edges that are patched exactly, half of them the largest; 0: none.")
    sets: int = Field(4, ge=1, description="Sets of nodes that are taken away for completeness.")
    nodes: int = Field(40, ge=1, description="Nodes that are taken out one by one.")
    batch_size: int = Field(8, ge=1, description="Pairs at once.")
    seed: Seed = Field(0, description="Of the sampled edges and sets.")

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            known_method(value)
        except UnknownName as error:
            raise ValueError(str(error)) from None
        return value
