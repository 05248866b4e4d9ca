"""What every test file may use: tiny models as `Model`s, tiny dictionaries, and the embedded model."""

import os
import signal
from collections.abc import Callable

import pytest

# On some processors MKL's last bits depend on where a matrix lies in memory, and many tests ask whether two ways
# give the same bits. It reads this at its first call, so before torch; processes that tests start inherit it.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import tiny
import tiny_dictionaries
from monosem.dictionaries import Dictionary
from monosem.models import Model, load_model


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A suite that was started in the background (`make test &`) ignores SIGINT, and so would all that it starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """The embedded model in float32, from the user's cache (fetched once). Mark tests that use it with `smollm2`."""
    return load_model("smollm2", dtype="float32", device="cpu", quiet=True)


@pytest.fixture(scope="session")
def gemma3() -> Model:
    """Gemma 3 270M in float32, from the user's cache (fetched once, 238 MB). Mark tests that use it with `gemma3`."""
    return load_model("gemma3-270m", dtype="float32", device="cpu", quiet=True)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Model]:
    """`tiny_model("gemma2", seed=1)`: a fresh tiny Model with the tiny tokenizer, see `tiny`."""
    return tiny.tiny_model


@pytest.fixture(scope="session")
def model_of() -> Callable[..., Model]:
    """`model_of("gemma2")`: the tiny Model that all tests share."""
    return tiny.model_of


@pytest.fixture(scope="session")
def tiny_dictionary() -> Callable[..., Dictionary]:
    """`tiny_dictionary("relu", site="z.1")`: a dictionary with random tensors, see `tiny_dictionaries`."""
    return tiny_dictionaries.tiny_dictionary
