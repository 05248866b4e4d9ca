"""Muscle memory: what TransformerLens users type, on the native model and with its meaning.

`run_with_cache`, `run_with_hooks`, `hooks`, `model(tokens)` and the cache (a `Run`) take the same names and give
tensors of the same shapes. What differs, on purpose: no token is added that the tokenizer does not add itself
(`prepend_bos=True` adds one); no gradient is kept unless a backward hook asks for it; weights are never folded or
centred; hooks exist only inside a call or a `with`; a cache that would be larger than a stated budget is refused
instead of filling the memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

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
from ..tokens import TokenBatch
from .absent import ABSENT_FROM_MODELS, put_absent
from .arguments import CACHE_ARGUMENTS, HOOK_ARGUMENTS, accepting
from .hooks import Filter, Hook, HookFunction, HookPoint, Names, named_sites
from .slices import PosSlice, positions_of
from .text import token_batch
from .weights import Weights

Returned = Literal["logits", "loss", "both"] | None


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Tensor
    loss: Tensor


@accepting(HOOK_ARGUMENTS)
def next_token_loss(
    model: Native, logits: Float[Tensor, "batch pos vocab"], tokens: Any, *, per_token: bool = False
) -> Float[Tensor, "..."]:
    """Next-token cross-entropy in nats: the mean over predicted real tokens, or `batch pos-1` (0 at padding)."""
    batch = model.tokens(tokens).to(logits.device)
    if batch.ids.shape[1] < 2:
        raise BadInput("a loss needs at least two tokens in a row: one to predict the other")
    if batch.gap is not None:  # padding between tokens: each is predicted by the real one before it
        logits = logits[torch.arange(len(batch))[:, None], batch.before.clamp(min=0)]
    given = logits[:, : batch.ids.shape[1] - 1].float()
    chosen = given.log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
    real = batch.mask[:, 1:] & (batch.before >= 0)
    each = torch.where(real, -chosen, 0.0)
    return each if per_token else each.sum() / real.sum()


@dataclass(frozen=True)
class Call:
    """How TransformerLens's calls of a model run it.

    Attributes:
        return_type: "logits", "loss", "both" or None.
        stop_at_layer: run only the layers before it: the result is the stream there. Negative ones count from the end.
        start_at_layer: the input is the stream there, `batch pos d_model`, and the layers before it are not run.
        prepend_bos: put a BOS token first (once), or take it away; None leaves that to the tokenizer.
        loss_per_token: the loss of each predicted token instead of their mean.
        tokens: with `start_at_layer`, the tokens: for a loss, and for rows of unequal length.
    """

    return_type: Returned = "logits"
    stop_at_layer: int | None = None
    start_at_layer: int | None = None
    prepend_bos: bool | None = None
    loss_per_token: bool = False
    tokens: Any = None


class TransformerLens(Weights):
    """The calls of a `HookedTransformer`; `Call` says what their arguments mean."""

    @accepting(HOOK_ARGUMENTS)
    def __call__(
        self,
        x: Any,
        return_type: Returned = "logits",
        *,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        prepend_bos: bool | None = None,
        loss_per_token: bool = False,
        tokens: Any = None,
    ) -> Any:
        """`model(tokens)`: logits `batch pos vocab`, loss, both, or None; with `stop_at_layer` the stream before it."""
        call = Call(return_type, stop_at_layer, start_at_layer, prepend_bos, loss_per_token, tokens)
        return _run(self, call, *_input(self, call, x), [])[0]

    @accepting(CACHE_ARGUMENTS)
    def run_with_cache(
        self,
        x: Any,
        *,
        names_filter: Names = None,
        return_type: Returned = "logits",
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        remove_batch_dim: bool = False,
        pos_slice: PosSlice = None,
        prepend_bos: bool | None = None,
        loss_per_token: bool = False,
        tokens: Any = None,
        memory: str | int = "4GB",
    ) -> tuple[Any, Run]:
        """`logits, cache = model.run_with_cache(tokens)`; the cache is the `Run`: `cache["resid_post", 5]`.

        Args:
            names_filter: what to keep: a name, several, a function of the name, or None for everything.
            remove_batch_dim: drop the batch axis of what is cached (one prompt only).
            pos_slice: positions to keep (queries at scores and patterns), counted in each row's real tokens: a number
                (the axis stays), a list, or a slice; `(2, 5)` is the slice 2:5.
            memory: the largest cache that is made.

        Raises:
            BadInput: the cache would be larger than `memory`.
        """
        call = Call(return_type, stop_at_layer, start_at_layer, prepend_bos, loss_per_token, tokens)
        batch, hidden = _input(self, call, x)
        sites, positions = _reached(self, call, named_sites(self, names_filter)), positions_of(pos_slice)
        kept = Kept.of(self, batch, positions)
        size = estimate(self, batch, sites, kept, False)
        if size.kept * len(batch) > bytes_of(memory):
            largest = max(size.sites, key=size.sites.__getitem__)
            total, share = shown(size.kept * len(batch)), shown(size.sites[largest] * len(batch))
            raise BadInput(
                f"caching {len(sites)} activations would take {total} ({largest} alone {share}), over memory="
                f"{memory!r}: name what you need in names_filter=, give pos_slice=, or raise memory="
            )
        out, run = _run(self, call, batch, hidden, sites, positions)
        return out, run.remove_batch_dim() if remove_batch_dim else run

    @accepting(HOOK_ARGUMENTS)
    def run_with_hooks(
        self,
        x: Any,
        fwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
        bwd_hooks: Iterable[tuple[Filter, HookFunction]] = (),
        *,
        return_type: Returned = "logits",
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        prepend_bos: bool | None = None,
        loss_per_token: bool = False,
        tokens: Any = None,
    ) -> Any:
        """`model.run_with_hooks(tokens, fwd_hooks=[("blocks.5.hook_resid_post", fn)])`.

        `fn(activation, hook)` may return a new activation, or change the given one and return it or None. A name may be
        a function of names. Hooks at one place act in the given order.
        """
        call = Call(return_type, stop_at_layer, start_at_layer, prepend_bos, loss_per_token, tokens)
        with self.hooks(fwd_hooks, bwd_hooks):
            return _run(self, call, *_input(self, call, x), [])[0]

    @accepting(HOOK_ARGUMENTS)
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

    def reset_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: no hook outlives its call or its `with`."""

    def set_use_attn_result(self, use_attn_result: bool = True) -> None:
        """Nothing to set: `cache["result", layer]` is computed from z when it is asked for."""

    loss_fn = next_token_loss


