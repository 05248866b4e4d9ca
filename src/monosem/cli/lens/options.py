"""What all lenses take: prompts, the layers that are read, where the result goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ...errors import BadInput
from ..options import Layers, Prompts, layer_numbers, option

if TYPE_CHECKING:
    from ...models import Model

Lens = Annotated[
    str | None, option("PATH", "The file or folder of a lens, or tuned for the shipped one (default: logit lens).")
]
Likeliest = Annotated[int, option("N", "Likeliest tokens to show.", min=1)]
Value = Annotated[str | None, option("NAME", "What colours the picture: probability, entropy, rank, kl, js...")]
Position = Annotated[int, option("N", "The token to show in the table: 0 is the first, -1 the last.")]
Site = Annotated[str, option("NAME", "resid_post, resid_pre, resid_mid, attn_out or mlp_out.")]


@dataclass(frozen=True, kw_only=True)
class Reading(Prompts):
    """A model, its prompts, and the layers at which it is read."""

    site: Site = "resid_post"
    layers: Layers = None

    def options(self, model: "Model") -> dict[str, Any]:
        """The options that every lens takes."""
        layers = layer_numbers(self.layers, model.cfg.n_layers)
        return {"site": self.site, "layers": layers, "quiet": self.silent}

    def colour(self, value: str | None) -> dict[str, str]:
        """The option of a picture. Raises `BadInput` when no picture is written."""
        if value is not None and self.out is None:
            raise BadInput("--value colours the picture, and no picture is asked for: add --out FILE.html")
        return {} if value is None else {"value": value}


def token_at(position: int, tokens: Sequence[int], whose: str) -> int:
    """The token at `--position`. Raises `BadInput` where `whose` (a prompt has, prompts have) tokens are fewer."""
    if not -len(tokens) <= position < len(tokens):
        raise BadInput(f"--position {position}: {whose} {len(tokens)} tokens")
    return tokens[position]


def likeliest(words: Sequence[str], probabilities: Sequence[float]) -> str:
    return "  ".join(f"{word!r} {p:.2f}" for word, p in zip(words, probabilities))
