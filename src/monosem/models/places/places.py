"""The named places of a model: sites, and the weights that compute them."""

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UnknownName
from ..native import Native
from .branches import Branch, branch, branch_of, branches, depth, written_before
from .points import point
from .sites import Site, SiteLike
from .weights import View, bias, embedding_scale, matrix


class Places(Native):
    """A model's sites, and its weights by layer and head (shapes: `monosem.models.places.weights`)."""

    def site(self, site: SiteLike) -> Site:
        """The validated site. Raises `UnknownName`, with a suggestion, when the model does not have it."""
        parsed = Site.parse(site)
        point(self, parsed)
        return parsed

    def layers_with(self, site: str) -> list[int]:
        """The layers that have a site of this name; blocks may differ. Raises `UnknownName` where no layer has it."""
        name = Site.parse((site, 0)).name
        having = [layer for layer, block in enumerate(self.anatomy) if name in block.places]
        point(self, Site(name, having[0] if having else 0))  # explains what is not there
        return having

    def branches(self, layer: int | None = None) -> list[Branch]:
        """The branches of a block (None: of all), in the order in which they write into the stream."""
        return branches(self, layer)

    def branch(self, name: str, layer: int) -> Branch:
        """One branch, such as `("attn", 3)`. Raises `UnknownName` where the layer has no branch of that name."""
        return branch(self, name, layer)

    def branch_of(self, site: SiteLike) -> Branch | None:
        """The branch that a site belongs to; None for the stream, and for sites that exist once."""
        return branch_of(self, Site.parse(site))

    def written_before(self, stream: SiteLike) -> list[Branch]:
        """The branches that have written into a stream site, in order."""
        return written_before(self, self.site(stream))

    def depth(self, site: SiteLike) -> int:
        """How far along the stream a site's value is there (see `branches.depth`)."""
        return depth(self, self.site(site))

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

        The model's own tensor, or a scaled copy where the model scales its embedding (Gemma, Granite).
        """
        table = self.hf.get_input_embeddings().weight
        scale = embedding_scale(self)
        return table if scale == 1.0 else table * torch.tensor(scale, dtype=table.dtype)

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Learned positions. Raises `UnknownName` in models that rotate queries and keys instead."""
        if self.family.positions is None:
            raise UnknownName(f"W_pos: {self.name} has no learned positions (it rotates queries and keys)")
        return self.hf.get_submodule(self.family.positions).weight  # type: ignore[return-value]

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding, right-multiplied; what follows it (soft cap, scales) is `logit_transform`."""
        return matrix(self.hf.get_output_embeddings(), self.cfg.d_model, self)

    @property
    def b_U(self) -> Float[Tensor, "vocab"]:
        """The unembedding's bias; zeros in most models."""
        found = bias(self.hf.get_output_embeddings(), self.cfg.d_model, self)
        return torch.zeros(self.cfg.d_vocab, dtype=self.dtype, device=self.device) if found is None else found
