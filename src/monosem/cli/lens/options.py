"""What all lenses take: prompts, the layers that are read, where the result goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ..options import Chat, Layers, Machine, ModelArgument, Printing, Prompts, layer_numbers, option

if TYPE_CHECKING:
    from ...models import Model

Lens = Annotated[str | None, option("--lens", "DIR", "Read through this tuned lens, or the one shipped: tuned.")]
Top = Annotated[int, option("--top", "N", "Likeliest tokens to show.", min=1)]
Value = Annotated[
    str | None, option("--value", "NAME", "What colours the picture: probability, entropy, rank, kl, js...")
]
Position = Annotated[
    int | None, option("--position", "N", "The token to show in the table, from 0 or -1 for the last.")
]
Site = Annotated[str, option("--site", "NAME", "resid_post, resid_pre, resid_mid, attn_out or mlp_out.")]


@dataclass(frozen=True)
class Reading:
    """A model, its prompts, and the layers at which it is read."""

    model: ModelArgument
    prompts: Prompts
    site: Site = "resid_post"
    layers: Layers = None
    chat: Chat = False

    def load(self, machine: Machine, printing: Printing) -> "tuple[Model, list[str], dict[str, Any]]":
        """The model, the texts, and the options that every lens takes."""
        model = machine.load(self.model, printing.silent)
        texts = [model.chat(prompt) for prompt in self.prompts] if self.chat else self.prompts
        layers = layer_numbers(self.layers, model.cfg.n_layers)
        return model, texts, {"site": self.site, "layers": layers, "quiet": printing.silent}


def likeliest(words: Sequence[str], probabilities: Sequence[float]) -> str:
    return "  ".join(f"{word!r} {p:.2f}" for word, p in zip(words, probabilities))
