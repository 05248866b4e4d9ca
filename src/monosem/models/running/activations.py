"""The activations that a run captured, and the sites that are computed from them when they are asked for.

| site | computed as | from |
|---|---|---|
| `result.L` | z W_O by head, before a post-norm | `z.L` |
| `ln1_input.L`, `ln1_scale.L`, `ln1_normalized.L`, `ln1_output.L` | the norm applied to the stream | `resid_pre.L` |
| `attn_input.L` | likewise; the stream itself where the branch has no norm | `resid_pre.L` |
| `ln2_....L`, `mlp_input.L` | likewise before the MLP | `resid_mid.L` (parallel blocks: `resid_pre.L`) |
| `final_input`, `final_scale`, `final_normalized` | likewise of the final norm | `resid_post` of the last layer |
| `mlp_up.L` | the up projection in gated MLPs, else the only one | `mlp_pre_linear.L` or `mlp_pre.L` |
| `attn_raw.L`, `mlp_raw.L` | what is added; z through W_O where a norm or scale follows | `attn_out.L` or `z.L` |
| `logits_raw` | the unembedding | `final_norm` |
| `pos_embed` | learned positions of the tokens | nothing |

Nothing is computed past an edit: where an edit of the run wrote one of these sites, they must be captured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ...errors import UnknownName, did_you_mean
from ..places.branches import Branch
from ..places.norms import Norm
from ..places.places import Places
from ..places.sites import Inner, Site
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
    edited: frozenset[Site] = frozenset()
    has_batch_dim: bool = True

    def __getitem__(self, site: Any) -> Tensor:
        wanted = self._site(site)
        if wanted in self.activations:
            return self.activations[wanted]
        if (value := derived(self, wanted)) is not None:
            return value
        held = [str(s) for s in self.activations]
        hint = did_you_mean(str(wanted), held) or f"; captured: {', '.join(held) or 'nothing'}"
        raise UnknownName(f"{wanted} was not captured{hint}; name it in capture=[...]")

    def __contains__(self, site: Any) -> bool:
        return self._site(site) in self.activations

    def _site(self, value: Any) -> Site:
        """The site; negative layers count from the end."""
        named = self.activations if isinstance(value, str) else ()
        inner = (site for site in named if isinstance(site, Inner) and site.hook_name == value)
        site = next(inner, None) or Site.parse(value)
        if site.layer is not None and site.layer < 0:
            side = self.model.encoder if site.side and self.model.encoder is not None else self.model
            return replace(site, layer=site.layer + side.cfg.n_layers)
        return site


def derived(run: Activations, site: Site) -> Tensor | None:
    """The activation of a derived site, None for other sites. Raises `UnknownName` when its site was not captured."""
    if site.name not in _DERIVED and not site.name.endswith(_ENDS):
        return None
    if site.side:
        return None if run.model.encoder is None else _of_encoder(run, site)
    if site.layer is not None and not 0 <= site.layer < run.model.cfg.n_layers:
        return None
    if site.name in _DERIVED:
        _check_unedited(run, site, _upto(site.name, _FINAL) if site.name in _FINAL else [site.name])
        return _DERIVED[site.name](run)
    branch = run.model.branch_of(site)
    assert branch is not None
    _check_unedited(run, site, _between(branch, site.name))
    form = site.name.removeprefix(f"{branch.slot.row.norm}_")
    if form != site.name and branch.closing is not None:
        return _of_norm(branch.closing, branch.model.norm(branch.closing), run[branch.reads] + run[branch.out], form)
    if form != site.name:
        return _of_norm(branch.norm_in, branch.pre, run[branch.reads], form)
    return _OF_BRANCH[site.name.rpartition("_")[2]](run, branch)


def _of_encoder(run: Activations, site: Site) -> Tensor | None:
    """A derived site of the encoder beside a decoder, as the encoder's own run has it."""
    source = run.tokens.source
    if source is None or run.model.encoder is None:
        return None
    held = {replace(one, side=""): value for one, value in run.activations.items() if one.side}
    edited = frozenset(replace(one, side="") for one in run.edited if one.side)
    own = Activations(run.model.encoder, source, None, held, None, run.heads, edited, run.has_batch_dim)
    return derived(own, replace(site, side=""))


