"""Continuations with edits and the KV cache: greedy or sampled, batched, from prompts or from BOS alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ...errors import BadInput
from ..places.places import Places
from ..tokens import TokenBatch
from .moment import EditLike
from .run import edits_of, inputs, moment
from .session import Session


@dataclass
class Generation:
    """Continuations of a batch of prompts.

    Attributes:
        prompt: the prompts, left padded.
        new: new token ids of each row, up to and including an end-of-text token.
        texts: the continuations as text, without special tokens.
        ids: prompt and continuation of each row, right padded, ready for `model.run`.
    """

    prompt: TokenBatch
    new: list[list[int]]
    texts: list[str]
    ids: TokenBatch


def generate(
    model: Places,
    x: Any = None,
    edits: EditLike | Iterable[EditLike] = (),
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_at_eos: bool = True,
    rows: int = 1,
) -> Generation:
    """Continue prompts, with the same result as repeated full forward passes without a cache.

    Args:
        x: as for `run`; None starts from the model's BOS token alone, `rows` times (for edits that differ by row).
        edits: applied to the prompt and to every generated token (narrow with `.at(scope=...)`).
        temperature: 0 is greedy; above 0 samples, seeded: the same batch and seed give the same text.
        top_k, top_p: as in transformers, for sampling.

    Raises:
        BadInput: empty prompts, or prompt and continuation longer than the model's context.
        EditDidNotFire: an edit that reached no token.
    """
    prompt = model.tokens([[model.bos]] * rows if x is None else x, padding="left").to(model.device)
    longest = prompt.ids.shape[1] + max_new_tokens
    if max_new_tokens < 1 or longest > model.cfg.n_ctx:
        raise BadInput(
            f"cannot generate {max_new_tokens} tokens after {prompt.ids.shape[1]}: "
            f"need at least 1, and {model.name} has a context of {model.cfg.n_ctx}"
        )
    session = Session(model, (), edits_of(model, edits))
    choose = _chooser(temperature, top_k, top_p, seed, model.device)
    ends = torch.tensor(sorted(model.end_ids) if stop_at_eos else [], device=model.device, dtype=torch.long)

    tokens, column = prompt, 0
    cache = DynamicCache(config=model.hf.config)
    done = torch.zeros(len(prompt), dtype=torch.bool, device=model.device)
    with torch.no_grad(), session:
        for _ in range(max_new_tokens):
            options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
            call = partial(model.hf, **inputs(tokens, column), **options)
            out = session.forward(moment(tokens, prompt.lengths, column), call)
            chosen = choose(tokens.ids, out.logits[:, -1])
            column = tokens.ids.shape[1]
            tokens = TokenBatch(
                torch.cat([tokens.ids, chosen[:, None]], 1), torch.cat([tokens.mask, torch.ones_like(done)[:, None]], 1)
            )
            done |= torch.isin(chosen, ends)
            if bool(done.all()):
                break
    session.check_fired()
    return _generation(model, prompt, tokens, set(ends.tolist()))


def _chooser(temperature: float, top_k: int | None, top_p: float | None, seed: int, device: torch.device) -> Any:
    if temperature < 0:
        raise BadInput(f"temperature must be 0 (greedy) or more, got {temperature}")
    if temperature == 0:
        return lambda ids, logits: logits.argmax(-1)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    generator = torch.Generator(device=device).manual_seed(seed)

    def sample(ids: Int[Tensor, "batch pos"], logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
        probabilities = warpers(ids, logits.float()).softmax(-1)  # type: ignore[arg-type]
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return sample


def _generation(model: Places, prompt: TokenBatch, tokens: TokenBatch, ends: set[int]) -> Generation:
    new = []
    for row in tokens.ids[:, prompt.ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        new.append(row[: end + 1])
    whole = [old + fresh for old, fresh in zip(prompt.rows(), new)]
    texts = [model.text(row) for row in new]
    return Generation(prompt, new, texts, TokenBatch.of(whole, model.pad))
