"""Cross-layer transcoders: latents of a layer read that layer and write to it and to every later one.

    codes[s] = phi(x[s] W_enc[s] + b_enc[s])
    y[t] = b_dec[t] + sum over s <= t of codes[s] W_dec[s][:, t - s] (+ x[t] W_skip[t]^T)

Source: Ameisen et al. 2025, Circuit Tracing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import BadInput, Mismatch
from ..models.places.sites import Inner
from .codes import Codes, latent_ids
from .encoders import ENCODERS
from .layers import TranscoderLayer
from .several import Activations, SeveralSites
from .several_parts import CrossLayerParts, RowFiles
from .writers import CROSS_LAYER


class CrossLayer(SeveralSites):
    """A cross-layer transcoder.

    Shapes: `W_enc [layer, d_in, width]`, `b_enc` and `threshold [layer, width]`, `b_dec [layer, d_out]`,
    `W_skip [layer, d_out, d_in]`; `W_dec[s] [width, layer - s, d_out]`, in memory or in files (`RowFiles`).

    Raises:
        BadInput: a tensor of the wrong shape (named) or with values that are not finite, or facts that do not fit.
    """

    instead = "; edits of latents and splice take one of its layers, as clt.layers[0]"
    writers = CROSS_LAYER
    b_enc: Float[Tensor, "layer width"]
    threshold: Float[Tensor, "layer width"] | None
    W_skip: Float[Tensor, "layer d_out d_in"] | None

    def __init__(self, parts: CrossLayerParts):
        parts.check()
        super().__init__(parts)
        self.files = parts.W_dec if isinstance(parts.W_dec, RowFiles) else None
        if not isinstance(parts.W_dec, RowFiles):
            decoders = [nn.Parameter(t.detach().contiguous(), requires_grad=False) for t in parts.W_dec]
            self.W_dec = nn.ParameterList(decoders)
        self.layers = tuple(TranscoderLayer(self, number) for number in range(len(self.W_enc)))

    @property
    def latents(self) -> tuple[Inner, ...]:
        """The places of all layers' latents: `clt.layers[l].latents`."""
        return tuple(layer.latents for layer in self.layers)

    @property
    def n_layers(self) -> int:
        return self.W_enc.shape[0]

    def rows(self, layer: int, latents: int | Sequence[int] | Tensor) -> Float[Tensor, "n later d_out"]:
        """What latents of a layer write to it and to every later one, for an activation of 1.

        Raises:
            UnknownName: a latent that does not exist. BadInput: a layer that does not exist.
            BadFile: the decoders are read from their files, and these are gone or damaged.
        """
        if not 0 <= layer < self.n_layers:
            raise BadInput(f"{self.name!r} has layers 0 to {self.n_layers - 1}, not {layer}")
        ids = latent_ids(latents, self.width)
        if self.files is not None:
            return self.files.rows(layer, ids).to(self.W_enc.device, self.W_enc.dtype)
        return self.W_dec[layer][ids.to(self.W_enc.device)]

    def encode(self, x: Activations) -> tuple[Codes, ...]:
        """The codes of each layer, sparse.

        Args:
            x: site -> activations `[*batch, d_in]` for all of `sites`, a run that captured them, or
                `[layer, *batch, d_in]`.

        Raises:
            BadInput: a site is missing. Mismatch: another shape.
        """
        return tuple(self.encode_layer(layer, part) for layer, part in enumerate(self._stack(x)))

    def encode_layer(self, layer: int, x: Float[Tensor, "*batch d_in"]) -> Codes:
        """The codes of one layer, from what it reads. Raises `Mismatch` for another width."""
        if x.shape[-1] != self.d_in:
            raise Mismatch(
                f"activations of shape {tuple(x.shape)} do not fit {self.name!r}: the last axis is {self.d_in}"
            )
        W, b, threshold = self._encoder(layer)
        return self._codes(lambda rows: torch.addmm(b, rows, W), self._compute(x), threshold)

    def latent_activations(
        self, layer: int, x: Float[Tensor, "*batch d_in"], latents: int | Sequence[int] | Tensor
    ) -> Float[Tensor, "*batch n"]:
        """Activations of some latents of a layer: computes just their columns, except where latents compete (topk)."""
        ids, each = latent_ids(latents, self.width).to(self.W_enc.device), ENCODERS[self.kind].each
        if each is None:
            return self.encode_layer(layer, x).of(ids)
        W, b, threshold = self._encoder(layer)
        return each(self._compute(x) @ W[:, ids] + b[ids], None if threshold is None else threshold[ids])

    def decode(self, codes: Sequence[Codes], like: Activations | None = None) -> Any:
        """Codes of all layers to what is written: `[layer, *batch, d_out]`, or site_out -> `[*batch, d_out]`.

        Args:
            like: the activations that the codes came from. Where they are given by site, so is the output, in their
                dtype; skip connections need them.

        Raises:
            Mismatch: codes of another number of layers or latents. BadInput: skip connections without `like`.
        """
        if len(codes) != self.n_layers or any(one.width != self.width for one in codes):
            raise Mismatch(f"{self.name!r} decodes codes of {self.n_layers} layers with {self.width} latents each")
        lead = codes[0].values.shape[:-1]
        y = [self._compute(bias).expand(*lead, -1) for bias in self.b_dec]
        for layer, one in enumerate(codes):
            for to, part in enumerate(self.written(layer, one), start=layer):
                y[to] = y[to] + part
        out = torch.stack(y)
        if self.W_skip is not None:
            if like is None:
                raise BadInput("a skip connection's output depends on its input: decode(codes, like=x)")
            out = out + torch.einsum("l...i,loi->l...o", self._stack(like), self._compute(self.W_skip))
        return self._like(out, like)

    def written(self, layer: int, codes: Codes) -> Float[Tensor, "later *batch d_out"]:
        """What the codes of one layer add to its own output and to every later one."""
        return self._summed(codes, lambda active: self.rows(layer, active), self.n_layers - layer)

    def write(
        self, layer: int, codes: Sequence[Codes], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """One output alone, from the codes of its layer and of those before, and what its layer reads (for a skip).

        Raises:
            Mismatch: codes of another number of layers. BadInput: a skip connection without x.
        """
        if len(codes) != layer + 1:
            raise Mismatch(f"output {layer} is written by layers 0 to {layer}, not by {len(codes)}")
        y = self._compute(self.b_dec[layer])
        for source, one in enumerate(codes):
            later = layer - source
            y = y + self._summed(one, partial(self._rows_to, source, later), 1)[0]
        if self.W_skip is not None:
            if x is None:
                raise BadInput("a skip connection's output depends on its input: write(layer, codes, x)")
            y = y + self._compute(x) @ self._compute(self.W_skip[layer]).T
        return y

    def _encoder(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        threshold = None if self.threshold is None else self._compute(self.threshold[layer])
        return self._compute(self.W_enc[layer]), self._compute(self.b_enc[layer]), threshold

    def _rows_to(self, layer: int, later: int, latents: Tensor) -> Tensor:
        return self.rows(layer, latents)[:, later : later + 1]

    def forward(self, x: Activations) -> Any:
        """What it writes for what it reads, in the form of `x`."""
        return self.decode(self.encode(x), like=x)
