"""Patchscopes: an activation is read by putting it into another prompt and letting the model speak.

Ghandeharioun et al. 2024, "Patchscopes": (S, i, M, l) -> f -> (T, i*, M*, l*). Run the source prompt S on M, take the
stream h at position i after layer l, map it with f, overwrite position i* after layer l* of the target prompt T on M*,
and read the next-token distribution or let M* continue. With T = S, i* = i, f the identity and l* the last layer this
is the logit lens. During generation the edit is made in the prompt (prefill) only.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput
from ...models import Layers, Model, Positions, Site, TokenBatch
from ...models.running.selection import columns_of
from ...results import analysis
from ..measures import Measure, log_probability, rank
from ..states import read_out
from .affine import MapLike, mapped
from .host import Host, Transplants
from .result import PatchscopeResult
from .target import TOKEN_IDENTITY, TargetPrompt

Answer = str | int | Sequence[str | int] | None


@analysis
def patchscope(
    model: Model,
    x: Any,
    target: TargetPrompt | Any = TOKEN_IDENTITY,
    *,
    layers: Layers = None,
    positions: Positions | None = None,
    site: Literal["resid_pre", "resid_post"] = "resid_post",
    answer: Answer = None,
    top: int = 5,
    max_new_tokens: int = 0,
    batch_size: int = 64,
    quiet: bool = False,
) -> PatchscopeResult:
    """What the target prompt makes of the source's activations, for every prompt x layer x position at once.

    Args:
        x: one source prompt or several (S).
        target: the target prompt (T), with its model, layer, and the map; a plain text is overwritten at its last token
            and read after it.
        layers: source layers l; all by default, negative ones count from the last.
        positions: source positions i, negative from the end; by default all of a single prompt, the last of several.
        site: "resid_post" is the stream after layer l, "resid_pre" before it (`resid_pre` of layer 0 is the embedding).
        answer: what ought to be read: "final" (the token that the source model itself predicts there; its mean hit
            rate is the paper's precision@1), "token" (the token at the source position), one token for all, or one
            for each prompt. Gives `log_probability` and `rank`.
        top: likeliest tokens to keep a cell.
        max_new_tokens: also let the model write this many tokens greedily from every cell.
        batch_size: cells in a batch.

    Raises:
        UnknownName: a layer that does not exist. BadInput: a position that does not exist, an answer that is not one
            token. Mismatch: the mapped activation does not have the width of the target's stream.
    """
    _check(site, top, batch_size, max_new_tokens)
    goal = target if isinstance(target, TargetPrompt) else TargetPrompt(target)
    other = goal.model or model
    host, tokens = Host(other, goal.tokens(other), site), model.tokens(x)
    wanted = model.layers(layers)
    targets = other.layers(wanted if goal.layer == "same" else [goal.layer] * len(wanted))
    columns = columns_of(tokens, (slice(None) if len(tokens) == 1 else "last") if positions is None else positions)
    index = tokens.positions.cpu().gather(1, columns)
    after = host.tokens.rows()[0] if goal.read == -1 else None  # the prompt that an answer in words goes on
    answers = _answers(model, other, tokens, columns, answer, after)
    sites = [model.site((site, layer)) for layer in wanted]
    h = _activations(model, tokens, columns, sites, goal.mapping, other)
    cells = _transplants(host, goal, h, targets, index)
    states, texts = host.tell(cells, batch_size, max_new_tokens, quiet)
    ids = tokens.ids.cpu().gather(1, columns).tolist()
    return PatchscopeResult(
        model=other,
        sites=sites,
        positions=index,
        words=[[model.str_token(token) for token in row] for row in ids],
        target=other.text(host.tokens.ids[0].tolist(), special=True),
        texts=_in_grid(texts, h.shape[:3]) if max_new_tokens else None,
        **_numbers(other, states, h.shape[:3], top, answers),
    )


def _check(site: str, top: int, batch_size: int, max_new_tokens: int) -> None:
    if site not in ("resid_pre", "resid_post"):
        raise BadInput(f"a patchscope moves the stream: site is 'resid_post' or 'resid_pre', not {site!r}")
    if top < 1 or batch_size < 1 or max_new_tokens < 0:
        numbers = f"{top}, {batch_size}, {max_new_tokens}"
        raise BadInput(f"top and batch_size must be at least 1 and max_new_tokens at least 0, got {numbers}")


def _answers(
    model: Model, other: Model, tokens: TokenBatch, columns: Tensor, answer: Answer, after: list[int] | None
) -> Int[Tensor, "prompt position"] | None:
    """The ids of the answers in the target's vocabulary."""
    if answer is None:
        return None
    if answer == "token":
        ids = tokens.ids.cpu().gather(1, columns)
    elif answer == "final":
        final = model.run(tokens, capture="final_norm", logits=False)["final_norm"]
        rows = torch.arange(len(tokens))[:, None]
        ids = model.unembed(final[rows, columns.to(final.device)], norm=False).argmax(-1).cpu()
    else:
        listed = [answer] * len(tokens) if isinstance(answer, str | int) else list(answer)
        if len(listed) != len(tokens):
            raise BadInput(f"{len(listed)} answers for {len(tokens)} prompts; give one, or one for each")
        one = torch.tensor([other.to_single_token(token, after) for token in listed])
        return one[:, None].expand(columns.shape)
    if other is not model:  # another vocabulary may spell the same token with another id
        spelled = [model.str_token(i) for i in ids.flatten().tolist()]
        exact = [other.shown_as(text) for text in spelled]
        flat = [other.to_single_token(text) if i is None else i for i, text in zip(exact, spelled)]
        ids = torch.tensor(flat).reshape(ids.shape)
    return ids


def _activations(
    model: Model, tokens: TokenBatch, columns: Tensor, sites: list[Site], mapping: MapLike, other: Model
) -> Float[Tensor, "layer prompt position d_target"]:
    """f(h) of every cell."""
    run = model.run(tokens, capture=sites, logits=False)
    rows, where = torch.arange(len(tokens))[:, None], columns.to(model.device)
    parts = [mapped(run[site][rows, where], mapping, site.layer or 0, other.cfg.d_model) for site in sites]
    return torch.stack(parts).to(other.device)


def _transplants(host: Host, goal: TargetPrompt, h: Tensor, targets: list[int], index: Tensor) -> Transplants:
    """Every cell with its places in the target."""
    at = host.places(goal.position, index)
    h = host.rescaled(h, targets, at) if goal.match_norm else h
    return Transplants.of(h, targets, at, at if goal.read == "same" else host.places(goal.read, index))


def _numbers(other: Model, states: Tensor, shape: torch.Size, top: int, answers: Tensor | None) -> dict[str, Any]:
    """Likeliest tokens of every cell, and how the answer fares there."""
    measures: dict[str, Measure] = {}
    if answers is not None:
        expected = answers.expand(shape).flatten()
        measures = {"log_probability": log_probability(expected), "rank": rank(expected)}
    logits = lambda part: other.unembed(states[part])  # noqa: E731
    seen = read_out([logits], logits, len(states), other.cfg.d_vocab, measures, top)
    return {
        "answers": answers,
        "top_ids": seen.top_ids[0].unflatten(0, shape),
        "top_probabilities": seen.top_probabilities[0].unflatten(0, shape),
        "log_probability": seen.measures["log_probability"][0].reshape(shape) if measures else None,
        "rank": seen.measures["rank"][0].reshape(shape).long() if measures else None,
    }


def _in_grid(texts: list[str], shape: torch.Size) -> list[list[list[str]]]:
    layers, prompts, positions = shape
    rows = [texts[start : start + positions] for start in range(0, len(texts), positions)]
    return [rows[start : start + prompts] for start in range(0, layers * prompts, prompts)]
