"""Neuronpedia's addresses: asked as a notebook asks the service, with another base URL."""

import json
import socket
import time
import urllib.request

import pytest
import torch

from monosem import latents
from monosem.dictionaries import one_site
from monosem.errors import BadInput, UnknownName
from monosem.models import load_model

TEXT, SOURCE = "the cat sat on the mat", "1-resid_post"
PLACE = {"modelId": "tiny", "source": SOURCE, "index": "5"}


@pytest.fixture
def own(home):
    return one_site(home / "sae")


def base(served):
    return f"{served.base}/key/{served.token}"


def dense(home, own, text=TEXT):
    """`[pos, width]`, from Hugging Face's hidden states."""
    model = load_model(str(home / "tiny"), quiet=True)
    with torch.no_grad():
        hidden = model.hf(**model.tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0]
    pre = (hidden @ own.W_enc + own.b_enc).relu()
    return torch.where(pre >= pre.topk(4).values[:, -1:], pre, 0)


def test_a_latent_has_the_services_fields(served, own):
    with urllib.request.urlopen(f"{base(served)}/api/feature/tiny/{SOURCE}/5") as answer:  # no header
        row = json.loads(answer.read())
    evidence = latents.index_of(own).evidence(5)
    assert (row["modelId"], row["layer"], row["index"]) == ("tiny", SOURCE, "5")
    assert row["hookName"] == "blocks.1.hook_resid_post"
    assert row["frac_nonzero"] == evidence.density
    assert row["maxActApprox"] == pytest.approx(evidence.maximum, rel=1e-3)
    assert row["pos_str"] == [token for token, _ in evidence.promoted[:10]]
    assert row["activations"][0]["tokens"] == evidence.examples[0].tokens
    rows = torch.nn.functional.normalize(own.W_dec, dim=1) @ torch.nn.functional.normalize(own.W_dec[5], dim=0)
    rows[5] = -2
    assert row["topkCosSimIndices"][0] == int(rows.argmax())
    labelled = served.ask(f"/api/feature/tiny/{SOURCE}/3")[1]
    assert [one["description"] for one in labelled["explanations"]] == ["</script><img src=x onerror=alert(1)>"]


def test_our_reader_of_the_service_reads_this_server(served, own):
    page = latents.public_latent(f"tiny/{SOURCE}/5", site=base(served))
    ours = latents.page(latents.index_of(own), 5)
    assert page.parts["statistics"]["density"] == ours.parts["statistics"]["density"]
    assert [one["activations"] for one in page.parts["examples"]] == [
        one["activations"] for one in ours.parts["examples"]
    ]
    assert page.parts["unreliable"] == []
    assert latents.public_latent(f"{base(served)}/tiny/{SOURCE}/3?embed=true").parts["explanation"]["by"]
    with pytest.raises(UnknownName, match="no latent"):
        latents.public_latent(f"tiny/{SOURCE}/64", site=base(served))
    with pytest.raises(BadInput, match="403"):
        latents.public_latent(f"tiny/{SOURCE}/5", site=served.base)


def test_activations_of_a_text(served, home, own):
    ask = {"feature": PLACE, "customText": TEXT}
    status, found = served.ask("/api/activation/new", ask, {"Authorization": "", "x-api-key": served.token})
    assert status == 200, found
    expected = dense(home, own)[:, 5]
    torch.testing.assert_close(torch.tensor(found["values"]), expected, rtol=1e-4, atol=1e-4)
    assert found["maxValueIndex"] == int(expected.argmax())
    assert "".join(found["tokens"]).split() == TEXT.split()
    several = served.ask("/api/activation/new", {"feature": PLACE, "customText": [TEXT, "a dog"]})[1]
    assert [len(one["values"]) for one in several] == [6, 2]
    stored = served.ask("/api/activation/get", PLACE)[1]
    assert stored[0]["maxValue"] == max(stored[0]["values"])


