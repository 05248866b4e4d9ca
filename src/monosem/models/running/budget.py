"""What a run holds in memory, estimated from shapes, and how many rows at once fit a budget."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ...errors import BadInput
from ..native import Native
from ..places.sites import ATTENTION, Site
from ..tokens import TokenBatch
from .selection import Kept

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # the config's name across families
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(size: str | int | float) -> int:
    """`"4GB"` (10^9), `"512MiB"` (2^20) or a number of bytes. Raises `BadInput` for anything else."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([a-zA-Z]*)\s*", str(size) if isinstance(size, str) else f"{int(size)}")
    unit = found[2].upper() if found else None
    if found is None or unit not in _UNITS or not float(found[1]) > 0:
        raise BadInput(f"memory is a size such as '4GB' or '512MiB', not {size!r}")
    return int(float(found[1]) * _UNITS[unit])


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
    c, item, length = model.cfg, torch.finfo(model.dtype).bits // 8, tokens.ids.shape[1]
    rows = length if kept.columns is None else kept.columns.shape[1]
    widths = _widths(model, length, c.n_heads if kept.heads is None else len(kept.heads), kept.heads is None)
    by_site = {site: rows * widths.get(site.name, c.d_model) * item for site in sites}
    unembedded = {True: length, "last": 1, False: 0}[logits] if logits is not False else 0
    width = (c.n_heads + 2 * c.n_kv_heads) * c.d_head
    # the widest moment of a block: the stream, its norm in float32, and either the attention's or the MLP's tensors
    copies = 1 + getattr(model.hf.config, "num_experts_per_tok", 0)  # a mixture gives each token to several experts
    block = length * (3 * c.d_model * copies * item + 2 * c.d_model * 4 + max(2 * width, 4 * c.d_mlp * copies) * item)
    # scores as numbers: of the layers asked about, or of all in models that SDPA does not serve (soft caps, sinks)
    explicit = model.hf.config._attn_implementation == "eager" or any(site.name in ATTENTION for site in sites)
    scores = length * length * (c.n_heads * (5 * item + 8) if explicit else 1 + item)
    cap = 3 if getattr(model.hf.config, "final_logit_softcapping", None) else 1
    head = unembedded * c.d_vocab * item * (cap - 1) + length * c.d_model * 2 * item
    return Estimate(by_site, unembedded * c.d_vocab * item, max(block + scores, head))


def _widths(model: Native, length: int, heads: int, whole: bool) -> dict[str, int]:
    """Numbers that a site holds for each token."""
    c = model.cfg
    own = dict.fromkeys(("q", "rot_q", "z"), heads * c.d_head)
    kv = dict.fromkeys(("k", "v", "rot_k"), (c.n_kv_heads if whole else heads) * c.d_head)
    pairs = dict.fromkeys(("scores", "pattern"), heads * length)
    mlp = dict.fromkeys(("mlp_pre", "mlp_pre_linear", "mlp_post"), c.d_mlp)
    scales = dict.fromkeys(("ln1_scale", "ln2_scale", "final_scale"), 1)
    experts = dict.fromkeys(("expert_weights", "expert_indices"), getattr(model.hf.config, "num_experts_per_tok", 1))
    experts["router_logits"] = next((v for n in _EXPERTS if (v := getattr(model.hf.config, n, None))), 1)
    return own | kv | pairs | mlp | scales | experts | {"logits": c.d_vocab, "result": heads * c.d_model}


def rows_that_fit(found: Estimate, rows: int, memory: str | int) -> int:
    """How many rows one pass may have so that what is kept of all rows, and one pass, stay under the budget.

    Raises:
        BadInput: what is kept, or a single row's pass, does not fit; the message names what to leave out.
    """
    budget = bytes_of(memory)
    largest = max(found.sites, key=found.sites.__getitem__, default=None)
    advice = "logits=True" if largest is None or found.logits > found.sites[largest] else str(largest)
    share = found.logits if advice == "logits=True" else found.sites[largest]  # type: ignore[index]
    drop = f"the largest part is {advice} ({shown(share * rows)}): leave it out, or give positions=, heads="
    if found.kept * rows > budget:
        raise BadInput(f"{rows} rows keep {shown(found.kept * rows)}, over memory={shown(budget)}; {drop}")
    fits = (budget - found.kept * rows) // max(found.kept + found.working, 1)
    if fits < 1:
        need = found.kept * (rows + 1) + found.working
        raise BadInput(f"one row at a time needs {shown(need)}, over memory={shown(budget)}; {drop}, or shorter rows")
    return min(int(fits), rows)
