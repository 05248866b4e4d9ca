"""The dictionaries that the explorer shows, their indices, and the model, each opened once when it is first needed."""

import base64
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionaries import Dictionary, latent_ids, one_site, shipped_dictionaries
from ..directions import Direction, Directions
from ..errors import BadFile, BadInput, Mismatch, MonosemError, cause, check_name
from ..latents import Index, meta_latents, neighbours, page, weight_statistics
from ..latents.index import index_place
from ..latents.maps import principal, unit_rows
from ..models import Model
from ..models.loading.embedded import cache_folder
from ..terminal import one_line
from .queue import Job

SHOWN = 6  # tokens of a latent in a table
MOST_ROWS = 300  # of a table that are asked for at once
MAP_COMPONENTS = 2
FAMILY = 5  # near latents in another dictionary


class Book:
    """A dictionary by its name; what is read from it stays, until its index is another file.

    Args:
        made: the folder of indexes that were made in the browser.
    """

    def __init__(self, name: str, made: Path):
        self.name, self.made_folder = name, made
        self.own_index: Path | None = None  # in place of the one beside the dictionary
        self.lock = threading.RLock()  # SQLite's connection and cached properties are shared by many requests
        self.read: object = None  # which file the index was read from

    @cached_property
    def dictionary(self) -> Dictionary:
        return one_site(self.name)

    @cached_property
    def made(self) -> Path:
        """The index that was made in the browser, or would be: of these weights, under whatever name."""
        return self.made_folder / f"{self.dictionary.fingerprint}.sqlite"

    @property
    def unused(self) -> Path:
        """The same, while the one beside the dictionary is used."""
        return self.made.with_suffix(".unused")

    def use_made(self, wanted: bool) -> None:
        """Whether an index that was made in the browser stands in place of the one beside the dictionary.

        Raises `BadInput` where there is none, or the folder cannot be written to.
        """
        old, new = (self.unused, self.made) if wanted else (self.made, self.unused)
        if new.exists() and not old.exists():
            return  # another tab asked, too
        try:
            old.replace(new)
        except FileNotFoundError as error:
            raise BadInput(f"no other index of {self.name} was made here") from error
        except OSError as error:
            raise BadInput(f"cannot write into {self.made_folder}: {cause(error)}") from error

    def take(self, place: Path) -> None:
        """Show an index that was just made in the browser."""
        self.own_index = None
        for path in {self.made, self.unused} - {place}:
            path.unlink(missing_ok=True)

    @property
    def index_file(self) -> tuple[str, Path] | None:
        """Which index is shown: one that the command line named, one made in the browser, or the one beside."""
        places = {"named": self.own_index, "made": self.made, "beside": index_place(self.dictionary)}
        return next(((why, path) for why, path in places.items() if path and (path.exists() or why == "named")), None)

    def look(self) -> None:
        """Read the index again where it is another file than before, as after it was made."""
        found = self.index_file
        status = found[1].stat() if found and found[1].exists() else None
        read = found, status and (status.st_ino, status.st_mtime_ns, status.st_size)
        if read != self.read:
            for name in ("index", "broken_index", "table"):
                self.__dict__.pop(name, None)
            self.read = read

    @cached_property
    def index(self) -> Index | None:
        found = self.index_file
        return None if found is None else Index(found[1], self.dictionary)

    @cached_property
    def broken_index(self) -> str | None:
        """Why its index cannot be used, where it cannot; pages then show what the weights say."""
        try:
            _ = self.index
            return None
        except MonosemError as error:
            return one_line(str(error))

    @property
    def usable(self) -> Index | None:
        with self.lock:
            self.look()
            return None if self.broken_index else self.index

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a latent: what the index says, and what the weights say."""
        weights, index = weight_statistics(self.dictionary).table, None if self.broken_index else self.index
        if index is None:
            return weights
        table = index.table.merge(weights, on="latent")
        table.insert(3, "log10_density", np.log10(table["density"].where(table["density"] > 0)))
        if index.explanations is not None:
            table["explained"] = table["latent"].isin(list(index.explanations.all)).astype(float)
        return table

    @cached_property
    def places(self) -> Float[np.ndarray, "width two"]:
        """A map: the first two principal components of decoder rows of length 1."""
        return principal(unit_rows(self.dictionary), MAP_COMPONENTS)[0]

    def about(self) -> dict[str, Any]:
        """A line of the home page; a dictionary that cannot be opened says why."""
        with self.lock:
            try:
                own = self.dictionary
                index = self.usable
                return {
                    "name": self.name,
                    "model": own.model_name,
                    "site": str(own.site),
                    "writes": str(own.site_out) if own.transcoder and own.has_site_out else None,
                    "kind": own.kind,
                    "place": str(own.site_out if own.has_site_out else own.site),
                    "heads": own.site.name in ("z", "attn_raw", "attn_out"),
                    "width": own.width,
                    "meta_of": own.metadata.get("meta_of"),
                    "tokens": None if index is None else int(index.meta["tokens"]),
                    "dead": None if index is None else int((index.table["count"] == 0).sum()),
                    "corpus": None if index is None else str(index.meta.get("corpus", "")),
                    "index": None if self.index_file is None else self.index_file[0],
                    "made": self.made.exists() or self.unused.exists(),
                    "beside": (beside := index_place(own)) is not None and beside.exists(),
                    "labels": 0 if index is None or index.explanations is None else len(index.explanations.all),
                    "index_error": self.broken_index,
                }
            except MonosemError as error:
                return {"name": self.name, "error": one_line(str(error))}

    def latent(self, number: int) -> dict[str, Any]:
        with self.lock:
            found = page(self.usable, number, dictionary=self.dictionary).to_json()
            return found | {"dictionary": self.name}  # as it is called here: copies of a dictionary share a name

    def columns(self) -> dict[str, Any]:
        """The whole table for the browser: each column as the base64 of little-endian float32, NaN where none."""
        with self.lock:
            indexed, table = self.usable is not None, self.table
            packed = {
                name: base64.b64encode(table[name].to_numpy(dtype="<f4").tobytes()).decode()
                for name in table.columns
                if name != "latent"
            }
            return {"width": len(table), "columns": packed, "indexed": indexed}

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """What a table says of some latents in words: the label, or what it fires on; and what it promotes."""
        with self.lock:
            latent_ids(numbers, self.dictionary.width)  # raises for one that does not exist
            if (index := self.usable) is None:
                return [{"latent": number} for number in numbers]
            words, labels = index.words_of(numbers), index.explanations
            named = {} if labels is None else labels.all
            return [
                {
                    "latent": number,
                    "fires_on": words[number]["fires_on"][:SHOWN],
                    "label": named[number].label if number in named else None,
                }
                for number in numbers
            ]

    def search(self, words: str, n: int) -> list[dict[str, Any]]:
        with self.lock:
            if (index := self.usable) is None:
                has = f"the index beside {self.name} is damaged" if self.broken_index else f"{self.name} has none"
                raise BadInput(f"words are searched in an index, and {has}; make one on its page")
            found = index.search(words, n=n)[["latent", "score", "matched"]]
            return [{str(name): value for name, value in row.items()} for row in found.to_dict(orient="records")]

    def map(self) -> dict[str, Any]:
        with self.lock:
            return {"method": "PCA", "places": base64.b64encode(self.places.astype("<f4").tobytes()).decode()}


def relation(one: Book, i: int, other: Book, j: int) -> dict[str, Any]:
    """How two latents relate: cosines of their rows (None where spaces have other sizes), and words in common."""
    a, b = (weights_of(book, latent) for book, latent in ((one, i), (other, j)))
    cosines = {
        side: float(torch.nn.functional.cosine_similarity(x, y, dim=0)) if x.shape == y.shape else None
        for side, x, y in (("decoder", a[0], b[0]), ("encoder", a[1], b[1]))
    }
    words = [words_of(book, latent) for book, latent in ((one, i), (other, j))]
    shared = {name: [token for token in words[0][name] if token in words[1][name]] for name in ("fires_on", "promotes")}
    return cosines | shared


def weights_of(book: Book, latent: int) -> tuple[Tensor, Tensor]:
    with book.lock:
        (number,) = latent_ids(latent, book.dictionary.width).tolist()
        return book.dictionary.W_dec[number].float(), book.dictionary.W_enc[:, number].float()


def words_of(book: Book, latent: int) -> dict[str, list[str]]:
    with book.lock:
        index = book.usable
        return {"fires_on": [], "promotes": []} if index is None else index.words_of([latent])[latent]


def space(book: Book) -> tuple[str, int]:
    """What its decoder rows are vectors of: the stream, or one place alone."""
    own = book.dictionary
    site = own.site_out if own.has_site_out else own.site
    return "stream" if site.shape[-1] == "d_model" else str(site), own.d_out


def family(library: "Library", own: Book, latent: int) -> list[dict[str, Any]]:
    """In other dictionaries of the same space, narrow ones first: the nearest latents, and each one's nearest here.
    `family` says whether it is a dictionary of the same place, of another width."""
    found = []
    for other in others(library, own):
        if other.about()["meta_of"]:
            continue
        near = neighbours(own.dictionary, latent, n=FAMILY, other=other.dictionary)
        rows = [
            row | {"cosine": cosine, "back": neighbours(other.dictionary, i, n=1, other=own.dictionary)[0][0]}
            for row, (i, cosine) in zip(other.rows([i for i, _ in near]), near)
        ]
        width, same = other.dictionary.width, other.about()["place"] == own.about()["place"]
        about = {"dictionary": other.name, "width": width, "place": other.about()["place"]}
        found.append(about | {"family": same and width != own.dictionary.width, "rows": rows})
    return sorted(found, key=lambda one: (not one["family"], one["width"]))


def made_of(library: "Library", own: Book, latent: int) -> list[dict[str, Any]]:
    """The meta-latents of a latent, strongest first, for every meta-SAE of its place."""
    found = []
    for other in others(library, own):
        if other.about()["meta_of"] and other.about()["place"] == own.about()["place"]:
            parts = meta_latents(own.dictionary, other.dictionary, [latent])
            rows = parts.table[["meta", "activation", "given"]].to_dict(orient="records")
            found.append({"dictionary": other.name, "explained": float(parts.explained[latent]), "rows": rows})
    return found


def others(library: "Library", own: Book) -> list[Book]:
    """The other dictionaries that write into the same space of the same model."""
    books = [book for book in library.books.values() if book is not own and "error" not in book.about()]
    model = own.dictionary.model_name
    return [book for book in books if space(book) == space(own) and book.dictionary.model_name == model]


@dataclass
class Loaded:
    name: str
    model: Model


class Library:
    """All of it. Only what is named here can be opened through the browser.

    Args:
        names: of dictionaries, as `load_dictionary` takes them; the shipped ones follow.
        model: another model than the dictionaries' own.
        directions: files of directions, or folders of such.
        indexes: files of latent indexes, shown in place of what lies beside the dictionaries of their weights.
        made: the folder of indexes that were made in the browser; by default in the user's cache.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        model: str | Model | None = None,
        directions: Sequence[Path] = (),
        indexes: Sequence[Path] = (),
        made: Path | None = None,
    ):
        self.first = list(names)
        self.directions = read_directions(directions)
        self.made = made or cache_folder() / "indexes"
        self.books = {name: Book(name, self.made) for name in dict.fromkeys([*names, *shipped_dictionaries()])}
        self.named = model
        self.loaded: Loaded | None = None
        for path in indexes:
            self._owner(path).own_index = path

    def _owner(self, path: Path) -> Book:
        """The dictionary of whose weights an index is. Raises `Mismatch` where it is not here."""
        meta = Index(path).meta
        for book in self.books.values():
            if book.dictionary.fingerprint == meta["weights"]:
                return book
        raise Mismatch(
            f"{path} was made with the weights of {meta.get('dictionary') or 'another dictionary'}, which none here "
            "has; name that one, too: monosem explore DICTIONARY --index FILE"
        )

    def book(self, name: str) -> Book:
        check_name("dictionary", name, list(self.books))
        return self.books[name]

    def direction(self, name: str) -> Direction:
        check_name("direction", name, list(self.directions))
        return self.directions[name]

    def model(self, book: Book, job: Job) -> Model:
        """The model of a dictionary, loaded in a job; the last one stays. Raises `Mismatch` where it is of another."""
        from ..models import load_model

        name = self.model_name(book)
        if not isinstance(name, str):
            book.dictionary.check(name)
            return name
        if self.loaded is None or self.loaded.name != name:
            job.progress(f"loading the model {name}")
            self.loaded = None  # two models may not fit
            try:
                self.loaded = Loaded(name, load_model(name, quiet=True))
            except MonosemError as error:
                words = f"the model cannot be loaded: {error}. Then start the explorer again, with --model MODEL"
                raise type(error)(words) from error
        book.dictionary.to(self.loaded.model.device)
        book.dictionary.check(self.loaded.model)
        return self.loaded.model

    def model_name(self, book: Book) -> str | Model:
        name = self.named or book.dictionary.model_name
        if not name:
            raise BadInput(f"{book.name} does not say which model it is of; give --model MODEL")
        return name

    def about(self) -> dict[str, Any]:
        held = self.loaded.name if self.loaded else getattr(self.named, "name", None)
        directions = [
            {"name": name, "site": str(one.site), "model": one.model_name, "method": one.provenance.get("method", "")}
            for name, one in self.directions.items()
        ]
        books = [book.about() for book in self.books.values()]
        return {"dictionaries": books, "first": self.first, "model": held, "directions": directions}


def read_directions(places: Sequence[Path]) -> dict[str, Direction]:
    """Name -> direction; a file with several has one a site. Raises `BadFile` for a file without any."""
    found: dict[str, Direction] = {}
    for place in places:
        files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
        if not files:
            raise BadFile(f"{place} holds no *.safetensors with directions")
        for file in files:
            several = Directions.load(file).directions
            for one in several:
                name = file.stem if len(several) == 1 else f"{file.stem} {one.site} {one.position}".strip()
                found[name if name not in found else f"{file.parent.name}/{name}"] = one
    return found
