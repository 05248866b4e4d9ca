"""What a response says: without the model's reasoning and markup, in plain letters, sentence by sentence."""

import re
import unicodedata

# how models mark what they think before they answer: (opens, closes)
REASONING = (
    (r"<think(?:ing)?>", r"</think(?:ing)?>"),
    (r"<reasoning>", r"</reasoning>"),
    (r"<seed:think>", r"</seed:think>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel\|>analysis<\|message\|>", r"<\|end\|>"),
)
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ′`´＇", "'") | dict.fromkeys("“”„«»", '"'))
# in double quotes, or in single ones where code has a string
_QUOTED = re.compile(r"\"[^\"]{1,400}\"|(?<=[(=\[])'[^'\n]{1,400}'")
_MARKUP = re.compile(r"[*_#>|~]+")
_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"')\]]*\s+|\n+")


def answer_of(response: str) -> str:
    """The response without reasoning. What comes before an end without a beginning is reasoning that the prompt opened;
    reasoning that does not end leaves nothing."""
    for opens, closes in REASONING:
        response = _without(re.compile(opens, re.IGNORECASE), re.compile(closes, re.IGNORECASE), response)
        response = re.sub(f"^.*?{closes}", "", response, count=1, flags=re.DOTALL | re.IGNORECASE)
        response = re.sub(f"{opens}.*$", "", response, flags=re.DOTALL | re.IGNORECASE)
    return response.strip()


def _without(opens: re.Pattern[str], closes: re.Pattern[str], text: str) -> str:
    """Without what stands between a mark and the next that closes it. One pass: a pattern of both would look for the
    end once more at each beginning that has none."""
    kept, at = list[str](), 0
    while (begin := opens.search(text, at)) and (end := closes.search(text, begin.end())):
        kept.append(text[at : begin.start()])
        at = end.end()
    return "".join(kept) + text[at:]


def plain(text: str) -> str:
    """In lower case, with straight quotes and apostrophes, without Markdown's marks."""
    return _MARKUP.sub(" ", unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)).lower()


def unquoted(text: str) -> str:
    """Without what stands in double quotes: words of somebody else, or an example."""
    return _QUOTED.sub(" ", text)


def without_quotations(text: str) -> str:
    """With a word for each word in double quotes, so that what is quoted still counts."""
    return _QUOTED.sub(lambda found: " ".join(["quoted"] * len(found.group().split())), text)


def sentences(text: str) -> list[str]:
    """Lines are sentences as well."""
    parts = (" ".join(part.split()) for part in _SENTENCE.split(text) if part is not None)
    return [part for part in parts if part]


def is_empty(text: str) -> bool:
    """Whether there is neither letter nor digit."""
    return not any(character.isalnum() for character in text)


def is_truncated(text: str) -> bool:
    """Whether a text of several words seems to stop inside a sentence: its last character is a letter or a comma."""
    text = text.rstrip()
    return len(text.split()) > 8 and (text[-1].isalpha() or text[-1] in ",;:-(")
