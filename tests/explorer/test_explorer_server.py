"""The server's answers, and what it refuses; a real process is asked."""

import concurrent.futures
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from explorer_server import Served, serving
from monosem import edits, graphs, latents
from monosem.dictionaries import one_site
from monosem.directions import Direction
from monosem.errors import BadFile, BadInput, Mismatch
from monosem.explorer.apart import THEME, apart
from monosem.explorer.library import Library
from monosem.explorer.queue import Jobs
from monosem.explorer.words import spoken
from monosem.models import load_model
from monosem.steering import LatentSweep, Spoken, in_norms

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


@pytest.mark.parametrize("other", ["127.0.0.2", "::1"])
def test_it_listens_at_one_address_of_this_machine_alone(served, other):
    """A server that listens at all addresses answers at these as well."""
    port = int(served.host.split(":")[1])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection((other, port), timeout=5)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../guard.py",
        "/static/..%2f..%2fguard.py",
        "/static/%2e%2e/guard.py",
        "/static//etc/passwd",
        "/static/",
        "/reports/..%2f..%2fetc%2fpasswd",
        "/reports/7",
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
        ("/api/search?d=bare&q=cat", "make one on its page"),
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
        b'{"kind": {"a": 1}}',
        b'{"kind": ["try"]}',
        b'{"kind": "steer", "dictionary": "sae", "text": "a"}',
        json.dumps({"kind": "try", "dictionary": "sae", "text": "a" * 5000, "latent": 1}).encode(),
        json.dumps({"kind": "try", "dictionary": "sae", "text": "a", "latent": -1}).encode(),
        json.dumps({"kind": "try", "dictionary": "sae", "text": "a", "latent": 1, "more": 1}).encode(),
        b'{"kind": "steer", "dictionary": "sae", "text": "a", "arms": [{"doses": [{"latent": 1, "value": NaN}]}]}',
        b'{"kind": "steer", "dictionary": "sae", "text": "a", "arms": [{"doses": [{"value": 1}]}]}',
        b'{"kind": "steer", "dictionary": "sae", "text": "a", "arms": []}',
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
        assert not served.ask(f"/api/table?d={name}")[1]["indexed"]
    _, home = served.ask("/api/home")
    said = {one["name"]: one for one in home["dictionaries"]}
    assert said["bare"]["tokens"] is None
    assert said["broken"]["index_error"]
    assert said["sae"]["tokens"] > 1000


def test_an_index_of_ones_own_stands_for_the_one_beside_the_dictionary(home, tmp_path):
    own = shutil.copy(home / "sae" / "index.sqlite", tmp_path / "mine.sqlite")
    library = Library([str(home / "broken"), str(home / "bare")], indexes=[own])
    first, second = (library.book(str(home / name)) for name in ("broken", "bare"))
    assert first.latent(2)["examples"] == Library([str(home / "sae")]).book(str(home / "sae")).latent(2)["examples"]
    assert second.usable is None  # its weights are the same, and the first one of them was taken
    with pytest.raises(Mismatch, match="name that one, too"):
        Library([str(home / "narrow")], indexes=[own])
    with pytest.raises(BadFile, match="not a latent index"):
        Library([str(home / "bare")], indexes=[home / "broken" / "index.sqlite"])


