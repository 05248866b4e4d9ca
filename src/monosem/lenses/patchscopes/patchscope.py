"""Patchscopes: an activation is read by putting it into another prompt and letting the model speak.

Ghandeharioun et al. 2024, "Patchscopes": (S, i, M, l) -> f -> (T, i*, M*, l*). Run the source prompt S on M, take the
stream h at position i after layer l, map it with f, overwrite position i* after layer l* of the target prompt T on M*,
and read the next-token distribution or let M* continue. With T = S, i* = i, f the identity and l* the last layer this
is the logit lens. During generation the edit is made in the prompt (prefill) only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...edits import Edit
from ...errors import BadInput
from ...models import Model, Site, TokenBatch
from ...progress import Meter
from ..states import log_probability, rank, stream
from .mapping import MapLike, mapped
from .result import PatchscopeResult

Position = int | Literal["same"]
Answer = str | int | Sequence[str | int] | None


@dataclass(frozen=True)
class TargetPrompt:
    """T and i*: the prompt that an activation is put into, and where.

    Attributes:
        text: anything that `Model.run` takes, one prompt.
        position: token that is overwritten, negative from the end, or "same" for the source's own position.
        read: token after which the next-token distribution is read, or "same" for the overwritten one.
    """

    text: Any
    position: Position = -1
    read: Position = -1

    def tokens(self, model: Model) -> TokenBatch:
        """Raises `BadInput` when it is not one prompt."""
        host = model.tokens(self.text).to(model.device)
        if len(host) != 1:
            raise BadInput(f"the target is one prompt, got {len(host)}")
        return host


# the paper's two: what token is this, and what entity
TOKEN_IDENTITY = TargetPrompt("cat->cat; 1135->1135; hello->hello; ?")
ENTITY_DESCRIPTION = TargetPrompt(
    "Syria: Syria is a country in the Middle East, "
    "Leonardo DiCaprio: Leonardo DiCaprio is an American actor, "
    "Samsung: Samsung is a South Korean multinational major appliance and consumer electronics corporation, x"
)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Combinations prompt x layer x position, flat, ordered by target layer: the rows of the batches."""

    h: Float[Tensor, "cell d_target"]
    target_layer: Int[Tensor, "cell"]
    at: Int[Tensor, "cell"]  # token of the target that is overwritten
    read: Int[Tensor, "cell"]  # token of the target that is read
    order: Int[Tensor, "cell"]  # place of each cell in the grid [prompt, layer, position]

    def __len__(self) -> int:
        return len(self.h)

    def chunks(self, rows: int) -> Iterator["_Cells"]:
        for start in range(0, len(self), rows):
            yield _Cells(*(getattr(self, field.name)[start : start + rows] for field in fields(self)))


def patchscope(
    model: Model,
    source: Any,
    target: TargetPrompt | str = TOKEN_IDENTITY,
    *,
    layers: Iterable[int] | int | None = None,
    positions: Sequence[int] | int | None = None,
    target_model: Model | None = None,
    target_layer: int | Literal["same"] = "same",
    mapping: MapLike = None,
    match_norm: bool = False,
    answer: Answer = None,
    site: Literal["resid_pre", "resid_post"] = "resid_post",
    top: int = 5,
    generate: int = 0,
    rows: int = 64,
    quiet: bool = False,
) -> PatchscopeResult:
    """What the target prompt makes of the source's activations, for every prompt x layer x position at once.

    Args:
        source: one prompt or several (S).
        target: the target prompt (T); a plain text is overwritten at its last token and read after it.
        layers: source layers l; all by default, negative ones count from the last.
        positions: source positions i, negative from the end; by default all of a single prompt, the last of several.
        target_model: M*; the source's own model by default. Another width needs a `mapping`.
        target_layer: l*; "same" is the source's layer.
        mapping: f: None (identity), a function of `[batch, d_model]`, or one for each source layer `{layer: f}`;
            `Affine.fit` and `affine_between` make them.
        match_norm: rescale f(h) to the norm of what it overwrites.
        answer: what ought to be read: "final" (the token that the source model itself predicts there; its mean hit
            rate is the paper's precision@1), "token" (the token at the source position), one token for all, or one
            for each prompt. Gives `log_probability` and `rank`.
        site: "resid_post" is the stream after layer l, "resid_pre" before it (`resid_pre` of layer 0 is the embedding).
        top: likeliest tokens to keep a cell.
        generate: also let the model write this many tokens greedily from every cell.
        rows: cells in a batch.

    Raises:
        BadInput: a layer or position that does not exist, an answer that is not one token.
        Mismatch: the mapped activation does not have the width of the target's stream.
    """
    _check(site, top, rows, generate)
    other = target_model or model
    prompt = target if isinstance(target, TargetPrompt) else TargetPrompt(target)
    host = prompt.tokens(other)
    tokens = model.tokens(source)
    wanted = model.layers(layers)
    targets = wanted if target_layer == "same" else other.layers(target_layer) * len(wanted)
    other.layers(targets)
    columns = _columns(tokens, positions)
    index = tokens.positions.cpu().gather(1, columns)
    answers = _answers(model, other, tokens, columns, answer)
    h = _activations(model, tokens, columns, wanted, site, mapping, other)
    at = _places(prompt.position, index, host)
    if match_norm:
        h = _rescaled(h, other, host, targets, at, site)
    cells = _cells(h, targets, at, at if prompt.read == "same" else _places(prompt.read, index, host))

    states, texts = _told(other, host, cells, site, rows, generate, quiet)
    shape = h.shape[:3]
    return PatchscopeResult(
        model=other,
        layers=wanted,
        positions=index,
        tokens=[[model.str_token(token) for token in row] for row in tokens.ids.cpu().gather(1, columns).tolist()],
        target=other.text(host.ids[0].tolist(), special=True),
        target_layer=target_layer,
        site=site,
        texts=[texts[i : i + shape[2]] for i in range(0, len(texts), shape[2])] if generate else None,
        **_numbers(other, states, shape, top, answers),
    )


