"""What may reach a terminal, and Ctrl-C: text from prompts, files and names shows what steers a terminal instead of
doing it."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT, as argparse and click

# Pictures for control characters (ESC is ␛), except line breaks and tabs. Of the others, U+FFFD stands for control
# characters of one byte more, for what turns the direction of text, and for halves of surrogate pairs, which no
# encoding has. One character each, so that columns and marks in the text stay where they are.
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
STEERING = (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
_SHOWN = dict.fromkeys(STEERING, 0xFFFD) | _SHOWN


def printable(text: str) -> str:
    """The text with a visible character for each that steers a terminal, hides or turns text, or cannot be encoded."""
    return text.translate(_SHOWN)


def one_line(message: str) -> str:
    return " ".join(message.split())


def notice(message: str) -> None:
    """A message for the user, on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def answer_interrupts() -> None:
    """Let Ctrl-C end this program, in one line also while modules are imported; not where the shell has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`; in an import, end at once.

    The C++ of torch imports Python modules while it is loaded, and aborts the process when one of them raises. Nothing
    is lost: what commands write is never half-written, and long jobs go on where they were killed.
    """
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib"):
            notice("interrupted")
            os._exit(INTERRUPTED)
        at = at.f_back
    signal.default_int_handler(number, frame)
