"""What the browser may ask for: every field has its bounds, and what is wrong is one line."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..errors import BadInput
from .words import of_field

Text = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Latent = Annotated[int, Field(ge=0, lt=2**31)]
Amount = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class Ask(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def title(self) -> str:
        """What a list of jobs says of it."""
        return str(getattr(self, "text", None) or f"latent {getattr(self, 'latent', '')}")[:60]

    @classmethod
    def parse(cls, values: Any) -> Self:
        """Raises `BadInput` that names the first field that is wrong."""
        return parsed(cls, values)


Kind = TypeVar("Kind", bound=BaseModel)


def parsed(kind: type[Kind], values: Any) -> Kind:
    """Plain values as a model of pydantic. Raises `BadInput` that names the first field that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = kind.model_fields.get(str(first["loc"][0])) if first["loc"] else None
        label = (field and field.title) or ".".join(map(str, first["loc"])) or "the request"
        raise BadInput(of_field(label, first)) from error


class Dose(Ask):
    """A latent, or a direction by its name, and how much of it."""

    latent: Latent | None = None
    direction: Name | None = None
    value: Amount

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        if (self.latent is None) == (self.direction is None):
            raise ValueError("a dose is of a latent or of a direction")
        return self


class Arm(Ask):
    """What is changed together. `times`: all doses times this; with `units` "nats", the KL that is wanted."""

    name: Annotated[str, StringConstraints(max_length=40)] = ""
    doses: Annotated[list[Dose], Field(min_length=1, max_length=16)]
    times: Annotated[float, Field(ge=-1e4, le=1e4)] = 1.0


class OnText(Ask):
    """A text that the dictionary's model reads."""

    dictionary: Name
    text: Annotated[Text, Field(title="the text")]
    chat: bool = False


class TryText(OnText):
    """Where one latent fires in a text."""

    latent: Latent


class PromptText(OnText):
    """The strongest latents of every token; `other`: a second text, to see what differs."""

    n: Annotated[int, Field(ge=1, le=50)] = 10
    other: Annotated[str, StringConstraints(max_length=4000)] = ""


class Steer(OnText):
    """A continuation without edits and one for each arm. `how`: add to a latent, set it, or multiply it. `units`: of
    values that are added: a latent's or direction's own; the usual length of an activation at the site; or own ones,
    all scaled until the most changed twentieth of the tokens differs by so many nats (iso-KL)."""

    arms: Annotated[list[Arm], Field(min_length=1, max_length=8)]
    how: Literal["add", "set", "multiply"] = "add"
    units: Literal["own", "norms", "nats"] = "own"
    tokens: Annotated[int, Field(ge=1, le=400)] = 60
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Lens(OnText):
    """The likeliest token of every layer."""

    lens: Literal["logit", "tuned"] = "logit"


class Removed(Ask):
    """What removing a latent does to an example: the ids of its tokens."""

    dictionary: Name
    latent: Latent
    ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=1024)]


class Sources(OnText):
    """Which heads, looking at which tokens, make an attention latent fire at a token (-1: the last)."""

    latent: Latent
    position: Annotated[int, Field(ge=-1, lt=1024)] = -1


class Weights(Ask):
    """What a latent's page says with the model's weights beside the dictionary's."""

    dictionary: Name
    latent: Latent


class Patch(OnText):
    """Every place of a clean prompt written into a corrupted one, and how far the answer comes back."""

    text: Annotated[Text, Field(title="the clean prompt")]
    corrupted: Annotated[Text, Field(title="the corrupted prompt")]
    answer: Annotated[str, StringConstraints(min_length=1, max_length=100), Field(title="the right answer")]
    wrong: Annotated[str, StringConstraints(min_length=1, max_length=100), Field(title="the wrong answer")]


class Graph(OnText):
    """The attribution graph of a prompt."""

    nodes: Annotated[int, Field(ge=10, le=5000)] = 300


ASKS: dict[str, type[Ask]] = {
    "try": TryText,
    "prompt": PromptText,
    "steer": Steer,
    "lens": Lens,
    "patch": Patch,
    "graph": Graph,
    "removed": Removed,
    "sources": Sources,
    "weights": Weights,
}
