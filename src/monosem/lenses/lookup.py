"""What `lens=` may be, in every analysis of this room."""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Layers, Model, Site
from .fitted import Fitted, load_any
from .states import Translate, sites_at
from .tuned.lens import TunedLens


class Lens(Protocol):
    """What maps states into the basis of the last stream."""

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]: ...


LensLike = Lens | Translate | str | os.PathLike[str] | None


@dataclass(frozen=True)
class Sight:
    """What an analysis sees states through, and where.

    Attributes:
        lens: its name. translate: None for the logit lens. sites: one a layer.
    """

    lens: str
    translate: Translate | None
    sites: list[Site]


def sight(model: Model, lens: LensLike, site: str, layers: Layers = None) -> Sight:
    """A lens at a place of some layers.

    Args:
        lens: None is the logit lens; "tuned" the model's shipped tuned lens; a lens of this room or the file of one;
            any object with `translate(site, states)`; or such a function itself.
        layers: None is all that the lens reads there.

    Raises:
        Mismatch: a lens of another model. UnknownName: no lens of that name; no such site or layer. BadFile: a file
            that holds no lens. BadInput: no lens at all, or one that reads in another way.
    """
    held: Any = lens_of(model, lens) if isinstance(lens, str | os.PathLike) else lens
    if isinstance(held, Fitted):
        held = held.on(model)
        if not hasattr(held, "translate"):
            own = type(held).__name__
            raise BadInput(f"this {held.kind} lens reads in its own way: monosem.lenses.{own}.{held.called}")
    elif (check := getattr(held, "check", None)) is not None:
        check(model)
    if layers is None and (read := getattr(held, "layers_at", None)) is not None:
        layers = read(site)
    translate = getattr(held, "translate", held)
    if translate is not None and not callable(translate):
        raise BadInput(f"a lens is None, 'tuned', a file, or has translate(site, states), not {lens!r}")
    name = "logit lens" if held is None else getattr(held, "name", None) or getattr(held, "__name__", "lens")
    return Sight(str(name), translate, sites_at(model, site, layers))


def lens_of(model: Model, name: str | os.PathLike[str]) -> Fitted:
    """The lens that a name or a file is: "tuned" or a model's name for a shipped tuned lens, else a saved one."""
    if name == "tuned":
        return TunedLens.load(model.name)
    shipped = name in TunedLens.shipped() or not os.path.exists(name)  # which says what there is
    return TunedLens.load(name) if shipped else load_any(name)
