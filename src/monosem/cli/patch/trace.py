"""`monosem patch trace`: noise on a subject's tokens, and which states bring the answer back."""

from dataclasses import dataclass
from typing import Annotated, Any

from ..options import Layers, Prompts, Seed, Top, layer_numbers, names, option
from ..output import frame, show
from .pairs import Positions, positions_of

Subject = Annotated[list[str], option("TEXT", "Words that stand once in the prompt; one for all, or one for each.")]
Answer = Annotated[list[str] | None, option("TEXT", "An answer for each prompt (default: what the model says next).")]
Sites = Annotated[str, option("LIST", "What is restored: resid_post, mlp_out, attn_out.")]
Window = Annotated[int, option("N", "Layers restored at once, around every layer.", min=1)]
Sd = Annotated[float, option("X", "Size of the noise, in standard deviations of the embeddings.")]
Of = Annotated[str, option("NAME", "Of which embeddings: noised (the subject's), prompts, vocabulary; or a number.")]
Samples = Annotated[int, option("N", "Draws of noise that are averaged.", min=1)]
Metric = Annotated[str, option("NAME", "probability, log_probability, negative_kl, ...")]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What is added to the embeddings of the subject."""

    sd: Sd = 3.0
    of: Of = "noised"
    samples: Samples = 10
    seed: Seed = 0

    @property
    def options(self) -> dict[str, Any]:
        """As `patching.trace` takes them."""
        try:
            of: Any = float(self.of)
        except ValueError:
            of = self.of
        return {"sd": self.sd, "of": of, "samples": self.samples, "seed": self.seed}


def trace(
    prompts: Prompts,
    noise: Noise,
    subject: Subject,
    answer: Answer = None,
    sites: Sites = "resid_post",
    window: Window = 1,
    layers: Layers = None,
    positions: Positions = None,
    metric: Metric = "probability",
    top: Top = 10,
) -> None:
    """Trace where a fact about a subject is recalled.

    Adds noise to the embeddings of the subject's tokens, restores one state at a time (or the outputs of a window of
    layers), and measures how much of the answer's probability comes back (causal tracing, Meng et al. 2022).

    Example: monosem patch trace smollm2 "The Eiffel Tower is in the city of" --subject "Eiffel Tower" --out trace.html
    """
    from ...patching import trace as traced

    model = prompts.load()
    subjects = subject if len(subject) > 1 else subject[0]
    result = traced(
        model, prompts.texts(model), subjects, answer, sites=names(sites), window=window, metric=metric,
        layers=layer_numbers(layers, model.cfg.n_layers), positions=positions_of(positions),
        quiet=prompts.silent, **noise.options,
    )  # fmt: skip

    def shown() -> None:
        name = result.metrics[0]
        ends = f"{float(result.clean[name].mean()):.4g} clean, {float(result.corrupted[name].mean()):.4g} noised"
        answers = ", ".join(map(repr, dict.fromkeys(result.answers)))
        show(f"{len(result.answers)} prompts, answers {answers}, {name}: {ends}")
        frame(result.top(top), f"largest effects of {len(result):,} restored places, window {window}")

    prompts.give(result, shown)
