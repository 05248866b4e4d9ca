"""A few steps of fine-tuning on unrelated answers, in memory: low-rank changes that hooks add, gone after the block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import BadInput
from ..metrics import cross_entropy
from ..models import Model
from ..models.turns import refuse_inference_mode

BATCH = 8  # examples a step


@dataclass(frozen=True)
class LowRank:
    """What is added to a module's output: x Aᵀ Bᵀ."""

    module: nn.Module
    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]

    @property
    def norm(self) -> float:
        """Frobenius norm of B A."""
        return float(((self.b.T @ self.b) * (self.a @ self.a.T)).sum().clamp(min=0).sqrt())

    def random(self, draw: torch.Generator) -> "LowRank":
        """Another one of the same rank and norm."""
        a, b = (torch.randn(part.shape, generator=draw).to(part) for part in (self.a, self.b))
        other = LowRank(self.module, a, b)
        return LowRank(self.module, a, b * (self.norm / max(other.norm, 1e-30)))


@contextmanager
def added(changes: Sequence[LowRank]) -> Iterator[None]:
    """The changes act on their modules for the length of the block; no weight is touched."""
    with ExitStack() as hooks:
        for change in changes:
            hooks.callback(change.module.register_forward_hook(_hook(change)).remove)
        yield


def _hook(change: LowRank):  # type: ignore[no-untyped-def]
    def add(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        x = given[0].to(change.a.dtype)
        return made + ((x @ change.a.T) @ change.b.T).to(made.dtype)

    return add


def tuned(
    model: Model,
    examples: Sequence[tuple[list[int], list[int]]],
    steps: Sequence[int],
    *,
    rank: int = 8,
    rate: float = 1e-3,
    seed: int = 0,
) -> dict[int, list[LowRank]]:
    """Train low-rank changes of every linear map in the blocks; number of steps -> the changes after them.

    AdamW on the cross-entropy of the answers' tokens, `BATCH` examples a step in an order that is drawn; A is drawn,
    B begins at 0 (as LoRA does), so that 0 steps change nothing.

    Args:
        examples: token ids of a prompt, and of the answer that follows it.

    Raises:
        BadInput: no examples, an answer without tokens, no linear map that is known, or a loss that is not finite.
    """
    refuse_inference_mode("fine-tuning", model.hf)
    if not examples or not all(answer for _, answer in examples):
        raise BadInput("fine-tuning needs examples, each with an answer of one token or more")
    draw = torch.Generator().manual_seed(seed)
    changes = [_begun(module, rank, draw) for module in linear_maps(model)]
    if not changes:
        raise BadInput(f"{model.name} has no linear map in its blocks that fine-tuning knows")
    parameters = [part for change in changes for part in (change.a, change.b)]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    order = torch.cat(
        [torch.randperm(len(examples), generator=draw) for _ in range(_rounds(max(steps), len(examples)))]
    )
    kept: dict[int, list[LowRank]] = {}
    with model.turn(), torch.enable_grad(), added(changes):
        for step in range(1, max(steps) + 1):
            chosen = [examples[i] for i in order[(step - 1) * BATCH : step * BATCH].tolist()]
            loss = _loss(model, chosen)
            if not bool(loss.isfinite()):
                raise BadInput(f"the loss of fine-tuning step {step} is {float(loss)}; lower rate")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step in steps:
                kept[step] = [LowRank(one.module, one.a.detach().clone(), one.b.detach().clone()) for one in changes]
    return kept


def linear_maps(model: Model) -> list[nn.Module]:
    """The linear maps inside the blocks; of a layer with an adapter, its base."""
    unembed = model.hf.get_output_embeddings()
    return [
        module
        for name, module in model.hf.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not unembed and "lora_" not in name
    ]


def _begun(module: nn.Module, rank: int, draw: torch.Generator) -> LowRank:
    weight: Any = module.weight
    out, into = (int(n) for n in (weight.shape if isinstance(module, nn.Linear) else weight.T.shape))
    a = torch.randn(rank, into, generator=draw) / into**0.5
    b = torch.zeros(out, rank, device=weight.device)
    return LowRank(module, a.to(weight.device).requires_grad_(), b.requires_grad_())


def _rounds(steps: int, examples: int) -> int:
    return -(-steps * BATCH // examples)


def _loss(model: Model, examples: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    longest = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.full((len(examples), longest), model.pad)
    counted, mask = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(examples):
        n = len(prompt) + len(answer)
        ids[row, :n], mask[row, :n] = torch.tensor([*prompt, *answer]), 1
        counted[row, len(prompt) : n] = True
    ids, counted, mask = (one.to(model.device) for one in (ids, counted, mask))
    logits = model.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    return cross_entropy(logits[counted[:, 1:]], ids[:, 1:][counted[:, 1:]]).mean()
