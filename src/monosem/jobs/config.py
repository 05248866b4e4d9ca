"""What a job is: every setting that decides its result, one described field each, saved beside the result."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import BadFile, BadInput, did_you_mean
from ..files import write_text
from ..reading import read_yaml

MOST_COMPLAINTS = 10  # in one message
LARGEST: dict[type, float] = {int: 2.0**62, float: 1e38}  # what tensors hold: int64, and float32
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every random generator takes


class JobConfig(BaseModel):
    """The settings of a job that owns a folder; `claim` compares them when the job goes on."""

    # infinity and NaN are no settings, and no JSON
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    job: ClassVar[str]  # what the job makes, as messages name it: "training run"
    not_decisive: ClassVar[frozenset[str]] = frozenset()  # fields that may change when a job goes on
    shorthands: ClassVar[frozenset[str]] = frozenset()  # names that a config turns into fields of its own

    @model_validator(mode="before")
    @classmethod
    def _no_bool_is_a_number(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items():
            given = values.get(name)
            said = [one for one in (given if isinstance(given, list | tuple) else [given]) if isinstance(one, bool)]
            if said and bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"{name}: {str(said[0]).lower()} is not a value of this field")
        return values

    @model_validator(mode="after")
    def _numbers_can_be_computed_with(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            most = LARGEST.get(type(value))
            if most is not None and abs(value) > most:
                raise ValueError(f"{name}: {value:.3g} is beyond all numbers here; give one of at most {most:.3g}")
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """A config from plain values.

        Raises:
            BadInput: an unknown or missing field, or a value out of its range; one line that names every such field.
        """
        try:
            return cls(**{str(name): value for name, value in values.items()})
        except ValidationError as error:
            complaints = "; ".join(_complaint(cls, each) for each in error.errors()[:MOST_COMPLAINTS])
            raise BadInput(f"{cls.job}: {complaints}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """A config from a YAML file.

        Raises:
            BadFile: the file is missing, not YAML, or not a table. BadInput: as `parse`.
        """
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise BadFile(f"{path} is not the config of a {cls.job}: expected `field: value` lines")
        try:
            return cls.parse(values)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    def write(self, path: str | os.PathLike[str], *, header: str = "") -> None:
        """Write YAML that `read` takes. `header`: comment lines before it."""
        values = self.model_dump(mode="json")
        write_text(path, header + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _complaint(config: type[JobConfig], error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{name}: no such field{did_you_mean(str(error['loc'][-1]), {*config.model_fields, *config.shorthands})}"
    message = str(error["msg"]).removeprefix("Value error, ")  # pydantic's words before a validator's own
    return f"{name}: {message}" if name else message
