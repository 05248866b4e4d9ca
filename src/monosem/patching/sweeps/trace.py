"""Causal tracing: noise on the tokens of a subject, and which states bring the answer back (Meng et al. 2022).

Locating and Editing Factual Associations in GPT (arXiv 2202.05262), section 2: the corrupted run is the prompt itself
with Gaussian noise on the embeddings of the subject's tokens; a state, or the outputs of one kind in a window of
layers, is restored to what it is in the clean run; the indirect effect is what that adds to the probability of the
answer. Noise and windows are as in the authors' code (`experiments/causal_trace.py`): three standard deviations of the
subjects' embeddings, ten draws, a window from centre - w // 2 up to centre + (w + 1) // 2, cut at the ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

import torch
from jaxtyping import Bool
from torch import Tensor

from ...data import TokenPairs, tokens_at
from ...errors import BadInput
from ...models import Layers, Model
from ...models.numbers import count
from ...models.tokens import texts_of
from ...plots import Figure, literal
from ...results import analysis
from ..cells import Cell, SpanPositions, axes_of, cells_of, columns_of, labels_of, places_of
from ..corruptions import noise
from ..scoring import MetricLike
from ..trials import patching_experiment
from .engine import Engine
from .result import Sweep

Subject = str | slice | range  # its text, the name of a span, or token indices of the prompt
AXES = ("layer", "position")


class Noise(TypedDict, total=False):
    """How the subject is noised: options of `noise`."""

    sd: float
    samples: int
    seed: int
    of: Literal["prompts", "noised", "vocabulary"] | float


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Trace(Sweep):
    """A sweep whose corrupted runs have noise on the subject; `effect` is the average indirect effect.

    Attributes:
        cells: the centre of every window.
        window: how many layers are restored at once.
        subject: the noised tokens, `batch pos`, in the layout of the prompts. answers: of every prompt, as text.
    """

    window: int
    subject: Bool[Tensor, "batch pos"]
    answers: tuple[str, ...]

    def plot(self, metric: str | None = None, site: str | None = None) -> Figure:
        """As a sweep's; the title says what was restored. Noised tokens have a star."""
        figure = super().plot(metric, site)
        what = ", ".join(self.sites if site is None else [site])
        layers = f"{self.window} layers of " if self.window > 1 else ""
        return figure.update_layout(title={"text": literal(f"{layers}{what} restored, {self.corruption}")})


@analysis
def trace(
    model: Model,
    x: Any,
    subject: Subject | Sequence[Subject],
    right: str | int | Sequence[str | int] | None = None,
    *,
    sites: str | Sequence[str] = "resid_post",
    window: int = 1,
    metric: MetricLike = "probability",
    layers: Layers = None,
    positions: SpanPositions | None = None,
    memory: str | int = "2GB",
    quiet: bool = False,
    **noised: Unpack[Noise],
) -> Trace:
    """Causal tracing: which states, restored in a run with a noised subject, bring the answer back.

    Args:
        x: the prompts, as `model.tokens` takes them (there is no second prompt), or `TokenPairs`, of which the clean
            prompts and the answers are used.
        subject: the words whose embeddings are noised, one for all prompts or one for each: text that stands once in
            the prompt, a slice or range of token indices, or the name of a span of the pairs.
        right: an answer of one or more tokens for each prompt (of one prompt, the answer alone will do); default: the
            token that the model says next.
        sites: what is restored, such as resid_post, mlp_out, attn_out.
        window: how many layers at once, around every layer; 1 restores single states (the paper: 1 for the stream, 10
            of 48 layers for MLPs and attention).
        metric: as in `sweep`; the paper's is the probability of the answer.
        layers: the centres. positions: as in `sweep`; default: every position, and in prompts of several lengths the
            spans subject_first, subject_last, after_subject (where every prompt has one) and end.
        noised: sd, samples, seed and of, as in `noise`; 3, 10, 0 and "noised" by default.

    Raises:
        BadInput: a subject that is not in its prompt, or there more than once; window below 1; an option that neither
            this nor `noise` has; as `sweep`.
        UnknownName: as `sweep`.
    """
    window = count(window, "window=, a number of layers,")
    if unknown := sorted(set(noised) - set(Noise.__annotations__)):
        raise BadInput(f"trace has no option {unknown[0]}=; of the noise there are {', '.join(Noise.__annotations__)}")
    pairs = _prompts(model, x, right)
    chosen = _subjects(model, pairs, subject)
    pairs = replace(pairs, spans=pairs.spans | _spans(pairs, chosen))
    if positions is None and len(set(pairs.clean.lengths.tolist())) > 1:
        positions = [name for name in ("subject_first", "subject_last", "after_subject", "end") if name in pairs.spans]
    cells = cells_of(model, pairs, sites, AXES, layers=layers, positions=positions)
    sets = [windowed(model, cell, window) for cell in cells]
    mask = torch.zeros_like(pairs.clean.mask, device="cpu")
    for row, indices in enumerate(chosen):
        mask[row] = pairs.clean.mask[row].cpu() & torch.isin(pairs.clean.positions[row].cpu(), torch.tensor(indices))
    corruption = noise(**({"of": "noised"} | noised), positions=mask)  # type: ignore[arg-type]
    places = places_of(cell for cells in sets for cell in cells)
    experiment = patching_experiment(model, pairs, places, metric, "denoising", corruption)
    labels, engine = _starred(labels_of(model, pairs, cells), pairs, chosen), Engine()
    run = experiment.run(
        lambda trial: engine(trial, sets, memory), columns_of(cells, AXES, labels), label="trace", quiet=quiet
    )
    told = {"cells": cells, "over": axes_of(AXES), "labels": labels, "window": window, "subject": mask}
    return Trace.of(run, **told, answers=_spelled(model, pairs), **engine.ran)


