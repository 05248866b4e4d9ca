"""RAVEL-style disentanglement: is one attribute of an entity exchanged through latents, and the others left alone?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from ..dictionaries import Codes, Dictionary
from ..dictionaries.rerun import rerun
from ..errors import BadInput
from ..models import Model
from ..progress import Meter, say
from ..statistics import Interval, wilson
from .baselines import arms
from .facts import Fact, Knowledge, Known, batch, known_facts
from .task import ALL, Score, Scores, TaskConfig, check_one_site, mean_interval, resampled

FEWEST = 8  # pairs of a sort, to train on or to test, below which an attribute is left out
COLDEST = 1e-4  # temperature of the last step; the first has 1
TEST_SHARE = 0.4  # of the entities
INTERVAL = "95 %: of an attribute Wilson's; of their means, test pairs drawn again"


class DisentanglementConfig(TaskConfig):
    folder: str | None = Field(default=None, description="RAVEL's folder `data`; default: the bundled cities")
    entity: str = Field(default="city", description="kind of entity, as RAVEL's files name it")
    attributes: tuple[str, ...] = Field(
        default=("Country", "Continent", "Language"), min_length=2, description="attributes, as RAVEL's files name them"
    )
    entities: int = Field(default=60, ge=10, description="entities, drawn by the seed")
    prompts: int = Field(default=2, ge=1, description="prompts of each attribute")
    pairs: int = Field(default=32, ge=FEWEST, description="pairs of each sort that a mask is trained on")
    test_pairs: int = Field(default=48, ge=FEWEST, description="pairs of each sort that it is tested on")
    epochs: int = Field(default=2, ge=1, description="passes over the training pairs")
    lr: float = Field(default=0.05, gt=0, description="Adam's, of the mask")
    error: bool = Field(default=True, description="keep what the dictionary does not rebuild; SAEBench does not")
    draws: int = Field(default=1000, ge=100, description="of the bootstrap")
    batch_size: int = Field(default=16, ge=1, description="pairs a training step, and prompts a forward pass")


class Pair(NamedTuple):
    """A prompt to change, and one whose latents are put in. target: what the model should say then."""

    base: Fact
    source: Fact
    target: int


class Pairs(NamedTuple):
    """cause: both prompts ask for the attribute, and it changes. isolation: the base asks for another attribute, in
    which the entities differ, and the answer stays."""

    cause: list[Pair]
    isolation: list[Pair]


def disentanglement(
    model: Model, dictionary: Dictionary, config: DisentanglementConfig | None = None, *, quiet: bool = False
) -> Scores:
    """How well latents tell attributes of entities apart, as RAVEL (Huang et al. 2024, arXiv:2402.17700) and SAEBench
    do with a binary mask over latents, of the dictionary and its baselines.

    For each attribute a mask is learnt: latents in it take the value that they have at another entity. cause: share of
    test pairs in which the model then says the other entity's attribute; isolation: share in which another attribute
    stays; "disentangle": the mean of both, 0.5 for a mask that takes nothing, or everything. Masks start at 0, with a
    sigmoid that hardens; they are trained on pairs of some cities and tested on pairs of others.

    Only facts that the model knows are used (first token of the answer); how many is told in the notes.

    Raises:
        BadInput: a transcoder, or a model that knows too few facts. Mismatch: a dictionary of another model.
        BadFile, UnknownName: as `Knowledge.read`.
    """
    config = config or DisentanglementConfig.parse({})
    dictionary.check(model)
    check_one_site(dictionary, "disentanglement")
    knowledge = Knowledge.read(config.folder, config.entity, config.attributes)
    sizes = {"entities": config.entities, "forms": config.prompts, "seed": config.seed, "batch_size": config.batch_size}
    known = known_facts(model, dictionary.site, knowledge, **sizes, quiet=quiet)
    made = {name: drawn_pairs(known, name, config) for name in config.attributes}
    usable = {name: both for name, both in made.items() if min(len(side) for part in both for side in part) >= FEWEST}
    told = ", ".join(f"{name} {known.known[name]} of {known.tried[name]}" for name in config.attributes)
    if not usable:
        raise BadInput(f"{model.name} knows too little to test ({told}); give more entities, prompts or a larger model")
    notes = [f"Right answers of {model.name}: {told}; the others are left out.", "Nothing exchanged gives 0.5."]
    notes.append("Intervals take pairs as independent, although cities occur in several: they are somewhat too narrow.")
    notes += [f"{name} has too few pairs and is left out." for name in made if name not in usable]
    texts = [knowledge.prompts[name][0] % entity for name in usable for entity in list(knowledge.values)[:20]]
    scores: list[Score] = []
    for arm, one in arms(model, dictionary, texts, seed=config.seed).items():
        say(f"disentanglement: {arm}", quiet)
        scores += _scores(model, arm, one, usable, config, quiet)
    extra: dict[str, Any] = {"interval": INTERVAL, "tested": list(usable)}
    return Scores.of("disentanglement", scores, "disentangle", notes=notes, **config.model_dump(mode="json"), **extra)


# ---------------------------------------------------------------------- pairs
def drawn_pairs(known: Known, attribute: str, config: DisentanglementConfig) -> tuple[Pairs, Pairs]:
    """Pairs to train on, and pairs to test on, of entities that the former do not have."""
    rng = np.random.default_rng(config.seed + 1)
    names = sorted({fact.entity for fact in known.facts})
    test = {names[i] for i in rng.permutation(len(names))[: round(TEST_SHARE * len(names))]}
    found = []
    for of_test, most in ((False, config.pairs), (True, config.test_pairs)):
        facts = [fact for fact in known.facts if (fact.entity in test) == of_test]
        sources = [fact for fact in facts if fact.attribute == attribute]
        bases = [fact for fact in facts if fact.attribute != attribute]
        cause = _some(known, sources, sources, attribute, most, rng)
        found.append(Pairs(cause, _some(known, bases, sources, attribute, most, rng)))
    return found[0], found[1]


def _some(
    known: Known, bases: Sequence[Fact], sources: Sequence[Fact], attribute: str, most: int, rng: np.random.Generator
) -> list[Pair]:
    """Up to `most` different pairs, with entities that differ in what the base asks for."""
    found: list[Pair] = []
    total = len(bases) * len(sources)
    for number in rng.permutation(total):
        base, source = bases[number // len(sources)], sources[number % len(sources)]
        other = known.answers.get((source.entity, base.attribute, base.form))
        if other is not None and other != base.answer:
            found.append(Pair(base, source, other if base.attribute == attribute else base.answer))
        if len(found) == most:
            break
    return found


# ---------------------------------------------------------------------- masks
def exchanged(
    dictionary: Dictionary,
    x: Float[Tensor, "n d"],
    source: Float[Tensor, "n d"],
    mask: Float[Tensor, "width"],
    *,
    error: bool = True,
) -> Float[Tensor, "n d"]:
    """x with (1 - mask) of its own latents and mask of the source's.

    error: keep what the dictionary does not rebuild of x, so that a mask of zeros changes nothing. SAEBench 0.6 does
    not by default: its reconstruction stands in for x.
    """
    with torch.no_grad():
        own, other = dictionary.encode(x), dictionary.encode(source)
        before, after = own.dense(), other.dense()
    mixed = before + mask * (after - before)
    indices = torch.arange(dictionary.width, device=x.device).expand(mixed.shape)
    rebuilt = dictionary.decode(Codes(mixed, indices, dictionary.width, own.norm, own.predicted), like=x)
    return rebuilt + (x - dictionary.decode(own, like=x)) if error else rebuilt


def said(
    model: Model,
    dictionary: Dictionary,
    pairs: Sequence[Pair],
    mask: Float[Tensor, "width"],
    *,
    error: bool,
    grad: bool = False,
) -> Float[Tensor, "n vocab"]:
    """Logits of the answers to the base prompts, with latents exchanged at the entity's last token."""
    tokens = batch(model, [pair.base.ids for pair in pairs])
    d = pairs[0].base.state.shape[1:]
    value = torch.zeros(*tokens.ids.shape, *d, device=model.device)
    for row, pair in enumerate(pairs):
        value[row, : len(pair.base.ids)] = pair.base.state.to(value)
    rows, at = torch.arange(len(pairs)), torch.tensor([pair.base.at for pair in pairs])
    x = value[rows, at].flatten(1)
    source = torch.stack([pair.source.state[pair.source.at] for pair in pairs]).to(x).flatten(1)
    new = exchanged(dictionary, x, source, mask, error=error).reshape(value[rows, at].shape)
    value = value.index_put((rows.to(x.device), at.to(x.device)), new)
    site = dictionary.site
    return rerun(model, tokens, site, value.to(model.dtype), logits="last", grad=grad).flatten(0, -2)


