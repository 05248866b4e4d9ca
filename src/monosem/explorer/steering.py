"""Continuations with latents and directions turned up or down, several strengths beside each other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import edits
from ..errors import BadInput
from ..files import json_value
from ..metrics import cross_entropy, kl
from ..models import Moment, Site
from ..steering import Spoken, in_norms, iso_kl
from ..steering.outcome import distinct
from ..steering.reading import END
from .asks import Arm, Dose, Steer
from .bench import Bench

LATENT: dict[str, Callable[[Any, int, float], edits.Edit]] = {
    "add": edits.add_latent,
    "set": edits.clamp,
    "multiply": edits.scale_latent,
}
DIRECTION: dict[str, Callable[[Any, float], edits.Edit]] = {
    "add": edits.add,
    "set": edits.set_to,
    "multiply": edits.scale_along,
}
MATCHED = 20  # tokens along which a KL is matched
SHOWN, LEAST = 8, 0.001  # tokens of a table; a chance that one has on some side


@dataclass(frozen=True)
class Said:
    """A continuation. `logits`: from which each of its tokens was chosen, float32."""

    new: list[int]
    text: str
    logits: Float[Tensor, "step vocab"]


def say(bench: Bench, text: str, wanted: Sequence[edits.Edit], side: str | None = None, **options: Any) -> Said:
    """Continue a text; new tokens are told as they come, where `side` names them."""
    heard, seen = list[Tensor](), 0

    def told(ids: Tensor) -> None:
        nonlocal seen
        new = ids[0].tolist()
        if side is not None and len(new) > seen:
            seen = len(new)
            bench.job.tell("tokens", side=side, texts=bench.strings(new))

    def hear(x: Tensor, moment: Moment) -> Tensor:
        heard.append(x[0, -1].float().cpu())
        return x

    listener = edits.Edit(Site("logits"), hear, "listen", by_row=True)
    with bench.watched(told):
        made = bench.model.generate(text, edits=[*wanted, listener], **options)
    new = made.new[0]
    if side is not None:
        bench.job.tell("tokens", side=side, texts=bench.strings(new))
    return Said(new, made.texts[0], torch.stack(heard[: len(new)]))


def unchanged(bench: Bench, text: str, said: Said) -> Float[Tensor, "step vocab"]:
    """The unedited model's logits before each token of a continuation."""
    ids = bench.model.tokens(text).rows()[0]
    with bench.watched():
        run = bench.model.run([[*ids, *said.new[:-1]]], capture=END, logits=False)
    return bench.model.unembed(run[END][:, len(ids) - 1 :], norm=False)[0].float().cpu()


def steer(bench: Bench) -> dict[str, Any]:
    """A continuation without and with each arm's edits, token by token as they come."""
    ask: Steer = bench.ask
    if ask.units != "own" and ask.how != "add":
        raise BadInput("norms and nats are units of what is added; to set or multiply, give own units")
    text = bench.text
    options = {"max_new_tokens": ask.tokens, "temperature": ask.temperature, "seed": ask.seed}
    bench.job.progress("writing without the change")
    key = (bench.model.name, text, *options.values())
    if (plain := _PLAIN.get(key)) is None:
        plain = say(bench, text, (), "plain", **options)
        _PLAIN.clear()
        _PLAIN[key] = plain
    else:
        bench.job.tell("tokens", side="plain", texts=bench.strings(plain.new))
    spoken = None
    if ask.units == "nats":
        with bench.watched():
            spoken = Spoken.by(bench.model, text, max_new_tokens=min(ask.tokens, MATCHED))
    rows, firsts = [], []
    for number, arm in enumerate(ask.arms):
        bench.job.progress(f"writing with {arm.name or 'the change'} ({number + 1} of {len(ask.arms)})")
        amounts = amounts_of(bench, ask, arm, spoken)
        wanted = [changed(bench, ask.how, dose, amount) for dose, amount in zip(arm.doses, amounts)]
        said = say(bench, text, wanted, str(number), **options)
        rows.append({"name": arm.name, "amounts": amounts} | compared(bench, text, said))
        firsts.append(said.logits[0])
    before = perplexity(plain.logits, plain.new)
    return {
        "plain": {"text": plain.text, "perplexity": json_value(before), "distinct": json_value(distinct(plain.new))},
        "arms": json_value(rows),
        "changes": changes(bench, plain.logits[0], firsts),
    }


_PLAIN: dict[Any, Said] = {}  # the last continuation without edits: one changes doses more often than prompts


def changed(bench: Bench, how: str, dose: Dose, amount: float) -> edits.Edit:
    if dose.latent is not None:
        return LATENT[how](bench.book.dictionary, dose.latent, amount)
    return DIRECTION[how](bench.library.direction(str(dose.direction)), amount)


def amounts_of(bench: Bench, ask: Steer, arm: Arm, spoken: Spoken | None) -> list[float]:
    """Each dose of an arm in own units."""
    if ask.units == "own":
        return [dose.value * arm.times for dose in arm.doses]
    if ask.units == "norms":
        return [in_norms(bench.model, added(bench, dose), dose.value * arm.times) for dose in arm.doses]

    def made(scale: float) -> list[edits.Edit]:
        bench.job.check()
        return [changed(bench, "add", dose, dose.value * scale) for dose in arm.doses]

    if arm.times <= 0:
        raise BadInput(f"a distance in nats is above 0, not {arm.times:g}")
    found = iso_kl(bench.model, spoken, made, target=arm.times)
    return [dose.value * found.amount for dose in arm.doses]


def added(bench: Bench, dose: Dose) -> Any:
    """Site and vector of what one unit of a dose adds."""
    if dose.latent is None:
        return bench.library.direction(str(dose.direction))
    own = bench.book.dictionary
    return own.site_out, own.decoder_rows(dose.latent)[0]


def compared(bench: Bench, text: str, said: Said) -> dict[str, Any]:
    """What became of a text: KLs from the unchanged model to the changed one (nats), perplexity under the unchanged
    one, and for each token by how much the change raised its log-probability."""
    plain = unchanged(bench, text, said)
    nats, new = kl(plain, said.logits), torch.tensor(said.new)
    raised = cross_entropy(plain, new) - cross_entropy(said.logits, new)
    return {
        "text": said.text,
        "tokens": bench.strings(said.new),
        "raised": raised.tolist(),
        "kl": float(nats[0]),
        "kl_text": float(nats.mean()),
        "perplexity": perplexity(plain, said.new),
        "distinct": distinct(said.new),
    }


def perplexity(logits: Float[Tensor, "step vocab"], new: list[int]) -> float:
    nats = float(cross_entropy(logits, torch.tensor(new)).mean()) if new else math.nan
    return math.exp(nats) if nats < 700 else math.inf


def changes(bench: Bench, before: Tensor, after: Sequence[Tensor]) -> list[dict[str, Any]]:
    """First new tokens of which some arm moves the log-probability most, among those with a chance of 0.1 %."""
    a, b = before.double().log_softmax(-1), torch.stack([one.double().log_softmax(-1) for one in after])
    moved = torch.where(torch.maximum(a, b) > math.log(LEAST), b - a, 0)
    size, ids = moved.abs().amax(0).topk(min(2 * SHOWN, moved.shape[1]))
    chosen = sorted(ids[size > 0].tolist(), key=lambda i: -float(moved[:, i].mean()))
    return [
        {
            "token": bench.model.str_token(i),
            "before": float(a[i].exp()),
            "after": b[:, i].exp().tolist(),
            "raised": (b[:, i] - a[i]).tolist(),
        }
        for i in chosen
    ]
