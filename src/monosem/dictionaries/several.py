"""What dictionaries of several sites share: their sites, activations of all of them, and what they refuse.

`CrossLayer` reads and writes one site a layer; `Crosscoder` has one code for all its sites.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import BadInput, Mismatch, check_name
from ..models import Model, Run
from ..models.places.sites import Site, SiteLike
from .codes import Codes
from .compatibility import check_compatible
from .encoders import DENSE_ELEMENTS, encode, stacked
from .several_parts import SeveralParts, Sites

Activations = Mapping[SiteLike, Tensor] | Run | Tensor
# what a dictionary of one site has, by which analyses of one site ask for it
ONE_SITE = (
    *("site", "site_out", "has_site_out", "tensors", "parts", "fingerprint", "skipper", "prepare", "left_out"),
    *("preactivations", "latent_activations", "latent_activations_rowwise", "token_scale", "decoder_rows"),
    *("input", "latents", "reconstruction", "error", "observer", "spliced", "per_head", "token_norm", "transcoder"),
    *("whole_texts", "options", "outlier_norm", "skip", "b_glu", "W_glu", "firings"),
)


class SeveralSites(nn.Module):
    """A dictionary of several sites, for inference; `what` it is called in messages."""

    instead = ""  # what to take for it, in messages
    writers: Mapping[str, Callable[..., None]] = {}  # the layouts that `save` writes, the usual one first
    W_enc: Float[Tensor, "part d_in width"]
    b_dec: Float[Tensor, "part d_out"]

    def __init__(self, parts: SeveralParts):
        super().__init__()
        facts = self.facts = parts.facts
        self.what = parts.what
        self.kind, self.k, self.model_name, self.name = facts.kind, facts.k, facts.model_name, facts.name
        self.metadata, self.card = dict(facts.metadata), dict[str, Any]()
        self.folder: Path | None = None
        for name in ("threshold", "W_skip"):
            self.register_parameter(name, None)
        for name, tensor in parts.present().items():
            self.register_parameter(name, nn.Parameter(tensor.detach().contiguous(), requires_grad=False))

    def __getattr__(self, name: str) -> Any:
        if name in ONE_SITE:
            self._refuse(name)
        return super().__getattr__(name)

    def _refuse(self, name: str) -> NoReturn:
        raise BadInput(
            f"{self.name!r} is {self.what} of {len(self.facts.sites)} sites and has no {name!r}: evaluation, indexes, "
            f"edits of a latent and sweeps take a dictionary of one site{self.instead}"
        )

    def save(self, folder: str | os.PathLike[str], format: str | None = None, dtype: torch.dtype | None = None) -> None:
        """Write it to a folder: a crosscoder in Neel Nanda's layout, a cross-layer transcoder as circuit-tracer does.

        Raises:
            UnknownName: another format. BadInput: the format cannot hold it, or the folder cannot be written to.
        """
        chosen = next(iter(self.writers)) if format is None else format
        check_name(f"format to save {self.what} in", chosen, self.writers)
        self.writers[chosen](self, Path(folder), dtype or self.W_enc.dtype)

    @property
    def width(self) -> int:
        """Number of latents (of a cross-layer transcoder: of each layer)."""
        return self.W_enc.shape[2]

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.b_dec.shape[1]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it reads. Raises `BadInput` where the file does not say."""
        return self._known(self.facts.sites, "reads")

    @property
    def sites_out(self) -> tuple[Site, ...]:
        """Where it writes. Raises `BadInput` where the file does not say."""
        return self._known(self.facts.sites_out, "writes")

    def check(self, model: Model) -> None:
        """Raise `Mismatch` unless it can belong to the model: name, sites and widths."""
        widths = [(site, self.d_in) for site in self.sites] + [(site, self.d_out) for site in self.sites_out]
        check_compatible(self.name, self.model_name, widths, model)

    def extra_repr(self) -> str:
        k = "" if self.k is None else f"(k={self.k})"
        return (
            f"{self.kind}{k}, sites={len(self.facts.sites)}, d_in={self.d_in}, width={self.width}, d_out={self.d_out}"
        )

    # --- inside -----------------------------------------------------------------------------------------------------

    def _known(self, sites: Sites, does: str) -> tuple[Site, ...]:
        known = tuple(site for site in sites if site is not None)
        if len(known) < len(sites):
            raise BadInput(f"where {self.name!r} {does} is unknown: its file does not say, or says what is no site")
        return known

    def _compute(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.W_enc.device, torch.promote_types(self.W_enc.dtype, torch.float32))

    def _stack(self, x: Activations) -> Float[Tensor, "part *batch d_in"]:
        """Activations of all sites, in their order. Raises `BadInput` for a missing site, `Mismatch` for a shape."""
        if isinstance(x, Run):
            x = {site: x[site] for site in self.sites}
        if isinstance(x, Mapping):
            given = {Site.parse(place): value for place, value in x.items()}
            if missing := [str(site) for site in self.sites if site not in given]:
                raise BadInput(
                    f"{self.name!r} reads {', '.join(missing)}, too; activations of all its sites are needed"
                )
            shapes = {tuple(given[site].shape) for site in self.sites}
            if len(shapes) > 1:
                raise Mismatch(f"activations of one shape at all sites are needed, not {sorted(shapes)}")
            x = torch.stack([given[site] for site in self.sites])
        parts = len(self.facts.sites)
        if x.ndim < 2 or len(x) != parts or x.shape[-1] != self.d_in:
            raise Mismatch(
                f"activations of shape {tuple(x.shape)} do not fit {self.name!r}: [{parts}, ..., {self.d_in}] is needed"
            )
        return self._compute(x)

    def _codes(self, pre: Any, rows: Float[Tensor, "*batch d"], threshold: Tensor | None) -> Codes:
        """Of rows, some at a time; pre: rows to pre-activations."""
        lead = rows.shape[:-1]
        groups = rows.reshape(-1, rows.shape[-1]).split(max(1, DENSE_ELEMENTS // self.width))
        values, indices = stacked([encode(pre(some), self.kind, self.k, threshold) for some in groups])
        slots = values.shape[-1]
        return Codes(values.view(*lead, slots), indices.view(*lead, slots), self.width)

    def _summed(
        self, codes: Codes, rows_of: Callable[[Tensor], Float[Tensor, "n part d_out"]], parts: int
    ) -> Float[Tensor, "part *batch d_out"]:
        """What codes write to each part; only rows of latents that are active are asked for."""
        lead, slots = codes.values.shape[:-1], codes.values.shape[-1]
        if codes.values.numel() == 0:
            return self._compute(codes.values).new_zeros(parts, *lead, self.d_out)
        values, indices = self._compute(codes.values).reshape(-1, slots), codes.indices.reshape(-1, slots)
        active, places = indices.unique(return_inverse=True)
        rows = self._compute(rows_of(active)).transpose(0, 1).contiguous()
        sums = [F.embedding_bag(places, some, per_sample_weights=values, mode="sum") for some in rows]
        return torch.stack(sums).view(parts, *lead, self.d_out)

    def _like(self, y: Float[Tensor, "part *batch d_out"], like: Activations | None) -> Any:
        """A reconstruction in the form and dtype of the activations that it is of."""
        if isinstance(like, Run):
            like = {site: like[site] for site in self.sites}
        if isinstance(like, Mapping):
            dtypes = next(iter(like.values()))
            return {site: part.to(dtypes) for site, part in zip(self.sites_out, y)}
        return y if like is None else y.to(like)