def windowed(model: Model, centre: Cell, window: int) -> tuple[Cell, ...]:
    """The cell in every layer of a window around its own, cut at the ends of the model."""
    layers = range(centre.layer - window // 2, centre.layer + (window + 1) // 2)
    return tuple(replace(centre, layer=layer) for layer in model.layers_with(centre.site) if layer in layers)


def _prompts(model: Model, x: Any, right: str | int | Sequence[str | int] | None) -> TokenPairs:
    """The prompts against themselves, with their answers."""
    if isinstance(x, TokenPairs):
        if right is not None:
            raise BadInput("these pairs bring their answers; leave right= out, or give the prompts alone")
        return replace(x, corrupted=x.clean)
    tokens = model.tokens(x)
    answers: Any = [right] if isinstance(right, str | int) and len(tokens) == 1 else right
    if answers is None:
        logits = model.run(tokens, logits="last").logits
        assert logits is not None
        answers = logits.argmax(-1).tolist()
    given = texts_of(x) or tokens
    return TokenPairs.of(model, given, given, answers, joint=True, source="causal tracing")


def _spelled(model: Model, pairs: TokenPairs) -> tuple[str, ...]:
    """The right answer of every prompt as text; none where the pairs bring none."""
    right = pairs.right_tokens if pairs.joint else pairs.answers[0]
    rows = [] if right is None else right.tolist()
    return tuple("".join(model.str_token(token) for token in row if token >= 0) for row in rows)


def _subjects(model: Model, pairs: TokenPairs, subject: Subject | Sequence[Subject]) -> list[list[int]]:
    """The token indices of every prompt's subject."""
    rows = pairs.clean.rows()
    several = isinstance(subject, Sequence) and all(isinstance(one, Subject) for one in subject)
    if not isinstance(subject, Subject) and not several:
        raise BadInput(f"a subject is its words, a span's name, or its tokens as slice(2, 5), not {subject!r:.40}")
    each = [subject] * len(rows) if isinstance(subject, Subject) else list(subject)
    if len(each) != len(rows):
        raise BadInput(f"{len(each)} subjects for {len(rows)} prompts; give one for all, or one for each")
    found = []
    for number, (ids, one) in enumerate(zip(rows, each)):
        if isinstance(one, str):
            at = [int(pairs.spans[one][number])] if one in pairs.spans else _tokens_of(model, ids, one, number)
        else:
            at = list(range(len(ids))[one] if isinstance(one, slice) else one)
        if not at or not all(0 <= index < len(ids) for index in at):
            raise BadInput(f"the subject of prompt {number} is at {one}, but the prompt has {len(ids)} tokens")
        found.append(at)
    return found


def _tokens_of(model: Model, ids: list[int], words: str, number: int) -> list[int]:
    """The indices of the tokens that some words of a prompt are made of."""
    text, words = model.text(ids, special=True), words.strip()
    if not words or text.count(words) != 1:
        times = text.count(words) if words else 0
        raise BadInput(
            f"the subject {words!r} stands {times} times in prompt {number}, {text!r}; once is needed, or give its "
            "tokens, as slice(2, 5)"
        )
    if model.tokens([text]).rows()[0] != ids:
        raise BadInput(
            f"the tokens of prompt {number} are not what its text is read as; give the subject's, as slice(2, 5)"
        )
    start = text.index(words)
    return tokens_at(model, text, start, start + len(words))


def _spans(pairs: TokenPairs, chosen: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    last = torch.tensor([max(at) for at in chosen])
    end = pairs.clean.lengths.cpu() - 1
    spans = {"subject_first": torch.tensor([min(at) for at in chosen]), "subject_last": last, "end": end}
    return spans | ({"after_subject": last + 1} if bool((last < end).all()) else {})


def _starred(labels: dict[Any, str], pairs: TokenPairs, chosen: Sequence[Sequence[int]]) -> dict[Any, str]:
    """A star behind tokens that are noised in every prompt."""
    lengths = pairs.clean.lengths.tolist()
    return {
        at: f"{label}*" if all(at % n in indices for n, indices in zip(lengths, chosen)) else label
        for at, label in labels.items()
    }
