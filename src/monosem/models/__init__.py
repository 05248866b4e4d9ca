"""A Hugging Face model that can be read and written at sites."""

from .checking.infer import InferredFamily
from .checking.verify import Verification, verify
from .identity import identity, refuse_other
from .loading.load import load_model
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
