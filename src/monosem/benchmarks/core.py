"""Reconstruction, sparsity and the cost of splicing, beside the baselines."""

from pydantic import Field

from ..data import Document, corpus
from ..dictionaries import Dictionary, evaluate
from ..models import Model
from ..progress import say
from .baselines import arms
from .labelled import bundled_sets, clipped, labelled
from .task import ALL, Score, Scores, TaskConfig

MEASURES = ("fve", "l0", "ce_recovered", "ce_recovered_counted", "kl", "mse")
SAMPLE = 20  # texts of each bundled set on which L0 is measured


class CoreConfig(TaskConfig):
    texts: tuple[str, ...] = Field((), description="text files; default: the sentences of the bundled sets")
    tokens: int = Field(20_000, ge=1000, description="how much of the text")
    context: int = Field(128, ge=8, description="tokens a window")
    batch_size: int = Field(8, ge=1, description="windows a forward pass")


def core(model: Model, dictionary: Dictionary, config: CoreConfig | None = None, *, quiet: bool = False) -> Scores:
    """`evaluate` for the dictionary and its baselines, on the same text, which it should not have been trained on.

    Errors as `evaluate`.
    """
    config = config or CoreConfig.parse({})
    scores: list[Score] = []
    for arm, one in arms(model, dictionary, clipped(model, sample(), config.context), seed=config.seed).items():
        say(f"core: {arm}", quiet)
        found = evaluate(
            model,
            one,
            _texts(model, config, quiet),
            tokens=config.tokens,
            context=config.context,
            batch_size=config.batch_size,
            quiet=quiet,
        )
        scores += [Score(arm, ALL, name, None, found.intervals[name]) for name in MEASURES]
    told = {"interval": "95 %, windows of text drawn again", "text_sha256": found.config["text_sha256"]}
    return Scores.of("core", scores, "fve", **config.model_dump(mode="json"), **told)


def sample() -> list[str]:
    """Some texts of every bundled set."""
    return [text for name in bundled_sets() for text in labelled(name).texts[:SAMPLE]]


def _texts(model: Model, config: CoreConfig, quiet: bool) -> list[Document]:
    if config.texts:
        return list(corpus(model, [*config.texts], quiet=quiet))
    return [Document(name, "\n".join(labelled(name).texts)) for name in bundled_sets()]
