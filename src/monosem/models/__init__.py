"""A Hugging Face model that can be read and written at sites."""

from .checking.infer import InferredFamily
from .checking.verify import Verification, verify
from .loading.load import load_model
from .memory import free, memory
from .model import Model, Shape
from .places.families import FAMILIES, Family
from .places.norms import Norm
from .places.sites import GLOBAL, PER_LAYER, Site, SiteLike
from .running.generation import Generation
from .running.result import Run
from .running.session import Moment
from .tokens import TokenBatch
from .transformerlens.calls import HookPoint, get_act_name

__all__ = [
    "FAMILIES",
    "GLOBAL",
    "PER_LAYER",
    "Family",
    "Generation",
    "HookPoint",
    "InferredFamily",
    "Model",
    "Moment",
    "Norm",
    "Run",
    "Shape",
    "Site",
    "SiteLike",
    "TokenBatch",
    "Verification",
    "free",
    "get_act_name",
    "load_model",
    "memory",
    "verify",
]
