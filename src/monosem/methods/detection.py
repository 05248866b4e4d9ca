"""Detection: every method at every place, from states that were read once.

A method is fitted on the fit part at each place (layer and position). The choose part says which place, and the test
part is scored there, once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations.medians import TEXT
from ..dictionaries import Dictionary
from ..directions import METHODS, Direction
from ..directions.methods import Found
from ..directions.sample import Sample
from ..errors import BadInput
from ..latents.pooling import pooled
from ..models import Model, Site
from ..probes import Place, Rows, TextDetector, area_by_group, read_rows
from ..progress import Meter
from ..statistics import auroc
from .asking import says_yes
from .concept import Concept
from .config import MethodsConfig
from .entrants import Entrant, entrants
from .parts import Material, clipped

TRIED = 5  # latents that are best on the fit part, of which the choose part takes one
NO_PLACE = ""
READING = 0.6  # of the work


@dataclass(frozen=True)
class Candidate:
    """What reads texts at one place: scores of the test part, of the choose part where there is something to choose,
    and the direction where there is one."""

    place: str
    test: Float[Tensor, "m"]
    choose: Float[Tensor, "n"] | None = None
    direction: Direction | None = None


@dataclass
class Detection:
    """What was measured of each method, and its directions by site: those at the position that reads best there.

    Attributes:
        rows: a row a method, as `results.json` has it.
    """

    rows: list[dict[str, Any]]
    directions: dict[str, dict[str, Direction]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scene:
    """One concept on one model: its texts, their states, and which of them are in which part."""

    model: Model
    concept: Concept
    config: MethodsConfig
    material: Material
    dictionary: Dictionary | None = None
    meter: Meter | None = None
    work: float = 1.0  # what this part of a concept is worth on the meter

    def advance(self, share: float) -> None:
        """A share of this part is done."""
        if self.meter is not None:
            self.meter.advance(share * self.work, concept=self.concept.name)

    @property
    def seed(self) -> int:
        return self.config.seed

    def labels(self, part: str) -> Bool[Tensor, "n"]:
        return self.material.y[self.material.rows(part)]


def detect(scene: Scene) -> Detection:
    """Every method that the config names. A method that cannot be used here has a row that says why."""
    found = Detection([])
    wanted = entrants(scene.config.methods)
    states = _states(scene) if any(one.kind in ("direction", "control") for one in wanted.values()) else None
    scene.advance(READING)
    for name, entrant in wanted.items():
        scene.advance((1 - READING) / len(wanted))
        try:
            candidates = _candidates(scene, states, name, entrant)
        except BadInput as error:
            found.rows.append({"method": name, "left_out": str(error)})
            continue
        y = scene.labels("choose")
        areas = [math.nan if one.choose is None else _area(one.choose, y) for one in candidates]
        order = sorted(range(len(candidates)), key=lambda i: (-areas[i], -_margin(candidates[i].choose, y)))
        found.rows.append(_row(scene, name, candidates, areas, order[0]))
        for i in order:  # the best of each site comes first
            if (one := candidates[i].direction) is not None:
                found.directions.setdefault(name, {}).setdefault(str(one.site), one)
    return found


def _row(scene: Scene, name: str, candidates: Sequence[Candidate], areas: Sequence[float], best: int) -> dict[str, Any]:
    """The chosen place, and what it gives on the test part."""
    chosen, material = candidates[best], scene.material
    interval = area_by_group(chosen.test, material.without_states(material.rows("test")), seed=scene.seed)
    places = [{"place": one.place, "choose_auroc": area} for one, area in zip(candidates, areas)]
    return {"method": name, "place": chosen.place, "choose_auroc": areas[best]} | {
        "auroc": interval.value,
        "auroc_low": interval.low,
        "auroc_high": interval.high,
        "places": places,
        "left_out": "",
    }


def _area(scores: Float[Tensor, "n"], y: Bool[Tensor, "n"]) -> float:
    return float(auroc(scores[y][:, None], scores[~y][:, None]))


def _margin(scores: Float[Tensor, "n"] | None, y: Bool[Tensor, "n"]) -> float:
    """Gap of the class means in standard deviations: what tells places of equal AUROC apart."""
    if scores is None:
        return 0.0
    f = scores.double()
    spread = torch.cat([f[y] - f[y].mean(), f[~y] - f[~y].mean()]).square().mean().sqrt()
    return float((f[y].mean() - f[~y].mean()) / spread.clamp(min=1e-12))


# ---------------------------------------------------------------------- candidates
def _candidates(scene: Scene, states: Rows | None, name: str, entrant: Entrant) -> list[Candidate]:
    if entrant.kind == "words":
        return [_by_words(scene)]
    if entrant.kind == "asked":
        return [_by_asking(scene)]
    if entrant.kind == "latent":
        return _by_latents(scene)
    assert states is not None
    found, why = [], ""
    background = _background(scene) if name == "mean_centred" else None
    for number, place in enumerate(states.places):
        try:
            made = _find(scene, states, number, name, entrant, background)
        except BadInput as error:
            why = why or f"{place}: {error}"
            continue
        direction = _direction(scene, place, name, entrant, made)
        read = made.vector if made.read is None else made.read
        choose, test = (states.x[number][scene.material.rows(part)].double() @ read for part in ("choose", "test"))
        found.append(Candidate(str(place), test, choose, direction))
    if not found:
        raise BadInput(why)
    return found


def _find(
    scene: Scene, states: Rows, number: int, name: str, entrant: Entrant, background: Float[Tensor, "places n d"] | None
) -> Found:
    """What the method finds at a place, from the fit part alone."""
    up, down = (states.x[number][scene.material.side("fit", side)].double() for side in (True, False))
    n = min(len(up), len(down))  # where texts have no partners, pairs are drawn: the order is random
    generator = torch.Generator().manual_seed(scene.seed + number)
    if name == "shuffled":
        up, down = _shuffled(up[:n], down[:n], generator)
        return METHODS["dim"].find(Sample.of(up, down))
    beside = None if background is None else background[number]
    sample = Sample.of(up[:n], down[:n], background=beside, seed=scene.seed)
    if name == "random":
        return Found(sample.oriented(torch.randn(up.shape[1], generator=generator, dtype=torch.float64)))
    return METHODS[entrant.method].find(sample)


def _shuffled(
    up: Float[Tensor, "n d"], down: Float[Tensor, "n d"], generator: torch.Generator
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Each pair's sides are exchanged or not: as many of each class stay on each side as come by chance."""
    swap = torch.rand(len(up), 1, generator=generator) < 0.5
    return torch.where(swap, down, up), torch.where(swap, up, down)


