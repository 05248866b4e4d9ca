"""Muscle memory: what TransformerLens users type, on the native model and with its meaning.

`run_with_cache`, `run_with_hooks`, `hooks`, `model(tokens)` and the cache (a `Run`) take the same names and give
tensors of the same shapes. What differs, on purpose: no token is added that the tokenizer does not add itself
(`prepend_bos=True` adds one); no gradient is kept unless a backward hook asks for it; weights are never folded or
centred; hooks exist only inside a call or a `with`; a cache that would be larger than a stated budget is refused
instead of filling the memory.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, UnknownName, did_you_mean
from ..places.sites import GLOBAL, GLOBAL_ON_REQUEST, ON_REQUEST, PER_LAYER, Site
from ..running.budget import bytes_of, estimate, shown
from ..running.selection import Kept
from .text import token_batch

if TYPE_CHECKING:
    from ..model import Model
    from ..running.result import Run
    from ..running.session import Moment

Filter = str | Callable[[str], bool]
Names = Filter | Iterable[str] | None
HookFunction = Callable[..., Tensor | None]
Returned = Literal["logits", "loss", "both"] | None


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Tensor
    loss: Tensor


@dataclass
class HookPoint:
    """What a hook function is told of its place: `hook.name`, `hook.layer()`, and `hook.ctx` to keep things in."""

    site: Site
    ctx: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.site.hook_name

    def layer(self) -> int:
        if self.site.layer is None:
            raise BadInput(f"{self.name} belongs to no layer")
        return self.site.layer


@dataclass(eq=False)
class _Hook:
    """A hook function as an edit; `backward` ones see the gradient."""

    point: HookPoint
    fn: HookFunction
    backward: bool = False

    @property
    def site(self) -> Site:
        return self.point.site

    def __str__(self) -> str:
        return f"hook at {self.point.name}"

    def apply(self, x: Tensor, moment: "Moment") -> tuple[Tensor, bool]:
        if self.backward and not torch.is_grad_enabled():
            raise BadInput(f"{self} sees gradients and this pass keeps none: call the model, or model.run(grad=True)")
        if self.backward:
            x = x if x.requires_grad else x.detach().requires_grad_()
            x.register_hook(lambda grad: self.fn(grad, hook=self.point))
            return x, True
        given = x.clone()  # a function may write into what it is given, and return it or nothing
        new = self.fn(given, hook=self.point)
        new = given if new is None else new
        if new.shape != x.shape:
            raise BadInput(f"{self} returned shape {tuple(new.shape)} for an activation of shape {tuple(x.shape)}")
        return new.to(x.dtype), True


def all_sites(model: "Model", on_request: bool = False) -> list[Site]:
    """Every site that this model has, layer by layer; those that are captured only when named with `on_request`."""
    layered, once = (ON_REQUEST, GLOBAL_ON_REQUEST) if on_request else (PER_LAYER, GLOBAL)
    found = []
    for site in [Site(n, layer) for layer in range(model.cfg.n_layers) for n in layered] + [Site(n) for n in once]:
        try:
            found.append(model.site(site))
        except UnknownName:
            continue
    return found


def named_sites(model: "Model", names: Names) -> list[Site]:
    """The sites of a `names_filter`: a name, several, a function of TransformerLens names, or None for all.

    Raises:
        UnknownName: a name that the model does not have, or a function that chooses nothing.
    """
    if names is None:
        return all_sites(model)
    if callable(names):
        found = [site for site in all_sites(model) if names(site.hook_name)]
        found = found or [site for site in all_sites(model, on_request=True) if names(site.hook_name)]
        if not found:
            raise UnknownName("the names_filter function chose no activation; names look like blocks.0.hook_resid_pre")
        return found
    if isinstance(names, str) or (isinstance(names, tuple) and len(names) > 1 and isinstance(names[1], int)):
        names = [names]  # type: ignore[list-item]
    return [model.site(name) for name in names]


# ---------------------------------------------------------------------- running
def call(
    model: "Model",
    x: Any,
    return_type: Returned = "logits",
    stop_at_layer: int | None = None,
    prepend_bos: bool | None = None,
    loss_per_token: bool = False,
) -> Any:
    """`model(tokens)`: logits `batch pos vocab`, the loss, both, or None; with `stop_at_layer` the stream before it."""
    out, _ = _run(model, x, [], return_type, stop_at_layer, prepend_bos, loss_per_token)
    return out


def run_with_cache(
    model: "Model",
    x: Any,
    names_filter: Names = None,
    return_type: Returned = "logits",
    stop_at_layer: int | None = None,
    remove_batch_dim: bool = False,
    pos_slice: int | slice | list[int] | None = None,
    prepend_bos: bool | None = None,
    loss_per_token: bool = False,
    memory: str | int = "4GB",
) -> tuple[Any, "Run"]:
    """`logits, cache = model.run_with_cache(tokens)`; the cache is the `Run`: `cache["resid_post", 5]`.

    Args:
        names_filter: what to keep: a name, several, a function of the name, or None for everything.
        stop_at_layer: run only the layers before it; the first result is then the stream there.
        remove_batch_dim: drop the batch axis of what is cached (one prompt only).
        pos_slice: positions to keep (queries at scores and patterns); an integer drops the axis.
        memory: the largest cache that is made.

    Raises:
        BadInput: the cache would be larger than `memory`.
    """
    sites = _before(model, named_sites(model, names_filter), stop_at_layer)
    tokens = token_batch(model, x, prepend_bos)
    kept = Kept.of(model, tokens, pos_slice)
    size = estimate(model, tokens, sites, kept, False)
    if size.kept * len(tokens) > bytes_of(memory):
        largest = max(size.sites, key=size.sites.__getitem__)
        total, share = shown(size.kept * len(tokens)), shown(size.sites[largest] * len(tokens))
        raise BadInput(
            f"caching {len(sites)} activations would take {total} ({largest} alone {share}), over memory={memory!r}: "
            "name what you need in names_filter=, give pos_slice=, or raise memory="
        )
    out, run = _run(model, tokens, sites, return_type, stop_at_layer, None, loss_per_token, pos_slice)
    if isinstance(pos_slice, int):
        run.activations = {site: value.squeeze(site.query_axis) for site, value in run.activations.items()}
    return out, run.remove_batch_dim() if remove_batch_dim else run


def run_with_hooks(
    model: "Model",
    x: Any,
    fwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
    bwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
    return_type: Returned = "logits",
    stop_at_layer: int | None = None,
    prepend_bos: bool | None = None,
    loss_per_token: bool = False,
) -> Any:
    """`model.run_with_hooks(tokens, fwd_hooks=[("blocks.5.hook_resid_post", fn)])`.

    `fn(activation, hook)` may return a new activation, or change the given one and return it or None. A name may be a
    function of names. Hooks at one place act in the given order.
    """
    with hooks(model, fwd_hooks, bwd_hooks):
        return call(model, x, return_type, stop_at_layer, prepend_bos, loss_per_token)


@contextmanager
def hooks(
    model: "Model",
    fwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
    bwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
) -> Iterator["Model"]:
    """`with model.hooks(fwd_hooks=[...]):` every run and generation inside uses them; nothing stays after it."""
    points: dict[Site, HookPoint] = {}
    made = [
        _Hook(points.setdefault(site, HookPoint(site)), fn, backward)
        for given, backward in ((fwd_hooks, False), (bwd_hooks, True))
        for names, fn in given
        for site in named_sites(model, names)
    ]
    with model.editing(*made):
        yield model


def add_hook(model: "Model", *args: Any, **kwargs: Any) -> NoReturn:
    """There is none: a hook that stays is how results come to depend on what ran before."""
    raise BadInput("no hook outlives its call here: use run_with_hooks(...) or `with model.hooks(fwd_hooks=[...]):`")


def reset_hooks(model: "Model", *args: Any, **kwargs: Any) -> None:
    """Nothing to do: no hook outlives its call or its `with`."""


def set_use_attn_result(model: "Model", use_attn_result: bool = True) -> None:
    """Nothing to set: `cache["result", layer]` is computed from z when it is asked for."""


def loss_fn(
    model: "Model", logits: Float[Tensor, "batch pos vocab"], tokens: Any, per_token: bool = False
) -> Float[Tensor, "..."]:
    """Next-token cross-entropy in nats: the mean over all predicted real tokens, or `batch pos-1` (0 at padding)."""
    batch = model.tokens(tokens).to(logits.device)
    if batch.ids.shape[1] < 2:
        raise BadInput("a loss needs at least two tokens in a row: one to predict the other")
    chosen = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
    real = batch.mask[:, 1:] & batch.mask[:, :-1]
    each = torch.where(real, -chosen, 0.0)
    return each if per_token else each.sum() / real.sum()


def _run(
    model: "Model",
    x: Any,
    sites: list[Site],
    return_type: Returned,
    stop_at_layer: int | None,
    prepend_bos: bool | None,
    per_token: bool,
    pos_slice: int | slice | list[int] | None = None,
) -> tuple[Any, "Run"]:
    if return_type not in ("logits", "loss", "both", None):
        near = did_you_mean(str(return_type), ["logits", "loss", "both"])
        raise BadInput(f"return_type is 'logits', 'loss', 'both' or None, not {return_type!r}{near}")
    tokens = token_batch(model, x, prepend_bos)
    grad = any(getattr(edit, "backward", False) for edit in model.ambient_edits)
    if stop_at_layer is not None:
        at = _stream_before(model, stop_at_layer)
        with _dropping_later(model, stop_at_layer):
            whole = model.run(tokens, [*sites, at], logits=False, grad=grad)
        stream = whole.activations[at]
        kept = Kept.of(model, tokens, pos_slice)
        whole.activations = {site: kept(site, value) for site, value in whole.activations.items() if site in sites}
        whole.columns = kept.columns
        return stream, whole
    needed = return_type is not None or not sites
    run = model.run(tokens, sites, logits=needed, grad=grad, positions=pos_slice)
    if return_type is None or run.logits is None:
        return None, run
    if return_type == "logits":
        return run.logits, run
    loss = loss_fn(model, run.logits, tokens, per_token)
    return (loss if return_type == "loss" else Output(run.logits, loss)), run


def _stream_before(model: "Model", layer: int) -> Site:
    n = model.cfg.n_layers
    if not -n <= layer <= n:
        raise UnknownName(f"stop_at_layer={layer}: {model.name} has {n} layers")
    return Site("resid_post", n - 1) if layer == n else Site("resid_pre", layer % n)


def _before(model: "Model", sites: list[Site], stop_at_layer: int | None) -> list[Site]:
    """Those of the sites that a run stopped before that layer reaches."""
    if stop_at_layer is None:
        return sites
    at = _stream_before(model, stop_at_layer)
    upto = model.cfg.n_layers if at.name == "resid_post" else at.layer
    assert upto is not None
    return [s for s in sites if s.name in ("embed", "pos_embed") or (s.layer is not None and s.layer < upto)]


@contextmanager
def _dropping_later(model: "Model", stop_at_layer: int) -> Iterator[None]:
    """Hooks of layers that are not run are left out, as in TransformerLens; edits of other kinds still must fire."""
    before = model.ambient_edits
    reached = set(_before(model, [model.site(edit.site) for edit in before], stop_at_layer))
    model.ambient_edits = [e for e in before if not isinstance(e, _Hook) or model.site(e.site) in reached]
    try:
        yield
    finally:
        model.ambient_edits = before


# ---------------------------------------------------------------------- names
def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The TransformerLens name of an activation: `get_act_name("resid_post", 5)` is `blocks.5.hook_resid_post`."""
    if name in ("scale", "normalized") and layer is None:
        return f"ln_final.hook_{name}"
    given = (name, layer, layer_type or "ln1") if layer is not None else name
    return Site.parse(given).hook_name  # type: ignore[arg-type]
