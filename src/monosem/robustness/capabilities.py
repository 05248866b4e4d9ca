"""What a model still can: sets of prompts with one right and some wrong ways to go on, and how often the right one is
likelier than each wrong one. Tasks of `data.TASKS`, two sets that ship, and files of your own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TASKS
from ..data.joint import joint_ids
from ..data.pair_files import read_options
from ..edits import Edit
from ..errors import BadInput, UnknownName, did_you_mean
from ..metrics import joint_log_probability
from ..models import Model, TokenBatch
from ..reading import existing
from ..statistics import wilson

SETS = Path(__file__).parent / "sets"
MADE = ("capitals", "ioi", "pronouns")  # made for the model's tokenizer from words that are one token
SHIPPED = ("function_vectors", "gsm8k")  # files in `sets`, whose README has sources and licences
KNOWN = (*MADE, *SHIPPED)
ROWS = 24  # of a pass


@dataclass(frozen=True)
class Item:
    """Token ids of a prompt, and of the ways to go on: the right one first."""

    prompt: list[int]
    options: list[list[int]]


def check_set(name: str) -> None:
    """Raises `UnknownName` unless it is a set that ships or a file, `BadFile` where the file holds no options."""
    if name in KNOWN:
        return
    if existing(name) is None or not Path(name).is_file():
        meant = did_you_mean(name, KNOWN)
        raise UnknownName(
            f"no capability set {name!r}{meant}; there are {', '.join(KNOWN)}, or give a .jsonl, .json or .csv file "
            "whose rows have prompt, right and wrong"
        )
    read_options(name)


def items(model: Model, name: str, n: int, seed: int = 0) -> list[Item]:
    """At most n items of a set. A set that ships is without what this model's tokenizer cannot tell apart and what its
    context cannot hold; a task has none where too few of its words are single tokens.

    Raises:
        BadFile: a file that cannot be read as options; names row and column.
        BadInput: a row that is too long; an option that cannot follow its prompt, or that is the beginning of another
            one, so that it could never be the less likely of the two.
    """
    if name in MADE:
        return _made(model, name, n, seed)
    path, made = SETS / f"{name}.jsonl" if name in SHIPPED else Path(name), list[Item]()
    for number, (prompt, options) in enumerate(read_options(path, limit=n)):
        try:
            made.append(_item(model, prompt, options))
        except BadInput as error:
            if name not in SHIPPED:
                raise BadInput(f"{path}, row {number}: {error}") from error
    return made


def _made(model: Model, name: str, n: int, seed: int) -> list[Item]:
    """Of a task; half as many where it has fewer different ones, and so on."""
    try:
        pairs = TASKS[name](model, n=n, seed=seed)
    except BadInput:
        return _made(model, name, n // 2, seed) if n > 1 else []
    assert pairs.right is not None
    assert pairs.wrong is not None
    answers = zip(pairs.right.tolist(), pairs.wrong.tolist())
    return [Item(list(row), [[a], [b]]) for row, (a, b) in zip(pairs.clean.rows(), answers)]


def _item(model: Model, prompt: str, options: list[str]) -> Item:
    bad: dict[int, str] = {}
    ids = joint_ids(model, options, [prompt] * len(options), bad)
    assert ids is not None
    if bad:
        raise BadInput(next(iter(bad.values())))
    for one, other in permutations(range(len(ids)), 2):
        if ids[other][: len(ids[one])] == ids[one]:
            raise BadInput(
                f"{options[one]!r} is the beginning of {options[other]!r}, and so never less likely; end both with "
                "what comes next, such as a line break or a full stop"
            )
    found = Item(list(model.tokens([prompt]).rows()[0]), ids)
    if (length := len(found.prompt) + max(map(len, ids))) > model.cfg.n_ctx:
        raise BadInput(f"with its options {length} tokens, and {model.name} has a context of {model.cfg.n_ctx}")
    return found


def share_right(model: Model, some: Sequence[Item], edits: Sequence[Edit] = ()) -> dict[str, Any]:
    """How often the right option has a larger log p, summed over its tokens, than each wrong one; Wilson's interval,
    and `chance`: what a model that knows nothing reaches."""
    scores = _scores(model, some, edits)
    hits = sum(bool((score[0] > score[1:]).all()) for score in scores)
    chance = sum(1 / len(item.options) for item in some) / len(some)
    return {"count": hits, "of": len(some), "chance": chance, **wilson(hits, len(some))._asdict()}


@torch.no_grad()
def _scores(model: Model, some: Sequence[Item], edits: Sequence[Edit]) -> list[Float[Tensor, "n"]]:
    """log p of each of the n options in nats. Options that begin alike share a row, and so do options of one token."""
    wanted = [[(*item.prompt, *option[:-1]) for option in item.options] for item in some]
    rows = list(_longest({row for every in wanted for row in every}))
    found: dict[tuple[int, ...], Tensor] = {}
    for start in range(0, len(rows), ROWS):
        batch = rows[start : start + ROWS]
        tokens = TokenBatch.of([list(row) for row in batch], model.pad).to(model.device)
        logits = model.run(tokens, edits=list(edits)).logits
        assert logits is not None
        found |= {row: one[: len(row)] for row, one in zip(batch, logits)}
    scores = []
    for item, every in zip(some, wanted):
        held = [next(logits for row, logits in found.items() if row[: len(one)] == one) for one in every]
        first = len(item.prompt) - 1
        parts = [
            joint_log_probability(logits[first : first + len(option)], torch.tensor(option, device=logits.device))
            for logits, option in zip(held, item.options)
        ]
        scores.append(torch.stack(parts).float().cpu())
    return scores


def _longest(rows: set[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Those that are not the beginning of another one: a causal model's logits for these hold the others'."""
    ordered = sorted(rows)
    for row, following in zip(ordered, [*ordered[1:], ()]):
        if following[: len(row)] != row:
            yield row