def test_a_missing_index_ends_the_command_in_one_line(home):
    words = [
        sys.executable,
        "-m",
        "monosem",
        "explore",
        "bare",
        "--no-browser",
        "--port",
        "0",
        "--index",
        "none.sqlite",
    ]
    ended = subprocess.run(words, cwd=home, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "none.sqlite" in ended.stderr


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


def steered(*arms, **more):
    return {"kind": "steer", "dictionary": "sae", "text": TEXT, "arms": list(arms), "tokens": 12, **more}


def arm(*doses, times=1.0):
    return {"doses": [dict(zip((kind, "value"), dose)) for kind, *dose in doses], "times": times}


def test_steering_streams_and_ends_as_generate_does(served, home):
    _, job = served.ask("/api/jobs", steered(arm(("latent", 5, 15.0), times=2), arm(("direction", "pull", 3.0))))
    events = served.events(job["id"])
    assert events[-1]["type"] == "done", events[-1]
    found = events[-1]["result"]
    model, own = load_model(str(home / "tiny"), quiet=True), one_site(home / "sae")
    vector = Direction.load(home / "pull.safetensors").vector
    changes = {"plain": (), "0": edits.add_latent(own, 5, 30.0), "1": edits.add(("resid_post.1", vector), 3.0)}
    for side, change in changes.items():
        told = [event["texts"] for event in events if event["type"] == "tokens" and event["side"] == side]
        assert [told[i + 1][: len(told[i])] == told[i] for i in range(len(told) - 1)] == [True] * (len(told) - 1)
        assert len(told) > 8
        expected = model.generate(TEXT, edits=change, max_new_tokens=12)
        row = found["plain"] if side == "plain" else found["arms"][int(side)]
        assert row["text"] == expected.texts[0]


def test_what_steering_says_of_a_text_is_what_the_model_says(served, home):
    found = served.job(**steered(arm(("latent", 5, 30.0))))["result"]
    model, own = load_model(str(home / "tiny"), quiet=True), one_site(home / "sae")
    change = edits.add_latent(own, 5, 30.0)
    made = model.generate(TEXT, edits=change, max_new_tokens=12)
    ids, new = made.ids.rows()[0], made.new[0]
    start = len(ids) - len(new)
    with torch.no_grad():
        plain = model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    changed = model.run([ids], edits=change).logits[0].double().log_softmax(-1)
    spans = slice(start - 1, len(ids) - 1)
    own_plain, own_changed = (one[spans].gather(1, torch.tensor(new)[:, None])[:, 0] for one in (plain, changed))
    row = found["arms"][0]
    assert row["raised"] == pytest.approx((own_changed - own_plain).tolist(), abs=1e-4)
    nats = (plain.exp() * (plain - changed)).sum(-1)[spans]
    assert (row["kl"], row["kl_text"]) == pytest.approx((float(nats[0]), float(nats.mean())), abs=1e-4)
    assert row["perplexity"] == pytest.approx(float((-own_plain.mean()).exp()), rel=1e-4)
    first = found["changes"][0]
    token = next(i for i in range(model.cfg.d_vocab) if model.str_token(i) == first["token"])
    assert first["raised"][0] == pytest.approx(float(changed[start - 1, token] - plain[start - 1, token]), abs=1e-4)


def test_amounts_in_other_units(served, home):
    model, own = load_model(str(home / "tiny"), quiet=True), one_site(home / "sae")
    (amount,) = served.job(**steered(arm(("latent", 5, 0.5), times=3), units="norms"))["result"]["arms"][0]["amounts"]
    assert amount == pytest.approx(in_norms(model, (own.site, own.W_dec[5]), 1.5), rel=1e-4)
    doses = [("latent", 5, 2.0), ("direction", "pull", 1.0)]
    found = served.job(**steered(arm(*doses, times=0.05), arm(*doses, times=0.2), units="nats"))
    assert found["type"] == "done", found
    vector, spoken = Direction.load(home / "pull.safetensors").vector, Spoken.by(model, TEXT, max_new_tokens=12)
    for row, wanted in zip(found["result"]["arms"], (0.05, 0.2), strict=True):
        latent, direction = row["amounts"]
        assert latent == pytest.approx(2 * direction)
        both = [edits.add_latent(own, 5, latent), edits.add(("resid_post.1", vector), direction)]
        assert float(spoken.divergence(both).quantile(0.95)) == pytest.approx(wanted, rel=0.06)
    assert served.job(**steered(arm(("latent", 5, 1.0)), units="nats", how="set"))["type"] == "failed"
    assert "no direction" in served.job(**steered(arm(("direction", "push", 1.0))))["words"]


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


def test_what_removing_a_latent_does_to_an_example(served, home):
    own, model = one_site(home / "sae"), load_model(str(home / "tiny"), quiet=True)
    example = latents.index_of(own).evidence(5).examples[0]
    ask = {"kind": "removed", "dictionary": "sae", "latent": 5, "ids": example.ids}
    found = served.job(**ask)["result"]
    with torch.no_grad():
        hidden = model.hf(torch.tensor([example.ids]), output_hidden_states=True).hidden_states[2][0]
        pre = (hidden @ own.W_enc + own.b_enc).relu()
        amount = torch.where(pre >= pre.topk(4).values[:, -1:], pre, 0)[:, 5]
        amount[0] = 0  # the first token stays as it is
    with model.editing(edits.function("resid_post.1", lambda x: x - amount[:, None] * own.W_dec[5])):
        without = model.run([example.ids]).logits[0].double().log_softmax(-1)
    plain = model.run([example.ids]).logits[0].double().log_softmax(-1)
    expected = (plain - without)[:-1].gather(1, torch.tensor(example.ids)[1:, None])[:, 0]
    changes = [row["loss_change"] for row in found["rows"]]
    assert changes[:-1] == pytest.approx(expected.tolist(), abs=1e-4)
    assert changes[-1] is None
    assert served.job(**ask)["result"] == found
    assert "tokens 0 to" in served.job(**ask | {"ids": [10**6]})["words"]


def test_where_an_attention_latent_comes_from(served, home):
    own, model = one_site(home / "heads"), load_model(str(home / "tiny"), quiet=True)
    z = model.run(TEXT, capture="z.1")["z.1"][0].flatten(1)
    pre = (z @ own.W_enc + own.b_enc)[-1]
    latent = int(pre.argmax())
    found = served.job(kind="sources", dictionary="heads", text=TEXT, latent=latent)["result"]
    assert len(found["values"]) == model.cfg.n_heads
    assert sum(map(sum, found["values"])) + found["bias"] == pytest.approx(float(pre[latent]), abs=1e-4)
    assert served.job(kind="sources", dictionary="sae", text=TEXT, latent=latent)["type"] == "failed"


def test_the_model_adds_to_a_page(served, home):
    own, model = one_site(home / "heads"), load_model(str(home / "tiny"), quiet=True)
    found = served.job(kind="weights", dictionary="heads", latent=3)["result"]
    norms = own.W_dec[3].reshape(model.cfg.n_heads, -1).norm(dim=1)
    assert [row["share"] for row in found["heads"]] == pytest.approx((norms / norms.sum()).tolist(), rel=1e-5)
    assert "set_effects" in served.job(kind="weights", dictionary="sae", latent=3)["result"]


def test_a_sweep_is_ranked(served, home):
    import base64

    (about,) = served.ask("/api/home")[1]["sweeps"]
    assert (about["dictionary"], about["prompt"], about["rows"], about["wanted"]) == ("sae", "the cat", 24, 24)
    _, table = served.ask("/api/sweep?n=0")
    score = np.frombuffer(base64.b64decode(table["columns"]["score"]), "<f4")
    assert (np.diff(score) <= 0).all()
    expected = LatentSweep.load(home / "swept").table
    assert [one["text"] for one in served.ask("/api/sweep_rows?n=0&i=0,5")[1]] == expected["text"].iloc[[0, 5]].tolist()
    assert served.ask("/api/sweep?n=1")[0] == 404
    assert served.ask("/api/sweep_rows?n=0&i=24")[0] == 404


def test_a_failing_job_is_shown_and_the_next_one_runs(served):
    end = served.job(kind="patch", dictionary="sae", text=TEXT, corrupted="the", answer=" cat", wrong=" dog")
    assert end["type"] == "failed"
    assert "\n" not in end["words"]
    assert served.job(kind="try", dictionary="sae", latent=5, text=TEXT)["type"] == "done"
    listed = served.ask("/api/jobs")[1]
    assert [one["state"] for one in listed[:2]] == ["done", "failed"]


PATCH = {"kind": "patch", "dictionary": "sae", "text": TEXT, "corrupted": "the dog sat on the mat", "answer": " cat"}
DOSE = {"doses": [{"latent": 5, "value": 1.0}]}


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (PATCH | {"corrupted": "the dog", "wrong": " dog"}, "the clean prompt has 6 tokens"),
        (PATCH | {"corrupted": "", "wrong": " dog"}, "the corrupted prompt is empty"),
        (PATCH | {"corrupted": TEXT, "wrong": " dog"}, "the clean prompt and the corrupted prompt are the same"),
        (PATCH | {"wrong": " a zebra"}, "one is needed; reword it"),
        (PATCH | {"wrong": " cat"}, "right and wrong answer are the same"),
        (PATCH | {"wrong": " dog" * 99}, "the wrong answer has over 100 characters"),
        ({"kind": "lens", "dictionary": "sae", "text": TEXT, "lens": "tuned"}, "choose the logit lens"),
        (steered(DOSE | {"times": 999}, units="nats"), "ask for less"),
        (steered(DOSE | {"times": -1}, units="nats"), "above 0"),
        (steered(DOSE, tokens=401), "tokens: should be less than"),
    ],
)
def test_what_cannot_be_done_is_said_in_words_of_the_page(served, ask, words):
    status, job = served.ask("/api/jobs", ask)
    said = job["error"] if status == 400 else served.events(job["id"])[-1]["words"]
    assert words in said
    assert re.search(r"\w=|--|[a-z]_[a-z]|pair 0", said) is None, said


