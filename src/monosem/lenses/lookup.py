"""What `lens=` may be, in every analysis of this room."""

import os
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Model, Site
from .states import Translate
from .tuned.lens import TunedLens


class Lens(Protocol):
    """What maps states into the basis of the last stream."""

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]: ...


LensLike = Lens | Translate | str | os.PathLike[str] | None


def lens_of(model: Model, lens: LensLike) -> tuple[str, Translate | None]:
    """The name of a lens, and what an analysis sees states through.

    Args:
        lens: None is the logit lens; "tuned" the model's shipped tuned lens; a lens or the folder of a tuned one; any
            object with `translate(site, states)`; or such a function itself.

    Raises:
        Mismatch: a lens of another model. UnknownName: no tuned lens of that name. BadInput: no lens at all.
    """
    if lens is None:
        return "logit lens", None
    if isinstance(lens, str | os.PathLike):
        lens = TunedLens.load(model.name if lens == "tuned" else lens)
    if (check := getattr(lens, "check", None)) is not None:
        check(model)
    if isinstance(lens, TunedLens):
        lens.to(model.device)
    translate = getattr(lens, "translate", lens)
    if not callable(translate):
        raise BadInput(f"a lens is None, 'tuned', a folder, or has translate(site, states), not {lens!r}")
    return str(getattr(lens, "name", None) or getattr(lens, "__name__", "lens")), translate
