"""Which tokens a dictionary was trained on, as its metadata says it: `metadata["skip_rule"]`.

    {"special": true, "first": 1, "outlier": 10.0, "calibration": 16, "outlier_norm": 1687.8}

is a `SkipRule`, and the norm above which a token was an outlier in training. Files of other tools do not say; for them
the default rule holds, and the norm is measured (`activations.median_norms`).
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import Skipper, SkipRule
from ..errors import BadInput
from ..models import Model, Moment
from ..models.places.sites import Site

KEY = "skip_rule"


def written(rule: SkipRule, outlier_norm: float | None = None) -> dict[str, Any]:
    """The entry of the metadata."""
    return asdict(rule) | ({} if outlier_norm is None else {"outlier_norm": float(outlier_norm)})


def rule_of(metadata: Mapping[str, Any]) -> tuple[SkipRule, float | None]:
    """The rule and the norm of an outlier, None where it is not known.

    Raises:
        BadInput: an entry that is no rule.
    """
    entry = metadata.get(KEY)
    if entry is None:
        return SkipRule(), None
    if not isinstance(entry, Mapping):
        raise BadInput(f"metadata: {KEY!r} must be an object, not {entry!r:.60}")
    fields = dict(entry)
    norm = fields.pop("outlier_norm", None)
    if norm is not None and not (type(norm) in (int, float) and 0 < norm <= sys.float_info.max):
        raise BadInput(f"metadata: {KEY!r} has an outlier_norm of {norm!r:.60}, not a finite number above 0")
    try:
        return SkipRule(**fields), norm
    except TypeError as error:
        raise BadInput(f"metadata: {KEY!r} has other fields than a skip rule: {', '.join(map(str, fields))}") from error


@dataclass(frozen=True)
class TrainedOn:
    """Files do not say which tokens a dictionary of several sites was trained on: by the default rule all but the first
    of a text, special tokens and norm outliers at the site."""

    site: Site

    def prepare(self, model: Model) -> None:
        """Measure, before a pass, what `left_out` needs in it."""
        self.skipper(model)

    def left_out(self, x: Float[Tensor, "batch pos d"], moment: Moment) -> dict[str, Bool[Tensor, "batch pos"]]:
        """For each reason, the tokens of a moment that are left out; x is the activation at its site."""
        model: Any = moment.model
        return self.skipper(model).left_out(moment.ids, moment.positions, {str(self.site): x})

    def skipper(self, model: Model) -> Skipper:
        """Tells which tokens of this model are left out."""
        return Skipper.of(model, [self.site], SkipRule(), {})
