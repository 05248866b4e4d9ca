"""`monosem direction steer` and `calibrate`: change what activations have along a direction, in chosen rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import BadFile, BadInput
from ..terminal import notice
from .options import (
    Chat,
    Device,
    Dtype,
    NewTokens,
    Printing,
    PromptArguments,
    Seed,
    Temperature,
    Trust,
    Where,
    argument,
    model_of,
    option,
    prompt_lines,
    texts_of,
)
from .output import as_json, before_and_after, line

if TYPE_CHECKING:
    from ..directions import Direction, Directions
    from ..edits import Condition, Edit
    from ..models import Model
    from ..probes import Probes

DirectionFile = Annotated[
    Path, argument("FILE", "Directions: .safetensors, .gguf, .svec, direction.pt, or a folder of CAA's.")
]
OneSite = Annotated[
    str | None, option("SITE", "Which direction of the file: SITE or SITE@POSITION (default: the best).")
]
Over = Annotated[str | None, option("HOW", "Of the prompt's tokens: last, mean or max.")]


@dataclass(frozen=True, kw_only=True)
class OnDirection(Printing):
    """A direction from a file, and the model that it is used with."""

    file: DirectionFile
    site: OneSite = None
    model: Annotated[str | None, option("MODEL", "The model, where the file does not name it.")] = None
    dtype: Dtype = None
    device: Device = None
    trust_remote_code: Trust = False

    def open(self) -> "tuple[Direction, Model]":
        from ..directions import Directions

        model = model_of(self, self.file, Directions.load(self.file)[0].model_name)
        return chosen(Directions.load(self.file, model), self.site), model


def chosen(found: "Directions", site: str | None) -> "Direction":
    """One of several. Raises `BadInput` where nothing says which, `UnknownName` for one that is not there."""
    if site is not None:
        name, at, position = site.partition("@")
        return found[name, position] if at else found[name]
    if len(found) > 1 and "held_out_auroc" not in found.table:
        known = ", ".join(f"{one.site}" for one in found)
        raise BadInput(
            f"there are {len(found)} directions, and no numbers that say which is best: {known:.200}; say --site"
        )
    return found.best


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is done along the direction, and how much."""

    do: Annotated[
        str,
        option(
            "WHAT",
            "add, ablate[_writes], scale, reflect, set, floor, ceiling, push, add_by_cosine, slerp, erase.",
        ),
    ] = "add"
    amount: Annotated[float | None, option("X", "How much, in --unit (default: 1).")] = None
    unit: Annotated[
        str,
        option(
            "UNIT",
            "own (add: times the direction; set, floor, ceiling: what it has then), norms (times the stream's usual "
            "norm), or nats (what moves the text by so much).",
        ),
    ] = "own"


@dataclass(frozen=True, kw_only=True)
class When:
    """In which rows the change is made."""

    when: Annotated[Path | None, option("FILE", "Only where this direction or probe fires at the prompt's end.")] = None
    above: Annotated[float | None, option("X", "Its threshold (default: the one in its file).")] = None
    below: Annotated[float | None, option("X", "Instead: only below this.")] = None
    over: Over = None
    every: Annotated[int | None, option("N", "Decide again at every N-th generated token.", min=1)] = None

    def gate(self, model: "Model") -> "Condition | None":
        """Raises `BadInput` for options without --when, and for a file without a threshold."""
        from .. import edits

        if self.when is None:
            if any(one is not None for one in (self.above, self.below, self.over, self.every)):
                raise BadInput("--above, --below, --over and --every go with --when FILE, which decides")
            return None
        score = _detector(self.when, model)
        if self.above is None and self.below is None and score.calibration is None:
            raise BadInput(
                f"{self.when} has no threshold: give --above or --below, or choose one with monosem direction calibrate"
            )
        return edits.condition(score, above=self.above, below=self.below, over=self.over, every=self.every)  # type: ignore[arg-type]


def _detector(file: Path, model: "Model") -> "Direction | Probes":
    from ..directions import Directions
    from ..probes import Probes

    try:
        probe = Probes.load(file)
    except BadFile:
        return chosen(Directions.load(file, model), None)
    probe.check(model)
    return probe


def steer(
    asked: OnDirection,
    prompts: PromptArguments,
    change: Change,
    when: When,
    where: Where,
    chat: Chat = False,
    max_new_tokens: NewTokens = 20,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
) -> None:
    """Add, remove, set or bound a direction, and compare.

    Shows the continuation of every prompt before and after, and how far the next token's distribution moved (KL, nats).
    What reads the activation leaves out tokens that the direction was not fitted on (the first, special ones, outliers
    in norm). With --when, every prompt is decided by itself.

    Example: monosem direction steer french.safetensors "My name is" --amount 1 --unit nats
    """
    from ..steering import OPERATIONS, compare, iso_kl, own_amount

    direction, model = asked.open()
    amount = own_amount(model, direction, change.do, change.amount, change.unit)  # type: ignore[arg-type]
    gate, texts = when.gate(model), texts_of(model, prompts, chat)

    def made(amount: float) -> "list[Edit]":
        narrowed = [where.narrow(one) for one in OPERATIONS[change.do].edits(model, direction, amount)]
        narrowed = [one.at(everywhere=True) if where.everywhere else one for one in narrowed]
        return narrowed if gate is None else [one.when(gate) for one in narrowed]

    reached = ""
    if change.unit == "nats":
        target = 1.0 if change.amount is None else abs(change.amount)
        amount = iso_kl(model, texts, made, target=target, start=amount, max_new_tokens=max_new_tokens).amount
        reached = f" for {target:g} nats (the 95th percentile over {max_new_tokens} tokens)"
    found = compare(model, texts, made(amount), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    log = [] if gate is None else gate.log
    if asked.json:
        how = {"do": change.do, "amount": amount, "site": str(direction.site)}
        as_json(how | {"summary": found.summary, "prompts": found.table, "decisions": [one._asdict() for one in log]})
        return
    first = {one.row: f"{one.score:.3g}, {'open' if one.open else 'closed'}" for one in reversed(log)}
    more = {"condition": [first.get(row, "-") for row in range(len(texts))]} if gate is not None else {}
    before_and_after(prompts, found, **more)
    if not asked.quiet:
        notice(f"{change.do} {amount:.4g} at {direction.site}{reached}")


def calibrate(
    asked: OnDirection,
    negative: Annotated[Path, option("FILE", "New prompts without the concept, one a line.")],
    save: Annotated[Path, option("FILE", "Where to write the direction with its threshold (.safetensors).")],
    target_fpr: Annotated[float, option("SHARE", "At most this share of such prompts is above the threshold.")] = 0.01,
    over: Over = None,
) -> None:
    """Choose a direction's threshold by its rate of false alarms.

    The threshold is a rank of held-out prompts' scores, whatever their distribution: a rate of 1 % needs 99 of them.
    `monosem direction steer --when` then needs no --above.

    Example: monosem direction calibrate french.safetensors --negative english.txt --save gate.safetensors
    """
    from ..directions import Directions

    direction, model = asked.open()
    given = direction.with_threshold(model, prompt_lines(negative), target_fpr=target_fpr, over=over)  # type: ignore[arg-type]
    Directions([given]).save(save)
    held = given.calibration
    assert held is not None
    if asked.json:
        as_json({"site": str(given.site), **held})
    else:
        line(f"{given.site}: above {held['threshold']:.4g} ({held['over']} of a prompt), from {held['n']} prompts")
    if not asked.quiet:
        notice(f"written: {save}")
