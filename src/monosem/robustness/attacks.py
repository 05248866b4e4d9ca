"""What is tried against a behaviour, each attack beside its controls on the same prompts. All of it is in memory, is
undone after the arm, and nothing is written that a model could be changed with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from .. import edits
from ..errors import check_name
from .arms import Arm
from .context import Context
from .tuning import added, tuned

TUNING_TOKENS = 24  # of the model's own answers to unrelated prompts, which fine-tuning repeats
TUNING_PROMPTS = 24


@dataclass(frozen=True)
class Attack:
    """A kind of attack.

    Attributes:
        title, meaning: in words. unit: of its strengths; "" where it has none.
        arms: what it consists of. count: how many arms that makes, known beforehand.
    """

    title: str
    meaning: str
    unit: str
    arms: Callable[[Context], Iterator[Arm]]
    count: Callable[[Context], int]


def _names(context: Context) -> list[str]:
    return ["", *context.vectors.controls]


def _arms_a_strength(context: Context) -> int:
    return 2 + context.config.controls + len(set(context.config.more_controls))


def _none(context: Context) -> Iterator[Arm]:
    yield Arm("none", costs=False)


def _ablation(context: Context) -> Iterator[Arm]:
    for amount in sorted(context.config.amounts):
        for name in _names(context):
            changes = edits.ablate_writes(context.model, context.vectors.units[name], amount)
            yield Arm("ablation", name, amount, changes)


def _one_layer(context: Context) -> Iterator[Arm]:
    for name in _names(context):
        change = edits.ablate((context.vectors.site, context.vectors.units[name]))
        yield Arm("one_layer", name, None, [change])


def _subtraction(context: Context) -> Iterator[Arm]:
    for scale in sorted(context.config.scales):
        for name in _names(context):
            change = edits.add((context.vectors.site, context.vectors.units[name]), -scale * context.vectors.gap)
            yield Arm("subtraction", name, scale, [change])


def _subspace(context: Context) -> Iterator[Arm]:
    for k in context.config.subspaces:
        for name, basis in context.vectors.bases.items():
            changes = edits.ablate_writes(context.model, basis[:k])
            yield Arm("subspace", name, float(k), changes)


def _prefill(context: Context) -> Iterator[Arm]:
    yield Arm("prefill", "", None, prefill=context.config.prefill, costs=False)
    yield Arm("prefill", "neutral words", None, prefill=context.config.neutral_prefill, costs=False)


def _fine_tuning(context: Context) -> Iterator[Arm]:
    config = context.config
    trained = tuned(
        context.model, examples(context), config.steps, rank=config.rank, rate=config.rate, seed=config.seed
    )
    draw = torch.Generator().manual_seed(config.seed)
    for steps in sorted(config.steps):
        yield Arm("fine_tuning", "", float(steps), within=partial(added, trained[steps]))
        noise = [change.random(draw) for change in trained[steps]]
        yield Arm("fine_tuning", "random change", float(steps), within=partial(added, noise))


def examples(context: Context) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) as token ids: unrelated training prompts, and what the model itself answers to them."""
    prompts = context.prompts["unrelated_train"][:TUNING_PROMPTS]
    made = context.model.generate(prompts, max_new_tokens=TUNING_TOKENS)
    return [(old, new) for old, new in zip(made.prompt.rows(), made.new) if new]


ATTACKS: dict[str, Attack] = {
    "none": Attack("No attack", "The model as it is.", "", _none, lambda context: 1),
    "ablation": Attack(
        "Ablation at all sites",
        "The direction is removed from everything that is written into the stream (Arditi et al. 2024).",
        "share removed",
        _ablation,
        lambda context: len(context.config.amounts) * _arms_a_strength(context),
    ),
    "one_layer": Attack(
        "Ablation at one layer",
        "The direction is removed from the stream at the layer where it was found; later layers may write it anew.",
        "",
        _one_layer,
        _arms_a_strength,
    ),
    "subtraction": Attack(
        "Subtraction",
        "The direction is subtracted at its layer, at every token.",
        "gaps of the class means",
        _subtraction,
        lambda context: len(context.config.scales) * _arms_a_strength(context),
    ),
    "subspace": Attack(
        "Ablation of a subspace",
        "The k directions along which the behaviour's prompts differ most are removed at all sites.",
        "directions",
        _subspace,
        lambda context: len(context.config.subspaces) * (2 + context.config.controls),
    ),
    "prefill": Attack(
        "Prefill",
        "The answer begins with words of a compliant answer; what follows is judged.",
        "",
        _prefill,
        lambda context: 2,
    ),
    "fine_tuning": Attack(
        "Fine-tuning",
        "A few steps on the model's own answers to unrelated prompts, of a low-rank change that is thrown away. "
        "Whoever trains on answers without the behaviour does more harm; that is not tried.",
        "steps",
        _fine_tuning,
        lambda context: 2 * len(set(context.config.steps)),
    ),
}


def chosen(names: list[str]) -> list[str]:
    """The attacks of a config, in the order of the table; "none" is always among them.

    Raises:
        UnknownName: no such attack.
    """
    for name in names:
        check_name("attack", name, ATTACKS)
    return [name for name in ATTACKS if not names or name in names or name == "none"]
