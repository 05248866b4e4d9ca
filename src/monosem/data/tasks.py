"""Patching tasks made from our own sentences and word lists: indirect objects, greater-than, capitals, pronouns,
agreement of verbs, opposites from examples.

Every task is a function of a model, because only words that are one token for its tokenizer are used: so the two
prompts of a pair align, and an answer is one token. Pairs are drawn by a seed, none twice. Words stand in `words.py`.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from string import Formatter
from typing import TYPE_CHECKING, Literal

from ..errors import BadInput, check_name
from . import words
from .token_pairs import TokenPairs

if TYPE_CHECKING:
    from ..models import Model

Corruption = Literal["abc", "s2_flip", "random_names"]
Template = Literal["mixed", "ABBA", "BABA"]


@dataclass(frozen=True)
class Sentence:
    """A sentence with its slots filled, and which characters each slot took: `{name: (start, end)}`."""

    text: str
    places: dict[str, tuple[int, int]]


def filled(form: str, values: Mapping[str, str]) -> Sentence:
    """`"{s2} gave {io}"` with its slots filled."""
    text, places = "", {}
    for literal, slot, _, _ in Formatter().parse(form):
        text += literal
        if slot is not None:
            places[slot] = (len(text), len(text) + len(values[slot]))
            text += values[slot]
    return Sentence(text, places)


def ioi(
    model: "Model",
    n: int = 32,
    seed: int = 0,
    template: Template = "mixed",
    corruption: Corruption = "abc",
    *,
    names: Sequence[str] = words.NAMES,
    sentences: Sequence[str] = words.IOI,
) -> TokenPairs:
    """Indirect object identification (Wang et al. 2022): "When Mary and John went to the store, John gave a book to".

    The right answer is the name that came once (IO), the wrong one the name that came twice (S).

    Args:
        template: the order of the names in the first clause: "ABBA" has IO first, "BABA" has S first, "mixed" both.
        corruption: what the other prompt of the pair is.
            "abc": three other names, so that no name is repeated (the paper's p_ABC).
            "s2_flip": only the last name changes, from S to IO: now the other name is the right continuation.
            "random_names": two other names in the same pattern: the same task with another answer.
        names: candidates, of which those that are one token after a space are used.
        sentences: with slots {first}, {second}, {s2}, and {place} and {object} if wanted.

    Returns:
        pairs with spans io, s1, s1+1 (the token after s1), s2 and end.

    Raises:
        UnknownName: no such template or corruption.
        BadInput: too few names are single tokens; fewer than n pairs exist.
    """
    orders = {"ABBA": ["ABBA"], "BABA": ["BABA"], "mixed": ["ABBA", "BABA"]}
    check_name("template", template, orders)
    check_name("corruption", corruption, _CORRUPTIONS)
    usable = _single(model, names, "names", at_least=5)
    fillers = {"place": _single(model, words.PLACES, "places"), "object": _single(model, words.OBJECTS, "objects")}

    def draw(rng: random.Random) -> Pair:
        form, order = rng.choice(list(sentences)), rng.choice(orders[template])
        io, s, *others = rng.sample(list(usable), 5)
        common = {slot: rng.choice(list(options)) for slot, options in fillers.items()}
        clean = _ioi_sentence(form, order, (io, s, s), common)
        corrupted = _ioi_sentence(form, order, _CORRUPTIONS[corruption](io, s, others), common)
        return Pair(clean, corrupted, usable[io], usable[s])

    source = f"IOI, {template} order, corruption {corruption}, seed {seed}"
    pairs = _made(model, draw, n, seed, source, ("io", "s1", "s2"))
    spans = pairs.spans | {"s1+1": pairs.spans["s1"] + 1}
    return replace(pairs, spans={name: spans[name] for name in ("io", "s1", "s1+1", "s2", "end")})


# (IO, S, three other names) -> who takes the places of IO, S1 and S2 in the corrupted prompt
_CORRUPTIONS: dict[str, Callable[[str, str, list[str]], tuple[str, str, str]]] = {
    "abc": lambda io, s, others: (others[0], others[1], others[2]),
    "s2_flip": lambda io, s, others: (io, s, io),
    "random_names": lambda io, s, others: (others[0], others[1], others[1]),
}


def _ioi_sentence(form: str, order: str, names: tuple[str, str, str], common: Mapping[str, str]) -> Sentence:
    io, s1, s2 = names
    first, second = (io, s1) if order == "ABBA" else (s1, io)
    sentence = filled(form, {"first": first, "second": second, "s2": s2, **common})
    ends = {"io": "first", "s1": "second"} if order == "ABBA" else {"io": "second", "s1": "first"}
    ends["s2"] = "s2"
    return Sentence(sentence.text, {name: sentence.places[slot] for name, slot in ends.items()})


def greater_than(model: "Model", *, n: int = 32, seed: int = 0, nouns: Sequence[str] = words.EVENTS) -> TokenPairs:
    """Greater-than (Hanna et al. 2023): "The war lasted from the year 1732 to the year 17" goes on with a later year.

    How the tokenizer writes years decides what is asked:

    - Two digits are one token (GPT-2): right answers are the two-digit tokens above the start's, wrong ones the rest.
      The corrupted prompt starts in year 01.
    - Every digit is a token (SmolLM2, Gemma, Qwen): starts end in 9 ("1739"), so that the end year is later exactly if
      its next digit, the tens, is greater; right answers are the digits above, wrong ones the digits up to it. The
      corrupted prompt starts in year 09, and differs in one token.

    The answers are sets: use the metrics `probability_diff` (the paper's) or `log_odds`.

    Returns:
        pairs with spans noun, start (the digits that differ) and end.

    Raises:
        BadInput: the tokenizer writes years in another way (three digits a token); fewer than n pairs exist.
    """
    width = _year_digits(model)
    options = [f"{value:0{width}}" for value in range(10**width)]
    rest, unlike, first = {1: ("9", "0", "1"), 2: ("", "01", "02")}[width]
    centuries = {str(century): _continuations(model, f"The year {century}", options) for century in range(11, 18)}
    usable = _single(model, nouns, "nouns")

    def draw(rng: random.Random) -> Pair:
        century = rng.choice(list(centuries))
        ids = centuries[century]  # without those that this tokenizer merges with the century
        start = rng.choice([text for text in ids if first <= text < max(ids)])
        above = [token for text, token in ids.items() if text > start]
        below = [token for text, token in ids.items() if text <= start]
        slots = {"noun": rng.choice(list(usable)), "century": century, "rest": rest}
        form = rng.choice(words.GREATER_THAN)
        clean, corrupted = (filled(form, slots | {"start": digits}) for digits in (start, unlike))
        return Pair(clean, corrupted, above, below)

    source = f"greater-than, {width} digit{'s' * (width > 1)} a token, seed {seed}"
    return _made(model, draw, n, seed, source, ("noun", "start"))


def capitals(model: "Model", *, n: int = 16, seed: int = 0) -> TokenPairs:
    """Facts: "The capital of France is the city of" against the same sentence about another country.

    Returns:
        pairs with spans country and end; right is the country's own capital, wrong the other country's.

    Raises:
        BadInput: too few countries and capitals are single tokens; fewer than n pairs exist.
    """
    cities = _single(model, list(words.CAPITALS.values()), "capitals", at_least=2)
    countries = [name for name in _single(model, list(words.CAPITALS), "countries") if words.CAPITALS[name] in cities]
    if len(countries) < 2:
        raise BadInput(f"only {len(countries)} countries and their capitals are single tokens for {model.name}")

    def draw(rng: random.Random) -> Pair:
        form, (country, other) = rng.choice(words.CAPITAL_FORMS), rng.sample(countries, 2)
        right, wrong = (cities[words.CAPITALS[name]] for name in (country, other))
        return Pair(filled(form, {"country": country}), filled(form, {"country": other}), right, wrong)

    return _made(model, draw, n, seed, f"capitals, seed {seed}", ("country",))


def pronouns(model: "Model", *, n: int = 16, seed: int = 0) -> TokenPairs:
    """Gendered pronouns: "So Mary is a really good friend, isn't" goes on with she, with a man's name with he.

    Returns:
        pairs with spans name and end; right is the pronoun that goes with the clean name by custom.

    Raises:
        BadInput: too few names are single tokens; fewer than n pairs exist.
    """
    pronoun = _single(model, ["she", "he"], "pronouns", at_least=2)
    women, men = (_single(model, names, "names", at_least=2) for names in (words.WOMEN, words.MEN))

    def draw(rng: random.Random) -> Pair:
        sides = [("she", rng.choice(list(women))), ("he", rng.choice(list(men)))]
        (right, name), (wrong, other) = rng.sample(sides, 2)
        form = rng.choice(words.PRONOUN_FORMS)
        return Pair(filled(form, {"name": name}), filled(form, {"name": other}), pronoun[right], pronoun[wrong])

    return _made(model, draw, n, seed, f"pronouns, seed {seed}", ("name",))


def subject_verb(model: "Model", *, n: int = 16, seed: int = 0) -> TokenPairs:
    """Subject and verb: "The boys near the tree" goes on with are, "The boy near the tree" with is. The other noun is
    in the singular or the plural, whatever the subject is in.

    Returns:
        pairs with spans subject, other and end; right is the verb that agrees with the clean subject.

    Raises:
        BadInput: too few nouns are single tokens in both numbers; fewer than n pairs exist.
    """
    verbs = _single(model, ["is", "are"], "verbs", at_least=2)
    usable = _single(model, [noun for both in words.COUNTED for noun in both], "nouns")
    nouns = [both for both in words.COUNTED if all(noun in usable for noun in both)]
    if len(nouns) < 2:
        raise BadInput(f"only {len(nouns)} nouns are single tokens in singular and plural for {model.name}")

    def draw(rng: random.Random) -> Pair:
        subject, other = rng.sample(nouns, 2)
        number, form = rng.randrange(2), rng.choice(words.AGREEMENT)
        beside = rng.choice(other)
        clean, corrupted = (
            filled(form, {"subject": noun, "other": beside}) for noun in (subject[number], subject[1 - number])
        )
        right, wrong = ("is", "are")[number], ("is", "are")[1 - number]
        return Pair(clean, corrupted, verbs[right], verbs[wrong])

    return _made(model, draw, n, seed, f"agreement, seed {seed}", ("subject", "other"))


def opposites(model: "Model", *, n: int = 16, seed: int = 0) -> TokenPairs:
    """A rule from examples (Todd et al. 2024's function vectors): "hot -> cold", three lines more, and "big ->" goes on
    with small. In the corrupted prompt the examples repeat their word, "hot -> hot": big itself is right.

    Returns:
        pairs with spans shown (the first example's answer), word and end.

    Raises:
        BadInput: too few words are single tokens; fewer than n pairs exist.
    """
    usable = _single(model, [word for pair in words.OPPOSITES for word in pair], "words")
    known = [(one, other) for one, other in words.OPPOSITES if one in usable and other in usable]
    if len(known) <= words.SHOTS:
        raise BadInput(f"only {len(known)} pairs of opposites are single tokens for {model.name}")
    lines = [" {asked0} -> {shown}", *(f" {{asked{i}}} -> {{shown{i}}}" for i in range(1, words.SHOTS)), " {word} ->"]

    def draw(rng: random.Random) -> Pair:
        drawn = [pair[:: rng.choice((1, -1))] for pair in rng.sample(known, words.SHOTS + 1)]
        sides = []
        for answers in (1, 0):
            slots = {f"asked{i}": pair[0] for i, pair in enumerate(drawn[:-1])}
            slots |= {f"shown{i or ''}": pair[answers] for i, pair in enumerate(drawn[:-1])}
            sides.append(filled("\n".join(lines), slots | {"word": drawn[-1][0]}))
        word, opposite = drawn[-1]
        return Pair(sides[0], sides[1], usable[opposite], usable[word])

    return _made(model, draw, n, seed, f"opposites from {words.SHOTS} examples, seed {seed}", ("shown", "word"))


TASKS: dict[str, Callable[..., TokenPairs]] = {
    "ioi": ioi,
    "greater_than": greater_than,
    "capitals": capitals,
    "pronouns": pronouns,
    "agreement": subject_verb,
    "opposites": opposites,
}

# --------------------------------------------------------------------------------------------------- putting together


@dataclass(frozen=True)
class Pair:
    clean: Sentence
    corrupted: Sentence
    right: int | list[int]
    wrong: int | list[int]


def _made(
    model: "Model", draw: Callable[[random.Random], Pair], n: int, seed: int, source: str, spans: Sequence[str]
) -> TokenPairs:
    """n different pairs; spans are the last token of each named slot, and `end`."""
    drawn = list(islice(_different(draw, random.Random(seed)), n))
    if n < 1 or len(drawn) < n:
        raise BadInput(f"{source}: {len(drawn)} different pairs can be made, {n} were asked for")
    at = {name: [token_at(model, pair.clean.text, pair.clean.places[name][1] - 1) for pair in drawn] for name in spans}
    clean, corrupted = ([side.text for side in sides] for sides in zip(*((one.clean, one.corrupted) for one in drawn)))
    right, wrong = [pair.right for pair in drawn], [pair.wrong for pair in drawn]
    pairs = TokenPairs.of(model, clean, corrupted, right, wrong, spans=at, source=source)
    return replace(pairs, spans=pairs.spans | {"end": pairs.clean.lengths - 1})


def _different(draw: Callable[[random.Random], Pair], rng: random.Random) -> Iterator[Pair]:
    """Pairs until a thousand draws in a row bring nothing new."""
    seen: set[tuple[str, str]] = set()
    misses = 0
    while misses < 1000:
        pair = draw(rng)
        key = (pair.clean.text, pair.corrupted.text)
        misses = misses + 1 if key in seen else 0
        if key not in seen:
            seen.add(key)
            yield pair


def _year_digits(model: "Model") -> int:
    """Digits in the first token after "The year 17" of "The year 1745": 1 or 2."""
    before, after = _rows(model, ["The year 17", "The year 1745"])
    if after[: len(before)] == before and len(after) - len(before) in (1, 2):
        return 3 - (len(after) - len(before))
    split = " | ".join(map(model.str_token, after))
    raise BadInput(f"greater-than needs years in tokens of one or two digits; {model.name} writes 1745 as {split}")


def _single(model: "Model", candidates: Sequence[str], what: str, at_least: int = 1) -> dict[str, int]:
    """word -> id, of the words that are one token after a space.

    Raises:
        BadInput: there are fewer than `at_least`.
    """
    single = _continuations(model, "the", [f" {word}" for word in candidates])
    usable = {text[1:]: token for text, token in single.items()}
    if len(usable) < at_least:
        raise BadInput(
            f"only {len(usable)} of {len(candidates)} {what} are single tokens for {model.name}, {at_least} are needed"
        )
    return usable


def _continuations(model: "Model", prefix: str, options: Sequence[str]) -> dict[str, int]:
    """option -> id, of the options that add exactly one token to the prefix."""
    added = {option: model.continuation(prefix, option) for option in options}
    return {option: ids[0] for option, ids in added.items() if ids is not None and len(ids) == 1}


def _rows(model: "Model", texts: list[str]) -> list[list[int]]:
    if model.tokenizer is None:
        raise BadInput(f"{model.name} has no tokenizer, which tasks need; make pairs with TokenPairs from token ids")
    return model.tokens(texts).rows()


def tokens_at(model: "Model", text: str, start: int, stop: int) -> list[int]:
    """The indices, as in `model.tokens(text)`, of the tokens that hold some of the characters `start` to `stop` - 1.

    A character may be spread over several tokens: an emoji mostly is.

    Raises:
        BadInput: the tokenizer cannot say where its tokens stand in the text, or no token holds the characters.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise BadInput(f"{model.name}'s tokenizer does not tell where tokens stand in a text; give spans as positions")
    special = model.adds_specials(text)
    offsets = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True).offset_mapping
    found = [index for index, (first, end) in enumerate(offsets) if first < stop and end > start]
    if not found:
        raise BadInput(f"no token holds character {start} of {text!r}")
    return found


def token_at(model: "Model", text: str, character: int) -> int:
    """The index, as in `model.tokens(text)`, of the last token that holds a character; errors as `tokens_at`."""
    return tokens_at(model, text, character, character + 1)[-1]
