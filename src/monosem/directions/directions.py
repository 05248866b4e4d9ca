"""Directions at many layers and positions, found in one pass over the prompts."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import SkipRule
from ..data import PromptPairs
from ..errors import BadInput, Mismatch, UnknownName
from ..lenses import vectors
from ..models import Layers, Model, Site, SiteLike
from ..plots import Figure, by_layer, lines
from ..results import Result, plain
from . import topics
from .direction import Direction
from .fitting import fitted
from .formats import ENDINGS, check_ending, read_any, write_any
from .layers import same_stream
from .reading import Reader, sites_of

TOKENS = 5  # that a direction promotes, in the table
# of one fit, and in the config
SAME_EVERYWHERE = [
    "p_floor",
    "leaks",
    "seed",
    "method",
    "data",
    "model_type",
    "n_layers",
    "tool",
    "file",
    "units",
    "operation",
]
FEW = 10  # prompts a side below which any number says little


@dataclass(frozen=True)
class Directions(Result):
    """One direction for each site and position; `directions["resid_post.15"]`, `directions.best`.

    `table`: site, position; what `Directions.fit` measured (`Direction.provenance` has the same); `turn`, the angle in
    degrees to the layer before; `promotes`, the tokens whose logits it raises most (logit lens).
    """

    directions: list[Direction]
    config: dict[str, Any] = field(default_factory=dict)

    ranked_by: ClassVar[str | None] = "held_out_auroc"

    def __post_init__(self) -> None:
        if not self.directions:
            raise BadInput("there are no directions")

    @classmethod
    def fit(
        cls,
        model: Model,
        pairs: PromptPairs,
        site: SiteLike | Sequence[SiteLike] = "resid_post",
        *,
        layers: Layers = None,
        method: str = "dim",
        at: Any = "last",
        background: Sequence[str] | None = None,
        held_out: PromptPairs | None = None,
        skip: SkipRule | None = None,
        seed: int = 0,
        k: int = 1,
        batch_size: int = 32,
    ) -> Self:
        """The direction from negative to positive prompts at every layer and position.

        Activations pass by once and are summed in float64; only methods that need rows (`METHODS`) keep one for each
        prompt and place. A place at which a prompt's token is an outlier in norm is left out; `config["refused"]` says
        why. What is in the table, for each place:

        - `stability`: cosine of what two random halves of the prompts give (of what reads, and of whole groups);
        - `held_out_auroc` with its 95 % interval: how well what the first half gives tells the second half's prompts
          apart, or the whole direction the prompts of `held_out`; with groups, the worst group;
        - `bootstrap`, `p`, `p_family`, `chance_stability` (`Blocks.tests`): of the difference of means there;
        - with groups, `transfer`, `transfer_auroc`, ... (`Topics.cosines`, `topics.detected`): of each group's
          difference of means there, to the other groups; the prompts are read again for these;
        - `norm`, `snr`, `purity`, `quality`, `massive` (`diagnostics.geometry`).

        Args:
            pairs: with `paired`, pairs stay together when prompts are drawn or relabelled; with `groups`, groups do.
            site: a site that every block has, of which `layers` are read; or one site, or several.
            method: a row of `METHODS`.
            at: which tokens: "last", "mean", "mean:ROLE", "template", "regex:...", an index, a `Selector`, or a list.
            background: texts of all kinds, for `mean_centred`.
            held_out: other prompts, which judge instead of the second half.
            skip: which tokens do not count; default: the first, special ones and norm outliers. Of tokens that are
                named, only outliers do not, and are refused.
            k: how many directions, of methods that find several.

        Raises:
            BadInput: a site that is not of the stream, too few prompts, a method that needs pairs without pairs,
                held-out prompts that are among the others, no place that can be read.
            UnknownName: no such site, layer, method or position.
        """
        reader = Reader.of(model, sites_of(model, site, layers), at, skip, batch_size)
        found, about = fitted(reader, pairs, method, background=background, held_out=held_out, k=k, seed=seed)
        shape = {"model_type": model.config.model_type, "n_layers": model.cfg.n_layers}
        common = {"method": method, "seed": seed, **shape, **about}
        refused = common.pop("refused", {})
        directions = [Direction.of(one, model, common) for one in found]
        _say_tokens(model, directions)
        settings = {"site": plain(site), "at": plain(at), "model": model.name, "refused": refused}
        known = {name: value for name, value in common.items() if name != "seen"}
        return cls(directions, {"analysis": "directions.fit", **settings, **known})

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.directions)

    def __len__(self) -> int:
        return len(self.directions)

    def __getitem__(self, place: int | SiteLike | tuple[SiteLike, str]) -> Direction:
        """By number, by site, or by site and position. Raises `UnknownName`, and `BadInput` for several."""
        if isinstance(place, int):
            return self.directions[place]
        pair = isinstance(place, tuple) and isinstance(place[1], str)
        site, position = (place[0], place[1]) if pair else (place, None)  # type: ignore[index]
        wanted = Site.parse(site)  # type: ignore[arg-type]
        chosen = [one for one in self if one.site == wanted and position in (None, one.position)]
        if not chosen:
            known = ", ".join(dict.fromkeys(f"{one.site}" for one in self))
            raise UnknownName(
                f"no direction at {wanted}{f' and {position}' if position else ''}; there are {known:.300}"
            )
        if len(chosen) > 1:
            raise BadInput(f"{len(chosen)} directions at {wanted}: say which position, [site, {chosen[0].position!r}]")
        return chosen[0]

    def at(self, position: Any) -> "Directions":
        """The directions of one position, such as "last". Raises `UnknownName` where there are none."""
        chosen = [one for one in self if one.position == str(position)]
        if not chosen:
            known = ", ".join(dict.fromkeys(one.position for one in self))
            raise UnknownName(f"no directions at position {position}; there are {known}")
        return Directions(chosen, self.config)

    @property
    def table(self) -> pd.DataFrame:
        kept = [{key: value for key, value in one.provenance.items() if _is_column(key, value)} for one in self]
        names = [{"site": str(one.site), "position": one.position, **row} for one, row in zip(self, kept)]
        table = pd.DataFrame(names).drop(columns=[*SAME_EVERYWHERE], errors="ignore")
        table["norm"] = [float(one.vector.norm()) for one in self]
        table.insert(2, "turn", self._turns())
        if all("promotes" in one.provenance for one in self):
            table["promotes"] = [one.provenance["promotes"] for one in self]
        return table

    @property
    def best(self) -> Direction:
        """The direction with the largest lower end of its held-out AUROC, then the most stable; what prompts it was
        chosen by cannot judge it any more."""

        def key(one: Direction) -> tuple[float, float]:
            numbers = (one.provenance.get(name, math.nan) for name in ("held_out_low", "stability"))
            low, stable = (-math.inf if number is None or math.isnan(number) else number for number in numbers)
            return low, stable

        return max(self.directions, key=key)

    @property
    def across_topics(self) -> str:
        """What the best place says of topics, in words: whether each gives the same direction. "" without groups."""
        best = self.best
        said = topics.in_words(best.provenance)
        return f"{best.site} {best.position}, {said}" if said else ""

    @property
    def cosines(self) -> Float[Tensor, "n n"]:
        units = torch.stack([one.unit for one in self])
        return units @ units.T

    @property
    def doubts(self) -> list[str]:
        """What the numbers cannot say, in words; none of them is a verdict."""
        about, lines = self.config, []
        smallest = min(about.get("prompts", {}).values(), default=0)
        if smallest and smallest < FEW:
            lines.append(f"{smallest} prompts a side: every interval is wide, and half of them judge the other half")
        if leaks := about.get("leaks"):
            judging = sum(about["held_out_prompts"].values())
            lines.append(
                f"{leaks} of the {judging} prompts that judge are, begin or continue prompts that find: the held-out "
                "AUROC is too good, and p takes them for independent; give groups= that hold them together"
            )
        floor, ps = about.get("p_floor"), [one.provenance.get("p_family") for one in self]
        if floor is not None and all(p is not None for p in ps):
            if floor > 0.05:
                lines.append(f"p cannot be below {floor:.2g} with so few prompts or groups: it tells nothing")
            elif min(ps) <= floor * 1.01:  # type: ignore[type-var]
                lines.append(f"p is at its floor of {floor:.2g} at some places: it is at most this, not exactly this")
        wide = [one for one in self if one.provenance.get("held_out_low", 1.0) <= 0.5]
        if wide:
            lines.append(
                f"at {len(wide)} of {len(self)} places the interval of the held-out AUROC includes chance (0.5)"
            )
        unsteady = [one for one in self if _below_chance(one.provenance)]
        if unsteady:
            many = f"at {len(unsteady)} of {len(self)} places"
            lines.append(f"{many} two halves agree no better than halves of equal classes would by chance")
        lines += topics.doubts({f"{one.site} {one.position}": one.provenance for one in self})
        if len(self) > 1 and "held_out_auroc" in self[0].provenance:
            lines.append("the best place was chosen by the prompts that scored it: judge it on others (held_out=)")
        if about.get("refused"):
            lines.append(
                f"{len(about['refused'])} places could not be read, e.g. {next(iter(about['refused'].values()))}"
            )
        return lines

    def plot(self) -> Figure:
        """Held-out AUROC, stability and what chance gives, by place."""
        table = self.table
        labels = [f"{one.site} {one.position}" for one in self]
        names = {
            "held_out_auroc": "held-out AUROC",
            "stability": "stability",
            "chance_stability": "stability by chance",
        }
        curves = {words: (table[name], None) for name, words in names.items() if name in table}
        if not curves:
            raise BadInput("these directions were not measured: there is nothing to draw")
        x, title = by_layer(labels)
        return lines(curves, x, x_title=title, zero=True)

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """As `Result.save`; .safetensors holds the directions themselves, .gguf their vectors, for llama.cpp."""
        if check_ending(path) in ENDINGS:
            return write_any(path, self.directions)
        return super().save(path, **plot)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model | None = None) -> Self:
        """What `save` wrote, or a file of another tool (`formats.FORMATS`); errors as `formats.read_any`."""
        found = read_any(path, model)
        return cls(found, {"file": str(path)})

    def _turns(self) -> list[float]:
        """Degrees between each direction and the one before it, at the same position and kind of site."""
        before: dict[tuple[str, str], Direction] = {}
        turns = []
        for one in self:
            last = before.get(key := (one.site.name, one.position))
            turns.append(math.nan if last is None else math.degrees(math.acos(max(-1.0, min(1.0, one.cosine(last))))))
            before[key] = one
        return turns


def alike(several: Mapping[str, Directions]) -> pd.DataFrame:
    """Cosines of directions of one stream between sets: a row for each pair of directions of two sets at one place.

    Columns: site, one, other, position (of each), cosine. The output of a block is the input of the next.

    Raises:
        BadInput: vectors of different widths. Mismatch: sets of different models.
    """
    named = {one.model_name for found in several.values() for one in found if one.model_name}
    if len(named) > 1:
        raise Mismatch(f"directions of {' and '.join(sorted(named))} have no dimension in common")
    rows = []
    for (first, ours), (second, theirs) in combinations(several.items(), 2):
        for one, other in product(ours, theirs):
            if len(one.vector) != len(other.vector):
                raise BadInput(f"{first} has {len(one.vector)} entries at {one.site}, {second} {len(other.vector)}")
            if same_stream(one.site, other.site):
                positions = " ".join(dict.fromkeys([one.position, other.position]))
                rows.append((str(one.site), first, second, positions, one.cosine(other)))
    if not rows:
        raise BadInput("no site has directions of two sets")
    return pd.DataFrame(rows, columns=["site", "one", "other", "position", "cosine"])


def _is_column(key: str, value: Any) -> bool:
    return (
        isinstance(value, int | float | str)
        and not isinstance(value, bool)
        and key not in ("position", "promotes", "seen")
    )


def _below_chance(numbers: dict[str, Any]) -> bool:
    stable, chance = (numbers.get(name, math.nan) for name in ("stability", "chance_stability"))
    return bool(stable <= chance)


def _say_tokens(model: Model, directions: Sequence[Direction]) -> None:
    """Put the tokens that each direction promotes into its provenance."""
    reading = vectors(model, torch.stack([one.vector for one in directions]), top=TOKENS).table
    for one, promotes, suppresses in zip(directions, reading["promotes"], reading["suppresses"]):
        one.provenance.update(promotes=list(promotes), suppresses=list(suppresses))
