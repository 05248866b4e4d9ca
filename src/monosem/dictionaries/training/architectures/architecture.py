"""What an architecture is to the trainer. An architecture is a file here and a row of `ARCHITECTURES`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...codes import Codes
from ..export import About
from ..form import Form
from ..settings import DictionarySettings


@dataclass(frozen=True)
class Architecture:
    """A row of `ARCHITECTURES`. Lists over sites have the order of `DictionarySettings.sites`.

    Attributes:
        what: it is called in messages. use: when to choose it, one line.
        form: (settings, centre of each site) -> the form with random weights.
        start: fills a form for scaled rows of each site: (form, settings, scales, rows). `start` of the settings is a
            dictionary of one site.
        exported: (form, settings, scale of each site, threshold of each layer or None, about) -> the dictionary that
            reads and writes raw activations.
        load: the folder in which it was saved -> that dictionary.
        rebuild: (dictionary, raw rows of what it reads) -> what it writes, its outputs side by side, and its codes.
        holds: kinds of encoders (`Kind.saved`) that its files hold; empty: all.
        layered: its layers have a loss together and codes alone, which not every kind allows.
        complaint: what is wrong with the settings, None where nothing is.
    """

    what: str
    use: str
    form: Callable[[DictionarySettings, Sequence[Float[Tensor, "d"]]], Form]
    exported: Callable[[Any, DictionarySettings, Sequence[float], Sequence[float] | None, About], Any]
    load: Callable[[Path], Any]
    rebuild: Callable[[Any, Sequence[Float[Tensor, "n d"]]], tuple[Float[Tensor, "n d"], Sequence[Codes]]]
    start: Callable[[Any, DictionarySettings, Sequence[float], Sequence[Float[Tensor, "n d"]]], None] = (
        lambda form, settings, scales, rows: None
    )
    holds: tuple[str, ...] = ()
    layered: bool = False
    complaint: Callable[[DictionarySettings], str | None] = lambda settings: None

    def started(
        self,
        settings: DictionarySettings,
        centres: Sequence[Float[Tensor, "d"]],
        scales: Sequence[float],
        rows: Sequence[Float[Tensor, "n d"]],
    ) -> Form:
        """The form before the first step, for rows that are multiplied by their scale. Raises as `start` does."""
        made = self.form(settings, centres)
        self.start(made, settings, scales, rows)
        return made
