"""A Hugging Face model that can be read and written at sites."""

from .families import FAMILIES, Family
from .generating import Generation
from .holdings import free, memory
from .inferring import InferredFamily
from .loading import load_model
from .model import Model, Shape
from .norms import Norm
from .result import Run
from .session import Moment
from .sites import GLOBAL, PER_LAYER, Site, SiteLike
from .tokens import TokenBatch
from .transformerlens import HookPoint, get_act_name
from .verifying import Verification, verify

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
