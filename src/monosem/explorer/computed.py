"""What is computed once and kept on the disk: maps, families, circles, meta-latents, what all write, absorbers."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field

from .. import __version__
from ..benchmarks import AbsorptionConfig, absorbers
from ..errors import BadFile, BadInput
from ..files import json_value, write_json
from ..latents import cycle, decoder_map, meta_latents, splitting, written
from ..reading import read_object
from .asks import Ask, Name
from .library import Book, Library
from .queue import Job
from .work import Bench

FORM = 1  # another number where results get other fields, so that kept ones are computed again

Names = Annotated[list[Name], Field(min_length=1, max_length=8)]


class Shape(Ask):
    """Something about one dictionary; `names` are all that it is about."""

    dictionary: Name

    @property
    def names(self) -> list[str]:
        return [self.dictionary]


class MapOf(Ask):
    dictionaries: Names
    method: Literal["pca", "umap"] = "umap"

    @property
    def names(self) -> list[str]:
        return self.dictionaries


class FamiliesOf(Ask):
    dictionaries: Names
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7

    @property
    def names(self) -> list[str]:
        return self.dictionaries


class CircleOf(Shape):
    cycle: Literal["weekdays", "months"] = "weekdays"


class MetaOf(Shape):
    meta: Name

    @property
    def names(self) -> list[str]:
        return [self.dictionary, self.meta]


class WrittenBy(Shape):
    pass


class AbsorbersOf(Shape):
    words: Annotated[int, Field(ge=8, le=400)] = 40


def laid_out(library: Library, ask: MapOf, job: Job) -> dict[str, Any]:
    own = [book.dictionary for book in books(library, ask)]
    found = decoder_map(own, ask.method, names=ask.names, tell=job.progress).table
    return {
        "widths": [one.width for one in own],
        "x": coded(found["x"]),
        "y": coded(found["y"]),
        "cluster": coded(found["cluster"]),
    }


def families(library: Library, ask: FamiliesOf, job: Job) -> dict[str, Any]:
    job.progress("the nearest latents in narrower dictionaries, and of random rows")
    found = splitting([book.dictionary for book in books(library, ask)], names=ask.names, threshold=ask.threshold)
    rows = found.table.groupby("dictionary", sort=False)
    return {
        "names": found.names,
        "widths": found.widths,
        "shares": json_value(found.shares),
        "parents": {name: coded(some["parent"].where(some["child"], -1)) for name, some in rows},
        "cosines": {name: coded(some["cosine"]) for name, some in rows},
    }


def circles(library: Library, ask: CircleOf, job: Job) -> dict[str, Any]:
    bench = Bench(library, ask, job)
    with bench.watched():
        found = cycle(bench.model, bench.book.dictionary, ask.cycle)
    return {
        "names": found.names,
        "latents": found.latents,
        "orders": found.orders,
        "table": json_value(found.table),
        "points": json_value(found.points),
        "words": bench.book.rows(found.latents[:60]),
    }


def decomposed(library: Library, ask: MetaOf, job: Job) -> dict[str, Any]:
    own, meta = books(library, ask)
    job.progress("the meta-latents of every row")
    found = meta_latents(own.dictionary, meta.dictionary)
    columns = {name: coded(found.table[name]) for name in ("latent", "meta", "activation", "given")}
    return {"width": meta.dictionary.width, "explained": coded(found.explained), **columns}


def all_written(library: Library, ask: WrittenBy, job: Job) -> dict[str, Any]:
    bench = Bench(library, ask, job)
    found = written(bench.model, bench.book.dictionary, tell=job.progress).table
    numbers = {name: coded(found[name]) for name in ("sd", "skew", "kurtosis", "effect", "q", "unusual")}
    words = {name: found[name].tolist() for name in ("promotes", "suppresses", "set")}
    return {"width": len(found), **numbers, **words}


def absorbed(library: Library, ask: AbsorbersOf, job: Job) -> dict[str, Any]:
    bench = Bench(library, ask, job)
    job.progress("asking the model for first letters")
    with bench.watched():
        config = AbsorptionConfig.parse({"words_per_letter": ask.words})
        found = absorbers(bench.model, bench.book.dictionary, config, quiet=True)
    tables = {"words": found.table, "letters": found.letters, "latents": found.latents}
    named = sorted({*found.latents["latent"].tolist(), *(one for main in found.letters["main"] for one in main)})
    said = {row["latent"]: row for row in bench.book.rows(named[:300])}
    return {"notes": found.notes, "said": said, **{name: json_value(table) for name, table in tables.items()}}


# kind of job -> what it may be asked, and what does it
COMPUTED: dict[str, tuple[type[Any], Callable[[Library, Any, Job], dict[str, Any]]]] = {
    "map": (MapOf, laid_out),
    "families": (FamiliesOf, families),
    "circle": (CircleOf, circles),
    "meta": (MetaOf, decomposed),
    "written": (WrittenBy, all_written),
    "absorbers": (AbsorbersOf, absorbed),
}


class Computed:
    """A folder of results, one file for each kind, what was asked, and the weights of the dictionaries."""

    def __init__(self, library: Library, folder: Path):
        self.library, self.folder = library, folder

    def path(self, kind: str, ask: Any) -> Path:
        weights = [book.dictionary.fingerprint for book in books(self.library, ask)]
        model = getattr(self.library.named, "name", self.library.named)
        said = json.dumps([__version__, FORM, kind, ask.model_dump(mode="json"), weights, model], sort_keys=True)
        return self.folder / f"{kind}-{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"

    def held(self, kind: str, ask: Any) -> dict[str, Any] | None:
        """The result, where there is one; a file that cannot be read is none."""
        try:
            return read_object(self.path(kind, ask))
        except BadFile:
            return None

    def work(self, kind: str, ask: Any) -> Callable[[Job], dict[str, Any]]:
        """A job that gives what is held, or computes it and keeps it."""

        def work(job: Job) -> dict[str, Any]:
            if (held := self.held(kind, ask)) is not None:
                return held
            made: dict[str, Any] = json_value(COMPUTED[kind][1](self.library, ask, job))
            job.check()
            path = self.path(kind, ask)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, made)
            return made

        return work


def books(library: Library, ask: Any) -> list[Book]:
    """Those that are asked for. Raises `UnknownName`; `BadInput` for one named twice."""
    if len(set(ask.names)) < len(ask.names):
        raise BadInput("a dictionary is named twice")
    return [library.book(name) for name in ask.names]


def coded(values: "pd.Series[Any]") -> str:
    """Numbers as the base64 of little-endian float32."""
    return base64.b64encode(values.to_numpy(dtype="<f4").tobytes()).decode()
