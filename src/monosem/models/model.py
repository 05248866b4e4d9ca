"""A Hugging Face causal language model that can be read and written at sites."""

from .places.places import Places
from .running.generation import generate
from .running.run import editing, run
from .transformerlens.arguments import GENERATE_ARGUMENTS, accepting
from .transformerlens.saes import SAELens


class Model(SAELens, Places):
    """Wraps (never subclasses, never rewrites) a Hugging Face model; `model.hf` is the model itself.

    Args:
        family: where the sites are in the native modules. Default: the row of `families.py` for the model's type;
            `load_model` infers a row for a type that has none.

    Raises:
        UnknownName: the architecture has no row.
        BadInput: the model, or a module of it, is compiled.
    """

    def __repr__(self) -> str:
        c = self.cfg
        sizes = f"{c.n_layers} layers, d_model {c.d_model}, {c.n_heads} heads"
        if self.encoder is not None:
            sizes += f", and {self.encoder.cfg.n_layers} in its encoder"
        return f"Model({self.name}: {sizes}, {self.dtype}, {self.device})"

    run = run
    generate = accepting(GENERATE_ARGUMENTS)(generate)
    editing = editing
