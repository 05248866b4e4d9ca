"""Muscle memory: what TransformerLens users type, on the native model and with its meaning.

`run_with_cache`, `run_with_hooks`, `hooks`, `model(tokens)` and the cache (a `Run`) take the same names and give
tensors of the same shapes. What differs, on purpose: no token is added that the tokenizer does not add itself
(`prepend_bos=True` adds one); no gradient is kept unless a backward hook asks for it; weights are never folded or
centred; hooks exist only inside a call or a `with`; a cache that would be larger than a stated budget is refused
instead of filling the memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple, NoReturn, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput, UnknownName, did_you_mean
from ..native import Native
from ..places.places import Places
from ..places.sites import Site
from ..running.budget import bytes_of, estimate, shown
from ..running.result import Run
from ..running.run import editing, run
from ..running.selection import Kept, Positions
from .hooks import Filter, Hook, HookFunction, HookPoint, Names, named_sites
from .text import Text, token_batch

Returned = Literal["logits", "loss", "both"] | None


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Tensor
    loss: Tensor


def next_token_loss(
    model: Native, logits: Float[Tensor, "batch pos vocab"], tokens: Any, per_token: bool = False
) -> Float[Tensor, "..."]:
    """Next-token cross-entropy in nats: the mean over predicted real tokens, or `batch pos-1` (0 at padding)."""
    batch = model.tokens(tokens).to(logits.device)
    if batch.ids.shape[1] < 2:
        raise BadInput("a loss needs at least two tokens in a row: one to predict the other")
    chosen = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
    real = batch.mask[:, 1:] & batch.mask[:, :-1]
    each = torch.where(real, -chosen, 0.0)
    return each if per_token else each.sum() / real.sum()


class TransformerLens(Text):
    """The calls of a `HookedTransformer`."""

    def __call__(
        self,
        x: Any,
        return_type: Returned = "logits",
        stop_at_layer: int | None = None,
        prepend_bos: bool | None = None,
        loss_per_token: bool = False,
    ) -> Any:
        """`model(tokens)`: logits `batch pos vocab`, loss, both, or None; with `stop_at_layer` the stream before it."""
        out, _ = _run(self, x, [], return_type, stop_at_layer, prepend_bos, loss_per_token)
        return out

    def run_with_cache(
        self,
        x: Any,
        names_filter: Names = None,
        return_type: Returned = "logits",
        stop_at_layer: int | None = None,
        remove_batch_dim: bool = False,
        pos_slice: Positions | None = None,
        prepend_bos: bool | None = None,
        loss_per_token: bool = False,
        memory: str | int = "4GB",
    ) -> tuple[Any, Run]:
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
        sites = _before(self, named_sites(self, names_filter), stop_at_layer)
        tokens = token_batch(self, x, prepend_bos)
        kept = Kept.of(self, tokens, pos_slice)
        size = estimate(self, tokens, sites, kept, False)
        if size.kept * len(tokens) > bytes_of(memory):
            largest = max(size.sites, key=size.sites.__getitem__)
            total, share = shown(size.kept * len(tokens)), shown(size.sites[largest] * len(tokens))
            raise BadInput(
                f"caching {len(sites)} activations would take {total} ({largest} alone {share}), over memory="
                f"{memory!r}: name what you need in names_filter=, give pos_slice=, or raise memory="
            )
        out, run = _run(self, tokens, sites, return_type, stop_at_layer, None, loss_per_token, pos_slice)
        if isinstance(pos_slice, int):
            run.activations = {site: value.squeeze(site.query_axis) for site, value in run.activations.items()}
            run.has_pos_dim = False
        return out, run.remove_batch_dim() if remove_batch_dim else run

    def run_with_hooks(
        self,
        x: Any,
        fwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
        bwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
        return_type: Returned = "logits",
        stop_at_layer: int | None = None,
        prepend_bos: bool | None = None,
        loss_per_token: bool = False,
    ) -> Any:
        """`model.run_with_hooks(tokens, fwd_hooks=[("blocks.5.hook_resid_post", fn)])`.

        `fn(activation, hook)` may return a new activation, or change the given one and return it or None. A name may be
        a function of names. Hooks at one place act in the given order.
        """
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(x, return_type, stop_at_layer, prepend_bos, loss_per_token)

    def hooks(
        self,
        fwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
        bwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
    ) -> AbstractContextManager[Self]:
        """`with model.hooks(fwd_hooks=[...]):` every run and generation inside uses them; nothing stays after it."""
        points: dict[Site, HookPoint] = {}
        edits = [
            Hook(points.setdefault(site, HookPoint(site)), fn, backward)
            for hooks, backward in ((fwd_hooks, False), (bwd_hooks, True))
            for names, fn in hooks
            for site in named_sites(self, names)
        ]
        return editing(self, *edits)

    def add_hook(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Always raises `BadInput`: a hook that stays is how results come to depend on what ran before."""
        raise BadInput(
            "no hook outlives its call here: use run_with_hooks(...) or `with model.hooks(fwd_hooks=[...]):`"
        )

    add_perma_hook = add_hook

    def reset_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: no hook outlives its call or its `with`."""

    def set_use_attn_result(self, use_attn_result: bool = True) -> None:
        """Nothing to set: `cache["result", layer]` is computed from z when it is asked for."""

    loss_fn = next_token_loss


def _run(
    model: Places,
    x: Any,
    sites: list[Site],
    return_type: Returned,
    stop_at_layer: int | None,
    prepend_bos: bool | None,
    per_token: bool,
    pos_slice: Positions | None = None,
) -> tuple[Any, Run]:
    if return_type not in ("logits", "loss", "both", None):
        near = did_you_mean(str(return_type), ["logits", "loss", "both"])
        raise BadInput(f"return_type is 'logits', 'loss', 'both' or None, not {return_type!r}{near}")
    tokens = token_batch(model, x, prepend_bos)
    grad = any(getattr(edit, "backward", False) for edit in model.ambient_edits)
    if stop_at_layer is not None:
        at = _stream_before(model, stop_at_layer)
        with _dropping_later(model, stop_at_layer):
            whole = run(model, tokens, [*sites, at], logits=False, grad=grad)
        stream = whole.activations[at]
        kept = Kept.of(model, tokens, pos_slice)
        whole.activations = {site: kept(site, value) for site, value in whole.activations.items() if site in sites}
        whole.columns = kept.columns
        return stream, whole
    needed = return_type is not None or not sites
    whole = run(model, tokens, sites, logits=needed, grad=grad, positions=pos_slice)
    if return_type is None or whole.logits is None:
        return None, whole
    if return_type == "logits":
        return whole.logits, whole
    loss = next_token_loss(model, whole.logits, tokens, per_token)
    return (loss if return_type == "loss" else Output(whole.logits, loss)), whole


def _stream_before(model: Places, layer: int) -> Site:
    n = model.cfg.n_layers
    if not -n <= layer <= n:
        raise UnknownName(f"stop_at_layer={layer}: {model.name} has {n} layers")
    return Site("resid_post", n - 1) if layer == n else Site("resid_pre", layer % n)


def _before(model: Places, sites: list[Site], stop_at_layer: int | None) -> list[Site]:
    """The sites that a run which stops before a layer reaches."""
    if stop_at_layer is None:
        return sites
    at = _stream_before(model, stop_at_layer)
    upto = model.cfg.n_layers if at.name == "resid_post" else at.layer
    assert upto is not None
    return [s for s in sites if s.name in ("embed", "pos_embed") or (s.layer is not None and s.layer < upto)]


@contextmanager
def _dropping_later(model: Places, stop_at_layer: int) -> Iterator[None]:
    """Hooks of layers that are not run are left out, as in TransformerLens; edits of other kinds still must fire."""
    before = model.ambient_edits
    reached = set(_before(model, [model.site(edit.site) for edit in before], stop_at_layer))
    model.ambient_edits = [e for e in before if not isinstance(e, Hook) or model.site(e.site) in reached]
    try:
        yield
    finally:
        model.ambient_edits = before