def _check(site: str, top: int, rows: int, generate: int) -> None:
    if site not in ("resid_pre", "resid_post"):
        raise BadInput(f"a patchscope moves the stream: site is 'resid_post' or 'resid_pre', not {site!r}")
    if top < 1 or rows < 1 or generate < 0:
        raise BadInput(f"top and rows must be at least 1 and generate at least 0, got {top}, {rows}, {generate}")


def _told(
    other: Model, host: TokenBatch, cells: "_Cells", site: str, rows: int, generate: int, quiet: bool
) -> tuple[Float[Tensor, "cell d_model"], list[str]]:
    """The last stream at the position that is read, and the continuation, of every cell, in the order of the grid."""
    states = torch.empty(len(cells), other.cfg.d_model, device=other.device, dtype=other.dtype)
    texts = [""] * len(cells)
    with Meter("patchscope", total=len(cells), unit="cell", quiet=quiet) as meter:
        for chunk in cells.chunks(rows):
            states[chunk.order.to(states.device)] = _final_states(other, host, chunk, site)
            for place, text in zip(chunk.order.tolist(), _continued(other, host, chunk, site, generate)):
                texts[place] = text
            meter.advance(len(chunk))
    return states, texts


def _numbers(other: Model, states: Tensor, shape: torch.Size, top: int, answers: Tensor | None) -> dict[str, Any]:
    """Likeliest tokens of every cell, and how the answer fares there."""
    measures = {}
    if answers is not None:
        expected = answers[:, None].expand(shape).flatten()
        measures = {"log_probability": log_probability(expected), "rank": rank(expected)}
    logits = lambda part: other.unembed(states[part])  # noqa: E731
    seen = stream([logits], logits, len(states), other.cfg.d_vocab, measures, top)
    return {
        "top_ids": seen.top_ids[0].unflatten(0, shape),
        "top_probabilities": seen.top_probabilities[0].unflatten(0, shape),
        "answers": answers,
        "log_probability": seen.measures["log_probability"][0].reshape(shape) if measures else None,
        "rank": seen.measures["rank"][0].reshape(shape).long() if measures else None,
    }


# ---------------------------------------------------------------------- the source


def _columns(tokens: TokenBatch, positions: Sequence[int] | int | None) -> Int[Tensor, "prompt position"]:
    """Columns of the wanted positions of each prompt, in its padded batch."""
    lengths = tokens.lengths.cpu()
    if positions is None:
        positions = list(range(int(lengths[0]))) if len(tokens) == 1 else [-1]
    listed = [positions] if isinstance(positions, int) else list(positions)
    shortest = int(lengths.min())
    if not listed or any(not -shortest <= position < shortest for position in listed):
        raise BadInput(f"positions {listed}: the shortest source prompt has tokens 0 to {shortest - 1}")
    index = torch.tensor([[p if p >= 0 else int(length) + p for p in listed] for length in lengths])
    return index + tokens.mask.cpu().long().argmax(1)[:, None]  # from each row's first real token


