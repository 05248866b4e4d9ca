"""A Hugging Face model that can be read and written at sites.

What loads or checks a model is imported when it is first used: it brings transformers' models with it (`language`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .identity import identity, refuse_other
from .memory import free, memory
from .model import Model
from .native import Layers, Native, Shape
from .places.branches import Branch
from .places.factored import FactoredMatrix
from .places.families import BranchRow, Family, attn, mlp
from .places.mixers import Mixer
from .places.norms import Norm
from .places.places import Places
from .places.sites import GLOBAL, PER_LAYER, Site, SiteLike
from .places.table import FAMILIES
from .running.generation import Generation
from .running.moment import EditLike, Moment
from .running.result import Run
from .running.selection import Positions
from .running.states import state_of
from .tokens import TokenBatch
from .transformerlens.hooks import HookPoint, get_act_name

if TYPE_CHECKING:
    from .checking.infer import InferredFamily
    from .checking.verify import Verification, verify
    from .loading.load import load_model

__all__ = [
    "FAMILIES",
    "GLOBAL",
    "PER_LAYER",
    "Branch",
    "BranchRow",
    "EditLike",
    "FactoredMatrix",
    "Family",
    "Generation",
    "HookPoint",
    "InferredFamily",
    "Layers",
    "Mixer",
    "Model",
    "Moment",
    "Native",
    "Norm",
    "Places",
    "Positions",
    "Run",
    "Shape",
    "Site",
    "SiteLike",
    "TokenBatch",
    "Verification",
    "attn",
    "free",
    "get_act_name",
    "identity",
    "load_model",
    "memory",
    "mlp",
    "refuse_other",
    "state_of",
    "verify",
]

_LATE = {
    "InferredFamily": "checking.infer",
    "Verification": "checking.verify",
    "load_model": "loading.load",
    "verify": "checking.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'monosem.models' has no attribute {name!r}")
    value = getattr(import_module(f".{_LATE[name]}", __name__), name)
    globals()[name] = value
    return value
