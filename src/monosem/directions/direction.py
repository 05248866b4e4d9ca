"""A direction: a vector at a site, and how it was found."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..activations import FittedAt, SkipRule
from ..data import PromptPairs
from ..dictionaries import Dictionary
from ..edits import add, condition
from ..edits.conditions import Over
from ..errors import BadFile, BadInput, Mismatch
from ..files import replacing
from ..jobs import known_again, marks
from ..models import Model, Site, SiteLike, refuse_other
from ..reading import parse_json, regular_file
from ..statistics import conformal_threshold
from .fitting import Fitted, fitted
from .reading import Reader

FORMAT = "monosem directions 1"
PARTS = ("vector", "read", "basis", "centre")  # the tensors of a direction


@dataclass(frozen=True, eq=False)
class Direction(FittedAt):
    """A vector at a site with its provenance. `edits.add(direction, 4.0)` and `edits.ablate(direction)` take it.

    Attributes:
        vector: `d_model`, float32, in raw activation units (not normalised: its length is part of what was found). What
            is written to steer; added once, it moves the mean of the negative class to the positive one along itself.
        model_name: the model that it belongs to.
        provenance: how it was found (`method`, `position`, `tokens` that were left out, `prompts` a side, hash of the
            `data`, `seed`), on what (`made_on`, see `models.identity`), in which `units`, for which `operation`, what
            is known of its quality (`norm`, `stability`, ...), and the `calibration` of a threshold.
        read: what detects best, where that is another vector (LDA, LEACE, logistic regression): `score` uses it.
        basis: orthonormal rows of a subspace, `k d_model`, where several directions were found.
        centre: the middle of both classes: `score` is 0 there; or (LEACE) the mean that an erasure keeps.

    Raises:
        BadInput: a vector that is not one-dimensional, is zero or not finite; other parts that do not fit it.
    """

    learnt = "direction was not fitted"

    vector: Float[Tensor, "d_model"]
    site: Site
    model_name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    read: Float[Tensor, "d_model"] | None = None
    basis: Float[Tensor, "k d_model"] | None = None
    centre: Float[Tensor, "d_model"] | None = None

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or not bool(self.vector.isfinite().all()) or not bool(self.vector.any()):
            raise BadInput(f"a direction is one finite vector that is not zero, got shape {list(self.vector.shape)}")
        for name in PARTS:
            if (part := getattr(self, name)) is None:
                continue
            if part.ndim != (2 if name == "basis" else 1) or part.shape[-1] != len(self.vector):
                raise BadInput(
                    f"{name} of a direction is {list(part.shape)}, its vector has {len(self.vector)} entries"
                )
            if not bool(part.isfinite().all()):
                raise BadInput(f"{name} of a direction is not finite")
            object.__setattr__(self, name, part.detach().float().cpu())

    @classmethod
    def fit(
        cls,
        model: Model,
        positive: Sequence[str],
        negative: Sequence[str],
        site: SiteLike,
        *,
        method: str = "dim",
        at: Any = "last",
        paired: bool = False,
        background: Sequence[str] | None = None,
        skip: SkipRule | None = None,
        seed: int = 0,
        k: int = 1,
    ) -> Self:
        """The direction from the negative to the positive prompts at one site of the stream; `Directions.fit` reads
        many layers and positions at once and says what the arguments and the numbers in the provenance mean.

        Raises:
            BadInput: a site that is not of the stream, several positions, fewer than two prompts a side, a prompt whose
                token does not count.
            UnknownName: no such method or position.
        """
        reader = Reader.of(model, [model.site(site)], at, skip)
        if len(reader.places) > 1:
            raise BadInput(f"{at} is {len(reader.places)} positions: Directions.fit reads several, Direction.fit one")
        pairs = PromptPairs(positive, negative, paired)
        found, about = fitted(reader, pairs, method, background=background, seed=seed, k=k)
        return cls.of(found[0], model, {"method": method, "seed": seed, **about})

    @classmethod
    def of(cls, found: Fitted, model: Model, about: dict[str, Any]) -> Self:
        """What was fitted at one place; `about` says what all places have in common."""
        provenance = about | {"position": str(found.place.at), **found.numbers}
        parts = {name: getattr(found.found, name) for name in PARTS}
        return cls(site=found.place.site, model_name=model.name, provenance=provenance, **parts)

    @classmethod
    def of_latent(cls, dictionary: Dictionary, latent: int) -> Self:
        """A latent's decoder row: what one unit of its activation writes."""
        row = dictionary.decoder_rows(latent)[0]
        provenance = {"method": "decoder row", "dictionary": dictionary.name, "latent": int(latent)}
        return cls(row, dictionary.site_out, dictionary.model_name, provenance)

    @property
    def unit(self) -> Float[Tensor, "d_model"]:
        return self.vector / self.vector.norm()

    @property
    def position(self) -> str:
        """The token that it was read at, as `selector` reads it; "" where it is not known."""
        return str(self.provenance.get("position", ""))

    def projection(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """x · v̂, in units of activation."""
        return x.float() @ self.unit.to(x.device)

    def score(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """(x - centre) · read, read as a unit vector: how far x lies on the positive side."""
        read = self.vector if self.read is None else self.read
        x = x.float() if self.centre is None else x.float() - self.centre.to(x.device)
        return x @ (read / read.norm()).to(x.device)

    def erased(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """x - v · read·(x - centre): of `leace` and `orthogonal`, after which both classes of the rows that they were
        fitted on have one mean. Raises `BadInput` for a direction that is no erasure (read · v is not 1)."""
        if self.read is None or self.centre is None or abs(float(self.read @ self.vector) - 1) > 1e-3:
            raise BadInput("this direction is no erasure: fit it with method 'leace', 'leace_shrunk' or 'orthogonal'")
        read, centre, vector = (part.to(x.device) for part in (self.read, self.centre, self.vector))
        return x - ((x.float() - centre) @ read)[..., None] * vector

    def cosine(self, other: "Direction") -> float:
        return float(self.unit @ other.unit)

    # ------------------------------------------------------------------ a threshold
    def with_threshold(
        self,
        model: Model,
        negative: Sequence[str],
        *,
        target_fpr: float = 0.01,
        over: Over | None = None,
        batch_size: int = 32,
    ) -> Self:
        """The direction with a threshold that new prompts like the negative ones pass with at most this probability
        (`statistics.conformal_threshold`), for `edits.condition(direction)`, which then needs none.

        Args:
            negative: prompts that the direction was neither found nor judged with, of the kind that it will meet.
            over: what of a prompt's tokens is compared, as in `edits.condition`; default: the mean where the direction
                was found at a mean over tokens, else the last.

        Raises:
            BadInput: too few prompts for this rate, or prompts that it was found with. Mismatch: another model.
        """
        self.check(model)
        self.check_new(negative, "a threshold from these would let more new ones pass than the target")
        over = over or ("mean" if self.position.startswith("mean") else "last")
        gate, scores = condition(self, above=0.0, over=over), list[float]()
        for start in range(0, len(negative), batch_size):
            batch = list(negative[start : start + batch_size])
            model.run(batch, self.site, add((self.site, self.vector), 0.0).when(gate), logits=False)
            scores += [one.score for one in sorted(gate.log)]
        threshold = float(conformal_threshold(torch.tensor(scores, dtype=torch.float64), target_fpr, "prompts"))
        calibration = {"threshold": threshold, "target_fpr": target_fpr, "n": len(scores), "over": over}
        seen = marks(negative, self.provenance.get("seen"))
        return replace(self, provenance=self.provenance | {"calibration": calibration, "seen": seen})

    @property
    def calibration(self) -> dict[str, Any] | None:
        """What `with_threshold` found: `threshold`, `target_fpr`, `n` negative prompts, `over`."""
        held = self.provenance.get("calibration")
        return dict(held) if isinstance(held, dict) and {"threshold", "over"} <= set(held) else None

    def check_new(self, prompts: Sequence[str], otherwise: str) -> None:
        """Raise `BadInput` when it was found or judged with some of these prompts; `otherwise` says what they do."""
        if seen := sum(known_again(self.provenance.get("seen"), prompts)):
            raise BadInput(
                f"the direction was found or judged with {seen} of these {len(prompts)} prompts: {otherwise}; give "
                "others (PromptPairs.split keeps some back)"
            )

    def check(self, model: Model) -> None:
        """Raise `Mismatch` when it was made for another model, or `UnknownName` when the model has no such site."""
        model.site(self.site)
        if self.model_name and self.model_name != model.name:
            raise Mismatch(
                f"this direction was made for {self.model_name}, not for {model.name}: fit it there, or give its site "
                "and vector alone"
            )
        if len(self.vector) != model.cfg.d_model:
            raise Mismatch(f"this direction has {len(self.vector)} entries, {model.name} has {model.cfg.d_model}")
        made_on = self.provenance.get("made_on")
        refuse_other(model, made_on if isinstance(made_on, dict) else None, "this direction")

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file: the tensors, and the rest as JSON in its metadata."""
        write_directions(path, [self])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Raises `BadFile` when the file is missing, damaged or holds something else, or several directions."""
        found = read_directions(path)
        if len(found) != 1:
            raise BadFile(f"{path} holds {len(found)} directions: read it with Directions.load")
        (one,) = found
        return cls(*(getattr(one, name) for name in one.__dataclass_fields__))


def write_directions(path: str | os.PathLike[str], directions: Sequence[Direction]) -> None:
    """One safetensors file: tensors `vector.<site>@<position>` and so on; models and provenances as JSON in its
    metadata.

    Raises:
        BadInput: two directions at one site and position.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for one in directions:
        label = f"{one.site}@{one.position}" if one.position else str(one.site)
        if label in about:
            raise BadInput(f"two directions at {label}: save them in files of their own")
        about[label] = {"site": str(one.site), "model": one.model_name, "provenance": one.provenance}
        tensors |= {f"{name}.{label}": part.contiguous() for name in PARTS if (part := getattr(one, name)) is not None}
    if not tensors:
        raise BadInput("there is no direction to save")
    metadata = {"format": "pt", "kind": FORMAT, "directions": json.dumps(about)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_directions(path: str | os.PathLike[str]) -> list[Direction]:
    """What `write_directions` wrote, in its order. Raises `BadFile`."""
    if not Path(path).is_file():
        raise BadFile(f"no direction file {path}")
    try:
        with safe_open(regular_file(path), "pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            if metadata.get("kind") != FORMAT:
                raise ValueError(f"it does not say that it is {FORMAT!r}")
            return [
                Direction(
                    site=Site.parse(one["site"]),
                    model_name=str(one["model"]),
                    provenance=dict(one["provenance"]),
                    **{part: file.get_tensor(name) for part in PARTS if (name := f"{part}.{label}") in names},
                )
                for label, one in parse_json(metadata["directions"]).items()
            ]
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(f"{path} does not hold directions ({error})") from error
