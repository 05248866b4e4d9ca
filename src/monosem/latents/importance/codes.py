"""What the latents of a dictionary write in a run, at which tokens that counts, and what they write on average."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...dictionaries import Dictionary
from ...errors import BadInput, Mismatch
from ...models import Model, Run, Site, TokenBatch


def one_prompt(model: Model, x: Any, position: int, what: str) -> tuple[TokenBatch, int]:
    """The tokens of a prompt, and which of them a position is, counted from its first token.

    Args:
        what: of which there is one a prompt, for the message.

    Raises:
        BadInput: several prompts, or a position outside.
    """
    batch = model.tokens(x)
    if len(batch) != 1 or batch.padded:
        raise BadInput(f"{what} are of one prompt, not {len(batch)}")
    length = int(batch.ids.shape[1])
    if not -length <= position < length:
        raise BadInput(f"position {position} is outside the {length} tokens of the prompt")
    return batch, position % length


def written_of(dictionary: Dictionary, run: Run) -> Float[Tensor, "pairs pos width"]:
    """Activations of every latent, in raw units."""
    x = run[dictionary.site].flatten(2)
    dense, scale = dictionary.encode(x).dense(), dictionary.token_scale(x)
    return dense if scale is None else dense * scale


def counted(dictionary: Dictionary, run: Run, model: Model) -> Bool[Tensor, "pairs pos"]:
    """The real tokens that a dictionary was trained on."""
    return dictionary.skipper(model).counted(run.tokens, {str(dictionary.site): run[dictionary.site]})


@dataclass(frozen=True, eq=False)
class Means:
    """Values for what is taken away: each latent's mean over the tokens of some prompts, and the error's.

        means = ms.latents.Means.of(model, [early, late], prompts)
        ms.latents.feature_circuit(model, pairs, [early, late], other=means)

    Attributes:
        written, x: site that a dictionary writes -> mean of what every latent writes, and of the activation there.
        tokens: how many tokens each mean is of.
    """

    written: Mapping[Site, Float[Tensor, "width"]]
    x: Mapping[Site, Float[Tensor, "d_out"]]
    tokens: Mapping[Site, int]

    @classmethod
    def of(
        cls, model: Model, dictionaries: Dictionary | Sequence[Dictionary], prompts: Any, *, batch_size: int = 8
    ) -> "Means":
        """Of prompts, as for `Model.run`; tokens that a dictionary was not trained on are left out of its means.

        Raises:
            Mismatch: a dictionary of another model. BadInput: no token is left, or no batch.
        """
        listed = [dictionaries] if isinstance(dictionaries, Dictionary) else list(dictionaries)
        if isinstance(batch_size, bool) or batch_size < 1:
            raise BadInput(f"batch_size counts prompts, 1 or more, not {batch_size!r}")
        for one in listed:
            one.check(model)
        rows = model.tokens(prompts, padding="right").rows()
        sites = list(dict.fromkeys(site for one in listed for site in (one.site, one.site_out)))
        written, x, tokens = (
            dict[Site, Tensor](),
            dict[Site, Tensor](),
            dict.fromkeys((one.site_out for one in listed), 0),
        )
        for first in range(0, len(rows), batch_size):
            with torch.no_grad():
                run = model.run(rows[first : first + batch_size], capture=sites, logits=False)
                for one in listed:
                    site, keep = one.site_out, counted(one, run, model)
                    for sums, values in ((written, written_of(one, run)), (x, run[site].flatten(2))):
                        total = values[keep].double().sum(0).cpu()
                        sums[site] = sums[site] + total if site in sums else total
                    tokens[site] += int(keep.sum())
        if empty := next((site for site, n in tokens.items() if not n), None):
            raise BadInput(f"no token of these prompts is one that the dictionary at {empty} was trained on")
        means = [{site: total / tokens[site] for site, total in sums.items()} for sums in (written, x)]
        return cls(means[0], means[1], tokens)

    def at(self, site: Site, like: Tensor) -> tuple[Float[Tensor, "width"], Float[Tensor, "d_out"]]:
        """What latents write at a site, and the activation there. Raises `Mismatch` for another site."""
        if site not in self.written:
            raise Mismatch(f"these means are of {', '.join(map(str, self.written))}, not of {site}: Means.of(...) anew")
        return self.written[site].to(like), self.x[site].to(like)

    def __str__(self) -> str:
        return f"means over {min(self.tokens.values())} tokens"
