"""Dictionaries of one place: SAEs, and transcoders, which rebuild another place than they read."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ...codes import Codes
from ...dictionary import Dictionary
from ...formats.common import Hints, Place
from ...formats.saelens import read
from ..export import About, export
from ..form import TrainingForm
from ..kinds import KINDS
from ..settings import DictionarySettings
from ..starts import fill_form
from .architecture import Architecture


def form(settings: DictionarySettings, centres: Sequence[Float[Tensor, "d"]]) -> TrainingForm:
    """Of a transcoder there are two centres."""
    b_in, own = centres[0] if settings.site_out else None, KINDS[settings.kind].own_parameters(settings)
    skip = settings.skip_connection
    return TrainingForm(settings.width, centres[-1], settings.seed, b_in=b_in, skip=skip, own=own)


def _exported(
    form: TrainingForm,
    settings: DictionarySettings,
    scales: Sequence[float],
    thresholds: Sequence[float] | None,
    about: About,
) -> Dictionary:
    threshold = None if thresholds is None else thresholds[0]
    return export(form, settings, (scales[0], scales[-1]), threshold, about)


def _load(folder: Path) -> Dictionary:
    return Dictionary(read(Place(folder), Hints()))


def _rebuild(dictionary: Dictionary, rows: Sequence[Float[Tensor, "n d"]]) -> tuple[Tensor, Sequence[Codes]]:
    codes = dictionary.encode(rows[0])
    return dictionary.decode(codes, like=rows[0]), [codes]


SAE = Architecture(
    what="an SAE",
    use="--site: reads one place and rebuilds it",
    form=form,
    start=fill_form,
    exported=_exported,
    load=_load,
    rebuild=_rebuild,
)
TRANSCODER = Architecture(
    what="a transcoder",
    use="--site and --site-out: reads one place and rebuilds another, such as an MLP's output from its input",
    form=form,
    start=fill_form,
    exported=_exported,
    load=_load,
    rebuild=_rebuild,
    holds=("relu", "jumprelu"),
)
