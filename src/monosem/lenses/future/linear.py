"""The future lens, linear: what a state at one token already says about tokens further on.

Pal et al. 2023, "Future Lens: Anticipating Subsequent Tokens from a Single Hidden State". For every layer l and offset
n a linear map takes h_l at token t to the last residual stream at token t + n; the model's own unembedding then gives
the token t + n + 1. Offset 0 is the ordinary next token. The maps are the closed-form ridge solution over all tokens of
some texts, from normal equations summed in a stream: no activation is kept. `soft_prompt.py` is the paper's other way.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadFile, BadInput, Mismatch, UnknownName
from ...models import Model, Positions, TokenBatch
from ...progress import Meter
from ..corpus import batches, prompts_of
from ..fitted import load_lens, save_lens
from ..states import Logits, capture, sites_at, stream
from .bigrams import Bigrams
from .results import FutureReading, FutureScores, score


@dataclass(frozen=True)
class FutureFit:
    """How a future lens was fitted. `tokens` is the number of pairs, the same for every layer and offset."""

    model_name: str
    d_model: int
    n_layers: int
    layers: list[int]
    offsets: list[int]
    tokens: int
    ridge: float
    skip_first: int
    length: int


@dataclass(frozen=True, eq=False)
class FutureLens:
    """A map for each layer and offset; `lens(model, "a prompt")` reads a prompt, `lens.evaluate(model, texts)` scores.

    Attributes:
        weight: `layer offset d_model d_model`, right-multiplied: state at t + n ≈ h_l,t @ weight + bias.
        bigrams: the baseline counted in the same texts.
    """

    weight: Float[Tensor, "layer offset d_model d_model"] = field(repr=False)
    bias: Float[Tensor, "layer offset d_model"] = field(repr=False)
    fit: FutureFit
    bigrams: Bigrams = field(repr=False)

    def __call__(
        self,
        model: Model,
        x: Any,
        layers: Sequence[int] | int | None = None,
        positions: Positions | None = None,
        top: int = 5,
        quiet: bool = True,
    ) -> FutureReading:
        """The tokens that each state foretells, for every layer and offset that was fitted.

        Raises:
            Mismatch: the lens belongs to a model of another shape. UnknownName: a layer that was not fitted.
        """
        self._check(model)
        wanted = self.fit.layers if layers is None else model.layers(layers)
        states = capture(model, x, sites_at(model, "resid_post", wanted), positions)
        seen = []
        for i, _ in enumerate(self.fit.offsets):
            maps = self._logits(model, wanted, list(states.by_site.values()), i)
            seen.append(stream(maps, states.prediction, len(states), model.cfg.d_vocab, {}, top, quiet))
        return FutureReading(
            model=model,
            layers=wanted,
            offsets=self.fit.offsets,
            tokens=states.tokens,
            top_ids=torch.stack([states.spread(part.top_ids) for part in seen], 1),
            top_probabilities=torch.stack([states.spread(part.top_probabilities) for part in seen], 1),
        )

    def evaluate(
        self,
        model: Model,
        texts: Any,
        n_texts: int | None = None,
        *,
        length: int | None = None,
        rows: int = 8,
        quiet: bool = False,
    ) -> FutureScores:
        """How well the lens foretells texts that it was not fitted on, against the bigram baseline.

        Raises:
            Mismatch, BadInput: as in the call and the fit.
        """
        self._check(model)
        offsets = self.fit.offsets
        length = length or self.fit.length
        prompts = prompts_of(model, texts, n_texts, length, self.fit.skip_first + max(offsets) + 1)
        parts = []
        with Meter("score future lens", total=len(prompts), unit="text", quiet=quiet) as meter:
            for tokens in batches(model, prompts, rows):
                parts += self._scored(model, tokens)
                meter.advance(len(tokens))
        return FutureScores.joined(model.name, parts)

    def _scored(self, model: Model, tokens: TokenBatch) -> list[pd.DataFrame]:
        # one token further than the fit: the token t + n + 1 must be there
        pairs = _Pairs.of(model, tokens, self.fit.layers, self.fit.offsets, self.fit.skip_first, after=1)
        parts = []
        for i, offset in enumerate(self.fit.offsets):
            target = tokens.ids[pairs.rows, pairs.columns + offset + 1].cpu()
            maps = self._logits(model, self.fit.layers, pairs.x, i)
            reference = lambda part, i=i: model.unembed(pairs.y[i][part])  # noqa: E731
            guesses = self.bigrams.predict(tokens.ids[pairs.rows, pairs.columns].cpu(), i)
            parts.append(score(model, "linear", self.fit.layers, offset, maps, reference, target, guesses))
        return parts

    def _logits(self, model: Model, layers: Sequence[int], states: Sequence[Tensor], offset: int) -> list[Logits]:
        """For each layer, the logits of some of its states; `offset` is an index into the fitted ones."""
        if missing := sorted(set(layers) - set(self.fit.layers)):
            raise UnknownName(f"no map was fitted for layers {missing}; there are {self.fit.layers}")

        def at(layer: int, h: Float[Tensor, "n d_model"]) -> Logits:
            place = self.fit.layers.index(layer)
            weight, bias = (part[place, offset].to(h.device) for part in (self.weight, self.bias))
            return lambda part: model.unembed(h[part].float() @ weight + bias)

        return [at(layer, h) for layer, h in zip(layers, states)]

    def _check(self, model: Model) -> None:
        shape = (model.cfg.d_model, model.cfg.n_layers)
        if shape != (self.fit.d_model, self.fit.n_layers):
            raise Mismatch(
                f"fitted on {self.fit.model_name} (width {self.fit.d_model}, {self.fit.n_layers} layers); "
                f"{model.name} has width {shape[0]} and {shape[1]} layers: fit one with monosem.lenses.fit_future"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """A folder with `config.json` and `lens.safetensors`."""
        tensors = {"weight": self.weight, "bias": self.bias} | {
            f"bigrams.{k}": v for k, v in vars(self.bigrams).items()
        }
        return save_lens(path, "future", asdict(self.fit), tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote. Raises `BadFile` for anything else."""
        config, tensors = load_lens(path, "future")
        try:
            counted = {name.partition(".")[2]: tensors.pop(name) for name in list(tensors) if "." in name}
            return cls(fit=FutureFit(**config), bigrams=Bigrams(**counted), **tensors)
        except TypeError as error:
            raise BadFile(f"{path} is not a future lens: {error}") from error