def _check_unedited(run: Activations, site: Site, between: list[str]) -> None:
    """Raises `UnknownName` where an edit wrote something between what a site is computed from and the site."""
    for edit in run.edited:
        if edit.layer == site.layer and edit.name in between:
            raise UnknownName(f"{site} was not captured, and an edit at {edit} changed it: name it in capture=[...]")


def _upto(name: str, names: list[str]) -> list[str]:
    return names[: names.index(name) + 1]


def _between(branch: Branch, name: str) -> list[str]:
    """The sites from the captured one that a branch's site is computed from (left out) to the site itself."""
    if name.endswith("_raw"):
        return [branch.out.name] if _is_plain(branch) else [f"{branch.name}_result", "result", name]
    if branch.closing is not None and name.startswith(f"{branch.slot.row.norm}_"):
        return _upto(name, [f"{branch.slot.row.norm}_{form}" for form in _FORMS])
    if name.endswith(("result", "_up")):
        return [name]
    return _upto(name, [*(f"{branch.norm}_{form}" for form in _FORMS), f"{branch.name}_input"])


def _of_norm(module: Any, norm: Norm, x: Tensor, form: str) -> Tensor:
    """A site of a norm that was given x."""
    if form == "input":
        return x
    if form == "output":
        return module(x)  # type: ignore[no-any-return]
    scale = norm.scale(x)
    return scale if form == "scale" else norm.centred(x) / scale


def _final(form: str) -> Callable[[Activations], Tensor]:
    def of(run: Activations) -> Tensor:
        model = run.model
        if model.last_norm is None:
            raise UnknownName(f"final_{form}: {model.name} {model.lacks(f'final_{form}')}")
        return _of_norm(None, model.norm(model.last_norm), run["resid_post", model.cfg.n_layers - 1], form)

    return of


def _result(run: Activations, branch: Branch) -> Tensor:
    assert branch.inner is not None
    return branch.parts(run[branch.inner], slice(None) if run.heads is None else list(run.heads))


def _up(run: Activations, branch: Branch) -> Tensor:
    gated = run.model.has(site := branch.site("_pre_linear"))
    return run[site if gated else branch.site("_pre")]


def _raw(run: Activations, branch: Branch) -> Tensor | None:
    if _is_plain(branch):
        return run[branch.out]
    return None if branch.inner is None or run.heads is not None else branch.project(run[branch.inner])


def _is_plain(branch: Branch) -> bool:
    """Whether it adds its output to the stream as it is."""
    return branch.norm_out is None and branch.scale == 1 and branch.added is None


def position_embeddings(run: Activations) -> Tensor:
    """Learned positions of the run's tokens. Raises `UnknownName` in models without them."""
    positions = run.tokens.positions
    if run.columns is not None:
        positions = positions.gather(1, run.columns.to(positions.device))
    value = run.model.W_pos[positions]
    return value if run.has_batch_dim else value[0]


def raw_logits(run: Activations) -> Tensor:
    """What the unembedding made, before any soft cap or scale."""
    with run.model.turn():
        raw = run["final_norm"]
        for module in run.model.unembeddings:
            raw = module.forward(raw)
        return raw


# how a site is computed: those that exist once, and by the end of its name those of a branch
_DERIVED: dict[str, Callable[[Activations], Tensor]] = {
    "pos_embed": position_embeddings,
    "final_input": _final("input"),
    "final_scale": _final("scale"),
    "final_normalized": _final("normalized"),
    "logits_raw": raw_logits,
}
_OF_BRANCH: dict[str, Callable[[Activations, Branch], Tensor | None]] = {
    "result": _result,
    "up": _up,
    "raw": _raw,
    "input": lambda run, branch: branch.read(run[branch.reads]),
}
_FORMS = ("input", "scale", "normalized", "output")  # of a norm's sites, in the order of computation
_FINAL = [f"final_{form}" for form in _FORMS[:3]]
_ENDS = ("_input", "_scale", "_normalized", "_output", "_raw", "_up", "result")