def test_what_is_too_large_is_said_without_arguments_of_python(home):
    model = load_model(str(home / "tiny"), quiet=True)
    with pytest.raises(BadInput, match="n_nodes=") as raised:
        graphs.attribution_graph(model, TEXT, memory=1000, quiet=True)
    assert spoken(raised.value).endswith("1 KB are left for it; give a shorter text, or ask for less")


def test_a_running_job_can_be_cancelled_and_a_waiting_one_never_runs(served):
    ask = steered(arm(("latent", 5, 1.0)), tokens=50)
    first, second = (served.ask("/api/jobs", ask | {"seed": seed, "temperature": 1.0})[1]["id"] for seed in (1, 2))
    served.ask(f"/api/jobs/{second}/cancel", {})
    served.ask(f"/api/jobs/{first}/cancel", {})
    *before, last = served.events(second)
    assert last == {"type": "cancelled"}
    assert all(one["words"].startswith("waiting until") for one in before)
    assert served.events(first)[-1]["type"] == "cancelled"
    assert served.job(kind="try", dictionary="sae", latent=5, text=TEXT)["type"] == "done"


def test_a_job_that_waits_says_for_what():
    jobs, began, end = Jobs(), threading.Event(), threading.Event()
    first = jobs.add("index", "index: sae", lambda job: (began.set(), end.wait(60)))
    assert began.wait(60)
    second = jobs.add("try", "try: the cat", lambda job: 1)
    assert second.events == [{"type": "progress", "words": "waiting until this is done: index: sae"}]
    end.set()
    while second.state != "done":
        assert first.state != "failed"
    assert second.events[-1] == {"type": "done", "result": 1}


