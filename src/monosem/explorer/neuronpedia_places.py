"""How Neuronpedia would name the dictionaries that are open here, and their latents."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..dictionaries import latent_ids
from ..errors import BadInput
from ..latents import Index, neuron_row
from .asks import OnText
from .bench import Bench
from .library import Book, Library
from .queue import Job

Row = dict[str, Any]


def model_id(book: Book) -> str:
    return (book.dictionary.model_name or "unknown").rstrip("/").rsplit("/", 1)[-1]


def places(library: Library) -> dict[tuple[str, str], Book]:
    """(model, source) -> the dictionary; what cannot be opened is left out."""
    found: dict[tuple[str, str], Book] = {}
    for book in library.books.values():
        if "error" in book.about():
            continue
        site = book.dictionary.site
        source = f"{site.layer or 0}-{site.name}"
        if (model_id(book), source) in found:
            source += "__" + re.sub(r"[^\w.-]+", "-", book.name, flags=re.ASCII).strip("-")
        found[model_id(book), source] = book
    return found


@dataclass(frozen=True)
class Found:
    """A dictionary as its place on Neuronpedia would be named."""

    book: Book
    model: str
    source: str

    @property
    def index(self) -> Index:
        if self.book.usable is None:
            raise BadInput(f"{self.source} has no index: monosem latents index {self.book.name} --text PATH")
        return self.book.usable

    def having(self, latent: int) -> "Found":
        """Itself. Raises `UnknownName` for a latent that it does not have."""
        latent_ids(latent, self.book.dictionary.width)
        return self

    def row(self, latent: int) -> Row:
        with self.book.lock:
            return neuron_row(self.index, latent, model_id=self.model, source=self.source)

    def brief(self, latent: int) -> Row:
        """A latent without its examples, for lists."""
        with self.book.lock:
            named: Row = {"modelId": self.model, "layer": self.source, "index": str(latent), "explanations": []}
            index = self.book.usable
            if index is None:
                return named
            labels = index.explanations
            if labels is not None and latent in labels.all:
                label = {"description": labels.all[latent].label, "explanationModelName": labels.method}
                named["explanations"] = [{**label, "typeName": "monosem"}]
            return named | {
                "maxActApprox": float(index.maxima[latent]),
                "frac_nonzero": float(index.densities[latent]),
            }

    def rare(self, threshold: float) -> Bool[Tensor, "width"]:
        """Latents whose density is at most a threshold; all without an index, or below 0."""
        index = self.book.usable
        if index is None or threshold < 0:
            return torch.ones(self.book.dictionary.width, dtype=torch.bool)
        return index.densities <= threshold

    def bench(self, library: Library, job: Job) -> Bench:
        return Bench(library, OnText(dictionary=self.book.name, text=" "), job)
