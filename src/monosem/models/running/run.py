"""One forward pass: capture sites, apply edits, stop early, start late, keep gradients."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import BadInput
from ...progress import Meter
from ..places.places import Places
from ..places.points import point
from ..places.sites import EMBEDDINGS, Site, SiteLike, host_of, sites_of
from ..sources import without_source
from ..tokens import TokenBatch
from .budget import estimate, rows_that_fit
from .moment import EditLike, Moment
from .result import Run
from .selection import Kept, Positions, from_the_end
from .session import Session, Stop

AnyModel = TypeVar("AnyModel", bound=Places)
Start = tuple[SiteLike, Float[Tensor, "batch pos d_model"]]


def run(
    model: Places,
    x: Any,
    capture: Iterable[SiteLike] | SiteLike = (),
    edits: EditLike | Iterable[EditLike] = (),
    logits: bool | Literal["last"] = True,
    start: Start | None = None,
    grad: bool = False,
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    memory: str | int | None = None,
    target: Any = None,
) -> Run:
    """One forward pass. Only what is named is kept, and no hook stays behind.

    Args:
        x: a prompt or several, of any kind that `models.tokens` lists. No token is added that the tokenizer does not.
        capture: sites to keep, after the edits at that site.
        edits: applied in the given order, after the edits of `model.editing(...)`.
        logits: True for all positions, "last" for each row's last real token (cheaper), False to stop after the last
            captured site.
        start: `("resid_pre.7", h)` skips the blocks before 7 and runs on from h, `batch pos d_model`. The tokens are
            still needed: they give mask and positions. Edits of `model.editing(...)` that lie before it (embeddings,
            too) are left out; one at the start itself is refused, because h may have it already.
        grad: keep the graph, so that `torch.autograd.grad(metric, run[site])` works for every captured site.
        positions: token positions that captured sites keep, cut out inside the hook: an index (0 is a row's first
            real token, negative counts from its end), a list, a slice or "last". The axis stays, also for one. At
            scores and patterns these are the queries.
        heads: heads that captured sites with heads keep, by the site's own numbers: kv heads at k, v and rot_k.
        memory: such as "4GB": run as many rows at a time as fit into this size (estimated), with all that is captured.
        target: what the decoder of an encoder–decoder reads; x is what its encoder reads (`Native.tokens`).

    Raises:
        UnknownName: a site that the model does not have.
        EditDidNotFire: an edit that reached no token.
        SiteDidNotFire: a compiled or replaced forward goes past a captured site.
        BadInput: empty or over-long prompts, ids outside the vocabulary; a start of the wrong shape, or sites and edits
            before it; positions or heads that are not there, or left out by `logits="last"`; a memory budget that a
            single row exceeds, or edits that cannot be split by rows; gradients inside `torch.inference_mode()`.
    """
    if model.device.type == "meta":
        raise BadInput(f"{model.name} was freed: load it again")
    tokens = model.tokens(x, target=target).to(model.device)
    sites, all_edits = sites_of(capture), edits_of(model, edits)
    refuse_parted(x, all_edits)
    if start is not None:
        all_edits = _from_start(model, start, sites, all_edits)
    kept = None if positions is None and heads is None else Kept.of(model, tokens, positions, heads, sites)
    if grad and (kept or memory is not None):
        raise BadInput("gradients need whole activations of all rows: leave out positions=, heads= and memory=")
    _check_asked(model, tokens, sites, kept, logits)
    session = Session(model, sites, all_edits, stop=logits is False, grad=grad, keep=kept)
    needed = None if memory is None else estimate(model, tokens, sites, kept or Kept(), logits)
    rows = len(tokens) if needed is None or memory is None else rows_that_fit(needed, len(tokens), memory)
    if rows < len(tokens):
        _check_splittable(all_edits)
    forward = _Pass(session, tokens, logits, start)
    out, captured = forward() if rows == len(tokens) else _gathered(forward, len(tokens), rows)
    session.check_fired()
    return Run(model, tokens, out, captured, *((kept.columns, kept.heads) if kept else (None, None)), session.edited)


@contextmanager
def editing(model: AnyModel, *edits: EditLike) -> Iterator[AnyModel]:
    """Every run and generation inside, of this thread or task, uses these edits, before its own."""
    model.ambient_edits = [*model.ambient_edits, *map(_edit, edits)]
    try:
        yield model
    finally:  # its own, last first: contexts need not end in the order of their nesting
        left = model.ambient_edits[::-1]
        for edit in edits[::-1]:
            del left[next(i for i, other in enumerate(left) if other is edit)]
        model.ambient_edits = left[::-1]


def edits_of(model: Places, edits: EditLike | Iterable[EditLike]) -> list[EditLike]:
    """The edits of `model.editing(...)`, then these. Raises `BadInput` for what is no edit."""
    given: Any = [edits] if hasattr(edits, "apply") or not isinstance(edits, Iterable) else edits
    return [*model.ambient_edits, *map(_edit, given)]


def _edit(given: Any) -> EditLike:
    if not (hasattr(given, "apply") and isinstance(getattr(given, "site", None), Site)):
        raise BadInput(f"edits are what monosem.edits makes, such as edits.scale('z.3', 0.0), not {given!r:.60}")
    return given  # type: ignore[no-any-return]


def _check_asked(model: Places, tokens: TokenBatch, sites: list[Site], kept: Kept | None, logits: Any) -> None:
    if logits not in (True, False, "last"):
        raise BadInput(f"logits= is True (every token), 'last' or False, not {logits!r:.40}")
    if model.headless and (logits == "last" or not sites):
        raise BadInput(f"{model.name} {model.lacks('logits')}: capture sites")
    if logits is False and not sites:
        raise BadInput("nothing to run for: capture a site or ask for logits")
    late = next((site for site in sites if site.shape[-1] == "vocab"), None)
    columns = None if kept is None or logits != "last" else kept.columns
    if late is not None and columns is not None and not torch.equal(columns.cpu(), tokens.last[:, None].cpu()):
        raise BadInput(
            f"logits='last' unembeds the last token of each row alone, and {late} is to be kept at other positions: "
            "leave out logits='last', or give positions='last'"
        )


def _refuse_padding(model: Places, tokens: TokenBatch) -> None:
    # Llama 4 scales its queries by the number of a column, padding counted, from `floor_scale` on
    tuned = getattr(model.config, "attn_temperature_tuning", False) and tokens.ids.shape[1] >= model.config.floor_scale
    if (tuned or not model.family.padded) and not bool(tokens.mask[:, 0].all()):
        raise BadInput(
            f"prompts of different lengths are padded on the left here, which {model.name} would read as tokens: "
            "give one prompt at a time, prompts of one length, or (to run them) pad on the right"
        )


def refuse_parted(x: Any, edits: Iterable[EditLike]) -> None:
    """Raises `BadInput` where x is a `Generation`, whose new tokens are not told from its prompt any more, and an edit
    depends on where the prompt ends."""
    if not isinstance(getattr(x, "prompt", None), TokenBatch):
        return
    for edit in edits:
        if knows_the_prompt(edit):
            raise BadInput(
                f"{edit} depends on where the prompt ends, and a Generation is read as a prompt with all its tokens: "
                "generate all tokens at once, or give generation.ids if the whole is meant as the prompt"
            )


def knows_the_prompt(edit: EditLike) -> bool:
    """Whether an edit reaches other tokens where a continuation is read as a part of the prompt."""
    if getattr(getattr(edit, "gate", None), "at_prompt_end", False):
        return True
    return getattr(edit, "scope", "all") != "all" or from_the_end(getattr(edit, "positions", None))


def refuse_rows(model: Places, what: str) -> None:
    """Raises `BadInput` where an edit of `model.editing(...)` names rows, and `what` makes batches of its own."""
    for edit in model.ambient_edits:
        if getattr(edit, "rows", None) is not None:
            raise BadInput(
                f"{edit}, of model.editing(...), names rows, and {what} makes batches of its own: narrow the edit by "
                "positions or tokens, or leave that block"
            )


def refuse_ends(model: Places, what: str) -> None:
    """Raises `BadInput` where an edit of `model.editing(...)` depends on where the prompt ends; `what` says why not."""
    for edit in model.ambient_edits:
        if knows_the_prompt(edit):
            raise BadInput(
                f"{edit}, of model.editing(...), depends on where the prompt ends, and {what}: count its positions "
                "from the start, name its tokens, or leave that block"
            )


def _from_start(model: Places, start: Start, sites: Iterable[Site], edits: list[EditLike]) -> list[EditLike]:
    """The edits that a pass from this start comes by. Refuses captures and edits of blocks that are skipped."""
    if not (isinstance(start, tuple) and len(start) == 2 and isinstance(start[1], Tensor)):
        raise BadInput("start= is a site and a tensor batch pos d_model, such as ('resid_pre.7', h)")
    if start[1].is_meta or not bool(start[1].isfinite().all()):
        raise BadInput("start= holds no numbers, or numbers that are not finite: a run from there says nothing")
    first, ambient = model.site(start[0]), {id(edit) for edit in model.ambient_edits}
    late = [edit for edit in edits if not (id(edit) in ambient and lies_before(edit.site, first))]
    # these are made of the tokens, or of the source, all the same
    captured = [site for site in sites if site.name not in EMBEDDINGS and not (site.side and not first.side)]
    for site in [*captured, *(edit.site for edit in late)]:
        if lies_before(site, first):
            raise BadInput(f"{site} lies before the start at {first}, so it is not computed: start earlier")
    for edit in late:
        if id(edit) in ambient and host_of(edit.site) == first:
            raise BadInput(
                f"{edit}, of model.editing(...), is where the run starts, and what it starts from may have it already: "
                "give it as edits= to act on that, or start outside of editing"
            )
    return late


def lies_before(site: Site, start: Site) -> bool:
    """Whether a pass that starts at a place of the stream has left a site behind."""
    if site.side != start.side:
        return bool(site.side)
    if site.layer is None:
        return site.name in EMBEDDINGS
    return start.layer is not None and site.layer < start.layer


@dataclass
class _Pass:
    """A forward pass over some or all rows of one batch."""

    session: Session
    tokens: TokenBatch
    logits: bool | Literal["last"]
    start: Start | None

    def __call__(self, rows: slice | None = None) -> tuple[Tensor | None, dict[Site, Tensor]]:
        session, model, tokens, start = self.session, self.session.model, self.tokens, self.start
        if rows is not None:  # no trimming of columns: the parts are put together again
            tokens = tokens.of_rows(rows)
            start = None if start is None else (start[0], start[1][rows])
        at = moment(tokens, tokens.lengths, column=0)
        at.rows, at.batch = rows, len(self.tokens)
        out = None
        late, last = starting(model, start, tokens), last_only(model, tokens, self.logits)
        with torch.set_grad_enabled(session.grad), late, session, last, suppress(Stop):
            given = session.forward(at, partial(model.hf, **inputs(model, tokens), use_cache=False))
            out = None if model.headless else given.logits
        session.check_captured()
        return (out[:, 0] if out is not None and self.logits == "last" else out), session.captured


def _gathered(forward: _Pass, total: int, rows: int) -> tuple[Tensor | None, dict[Site, Tensor]]:
    """The passes over `rows` rows at a time as one result: each part is copied to its place, none is held twice."""
    whole: dict[Any, Tensor] = {}  # by site, and the logits under None
    with Meter("run", total, "rows") as meter:
        for first in range(0, total, rows):
            part = slice(first, min(first + rows, total))
            out, captured = forward(part)
            values: dict[Any, Tensor] = captured if out is None else {**captured, None: out}
            for site, value in values.items():
                if site not in whole:
                    whole[site] = value.new_empty((total, *value.shape[1:]))
                whole[site][part] = value
            del out, captured, values, value
            meter.advance(part.stop - part.start)
    return whole.pop(None, None), whole


def _check_splittable(edits: Iterable[EditLike]) -> None:
    for edit in edits:
        if not getattr(edit, "by_row", False):
            raise BadInput(
                f"memory= splits the rows, and {edit} may need all of them at once: declare it by_row=True if it "
                "treats every row alone, raise memory=, or give fewer rows"
            )


def moment(tokens: TokenBatch, prompt_lengths: Tensor, column: int) -> Moment:
    """The moment of the chunk of `tokens` that begins at `column`."""
    return Moment(tokens, prompt_lengths, column, batch=len(tokens))


def inputs(model: Places, tokens: TokenBatch, column: int = 0) -> dict[str, Tensor]:
    """Model inputs for the columns from `column` on (earlier ones are in the cache).

    Mask and positions go along whenever there is padding: transformers numbers positions from the left edge, padding
    included, which is wrong for learned positions. Without padding its own defaults are right, and faster; but a
    multimodal model's defaults remember the last picture, and Bamba's number what follows a cache from 0 again.

    Raises:
        BadInput: padding before a prompt that the memory of the model's layers would read.
    """
    _refuse_padding(model, tokens)
    if model.encoder is not None:
        return _of_both(model, tokens, column)
    if tokens.features is not None:
        return {"input_features": tokens.features}
    if model.headless:
        return {"input_ids": tokens.ids, "attention_mask": tokens.mask.long()}
    ids = {"input_ids": tokens.ids[:, column:]}
    if not (tokens.padded or model.multimodal or model.first_position):
        numbered = column and "position_ids" in inspect.signature(model.hf.forward).parameters
        return ids | ({"position_ids": tokens.positions[:, column:]} if numbered else {})
    masked = ids | {"attention_mask": tokens.mask.long()}
    if not model.takes_positions:  # it counts columns: `Session` puts the right rows of its table in
        return masked
    return masked | {"position_ids": tokens.positions[:, column:] + model.first_position}


def _of_both(model: Places, tokens: TokenBatch, column: int) -> dict[str, Tensor]:
    """Inputs of an encoder–decoder; from a column on, the encoder's output is given beside them."""
    source = tokens.source
    if source is None:
        raise without_source(model)
    given = {"decoder_input_ids": tokens.ids[:, column:]}
    if not column:
        given |= {"input_ids": source.ids} if source.features is None else {"input_features": source.features}
    # without masks, T5Gemma would leave out every token that is the padding's
    masks = {"decoder_attention_mask": tokens.mask.long(), "attention_mask": source.mask.long()}
    return given | {name: mask for name, mask in masks.items() if source.features is None or name[:7] == "decoder"}


