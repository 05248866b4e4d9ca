"""The Dictionary: a learned sparse code of a site, in one canonical form whatever file it came from.

    pre = x W_enc + b_enc        codes = phi(pre)        y = codes W_dec + b_dec (+ x W_skip^T)

(of a gated linear unit: pre = (x W_enc + b_enc) sigmoid(x W_glu + b_glu)).
Arithmetic is done in float32 (float64 for float64 weights) whatever dtype `x` has. Codes and latent activations are
returned in that dtype; reconstructions are cast back to the dtype of `x`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..activations import Skipper, SkipRule
from ..errors import BadInput, Mismatch, check_name
from ..jobs import fingerprint
from ..models import Model, Moment
from ..models.places.sites import Site
from .codes import Codes, TokenNorm, latent_ids
from .compatibility import check_compatible
from .encoders import DENSE_ELEMENTS, ENCODERS, encode, firings, stacked
from .parts import DictionaryParts, DictionaryTensors
from .places import InnerPlaces
from .remembered import Remembering
from .token_norms import TOKEN_NORMS
from .trained_on import rule_of
from .writers import WRITERS

SPARSE_SHARE = 8  # decode densely when more than 1 latent in this many is active: a matmul then beats gathering rows


class Dictionary(Remembering, InnerPlaces, nn.Module):
    """An SAE or transcoder of one site, made of its parts.

    Shapes: `W_enc [d_in, width]`, `b_enc [width]`, `W_dec [width, d_out]`, `b_dec [d_out]`,
    `threshold [width]` (jumprelu), `W_skip [d_out, d_in]` (skip transcoders), `W_glu` and `b_glu` as W_enc and b_enc
    (gated linear units), and what the kind alone has (`Encoder.extra`).

    A "batchtopk" is kept as the jumprelu that it is at inference; `per_head` is on by itself for z, q, k, v sites.

    Raises:
        BadInput: an unknown kind or option, a tensor of the wrong shape (named) or with values that are not finite.
    """

    W_enc: Float[Tensor, "d_in width"]
    b_enc: Float[Tensor, "width"]
    W_dec: Float[Tensor, "width d_out"]
    b_dec: Float[Tensor, "d_out"]
    threshold: Float[Tensor, "width"] | None
    W_skip: Float[Tensor, "d_out d_in"] | None
    W_glu: Float[Tensor, "d_in width"] | None
    b_glu: Float[Tensor, "width"] | None

    def __init__(self, parts: DictionaryParts):
        super().__init__()
        parts.check()
        self.metadata, self.card = dict(parts.metadata), dict(parts.card)
        rule_of(self.metadata)  # raises where it is none
        self.kind, self.k, self.token_norm, self.options = parts.kind, parts.k, parts.token_norm, dict(parts.options)
        if self.kind == "batchtopk":
            self.kind = "jumprelu"
            self.metadata.setdefault("training_architecture", "batchtopk")
        for name in ("threshold", "W_skip", "W_glu", "b_glu"):
            self.register_parameter(name, None)
        for name, tensor in parts.tensors.present().items():
            self.register_parameter(name, nn.Parameter(tensor.detach().contiguous(), requires_grad=False))
        self._site = None if parts.site is None else Site.parse(parts.site)
        self._site_out = None if parts.site_out is None else Site.parse(parts.site_out)
        self.transcoder = parts.is_transcoder
        self.per_head = parts.per_head or (self._site is not None and self._site.per_head)
        self.model_name, self.name = parts.model_name, parts.name
        self.folder: Path | None = None  # where it was read from; its latent index lies there too

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def whole_texts(self) -> bool:
        """Whether codes of a token depend on the tokens before it, so that it reads whole texts."""
        return ENCODERS[self.kind].whole_texts

    @property
    def site(self) -> Site:
        """Where it reads. Raises `BadInput` when the file did not say (or said something that is not a site)."""
        return self._known(self._site, "reads", "")

    @property
    def site_out(self) -> Site:
        """Where its output belongs: `site`, except for transcoders.

        Raises `BadInput` for a transcoder whose file did not say (or said something that is not a site).
        """
        return self._known(self._site_out, "writes", "_out") if self.transcoder else self.site

    @property
    def has_site_out(self) -> bool:
        """Whether it is known where its output belongs."""
        return self._site_out is not None or not self.transcoder

    @property
    def tensors(self) -> DictionaryTensors:
        """The tensors themselves (not a copy)."""
        return DictionaryTensors.of(dict(self.named_parameters(recurse=False)))

    @property
    def parts(self) -> DictionaryParts:
        """What it is made of; `Dictionary(parts)` is the same again."""
        return DictionaryParts(
            self.tensors,
            self.kind,
            k=self.k,
            options=self.options,
            token_norm=self.token_norm,
            site=self._site,
            site_out=self._site_out,
            transcoder=self.transcoder,
            per_head=self.per_head,
            model_name=self.model_name,
            name=self.name,
            metadata=self.metadata,
            card=self.card,
        )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits for its weights and how it encodes, to notice that it was trained again."""
        tensors = [self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.threshold, self.W_glu, self.b_glu]
        tensors += self.tensors.extra.values()
        options = f" {sorted(self.options.items())}" if self.options else ""
        told = f"{self.kind} {self.k} {self.token_norm}{options}"
        return self.remembered(f"fingerprint {told}", lambda: fingerprint(told, *(t for t in tensors if t is not None)))

    @property
    def skip(self) -> SkipRule:
        """Which tokens it was not trained on, as its file says (`trained_on`); the default where it does not.

        Statistics leave them out, and so do edits of its latents.
        """
        return rule_of(self.metadata)[0]

    @property
    def outlier_norm(self) -> float | None:
        """Norm at `site` above which a token was an outlier in training; None where the file does not say."""
        return rule_of(self.metadata)[1]

    def skipper(self, model: Model) -> Skipper:
        """Tells which tokens of this model it was trained on. A norm of outliers that its file does not say is measured
        once for each model and site (`activations.median_norms`: one forward pass of about 700 tokens)."""
        norm = self.outlier_norm
        return Skipper.of(model, [self.site], self.skip, {} if norm is None else {str(self.site): norm})

    def extra_repr(self) -> str:
        where = "" if self._site is None else f", site={self._site}"
        k = "" if self.k is None else f"(k={self.k})"
        return f"{self.kind}{k}, d_in={self.d_in}, width={self.width}, d_out={self.d_out}{where}"

    def check(self, model: Model) -> None:
        """Raise `Mismatch` unless this dictionary can belong to the model: name, sites (that are known) and widths."""
        widths = [(self.site, self.d_in)]
        if self.has_site_out:
            widths.append((self.site_out, self.d_out))
        check_compatible(self.name, self.model_name, widths, model)

    # --- for edits ---------------------------------------------------------------------------------------------------

    def prepare(self, model: Model) -> None:
        """Measure, before a pass, what `left_out` needs in it."""
        self.skipper(model)

    def left_out(self, x: Float[Tensor, "batch pos *d_in"], moment: Moment) -> dict[str, Bool[Tensor, "batch pos"]]:
        """For each reason, the tokens of a moment that it was not trained on; x is the activation at its site."""
        model: Any = moment.model
        return self.skipper(model).left_out(moment.ids, moment.positions, {str(self.site): x})

    # --- encoding ---------------------------------------------------------------------------------------------------

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Codes:
        """Activations to sparse codes; `[..., head, d_head]` is flattened where `per_head`. Long inputs go in chunks.

        Raises:
            Mismatch: the last axis is not d_in (nor the last two together, where `per_head`).
            BadInput: activations that are not `[batch, pos, d_in]`, where codes depend on earlier tokens
                (`whole_texts`).
        """
        z, norm, lead = self._inputs(x)
        if self.whole_texts:
            values, indices, predicted = self._found(z.view(*self._text_shape(lead), self.d_in))
            return Codes(values, indices, self.width, norm, predicted)
        values, indices = stacked([self._encoded(rows) for rows in self._chunks(z)])
        slots = values.shape[-1]
        return Codes(values.view(*lead, slots), indices.view(*lead, slots), self.width, norm)

    def preactivations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch width"]:
        """What the activation function reads, dense. Raises `BadInput` for kinds that have none such."""
        if ENCODERS[self.kind].find is not None:
            raise BadInput(f"a {self.kind} dictionary finds its codes otherwise than from pre-activations")
        z, _, lead = self._inputs(x)
        return self._pre(z).view(*lead, self.width)

    def firings(self, pre: Float[Tensor, "n width"]) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m"]]:
        """Row, latent and activation of every code that is not 0, of `preactivations`."""
        return firings(pre, self.kind, self.k, self._threshold())

    def latent_activations(
        self, x: Float[Tensor, "*batch d_in"], latents: int | Sequence[int] | Tensor
    ) -> Float[Tensor, "*batch n"]:
        """Activations of some latents only: computes just their columns, except where latents compete (topk)."""
        ids = latent_ids(latents, self.width).to(self.W_enc.device)
        encoder = ENCODERS[self.kind]
        if encoder.each is None:
            return self.encode(x).of(ids)
        z, _, lead = self._inputs(x)
        threshold = self._threshold()
        acts = encoder.each(self._pre(z, ids), None if threshold is None else threshold[ids])
        return acts.view(*lead, len(ids))

    def latent_activations_rowwise(
        self, x: Float[Tensor, "batch pos d_in"], latents: Sequence[int] | Tensor
    ) -> Float[Tensor, "batch pos"]:
        """As `latent_activations`, where each row of the batch asks for its own latent (`latents [batch]`)."""
        ids = latent_ids(latents, self.width).to(self.W_enc.device)
        if len(ids) != len(x):
            raise BadInput(f"{len(ids)} latents for {len(x)} rows; give one latent a row")
        encoder = ENCODERS[self.kind]
        if encoder.each is None:
            codes = self.encode(x)
            return torch.where(codes.indices == ids[:, None, None], codes.values, 0).sum(-1)
        z, _, lead = self._inputs(x)
        pre = self._affine(z.view(*lead, self.d_in), lambda z, W, b: torch.einsum("bpd,db->bp", z, W) + b[:, None], ids)
        threshold = self._threshold()
        return encoder.each(pre, None if threshold is None else threshold[ids][:, None])

    def token_scale(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"] | None:
        """How much a decoder row counts in raw activation units at each token; None where it always is 1."""
        norm = self._inputs(x)[1]
        return None if norm is None else norm.scale

    # --- decoding ---------------------------------------------------------------------------------------------------

    def decode(self, codes: Codes, like: Tensor | None = None) -> Float[Tensor, "*batch d_out"]:
        """Codes to a reconstruction, in raw activation units.

        Args:
            like: the activations that the codes came from. Gives the reconstruction its dtype, its device and, at
                per-head sites, its `[..., head, d_head]` shape; skip transcoders need it (their output depends on it).

        Raises:
            Mismatch: codes of a dictionary of another width.
            BadInput: a skip transcoder without `like`, or codes without the token statistics that are needed.
        """
        if codes.width != self.width:
            raise Mismatch(
                f"codes of a dictionary with {codes.width} latents cannot be decoded by one with {self.width}"
            )
        lead, slots = codes.values.shape[:-1], codes.values.shape[-1]
        values, indices = (part.reshape(math.prod(lead), slots) for part in (codes.values, codes.indices))
        y = (self._decoded(values, indices) + self._compute(self.b_dec)).view(*lead, self.d_out)
        if codes.predicted is not None:
            y = y + self._compute(codes.predicted)
        if self.token_norm != "none" and not self.transcoder:
            if codes.norm is None:
                raise BadInput(
                    f"these codes lack the token statistics that {self.token_norm} needs; make them with encode()"
                )
            y = y * codes.norm.scale + codes.norm.mean
        if self.W_skip is not None:
            if like is None:
                raise BadInput("a skip transcoder's output depends on its input: decode(codes, like=x)")
            y = y + self._compute(self._flat(like)) @ self._compute(self.W_skip).T
        if like is None:
            return y
        return (y.reshape(like.shape) if like.shape[:-1] != lead and self.d_in == self.d_out else y).to(like)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction of `x`, in its shape and dtype."""
        return self.decode(self.encode(x), like=x)

    def decoder_rows(self, latents: int | Sequence[int] | Tensor) -> Float[Tensor, "n d_out"]:
        """What each latent writes, for an activation of 1. Raises `UnknownName` for a latent that does not exist."""
        return self.W_dec[latent_ids(latents, self.width).to(self.W_dec.device)]

    def save(self, folder: str | os.PathLike[str], format: str = "saelens", dtype: torch.dtype | None = None) -> None:
        """Write it to a folder in a format that other tools read (`WRITERS`; default: SAELens v6, with the card beside
        it).

        Raises:
            UnknownName: no such format.
            BadInput: the format cannot hold this dictionary, or the folder cannot be written to.
        """
        check_name("format to save in", format, WRITERS)
        WRITERS[format](self.parts, Path(folder), dtype or self.W_enc.dtype)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _known(self, site: Site | None, does: str, suffix: str) -> Site:
        if site is None:
            hook = self.metadata.get(f"hook_name{suffix}") or self.metadata.get(f"hf_hook_name{suffix}")
            said = f"its file says {hook!r}, which is not a site" if hook else "its file does not say"
            raise BadInput(
                f"where dictionary {self.name!r} {does} is unknown: {said}; give load_dictionary(..., site{suffix}=)"
            )
        return site

    def _compute(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.W_enc.device, torch.promote_types(self.W_enc.dtype, torch.float32))

    def _threshold(self) -> Tensor | None:
        return None if self.threshold is None else self._compute(self.threshold)

    def _flat(self, x: Tensor) -> Tensor:
        """Heads flattened where they come apart, and the width checked."""
        if x.ndim and x.shape[-1] == self.d_in:
            return x
        if self.per_head and x.ndim > 1 and x.shape[-2] * x.shape[-1] == self.d_in:
            return x.flatten(-2)
        raise Mismatch(
            f"activations of shape {tuple(x.shape)} do not fit dictionary {self.name!r}: "
            f"the last axis must be {self.d_in}"
        )

    def _inputs(self, x: Tensor) -> tuple[Float[Tensor, "n d_in"], TokenNorm | None, torch.Size]:
        """Rows as the encoder reads them, the statistics that the output needs, and the leading shape."""
        x, norm = TOKEN_NORMS[self.token_norm](self._compute(self._flat(x)))
        return x.reshape(-1, self.d_in), None if self.transcoder else norm, x.shape[:-1]

    def _text_shape(self, lead: torch.Size) -> torch.Size:
        if len(lead) != 2:
            raise BadInput(
                f"a {self.kind} dictionary's codes of a token depend on the tokens before it: give whole texts "
                f"[batch, pos, d_in], not {[*lead, self.d_in]}"
            )
        return lead

    def _found(self, z: Float[Tensor, "*batch d_in"]) -> tuple[Tensor, Tensor, Tensor | None]:
        find = ENCODERS[self.kind].find
        assert find is not None
        return find(
            z, {name: self._compute(t) for name, t in self.named_parameters(recurse=False)}, self.k, self.options
        )

    def _encoded(self, z: Float[Tensor, "n d_in"]) -> tuple[Tensor, Tensor]:
        if ENCODERS[self.kind].find is None:
            return encode(self._pre(z), self.kind, self.k, self._threshold())
        return self._found(z)[:2]

    def _pre(self, z: Float[Tensor, "n d_in"], ids: Int[Tensor, "m"] | None = None) -> Float[Tensor, "n m"]:
        return self._affine(z, lambda z, W, b: torch.addmm(b, z, W), ids)

    def _affine(
        self, z: Tensor, affine: Callable[[Tensor, Tensor, Tensor], Tensor], ids: Int[Tensor, "m"] | None
    ) -> Tensor:
        """Pre-activations of all latents, or of some, by a function of input, weights and bias."""

        def of(W: Tensor, b: Tensor) -> Tensor:
            return affine(z, *(self._compute(t if ids is None else t[..., ids]) for t in (W, b)))

        pre = of(self.W_enc, self.b_enc)
        return pre if self.W_glu is None or self.b_glu is None else pre * of(self.W_glu, self.b_glu).sigmoid()

    def _chunks(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(max(1, DENSE_ELEMENTS // self.width))

    def _decoded(self, values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"]) -> Float[Tensor, "n d_out"]:
        values, W_dec = self._compute(values), self._compute(self.W_dec)
        if values.shape[-1] == 0:
            return values.new_zeros(len(values), self.d_out)
        if values.shape[-1] * SPARSE_SHARE <= self.width:
            return F.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")
        pairs = zip(self._chunks(values), self._chunks(indices))
        return torch.cat([Codes(v, i, self.width).dense() @ W_dec for v, i in pairs])
