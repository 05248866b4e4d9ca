"""The future lens, linear: what a state at one token already says about tokens further on.

Pal et al. 2023, "Future Lens: Anticipating Subsequent Tokens from a Single Hidden State". For every layer l and offset
n a linear map takes h_l at token t to the last residual stream at token t + n; the model's own unembedding then gives
the token t + n + 1. Offset 0 is the ordinary next token. The maps are the closed-form ridge solution over all tokens of
some texts, from normal equations summed in a stream: no activation is kept. `soft_prompt.py` is the paper's other way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, UnknownName
from ...models import Layers, Model, Positions, TokenBatch
from ...progress import Meter
from ...results import analysis
from ..corpus import batches, prompts_of
from ..fitted import Fitted, Header
from ..regression import NormalEquations
from ..states import Logits, read_out, sites_at, states_of
from .bigrams import Bigrams
from .results import FutureReading, FutureScores, score


@dataclass(frozen=True)
class FutureHeader(Header):
    """How a future lens was fitted. `tokens` is the number of pairs, the same for every layer and offset."""

    layers: list[int]
    offsets: list[int]
    tokens: int
    ridge: float
    skip_first: int
    length: int


@dataclass(frozen=True, eq=False)
class FutureLens(Fitted):
    """A map for each layer and offset; `lens(model, "a prompt")` reads a prompt, `lens.evaluate(model, texts)` scores.

    Attributes:
        weight: `layer offset d_model d_model`, right-multiplied: state at t + n ≈ h_l,t @ weight + bias.
        bigrams: the baseline counted in the same texts.
    """

    kind: ClassVar[str] = "future"

    header: FutureHeader
    weight: Float[Tensor, "layer offset d_model d_model"] = field(repr=False)
    bias: Float[Tensor, "layer offset d_model"] = field(repr=False)
    bigrams: Bigrams = field(repr=False)

    @classmethod
    def fit(
        cls,
        model: Model,
        texts: Any,
        *,
        layers: Layers = None,
        offsets: Sequence[int] = (1, 2, 3),
        n: int | None = None,
        ridge: float = 1e-2,
        length: int = 256,
        skip_first: int = 1,
        batch_size: int = 8,
        quiet: bool = False,
    ) -> Self:
        """Fit the maps on all tokens of some texts.

        Args:
            texts: an iterable of texts or token ids. A map has d_model² weights, so take many more tokens than d_model.
            layers: whose output to read; all by default.
            offsets: how far ahead; offset n foretells the token t + n + 1.
            n: how many of the texts to use; all by default.
            ridge: penalty on a weight in units of the variance of the coordinate that it multiplies; the bias is free.
                0 is plain least squares.
            length: tokens of each text to use. skip_first: leading tokens that are left out, being attention sinks.

        Raises:
            BadInput: no offset or a negative one, too short a text (it is named), fewer texts than asked for.
        """
        wanted, ahead = model.layers(layers), sorted(set(offsets))
        if not ahead or ahead[0] < 0 or ridge < 0 or skip_first < 0 or batch_size < 1:
            raise BadInput(
                f"need offsets of 0 or more, ridge >= 0, skip_first >= 0, batch_size >= 1; got {offsets}, {ridge}"
            )
        prompts = prompts_of(model, texts, n, length, skip_first + ahead[-1])
        sums = [NormalEquations() for _ in wanted]
        tokens = 0
        with Meter("fit future lens", total=len(prompts), unit="text", quiet=quiet) as meter:
            for batch in batches(model, prompts, batch_size):
                pairs = _Pairs.of(model, batch, wanted, ahead, skip_first)
                y = torch.cat(pairs.y, 1).float()
                for one, x in zip(sums, pairs.x):
                    one.add(x.float(), y)
                tokens += len(y)
                meter.advance(len(batch))
        solved = [one.solve(ridge, "coordinate") for one in sums]
        weight = torch.stack([w.unflatten(1, (len(ahead), -1)).transpose(0, 1) for w, _ in solved]).contiguous().cpu()
        bias = torch.stack([b.unflatten(0, (len(ahead), -1)) for _, b in solved]).cpu()
        shape = (model.name, model.cfg.d_model, model.cfg.n_layers)
        header = FutureHeader(*shape, wanted, ahead, tokens, ridge, skip_first, length)
        bigrams = Bigrams.count(prompts, [offset + 1 for offset in ahead], model.cfg.d_vocab)
        return cls(header, weight, bias, bigrams)

    @analysis
    def __call__(
        self,
        model: Model,
        x: Any,
        *,
        layers: Layers = None,
        positions: Positions | None = None,
        top: int = 5,
        quiet: bool = True,
    ) -> FutureReading:
        """The tokens that each state foretells, for every layer and offset that was fitted.

        Raises:
            Mismatch: the lens belongs to a model of another shape. UnknownName: a layer that was not fitted.
        """
        self.check(model)
        wanted = self.header.layers if layers is None else model.layers(layers)
        states = states_of(model, x, sites_at(model, "resid_post", wanted), positions)
        seen = []
        for number, _ in enumerate(self.header.offsets):
            maps = self._logits(model, wanted, list(states.by_site.values()), number)
            seen.append(read_out(maps, states.prediction, len(states), model.cfg.d_vocab, {}, top, quiet))
        return FutureReading(
            model=model,
            sites=list(states.by_site),
            offsets=self.header.offsets,
            tokens=states.tokens,
            top_ids=torch.stack([states.spread(part.top_ids) for part in seen], 1),
            top_probabilities=torch.stack([states.spread(part.top_probabilities) for part in seen], 1),
        )

    @analysis
    def evaluate(
        self,
        model: Model,
        texts: Any,
        *,
        n: int | None = None,
        length: int | None = None,
        batch_size: int = 8,
        quiet: bool = False,
    ) -> FutureScores:
        """How well the lens foretells texts that it was not fitted on, against the bigram baseline.

        Raises:
            Mismatch, BadInput: as in the call and the fit.
        """
        self.check(model)
        offsets = self.header.offsets
        length = length or self.header.length
        prompts = prompts_of(model, texts, n, length, self.header.skip_first + max(offsets) + 1)
        parts = []
        with Meter("score future lens", total=len(prompts), unit="text", quiet=quiet) as meter:
            for tokens in batches(model, prompts, batch_size):
                parts += self._scored(model, tokens)
                meter.advance(len(tokens))
        return FutureScores.joined(model.name, parts)

    def _scored(self, model: Model, tokens: TokenBatch) -> list[pd.DataFrame]:
        # one token further than the fit: the token t + n + 1 must be there
        pairs = _Pairs.of(model, tokens, self.header.layers, self.header.offsets, self.header.skip_first, after=1)
        parts = []
        for i, offset in enumerate(self.header.offsets):
            target = tokens.ids[pairs.rows, pairs.columns + offset + 1].cpu()
            maps = self._logits(model, self.header.layers, pairs.x, i)
            reference = lambda part, i=i: model.unembed(pairs.y[i][part])  # noqa: E731
            guesses = self.bigrams.predict(tokens.ids[pairs.rows, pairs.columns].cpu(), i)
            parts.append(score(model, "linear", self.header.layers, offset, maps, reference, target, guesses))
        return parts

    def _logits(self, model: Model, layers: Sequence[int], states: Sequence[Tensor], offset: int) -> list[Logits]:
        """For each layer, the logits of some of its states; `offset` is an index into the fitted ones."""
        if missing := sorted(set(layers) - set(self.header.layers)):
            raise UnknownName(f"no map was fitted for layers {missing}; there are {self.header.layers}")

        def at(layer: int, h: Float[Tensor, "n d_model"]) -> Logits:
            place = self.header.layers.index(layer)
            weight, bias = (part[place, offset].to(h.device) for part in (self.weight, self.bias))
            return lambda part: model.unembed(h[part].float() @ weight + bias)

        return [at(layer, h) for layer, h in zip(layers, states)]

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        maps = (len(self.header.layers), len(self.header.offsets), self.header.d_model)
        best = (maps[1], len(self.bigrams.seen), *self.bigrams.frequent.shape)
        counted = {"bigrams.seen": (None,), "bigrams.frequent": (None,), "bigrams.best": best}
        return {"weight": (*maps, maps[2]), "bias": maps} | counted

    def numbers(self) -> dict[str, Tensor]:
        counted = {f"bigrams.{name}": value for name, value in vars(self.bigrams).items()}
        return {"weight": self.weight, "bias": self.bias} | counted

    @classmethod
    def of_parts(cls, header: FutureHeader, numbers: dict[str, Tensor]) -> Self:
        counted = {name.partition(".")[2]: numbers.pop(name) for name in list(numbers) if "." in name}
        return cls(header=header, bigrams=Bigrams(**counted), **numbers)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """States x[layer] at tokens t and last states y[offset] at t + offset, for every t whose future is in the text."""

    x: list[Float[Tensor, "n d_model"]]
    y: list[Float[Tensor, "n d_model"]]
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(
        cls, model: Model, tokens: TokenBatch, layers: list[int], offsets: list[int], skip_first: int, after: int = 0
    ) -> "_Pairs":
        last = f"resid_post.{model.cfg.n_layers - 1}"
        names = [f"resid_post.{layer}" for layer in layers]
        run = model.run(tokens, capture={*names, last}, logits=False)
        inside = tokens.positions < tokens.lengths[:, None] - offsets[-1] - after
        chosen = tokens.mask & (tokens.positions >= skip_first) & inside
        rows, columns = chosen.nonzero(as_tuple=True)
        x = [run[name][rows, columns] for name in names]
        return cls(x, [run[last][rows, columns + offset] for offset in offsets], rows, columns)
