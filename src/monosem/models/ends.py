"""What is before a model's first block, and after its last one.

    embed (through a projection) + pos_embed + type_embed, through norms or projections = resid_pre.0
    last resid_post, through the final norm, through a head = final_norm, through the unembedding = logits_raw

What a model has of these, its row of the family table says (`Family`), and the identities check.
"""

import inspect
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import BadInput, UnknownName
from .language import language_model
from .places.families import LOGIT_STEPS, Family
from .places.mixers import module_at
from .places.norms import Norm
from .places.sites import Site
from .places.streams import collapsed
from .turns import turn
from .unembedding import unembedded

_NO_LOGITS = "gives states and no logits; the decoder that reads them has the unembedding"


class Ends:
    """The half of `Native` that knows the ends; see there."""

    hf: Any  # a PreTrainedModel
    config: Any
    family: Family
    name: str
    cfg: Any
    streams: int
    whole: Any  # the model whose turn is taken: `hf`, or what an encoder is a part of
    headless: bool

    def part(self, path: str) -> nn.Module:
        """A module of the language model by its path there, or one beside it (a head) by its path in `hf`."""
        found = self._part(path)
        if found is None:
            raise AttributeError(f"{type(self.hf).__name__} has no module {path}")
        return found  # type: ignore[no-any-return]

    def _part(self, path: str | None) -> Any:
        if path is None:
            return None
        inside = module_at(language_model(self.hf), path)
        return module_at(self.hf, path) if inside is None else inside

    def streams_at(self, site: Site) -> int:
        """How many residual streams a stream site has: with AltUp, blocks hand on several and work on one."""
        one = self.family.alternating and site.name not in ("resid_pre", "resid_post")
        return 1 if one else self.streams

    # ------------------------------------------------------------------ before the first block
    @cached_property
    def embed_scale(self) -> float:
        """What the embedding is multiplied by outside its module."""
        scale = self.family.embed_scale
        if scale is None:
            return 1.0
        if scale.startswith("sqrt(d_model)"):
            asked = scale.partition(" where ")[2]
            return float(self.config.hidden_size**0.5) if not asked or getattr(self.config, asked) else 1.0
        found = getattr(self.config, scale, None)
        return float(self._part(scale) if found is None else found)  # or an attribute of a module

    @property
    def embedding(self) -> nn.Module | None:
        """What makes the token's summand of the stream; None in an encoder of sound."""
        projection = self._part(self.family.embed_projection)
        if projection is None and self.family.embed:
            return self.part(self.family.embed)
        return projection  # type: ignore[no-any-return]

    @property
    def position_module(self) -> nn.Module | None:
        """What adds positions; None where none are added, or by no module (CTRL)."""
        found = self._part(self.family.positions)
        return found if isinstance(found, nn.Module) else None

    @property
    def adds_positions(self) -> bool:
        return self._part(self.family.positions) is not None

    @property
    def type_module(self) -> nn.Module | None:
        return self._part(self.family.types)  # type: ignore[no-any-return]

    @property
    def entry(self) -> list[nn.Module]:
        """The modules between the sum of the embeddings and the first block."""
        return [module for path in self.family.entry if (module := self._part(path)) is not None]

    @property
    def entry_norm(self) -> nn.Module | None:
        return next(iter(self.entry), None)

    @cached_property
    def first_position(self) -> int:
        """The number of a text's first position, where the model is told numbers (RoBERTa counts from its padding)."""
        padding = getattr(self.position_module, "padding_idx", None)
        return 0 if padding is None or not self.family.numbered_after_padding else int(padding) + 1

    def is_told_positions(self) -> bool:
        """Whether the model is told the positions of tokens; those that are not count columns, padding included."""
        return "position_ids" in inspect.signature(self.hf.forward).parameters or self.position_module is None

    def position_table(self) -> Any:
        """The module or buffer with the added positions, and its row of a text's first token.

        Raises:
            UnknownName: no positions are added.
        """
        found = self._part(self.family.positions)
        if found is None:
            raise UnknownName(f"W_pos: {self.name} {self.lacks('pos_embed')}")
        if hasattr(found, "create_position_ids_from_input_ids"):  # numbered behind the padding's (XGLM, M2M-100)
            return found, int(found.padding_idx) + 1
        return found, int(getattr(found, "offset", 0)) + self.first_position

    # ------------------------------------------------------------------ after the last block
    @property
    def last_norm(self) -> nn.Module | None:
        """The final norm's module; None in models whose last block ends with one (BERT), or without any."""
        return self._part(self.family.final_norm)  # type: ignore[no-any-return]

    @property
    def head(self) -> list[nn.Module]:
        """What is between the final norm and the unembedding and is no projection: BERT's dense layer, activation and
        norm."""
        from transformers.activations import ACT2FN

        found = (self._part(step) for step in self.family.head)
        return [ACT2FN[step] if module is None else module for step, module in zip(self.family.head, found)]

    @property
    def before_unembedding(self) -> nn.Module | None:
        """The module whose output the unembedding reads; None where it reads the last stream."""
        return self.head[-1] if self.head else self.last_norm

    @property
    def unembedding(self) -> nn.Module:
        return self.hf.get_output_embeddings()  # type: ignore[return-value]

    @property
    def unembeddings(self) -> list[nn.Module]:
        """The unembedding, after the projection before it where there is one (OPT-350m)."""
        projection = self._part(self.family.unembed_projection)
        return [self.unembedding] if projection is None else [projection, self.unembedding]

    def unembed(self, resid: Float[Tensor, "*batch d_model"], norm: bool = True) -> Float[Tensor, "*batch vocab"]:
        """Final norm and head (skipped with `norm=False`), unembedding and what follows it (soft cap, scales)."""
        if self.headless:
            raise UnknownName(f"{self.name} {self.lacks('logits')}")
        weight: Any = self.hf.get_input_embeddings().weight
        if norm and self.family.collapse is not None:
            if resid.ndim < 3 or resid.shape[-2] != self.streams:
                raise BadInput(
                    f"{self.name} keeps {self.streams} streams side by side: its read-out takes `batch pos stream "
                    f"d_model`, not {list(resid.shape)}"
                )
            with turn(self.whole):
                resid = collapsed(self.part(self.family.collapse), resid)
        resid = resid.to(self.cfg.device, weight.dtype)
        with turn(self.whole):  # `forward`: no hooks of a pass in progress
            if norm:
                resid = self.normed(resid)
            for module in self.unembeddings[:-1]:
                resid = module.forward(resid)
            raw = unembedded(self.unembedding, resid)
            return self.logit_transform(raw if self.logit_bias is None else raw + self.logit_bias)

    @property
    def read_scale(self) -> float:
        """What the final norm's output is multiplied by before the unembedding reads it (T5's smaller ones; else 1)."""
        flag, tied = self.family.unembed_scale, getattr(self.config, "tie_word_embeddings", False)  # UMT5 before 5.24
        return float(self.cfg.d_model**-0.5) if flag and getattr(self.config, flag, tied) else 1.0

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to the unembedding's output, `vocab`; None in most models (BART has one)."""
        found = self._part(self.family.logit_bias)
        return found.flatten() if isinstance(found, Tensor) else None

    def normed(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the unembedding reads when the last stream is `resid`: through the final norm and the head."""
        with turn(self.whole):
            for module in (*filter(None, [self.last_norm]), *self.head):
                resid = module.forward(resid)
        return resid * self.read_scale if self.read_scale != 1 else resid

    def logit_transform(self, raw: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """What the model does to the unembedding's output: soft cap (Gemma 2), division (Granite), scale (Cohere)."""
        for step, attribute in self.family.logit_steps:
            if constant := getattr(self.config, attribute):
                raw = LOGIT_STEPS[step](raw, constant)
        return raw

    @property
    def logit_slope(self) -> float:
        """What the unembedding's output is multiplied by (Granite, Cohere; else 1), any soft cap left aside."""
        up, down = self.logit_transform(torch.tensor([1e-8, -1e-8], dtype=torch.float64))
        return float((up - down) / 2e-8)

    @property
    def final_norm(self) -> Norm:
        """The norm before the unembedding, read off the native module; without one, a norm that changes nothing.

        Raises:
            UnknownName: the unembedding reads the last stream through a head that is no norm.
        """
        return self.unembedding_norm()

    def unembedding_norm(self, dtype: torch.dtype = torch.float32) -> Norm:
        """`final_norm`, in another precision."""
        if self.head:
            raise UnknownName(
                f"{self.name} has a head of its own between the last stream and the unembedding "
                f"({', '.join(self.family.head)}), so logits are no sum of what was written into the stream; "
                "model.unembed and the logit lens go through the head, and a direction= in the stream can be attributed"
            )
        norm = self.norm(self.last_norm, dtype)
        return norm if self.read_scale == 1 else norm.times(self.read_scale)

    def norm(self, module: nn.Module | None, dtype: torch.dtype = torch.float32) -> Norm:
        """One of its norms (None: no norm), read off the native module."""
        with turn(self.whole):
            return Norm.of(module, self.cfg.d_model, self.cfg.device, dtype)

    @property
    def final_gain(self) -> Float[Tensor, "d_model"]:
        """What the final norm multiplies by (Gemma stores it minus one)."""
        return self.final_norm.gain.to(self.cfg.dtype)

    def lacks(self, site: str) -> str:
        """Why the model has no such site at its ends, as it follows the model's name."""
        if site == "pos_embed" and self.adds_positions:
            return "adds computed positions, which no module returns; W_pos has them"
        return {
            "pos_embed": "has no learned positions (it rotates queries and keys, or biases scores)",
            "type_embed": "has no token types",
            "embed": "reads sound, whose first stream is resid_pre.0",
            "embed_norm": "has no norm between the embedding and the first block",
            "logits": _NO_LOGITS,
            "logits_raw": _NO_LOGITS,
        }.get(site, f"has no final norm; what its last block writes is resid_post.{self.cfg.n_layers - 1}")