@contextmanager
def starting(model: Places, start: Start | None, tokens: TokenBatch) -> Iterator[None]:
    """Blocks before the start hand their input on; the start block is given h. Masks and rotations stay native."""
    if start is None:
        yield
        return
    site, hidden = model.site(start[0]), start[1]
    expected = (*tokens.ids.shape, *((model.streams,) if model.streams > 1 else ()), model.cfg.d_model)
    if site.name != "resid_pre" or site.side:
        raise BadInput(f"a run can start at resid_pre.L, not at {site}")
    if tuple(hidden.shape) != expected:
        raise BadInput(f"start at {site} needs shape {expected}, got {tuple(hidden.shape)}")
    assert site.layer is not None
    place = point(model, site)
    hidden = place.join(hidden, hidden).to(model.device, model.dtype)

    def passed_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if several is None else (hidden_states, *[None] * (several - 1))

    with model.turn():  # before the session, whose hooks the look at the blocks would call
        several = model.tuple_blocks
        # blocks that hand on more than the stream compute that from the tokens, and their stream is then replaced
        skipped = model.blocks[: 0 if model.carries or model.loops else site.layer]
        forwards = [block.__dict__.get("forward") for block in skipped]  # accelerate puts one on the instance
        calls, nth = itertools.count(), model.nth[site.layer]

        def replaced(_: nn.Module, args: tuple[Any, ...]) -> Any:
            return (hidden, *args[1:]) if not model.loops or next(calls) == nth else None

        if place.when == "out":  # behind the norm that the first block begins with (RWKV)
            handle = place.module.register_forward_hook(lambda *_: hidden, prepend=True)
        else:
            handle = model.blocks[site.layer].register_forward_pre_hook(replaced, prepend=True)
        for block in skipped:
            block.forward = passed_on
        try:
            yield
        finally:
            handle.remove()
            for block, forward in zip(skipped, forwards):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


@contextmanager
def last_only(model: Places, tokens: TokenBatch, logits: bool | Literal["last"]) -> Iterator[None]:
    """Let the unembedding see the last real token of each row only; soft caps and scales stay native."""
    if logits != "last":
        yield
        return
    rows = torch.arange(len(tokens), device=model.device)

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        return (args[0][rows, tokens.last][:, None],)

    handle = model.hf.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