def _answers(
    model: Model, other: Model, tokens: TokenBatch, columns: Tensor, answer: Answer
) -> Int[Tensor, "prompt position"] | None:
    if answer is None:
        return None
    if answer == "token":
        ids = tokens.ids.cpu().gather(1, columns)
    elif answer == "final":
        final = model.run(tokens, capture="final_norm", logits=False)["final_norm"]
        rows = torch.arange(len(tokens))[:, None]
        ids = model.unembed(final[rows, columns.to(final.device)], norm=False).argmax(-1).cpu()
    else:
        given = [answer] * len(tokens) if isinstance(answer, str | int) else list(answer)
        if len(given) != len(tokens):
            raise BadInput(f"{len(given)} answers for {len(tokens)} prompts; give one, or one for each")
        one = torch.tensor([other.to_single_token(token) for token in given])
        return one[:, None].expand(columns.shape)
    if other is not model:  # another vocabulary may spell the same token with another id
        flat = [other.to_single_token(model.str_token(i)) for i in ids.flatten().tolist()]
        ids = torch.tensor(flat).reshape(ids.shape)
    return ids


def _activations(
    model: Model, tokens: TokenBatch, columns: Tensor, layers: list[int], site: str, mapping: MapLike, other: Model
) -> Float[Tensor, "prompt layer position d_target"]:
    """f(h) of every cell."""
    names = [f"{site}.{layer}" for layer in layers]
    run = model.run(tokens, capture=names, logits=False)
    rows, where = torch.arange(len(tokens))[:, None], columns.to(model.device)
    parts = [run[name][rows, where] for name in names]
    return torch.stack([mapped(h, mapping, at, other.cfg.d_model) for h, at in zip(parts, layers)], 1).to(other.device)


# ---------------------------------------------------------------------- the target


def _places(position: Position, index: Tensor, host: TokenBatch) -> Int[Tensor, "prompt position"]:
    """Token of the target for each source position."""
    length = host.ids.shape[1]
    if position == "same":
        if int(index.max()) >= length:
            raise BadInput(
                f"source position {int(index.max())} does not exist in the target, which has {length} tokens"
            )
        return index
    if not -length <= position < length:
        raise BadInput(f"the target has tokens 0 to {length - 1}, there is no token {position}")
    return torch.full_like(index, position % length)


def _rescaled(h: Tensor, other: Model, host: TokenBatch, targets: list[int], at: Tensor, site: str) -> Tensor:
    """h with the norms of what it is about to overwrite."""
    names = [f"{site}.{layer}" for layer in targets]
    base = other.run(host, capture=set(names), logits=False)
    own = torch.stack([base[name][0][at.to(other.device)] for name in names], 1)
    norm = torch.linalg.vector_norm
    ratio = norm(own.float(), dim=-1, keepdim=True) / norm(h.float(), dim=-1, keepdim=True).clamp(min=1e-30)
    return h.float() * ratio


def _cells(h: Tensor, targets: list[int], at: Tensor, read: Tensor) -> _Cells:
    shape = h.shape[:3]
    layer = torch.tensor(targets)[None, :, None].expand(shape).flatten()
    order = layer.argsort(stable=True)
    where, after = (part[:, None].expand(shape).flatten()[order] for part in (at, read))
    return _Cells(h.flatten(0, 2)[order.to(h.device)], layer[order], where, after, order)


def _edits(cells: _Cells, site: str) -> list[Edit]:
    """One edit for each target layer of these rows; it writes row r's activation at its position, in the prompt."""
    at = cells.at[:, None].to(cells.h.device)
    made = Edit(
        Site(site, 0),
        lambda x, _: cells.h[:, None].to(x.device, x.dtype).expand_as(x),
        "patchscope",
        scope="prompt",
        gate=lambda _, moment: moment.positions == at,
    )
    return [
        replace(made, site=Site(site, layer), rows=(cells.target_layer == layer).nonzero()[:, 0].tolist())
        for layer in cells.target_layer.unique().tolist()
    ]


def _final_states(other: Model, host: TokenBatch, cells: _Cells, site: str) -> Float[Tensor, "cell d_model"]:
    """The last residual stream at the position that is read. The blocks before the first edit run once for all rows."""
    rows, first = len(cells), int(cells.target_layer.min())
    last = f"resid_post.{other.cfg.n_layers - 1}"
    start = None
    if first > 0:
        entry = f"resid_pre.{first}"
        start = (entry, other.run(host, capture=entry, logits=False)[entry].expand(rows, -1, -1))
    tokens = TokenBatch(host.ids.expand(rows, -1), host.mask.expand(rows, -1))
    final = other.run(tokens, capture=last, edits=_edits(cells, site), logits=False, start=start)[last]
    return final[torch.arange(rows, device=final.device), cells.read.to(final.device)]


def _continued(other: Model, host: TokenBatch, cells: _Cells, site: str, tokens: int) -> list[str]:
    if tokens == 0:
        return []
    prompts = host.ids.expand(len(cells), -1)
    return other.generate(prompts, edits=_edits(cells, site), max_new_tokens=tokens).texts
