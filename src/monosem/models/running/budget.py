"""What a run holds in memory, estimated from shapes, and how many rows at once fit a budget."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from packaging.version import Version

from ...errors import BadInput
from ..native import Native
from ..places.sites import ATTENTION, Inner, Site
from ..tokens import TokenBatch
from .selection import Kept

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")  # the config's name across families
# torch 2.6 computes grouped heads' scores as numbers on a CPU, 2.13 does not; those between were not measured
_GROUPED_BY_NUMBERS = Version(torch.__version__).release < (2, 13)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(size: str | int | float) -> int:
    """`"4GB"` (10^9), `"512MiB"` (2^20) or a number of bytes. Raises `BadInput` for anything else."""
    text = f"{size:.0f}" if isinstance(size, int | float) and not isinstance(size, bool) else str(size)
    parts = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zA-Z]*)\s*", text)
    unit = parts[2].upper() if parts else None
    if parts is None or unit not in _UNITS or not float(parts[1]) > 0:
        raise BadInput(f"memory is a size such as '4GB' or '512MiB', not {size!r}")
    return int(float(parts[1]) * _UNITS[unit])


def shown(size: float) -> str:
    """Bytes for people: `1.5 GB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"


@dataclass(frozen=True)
class Estimate:
    """Bytes for each row of a batch.

    Attributes:
        sites: what each captured site keeps.
        logits: what the returned logits keep.
        working: the most that the pass itself holds beside that (one block, the attention asked for, the unembedding).
    """

    sites: dict[Site, int]
    logits: int
    working: int

    @property
    def kept(self) -> int:
        return sum(self.sites.values()) + self.logits


def estimate(
    model: Native, tokens: TokenBatch, sites: Sequence[Site], kept: Kept, logits: bool | Literal["last"]
) -> Estimate:
    """What one row of a run without gradients takes, from shapes alone."""
    c, config, length = model.cfg, model.config, _longest(tokens)
    item = torch.finfo(model.dtype).bits // 8
    sizes = _sizes(model, tokens, kept)
    inner: dict[Site, dict[str, int]] = {s: dict(zip(s.inside, s.sizes)) for s in sites if isinstance(s, Inner)}
    inner |= {s: _own(model, s) for s in sites if s not in inner}
    shapes = {site: site.among(model.streams_at(site)).shape for site in sites}
    by_site = {site: prod((sizes | inner[site])[axis] for axis in shapes[site]) * item for site in sites}
    unembedded = 0 if logits is False else 1 if logits == "last" else length
    # the widest moment of a block: the stream, its norm in float32, and the tensors of its widest branch; a mixture of
    # experts holds them once more for each expert that a token is given to
    rows = [slot.mixer.row for block in model.anatomy for slot in block.slots]
    copies = 1 + getattr(config, "num_experts_per_tok", 0)
    widest = max((row.working(c) * (copies if row.pointwise else 1) for row in rows), default=0)
    block = length * ((3 * c.d_model * copies + widest) * item + 2 * c.d_model * 4)
    # scores as numbers: of the layers asked about, or of all in models that SDPA does not serve (soft caps, sinks)
    explicit = config._attn_implementation == "eager" or any(site.name in ATTENTION for site in sites)
    explicit |= _GROUPED_BY_NUMBERS and c.n_kv_heads != c.n_heads
    scores = length * length * (c.n_heads * (5 * item + 8) if explicit else 1 + item)
    cap = 3 if getattr(config, "final_logit_softcapping", None) else 1
    head = unembedded * c.d_vocab * item * (cap - 1) + length * c.d_model * 2 * item
    return Estimate(by_site, unembedded * c.d_vocab * item, max(block + scores, head))


def _own(model: Native, site: Site) -> dict[str, int]:
    """The axes that only the mixer of its branch has."""
    side = model.encoder if site.side and model.encoder is not None else model
    place = None if site.layer is None else side.anatomy[site.layer].places.get(site.name)
    return place.slot.sizes if place is not None and place.slot is not None else {}


def _longest(tokens: TokenBatch) -> int:
    """The length of what a model reads; of an encoder–decoder, of source or target."""
    return max(tokens.ids.shape[1], 0 if tokens.source is None else tokens.source.ids.shape[1])


def _sizes(model: Native, tokens: TokenBatch, kept: Kept) -> dict[str, int]:
    """The size of each axis that sites have (`Site.shape`), of what is kept."""
    c, config, length = model.cfg, model.config, _longest(tokens)
    heads = None if kept.heads is None else len(kept.heads)
    return {
        "source": length if tokens.source is None else tokens.source.ids.shape[1],
        "position": length if kept.columns is None else kept.columns.shape[1],
        "key": length,
        "head": heads or c.n_heads,
        "kv_head": heads or c.n_kv_heads,
        "d_head": c.d_head,
        "d_model": c.d_model,
        "stream": model.streams,
        "neuron": c.d_mlp,
        "expert": next((n for name in EXPERT_COUNTS if (n := getattr(config, name, None))), 1),
        "chosen": getattr(config, "num_experts_per_tok", 1),
        "vocab": c.d_vocab,
    }


def rows_that_fit(need: Estimate, rows: int, memory: str | int) -> int:
    """How many rows one pass may have so that what is kept of all rows, and one pass, stay under the budget.

    Raises:
        BadInput: what is kept, or a single row's pass, does not fit; the message names what to leave out.
    """
    budget = bytes_of(memory)
    # the first of equals: a site before the logits
    largest, share = max([*need.sites.items(), ("logits=True", need.logits)], key=lambda item: item[1])
    drop = f"the largest part is {largest} ({shown(share * rows)}): leave it out, or give positions=, heads="
    if need.kept * rows > budget:
        raise BadInput(f"{rows} rows keep {shown(need.kept * rows)}, over memory={shown(budget)}; {drop}")
    fits = (budget - need.kept * rows) // max(need.kept + need.working, 1)
    if fits < 1:
        least = need.kept * (rows + 1) + need.working
        raise BadInput(f"one row at a time needs {shown(least)}, over memory={shown(budget)}; {drop}, or shorter rows")
    return min(int(fits), rows)
