"""Reconstruction, sparsity and the cost of splicing, beside the baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from ..data import Document, as_store, corpus
from ..dictionaries import Dictionary, evaluate_each
from ..models import Model
from ..progress import say
from .baselines import arms, fitted
from .labelled import bundled_sets, clipped, labelled
from .task import ALL, RAW, WITHOUT, Score, Scores, TaskConfig

MEASURES = ("fve", "l0", "ce_recovered", "ce_recovered_counted", "kl", "mse")
SAMPLE = 20  # texts of each bundled set on which L0 is measured
ENOUGH = 10  # tokens a dimension that a linear map wants
IN_TURN = 10  # texts of each bundled set before the next one's: the first tokens have some of all


class CoreConfig(TaskConfig):
    texts: tuple[str, ...] = Field((), description="text files; default: the bundled sets, some of each in turn")
    tokens: int = Field(20_000, ge=1000, description="how much of the text")
    fit_tokens: int = Field(20_000, ge=1000, description="of the text after that, for baselines of transcoders")
    context: int = Field(128, ge=8, description="tokens a window")
    batch_size: int = Field(8, ge=1, description="windows a forward pass")


def core(model: Model, dictionary: Dictionary, config: CoreConfig | None = None, *, quiet: bool = False) -> Scores:
    """`evaluate` for the dictionary and its baselines, on the same text, which it should not have been trained on.

    A transcoder's output has baselines that are fitted on text after that (`baselines.fitted`); where the text is too
    short, they are left out, and a note says so.

    Errors as `evaluate`.
    """
    return core_each(model, {"": dictionary}, config, quiet=quiet)[""]


def core_each(
    model: Model, dictionaries: Mapping[str, Dictionary], config: CoreConfig | None = None, *, quiet: bool = False
) -> dict[str, Scores]:
    """`core` for several dictionaries (name -> dictionary), which share passes (`evaluate_each`): best of one site.

    Errors as `evaluate`.
    """
    config = config or CoreConfig.parse({})
    prompts = clipped(model, sample(), config.context)
    each = {called: arms(model, one, prompts, seed=config.seed) for called, one in dictionaries.items()}
    texts = texts_of(model, config, quiet)
    notes: dict[str, list[str]] = {called: [] for called in dictionaries}
    if any(one.transcoder for one in dictionaries.values()):
        windows = _after(model, config, texts)
        for called, one in dictionaries.items():
            if one.transcoder:
                each[called], notes[called] = _with_fitted(model, one, each[called], windows, config)
    named = {f"{called}, {arm}": one for called, made in each.items() for arm, one in made.items()}
    say(f"core: {', '.join(next(iter(each.values())))}", quiet)
    found = evaluate_each(
        model,
        named,
        texts,
        tokens=config.tokens,
        context=config.context,
        batch_size=config.batch_size,
        quiet=quiet,
    )
    told: dict[str, Any] = {"interval": "95 %, windows of text drawn again"} | config.model_dump(mode="json")
    scores = {}
    for called, made in each.items():
        of_arms = {arm: found[f"{called}, {arm}"] for arm in made}
        rows = [Score(arm, ALL, name, None, one.intervals[name]) for arm, one in of_arms.items() for name in MEASURES]
        sha = next(iter(of_arms.values())).config["text_sha256"]
        own = {
            "text_sha256": sha,
            "site": str(dictionaries[called].site),
            "site_out": str(dictionaries[called].site_out),
        }
        scores[called] = Scores.of("core", rows, "fve", notes=notes[called], **(told | own))
    return scores


def _after(model: Model, config: CoreConfig, texts: Sequence[Document]) -> Int[Tensor, "windows pos"]:
    """Windows of the text after what is measured."""
    measured = len(as_store(model, texts, config.context, tokens=config.tokens))
    store = as_store(model, texts, config.context, tokens=measured * config.context + config.fit_tokens)
    return store[measured : len(store)]


def _with_fitted(
    model: Model, transcoder: Dictionary, made: dict[str, Dictionary], windows: Tensor, config: CoreConfig
) -> tuple[dict[str, Dictionary], list[str]]:
    """The arms of a transcoder, and what there is to say of them."""
    if not len(windows):
        del made[RAW]
        return made, ["No text is left to fit the linear map and the constant of a transcoder without latents on."]
    skip = "the mean output" if transcoder.W_skip is None else "its skip connection with the mean put right"
    note = f"{RAW.capitalize()} of a transcoder: the best linear map. {WITHOUT.capitalize()}: {skip}. "
    few = " (few: the map could be better)" if windows.numel() < ENOUGH * transcoder.d_in else ""
    note += f"Both are fitted on {windows.numel():,} tokens{few} of the text after what is measured."
    return made | fitted(model, transcoder, windows, batch_size=config.batch_size), [note]


def sample() -> list[str]:
    """Some texts of every bundled set."""
    return [text for name in bundled_sets() for text in labelled(name).texts[:SAMPLE]]


def texts_of(model: Model, config: CoreConfig, quiet: bool) -> list[Document]:
    if config.texts:
        return list(corpus(model, [*config.texts], quiet=quiet))
    texts = {name: labelled(name).texts for name in bundled_sets()}
    starts = range(0, max(map(len, texts.values())), IN_TURN)
    return [
        Document(f"{name} {start}", "\n".join(some))
        for start in starts
        for name, own in texts.items()
        if (some := own[start : start + IN_TURN])
    ]
