"""The methods that are compared, with their baselines: one table, `ENTRANTS`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..directions.methods import method
from ..errors import BadInput, check_name

Kind = Literal["direction", "control", "latent", "words", "asked"]


@dataclass(frozen=True)
class Entrant:
    """A row of the table.

    Attributes:
        kind: "direction": a row of `directions.METHODS`; "control": a direction that should do nothing; "latent" of a
            dictionary; "words": a detector that sees no model; "asked": the model, asked in words.
        method: the row. along: what is added to steer, where it is not the method's vector but what it reads with.
    """

    kind: Kind
    about: str
    method: str = ""
    along: Literal["vector", "read"] = "vector"

    @property
    def steers(self) -> bool:
        return self.kind != "words"

    @property
    def is_direction(self) -> bool:
        return self.kind in ("direction", "control", "latent")


def _direction(about: str, method: str, along: Literal["vector", "read"] = "vector") -> Entrant:
    return Entrant("direction", about, method, along)


ENTRANTS: dict[str, Entrant] = {
    "dim": _direction("difference of means", "dim"),
    "mean_centred": _direction("positive mean less the mean of other text", "mean_centred"),
    "projected": _direction("difference of means less its part along the negative mean", "projected"),
    "median": _direction("difference of the geometric medians", "median"),
    "pca_pairs": _direction("first axis of differences of pairs, not centred", "pca_pairs"),
    "pca_global": _direction("first axis of all texts", "pca_global"),
    "lat": _direction("first axis of differences of random pairs", "lat"),
    "repe": _direction("first axis of pairs whose order is drawn", "repe"),
    "lda": _direction("reads by Σ⁻¹δ, writes δ", "lda"),
    "leace": _direction("reads by Σ⁻¹δ of all texts, writes δ", "leace"),
    "logistic": _direction("reads by a logistic regression, writes its pattern", "logistic"),
    "logistic_weights": _direction("the same, writes its weights", "logistic", "read"),
    "logistic_pairs": _direction("logistic regression on differences of pairs", "logistic_pairs"),
    "latent": Entrant("latent", "the dictionary's latent that tells the texts apart best"),
    "prompt": Entrant("asked", "the model is asked: yes or no, or to write like this"),
    "bag_of_words": Entrant("words", "logistic regression on the words, without a model"),
    "random": Entrant("control", "a random direction, turned by the labels"),
    "shuffled": Entrant("control", "difference of means of shuffled labels"),
}


def entrants(names: Sequence[str]) -> dict[str, Entrant]:
    """The rows of these names, in the table's order. Raises `UnknownName`; `BadInput` for none."""
    for name in names:
        if name not in ENTRANTS:
            method(name)  # says what names of other tools mean
        check_name("method to compare", name, ENTRANTS)
    if not names:
        raise BadInput("give at least one method")
    return {name: one for name, one in ENTRANTS.items() if name in names}