put_absent(TransformerLens, ABSENT_FROM_MODELS)


def _input(model: Places, call: Call, x: Any) -> tuple[TokenBatch, Tensor | None]:
    """The tokens, and the stream that the run starts from where it does."""
    if call.start_at_layer is None:
        if call.tokens is not None:
            raise BadInput("tokens= goes with start_at_layer=, whose input is a stream: give the tokens as the prompts")
        return token_batch(model, x, call.prepend_bos), None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim not in (2, 3):
        raise BadInput("with start_at_layer= the input is the stream there, batch pos d_model")
    hidden = x if x.ndim == 3 else x[None]
    if call.tokens is None:
        if call.return_type in ("loss", "both"):
            raise BadInput("a loss needs the tokens: give tokens= with start_at_layer=")
        blank = torch.zeros(hidden.shape[:2], dtype=torch.long, device=model.device)
        return TokenBatch(blank, torch.ones_like(blank, dtype=torch.bool)), hidden
    return token_batch(model, call.tokens, call.prepend_bos), hidden


def _run(
    model: Places,
    call: Call,
    tokens: TokenBatch,
    hidden: Tensor | None,
    sites: list[Site],
    pos_slice: Positions | None = None,
) -> tuple[Any, Run]:
    if call.return_type not in ("logits", "loss", "both", None):
        near = did_you_mean(str(call.return_type), ["logits", "loss", "both"])
        raise BadInput(f"return_type is 'logits', 'loss', 'both' or None, not {call.return_type!r}{near}")
    grad = any(getattr(edit, "backward", False) for edit in model.ambient_edits)
    start = None if hidden is None else (_start(model, call), hidden)
    if call.stop_at_layer is not None:
        at = _stream_before(model, call.stop_at_layer)
        with _own_hooks(model, call) as hooks:
            whole = run(model, tokens, [*sites, at], hooks, logits=False, grad=grad, start=start)
        stream = whole.activations[at]
        kept = Kept.of(model, tokens, pos_slice)
        whole.activations = {site: kept(site, value) for site, value in whole.activations.items() if site in sites}
        whole.columns = kept.columns
        return stream, whole
    needed = call.return_type is not None or not sites
    with _own_hooks(model, call) as hooks:
        whole = run(model, tokens, sites, hooks, logits=needed, grad=grad, positions=pos_slice, start=start)
    if call.return_type is None or whole.logits is None:
        return None, whole
    if call.return_type == "logits":
        return whole.logits, whole
    loss = next_token_loss(model, whole.logits, tokens, per_token=call.loss_per_token)
    return (loss if call.return_type == "loss" else Output(whole.logits, loss)), whole


def _start(model: Places, call: Call) -> Site:
    n, layer = model.cfg.n_layers, call.start_at_layer
    if not isinstance(layer, int) or not -n <= layer < n:
        raise UnknownName(f"start_at_layer={layer}: {model.name} has {n} layers; model.unembed reads the final stream")
    stop = n if call.stop_at_layer is None else call.stop_at_layer
    if (stop if stop >= 0 else stop + n) <= layer % n:
        raise BadInput(f"start_at_layer={layer} and stop_at_layer={call.stop_at_layer} leave no layer to run")
    return Site("resid_pre", layer % n)


def _stream_before(model: Places, layer: int) -> Site:
    n = model.cfg.n_layers
    if not -n <= layer <= n:
        raise UnknownName(f"stop_at_layer={layer}: {model.name} has {n} layers")
    return Site("resid_post", n - 1) if layer == n else Site("resid_pre", layer % n)


def _reached(model: Places, call: Call, sites: list[Site]) -> list[Site]:
    """The sites that a run comes by which starts at a layer, or stops before one."""
    if call.start_at_layer is not None:
        first = _start(model, call).layer or 0
        sites = [s for s in sites if s.name not in ("embed", "pos_embed") and (s.layer is None or s.layer >= first)]
    if call.stop_at_layer is None:
        return sites
    at = _stream_before(model, call.stop_at_layer)
    upto = model.cfg.n_layers if at.name == "resid_post" else at.layer
    assert upto is not None
    return [s for s in sites if s.name in ("embed", "pos_embed") or (s.layer is not None and s.layer < upto)]


@contextmanager
def _own_hooks(model: Places, call: Call) -> Iterator[list[Hook]]:
    """The hooks around the call as edits of its own: they act on the stream that it starts from, and hooks of layers
    that are not run are left out, as in TransformerLens; edits of other kinds still must fire."""
    before = model.ambient_edits
    if call.start_at_layer is None and call.stop_at_layer is None:
        yield []
        return
    hooks = [edit for edit in before if isinstance(edit, Hook)]
    reached = set(_reached(model, call, [model.site(edit.site) for edit in hooks]))
    model.ambient_edits = [edit for edit in before if not isinstance(edit, Hook)]
    try:
        yield [edit for edit in hooks if model.site(edit.site) in reached]
    finally:
        model.ambient_edits = before
