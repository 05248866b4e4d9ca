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

from .changes import Amount, DirectionLike, ablate, add, function, patch, scale
from .crosscoded import clamp_sites, scale_sites, splice_sites
from .edit import Edit, Gate, Scope
from .latents import Latent, ablate_latent, add_latent, clamp, scale_latent
from .splicing import Splice, observer, splice, splice_layers

__all__ = [
    "Amount",
    "DirectionLike",
    "Edit",
    "Gate",
    "Latent",
    "Scope",
    "Splice",
    "ablate",
    "ablate_latent",
    "add",
    "add_latent",
    "clamp",
    "clamp_sites",
    "function",
    "observer",
    "patch",
    "scale",
    "scale_latent",
    "scale_sites",
    "splice",
    "splice_layers",
    "splice_sites",
]
