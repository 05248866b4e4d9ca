"""monosem: open up language models.

Everything is built from five nouns: **Site** (a named place in a model), **Run** (one forward pass with sites captured
and edits applied), **Edit** (a pure function attached to a site), **Dictionary** (a learned sparse code of a site) and
**Direction** (a vector at a site with its provenance).

Names are loaded when they are first used, so that `import monosem` costs milliseconds and imports neither torch nor
transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> the module that holds it; a value without a colon is a room (module) itself
_PUBLIC = {
    "load_model": "monosem.models:load_model",
    "Model": "monosem.models:Model",
    "Run": "monosem.models:Run",
    "Site": "monosem.models:Site",
    "load_dictionary": "monosem.dictionaries:load_dictionary",
    "Dictionary": "monosem.dictionaries:Dictionary",
    "MonosemError": "monosem.errors:MonosemError",
    "models": "monosem.models",
    "edits": "monosem.edits",
    "metrics": "monosem.metrics",
    "data": "monosem.data",
    "organisms": "monosem.organisms",
    "defences": "monosem.defences",
    "activations": "monosem.activations",
    "dictionaries": "monosem.dictionaries",
    "components": "monosem.components",
    "lenses": "monosem.lenses",
    "patching": "monosem.patching",
    "circuits": "monosem.circuits",
    "plots": "monosem.plots",
    "statistics": "monosem.statistics",
    "graphs": "monosem.graphs",
    "latents": "monosem.latents",
    "directions": "monosem.directions",
    "probes": "monosem.probes",
    "steering": "monosem.steering",
    "studies": "monosem.studies",
    "judges": "monosem.judges",
    "methods": "monosem.methods",
    "robustness": "monosem.robustness",
    "benchmarks": "monosem.benchmarks",
    "saelens": "monosem.saelens",
    "explorer": "monosem.explorer",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'monosem' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    loaded = import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
