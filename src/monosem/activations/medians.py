"""The usual norm at a site: what outliers are told by where there is no corpus to take the median of.

It is measured once for each model and site, on a text that lies in the package, so that which tokens count depends
neither on the prompts of an experiment nor on their order, batches, padding or cache.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import BadInput
from ..files import ASSETS
from ..models import Model, Site, TokenBatch

TEXT = ASSETS / "usual_text.txt"  # pieces of prose, dialogue, code, lists, other languages; divided by blank lines
LONGEST = 48  # tokens of a piece that are read
DRAWN = (16, 48)  # pieces and tokens of what stands for the text where there is no tokenizer

_MEDIANS: WeakKeyDictionary[Model, dict[Site, float]] = WeakKeyDictionary()


def median_norms(model: Model, sites: Sequence[Site]) -> dict[Site, float]:
    """Median norm of the activations at each site, over the tokens of a fixed text (`usual_text.txt`, about 700
    tokens) that are neither special nor the first of their piece; heads are taken together.

    Sites that were not measured before cost one forward pass of the text up to the last of them, without the edits of
    `model.editing(...)`. Models without a tokenizer, or whose tokenizer does not know the text, read drawn tokens.

    Raises:
        BadInput: activations that are not finite.
    """
    known = _MEDIANS.setdefault(model, {})
    if unknown := [site for site in dict.fromkeys(sites) if site not in known]:
        tokens = _text(model)
        around, model.ambient_edits = model.ambient_edits, []
        try:
            run = model.run(tokens, capture=unknown, logits=False)
        finally:
            model.ambient_edits = around
        counted = _ordinary(model, run.tokens)
        for site in unknown:
            norms = norms_of(run[site], 2)[counted.to(run[site].device)]
            norms = norms[norms.isfinite()]
            if not len(norms):
                raise BadInput(f"{site}: {model.name} has no finite activation there; load it in another dtype")
            known[site] = float(norms.median()) or torch.inf
    return {site: known[site] for site in sites}


def norms_of(x: Float[Tensor, "..."], axes: int) -> Float[Tensor, "*tokens"]:
    """Euclidean norms, at least in float32 (a float16 norm overflows at 65,504), of what lies after the first axes."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x.detach().flatten(axes), dim=-1, dtype=wide)


def _text(model: Model) -> TokenBatch:
    """The text's pieces as prompts; tokens drawn with a fixed seed where they would have no token that counts."""
    longest = min(LONGEST, model.cfg.n_ctx)
    if model.tokenizer is not None:
        pieces = TEXT.read_text(encoding="utf-8").split("\n\n")
        cut = {"truncation": True, "max_length": longest}
        tokens = model.tokens([list(model.tokenizer(piece.strip(), **cut).input_ids) for piece in pieces])
        if bool(_ordinary(model, tokens).any()):
            return tokens
    draw = torch.Generator().manual_seed(0)
    return model.tokens(torch.randint(model.cfg.d_vocab, (DRAWN[0], min(DRAWN[1], longest)), generator=draw).tolist())


def _ordinary(model: Model, tokens: TokenBatch) -> Bool[Tensor, "batch pos"]:
    special = torch.tensor(sorted(model.special_ids), dtype=torch.long, device=tokens.ids.device)
    return tokens.mask & ~torch.isin(tokens.ids, special) & (tokens.positions > 0)
