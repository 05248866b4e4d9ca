"""The concept lens and the token lens: a state seen through the value circuits of the heads that copy.

Feucht et al. 2025 ("The Dual-Route Model of Induction"; "Vector Arithmetic in Concept and Token Subspaces"):
L = Σ W_V W_O over the k heads that copy concepts best (concept lens) or tokens best (token lens); L h is read with the
logit lens, or compared and added as a vector. The heads come from `copying_effects`.

Not in the paper: `fold`, by which each head's matrix holds the gain (and centring) of the norm that it reads through,
and the gain of the norm after attention where there is one, as the head itself does; the size that a norm divides by is
left out, which all heads share. By default this is done in models with a norm after attention (Gemma, OLMo 2), where
the bare matrices are not what a head writes, and other models get the paper's bare sum: gemma3-270m reads nothing
without it, smollm2 reads better without (docs/lenses.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ...models import Layers, Model, Site
from ...statistics import clustered_error
from ..corpus import batches, prompts_of
from ..fitted import Fitted, Header
from ..measures import rank
from ..read import ReadOptions, read
from ..results import LensResult
from ..states import Logits, read_out
from .arithmetic import analogies, nearest
from .heads import CopyingEffects

Head = tuple[int, int]


@dataclass(frozen=True)
class HeadHeader(Header):
    """What is in the sum.

    Attributes:
        heads: (layer, head) of the sum.
        name: "concept lens", "token lens", or "head lens".
        folded: whether the gains of the norms are in the matrix.
    """

    heads: list[Head]
    name: str
    folded: bool

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        heads = [(int(layer), int(head)) for layer, head in config["heads"]]
        return super().parse({**config, "heads": heads})


@dataclass(frozen=True, eq=False)
class HeadLens(Fitted):
    """L of some heads; `lens(model, "a prompt")` reads a prompt.

    Attributes:
        matrix: `d_model d_model`, float32, right-multiplied: L h is h @ matrix.
    """

    kind: ClassVar[str] = "head"
    made_by: ClassVar[str] = "of"

    header: HeadHeader
    matrix: Float[Tensor, "d_model d_model"] = field(repr=False)

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {"matrix": (self.header.d_model, self.header.d_model)}

    @property
    def name(self) -> str:
        return self.header.name

    @property
    def heads(self) -> list[Head]:
        return self.header.heads

    @classmethod
    def of(
        cls,
        model: Model,
        heads: CopyingEffects | Sequence[Head],
        *,
        n: int | None = None,
        fold: bool | None = None,
    ) -> Self:
        """The lens of the n heads that copy best, or of the heads given.

        Args:
            heads: `copying_effects(model, "concept")` or `"token"`, or (layer, head) pairs.
            n: how many of the heads that were measured; by default one in seven.
            fold: include the gains of the norms around each head; None: in models with a norm after attention.

        Raises:
            BadInput: no heads, a head that the model does not have, n with a list of heads. Mismatch: effects measured
                in a model with other heads.
        """
        if isinstance(heads, CopyingEffects):
            heads.check(model)
            chosen = heads.best_heads(max(1, heads.effects.numel() // 7) if n is None else n)
            name = f"{heads.header.kind} lens"
        else:
            chosen, name = [(int(layer), int(head)) for layer, head in heads], "head lens"
            if n is not None:
                raise BadInput("n goes with copying effects; a list of heads is taken whole")
        layers, width = model.cfg.n_layers, model.cfg.n_heads
        if not chosen or any(not (0 <= layer < layers and 0 <= head < width) for layer, head in chosen):
            raise BadInput(
                f"heads {chosen[:3]}...: {model.name} has layers 0 to {layers - 1} of heads 0 to {width - 1}"
            )
        if fold is None:
            fold = model.branch("attn", chosen[0][0]).norm_out is not None
        total = torch.zeros(model.cfg.d_model, model.cfg.d_model, device=model.device)
        for layer, head in chosen:
            circuit = model.W_V[layer, head].float() @ model.W_O[layer, head].float()
            total += _folded(model, layer, circuit) if fold else circuit
        return cls(HeadHeader(model.name, model.cfg.d_model, None, chosen, name, fold), total.cpu())

    def apply(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """L h."""
        return h.float() @ self.matrix.to(h.device)

    def __call__(self, model: Model, x: Any, **options: Unpack[ReadOptions]) -> LensResult:
        """What the copying heads would write for each layer's state, through the final norm and the unembedding.

        Options and errors as `monosem.lenses.read`.

        Raises:
            Mismatch: the lens was made for a model of another width.
        """
        options.setdefault("quiet", True)
        return read(model, x, lens=self, **options)

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]:
        """L h, whatever the site."""
        return self.apply(h)

    def own_token(
        self,
        model: Model,
        texts: Any,
        *,
        layers: Layers = None,
        n: int | None = None,
        length: int = 128,
        skip_first: int = 1,
        batch_size: int = 8,
    ) -> pd.DataFrame:
        """How well the lens reads out the token that a state stands at, against the bare logit lens.

        Returns:
            A row a layer: share of tokens whose own id is the likeliest (`top1`) or among the ten likeliest
            (`top10`), with standard errors by texts (`..._se`), and the median rank, of the lens and (`logit_...`) of
            the logit lens.
        """
        self.check(model)
        wanted = model.layers(layers)
        names = [f"resid_post.{layer}" for layer in wanted]
        ranks, texts_of = list[Tensor](), list[Tensor]()
        for tokens in batches(model, prompts_of(model, texts, n, length, skip_first), batch_size):
            run = model.run(tokens, capture=names, logits=False)
            chosen = tokens.mask & (tokens.positions >= skip_first)
            states = [run[name][chosen] for name in names]
            both = [self.apply(h) for h in states] + states
            logits: list[Logits] = [lambda part, h=h: model.unembed(h[part]) for h in both]  # type: ignore[misc]
            ids = tokens.ids[chosen]
            seen = read_out(logits, logits[0], len(ids), model.cfg.d_vocab, {"rank": rank(ids)})
            ranks.append(seen.measures["rank"])
            texts_of.append(chosen.nonzero()[:, 0].cpu() + batch_size * len(texts_of))
        every = torch.cat(ranks, 1).unflatten(0, (2, -1))
        columns: dict[str, list[Any]] = {"layer": wanted}
        for place, prefix in enumerate(("", "logit_")):
            for most in (1, 10):
                hits = (every[place] <= most).double()
                columns[f"{prefix}top{most}"] = hits.mean(-1).tolist()
                columns[f"{prefix}top{most}_se"] = clustered_error(hits, torch.cat(texts_of)).tolist()
            columns[f"{prefix}median_rank"] = every[place].median(-1).values.tolist()
        return pd.DataFrame(columns)

    def analogy(
        self,
        model: Model,
        plus: Sequence[str],
        minus: Sequence[str],
        candidates: Sequence[str],
        layer: int,
        *,
        prompt: str = "{}",
    ) -> pd.Series:
        """Vector arithmetic: candidates by the cosine of L h with Σ L h(plus) - Σ L h(minus), best first.

        Args:
            plus, minus: `["Athens", "China"]` and `["Greece"]` ask for Beijing.
            layer: whose state at the word's last token is h.
            prompt: where each word stands.

        Raises:
            BadInput: no candidate or nothing to add; a prompt that does not end in {}.
        """
        self.check(model)
        return nearest(model, self.apply, plus, minus, candidates, model.layers(layer)[0], prompt)

    def analogies(
        self,
        model: Model,
        pairs: Sequence[tuple[str, str]],
        *,
        layers: Layers = None,
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


def _folded(model: Model, layer: int, circuit: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "d_model d_model"]:
    """What norm, head and post-norm together do to the direction of a state."""
    attention = model.branch("attn", layer)
    read = attention.pre.pull(circuit.T).T  # h · pull(u) = frozen(h) · u, for every column u
    return attention.post.frozen(read, torch.ones((), device=model.device))
