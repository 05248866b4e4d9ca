"""Metrics: plain functions of logits, one definition each. All in nats, computed in float32, or in
float64 where the logits are."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from .models import Model, TokenBatch

__all__ = [
    "continuation_perplexity",
    "cross_entropy",
    "joint_log_probability",
    "kl",
    "log_odds",
    "logit_diff",
    "next_token_loss",
    "probability",
    "recovered",
    "set_log_probability",
]


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def kl(p: Float[Tensor, "*batch vocab"], q: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(p‖q) of two sets of logits: what is lost by predicting with q where p holds (0 of a token with p = 0)."""
    log_p, log_q = _precise(p).log_softmax(-1), _precise(q).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).masked_fill(log_p.isneginf(), 0.0).sum(-1)


def cross_entropy(logits: Float[Tensor, "*batch vocab"], target: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """-log softmax(logits)[target]."""
    logits = _precise(logits)
    return logits.logsumexp(-1) - logits.gather(-1, target[..., None])[..., 0]


def probability(logits: Float[Tensor, "*batch vocab"], target: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    return (-cross_entropy(logits, target)).exp()


def logit_diff(
    logits: Float[Tensor, "*batch vocab"], right: Int[Tensor, "*batch"], wrong: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """logits[right] - logits[wrong]."""
    both = torch.stack([right, wrong], -1)
    pair = _precise(logits).gather(-1, both)
    return pair[..., 0] - pair[..., 1]


def joint_log_probability(
    logits: Float[Tensor, "*batch step vocab"], answer: Int[Tensor, "*batch step"]
) -> Float[Tensor, "*batch"]:
    """log p(answer) = sum over its tokens of log p(token | what comes before it); -1 marks no token (shorter answers).

    Args:
        logits: at each step, after the answer's earlier tokens (teacher-forced).
    """
    return -cross_entropy(logits, answer.clamp(min=0)).masked_fill(answer < 0, 0.0).sum(-1)


def set_log_probability(
    logits: Float[Tensor, "*batch vocab"], answers: Int[Tensor, "*batch answer"]
) -> Float[Tensor, "*batch"]:
    """Log of the summed probability of several answers, each counted once; -1 marks no answer (rows with fewer)."""
    logits, answers = _precise(logits), answers.sort(-1).values
    repeated = torch.zeros_like(answers, dtype=torch.bool)
    repeated[..., 1:] = answers[..., 1:] == answers[..., :-1]
    chosen = logits.gather(-1, answers.clamp(min=0)).masked_fill((answers < 0) | repeated, -torch.inf)
    return chosen.logsumexp(-1) - logits.logsumexp(-1)


def log_odds(
    logits: Float[Tensor, "*batch vocab"], right: Int[Tensor, "*batch answer"], wrong: Int[Tensor, "*batch answer"]
) -> Float[Tensor, "*batch"]:
    """log P(any right answer) - log P(any wrong answer): the logit difference where each is a single token."""
    return set_log_probability(logits, right) - set_log_probability(logits, wrong)


def next_token_loss(logits: Float[Tensor, "batch pos vocab"], tokens: "TokenBatch") -> Float[Tensor, "batch pos-1"]:
    """Cross-entropy of each next token; NaN where either token is padding. The last logits may be missing."""
    tokens = tokens.to(logits.device)
    ids, real = tokens.ids, tokens.mask[:, 1:] & (tokens.before >= 0)
    if tokens.gap is not None:  # padding between tokens: each is predicted by the real one before it
        logits = logits[torch.arange(len(logits))[:, None], tokens.before.clamp(min=0)]
    return cross_entropy(logits[:, : ids.shape[1] - 1], ids[:, 1:]).masked_fill(~real, float("nan"))


def recovered(base: float, zero: float, edited: float) -> float:
    """(zero - edited) / (zero - base): 1 when the edit costs nothing, 0 when it is as bad as zero ablation."""
    return (zero - edited) / (zero - base)


def continuation_perplexity(
    model: "Model", tokens: "TokenBatch", prompt_lengths: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """exp(mean loss) of each row's tokens after its prompt, under the unedited model; NaN where there are none.

    Args:
        tokens: prompt and continuation, as `Generation.ids`.
        prompt_lengths: real prompt tokens of each row.
    """
    full = int(tokens.lengths.max()) > model.cfg.n_ctx  # the last token was written, and need not be read
    read = replace(tokens, ids=tokens.ids[:, :-1], mask=tokens.mask[:, :-1]) if full else tokens
    losses = next_token_loss(model.run(read).logits, tokens)  # type: ignore[arg-type]
    predicted = tokens.positions[:, 1:].to(losses.device)
    in_prompt = predicted < prompt_lengths.to(losses.device)[:, None]
    return losses.masked_fill(in_prompt, float("nan")).nanmean(-1).exp().cpu()
