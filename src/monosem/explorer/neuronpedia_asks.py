"""What Neuronpedia's addresses take. Fields that the service takes and this server has no use for are passed over."""

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

MOST_FOUND = 1000  # results of a search

Words = Annotated[str, Field(min_length=1, max_length=4000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[int, Field(ge=0, lt=2**31)]


class Wanted(BaseModel):
    """A request; numbers may come as text."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, populate_by_name=True)


class OfSource(Wanted):
    modelId: Name
    source: Name = Field(validation_alias=AliasChoices("source", "layer"))


class OfLatent(OfSource):
    index: Number


class Activation(Wanted):
    feature: OfLatent
    customText: Words | Annotated[list[Words], Field(min_length=1, max_length=16)]


class Active(OfSource):
    customText: Words | Annotated[list[Words], Field(min_length=1, max_length=4)]


class SearchAll(Wanted):
    modelId: Name
    sourceSet: Name
    text: Words
    selectedLayers: Annotated[list[Name], Field(max_length=100)] = []
    sortIndexes: Annotated[list[Number], Field(max_length=1024)] = []
    ignoreBos: bool = True
    densityThreshold: float = -1
    numResults: Annotated[int, Field(ge=1, le=100)] = 50


class SearchTop(OfSource):
    text: Words
    numResults: Annotated[int, Field(ge=1, le=20)] = 10
    ignoreBos: bool = True
    densityThreshold: float = 0.01


class SearchWords(Wanted):
    query: Annotated[str, Field(min_length=3, max_length=1000)]
    modelId: Name | None = None
    layers: Annotated[list[Name], Field(max_length=100)] = []
    offset: Annotated[int, Field(ge=0, le=MOST_FOUND)] = 0


class Strength(OfLatent):
    strength: Annotated[float, Field(ge=-1e6, le=1e6)]


class SteerText(Wanted):
    prompt: Annotated[str, Field(min_length=1, max_length=2048)]
    modelId: Name
    features: Annotated[list[Strength], Field(min_length=1, max_length=20)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.5
    n_tokens: Annotated[int, Field(ge=1, le=256)] = 32
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 16
    n_logprobs: Annotated[int, Field(ge=0, le=10)] = 5
    strength_multiplier: Annotated[float, Field(ge=-10, le=10)] = 4
    steer_method: Literal["SIMPLE_ADDITIVE", "ORTHOGONAL_DECOMP"] = "SIMPLE_ADDITIVE"


class Traced(Wanted):
    prompt: Words
    modelId: Name
    slug: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")] | None = None
    nodeThreshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    edgeThreshold: Annotated[float, Field(gt=0, le=1)] = 0.85
    maxFeatureNodes: Annotated[int, Field(ge=10, le=5000)] = 1000


class Listed(Wanted):
    name: Name
    features: Annotated[list[OfLatent], Field(max_length=1000)] = []
