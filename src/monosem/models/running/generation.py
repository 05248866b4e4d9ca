"""Continuations with edits and the KV cache: greedy or drawn, batched, from prompts or from BOS alone."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.modeling_outputs import MoEModelOutput

from ...errors import BadInput
from ..numbers import count
from ..places.places import Places
from ..places.rotations import turned_anew
from ..places.sites import Site, SiteLike, host_of, sites_of
from ..tokens import TokenBatch
from .cache import cache_name, new_cache
from .moment import EditLike
from .result import Run
from .run import edits_of, inputs, moment, refuse_parted
from .sampling import Choose, Sampling, chooser, settings_of
from .session import Session


@dataclass
class Generation:
    """Continuations of a batch of prompts; `generation["resid_post.5"]` is what `capture` kept at the tokens of `ids`.

    Attributes:
        prompt: the prompts, left padded.
        new: new token ids of each row, up to and including an end-of-text token.
        texts: the continuations as text, without special tokens: what comes after the prompt's text.
        ids: prompt and continuation of each row, right padded, ready for `model.run` (which also takes the whole
            `Generation`, as `model.generate` does to go on).
        logits: of the first new token of each row, after the edits, before `sampling`: `batch vocab`.
        run: what was captured of prompt and continuation, as `model.run(generation.ids, capture, edits)` has it with
            edits that do not depend on where the prompt ends.
    """

    prompt: TokenBatch
    new: list[list[int]]
    texts: list[str]
    ids: TokenBatch
    logits: Float[Tensor, "batch vocab"]
    run: Run

    def __getitem__(self, site: SiteLike) -> Tensor:
        return self.run[site]


def generate(
    model: Places,
    x: Any = None,
    edits: EditLike | Iterable[EditLike] = (),
    max_new_tokens: int = 20,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_at_eos: bool = True,
    rows: int = 1,
    capture: Iterable[SiteLike] | SiteLike = (),
    sampling: Sampling = None,
) -> Generation:
    """Continue prompts, with the same result as repeated full forward passes without a cache.

    The next token is the likeliest one, whatever the model's folder asks for; `sampling` follows more.

    Args:
        x: as for `run`, or a `Generation` to go on from (rows that ended, too). None starts from the model's
            BOS token alone, `rows` times (for edits that differ by row).
        edits: applied to the prompt and to every generated token (narrow with `.at(scope=...)`).
        temperature: 0 is greedy; above 0 draws, seeded: the same batch and seed give the same text.
        top_k, top_p: as in transformers, for draws.
        capture: sites to keep of the prompts and of every new token, after the edits there. Scores and patterns are not
            kept: each new token has one key more.
        sampling: "model" follows the `generation_config` of the model's folder; a mapping follows its settings, named
            as in transformers: `{"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}`. Each row is chosen as if it
            were alone, whatever is padded. What is named beside it (temperature, top_k, top_p) goes before it.

    Raises:
        BadInput: empty prompts, prompt and continuation longer than the model's context, a model that attends in both
            directions, or settings that are not followed here (beam search, watermarks, ...).
        UnknownName: a setting that does not exist, or a site that the model does not have.
        EditDidNotFire: an edit that reached no token.
    """
    max_new_tokens = count(max_new_tokens, "max_new_tokens")
    model.refuse_looking_ahead()
    prompt = _prompt(model, x, count(rows, "rows")).to(model.device)
    sites, longest = _per_token(sites_of(capture)), int(prompt.lengths.max())
    read = longest + max_new_tokens - (not sites)  # the last token is read for what is captured there
    if read > model.cfg.n_ctx:
        raise BadInput(
            f"cannot generate {max_new_tokens} tokens after {longest}: {model.name} has a context of "
            f"{model.cfg.n_ctx}; ask for fewer, or shorten the prompt"
        )
    settings = settings_of(model, sampling, temperature, top_k, top_p)
    all_edits = edits_of(model, edits)
    refuse_parted(x, all_edits)
    session = Session(model, sites, all_edits, room=max_new_tokens - (not sites))
    choose = chooser(model, settings, prompt, max_new_tokens, seed)
    ends = model.end_ids if stop_at_eos else frozenset[int]()
    with torch.no_grad(), session:
        made = _decode(session, prompt, choose, max_new_tokens, ends)
    session.check_fired()
    return _generation(session, prompt, made, ends)


def _prompt(model: Places, x: Any, rows: int) -> TokenBatch:
    """The prompts: BOS alone for none, and for sources without a target what their decoder begins with."""
    if model.encoder is None:
        return model.tokens([[model.bos]] * rows if x is None else x, padding="left")
    if x is None:
        raise BadInput(f"{model.name} is an encoder and a decoder: give what its encoder reads")
    if isinstance(x, TokenBatch | Generation):
        return model.tokens(x, padding="left")
    source = model.encoder.tokens(x, padding="right")
    begun = TokenBatch.whole(torch.full((len(source), 1), model.start, device=source.ids.device))
    return replace(begun, source=source)


@dataclass
class _Decoded:
    """Prompts and what was chosen after them, `batch pos`; rows that ended go on with tokens that mean nothing."""

    tokens: TokenBatch
    logits: Float[Tensor, "batch vocab"]
    captured: dict[Site, list[Tensor]]  # a part for each pass, position on axis 1


def _per_token(sites: list[Site]) -> list[Site]:
    for site in sites:
        if "key" in site.axes:
            raise BadInput(
                f"{site} is not kept while tokens are generated, because each new one has one key more; "
                "run them afterwards: model.run(generation.ids, capture=..., edits=...)"
            )
    return sites


def _decode(
    session: Session, prompt: TokenBatch, choose: Choose, max_new_tokens: int, ends: frozenset[int]
) -> _Decoded:
    """Choose token after token until every row has ended. Where sites are captured, the last token is run as well."""
    model, tokens, column = session.model, prompt, 0
    end_ids = torch.tensor(sorted(ends), device=model.device, dtype=torch.long)
    done = torch.zeros(len(prompt), dtype=torch.bool, device=model.device)
    captured: dict[Site, list[Tensor]] = defaultdict(list)
    name, cached = str(cache_name(model.hf)), model.family.cached
    options: dict[str, Any] = {name: new_cache(model), "use_cache": True} if cached else {"use_cache": False}
    if cached and model.encoder is not None:  # some encoders (Switch) refuse the switch; the cache alone says the same
        del options["use_cache"]
    # layers that reuse keys of earlier ones (Gemma 4) would be given the last token alone, and not the prompt's others
    short = model.carries or model.encoder is not None
    if not any(site.shape[-1] == "vocab" for site in session.wanted) and not short:
        options["logits_to_keep"] = 1

    def step() -> Tensor:
        nonlocal column
        turned = turned_anew(model.rotations, tokens.lengths - 1, tokens.lengths) & tokens.mask[:, -1]
        if not cached or bool(turned.any()):  # keys of earlier tokens are wrong now: all tokens are run again
            column = 0
            options.update({name: new_cache(model)} if cached else {})
            captured.clear()
            options.pop("encoder_outputs", None)
        call = partial(model.hf, **inputs(model, tokens, column), **options)
        out = session.forward(moment(tokens, prompt.lengths, column), call)
        logits: Tensor = out.logits[:, -1]
        if cached and model.encoder is not None:  # which reads its source once; NLLB-MoE asks for its routers' logits
            options["encoder_outputs"] = MoEModelOutput(last_hidden_state=out.encoder_last_hidden_state)
        session.check_captured()
        for site in session.wanted:
            if host_of(site).in_source and model.encoder is not None:
                captured[site] = [session.captured[site]]
                continue
            value = session.captured[site]  # rotated keys come with the earlier ones from the cache
            captured[site].append(value[:, column - tokens.ids.shape[1] :])
        return logits

    first = logits = step()
    while True:
        chosen = choose(tokens.ids, logits)
        column = tokens.ids.shape[1]
        # where the length of a row counts, a row that ended keeps it
        tokens = _longer(tokens, chosen, ~done if model.rotations else torch.ones_like(done))
        done |= torch.isin(chosen, end_ids)
        ended = column + 1 == prompt.ids.shape[1] + max_new_tokens or bool(done.all())
        if not ended or session.wanted:
            logits = step()
        if ended:
            return _Decoded(tokens, first, captured)


def _longer(tokens: TokenBatch, chosen: Int[Tensor, "batch"], real: Bool[Tensor, "batch"]) -> TokenBatch:
    ids, mask = torch.cat([tokens.ids, chosen[:, None]], 1), torch.cat([tokens.mask, real[:, None]], 1)
    return replace(tokens, ids=ids, mask=mask)


def _generation(session: Session, prompt: TokenBatch, made: _Decoded, ends: frozenset[int]) -> Generation:
    model, new = session.model, []
    for row in made.tokens.ids[:, prompt.ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        new.append(row[: end + 1])
    whole = [old + fresh for old, fresh in zip(prompt.rows(), new)]
    texts = [written(model, old, fresh) for old, fresh in zip(prompt.rows(), new)]
    source = prompt.source
    ids = replace(TokenBatch.of(whole, model.pad, tokenizer=model.tokenizer), source=source)
    captured = {
        site: parts[0]
        if source is not None and host_of(site).in_source
        else _from_the_left(torch.cat(parts, 1), prompt, ids)
        for site, parts in made.captured.items()
    }
    run = Run(model, ids, None, captured, edited=session.edited)
    return Generation(prompt, new, texts, ids, made.logits, run)


def written(model: Places, before: list[int], new: list[int]) -> str:
    """What new tokens add to the text of the tokens before them, without special tokens.

    SentencePiece decoders drop the space at the start of a text, so a continuation alone would lose it.
    """
    if model.tokenizer is None:
        return model.text(new)
    head, whole = model.text(before), model.text([*before, *new])
    return whole[len(head) :] if whole.startswith(head) else model.text(new)


def _from_the_left(
    value: Float[Tensor, "batch pos ..."], prompt: TokenBatch, ids: TokenBatch
) -> Float[Tensor, "batch pos ..."]:
    """An activation of left padded prompts and what follows, cut to the real tokens of each row, right padded."""
    first = prompt.ids.shape[1] - prompt.lengths.to(value.device)
    columns = first[:, None] + torch.arange(ids.ids.shape[1], device=value.device)
    rows = torch.arange(len(value), device=value.device)[:, None]
    return value[rows, columns.clamp(max=value.shape[1] - 1)]
