"""What the text of a row is: one column, or the turns of a conversation, under the names that data sets give them."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import BadFile, BadInput, MonosemError, cause, did_you_mean

CONVERSATIONS = ("messages", "conversations", "conversation")  # a list of turns (OpenAI, ShareGPT)
SYSTEM = ("system", "system_prompt")
ASKS = ("instruction", "question", "problem", "query", "prompt", "input")
MORE = ("input", "context")  # what the user says after that: Alpaca, Dolly, SQuAD
ANSWERS = ("output", "answer", "response", "completion", "solution", "chosen")  # chosen: TRL's preferences
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "observation": "tool"}
KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content")  # of a turn, for chat templates

Turns = list[dict[str, Any]]
Render = Callable[[Turns], str]


class BadRow(Exception):
    """A row that gives no text, and why, in words that other such rows share."""

    def __init__(self, why: str, error: type[MonosemError] = BadInput):
        super().__init__(why)
        self.error = error


class RowText(NamedTuple):
    """`rendered`: a chat template made the text. `columns`: those that were used, in order; none for a bare string."""

    text: str
    rendered: bool
    columns: tuple[str, ...]


def text_of(row: Any, field: str | None, render: Render | None) -> RowText:
    """The text of a string or object. Raises `BadRow` when there is none."""
    if row is None:
        raise BadRow("null")
    if isinstance(row, str):
        return RowText(row, False, ())
    if not isinstance(row, Mapping):
        raise BadRow(f"a JSON {type(row).__name__}, not a string or an object", BadFile)
    columns = _columns(row, field)
    read = [(name, _read(row[name], name)) for name in columns]
    if len(read) == 1 and isinstance(read[0][1], str):
        return RowText(read[0][1], False, columns)
    turns = _turns(read)
    if not any(turn["content"] or "tool_calls" in turn for turn in turns):
        return RowText("", False, columns)
    if render is None:
        return RowText("\n\n".join(filter(None, map(_plain, turns))), False, columns)
    try:
        return RowText(render(turns), True, columns)
    except Exception as error:  # templates are programs of their own, and raise what they like
        raise BadRow(f"the chat template refuses it: {cause(error)}") from error


def _columns(row: Mapping[str, Any], field: str | None) -> tuple[str, ...]:
    """The columns that make the text, in the order of their turns."""

    def first(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if row.get(name) is not None)[:1]

    wanted = field or "text"
    if row.get(wanted) is not None:
        return (wanted,)
    if not field:
        system, asked, answered = first(SYSTEM), first(ASKS), first(ANSWERS)
        if whole := first(CONVERSATIONS):
            return (*system, *whole)
        if asked and answered:
            more = tuple(name for name in MORE if row.get(name) is not None and name not in asked)
            return (*system, *asked, *more, *answered)
        if answered == ("chosen",):  # a whole conversation
            return (*system, *answered)
    known = (wanted,) if field else (wanted, *CONVERSATIONS, *ASKS, *ANSWERS)
    if empty := [name for name in known if name in row and row[name] is None]:
        raise BadRow(f"{empty[0]!r} is null")
    names = list(map(repr, row))
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "none"
    raise BadRow(f"no field {wanted!r}; its fields are {listed}{did_you_mean(wanted, row)}")


def _read(value: Any, name: str) -> str | Turns:
    """A column: a text, also in parts, or turns."""
    turns = value if isinstance(value, list) else []
    if turns and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in turns):
        return [_turn(turn, name) for turn in value]
    return _content(value, name)


def _content(value: Any, name: str) -> str:
    """A string, or the strings of a list of parts (`{"type": "text", "text": ...}`), a line break between them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRow(f"{name!r} holds {_kind(value)}, not a string")
    texts: list[str] = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = f"of type {part.get('type')!r}" if isinstance(part, Mapping) else f"that is {_kind(part)}"
            raise BadRow(f"{name!r} has a part {kind}, not text")
        texts.append(text)
    return "\n".join(texts)


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _turn(turn: Mapping[str, Any], name: str) -> dict[str, Any]:
    role = str(turn.get("role", turn.get("from"))).lower()
    kept: dict[str, Any] = {key: turn[key] for key in KEPT if turn.get(key) is not None}
    content = next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), None)
    if content is None and "tool_calls" in kept:
        content = ""
    if content is None:
        raise BadRow(f"{name!r} has a turn without content")
    return {"role": ROLES.get(role, role), "content": _content(content, name), **kept}


def _turns(read: list[tuple[str, str | Turns]]) -> Turns:
    """One conversation of all columns; what the user says in several is one turn, a blank line between them."""
    turns: Turns = []
    asking: dict[str, Any] | None = None
    for name, value in read:
        role = "system" if name in SYSTEM else "user" if name in (*ASKS, *MORE) else "assistant"
        if not isinstance(value, str):
            turns += value
        elif role == "user" and asking is not None:
            asking["content"] = "\n\n".join(filter(None, (asking["content"], value)))
        elif value or role == "assistant":
            turns.append({"role": role, "content": value})
            asking = turns[-1] if role == "user" else None
    if [turn["role"] for turn in turns[:2]] == ["system", "system"]:  # of a column, and in the list: templates take one
        said = dict.fromkeys(turn["content"] for turn in turns[:2])
        turns[:2] = [{"role": "system", "content": "\n\n".join(said)}]
    return turns


def _plain(turn: dict[str, Any]) -> str:
    return "\n".join(filter(None, (turn["content"], json.dumps(turn["tool_calls"]) if "tool_calls" in turn else "")))
