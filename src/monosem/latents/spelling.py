"""Tokens as bytes: one character may be spread over several tokens, and is only readable when they are put together."""

import codecs
import re
from collections.abc import Iterable
from functools import cache

from ..models import Model

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece vocabularies write a single byte


def token_text(model: Model, token: int) -> str | bytes:
    """The text of a token, or its bytes where they are not whole characters."""
    text = model.str_token(token)
    if model.tokenizer is None or "\ufffd" not in model.tokenizer.decode([token]):
        return text
    if byte := _BYTE.fullmatch(text):
        return bytes.fromhex(byte[1])
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in text) if all(c in alphabet for c in text) else text


def readable(tokens: Iterable[str | bytes]) -> list[str]:
    """Texts of neighbouring tokens. A character spread over several stands at the last; the others are empty."""
    tokens = list(tokens)
    if len(texts := [token for token in tokens if isinstance(token, str)]) == len(tokens):
        return texts
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    out = []
    for token in tokens:
        if isinstance(token, bytes):
            out.append(decoder.decode(token))
        else:
            out.append(decoder.decode(b"", final=True) + token)  # what was left over is not a character
            decoder.reset()
    if out:
        out[-1] += decoder.decode(b"", final=True)
    return out


def alone(token: str | bytes) -> str:
    """One token by itself: bytes that are not whole characters in hexadecimal, as in `⟨D9 8A⟩`."""
    return token if isinstance(token, str) else f"⟨{token.hex(' ').upper()}⟩"


@cache
def byte_alphabet() -> dict[str, int]:
    """How byte-level BPE (GPT-2 and its heirs) writes bytes as characters: printable Latin-1 as itself, the other 68
    bytes as the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
