"""What went wrong, in the words of the pages: the library's own advice names arguments of Python."""

import re
from collections.abc import Mapping
from typing import Any

from ..terminal import one_line

ADVICE = {  # pattern -> what a page says
    r"^pair 0 does not align: (\d+) clean tokens \((.*)\) against (\d+) corrupted ones \((.*)\);.*": (
        r"the clean prompt has \1 tokens (\2) and the corrupted prompt \3 (\4); both need as many, so reword one"
    ),
    r"\banswer of pair 0\b": "answer",
    r"; reword them, or leave them out \(.*\)": "; reword it",
    r"; give another start= or target=, or more evaluations=": "; ask for less, or change something else",
    r"over memory=([^:;]+)[:;] .*": r"and \1 are left for it; give a shorter text, or ask for less",
    r"; give --model MODEL": "; start the explorer again, with --model MODEL",
}
KINDS = {  # of pydantic's errors -> what is said of the field
    "model_type": "is not an object",
    "string_too_short": "is empty",
    "string_too_long": "has over {max_length:,} characters",
}


def spoken(error: Exception) -> str:
    """An error as one line for a page."""
    words = one_line(str(error))
    for pattern, said in ADVICE.items():
        words = re.sub(pattern, said, words)
    return words


def of_field(label: str, error: Mapping[str, Any]) -> str:
    """What pydantic found wrong with a field."""
    if error["type"] in KINDS:
        return f"{label} {KINDS[error['type']].format(**error['ctx'])}"
    words = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{label}: {words[:1].lower()}{words[1:]}"