def fit_future(
    model: Model,
    texts: Any,
    layers: Iterable[int] | int | None = None,
    offsets: Sequence[int] = (1, 2, 3),
    n_texts: int | None = None,
    *,
    ridge: float = 1e-2,
    length: int = 256,
    skip_first: int = 1,
    rows: int = 8,
    quiet: bool = False,
) -> FutureLens:
    """Fit the maps on all tokens of some texts.

    Args:
        texts: an iterable of texts or token ids. A map has d_model² weights, so take many more tokens than d_model.
        layers: whose output to read; all by default.
        offsets: how far ahead; offset n foretells the token t + n + 1.
        n_texts: how many of the texts to use; all by default.
        ridge: penalty on a weight in units of the variance of the coordinate that it multiplies; the bias is free. 0 is
            plain least squares.
        length: tokens of each text to use. skip_first: leading tokens that are left out, being attention sinks.

    Raises:
        BadInput: no offset or a negative one, too short a text (it is named), fewer texts than asked for.
    """
    wanted, ahead = model.layers(layers), sorted(set(offsets))
    if not ahead or ahead[0] < 0 or ridge < 0 or skip_first < 0 or rows < 1:
        raise BadInput(f"need offsets of 0 or more, ridge >= 0, skip_first >= 0, rows >= 1; got {offsets}, {ridge}")
    prompts = prompts_of(model, texts, n_texts, length, skip_first + ahead[-1])
    sums = [_Sums(ridge) for _ in wanted]
    tokens = 0
    with Meter("fit future lens", total=len(prompts), unit="text", quiet=quiet) as meter:
        for batch in batches(model, prompts, rows):
            pairs = _Pairs.of(model, batch, wanted, ahead, skip_first)
            y = torch.cat(pairs.y, 1).float()
            for one, x in zip(sums, pairs.x):
                one.add(x.float(), y)
            tokens += len(y)
            meter.advance(len(batch))
    solved = [one.solve() for one in sums]
    weight = torch.stack([w.unflatten(1, (len(ahead), -1)).transpose(0, 1) for w, _ in solved]).contiguous()
    bias = torch.stack([b.unflatten(0, (len(ahead), -1)) for _, b in solved])
    fit = FutureFit(model.name, model.cfg.d_model, model.cfg.n_layers, wanted, ahead, tokens, ridge, skip_first, length)
    bigrams = Bigrams.count(prompts, [offset + 1 for offset in ahead], model.cfg.d_vocab)
    return FutureLens(weight, bias, fit, bigrams)


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


class _Sums:
    """Normal equations of y on x, added up in float64 around a provisional mean: a coordinate with a large constant
    part would otherwise lose its variance to rounding."""

    def __init__(self, ridge: float):
        self.ridge = ridge
        self.count = 0

    def add(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> None:
        if self.count == 0:
            self.x0, self.y0 = x.mean(0), y.mean(0)
            self.sum_x, self.sum_y = torch.zeros_like(self.x0).double(), torch.zeros_like(self.y0).double()
            self.xx = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
            self.xy = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
        x, y = x - self.x0, y - self.y0
        self.count += len(x)
        self.sum_x += x.sum(0)
        self.sum_y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def solve(self) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, "d_out"]]:
        """Weight and bias, float32 on the CPU."""
        mean_x, mean_y = self.sum_x / self.count, self.sum_y / self.count
        gram = self.xx - self.count * torch.outer(mean_x, mean_x)
        cross = self.xy - self.count * torch.outer(mean_x, mean_y)
        gram.diagonal().mul_(1 + self.ridge)
        if self.ridge == 0:
            weight = torch.linalg.lstsq(gram.cpu(), cross.cpu(), driver="gelsd").solution.to(cross.device)
        else:
            gram.diagonal().add_(1e-12 * gram.diagonal().mean())  # a coordinate that never varies gets no weight
            weight = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
        bias = self.y0 + mean_y - (self.x0 + mean_x) @ weight
        return weight.float().cpu(), bias.float().cpu()
