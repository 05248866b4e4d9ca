"""Methods of finding and steering a concept, side by side on held-out data.

import monosem as ms
done = ms.methods.compare_methods(ms.load_model("smollm2"), "french", folder="runs/methods")
done.table
"""

from .concept import Concept
from .config import MethodsConfig
from .entrants import ENTRANTS
from .job import MethodsReport, compare_methods

__all__ = ["ENTRANTS", "Concept", "MethodsConfig", "MethodsReport", "compare_methods"]
