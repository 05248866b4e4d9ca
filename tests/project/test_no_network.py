"""Without a network nothing waits for the retries of the hub's client, and its cache still counts."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from monosem.data import texts
from monosem.dictionaries import load_dictionary
from monosem.errors import MonosemError
from monosem.hub import asked_once, silence
from monosem.models import load_model
from tiny_saelens import folder, weights


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network: nobody listens where the hub should be. Whoever waits fails. The hub's empty cache."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"it waits {seconds} s")

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(time, "sleep", sleep)
    return tmp_path / "hub"


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "name",
    [
        "gpt2-small-res-jb/blocks.3.hook_resid_pre",
        "neuronpedia:gemma-2-2b/12-gemmascope-res-16k",
        "mntss/clt-gemma-2-2b-426k",
        "some/saes/layer_3",
    ],
)
def test_a_dictionary_that_is_not_here(alone: Path, name: str) -> None:
    with pytest.raises(MonosemError, match=r"\(it cannot be reached \(.*\), and its cache lacks this\)") as caught:
        load_dictionary(name)
    assert "hf download" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not constants.HF_HUB_OFFLINE


def test_a_model_that_is_not_here(alone: Path) -> None:
    with pytest.raises(MonosemError, match="cannot be reached"):
        load_model("gpt2")


def test_a_data_set_that_is_not_here(alone: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(MonosemError, match="the Hub cannot be reached .*, and it is not in the cache"):
        list(texts("hf:some/texts", quiet=True))


def test_a_dictionary_in_the_cache(alone: Path) -> None:
    place = alone / "models--some--saes"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    folder(place / "snapshots" / ("0" * 40) / "layer_3", weights())
    assert str(load_dictionary("some/saes/layer_3").site) == "resid_pre.3"


def test_any_answer_is_one(answering: None) -> None:
    assert silence() is None
    with asked_once() as why:
        assert (why, huggingface_hub.constants.HF_HUB_OFFLINE) == (None, False)


def test_what_is_switched_off_is_not_asked(answering: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with asked_once() as why:
        assert why == "is switched off by HF_HUB_OFFLINE"
    assert constants.HF_HUB_OFFLINE
    assert silence(lambda: pytest.fail("asked")) == why


def test_an_answer_that_is_an_error_is_raised(answering: None) -> None:
    def ask() -> None:
        raise KeyError("no such model")

    with pytest.raises(KeyError):
        silence(ask, KeyError)
    assert silence(ask) == "cannot be reached ('no such model')"