def test_searches_by_a_text(served, home, own):
    codes = dense(home, own)
    found = served.ask("/api/activation/source", {**PLACE, "customText": TEXT})[1]["results"][0]["activeFeatures"]
    assert {int(latent) for latent in found} == set(codes.sum(0).nonzero()[:, 0].tolist())
    ask = {"modelId": "tiny", "sourceSet": "resid_post", "text": TEXT, "numResults": 3}
    best = served.ask("/api/search-all", ask)[1]["result"]
    strongest = codes[1:].amax(0)  # the first token is ignored
    assert [int(one["index"]) for one in best] == strongest.topk(3).indices.tolist()
    at = served.ask("/api/search-all", ask | {"sortIndexes": [2, 3]})[1]["result"]
    assert [int(one["index"]) for one in at] == codes[[2, 3]].sum(0).topk(3).indices.tolist()
    ask = {"modelId": "tiny", "source": SOURCE, "text": TEXT, "numResults": 2, "densityThreshold": -1}
    rows = served.ask("/api/search-topk-by-token", ask)[1]["results"]
    assert [one["position"] for one in rows] == [1, 2, 3, 4, 5]
    for one in rows:
        expected = codes[one["position"]].topk(2).indices.tolist()
        assert [top["featureIndex"] for top in one["topFeatures"]] == expected
    density = latents.index_of(own).densities
    rare = served.ask("/api/search-topk-by-token", ask | {"densityThreshold": 0.05})[1]["results"]
    shown = {top["featureIndex"] for one in rows for top in one["topFeatures"]}
    kept = {top["featureIndex"] for one in rare for top in one["topFeatures"]}
    assert max(density[list(kept)], default=0) <= 0.05 < max(density[list(shown)])


def test_searches_by_words(served):
    ask = {"modelId": "tiny", "layers": [SOURCE], "query": "cat"}
    found = served.ask("/api/explanation/search", ask)[1]
    expected = served.ask("/api/search?d=sae&q=cat")[1]
    assert [int(one["index"]) for one in found["results"]] == [one["latent"] for one in expected][:20]
    more = served.ask("/api/explanation/search-model", ask | {"offset": 20})[1]
    assert found["hasMore"] == (len(expected) > 20)
    assert [int(one["index"]) for one in more["results"]] == [one["latent"] for one in expected][20:40]


def test_steering_as_the_service_does(served, home, own):
    features = [{"modelId": "tiny", "layer": SOURCE, "index": 5, "strength": 6}]
    ask = {"modelId": "tiny", "prompt": TEXT, "features": features, "temperature": 0, "n_tokens": 6}
    found = served.ask("/api/steer", ask)[1]
    model = load_model(str(home / "tiny"), quiet=True)
    assert found["DEFAULT"] == TEXT + model.generate(TEXT, max_new_tokens=6).texts[0]

    def written(x):  # all tokens but the first, the decoder row times 4 times 6
        x = x.clone()
        x[:, 1 if x.shape[1] > 1 else 0 :] += 24 * own.W_dec[5]
        return x

    from monosem import edits

    steered = model.generate(TEXT, edits=edits.function("resid_post.1", written), max_new_tokens=6)
    assert found["STEERED"] == TEXT + steered.texts[0]
    assert found["STEERED"] != found["DEFAULT"]
    with torch.no_grad():
        ids = model.tokenizer(TEXT, return_tensors="pt")["input_ids"]
        log_p = model.hf(ids).logits[0, -1].log_softmax(-1)
    first = found["defaultLogProbs"][0]
    assert first["logprob"] == pytest.approx(float(log_p.max()), abs=1e-4)
    assert [one["logprob"] for one in first["top_logprobs"]] == pytest.approx(log_p.topk(5).values.tolist(), abs=1e-4)
    split = served.ask("/api/steer", ask | {"steer_method": "ORTHOGONAL_DECOMP"})
    assert split[0] == 200
    assert served.ask("/api/steer", ask | {"steer_method": "PROJECTION_CAP"})[0] == 400


