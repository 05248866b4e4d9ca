"""The Hugging Face Hub: one quick question before anything is read from it, so that nothing hangs without a network.

Its client has no setting for that: it asks for each file six times with growing pauses, 23 seconds until one fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import cause

TIMEOUT_SECONDS = 10.0


def silence(ask: Callable[[], object] | None = None, *answers: type[Exception]) -> str | None:
    """Why the Hub says nothing, to follow "the Hub" in a message; None where it answers.

    Args:
        ask: the question, which goes over the network once; default: whether there is anybody.
        answers: errors of `ask` that are an answer; they are raised.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "is switched off by HF_HUB_OFFLINE"
    try:
        if ask is None:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
        else:
            ask()
    except answers:
        raise
    except Exception as error:  # the transport errors belong to whichever HTTP client the hub library uses
        return f"cannot be reached ({cause(error)})"
    return None


@contextmanager
def asked_once() -> Iterator[str | None]:
    """`silence()`. Where the Hub says nothing, its client reads its cache alone within, as with HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    why = silence()
    switch = why is not None and not constants.HF_HUB_OFFLINE
    if switch:
        constants.HF_HUB_OFFLINE = True
    try:
        yield why
    finally:
        if switch:
            constants.HF_HUB_OFFLINE = False
