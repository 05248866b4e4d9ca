"""The activations that a run captured, and the sites that are computed from them when they are asked for.

| site | computed as | from |
|---|---|---|
| `result.L` | z W_O by head, before a post-norm | `z.L` |
| `ln1_scale.L`, `ln1_normalized.L` | what the norm divides by; its input, centred and divided | `resid_pre.L` |
| `ln2_scale.L`, `ln2_normalized.L` | likewise before the MLP | `resid_mid.L` (parallel blocks: `resid_pre.L`) |
| `final_scale`, `final_normalized` | likewise of the final norm | `resid_post` of the last layer |
| `pos_embed` | learned positions of the tokens | nothing |
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ...errors import UnknownName, did_you_mean
from ..places.norms import Norm
from ..places.places import Places
from ..places.sites import NORMS, Site
from ..tokens import TokenBatch


@dataclass
class Activations:
    """What one forward pass left behind, by site; see `Run` for the attributes."""

    model: Places
    tokens: TokenBatch
    logits: Tensor | None
    activations: dict[Site, Tensor] = field(default_factory=dict)
    columns: Int[Tensor, "batch kept"] | None = None
    heads: tuple[int, ...] | None = None
    has_batch_dim: bool = True

    def __getitem__(self, site: Any) -> Tensor:
        wanted = self._site(site)
        value = derived(self, wanted) if wanted not in self.activations else self.activations[wanted]
        if value is not None:
            return value
        held = [str(s) for s in self.activations]
        hint = did_you_mean(str(wanted), held) or f"; captured: {', '.join(held) or 'nothing'}"
        raise UnknownName(f"{wanted} was not captured{hint}; name it in capture=[...]")

    def __contains__(self, site: Any) -> bool:
        return self._site(site) in self.activations

    def _site(self, value: Any) -> Site:
        """The site; negative layers count from the end."""
        site = Site.parse(value)
        if site.layer is not None and site.layer < 0:
            return Site(site.name, site.layer + self.model.cfg.n_layers)
        return site


def derived(run: Activations, site: Site) -> Tensor | None:
    """The activation of a derived site, None for other sites. Raises `UnknownName` when its site was not captured."""
    if site.name == "pos_embed":
        return position_embeddings(run)
    if site.layer is not None and not 0 <= site.layer < run.model.cfg.n_layers:
        return None
    if site.name.endswith("result"):
        branch = run.model.branch_of(site)
        assert branch is not None
        assert branch.inner is not None
        return branch.parts(run[branch.inner], slice(None) if run.heads is None else list(run.heads))
    if site.name not in NORMS:
        return None
    norm, x = norm_and_input(run, site.layer, NORMS[site.name])
    scale = norm.scale(x)
    return scale if site.name.endswith("scale") else norm.centred(x) / scale


def position_embeddings(run: Activations) -> Tensor:
    """Learned positions of the run's tokens. Raises `UnknownName` in models without them."""
    positions = run.tokens.positions
    if run.columns is not None:
        positions = positions.gather(1, run.columns.to(positions.device))
    value = run.model.W_pos[positions]
    return value if run.has_batch_dim else value[0]


def norm_and_input(run: Activations, layer: int | None, which: str) -> tuple[Norm, Tensor]:
    """A norm, and what this run gave it: "ln1" or "ln2" of a layer; the final norm where the layer is None."""
    model = run.model
    if layer is None:
        return model.final_norm, run["resid_post", model.cfg.n_layers - 1]
    for branch in model.branches(layer):
        if branch.slot.row.norm == which:
            return branch.pre, run[branch.reads]
    raise UnknownName(f"layer {layer} of {model.name} has no norm {which!r}")
