"""Vector arithmetic with words: Athens - Greece + China is near Beijing, in the stream or seen through a lens.

Mikolov et al. 2013; Feucht et al. 2025, "Vector Arithmetic in Concept and Token Subspaces". A word's vector is the
state at its last token.
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ...models import Model

Transform = Callable[[Tensor], Tensor]  # states `word d_model` to vectors `word d`


def nearest(
    model: Model,
    transform: Transform,
    plus: Sequence[str],
    minus: Sequence[str],
    candidates: Sequence[str],
    layer: int,
    prompt: str = "{}",
) -> pd.Series:
    """Candidates by the cosine of their vectors with Σ plus - Σ minus, best first.

    Raises:
        BadInput: no candidate or nothing to add; a prompt that does not end in {}.
    """
    if not plus or not candidates:
        raise BadInput("vector arithmetic needs words to add and candidates")
    words = list(dict.fromkeys([*plus, *minus, *candidates]))
    vectors = dict(zip(words, transform(_states(model, words, [layer], prompt)[0]).float()))
    target = torch.stack([vectors[word] for word in plus]).sum(0)
    target = target - sum((vectors[word] for word in minus), torch.zeros_like(target))
    cosine = torch.cosine_similarity(torch.stack([vectors[word] for word in candidates]), target[None], dim=-1)
    return pd.Series(cosine.tolist(), index=list(candidates), name="cosine").sort_values(ascending=False)


def analogies(
    model: Model, transform: Transform, pairs: Sequence[tuple[str, str]], layers: list[int], prompt: str = "{}"
) -> pd.DataFrame:
    """Share of right analogies between every two of the pairs; see `HeadLens.analogies`."""
    if len(pairs) < 3:
        raise BadInput(f"analogies need three pairs or more, got {len(pairs)}")
    words = [first for first, _ in pairs] + [second for _, second in pairs]
    rows = []
    for layer, h in zip(layers, _states(model, words, layers, prompt)):
        lens, raw = _accuracy(transform(h).float()), _accuracy(h.float())
        rows.append({"layer": layer, "accuracy": lens, "raw_accuracy": raw})
    return pd.DataFrame(rows)


def _accuracy(vectors: Float[Tensor, "word d"]) -> float:
    first, second = vectors.chunk(2)
    n = len(first)
    targets = (first - second)[:, None] + second[None]  # a - b + b', by a and a'
    cosine = torch.cosine_similarity(targets[:, :, None], first[None, None], dim=-1)
    same = torch.eye(n, dtype=torch.bool, device=vectors.device)
    best = cosine.masked_fill(same[:, None, :], -torch.inf).argmax(-1)  # a itself is nearest to its own sum
    right = best == torch.arange(n, device=vectors.device)
    return float(right[~same].double().mean())


def _states(model: Model, words: Sequence[str], layers: list[int], prompt: str) -> list[Float[Tensor, "word d_model"]]:
    if not prompt.endswith("{}"):
        raise BadInput(f"the prompt of an analogy ends in {{}}, where the word goes; got {prompt!r}")
    sites = [f"resid_post.{layer}" for layer in layers]
    run = model.run([prompt.format(word) for word in words], capture=sites, logits=False)
    return [run.last(site) for site in sites]
