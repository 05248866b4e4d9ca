"""The future lens, by prompting: a state is put into a context that makes the model say what the state foretells.

Pal et al. 2023, "Future Lens", their better way. The context is a row of embeddings, of a text or learned; the state
h_l of one token is transplanted to its last position after layer l*, and the model goes on from there. Learning moves
the embeddings alone, so that the model's predictions after the transplant (given the tokens that follow in the text)
come close, in KL, to its predictions where the state came from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import Schedule
from ...edits import Edit
from ...errors import BadInput
from ...metrics import kl
from ...models import Model, Site, TokenBatch
from ...models.running.selection import columns_of
from ...models.turns import refuse_inference_mode
from ...progress import Meter
from ...results import analysis
from ..fitted import Fitted, Header
from .futures import Drawing, Futures
from .results import FutureScores, score

CONTEXT = 'Hello! Could you please tell me more about "'  # the paper's


@dataclass(frozen=True)
class SoftPromptHeader(Header):
    """What a soft prompt is for and how it came about.

    Attributes:
        layer: of the states that it reads; target_layer: where they are transplanted.
        text: whose embeddings it started from.
        losses: KL of every training step, nats; empty for the embeddings of the text itself.
    """

    layer: int
    target_layer: int
    text: str
    offsets: list[int]
    states: int = 0
    batch_size: int = 0
    lr: float = 0.0
    seed: int = 0
    losses: list[float] = field(default_factory=list, repr=False)


@dataclass(frozen=True, eq=False)
class SoftPrompt(Fitted):
    """A context for states of one layer: `prompt.generate(model, "a text")`, `prompt.evaluate(model, texts)`.

    Attributes:
        embeddings: `pos d_model`, as at the site `embed`.
    """

    kind: ClassVar[str] = "soft prompt"
    called: ClassVar[str] = "generate"

    header: SoftPromptHeader
    embeddings: Float[Tensor, "pos d_model"] = field(repr=False)

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {"embeddings": (None, self.header.d_model)}

    @classmethod
    def of(
        cls,
        model: Model,
        layer: int,
        text: str = CONTEXT,
        *,
        target_layer: int | None = None,
        offsets: Sequence[int] = (0, 1, 2, 3),
    ) -> Self:
        """The fixed context: the embeddings of a text.

        Args:
            layer: whose states are read; target_layer: where they go, by default the same.
            offsets: how far ahead it is scored; offset n foretells the token t + n + 1.
        """
        source = model.layers(layer)[0]
        target = source if target_layer is None else model.layers(target_layer)[0]
        ahead = sorted(set(offsets))
        if not ahead or ahead[0] < 0:
            raise BadInput(f"need offsets of 0 or more, got {list(offsets)}")
        embeddings = model.run(text, capture="embed", logits=False)["embed"][0].float().cpu()
        shape = (model.name, model.cfg.d_model, model.cfg.n_layers)
        return cls(SoftPromptHeader(*shape, source, target, text, ahead), embeddings)

    @classmethod
    def fit(
        cls,
        model: Model,
        texts: Any,
        layer: int,
        *,
        text: str = CONTEXT,
        target_layer: int | None = None,
        offsets: Sequence[int] = (0, 1, 2, 3),
        steps: int = 200,
        batch_size: int = 16,
        lr: float = 0.02,
        quiet: bool = False,
        **drawing: Unpack[Drawing],
    ) -> Self:
        """Learn a context, starting from the embeddings of `text`. The model is not changed.

        Loss: KL(model at t + n ‖ model after the transplant and n more tokens of the text), mean over offsets and
        states. Adam, learning rate falling linearly to zero.

        Args:
            texts: where states come from; `drawing` says which (`monosem.lenses.future.futures.Drawing`); its seed also
                orders the states.
            lr: in units of the root mean square of the embeddings that it starts from.

        Raises:
            BadInput: too short a text (it is named), a number that has to be positive.
        """
        refuse_inference_mode("SoftPrompt.fit", model.hf)
        fixed = cls.of(model, layer, text, target_layer=target_layer, offsets=offsets)
        per_text, seed = drawing.get("per_text", 16), drawing.get("seed", 0)
        if min(steps, batch_size, per_text) < 1 or lr <= 0:
            numbers = f"{steps}, {batch_size}, {per_text}, {lr}"
            raise BadInput(f"steps, batch_size, per_text and lr must be positive, got {numbers}")
        futures = Futures.of(model, texts, fixed.header.layer, fixed.header.offsets, **drawing)
        schedule = Schedule(len(futures), seed, -(-steps * batch_size // len(futures)))
        parts = (futures.take(schedule.take(step * batch_size, batch_size), model.device) for step in range(steps))
        with Meter("learn soft prompt", total=steps, unit="step", quiet=quiet) as meter:
            embeddings, losses = _learned(model, fixed, parts, steps, lr, meter)
        made = {"states": len(futures), "batch_size": batch_size, "lr": lr, "seed": seed, "losses": losses}
        return cls(SoftPromptHeader(**asdict(fixed.header) | made), embeddings)

    def generate(self, model: Model, x: Any, *, position: int = -1, max_new_tokens: int = 4) -> list[str]:
        """What the model writes after the transplant of each prompt's state at `position`; greedy.

        Raises:
            Mismatch: a model of another shape. BadInput: a position that a prompt does not have.
        """
        self.check(model)
        tokens = model.tokens(x)
        columns = columns_of(tokens, position)[:, 0]
        site = f"resid_post.{self.header.layer}"
        h = model.run(tokens, capture=site, logits=False)[site][torch.arange(len(tokens)), columns]
        ids = torch.full((len(h), len(self.embeddings)), model.pad)
        return model.generate(ids, edits=self.edits(h), max_new_tokens=max_new_tokens).texts

    def edits(self, h: Float[Tensor, "batch d_model"]) -> list[Edit]:
        """For a batch whose first tokens stand for the context: its embeddings go in, and h at its last position."""
        return _edits(self.embeddings, self.header.target_layer, h)

    @analysis
    def evaluate(
        self, model: Model, texts: Any, *, batch_size: int = 32, quiet: bool = False, **drawing: Unpack[Drawing]
    ) -> FutureScores:
        """How well it foretells, on random tokens of each text; columns as for the linear lens."""
        self.check(model)
        name = "soft prompt" if self.header.losses else "fixed prompt"
        futures = Futures.of(model, texts, self.header.layer, self.header.offsets, **drawing)
        states = []
        with Meter(f"score {name}", total=len(futures), unit="state", quiet=quiet) as meter:
            for start in range(0, len(futures), batch_size):
                part = futures.take(torch.arange(start, min(start + batch_size, len(futures))), model.device)
                with torch.no_grad():
                    states.append(_states(model, self.embeddings, self.header.target_layer, part))
                meter.advance(len(part))
        last = torch.cat(states)
        parts = []
        for i, offset in enumerate(self.header.offsets):
            lens = lambda part, n=offset: model.unembed(last[part, n], norm=False)  # noqa: E731
            reference = lambda part, i=i: model.unembed(futures.final[part, i])  # noqa: E731
            parts.append(score(model, name, [self.header.layer], offset, [lens], reference, futures.ids[:, offset]))
        return FutureScores.joined(model.name, parts)

    @property
    def history(self) -> pd.DataFrame:
        """Step and loss (KL, nats) of the training."""
        return pd.DataFrame({"step": range(len(self.header.losses)), "loss": self.header.losses})


def _learned(
    model: Model, fixed: SoftPrompt, parts: Iterable[Futures], steps: int, lr: float, meter: Meter
) -> tuple[Float[Tensor, "pos d_model"], list[float]]:
    """The embeddings after a descent over parts of the futures, and the loss of every step."""
    embeddings = fixed.embeddings.to(model.device).clone().requires_grad_()
    size = lr * float(fixed.embeddings.square().mean().sqrt())
    optimizer = torch.optim.Adam([embeddings], lr=size)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses: list[float] = []
    for part in parts:
        with torch.enable_grad():
            states = _states(model, embeddings, fixed.header.target_layer, part)
            lens = model.unembed(states[:, fixed.header.offsets], norm=False)
            loss = kl(model.unembed(part.final), lens).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
        losses.append(float(loss.detach()))
        meter.advance(1, loss=losses[-1])
    return embeddings.detach().cpu(), losses


def _edits(embeddings: Tensor, target_layer: int, h: Float[Tensor, "batch d_model"]) -> list[Edit]:
    length = len(embeddings)

    def context(x: Tensor, _: Any) -> Tensor:
        prompt = embeddings.to(x.device, x.dtype).expand(len(x), -1, -1)
        return torch.cat([prompt, x[:, length:]], 1)

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
    ids = TokenBatch.whole(torch.cat([context, futures.ids[:, :-1]], 1))
    edits = _edits(embeddings, target_layer, futures.h)
    run = model.run(ids, capture="final_norm", edits=edits, logits=False, grad=torch.is_grad_enabled())
    return run["final_norm"][:, length - 1 :]
