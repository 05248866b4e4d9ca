"""The concept lens and the token lens: a state seen through the value circuits of the heads that copy.

Feucht et al. 2025 ("The Dual-Route Model of Induction"; "Vector Arithmetic in Concept and Token Subspaces"):
L = Σ W_V W_O over the k heads that copy concepts best (concept lens) or tokens best (token lens); L h is read with the
logit lens, or compared and added as a vector. The heads come from `copying_scores`.

Ours is `fold`: each head's matrix then holds the gain (and centring) of the norm that it reads through, and the gain of
the norm after attention where there is one, as the head itself does; the size that a norm divides by is left out, which
all heads share. By default this is done in models with a norm after attention (Gemma, OLMo 2), where the bare matrices
are not what a head writes, and the others get the paper's bare sum: gemma3-270m reads nothing without it, smollm2 reads
better without (docs/lenses.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, Mismatch
from ...models import Model, Site
from ...models.places.norms import Norm
from ..corpus import batches, prompts_of
from ..read import look
from ..results import LensResult
from ..states import Logits, rank, stream
from .arithmetic import analogies, nearest
from .heads import CopyingScores

Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class HeadLens:
    """L of some heads; `lens(model, "a prompt")` reads a prompt.

    Attributes:
        matrix: `d_model d_model`, float32, right-multiplied: L h is h @ matrix.
        heads: (layer, head) of the sum.
        name: "concept lens", "token lens", or "head lens".
        folded: whether the gains of the norms are in the matrix.
    """

    matrix: Float[Tensor, "d_model d_model"] = field(repr=False)
    heads: list[Head]
    name: str
    model_name: str
    folded: bool

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
        self.check(model)
        return look(model, x, self.translate, self.name, layers=layers, quiet=quiet, **options)

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]:
        """L h, whatever the site: what the analyses of `monosem.lenses` call."""
        return self.apply(h)

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
        self.check(model)
        wanted = model.layers(layers)
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
        self.check(model)
        return nearest(model, self.apply, plus, minus, candidates, model.layers(layer)[0], prompt)

    def analogies(
        self,
        model: Model,
        pairs: Sequence[tuple[str, str]],
        layers: Iterable[int] | int | None = None,
        prompt: str = "{}",
    ) -> pd.DataFrame:
        """Share of right analogies among all of some pairs (Athens, Greece), (Beijing, China), ...

        For every two pairs, L h(a) - L h(b) + L h(b') is to be nearest, by cosine, to L h(a') of all first words but a.

        Returns:
            A row a layer: `accuracy` through the lens, `raw_accuracy` of the states themselves.

        Raises:
            BadInput: fewer than three pairs, a prompt that does not end in {}.
        """
        self.check(model)
        return analogies(model, self.apply, pairs, model.layers(layers), prompt)

    def check(self, model: Model) -> None:
        """Raises `Mismatch` when the model has another width."""
        if model.cfg.d_model != len(self.matrix):
            raise Mismatch(
                f"this {self.name} is of {self.model_name}, width {len(self.matrix)}; {model.name} has width "
                f"{model.cfg.d_model}: make one with monosem.lenses.head_lens"
            )


def head_lens(
    model: Model, heads: CopyingScores | Sequence[Head], k: int | None = None, fold: bool | None = None
) -> HeadLens:
    """The lens of the k best heads of some scores, or of the heads given.

    Args:
        heads: `copying_scores(model, "concept")` or `"token"`, or (layer, head) pairs.
        k: how many of the scored heads; by default one in seven.
        fold: include the gains of the norms around each head; None: in models with a norm after attention.

    Raises:
        BadInput: no heads, a head that the model does not have, k with a list of heads. Mismatch: scores of a model
            with other heads.
    """
    if isinstance(heads, CopyingScores):
        if heads.scores.shape != (model.cfg.n_layers, model.cfg.n_heads):
            raise Mismatch(f"these scores are of {heads.model_name}, which has other heads than {model.name}")
        chosen, name = heads.top(max(1, heads.scores.numel() // 7) if k is None else k), f"{heads.kind} lens"
    else:
        chosen, name = [(int(layer), int(head)) for layer, head in heads], "head lens"
        if k is not None:
            raise BadInput("k goes with copying scores; a list of heads is taken whole")
    layers, width = model.cfg.n_layers, model.cfg.n_heads
    if not chosen or any(not (0 <= layer < layers and 0 <= head < width) for layer, head in chosen):
        raise BadInput(f"heads {chosen[:3]}...: {model.name} has layers 0 to {layers - 1} of heads 0 to {width - 1}")
    if fold is None:
        fold = model.branch_norm(0, "attn") is not None
    total = torch.zeros(model.cfg.d_model, model.cfg.d_model, device=model.device)
    for layer, head in chosen:
        circuit = model.W_V[layer, head].float() @ model.W_O[layer, head].float()
        total += _folded(model, layer, circuit) if fold else circuit
    return HeadLens(total.cpu(), chosen, name, model.name, fold)


def _folded(model: Model, layer: int, circuit: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "d_model d_model"]:
    """What norm, head and post-norm together do to the direction of a state."""
    width, device = model.cfg.d_model, model.device
    before = Norm.of(model.norm_module(layer, "ln1"), width, device)
    after = Norm.of(model.branch_norm(layer, "attn"), width, device)
    read = before.pull(circuit.T).T  # h · pull(u) = frozen(h) · u, for every column u
    return after.frozen(read, torch.ones((), device=device))
