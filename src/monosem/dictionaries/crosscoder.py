"""Crosscoders: one sparse code for several sites, or for the same site of several models.

    codes = phi(sum over sites of x[l] W_enc[l] + b_enc)        y[l] = codes W_dec[:, l] + b_dec[l]

Source: Lindsey et al. 2024, Sparse Crosscoders.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput, Mismatch
from ..models.places.sites import Site
from .codes import Codes, latent_ids
from .several import Activations, SeveralSites
from .several_parts import CrosscoderParts
from .trained_on import TrainedOn
from .writers import CROSSCODER


class Crosscoder(SeveralSites):
    """A crosscoder of layers, or of models.

    Shapes: `W_enc [site, d, width]`, `b_enc` and `threshold [width]`, `W_dec [width, site, d]`, `b_dec [site, d]`. The
    parts of a crosscoder of several models are these models at one site: activations are then `[model, *batch, d]`.

    Raises:
        BadInput: a tensor of the wrong shape (named) or with values that are not finite, or facts that do not fit.
    """

    instead = "; `edits.clamp_sites` and its neighbours edit latents of crosscoders"
    writers = CROSSCODER
    b_enc: Float[Tensor, "width"]
    W_dec: Float[Tensor, "width site d"]
    threshold: Float[Tensor, "width"] | None

    def __init__(self, parts: CrosscoderParts):
        parts.check()
        super().__init__(parts)

    def encode(self, x: Activations) -> Codes:
        """The code of all sites together, sparse.

        Args:
            x: site -> activations `[*batch, d]` for all of `sites`, a run that captured them, or `[site, *batch, d]`.

        Raises:
            BadInput: a site is missing. Mismatch: another shape.
        """
        side_by_side = self._stack(x).movedim(0, -2).flatten(-2)
        W, b = self._compute(self.W_enc).flatten(0, 1), self._compute(self.b_enc)
        threshold = None if self.threshold is None else self._compute(self.threshold)
        return self._codes(lambda rows: torch.addmm(b, rows, W), side_by_side, threshold)

    def decode(self, codes: Codes, like: Activations | None = None) -> Any:
        """A code to all sites: `[site, *batch, d]`, or site -> `[*batch, d]` where `like` is given by site.

        Raises:
            Mismatch: codes of another number of latents.
        """
        if codes.width != self.width:
            raise Mismatch(f"codes of {codes.width} latents cannot be decoded by {self.name!r} with {self.width}")
        y = self._summed(codes, self.rows, len(self.b_dec))
        bias = self._compute(self.b_dec)
        return self._like(y + bias.view(len(bias), *[1] * (y.ndim - 2), -1), like)

    def forward(self, x: Activations) -> Any:
        """The reconstruction of all sites, in the form of `x`."""
        return self.decode(self.encode(x), like=x)

    def rows(self, latents: int | Sequence[int] | Tensor) -> Float[Tensor, "n site d"]:
        """What each latent writes to every site. Raises `UnknownName` for a latent that does not exist."""
        return self.W_dec[latent_ids(latents, self.width).to(self.W_dec.device)]

    def trained(self, site: Site) -> TrainedOn:
        """What an edit at a site asks about the tokens that it was trained on."""
        return TrainedOn(site)

    def scaled(self, scales: Sequence[float]) -> "Crosscoder":
        """One that reads and writes raw activations, where this one has activations of site l times `scales[l]`.

        Raises:
            BadInput: not one number above 0 for each site.
        """
        s = self._compute(torch.as_tensor(scales))
        if s.shape != self.W_enc.shape[:1] or not bool(((s > 0) & s.isfinite()).all()):
            raise BadInput(f"{self.name!r} needs {len(self.facts.sites)} scales, each a number above 0")
        return Crosscoder(
            CrosscoderParts(
                facts=replace(self.facts, metadata=self.metadata | {"scales": s.tolist()}),
                W_enc=self._compute(self.W_enc) * s[:, None, None],
                b_enc=self.b_enc,
                W_dec=self._compute(self.W_dec) / s[:, None],
                b_dec=self._compute(self.b_dec) / s[:, None],
                threshold=self.threshold,
            )
        )
