"""A direction: a vector at a site, and how it was found."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..activations import SkipRule
from ..dictionaries import Dictionary
from ..errors import BadFile, BadInput, Mismatch
from ..files import replacing
from ..models import Model, Site, SiteLike
from ..reading import parse_json
from .fitting import Pool, fitted


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at a site with its provenance. `edits.add(direction, 4.0)` and `edits.ablate(direction)` take it.

    Attributes:
        vector: `d_model`, float32, in raw activation units (not normalised: its length is part of what was found).
        model_name: the model that it belongs to.
        provenance: method, data, seed, and what is known of its quality.

    Raises:
        BadInput: a vector that is not one-dimensional, is zero or not finite.
    """

    vector: Float[Tensor, "d_model"]
    site: Site
    model_name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or not bool(self.vector.isfinite().all()) or not bool(self.vector.any()):
            raise BadInput(f"a direction is one finite vector that is not zero, got shape {list(self.vector.shape)}")
        object.__setattr__(self, "vector", self.vector.detach().float().cpu())

    @classmethod
    def fit(
        cls,
        model: Model,
        positive: Sequence[str],
        negative: Sequence[str],
        site: SiteLike,
        *,
        method: Literal["dim"] = "dim",
        pool: Pool = "last",
        seed: int = 0,
        skip: SkipRule | None = None,
    ) -> Self:
        """The direction from the negative to the positive prompts at a site of the stream.

        `dim`: difference of class means (Marks & Tegmark 2023, arXiv:2310.06824), summed in float64. The provenance
        says how far to trust it: `stability` is the cosine of the directions of two random halves; `held_out_auroc` is
        how well the first half's direction tells the second half's prompts apart.

        Args:
            pool: read each prompt at its last token, or as the mean over its tokens that count.
            skip: which tokens do not count; default: the first, special ones and norm outliers. At the last token only
                outliers do not, and are refused. The provenance says how many were left out.

        Raises:
            BadInput: a site that is not of the stream, fewer than two prompts a side, a prompt without a token that
                counts.
            UnknownName: no such method or pool.
        """
        place = model.site(site)
        vector, provenance = fitted(model, positive, negative, place, method, pool, seed, skip)
        return cls(vector, place, model.name, provenance)

    @classmethod
    def of_latent(cls, dictionary: Dictionary, latent: int) -> Self:
        """A latent's decoder row: what one unit of its activation writes."""
        row = dictionary.decoder_rows(latent)[0]
        provenance = {"method": "decoder row", "dictionary": dictionary.name, "latent": int(latent)}
        return cls(row, dictionary.site_out, dictionary.model_name, provenance)

    @property
    def unit(self) -> Float[Tensor, "d_model"]:
        return self.vector / self.vector.norm()

    def projection(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """x · v̂, in units of activation."""
        return x.float() @ self.unit.to(x.device)

    def cosine(self, other: "Direction") -> float:
        return float(self.unit @ other.unit)

    def check(self, model: Model) -> None:
        """Raise `Mismatch` when it was made for another model, or `UnknownName` when the model has no such site."""
        model.site(self.site)
        if self.model_name and self.model_name != model.name:
            raise Mismatch(f"this direction was made for {self.model_name}, not for {model.name}")
        if len(self.vector) != model.cfg.d_model:
            raise Mismatch(f"this direction has {len(self.vector)} entries, {model.name} has {model.cfg.d_model}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file: the vector, and the rest as JSON in its metadata."""
        about = {"site": str(self.site), "model": self.model_name, "provenance": json.dumps(self.provenance)}
        with replacing(path) as temporary:
            save_file({"vector": self.vector.contiguous()}, temporary, metadata={"format": "pt", **about})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Raises `BadFile` when the file is missing, damaged or holds something else."""
        if not Path(path).is_file():
            raise BadFile(f"no direction file {path}")
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                site, provenance = Site.parse(about["site"]), parse_json(about["provenance"])
                return cls(file.get_tensor("vector"), site, about["model"], provenance)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{path} does not hold a direction ({error})") from error