def test_graphs_lists_and_pages(served):
    made = served.ask("/api/graph/generate", {"modelId": "tiny", "prompt": "the cat sat", "slug": "cats"})[1]
    about = served.ask("/api/graph/tiny/cats")[1]
    graph = served.ask(about["url"])[1]
    assert len(graph["nodes"]) == made["numNodes"]
    assert graph["metadata"]["slug"] == "cats"
    assert {"nodes", "links", "qParams", "metadata"} <= graph.keys()
    served.ask("/api/list/new-with-features", {"name": "from a notebook", "features": [PLACE]})
    assert served.ask("/api/notes")[1]["lists"]["from a notebook"] == [["sae", 5]]
    served.ask("/api/notes", {"drop": "from a notebook"})
    status, text = served.ask(f"/tiny/{SOURCE}/5")  # urllib follows
    assert status == 200
    assert '<div id="app">' in text


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("feature/tiny/1-resid_post/64", None, 404, "latent"),
        ("feature/tiny/1-resid_post/x", None, 400, "index"),
        ("feature/gpt2-small/6-res-jb/3", None, 404, "tiny/1-resid_post"),
        ("feature/tiny/1-resid_post__bare/3", None, 400, "monosem latents index"),
        ("graph/tiny/none", None, 404, "no graph"),
        ("activation/new", {"feature": PLACE}, 400, "customText"),
        ("activation/new", {"feature": PLACE | {"index": 64}, "customText": TEXT}, 404, "latent"),
        ("activation/new", {"feature": PLACE, "customText": "a" * 5000}, 400, "customText"),
        ("search-all", {"modelId": "tiny", "sourceSet": "none", "text": TEXT}, 404, "none"),
        ("explanation/search", {"query": "a"}, 400, "query"),
        ("steer", {"modelId": "tiny", "prompt": TEXT, "features": []}, 400, "features"),
        ("steer", b"{", 400, "JSON"),
    ],
)
def test_what_is_wrong_is_one_line(served, path, body, status, words):
    got, answer = served.ask(f"/api/{path}", body)
    assert got == status, answer
    assert words in answer["error"]
    assert "\n" not in answer["error"]


def test_a_wrong_key_opens_nothing(served):
    for path in ("/key/wrong/api/home", "/key//api/home", "/key/", "/key"):
        assert served.ask(path, headers={"Authorization": ""})[0] == 403
    own = f"/key/{served.token}"
    assert served.ask(f"{own}/api/home", headers={"Authorization": ""})[0] == 200
    assert served.ask(f"{own}/api/notes", {"put": ["k", []]}, {"Authorization": "", "Origin": "http://evil"})[0] == 403
    assert served.ask(f"{own}/static/../../guard.py", headers={"Authorization": ""})[0] == 404
    assert served.ask("/api/home", headers={"Authorization": "", "x-api-key": "wrong"})[0] == 403


def never_ran(events):
    *before, last = events
    return last == {"type": "cancelled"} and all(one["words"].startswith("waiting until") for one in before)


def test_what_a_client_that_left_asked_for_is_cancelled(served):
    """A notebook that was stopped: its job never runs, and the next one does."""
    arms = [{"doses": [{"latent": 5, "value": 1.0}]}] * 8
    long = {"kind": "steer", "dictionary": "sae", "text": TEXT, "arms": arms, "tokens": 50, "temperature": 1.0}
    first = [served.ask("/api/jobs", long | {"seed": seed})[1]["id"] for seed in range(3)]
    features = [{"modelId": "tiny", "layer": SOURCE, "index": 5, "strength": 1}]
    ask = {"modelId": "tiny", "prompt": TEXT, "features": features, "n_tokens": 50}
    body, (host, port) = json.dumps(ask).encode(), served.host.split(":")
    leaving = socket.create_connection((host, int(port)))
    head = f"POST /api/steer HTTP/1.1\r\nHost: {served.host}\r\nAuthorization: Bearer {served.token}\r\n"
    leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    end = time.monotonic() + 60
    while (newest := served.ask("/api/jobs")[1][0])["kind"] != "api":
        assert time.monotonic() < end
    leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    leaving.close()
    assert never_ran(served.events(newest["id"]))
    for one in first:
        served.ask(f"/api/jobs/{one}/cancel", {})
    assert served.ask("/api/activation/new", {"feature": PLACE, "customText": TEXT})[0] == 200
