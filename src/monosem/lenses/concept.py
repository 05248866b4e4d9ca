"""The concept lens and the token lens: a state seen through the value circuits of the heads that copy.

Feucht et al. 2025 ("The Dual-Route Model of Induction"; "Vector Arithmetic in Concept and Token Subspaces"):
L = Σ W_V W_O over the k heads that copy concepts best (concept lens) or tokens best (token lens); L h is read with the
logit lens, or compared and added as a vector. The heads come from `copying_scores`.

Ours: each head's matrix holds the gain (and centring) of the norm that it reads through, and the gain of the norm after
attention where there is one, because these are what the head really does to the stream; the size that a norm divides by
is common to all and leaves the direction alone. `fold=False` gives the bare matrices.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput, Mismatch
from ..models import Model
from ..models.norms import Norm
from .copying import CopyingScores
from .corpus import batches, prompts_of
from .logit import look
from .mapping import layers_of
from .readout import Logits, rank, stream
from .results import LensResult

Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class HeadLens:
    """L of some heads; `lens(model, "a prompt")` reads a prompt.

    Attributes:
        matrix: `d_model d_model`, float32, right-multiplied: L h is h @ matrix.
        heads: (layer, head) of the sum.
        name: "concept lens", "token lens", or what it was called.
    """

    matrix: Float[Tensor, "d_model d_model"] = field(repr=False)
    heads: list[Head]
    name: str
    model_name: str

    def apply(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """L h."""
        return h.float() @ self.matrix.to(h.device)

    def __call__(
        self, model: Model, x: Any, layers: Sequence[int] | int | None = None, quiet: bool = True, **options: Any
    ) -> LensResult:
        """What the copying heads would write for each layer's state, through the final norm and the unembedding.

        Args:
            options: `site`, `positions`, `top`, `targets`, `measures`, `edits` as in `monosem.lenses.logit`.

        Raises:
            Mismatch: the lens was made for a model of another width.
        """
        self._check(model)
        return look(model, x, lambda site, h: self.apply(h), self.name, layers=layers, quiet=quiet, **options)

    def own_token(
        self,
        model: Model,
        texts: Any,
        layers: Iterable[int] | int | None = None,
        n_texts: int | None = None,
        *,
        length: int = 128,
        skip_first: int = 1,
        rows: int = 8,
    ) -> pd.DataFrame:
        """How well the lens reads out the token that a state stands at, against the bare logit lens.

        Returns:
            A row a layer: share of tokens whose own id is the likeliest (`top1`) or among the ten likeliest (`top10`),
            and the median rank, of the lens and (`logit_...`) of the logit lens.
        """
        self._check(model)
        wanted = layers_of(model, layers)
        ranks = []
        for tokens in batches(model, prompts_of(model, texts, n_texts, length, skip_first), rows):
            names = [f"resid_post.{layer}" for layer in wanted]
            run = model.run(tokens, capture=names, logits=False)
            chosen = tokens.mask & (tokens.positions >= skip_first)
            states = [run[name][chosen] for name in names]
            both = [self.apply(h) for h in states] + states
            lenses: list[Logits] = [lambda part, h=h: model.unembed(h[part]) for h in both]  # type: ignore[misc]
            own = tokens.ids[chosen]
            ranks.append(stream(lenses, lenses[0], len(own), model.cfg.d_vocab, {"rank": rank(own)}).measures["rank"])
        every = torch.cat(ranks, 1).unflatten(0, (2, -1))
        rows_: dict[str, list[Any]] = {"layer": wanted}
        for place, prefix in enumerate(("", "logit_")):
            rows_[f"{prefix}top1"] = (every[place] <= 1).double().mean(-1).tolist()
            rows_[f"{prefix}top10"] = (every[place] <= 10).double().mean(-1).tolist()
            rows_[f"{prefix}median_rank"] = every[place].median(-1).values.tolist()
        return pd.DataFrame(rows_)

    def analogy(
        self,
        model: Model,
        plus: Sequence[str],
        minus: Sequence[str],
        candidates: Sequence[str],
        layer: int,
        prompt: str = "{}",
    ) -> pd.Series:
        """Vector arithmetic: candidates by the cosine of L h with Σ L h(plus) - Σ L h(minus), best first.

        Args:
            plus, minus: `["Athens", "China"]` and `["Greece"]` ask for Beijing.
            layer: whose state at the word's last token is h.
            prompt: where each word stands.

        Raises:
            BadInput: no candidate or nothing to add; a prompt that has no {} at its end.
        """
        self._check(model)
        return ranked(model, self.apply, plus, minus, candidates, layers_of(model, layer)[0], prompt)

    def _check(self, model: Model) -> None:
        if model.cfg.d_model != len(self.matrix):
            raise Mismatch(
                f"this {self.name} is of {self.model_name}, width {len(self.matrix)}; {model.name} has width "
                f"{model.cfg.d_model}: make one with monosem.lenses.head_lens"
            )


def head_lens(model: Model, heads: CopyingScores | Sequence[Head], k: int | None = None, fold: bool = True) -> HeadLens:
    """The lens of the k best heads of some scores, or of the heads given.

    Args:
        heads: `copying_scores(model, "concept")` or `"token"`, or (layer, head) pairs.
        k: how many of the scored heads; by default one in twelve.
        fold: include the gains of the norms around each head (see the module).

    Raises:
        BadInput: no heads, a head that the model does not have, k with a list of heads.
    """
    if isinstance(heads, CopyingScores):
        chosen, name = heads.top(k or max(1, heads.scores.numel() // 12)), f"{heads.kind} lens"
    else:
        chosen, name = [(int(layer), int(head)) for layer, head in heads], "head lens"
        if k is not None:
            raise BadInput("k goes with copying scores; a list of heads is taken whole")
    layers, width = model.cfg.n_layers, model.cfg.n_heads
    if not chosen or any(not (0 <= layer < layers and 0 <= head < width) for layer, head in chosen):
        raise BadInput(f"heads {chosen[:3]}...: {model.name} has layers 0 to {layers - 1} of heads 0 to {width - 1}")
    total = torch.zeros(model.cfg.d_model, model.cfg.d_model, device=model.device)
    for layer, head in chosen:
        circuit = model.W_V[layer, head].float() @ model.W_O[layer, head].float()
        total += _folded(model, layer, circuit) if fold else circuit
    return HeadLens(total.cpu(), chosen, name, model.name)


def _folded(model: Model, layer: int, circuit: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "d_model d_model"]:
    """What norm, head and post-norm together do to the direction of a state."""
    width, device = model.cfg.d_model, model.device
    before = Norm.of(model.norm_module(layer, "ln1"), width, device)
    after = Norm.of(model.branch_norm(layer, "attn"), width, device)
    read = before.pull(circuit.T).T  # h · pull(u) = frozen(h) · u, for every column u
    return after.frozen(read, torch.ones((), device=device))


def ranked(
    model: Model,
    transform: Any,
    plus: Sequence[str],
    minus: Sequence[str],
    candidates: Sequence[str],
    layer: int,
    prompt: str = "{}",
) -> pd.Series:
    """`HeadLens.analogy` for any function of states; the identity compares the states themselves."""
    if not plus or not candidates or not prompt.endswith("{}"):
        raise BadInput("an analogy needs words to add, candidates, and a prompt that ends in {}")
    words = list(dict.fromkeys([*plus, *minus, *candidates]))
    site = f"resid_post.{layer}"
    run = model.run([prompt.format(word) for word in words], capture=site, logits=False)
    vectors = dict(zip(words, transform(run.last(site)).float()))
    target = sum((vectors[word] for word in plus), torch.zeros(())) - sum((vectors[w] for w in minus), torch.zeros(()))
    stacked = torch.stack([vectors[word] for word in candidates])
    cosine = torch.cosine_similarity(stacked, target[None].to(stacked.device), dim=-1)
    return pd.Series(cosine.tolist(), index=list(candidates), name="cosine").sort_values(ascending=False)
