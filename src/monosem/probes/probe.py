"""A fitted probe at one place or many: scores, probabilities, a threshold, a direction, a file."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor

from ..activations import FittedAt
from ..directions import Direction
from ..errors import BadFile, BadInput, Mismatch, check_name
from ..files import replacing
from ..jobs import known_again, marks
from ..models import Model, Site, refuse_other
from ..reading import parse_json, read_safetensors
from .kinds import KINDS
from .rows import Place, Rows, check_same

FORMAT = "monosem probe 1"


@dataclass(frozen=True, eq=False)
class Probes(FittedAt):
    """One probe a place, fitted alike. `fit` makes them; `at` and `best` take one. One probe of single states at a site
    is a score that `edits.condition` takes.

    Attributes:
        kind: a name of `KINDS`.
        parts: its tensors, float64, places first. "calibration" (`scale`, `shift` a place) turns scores into log-odds
            that are true to the rows it was fitted on, "threshold" is the score above which a probe says "positive".
        about: how it was made: numbers of rows, strengths, seed, what was measured on validation rows; which texts it
            has `seen`.
    """

    kind: str
    places: tuple[Place, ...]
    parts: dict[str, Tensor]
    model_name: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def width(self) -> int:
        """Numbers of a state."""
        name = "mean" if "mean" in self.parts else "weights"
        return self.parts[name].shape[-1]

    def score(self, x: Rows | Float[Tensor, "places n *pos d"]) -> Float[Tensor, "places n *pos"]:
        """How positive each row is: log-odds for kinds that are fitted by their likelihood. A linear probe scores every
        token where it is given all of them.

        Raises:
            Mismatch: rows of other places, another model or width. BadInput: single states where every token is read.
        """
        kind, mask = KINDS[self.kind], None
        x = x.joined() if kind.joint and isinstance(x, Rows) else x
        states = x if isinstance(x, Tensor) else x.x
        if isinstance(x, Rows):
            check_same(x, self.places, self.model_name, self.width, "probe")
            if kind.tokens or not kind.linear:
                x.check_tokens(kind.tokens, f"a probe of kind {self.kind!r}")
            mask = None if x.mask is None else x.mask.to(states.device)
        if states.shape[-1] != self.width or len(states) != len(self):
            raise Mismatch(f"states are {len(self)} places × n × {self.width} for this probe, not {list(states.shape)}")
        parts = {name: value.to(states.device) for name, value in self.parts.items()}
        return kind.score(parts, states, mask).cpu()

    @property
    def site(self) -> Site:  # type: ignore[override]
        """Of one probe at one site. Raises `BadInput` for others."""
        if len(self) != 1:
            raise BadInput(f"these are {len(self)} probes: choose one with .best or .at(...)")
        return self.places[0].site

    def __call__(self, x: Float[Tensor, "batch pos *d"]) -> Float[Tensor, "batch pos"]:
        """The score of every token, of one probe of single states."""
        return self._by_token(self.score, x)

    def token_log_odds(self, x: Float[Tensor, "batch pos *d"]) -> Float[Tensor, "batch pos"]:
        """`log_odds` of every token, of one probe of single states."""
        return self._by_token(self.log_odds, x)

    def _by_token(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if len(self) != 1 or KINDS[self.kind].tokens:
            raise BadInput("this needs a probe of single states at one place: choose it with .best or .at(...)")
        return function(x.flatten(2).flatten(0, 1)[None])[0].reshape(x.shape[:2]).to(x.device)

    @property
    def calibration(self) -> dict[str, Any] | None:
        """The threshold as `edits.condition` takes it, where it was chosen for the last token or a mean of scores that
        is the score of the mean."""
        position = self.places[0].position
        if "threshold" not in self.parts or not (
            position == "last" or (position == "mean" and KINDS[self.kind].linear)
        ):
            return None
        return {"threshold": float(self.threshold[0]), "over": position}

    def log_odds(self, x: Rows | Float[Tensor, "places n *pos d"]) -> Float[Tensor, "places n *pos"]:
        """The score, calibrated where the probe is (`calibrated`)."""
        f = self.score(x)
        if "calibration" not in self.parts:
            return f
        scale, shift = (one.reshape(-1, *(1,) * (f.ndim - 1)) for one in self.parts["calibration"].unbind(1))
        return scale * f + shift

    def probability(self, x: Rows | Float[Tensor, "places n *pos d"]) -> Float[Tensor, "places n *pos"]:
        return self.log_odds(x).sigmoid()

    def fires(self, x: Rows | Float[Tensor, "places n *pos d"]) -> Bool[Tensor, "places n *pos"]:
        """Which rows are above the threshold; 0 where none was set."""
        f = self.score(x)
        return f > self.threshold.reshape(-1, *(1,) * (f.ndim - 1))

    @property
    def threshold(self) -> Float[Tensor, "places"]:
        return self.parts.get("threshold", torch.zeros(len(self), dtype=torch.float64))

    def at(self, place: Place | int | str) -> Self:
        """The probe of one place. Raises `BadInput` for none, or several, of that name."""
        if isinstance(place, int):
            found = [range(len(self))[place]]
        else:
            named = [(one, str(one), str(one.sites[0])) for one in self.places]
            found = [i for i, names in enumerate(named) if place in names]
        if len(found) != 1:
            raise BadInput(f"{place} is {len(found)} of the places {', '.join(map(str, self.places))!s:.200}; name one")
        return self._of(found)

    def _of(self, numbers: list[int]) -> Self:
        by_place = {name for name, value in self.about.items() if isinstance(value, list) and len(value) == len(self)}
        about = {name: [value[i] for i in numbers] if name in by_place else value for name, value in self.about.items()}
        parts = {name: value[numbers] for name, value in self.parts.items()}
        return replace(self, places=tuple(self.places[i] for i in numbers), parts=parts, about=about)

    @property
    def best(self) -> Self:
        """The probe of the place with the highest validation AUROC; of equal ones, the one with the least log loss.
        (Where several tell the rows apart without a fault, the first of them is luck.)"""
        area, loss = self.about["validation_auroc"], self.about["validation_log_loss"]
        return self.at(max(range(len(self)), key=lambda i: (area[i], -loss[i])))

    def seen(self, texts: Sequence[str]) -> Bool[Tensor, "n"]:
        """Which texts it was fitted on, chosen by, or took its threshold from: what it says of these flatters it."""
        return torch.tensor(known_again(self.about.get("seen"), texts), dtype=torch.bool)

    def with_seen(self, texts: Sequence[str]) -> Self:
        """The same probe, which has seen these texts, too."""
        return replace(self, about=self.about | {"seen": marks(texts, self.about.get("seen"))})

    def with_parts(self, about: dict[str, Any], **parts: Tensor) -> Self:
        """The same probe with parts (a threshold, a calibration) of these names."""
        return replace(self, parts=self.parts | parts, about=self.about | about)

    def direction(self, form: Literal["read", "pattern"] = "read") -> Direction:
        """The vector of a linear probe at one place.

        "read" is its weights: project a state on it to detect. "pattern" is Σ w (of lda: δ), how the state moves when
        the score does (Haufe et al. 2014): the one to write with, which has the weights as its `read`. They differ
        wherever dimensions are correlated.

        Raises:
            BadInput: a probe that is not linear, of several places or sites.
        """
        check_name("form", form, ("read", "pattern"))
        if not KINDS[self.kind].linear or len(self) != 1:
            linear = ", ".join(name for name, kind in KINDS.items() if kind.linear)
            raise BadInput(f"a direction is of one linear probe ({linear}): choose a place with .at(...) or .best")
        vector = self.parts["weights" if form == "read" else "pattern"][0]
        provenance = {"method": f"{self.kind} probe, {form}", "place": str(self.places[0]), **self.about}
        read = self.parts["weights"][0] if form == "pattern" else None
        return Direction(vector, self.places[0].site, self.model_name, provenance, read)

    def check(self, model: Model) -> None:
        """Raises `Mismatch` for another model than the probe's, `UnknownName` for a site that the model lacks."""
        for site in {site for place in self.places for site in place.sites}:
            model.site(site)
        if self.model_name and self.model_name != model.name:
            raise Mismatch(f"this probe was fitted on states of {self.model_name}, not of {model.name}")
        refuse_other(model, self.about.get("made_on"), "this probe")

    # ------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str]) -> Path:
        """One safetensors file: the parts, and the rest as JSON in its metadata."""
        about = {"kind": self.kind, "model": self.model_name, "places": [one.written() for one in self.places]}
        with replacing(path) as temporary:
            tensors = {name: value.contiguous().cpu() for name, value in self.parts.items()}
            save_file(tensors, temporary, {"format": FORMAT, "probe": json.dumps(about | {"about": self.about})})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Raises `BadFile` when the file is missing, damaged or holds something else."""
        about, parts = read_probe(path, FORMAT, "probe", "a probe")
        try:
            kind, places = about["kind"], tuple(Place.parse(one) for one in about["places"])
            made = cls(kind, places, parts, str(about["model"]), dict(about["about"]))
            if kind not in KINDS or not places or not (KINDS[kind].linear <= ("weights" in parts)):
                raise ValueError(f"kind {kind!r:.40} with the tensors {sorted(parts)!s:.100}")
            if any(len(value) != len(places) or not _usable(name, value) for name, value in parts.items()):
                raise ValueError("tensors of another number of places, or not finite")
            # what is missing, or of another shape, shows when it is used
            KINDS[kind].score(
                parts, torch.zeros(len(places), 1, *(1,) * KINDS[kind].tokens, made.width), torch.ones(1, 1) > 0
            )
            return made
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise BadFile(f"{path} does not hold a probe that can be read ({error})") from error


def _usable(name: str, value: Tensor) -> bool:
    return bool(value.isfinite().all()) or (name == "scale" and bool((value > 0).all()))


def read_probe(
    path: str | os.PathLike[str], form: str, key: str, what: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON in the metadata, and the tensors, of a file that says it is of this form. Raises `BadFile`."""
    from safetensors import SafetensorError, safe_open

    parts = read_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            held = file.metadata() or {}
        if held.get("format") != form:
            raise ValueError(f"its format is {held.get('format')!r:.40}, expected {form!r}")
        about = parse_json(held[key])
        if not isinstance(about, dict):
            raise TypeError("its header is no object")
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise BadFile(f"{path} does not hold {what} ({error})") from error
    return about, parts
