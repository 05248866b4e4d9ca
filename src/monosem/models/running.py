"""One forward pass: capture sites, apply edits, stop early, start late, keep gradients."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import BadInput, UnknownName, did_you_mean
from .session import EditLike, Moment, Session, Stop
from .sites import Site, SiteLike, sites_of
from .tokens import TokenBatch

if TYPE_CHECKING:
    from .model import Model

Start = tuple[SiteLike, Float[Tensor, "batch pos d_model"]]


@dataclass
class Run:
    """What one forward pass left: `run.logits`, and `run["resid_post.15"]` for every captured site.

    Attributes:
        tokens: the token batch that went in (with its mask; padded columns hold no meaning).
        logits: `batch pos vocab`; `batch vocab` for `logits="last"`; None for `logits=False`.
        activations: captured site -> tensor, shapes as listed in `monosem.models.sites`.
    """

    model: "Model"
    tokens: TokenBatch
    logits: Tensor | None
    activations: dict[Site, Tensor] = field(default_factory=dict)

    def __getitem__(self, site: SiteLike) -> Tensor:
        wanted = Site.parse(site)
        if wanted not in self.activations:
            held = [str(s) for s in self.activations]
            hint = did_you_mean(str(wanted), held) or f"; captured: {', '.join(held) or 'nothing'}"
            raise UnknownName(f"{wanted} was not captured{hint}; name it in capture=[...]")
        return self.activations[wanted]

    def __contains__(self, site: SiteLike) -> bool:
        return Site.parse(site) in self.activations

    def last(self, site: SiteLike) -> Float[Tensor, "batch ..."]:
        """The activation at the last real token of each row."""
        value = self[site]
        if Site.parse(site).query_axis == 2:
            value = value.transpose(1, 2)
        return value[torch.arange(len(self.tokens), device=value.device), self.tokens.last.to(value.device)]

    @property
    def str_tokens(self) -> list[list[str]]:
        return [[self.model.str_token(token) for token in row] for row in self.tokens.rows()]


def run(
    model: "Model",
    x: Any,
    capture: Iterable[SiteLike] | SiteLike = (),
    edits: EditLike | Iterable[EditLike] = (),
    logits: bool | Literal["last"] = True,
    start: Start | None = None,
    grad: bool = False,
) -> Run:
    """One forward pass. Only what is named is kept, and no hook stays behind.

    Args:
        x: text, list of texts, token ids, or a `TokenBatch`. No token is added that the tokenizer does not add itself.
        capture: sites to keep, after the edits at that site.
        edits: applied in the given order, after those of `model.editing(...)`.
        logits: True for all positions, "last" for the last real token of each row (cheaper), False to stop the pass
            right after the last captured site.
        start: `("resid_pre.7", h)` skips the blocks before 7 and runs on from h, `batch pos d_model`. The tokens are
            still needed: they give mask and positions.
        grad: keep the graph, so that `torch.autograd.grad(metric, run[site])` works for every captured site.

    Raises:
        UnknownName: a site that the model does not have.
        EditDidNotFire: an edit that reached no token.
        BadInput: empty or over-long prompts, ids outside the vocabulary, a start of the wrong shape.
    """
    tokens = model.tokens(x).to(model.device)
    sites = [model.site(s) for s in sites_of(capture)]
    all_edits = [*model.ambient_edits, *([edits] if hasattr(edits, "apply") else edits)]  # type: ignore[list-item]
    for edit in all_edits:
        model.site(edit.site)
    if logits is False and not sites:
        raise BadInput("nothing to run for: capture a site or ask for logits")

    session = Session(model, sites, all_edits, stop=logits is False, grad=grad)
    session.moment = moment(tokens, tokens.lengths, column=0)
    out = None
    late, last = _starting(model, start, tokens), _last_only(model, tokens, logits)
    with torch.set_grad_enabled(grad), session, late, last, suppress(Stop):
        out = model.hf(**inputs(tokens), use_cache=False).logits
    session.check_fired()
    if out is not None and logits == "last":
        out = out[:, 0]
    return Run(model, tokens, out, session.captured)


def moment(tokens: TokenBatch, prompt_lengths: Tensor, column: int) -> Moment:
    """The moment of the chunk of `tokens` that begins at `column`."""
    part = slice(column, None)
    return Moment(tokens.mask[:, part], tokens.positions[:, part], prompt_lengths, column, tokens.ids[:, part])


def inputs(tokens: TokenBatch, column: int = 0) -> dict[str, Tensor]:
    """Model inputs for the columns from `column` on (earlier ones are in the cache).

    Mask and positions go along whenever there is padding: transformers numbers positions from the left edge, padding
    included, which is wrong for learned positions. Without padding its own defaults are right, and faster.
    """
    given = {"input_ids": tokens.ids[:, column:]}
    if tokens.padded:
        given |= {"attention_mask": tokens.mask.long(), "position_ids": tokens.positions[:, column:]}
    return given


@contextmanager
def _starting(model: "Model", start: Start | None, tokens: TokenBatch) -> Iterator[None]:
    """Blocks before the start hand their input on; the start block is given h. Masks and rotations stay native."""
    if start is None:
        yield
        return
    site, hidden = model.site(start[0]), start[1]
    expected = (*tokens.ids.shape, model.cfg.d_model)
    if site.name != "resid_pre":
        raise BadInput(f"a run can start at resid_pre.L, not at {site}")
    if tuple(hidden.shape) != expected:
        raise BadInput(f"start at {site} needs shape {expected}, got {tuple(hidden.shape)}")
    assert site.layer is not None
    blocks = model.blocks
    given = blocks[site.layer].register_forward_pre_hook(
        lambda _, args: (hidden.to(model.device, model.dtype), *args[1:]), prepend=True
    )
    own = [block.__dict__.get("forward") for block in blocks[: site.layer]]
    for block in blocks[: site.layer]:
        block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    try:
        yield
    finally:
        given.remove()
        for block, forward in zip(blocks, own):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _last_only(model: "Model", tokens: TokenBatch, logits: bool | Literal["last"]) -> Any:
    """Let the unembedding see the last real token of each row only; soft caps and scales stay native."""
    if logits != "last":
        return nullcontext()
    rows = torch.arange(len(tokens), device=model.device)

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        return (args[0][rows, tokens.last][:, None],)

    return _Handle(model.hf.get_output_embeddings().register_forward_pre_hook(gather))


class _Handle:
    def __init__(self, handle: torch.utils.hooks.RemovableHandle):
        self.handle = handle

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.handle.remove()
