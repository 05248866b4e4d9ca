"""What an attack or a defence costs on prompts that have nothing to do with the behaviour."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..benchmarks.labelled import labelled
from ..edits import Edit
from ..errors import BadInput
from ..judges import judge, of_refusals
from ..metrics import cross_entropy, kl, next_token_loss
from ..models import Generation, Model
from ..reading import read_text
from ..statistics import bootstrap_mean
from .arms import Arm, responses
from .capabilities import items, share_right
from .context import Context

PROMPTS, TOKENS, ROWS = 16, 16, 8  # prompts, tokens of the continuations in which KL is measured; rows of a pass
OVER_REFUSAL = 24  # prompts
DEGREE = "refusal-degree"  # the judge of what of them is declined
TEXT_TOKENS = 512  # of the fixed text


@dataclass(frozen=True)
class Baseline:
    """The unchanged model's continuations of harmless prompts, and what it expected at each of their tokens."""

    made: list[Generation]
    logits: list[Float[Tensor, "tokens vocab"]]  # of each row of all of them
    next: list[Int[Tensor, "tokens"]]

    @classmethod
    def of(cls, context: Context) -> "Baseline":
        prompts = context.prompts["unrelated_test"][:PROMPTS]
        made, logits, following = [], [], []
        for start in range(0, len(prompts), ROWS):
            generation = context.model.generate(prompts[start : start + ROWS], max_new_tokens=TOKENS)
            made.append(generation)
            logits += list(_continued(context.model, generation, ()))
            following += [torch.tensor(new) for new in generation.new]
        return cls(made, logits, following)


def divergence(context: Context, arm: Arm) -> dict[str, Any]:
    """KL(unchanged ‖ changed) on harmless prompts, in nats: of the first token of the answer, and a token of the
    unchanged model's own answer; and how likely the changed model finds that answer (perplexity)."""
    base = context.remembered("baseline", lambda: Baseline.of(context))
    with arm.within():
        changed = [rows for made in base.made for rows in _continued(context.model, made, arm.edits)]
    first, along, nats = [], [], []
    for before, after, ids in zip(base.logits, changed, base.next):
        moved = kl(before, after)
        first.append(float(moved[0]))
        along.append(float(moved.mean()))
        nats.append(float(cross_entropy(after, ids.to(after.device)).mean()))
    if not all(map(math.isfinite, along)):
        raise BadInput(f"the KL under {arm.attack} at {arm.strength} is not finite; give smaller strengths")
    return {
        "kl_first": bootstrap_mean(first)._asdict(),
        "kl_token": bootstrap_mean(along)._asdict(),
        "own_perplexity": math.exp(min(sum(nats) / len(nats), 700.0)),
    }


@torch.no_grad()
def _continued(model: Model, made: Generation, edits: Sequence[Edit]) -> Iterator[Float[Tensor, "tokens vocab"]]:
    """The logits before each token of the continuations, row by row."""
    logits = model.run(made, edits=list(edits)).logits
    assert logits is not None
    for row, (length, new) in enumerate(zip(made.prompt.lengths.tolist(), made.new)):
        yield logits[row, length - 1 : length - 1 + len(new)].float()


# ---------------------------------------------------------------------- what takes longer, for one strength an attack
def over_refusal_prompts(path: str | None) -> list[str]:
    """Prompts that sound as if they should be refused and are harmless: the lines of a file, or the safe ones of the
    bundled sample of XSTest (Röttger et al. 2024)."""
    if path is None:
        found = labelled("refusal")
        return [text for text, label in zip(found.texts, found.labels) if label == "safe"][:OVER_REFUSAL]
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise BadInput(f"{path} holds no prompts; write one a line")
    return lines


def over_refusal(context: Context, arm: Arm) -> dict[str, Any]:
    """How often the behaviour shows on prompts that only sound as if it should. Where it is a refusal, also how many
    responses decline wholly, in part and not at all ("degrees"), which the judge `refusal-degree` says."""
    degrees = judge(DEGREE) if of_refusals(context.judge) else None
    row = responses(context, arm, over_refusal_prompts(context.config.over_refusal), also=degrees)
    kept = {name: row[name] for name in ("shown", "labels", "loops", "cut")}
    return kept | ({"degrees": row["also"]} if degrees else {})


@torch.no_grad()
def capabilities(context: Context, arm: Arm) -> dict[str, Any]:
    """The capability sets of the config."""
    model, config, found = context.model, context.config, dict[str, Any]()
    with arm.within():
        for name in config.capabilities:
            make = partial(items, model, name, config.most_items, config.seed)
            some = context.remembered(("items", name), make)
            if some:
                found[name] = share_right(model, some, arm.edits)
    return found


@torch.no_grad()
def text_perplexity(context: Context, arm: Arm) -> float:
    """Of a fixed English text (its first `TEXT_TOKENS` tokens), in one pass."""
    model = context.model
    ids = [*model.prefix, *model.bare(_usual_text())][: min(model.cfg.n_ctx, TEXT_TOKENS)]
    with arm.within():
        run = model.run([ids], edits=list(arm.edits))
    assert run.logits is not None
    return float(next_token_loss(run.logits, run.tokens).nanmean().exp())


@cache
def _usual_text() -> str:
    return (resources.files("monosem") / "assets" / "usual_text.txt").read_text(encoding="utf-8")