def learnt_mask(
    model: Model, dictionary: Dictionary, pairs: Pairs, config: DisentanglementConfig, meter: Meter | None = None
) -> Bool[Tensor, "width"]:
    """Latents that carry an attribute: logits from 0, sigmoid(logits / temperature) in training (1 to 1e-4, in equal
    ratios), cross-entropy over pairs of both sorts together, as SAEBench's MDBM; in the mask is what ends above 0."""
    logits = torch.zeros(dictionary.width, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=config.lr)
    together = [*pairs.cause, *pairs.isolation]
    rng = np.random.default_rng(config.seed + 2)
    steps = config.epochs * -(-len(together) // config.batch_size)
    temperatures = iter(np.geomspace(1, COLDEST, steps).tolist())
    for _ in range(config.epochs):
        order = rng.permutation(len(together))
        for start in range(0, len(together), config.batch_size):
            some = [together[i] for i in order[start : start + config.batch_size]]
            mask = torch.sigmoid(logits / next(temperatures))
            answer = said(model, dictionary, some, mask, error=config.error, grad=True)
            loss = F.cross_entropy(answer.float(), torch.tensor([pair.target for pair in some], device=model.device))
            (logits.grad,) = torch.autograd.grad(loss, logits)
            optimizer.step()
            if meter is not None:
                meter.advance(len(some), loss=loss.item())
    return logits.detach() > 0


def hits(
    model: Model, dictionary: Dictionary, pairs: Sequence[Pair], mask: Bool[Tensor, "width"], *, error: bool, size: int
) -> np.ndarray:
    """Whether each pair's target is what the model says."""
    found: list[bool] = []
    for start in range(0, len(pairs), size):
        some = pairs[start : start + size]
        with torch.no_grad():
            answers = said(model, dictionary, some, mask.float(), error=error).argmax(-1).tolist()
        found += [token == pair.target for token, pair in zip(answers, some)]
    return np.array(found, dtype=float)


def _scores(
    model: Model,
    arm: str,
    dictionary: Dictionary,
    usable: dict[str, tuple[Pairs, Pairs]],
    config: DisentanglementConfig,
    quiet: bool,
) -> list[Score]:
    rng = np.random.default_rng(config.seed + 3)
    scores: list[Score] = []
    total: dict[str, list[tuple[float, np.ndarray]]] = {"cause": [], "isolation": [], "disentangle": []}
    work = config.epochs * sum(len(train.cause) + len(train.isolation) for train, _ in usable.values())
    with Meter(f"disentanglement: {arm}", total=work, unit="pair", quiet=quiet) as meter:
        for name, (train, test) in usable.items():
            mask = learnt_mask(model, dictionary, train, config, meter)
            options: dict[str, Any] = {"error": config.error, "size": config.batch_size}
            sides = {sort: hits(model, dictionary, getattr(test, sort), mask, **options) for sort in Pairs._fields}
            for sort, right in sides.items():
                scores.append(Score(arm, name, sort, None, wilson(int(right.sum()), len(right))))
                total[sort].append((float(right.mean()), _drawn(right, config.draws, rng)))
            both = [total[sort][-1] for sort in Pairs._fields]
            middle = float(np.mean([value for value, _ in both])), np.mean([drawn for _, drawn in both], axis=0)
            total["disentangle"].append(middle)
            scores.append(Score(arm, name, "disentangle", None, mean_interval([middle[0]], [middle[1]])))
            scores.append(Score(arm, name, "share of latents", None, _exact(float(mask.float().mean()))))
    for measure, parts in total.items():
        values, drawn = zip(*parts)
        scores.append(Score(arm, ALL, measure, None, mean_interval(values, drawn)))
    return scores


def _drawn(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    return resampled(lambda rows: float(values[rows].mean()), len(values), draws=draws, rng=rng)


def _exact(value: float) -> Interval:
    return Interval(value, float("nan"), float("nan"))


# ---------------------------------------------------------------------- as SAEBench counts
def saebench_scores(
    predicted: Int[Tensor, "n"], source: Int[Tensor, "n"], base: Int[Tensor, "n"]
) -> tuple[float, float, int, int]:
    """cause, isolation, and how many pairs each has, as sae-bench 0.6.0: a pair whose source and base labels are the
    same is one of isolation, whatever it was drawn for; a sort without pairs scores 0."""
    isolation = source == base
    counts = [int(kind.sum()) for kind in (~isolation, isolation)]
    right = [int(((predicted == source) & kind).sum()) for kind in (~isolation, isolation)]
    cause, kept = (hit / count if count else 0.0 for hit, count in zip(right, counts))
    return cause, kept, counts[0], counts[1]
