"""Edits: pure functions from an activation to an activation, attached to a site.

Every constructor returns an `Edit`; narrow it with `.at(positions=, rows=, heads=, scope=, tokens=, role=)` and
`.when(gate)`. Edits compose in the order in which they are given, compute in float32 and are cast back, mean the same
in `run` and in `generate` (with the KV cache), and touch neither padding nor what a query may not see. Nothing is
guessed: values say which axes they have and which tokens they belong to. An edit that reaches no token, or misses a row
that it names, raises `EditDidNotFire`; one whose result is not finite raises `BadInput`.

Editing one latent keeps the dictionary's error term: x' = x + (c - f_i) W_dec[i], so setting a latent to the value that
it has changes nothing. `splice` is the other thing, the reconstruct-only arm; `splice_layers` is it for all layers of
a cross-layer transcoder. Crosscoders need a first pass: `clamp_sites`, `scale_sites`, `splice_sites`.
"""

from . import weights
from .along import ablate, add_by_cosine, affine, ceiling, floor, push, reflect, scale_along, set_to
from .changes import Amount, DirectionLike, add, function, patch, scale
from .conditions import Condition, Decision, condition
from .crosscoded import clamp_sites, scale_sites, splice_sites
from .depths import ablate_writes, each, kernel, writes
from .edit import Edit, Gate, Scope
from .latents import Latent, ablate_latent, add_latent, clamp, scale_latent
from .splicing import Splice, observer, splice, splice_layers
from .turning import Opposite, erase, keep_norm, rotate, slerp, transport

__all__ = [
    "Amount",
    "Condition",
    "Decision",
    "DirectionLike",
    "Edit",
    "Gate",
    "Latent",
    "Opposite",
    "Scope",
    "Splice",
    "ablate",
    "ablate_latent",
    "ablate_writes",
    "add",
    "add_by_cosine",
    "add_latent",
    "affine",
    "ceiling",
    "clamp",
    "clamp_sites",
    "condition",
    "each",
    "erase",
    "floor",
    "function",
    "keep_norm",
    "kernel",
    "observer",
    "patch",
    "push",
    "reflect",
    "rotate",
    "scale",
    "scale_along",
    "scale_latent",
    "scale_sites",
    "set_to",
    "slerp",
    "splice",
    "splice_layers",
    "splice_sites",
    "transport",
    "weights",
    "writes",
]
