"""A judge behind an endpoint: a small server of the test's own answers well, late, wrong, or not at all."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from monosem.errors import BadInput
from monosem.judges import judge
from monosem.judges.judge import judged


@contextmanager
def endpoint(*answers):
    """An endpoint that gives these answers, the last again and again: (status, what is said), or whole replies."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, said = answers[min(len(asked), len(answers)) - 1]
            reply = (
                said if isinstance(said, bytes) else json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


YES = '{"shown": true, "score": 0.9, "evidence": "I cannot"}'


def by_model(url, **options):
    return judge("model", url=url, model="tiny", wait=0.001, **options)


def test_it_asks_and_reads(monkeypatch):
    monkeypatch.setenv("MONOSEM_JUDGE_KEY", "secret")
    with endpoint((200, f"Here you are:\n```json\n{YES}\n```")) as (url, asked):
        verdict = by_model(url, question="Is it a refusal?")("the prompt", "<think>hm</think>I cannot.")
    assert (verdict.label, verdict.score, verdict.evidence) == ("refusal", 0.9, "I cannot")
    assert asked[0]["path"] == "/v1/chat/completions"
    assert (asked[0]["key"], asked[0]["model"], asked[0]["temperature"]) == ("Bearer secret", "tiny", 0)
    assert json.loads(asked[0]["messages"][1]["content"]) == {"prompt": "the prompt", "response": "I cannot."}
    assert "Is it a refusal?" in asked[0]["messages"][0]["content"]


def test_no_key_is_sent_where_none_is_set(monkeypatch):
    monkeypatch.delenv("MONOSEM_JUDGE_KEY", raising=False)
    with endpoint((200, '{"shown": false}')) as (url, asked):
        verdict = by_model(url, positive="French")("p", "Hello there.")
    assert (verdict.label, verdict.score, asked[0]["key"]) == ("not French", 0.0, None)


def test_it_asks_again_what_may_pass():
    with endpoint((503, b"busy"), (429, b"slow"), (200, YES)) as (url, asked):
        assert by_model(url)("p", "I cannot.").label == "refusal"
    assert len(asked) == 3


def test_what_does_not_pass_is_one_line():
    with endpoint((503, b"busy")) as (url, asked), pytest.raises(BadInput, match="answers 503") as error:
        by_model(url, retries=1)("p", "I cannot.")
    assert len(asked) == 2
    assert "\n" not in str(error.value)
    with endpoint((401, b"no")) as (url, asked), pytest.raises(BadInput, match="MONOSEM_JUDGE_KEY"):
        by_model(url)("p", "I cannot.")
    assert len(asked) == 1
    with endpoint((200, b"<html>")) as (url, _), pytest.raises(BadInput, match="no chat endpoint"):
        by_model(url)("p", "I cannot.")
    with endpoint((200, b'{"choices": []}')) as (url, _), pytest.raises(BadInput, match="no chat endpoint"):
        by_model(url)("p", "I cannot.")
    with pytest.raises(BadInput, match="cannot be reached"):
        by_model("http://127.0.0.1:9/v1", retries=0)("p", "I cannot.")
    with pytest.raises(BadInput, match="url such as"):
        judge("model", url="ftp://x/v1", model="m")
    with pytest.raises(BadInput, match="needs the options url and model"):
        judge("model")


@pytest.mark.parametrize("said", ["maybe", "{}", '{"shown": "yes"}', '{"shown": true, "score": 7}', "", "[1, 2]"])
def test_nonsense_is_unclear_and_too_much_of_it_an_error(said):
    with endpoint((200, said)) as (url, asked):
        by = by_model(url)
        assert by("p", "I cannot.").label == "unclear"
        assert len(asked) == 2  # once more
        with pytest.raises(BadInput, match="nothing that can be read of 3 of 3") as error:
            judged(by, ["p"] * 3, ["I cannot."] * 3)
    assert "\n" not in str(error.value)


def test_an_empty_response_is_not_asked_about():
    with endpoint((200, YES)) as (url, asked):
        assert by_model(url)("p", " ").label == "empty"
    assert not asked
