"""The server's answers, and what it refuses; a real process is asked."""

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from explorer_server import Served, serving
from monosem import latents
from monosem.dictionaries import one_site
from monosem.models import load_model

TEXT = "the cat sat on the mat"


def raw(served: Served, request: bytes) -> bytes:
    """What comes back for bytes as they are, until the server closes."""
    host, port = served.host.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


# ---------------------------------------------------------------------- who may ask
def test_without_the_token_nothing_is_said(served):
    for path in ("/", "/api/home", "/static/app.js", "/api/latent?d=sae&i=3"):
        assert served.ask(path, headers={"Authorization": ""})[0] == 403
        assert served.ask(path, headers={"Authorization": "Bearer wrong"})[0] == 403
        assert served.ask(path, headers={"Authorization": "", "Cookie": "monosem-1=wrong"})[0] == 403
    assert served.ask("/api/home")[0] == 200


def test_a_first_visit_trades_the_token_for_a_cookie(served):
    connection = http.client.HTTPConnection(served.host)
    connection.request("GET", f"/latent?d=sae&token={served.token}&i=3")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["location"]) == (303, "/latent?d=sae&i=3")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert served.ask("/api/home", headers={"Authorization": "", "Cookie": cookie.partition(";")[0]})[0] == 200
    connection.close()
    connection.request("GET", f"//evil.example/?token={served.token}")
    assert connection.getresponse().headers["location"] == "/evil.example/"


@pytest.mark.parametrize("host", ["evil.example", "localhost", "127.0.0.1:1", "", "127.0.0.1.evil.example:80"])
def test_another_host_is_refused(served, host):
    request = f"GET /api/home HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {served.token}\r\n\r\n".encode()
    assert raw(served, request).startswith(b"HTTP/1.1 421")


def test_another_origin_is_refused(served):
    own = {"Origin": served.base}
    change = {"put": ["x", [["sae", 1]]]}
    assert served.ask("/api/notes", change, {"Origin": "http://evil.example"})[0] == 403
    assert served.ask("/api/notes", change, {"Origin": "null"})[0] == 403
    assert served.ask("/api/home", headers={"Origin": "http://evil.example"})[0] == 403
    cookie = {"Authorization": "", "Cookie": f"monosem-{served.host.split(':')[1]}={served.token}"}
    assert served.ask("/api/notes", change, cookie)[0] == 403  # a form of another page sends the cookie alone
    assert served.ask("/api/notes", change, cookie | own)[0] == 200


def test_it_listens_on_this_machine_alone(served):
    listed = subprocess.run(["ss", "-ltn"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs ss")
    port = served.host.split(":")[1]
    assert [line.split()[3] for line in listed.stdout.splitlines() if line.split()[3].endswith(f":{port}")] == [
        f"127.0.0.1:{port}"
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../guard.py",
        "/static/..%2f..%2fguard.py",
        "/static/%2e%2e/guard.py",
        "/static//etc/passwd",
        "/static/",
        "/reports/..%2f..%2fetc%2fpasswd",
        "/reports/0",
        "/api/jobs/1/..%2f..%2fetc%2fpasswd",
        "/api/latent?d=../tiny&i=1",
        "/api/latent?d=/etc&i=1",
        "/nothing",
    ],
)
def test_nothing_else_on_the_disk_is_served(served, path):
    status, answer = served.ask(path)
    assert status == 404
    assert "root:" not in str(answer)


# ---------------------------------------------------------------------- what may be asked
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/latent?d=sae&i=64", "latent"),
        ("/api/latent?d=sae&i=-1", "whole numbers"),
        ("/api/latent?d=sae&i=99999999999999999999", "whole numbers"),
        ("/api/latent?d=sae&i=%E0%A5%A7", "whole numbers"),
        ("/api/latent?d=sae", "whole numbers"),
        ("/api/latent?i=3", "d="),
        ("/api/latent?d=saw&i=3", "did you mean 'sae'"),
        ("/api/search?d=bare&q=cat", "monosem latents index"),
        ("/api/rows?d=sae&i=64", "latent"),
        ("/api/rows?d=sae&i=" + "1," * 400 + "1", "300"),
        ("/api/jobs/999/events", "no job"),
    ],
)
def test_malformed_requests_are_one_line(served, path, words):
    status, answer = served.ask(path)
    assert status in (400, 404)
    assert words in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"kind": "steal"}',
        b'{"kind": "steer", "dictionary": "sae", "text": "a"}',
        json.dumps({"kind": "try", "dictionary": "sae", "text": "a" * 5000, "latent": 1}).encode(),
        json.dumps({"kind": "try", "dictionary": "sae", "text": "a", "latent": -1}).encode(),
        json.dumps({"kind": "try", "dictionary": "sae", "text": "a", "latent": 1, "more": 1}).encode(),
        b'{"kind": "steer", "dictionary": "sae", "text": "a", "doses": [{"latent": 1, "value": NaN}]}',
        json.dumps({"kind": "try", "dictionary": "../tiny", "text": "a", "latent": 1}).encode(),
    ],
)
def test_malformed_jobs_are_refused(served, body):
    status, answer = served.ask("/api/jobs", body)
    assert status in (400, 404), answer
    assert "\n" not in answer["error"]
    assert "fault" not in answer["error"]


