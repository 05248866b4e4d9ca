"""What all lenses take: prompts, the layers that are read, where the result goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ...errors import BadInput
from ..options import Chat, Layers, Machine, ModelArgument, OutFile, Printing, Prompts, layer_numbers, option
from ..output import as_json, frame, notice

if TYPE_CHECKING:
    from pandas import DataFrame

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


@dataclass(frozen=True)
class Written(Printing):
    """Where the result goes: the terminal, JSON, and a file."""

    out: OutFile = None

    def check_colour(self, value: str | None) -> dict[str, str]:
        """The option of a picture. Raises `BadInput` when no picture is written."""
        if value is not None and self.out is None:
            raise BadInput("--value colours the picture, and no picture is asked for: add --out FILE.html")
        return {} if value is None else {"value": value}

    def save(self, result: Any, **plot: Any) -> None:
        if self.out is not None:
            result.save(self.out, **plot)

    def show(self, table: "DataFrame", title: str) -> None:
        as_json(table) if self.json else frame(table, title)

    def say_where(self) -> None:
        if self.out is not None and not self.quiet:
            notice(f"written: {self.out}")


def likeliest(words: Sequence[str], probabilities: Sequence[float]) -> str:
    return "  ".join(f"{word!r} {p:.2f}" for word, p in zip(words, probabilities))
