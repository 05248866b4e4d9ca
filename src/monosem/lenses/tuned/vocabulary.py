"""A part of the vocabulary that stands for all of it: the unembedding is nearly all of what training a lens costs.

The tokens that the model itself finds likeliest in a batch are taken whole, and of the rest a random sample, each token
of it weighted by how many it stands for. With logits z + log(weight), softmax sums estimate the
sums over the whole vocabulary without bias.
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...models import Model
from ..measures import Distribution
from ..states import chunks


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Some tokens, or all of them.

    Attributes:
        ids: None for all tokens. log_weight: what is added to their logits.
        weight, bias: their rows of the unembedding.
    """

    model: Model
    ids: Int[Tensor, "part"] | None = None
    log_weight: Float[Tensor, "part"] | None = None
    weight: Float[Tensor, "part d_model"] | None = None
    bias: Float[Tensor, "part"] | None = None

    def __len__(self) -> int:
        return self.model.cfg.d_vocab if self.ids is None else len(self.ids)

    def logits(self, resid: Float[Tensor, "cell d_model"], norm: bool = True) -> Float[Tensor, "cell part"]:
        """As `model.unembed`, of these tokens, with their weights."""
        if self.weight is None or self.log_weight is None:
            return self.model.unembed(resid, norm)
        resid = resid.to(self.model.device, self.model.dtype)
        if norm:
            resid = self.model.normed(resid)
        raw = torch.nn.functional.linear(resid, self.weight, self.bias)
        return self.model.logit_transform(raw).float() + self.log_weight

    @classmethod
    @torch.no_grad()
    def sampled(cls, model: Model, final: Float[Tensor, "cell d_model"], size: int, seed: int) -> Self:
        """Half of `size` are the likeliest tokens of these predictions on average, half are drawn from the others.

        Args:
            final: what the unembedding read, after the final norm.
        """
        vocab = model.cfg.d_vocab
        if size >= vocab:
            return cls(model)
        mean = torch.zeros(vocab, device=final.device)
        for part in chunks(len(final), vocab):
            mean += Distribution(model.unembed(final[part], norm=False)).probability.sum(0)
        order = mean.argsort(descending=True)
        whole, rest = order[: size - size // 2], order[size - size // 2 :]
        draw = torch.Generator().manual_seed(seed)
        drawn = rest[torch.randperm(len(rest), generator=draw)[: size // 2].to(rest.device)]
        stands_for = torch.tensor(len(rest) / max(len(drawn), 1)).log()
        log_weight = torch.cat([torch.zeros(len(whole)), stands_for.expand(len(drawn))]).to(final.device)
        ids = torch.cat([whole, drawn])
        return cls(model, ids, log_weight, model.W_U[:, ids].T.contiguous(), model.b_U[ids])
