"""The named places of a model: sites, the branches that they belong to, and the weights that compute them.

Nothing outside this folder says "attention, then MLP": what a block has, its order, and what precedes what come from
here.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, UnknownName, check_name
from ..native import Layers, Native
from ..sizes import widths
from ..sources import trial
from .branches import Branch
from .kinds import KINDS
from .points import point
from .sites import EMBEDDINGS, Site, SiteLike, host_of
from .weights import View, bias, embedding_table, matrix


class Places(Native):
    """A model's sites, and its weights by layer and head (shapes: `monosem.models.places.weights`)."""

    def site(self, site: SiteLike) -> Site:
        """The validated site. Raises `UnknownName`, with a suggestion, when the model does not have it."""
        parsed = Site.parse(site)
        point(self, host_of(parsed))
        return parsed.among(self.streams_at(parsed))

    def layers(self, layers: Layers = None, kind: str | None = None) -> list[int]:
        """As `Native.layers`; of these, the layers that have a branch of a kind: "attention", "state_space", "mixture".

        Raises:
            UnknownName: no such kind, or no layer has it.
        """
        chosen = super().layers(layers)
        if kind is None:
            return chosen
        check_name("kind of mixer", kind, [*KINDS])
        found = [n for n in chosen if any(slot.mixer.kind == kind for slot in self.anatomy[n].slots)]
        if not found:
            raise UnknownName(f"no layer of {self.name} has a branch of kind {kind!r}")
        return found

    def layers_with(self, site: str) -> list[int]:
        """The layers that have a site of this name; blocks may differ. Raises `UnknownName` where no layer has it."""
        first = Site.parse((site, 0))
        layers = [layer for layer, block in enumerate(self._side(first).anatomy) if first.name in block.places]
        point(self, replace(first, layer=layers[0] if layers else 0))  # explains what is not there
        return layers

    @property
    def source_states(self) -> Site:
        """Where the encoder's output is, which the keys and values of cross attention are made of.

        Raises:
            UnknownName: there is no encoder beside a decoder.
        """
        if self.encoder is None:
            raise UnknownName(f"{self.name} has no encoder beside a decoder")
        once = Site("final_norm", None, "encoder")
        return once if self.has(once) else Site("resid_post", self.encoder.cfg.n_layers - 1, "encoder")

    def has(self, site: SiteLike) -> bool:
        """Whether the model has a site."""
        try:
            self.site(site)
        except UnknownName:
            return False
        return True

    def branches(self, layer: int | None = None) -> list[Branch]:
        """The branches of a block (None: of all), in the order in which they write into the stream."""
        return [Branch(self, number, slot) for number in self.layers(layer) for slot in self.anatomy[number].slots]

    def branch(self, name: str, layer: int) -> Branch:
        """One branch, such as `("attn", 3)`. Raises `UnknownName` where the layer has no branch of that name."""
        by_name = {branch.name: branch for branch in self.branches(layer)}
        if name not in by_name:
            raise UnknownName(f"layer {layer} of {self.name} has no branch {name!r}; it has {', '.join(by_name)}")
        return by_name[name]

    def branch_of(self, site: SiteLike) -> Branch | None:
        """The branch that a site belongs to; None for the stream, and for sites that exist once."""
        parsed = host_of(self.site(site))
        model = self._side(parsed)
        slot = None if parsed.layer is None else model.anatomy[parsed.layer].places[parsed.name].slot
        return None if slot is None else Branch(model, parsed.layer or 0, slot, parsed.side)

    def _side(self, site: Site) -> "Places":
        """The model whose layers a site counts: the encoder beside the decoder, or the model itself."""
        return self.encoder if site.side and self.encoder is not None else self

    def written_before(self, stream: SiteLike) -> list[Branch]:
        """The branches that a stream site is the sum of, with what entered the first block, in order.

        Raises:
            UnknownName: a norm closes the sum of a block, so that no stream behind it is a sum.
        """
        self.refuse_streams("what branches write does not add up to one")
        end = self.depth(stream)
        branches = [branch for branch in self.branches() if self._depth(branch.out) < end]
        changed = next((branch for branch in branches if branch.slot.row.keeps), None)
        if changed is not None:
            raise UnknownName(
                f"{self.name} puts the stream itself through a norm or a scale before {changed.out} is added to it, so "
                f"{self.site(stream)} is no sum of what branches wrote; patch, ablate or use gradients instead"
            )
        closing = next((branch for branch in branches if branch.slot.closing), None)
        if closing is not None:
            raise UnknownName(
                f"{self.name} puts the stream itself through a norm after {closing.out} (post-LN blocks), so "
                f"{self.site(stream)} is no sum of what branches wrote; patch, ablate or use gradients instead"
            )
        return branches

    def refuse_streams(self, reason: str) -> None:
        """Raises `BadInput` where the model keeps several residual streams side by side; `reason` says why not."""
        if self.streams > 1:
            raise BadInput(
                f"{self.name} keeps {self.streams} residual streams, which every block mixes anew: {reason}; capture "
                "or patch branches (attn_out, mlp_out), their insides, or resid_pre with all its streams"
            )

    def carried(self, layer: int | None, end: Site) -> float:
        """What is written in a layer (None: by the embeddings) is multiplied by this on its way to a stream site.

        1 in most models: some multiply the whole stream at the end of each block (Gemma 4).
        """
        last = self.cfg.n_layers if end.layer is None else end.layer + (end.name == "resid_post")
        return prod(block.factor for block in self.anatomy[layer or 0 : last])

    def is_held(self, site: SiteLike, end: Site | None, read: Callable[[Branch], Site]) -> bool:
        """Whether the parts that a stream is taken apart into have what an edit makes of a site.

        Args:
            end: the stream; what comes after it is no matter. None: the logits.
            read: the site of a branch whose values are its part (with what the embeddings add).
        """
        parsed = host_of(self.site(site))
        if parsed.layer is None:
            return parsed.name in EMBEDDINGS or end is not None
        if end is not None and self.depth(parsed) > self.depth(end):
            return True
        branch = self.branch_of(parsed)
        return branch is not None and point(self, parsed).order <= point(self, read(branch)).order

    def depth(self, site: SiteLike) -> int:
        """How far along the stream a site's value is there: a branch writes before the stream sites of larger depth.

        A site of a branch can reach what another branch computes if its depth is below the depth of what that one
        reads. In a block of n branches: 2n + 1 steps, a stream site at even steps, and branch i at step 2i + 1.
        """
        return self._depth(self.site(site))

    def _depth(self, site: Site) -> int:
        if site.side and self.encoder is not None:  # before everything in the decoder
            encoder = self.encoder
            return encoder._depth(Site(site.name, site.layer)) - 2 - encoder._depth(Site("final_norm"))
        steps = 2 * max(len(block.slots) for block in self.anatomy)
        if site.layer is None:
            return -1 if site.name in EMBEDDINGS else self.cfg.n_layers * steps
        block = self.anatomy[site.layer]
        if (slot := block.places[site.name].slot) is not None:
            step = 2 * slot.number + 1
        elif site.name == "resid_post":
            step = steps
        else:
            step = next((2 * slot.number for slot in block.slots if slot.reads == site.name), 0)
        return site.layer * steps + step

    @cached_property
    def looks_ahead(self) -> bool:
        """Whether a later token changes what is computed at an earlier one: two texts show it that end in other tokens.

        So do encoders, and decoders whose config asks for attention in both directions (EmbeddingGemma).
        """
        if self.hears and self.encoder is None:  # no later token changes what is heard
            return True
        ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=self.device) % self.cfg.d_vocab  # some have three tokens
        with torch.no_grad(), self.turn():
            out = self.hf(**trial(self, ids), use_cache=False)
            one, other = (out[0] if self.headless else out.logits)[:, 0].float()
        tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 3e-2
        return bool((one - other).abs().max() > tolerance * one.abs().max())

    def refuse_looking_ahead(self) -> None:
        """Raises `BadInput` where what was computed of a text does not hold for a longer one."""
        if self.looks_ahead:
            raise BadInput(
                f"{self.name} attends in both directions, so that each new token changes all earlier ones: it cannot "
                "continue a text; model.run reads whole texts"
            )

    W_Q = View("q")
    W_K = View("k")
    W_V = View("v")
    W_O = View("z", into=True)
    b_Q = View("q", bias=True)
    b_K = View("k", bias=True)
    b_V = View("v", bias=True)
    b_O = View("z", bias=True, into=True)
    W_in = View("mlp_in")
    W_gate = View("mlp_pre")
    W_out = View("mlp_post", into=True)
    b_in = View("mlp_in", bias=True)
    b_out = View("mlp_post", bias=True, into=True)

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """The token embedding as it is added to the stream: `W_E[ids] = run["embed"]`.

        The model's own tensor, or a copy where the model scales its embedding (Gemma, Granite), or where the table is
        not plain (adapters, offloaded weights).
        """
        found = self.hf.get_input_embeddings() if self.encoder is None else self.part(self.family.embed)
        table, scale = embedding_table(found, self)
        scale = scale * self.embed_scale
        table = table if scale == 1.0 else table * torch.tensor(scale, dtype=table.dtype)
        embedding: Any = self.embedding
        if self.family.embed_projection is None or embedding is self.part(self.family.embed):
            return table
        with self.turn():
            return embedding.forward(table)  # type: ignore[no-any-return]

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Positions as they are added to the embedding, from the first token's on. Raises `UnknownName` in models that
        add none."""
        found, first = self.position_table()
        table = found if isinstance(found, Tensor) else getattr(found, "weights", None)  # computed ones are no weight
        if table is None:
            table = embedding_table(found, self)[0]
        return table[first:].to(self.dtype)

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding, right-multiplied; what follows it (soft cap, scales) is `logit_transform`."""
        *projection, head = self.unembeddings
        weight = matrix(head, widths(head)[0] if projection else self.cfg.d_model, self)
        weight = weight if weight.shape[1] <= self.cfg.d_vocab else weight[:, : self.cfg.d_vocab]
        return matrix(projection[0], self.cfg.d_model, self) @ weight if projection else weight

    @property
    def b_U(self) -> Float[Tensor, "vocab"]:
        """The unembedding's bias; zeros in most models."""
        *projection, head = self.unembeddings
        if not projection:
            own = bias(head, self.cfg.d_model, self)
            return own if self.logit_bias is None else own + self.logit_bias.to(own.dtype)
        width = widths(head)[0]
        return bias(projection[0], self.cfg.d_model, self) @ matrix(head, width, self) + bias(head, width, self)
