"""What an activation is put into: the target prompt, its model and place, and the map on the way."""

from dataclasses import dataclass
from typing import Any, Literal

from ...errors import BadInput
from ...models import Model, TokenBatch
from .affine import MapLike

Position = int | Literal["same"]


@dataclass(frozen=True)
class TargetPrompt:
    """T, i*, M*, l* and f. `dataclasses.replace(TOKEN_IDENTITY, layer=3)` gives the identity prompt another layer.

    Attributes:
        text: T, anything that `Model.run` takes, one prompt.
        position: i*, the token that is overwritten, negative from the end, or "same" for the source's own position.
        read: token after which the next-token distribution is read, or "same" for the overwritten one.
        layer: l*; "same" is the source's layer.
        model: M*; the source's own model by default. Another width needs a `mapping`.
        mapping: f: None (identity), a function of `[batch, d_model]`, or one for each source layer `{layer: f}`;
            `Affine.fit` makes one.
        match_norm: rescale f(h) to the norm of what it overwrites.
    """

    text: Any
    position: Position = -1
    read: Position = -1
    layer: int | Literal["same"] = "same"
    model: Model | None = None
    mapping: MapLike = None
    match_norm: bool = False

    def tokens(self, model: Model) -> TokenBatch:
        """Raises `BadInput` when it is not one prompt."""
        host = model.tokens(self.text).to(model.device)
        if len(host) != 1:
            raise BadInput(f"the target is one prompt, got {len(host)}")
        return host


# the paper's two: what token is this, and what entity
TOKEN_IDENTITY = TargetPrompt("cat->cat; 1135->1135; hello->hello; ?")
ENTITY_DESCRIPTION = TargetPrompt(
    "Syria: Syria is a country in the Middle East, "
    "Leonardo DiCaprio: Leonardo DiCaprio is an American actor, "
    "Samsung: Samsung is a South Korean multinational major appliance and consumer electronics corporation, x"
)
