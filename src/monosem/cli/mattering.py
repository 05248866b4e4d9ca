"""`monosem latents matter`: what each latent does for an answer, estimates beside exact ablation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ..errors import BadInput
from .options import Giving, OnDictionary, Top, argument, names, option
from .output import frame
from .patch.pairs import Pairs

if TYPE_CHECKING:
    from ..data import TokenPairs
    from ..models import Model


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt and its answers, instead of pairs."""

    prompt: Annotated[str | None, argument("[PROMPT]", "The prompt; or pairs, by --task or --pairs.")] = None
    right: Annotated[str | None, option("TOKEN", "Of a prompt: the answer (default: the likeliest token).")] = None
    wrong: Annotated[str | None, option("TOKEN", "Of a prompt: subtract this token's logit (default: none).")] = None

    def pairs(self, model: "Model") -> "TokenPairs":
        """The prompt on both sides: what is taken away has no value of its own in another prompt."""
        from ..data import TokenPairs

        assert self.prompt is not None
        best = self.right or _likeliest(model, self.prompt)
        wrong = None if self.wrong is None else [self.wrong]
        return TokenPairs.of(model, [self.prompt], [self.prompt], [best], wrong, source="a prompt")


def _likeliest(model: "Model", prompt: str) -> int:
    logits = model.run(prompt, logits="last").logits
    assert logits is not None
    return int(logits.argmax())


@dataclass(frozen=True, kw_only=True)
class OfLatents(Giving, OnDictionary):
    """Latents of a dictionary, and where what is found goes."""


def matter(
    asked: OfLatents,
    one: Prompt,
    pairs: Pairs,
    methods: Annotated[
        str, option("LIST", "How latents are scored: direct, attribution, integrated.")
    ] = "attribution,integrated",
    exact: Annotated[int, option("N", "Take this many away one by one: the largest, and random ones.", min=2)] = 40,
    other: Annotated[str, option("zero|corrupted", "What a latent has when it is taken away.")] = "zero",
    steps: Annotated[int, option("N", "Gradients of integrated.", min=1)] = 10,
    top: Top = 15,
) -> None:
    """Score what latents do for an answer, and check the scores.

    A score is by how much the metric falls without the latent: above zero, it helps. All latents and the dictionary's
    error are scored by one or a few gradients; then some are taken away one by one, and both stand side by side. The
    picture (--out FILE.html) is a scatter of both.

    Example: monosem latents matter smollm2/resid_post.15 "The capital of Italy is the city of" --right " Rome"

    Example: monosem latents matter smollm2/resid_post.15 --task ioi --n 8 --other corrupted
    """
    from ..latents import check_latents

    alone = one.prompt is not None
    if alone and (pairs.task or pairs.pairs):
        raise BadInput("give a PROMPT, or pairs by --task or --pairs, not both")
    if alone and other != "zero":
        raise BadInput("a prompt alone has no corrupted one: leave --other out, or give pairs by --task or --pairs")
    if not alone:
        if one.right or one.wrong:
            raise BadInput("--right and --wrong go with a PROMPT; pairs have answers of their own")
        pairs.check(one_token="latent_scores")
    dictionary, model = asked.load()
    prompts = one.pairs(model) if alone else pairs.of(model)
    metric = pairs.metric or ("log_probability" if prompts.wrong is None and alone else None)
    found = check_latents(
        model, prompts, dictionary, names(methods), n=exact, metric=metric, other=other, steps=steps,  # type: ignore[arg-type]
        seed=pairs.seed, quiet=asked.silent,
    )  # fmt: skip

    def shown() -> None:
        frame(found.top(top), f"what goes without each ({found.exact.metric}, {len(prompts)} prompts)")
        frame(found.summary, "scores against exact ablation")

    asked.give(found, shown, json={"latents": found.table, "summary": found.summary})
