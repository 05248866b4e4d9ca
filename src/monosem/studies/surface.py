"""Is it the concept, or something on the surface that goes with it? Length, brackets, the first word, ...

Each feature of the text alone is asked to tell the two sides apart, as the latent was. Those that do are confounds that
the prompts do not rule out. Two things then speak for or against the latent: whether its activation goes with the
feature *within* a side, where the concept is the same, and whether it still tells the sides apart where only some
tokens count.
"""

import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..statistics import Share, auroc_interval, correlation_interval
from .context import Context

Values = list[float]
Z99 = 2.5758293035489004  # 99 % of a standard normal lies within: there are many features
BRACKETS, QUOTES = set("()[]{}<>"), set("\"'`«»“”‘’")


def _counter(wanted: Callable[[str], bool]) -> Callable[[str], float]:
    return lambda prompt: float(sum(map(wanted, prompt)))


# what is looked at -> a number for each prompt
FEATURES: dict[str, Callable[[str], float]] = {
    "characters": lambda prompt: float(len(prompt)),
    "words": lambda prompt: float(len(prompt.split())),
    "brackets": _counter(lambda c: c in BRACKETS),
    "quotation marks": _counter(lambda c: c in QUOTES),
    "other punctuation": _counter(lambda c: c in string.punctuation and c not in BRACKETS | QUOTES),
    "digits": _counter(str.isdigit),
    "capital letters": _counter(str.isupper),
    "letters beyond ASCII": _counter(lambda c: c.isalpha() and not c.isascii()),
    "line breaks": _counter(lambda c: c == "\n"),
}
Text = list[tuple[str, float]]  # (token, activation)


def surface(context: Context, latent: int) -> dict[str, Any]:
    """Features that tell the sides apart, how the latent goes with them, and its AUROC where only some tokens count."""
    sides = (context.config.positive, context.config.negative)
    texts = tuple(context.along(side, latent) for side in sides)
    active = tuple(torch.tensor([_strongest(text) for text in side]) for side in texts)
    columns = {name: tuple([feature(p) for p in side] for side in sides) for name, feature in FEATURES.items()}
    columns |= {"tokens": _lengths(context, sides), "first word": first_words(sides)}
    features = [_feature(name, column, active) for name, column in columns.items()]
    kept = {"on words alone": wordy, "without the first word": after_first_word}
    restricted = {
        name: auroc_interval(*(torch.tensor([_strongest(keep(text)) for text in side]) for side in texts))
        for name, keep in kept.items()
    }
    found = {
        "pairs": len(sides[0]),
        "features": [feature for feature in features if feature["separates"]],
        "looked_at": [feature["name"] for feature in features],
        "whole": auroc_interval(*active)._asdict(),
        "restricted": {name: interval._asdict() for name, interval in restricted.items()},
    }
    return found | judged(found)


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """The verdict and its sentence.

    no: the latent does not tell the sides apart where only words count, or without the first word (0.5 is in the
    interval). unclear: its activation goes with a feature that tells the sides apart, within the sides as well. yes:
    neither.
    """
    lost = [name for name, area in found["restricted"].items() if area["low"] <= 0.5 < found["whole"]["low"]]
    with_it = [feature["name"] for feature in found["features"] if feature["follows"]]
    if lost:
        verdict, said = "no", f"the latent no longer tells the sides apart {' or '.join(lost)}"
    elif with_it:
        verdict, said = "unclear", f"its activation also follows {', '.join(with_it)}, which differ between the sides"
    elif found["features"]:
        names = ", ".join(feature["name"] for feature in found["features"])
        verdict, said = (
            "yes",
            f"the sides also differ in {names}; no sign that its activation follows them within a side",
        )
    else:
        verdict, said = "yes", f"none of {len(found['looked_at'])} features of the surface tells the sides apart"
    return {"verdict": verdict, "said": said}


def _feature(name: str, values: Sequence[Values], active: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How a feature tells the sides apart by itself, and how the latent goes with it where the concept is the same."""
    (up, down), (active_up, active_down) = values, active
    area = auroc_interval(torch.tensor(up), torch.tensor(down))
    turn = 1 if area.value >= 0.5 else -1  # so that more of it means the positive side
    turned = [turn * torch.tensor(side) for side in values]
    within = correlation_interval(turned, active, z=Z99)
    against = [i for i in range(len(up)) if turn * (up[i] - down[i]) <= 0]
    return {
        "name": name,
        "auroc": area._asdict(),
        "means": [sum(side) / len(side) for side in (up, down)],
        "separates": area.low > 0.5 or area.high < 0.5,
        "within": within._asdict(),
        "follows": within.low > 0,
        "against": Share(sum(bool(active_up[i] > active_down[i]) for i in against), len(against)).__dict__,
    }


def _strongest(text: Text) -> float:
    return max((value for _, value in text), key=abs, default=0.0)


def wordy(text: Text) -> Text:
    """Tokens that are made of letters."""
    return [(token, value) for token, value in text if token.strip().isalpha()]


def after_first_word(text: Text) -> Text:
    """Tokens of the second word and later: the first token that counts is of the first word, or begins the second."""
    starts = [number for number, (token, _) in enumerate(text) if token[:1].isspace()]
    return text[starts[0] :] if starts else []


def _lengths(context: Context, sides: Sequence[Sequence[str]]) -> tuple[Values, ...]:
    return tuple(context.model.tokens(list(side)).lengths.float().tolist() for side in sides)


def first_words(sides: Sequence[Sequence[str]]) -> tuple[Values, ...]:
    """How much the first word of each prompt says "positive": other prompts with it, the positive less the negative."""
    words = [[prompt.split()[0].lower() for prompt in side] for side in sides]
    up, down = (Counter(side) for side in words)
    return tuple(
        [float((up[word] - (side == 0)) - (down[word] - (side == 1))) for word in words[side]] for side in range(2)
    )
