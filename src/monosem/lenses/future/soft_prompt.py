"""The future lens, by prompting: a state is put into a context that makes the model say what the state foretells.

Pal et al. 2023, "Future Lens", their better way. The context is a row of embeddings, of a text or learned; the state
h_l of one token is transplanted to its last position after layer l*, and the model goes on from there. Learning moves
the embeddings alone, so that the model's predictions after the transplant (given the tokens that follow in the text)
come close, in KL, to those that it made where the state came from.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...activations import Schedule
from ...edits import Edit
from ...errors import BadFile, BadInput, Mismatch
from ...metrics import kl
from ...models import Model, Site
from ...progress import Meter
from ..corpus import batches, prompts_of
from ..fitted import load_lens, save_lens
from .results import FutureScores, score

CONTEXT = 'Hello! Could you please tell me more about "'  # the paper's


@dataclass(frozen=True)
class SoftPromptFit:
    """What a soft prompt is for and how it came about.

    Attributes:
        layer: of the states that it reads; target_layer: where they are transplanted.
        text: whose embeddings it started from.
        losses: KL of every training step, nats; empty for the embeddings of the text itself.
    """

    model_name: str
    d_model: int
    n_layers: int
    layer: int
    target_layer: int
    text: str
    offsets: list[int]
    states: int = 0
    batch: int = 0
    lr: float = 0.0
    seed: int = 0
    losses: list[float] = field(default_factory=list, repr=False)


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A context for states of one layer: `prompt.generate(model, "a text")`, `prompt.evaluate(model, texts)`.

    Attributes:
        embeddings: `pos d_model`, as at the site `embed`.
    """

    embeddings: Float[Tensor, "pos d_model"] = field(repr=False)
    fit: SoftPromptFit

    @classmethod
    def of(
        cls,
        model: Model,
        layer: int,
        text: str = CONTEXT,
        target_layer: int | None = None,
        offsets: Sequence[int] = (0, 1, 2, 3),
    ) -> Self:
        """The fixed context: the embeddings of a text.

        Args:
            layer: whose states are read; target_layer: where they go, by default the same.
            offsets: that are scored; offset n foretells the token t + n + 1.
        """
        source = model.layers(layer)[0]
        target = source if target_layer is None else model.layers(target_layer)[0]
        ahead = sorted(set(offsets))
        if not ahead or ahead[0] < 0:
            raise BadInput(f"need offsets of 0 or more, got {list(offsets)}")
        embeddings = model.run(text, capture="embed", logits=False)["embed"][0].float().cpu()
        fit = SoftPromptFit(model.name, model.cfg.d_model, model.cfg.n_layers, source, target, text, ahead)
        return cls(embeddings, fit)

    def generate(self, model: Model, x: Any, position: int = -1, max_new_tokens: int = 4) -> list[str]:
        """What the model writes after the transplant of each prompt's state at `position`; greedy.

        Raises:
            Mismatch: a model of another shape. BadInput: a position that a prompt does not have.
        """
        self._check(model)
        tokens = model.tokens(x)
        if not -int(tokens.lengths.min()) <= position < int(tokens.lengths.min()):
            raise BadInput(f"position {position}: the shortest prompt has {int(tokens.lengths.min())} tokens")
        site = f"resid_post.{self.fit.layer}"
        value = model.run(tokens, capture=site, logits=False)[site]
        index = torch.where(torch.tensor(position < 0), tokens.lengths + position, position)
        chosen = tokens.mask & (tokens.positions == index[:, None])
        h = value[chosen.to(value.device)]
        ids = torch.full((len(h), len(self.embeddings)), model.pad)
        return model.generate(ids, edits=self.edits(h), max_new_tokens=max_new_tokens).texts

    def edits(self, h: Float[Tensor, "batch d_model"]) -> list[Edit]:
        """For a batch whose first tokens stand for the context: its embeddings go in, and h at its last position."""
        return _edits(self.embeddings, self.fit.target_layer, h)

    def evaluate(
        self,
        model: Model,
        texts: Any,
        n_texts: int | None = None,
        *,
        length: int = 256,
        per_text: int = 16,
        skip_first: int = 1,
        batch: int = 32,
        seed: int = 0,
        quiet: bool = False,
    ) -> FutureScores:
        """How well it foretells, on `per_text` random tokens of each text; columns as for the linear lens."""
        self._check(model)
        name = "soft prompt" if self.fit.losses else "fixed prompt"
        futures = Futures.of(
            model, texts, self.fit.layer, self.fit.offsets, n_texts, length, per_text, skip_first, seed
        )
        states = []
        with Meter(f"score {name}", total=len(futures), unit="state", quiet=quiet) as meter:
            for start in range(0, len(futures), batch):
                part = futures.take(torch.arange(start, min(start + batch, len(futures))), model.device)
                with torch.no_grad():
                    states.append(_states(model, self.embeddings, self.fit.target_layer, part))
                meter.advance(len(part))
        mine = torch.cat(states)
        parts = []
        for i, offset in enumerate(self.fit.offsets):
            lens = lambda part, n=offset: model.unembed(mine[part, n], norm=False)  # noqa: E731
            own = lambda part, i=i: model.unembed(futures.final[part, i])  # noqa: E731
            parts.append(score(model, name, [self.fit.layer], offset, [lens], own, futures.ids[:, offset]))
        return FutureScores.joined(model.name, parts)

    @property
    def history(self) -> pd.DataFrame:
        """Step and loss (KL, nats) of the training."""
        return pd.DataFrame({"step": range(len(self.fit.losses)), "loss": self.fit.losses})

    def _check(self, model: Model) -> None:
        shape = (model.cfg.d_model, model.cfg.n_layers)
        if shape != (self.fit.d_model, self.fit.n_layers):
            raise Mismatch(
                f"made for {self.fit.model_name} (width {self.fit.d_model}, {self.fit.n_layers} layers); {model.name} "
                f"has width {shape[0]} and {shape[1]} layers: learn one with monosem.lenses.fit_soft_prompt"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """A folder with `config.json` and `lens.safetensors`."""
        return save_lens(path, "soft prompt", asdict(self.fit), {"embeddings": self.embeddings})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote. Raises `BadFile` for anything else."""
        config, tensors = load_lens(path, "soft prompt")
        try:
            return cls(fit=SoftPromptFit(**config), **tensors)
        except TypeError as error:
            raise BadFile(f"{path} is not a soft prompt: {error}") from error


def fit_soft_prompt(
    model: Model,
    texts: Any,
    layer: int,
    *,
    text: str = CONTEXT,
    target_layer: int | None = None,
    offsets: Sequence[int] = (0, 1, 2, 3),
    n_texts: int | None = None,
    length: int = 256,
    per_text: int = 16,
    skip_first: int = 1,
    steps: int = 200,
    batch: int = 16,
    lr: float = 0.02,
    seed: int = 0,
    quiet: bool = False,
) -> SoftPrompt:
    """Learn a context, starting from the embeddings of `text`. The model is not changed.

    Loss: KL(model at t + n ‖ model after the transplant and n more tokens of the text), mean over offsets and states.
    Adam, learning rate falling linearly to zero.

    Args:
        texts, n_texts, length: where states come from; `per_text` random tokens of each.
        lr: in units of the root mean square of the embeddings that it starts from.
        seed: of the choice of tokens and of their order.

    Raises:
        BadInput: too short a text (it is named), a number that has to be positive.
    """
    fixed = SoftPrompt.of(model, layer, text, target_layer, offsets)
    if min(steps, batch, per_text) < 1 or lr <= 0:
        raise BadInput(f"steps, batch, per_text and lr must be positive, got {steps}, {batch}, {per_text}, {lr}")
    futures = Futures.of(model, texts, fixed.fit.layer, fixed.fit.offsets, n_texts, length, per_text, skip_first, seed)
    embeddings = fixed.embeddings.to(model.device).clone().requires_grad_()
    size = lr * float(fixed.embeddings.square().mean().sqrt())
    optimizer = torch.optim.Adam([embeddings], lr=size)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    schedule = Schedule(len(futures), seed, -(-steps * batch // len(futures)))
    losses: list[float] = []
    with Meter("learn soft prompt", total=steps, unit="step", quiet=quiet) as meter:
        for step in range(steps):
            part = futures.take(schedule.take(step * batch, batch), model.device)
            with torch.enable_grad():
                states = _states(model, embeddings, fixed.fit.target_layer, part)
                lens = model.unembed(states[:, fixed.fit.offsets], norm=False)
                loss = kl(model.unembed(part.final), lens).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay.step()
            losses.append(float(loss.detach()))
            meter.advance(1, loss=losses[-1])
    described = asdict(fixed.fit) | {"states": len(futures), "batch": batch, "lr": lr, "seed": seed, "losses": losses}
    return SoftPrompt(embeddings.detach().cpu(), SoftPromptFit(**described))


@dataclass(frozen=True, eq=False)
class Futures:
    """States of some tokens t and what came of them.

    Attributes:
        h: at the layer, `n d_model`.
        ids: tokens t + 1 .. t + N + 1 of the text, `n N+1`, N the largest offset.
        final: last streams at t + offset, `n offset d_model`: through the unembedding, what the model predicted.
    """

    h: Float[Tensor, "n d_model"]
    ids: Int[Tensor, "n ahead"]
    final: Float[Tensor, "n offset d_model"]

    def __len__(self) -> int:
        return len(self.h)

    def take(self, rows: Int[Tensor, "part"], device: torch.device) -> "Futures":
        return Futures(self.h[rows].to(device), self.ids[rows].to(device), self.final[rows].to(device))

    @classmethod
    def of(
        cls,
        model: Model,
        texts: Any,
        layer: int,
        offsets: Sequence[int],
        n_texts: int | None,
        length: int,
        per_text: int,
        skip_first: int,
        seed: int,
    ) -> "Futures":
        """`per_text` random tokens of each text (all of a shorter one), their states on the CPU."""
        most = max(offsets)
        prompts = prompts_of(model, texts, n_texts, length, skip_first + most + 1)
        draw = torch.Generator().manual_seed(seed)
        names = (f"resid_post.{layer}", f"resid_post.{model.cfg.n_layers - 1}")
        parts = []
        for tokens in batches(model, prompts, 8):
            run = model.run(tokens, capture=set(names), logits=False)
            for row, count in enumerate(tokens.lengths.tolist()):
                at = skip_first + torch.randperm(count - skip_first - most - 1, generator=draw)[:per_text]
                ahead, later = at[:, None] + torch.arange(1, most + 2), at[:, None] + torch.tensor(list(offsets))
                states = [run[name][row].cpu() for name in names]
                parts.append((states[0][at], tokens.ids[row].cpu()[ahead], states[1][later]))
        return cls(*(torch.cat(column) for column in zip(*parts)))


def _edits(embeddings: Tensor, target_layer: int, h: Float[Tensor, "batch d_model"]) -> list[Edit]:
    length = len(embeddings)

    def context(x: Tensor, _: Any) -> Tensor:
        own = embeddings.to(x.device, x.dtype).expand(len(x), -1, -1)
        return torch.cat([own, x[:, length:]], 1)

    return [
        Edit(Site("embed"), context, "soft prompt", positions=slice(0, length), scope="prompt"),
        Edit(
            Site("resid_post", target_layer),
            lambda x, _: h[:, None].to(x.device, x.dtype).expand_as(x),
            "transplant",
            positions=length - 1,
            scope="prompt",
        ),
    ]


def _states(
    model: Model, embeddings: Tensor, target_layer: int, futures: Futures
) -> Float[Tensor, "batch ahead d_model"]:
    """What the unembedding reads at the context's last position and after each further token of the text."""
    length = len(embeddings)
    context = torch.full((len(futures), length), model.pad, device=model.device)
    ids = torch.cat([context, futures.ids[:, :-1]], 1)
    edits = _edits(embeddings, target_layer, futures.h)
    run = model.run(ids, capture="final_norm", edits=edits, logits=False, grad=torch.is_grad_enabled())
    return run["final_norm"][:, length - 1 :]