def _direction(scene: Scene, place: Place, name: str, entrant: Entrant, found: Found) -> Direction:
    vector, read = found.vector, found.read
    if entrant.along == "read" and read is not None:
        vector = read / read.norm() * found.vector.norm()
    about = {"method": name, "position": str(place.position), "concept": scene.concept.name, "seed": scene.seed}
    return Direction(vector, place.site, scene.model.name, about, read=read, centre=found.centre)


def _by_words(scene: Scene) -> Candidate:
    parts = [scene.material.without_states(scene.material.rows(part)) for part in ("fit", "choose", "test")]
    detector = TextDetector.fit(parts[0], parts[1])
    return Candidate(NO_PLACE, detector.log_odds(parts[2].texts))


def _by_asking(scene: Scene) -> Candidate:
    texts = [scene.material.texts[i] for i in scene.material.rows("test")]
    size = scene.config.batch_size
    return Candidate(NO_PLACE, says_yes(scene.model, texts, scene.concept.asks_about_it, batch_size=size))


def _by_latents(scene: Scene) -> list[Candidate]:
    """The latents that tell the fit part apart best by their largest activation on each text."""
    if (dictionary := scene.dictionary) is None:
        raise BadInput("no dictionary was given")
    parts = {name: scene.material.rows(name) for name in ("fit", "choose", "test")}
    every = torch.cat(list(parts.values()))
    texts = [scene.material.texts[i] for i in every]
    codes = pooled(scene.model, dictionary, texts, batch_size=scene.config.batch_size)
    split = dict(zip(parts, codes.split([len(rows) for rows in parts.values()])))
    y = scene.labels("fit")
    order = auroc(split["fit"][y], split["fit"][~y]).argsort(descending=True, stable=True)[:TRIED]
    found = []
    for latent in order.tolist():
        direction = _of_latent(scene, dictionary, latent, split["fit"][:, latent], y)
        place = f"latent {latent} of {dictionary.site}"
        found.append(Candidate(place, split["test"][:, latent], split["choose"][:, latent], direction))
    return found


def _of_latent(
    scene: Scene, dictionary: Dictionary, latent: int, values: Float[Tensor, "n"], y: Bool[Tensor, "n"]
) -> Direction | None:
    """Its decoder row times the difference of its mean activations; None where it writes off the stream."""
    if not (dictionary.has_site_out and dictionary.site_out.shape == ("position", "d_model")):
        return None
    size = float((values[y].mean() - values[~y].mean()).abs()) or 1.0
    about = {"method": "latent", "latent": latent, "dictionary": dictionary.name, "concept": scene.concept.name}
    row = dictionary.decoder_rows(latent)[0].float().cpu()
    return Direction(row * size, dictionary.site_out, scene.model.name, about | {"position": f"latent {latent}"})


# ---------------------------------------------------------------------- states
def _states(scene: Scene) -> Rows:
    """Of every text of the fit, choose and test parts at every place: one pass. Rows are the material's own."""
    material = scene.material
    used = torch.cat([material.rows(part) for part in ("fit", "choose", "test")])
    read = _read(scene, [material.texts[i] for i in used], material.y[used])
    x = torch.zeros(len(read.places), len(material.texts), read.x.shape[-1])
    x[:, used] = read.x.float()
    return Rows(x, material.y, read.places, material.groups, model_name=scene.model.name)


def _background(scene: Scene) -> Float[Tensor, "places n d"]:
    """States of a fixed text of all kinds, in pieces."""
    texts = [piece.strip() for piece in TEXT.read_text(encoding="utf-8").split("\n\n")]
    pieces = [clipped(scene.model, text, scene.config.longest) for text in texts if text]
    return _read(scene, pieces, torch.zeros(len(pieces)).bool()).x


def _read(scene: Scene, texts: Sequence[str], y: Bool[Tensor, "n"]) -> Rows:
    sites: list[Any] = [Site("resid_post", layer) for layer in scene.config.layers_of(scene.model)]
    positions: Any = list(scene.config.positions)
    return read_rows(scene.model, texts, y.tolist(), sites, positions=positions, batch_size=scene.config.batch_size)