def test_large_requests_are_refused(served):
    head = f"POST /api/notes HTTP/1.1\r\nHost: {served.host}\r\nAuthorization: Bearer {served.token}\r\n"
    assert raw(served, f"{head}Content-Length: 3000000\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert raw(served, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 40).startswith(b"HTTP/1.1 413")
    long = f"GET /{'a' * 100_000} HTTP/1.1\r\nHost: {served.host}\r\n\r\n".encode()
    assert raw(served, long)[:12] in (b"HTTP/1.1 414", b"HTTP/1.1 400")
    assert raw(served, b"\x16\x03\x01\x02\x00nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert served.ask("/api/home")[0] == 200


def test_every_answer_has_its_policy(served):
    connection = http.client.HTTPConnection(served.host)
    connection.request("GET", "/", headers={"Authorization": f"Bearer {served.token}"})
    headers = connection.getresponse().headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


# ---------------------------------------------------------------------- what it says
def test_a_page_is_what_the_index_says(served, home):
    own = one_site(home / "sae")
    index = latents.index_of(own)
    status, page = served.ask("/api/latent?d=sae&i=5")
    assert status == 200
    evidence = index.evidence(5)
    assert page["statistics"]["count"] == evidence.count
    assert [one["tokens"] for one in page["examples"]] == [one.tokens for one in evidence.examples]


def test_the_table_is_the_index_and_the_weights(served, home):
    import base64

    own = one_site(home / "sae")
    _, table = served.ask("/api/table?d=sae")
    columns = {name: np.frombuffer(base64.b64decode(code), "<f4") for name, code in table["columns"].items()}
    expected = latents.index_of(own).table
    np.testing.assert_allclose(columns["density"], expected["density"], rtol=1e-6)
    np.testing.assert_allclose(columns["decoder_norm"], own.W_dec.norm(dim=1), rtol=1e-5)
    _, bare = served.ask("/api/table?d=bare")
    assert not bare["indexed"]
    assert "density" not in bare["columns"]
    assert bare["columns"]["decoder_norm"] == table["columns"]["decoder_norm"]


def test_without_an_index_or_with_a_broken_one_the_weights_are_shown(served):
    for name in ("bare", "broken"):
        status, page = served.ask(f"/api/latent?d={name}&i=2")
        assert status == 200
        assert page["geometry"]["decoder_norm"] == pytest.approx(1, rel=1e-5)
        assert "examples" in page["missing"]
    _, home = served.ask("/api/home")
    said = {one["name"]: one for one in home["dictionaries"]}
    assert said["bare"]["tokens"] is None
    assert said["broken"]["index_error"]
    assert said["sae"]["tokens"] > 1000


# ---------------------------------------------------------------------- jobs
def test_a_text_is_read_by_the_model(served, home):
    end = served.job(kind="try", dictionary="sae", latent=5, text=TEXT)
    assert end["type"] == "done", end
    model, own = load_model(str(home / "tiny"), quiet=True), one_site(home / "sae")
    with torch.no_grad():
        hidden = model.hf(**model.tokenizer(TEXT, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0]
    pre = (hidden @ own.W_enc + own.b_enc).relu()
    kept = torch.where(pre >= pre.topk(4).values[:, -1:], pre, 0)[:, 5]
    torch.testing.assert_close(torch.tensor(end["result"]["activations"]), kept, rtol=1e-4, atol=1e-4)


def test_steering_streams_and_ends_as_generate_does(served, home):
    doses = [{"latent": 5, "value": 30.0}]
    _, job = served.ask("/api/jobs", {"kind": "steer", "dictionary": "sae", "text": TEXT, "doses": doses, "tokens": 12})
    events = served.events(job["id"])
    assert events[-1]["type"] == "done", events[-1]
    model, own = load_model(str(home / "tiny"), quiet=True), one_site(home / "sae")
    from monosem.edits import add_latent

    for side, edits in (("plain", ()), ("steered", add_latent(own, 5, 30.0))):
        told = [event["texts"] for event in events if event["type"] == "tokens" and event["side"] == side]
        assert [told[i + 1][: len(told[i])] == told[i] for i in range(len(told) - 1)] == [True] * (len(told) - 1)
        assert len(told) > 8
        expected = model.generate(TEXT, edits=edits, max_new_tokens=12)
        assert events[-1]["result"][side] == expected.texts[0]


def test_a_prompt_matrix_leaves_out_what_the_dictionary_was_not_trained_on(served, home):
    end = served.job(kind="prompt", dictionary="sae", text=TEXT, n=4)
    found = end["result"]
    model, own = load_model(str(home / "tiny"), quiet=True), one_site(home / "sae")
    run = model.run(TEXT, capture=own.site)
    dense = own.encode(run[own.site][0]).dense()[:, found["latents"]].T
    matrix = torch.tensor(found["matrix"])
    assert found["counted"][0] is False
    assert not matrix[:, 0].any()
    assert dense[:, 0].any()
    counted = torch.tensor(found["counted"])
    torch.testing.assert_close(matrix[:, counted], dense[:, counted].float(), rtol=1e-4, atol=1e-4)
    top = {(row["position"], row["latent"]): row["value"] for row in found["top"]}
    assert {position for position, _ in top} == set(counted.nonzero()[:, 0].tolist())


def test_a_failing_job_is_shown_and_the_next_one_runs(served):
    end = served.job(kind="patch", dictionary="sae", text=TEXT, corrupted="the", answer=" cat", wrong=" dog")
    assert end["type"] == "failed"
    assert "\n" not in end["words"]
    assert served.job(kind="try", dictionary="sae", latent=5, text=TEXT)["type"] == "done"
    listed = served.ask("/api/jobs")[1]
    assert [one["state"] for one in listed[:2]] == ["done", "failed"]


def test_a_running_job_can_be_cancelled_and_a_waiting_one_never_runs(served):
    ask = {"kind": "steer", "dictionary": "sae", "text": TEXT, "doses": [{"latent": 5, "value": 1.0}], "tokens": 50}
    first, second = (served.ask("/api/jobs", ask | {"seed": seed, "temperature": 1.0})[1]["id"] for seed in (1, 2))
    served.ask(f"/api/jobs/{second}/cancel", {})
    served.ask(f"/api/jobs/{first}/cancel", {})
    assert served.events(second) == [{"type": "cancelled"}]
    assert served.events(first)[-1]["type"] == "cancelled"
    assert served.job(kind="try", dictionary="sae", latent=5, text=TEXT)["type"] == "done"


def test_many_readers_and_one_that_dies(served):
    ask = {"kind": "steer", "dictionary": "sae", "text": TEXT, "doses": [{"latent": 4, "value": 1.0}], "tokens": 40}
    job = served.ask("/api/jobs", ask)[1]["id"]
    host, port = served.host.split(":")
    dying = socket.create_connection((host, int(port)))
    head = f"Host: {served.host}\r\nAuthorization: Bearer {served.token}"
    dying.sendall(f"GET /api/jobs/{job}/events HTTP/1.1\r\n{head}\r\n\r\n".encode())
    dying.recv(100)
    dying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset, no goodbye
    dying.close()
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda i: served.ask(f"/api/latent?d=sae&i={i % 64}"), range(200)))
    assert {status for status, _ in answers} == {200}
    assert [page["latent"] for _, page in answers] == [i % 64 for i in range(200)]
    assert served.events(job)[-1]["type"] == "done"


# ---------------------------------------------------------------------- notes
def test_notes_survive_kill_9(home, tmp_path):
    own = serving(tmp_path, str(home / "sae"))
    name = str(home / "sae")
    own.ask("/api/notes", {"put": ["stars", [[name, 3], [name, 4]]]})
    own.ask("/api/notes", {"note": {"dictionary": name, "latent": 3, "text": "cats?"}})
    status, last = own.ask("/api/notes", {"take": ["stars", [[name, 4]]]})
    assert status == 200
    os.kill(own.process.pid, signal.SIGKILL)
    own.process.wait()
    assert json.loads((tmp_path / "notes.json").read_text()) == last
    again = serving(tmp_path, str(home / "sae"))
    try:
        assert again.ask("/api/notes")[1] == last
        assert last["lists"] == {"stars": [[name, 3]]}
        assert last["notes"] == [{"dictionary": name, "latent": 3, "text": "cats?"}]
        wrong = {"merge": {"format": "other", "version": 1}}
        assert again.ask("/api/notes", wrong)[0] == 400
        merged = again.ask("/api/notes", {"merge": {**last, "lists": {"more": [[name, 9]]}}})[1]
        assert merged["lists"] == {"stars": [[name, 3]], "more": [[name, 9]]}
    finally:
        again.process.terminate()
        again.process.wait(30)


def test_a_file_that_is_not_of_notes_is_left_as_it_is(tmp_path):
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    words = [sys.executable, "-m", "monosem", "explore", "--no-browser", "--port", "0"]
    done = subprocess.run([*words, "--notes", str(tmp_path / "notes.json")], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'