def test_many_readers_and_one_that_dies(served):
    ask = steered(arm(("latent", 4, 1.0)), tokens=40)
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
        many = {"lists": {f"list {i}": [[name, 1]] for i in range(500)}}  # each file is allowed, both together are not
        status, answer = again.ask("/api/notes", {"merge": many})
        assert (status, "at most 500" in answer["error"], "fault" in answer["error"]) == (400, True, False)
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


@pytest.mark.parametrize("option", ["--direction", "--sweep"])
def test_what_cannot_be_opened_is_said_before_the_server_starts(tmp_path, option):
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    words = [sys.executable, "-m", "monosem", "explore", "--no-browser", "--port", "0", option, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize(
    "begin", ["", "<!doctype html>", "\ufeff<!-- saved --> <!DOCTYPE html>\n<html lang='en'>\n<head>"]
)
def test_what_is_put_into_a_page_stands_behind_its_doctype(begin):
    rest = "<title>A</title><body><!doctype html>"
    assert bytes(apart(begin + rest).body).decode() == begin + THEME + rest


@pytest.mark.parametrize(
    "kind", [{"kind": "try", "text": "the cat"}, {"kind": "removed", "ids": [5, 6]}, {"kind": "weights"}]
)
@pytest.mark.parametrize("dictionary", ["sae", "bare"])
def test_a_job_of_a_latent_that_is_none_is_refused(served, kind, dictionary):
    status, answer = served.ask("/api/jobs", kind | {"dictionary": dictionary, "latent": 64})
    assert (status, answer) == (404, {"error": "no latent 64: this dictionary has latents 0 to 63"})
