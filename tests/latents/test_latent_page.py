"""The data of one latent's page: what weights say by NumPy, the index by its evidence, and what is missing."""

import base64
import gzip
import html
import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from monosem.dictionaries import Dictionary
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.latents import IndexConfig, build_index, neighbours, page, weight_statistics
from monosem.latents.drawing import export_page
from tiny import model_of
from tiny_dictionaries import tiny_dictionary
from tiny_latents import MODEL, STORE, TOPK, WIDTH

CONFIG = IndexConfig(examples=5, left=4, right=2)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build_index(MODEL, TOPK, STORE, tmp_path_factory.mktemp("page") / "index.sqlite", CONFIG, quiet=True)


def weights() -> tuple[np.ndarray, np.ndarray]:
    return TOPK.W_enc.numpy().T.astype(float), TOPK.W_dec.numpy().astype(float)


def cosines(rows: np.ndarray, other: np.ndarray) -> np.ndarray:
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, other)]
    return unit[0] @ unit[1].T


def test_geometry_is_numpy_s():
    encoder, decoder = weights()
    table = weight_statistics(TOPK).table
    np.testing.assert_allclose(table["encoder_norm"], np.linalg.norm(encoder, axis=1), rtol=1e-5)
    np.testing.assert_allclose(table["decoder_norm"], np.linalg.norm(decoder, axis=1), rtol=1e-5)
    np.testing.assert_allclose(table["cosine"], np.diag(cosines(encoder, decoder)), atol=1e-6)
    np.testing.assert_allclose(table["bias"], TOPK.b_enc.numpy(), rtol=1e-6)
    np.testing.assert_allclose(table["decoder_bias"], decoder @ TOPK.b_dec.numpy(), rtol=1e-4, atol=1e-5)
    assert table["threshold"].isna().all()
    assert weight_statistics(TOPK, [3]).table.iloc[0].to_dict() == pytest.approx(table.iloc[3].to_dict(), nan_ok=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "cohere"])
def test_logit_statistics_are_of_what_the_head_says(family):
    """The row as the last state itself, up and down: the head's own modules, in which biases cancel out."""
    model = model_of(family)
    sae = tiny_dictionary(model_name=family, site="resid_post.2")
    table = weight_statistics(sae, model=model).table
    for latent in (0, 5):
        row = sae.W_dec[latent]
        up, down = (model.unembed(sign * 100 * row[None, None])[0, 0].double() for sign in (1, -1))
        said = ((up - down) / 2).detach().numpy()
        z = (said - said.mean()) / said.std()
        scale = float((row - row.mean() if model.final_norm.centres else row).square().mean().sqrt())
        expected = [said.std() * scale, (z**3).mean(), (z**4).mean()]
        assert table.loc[latent, ["logit_sd", "logit_skew", "logit_kurtosis"]].tolist() == pytest.approx(
            expected, rel=1e-3
        )


def test_neighbours_are_the_nearest_rows():
    encoder, decoder = weights()
    for side, rows in (("decoder", decoder), ("encoder", encoder)):
        like = cosines(rows, rows)
        np.fill_diagonal(like, -2)
        for latent in (0, 7):
            found = neighbours(TOPK, latent, n=6, side=side)
            assert [other for other, _ in found] == np.argsort(-like[latent])[:6].tolist()
            assert [cosine for _, cosine in found] == pytest.approx(np.sort(like[latent])[::-1][:6].tolist(), abs=1e-5)
    assert neighbours(TOPK, 0, n=1, other=TOPK)[0][0] == 0
    assert len(neighbours(TOPK, 0, n=1000)) == WIDTH - 1
    with pytest.raises(UnknownName, match="side"):
        neighbours(TOPK, 0, side="middle")


def test_what_is_kept_of_weights_follows_their_changes():
    sae = deepcopy(TOPK)  # parts are not copies
    first, (near, cosine) = sae.fingerprint, neighbours(sae, 0, n=1)[0]
    assert first == TOPK.fingerprint
    with torch.no_grad():
        sae.W_dec[near] *= -3
    assert dict(neighbours(sae, 0, n=WIDTH))[near] == pytest.approx(-cosine, abs=1e-5)
    assert sae.fingerprint == Dictionary(sae.parts).fingerprint != first
    sae.load_state_dict(TOPK.state_dict())
    assert sae.fingerprint == first
    sae.double()
    assert dict(neighbours(sae, 0, n=WIDTH))[near] == pytest.approx(cosine, abs=1e-5)
    with torch.inference_mode():
        inside = Dictionary(replace(TOPK.parts, tensors=replace(TOPK.tensors, b_enc=TOPK.b_enc.clone())))
        before = inside.fingerprint
        inside.b_enc += 1
        assert inside.fingerprint != before


def test_a_page_holds_what_the_index_and_the_weights_say(index):
    latent = int(index.top(1, by="count")["latent"].iloc[0])
    found = page(index, latent, model=MODEL)
    data, evidence = json.loads(json.dumps(found.to_json(), allow_nan=False)), index.evidence(latent)
    assert data["statistics"]["count"] == evidence.count
    assert sum(one["count"] for one in data["histogram"]) == evidence.count
    assert [one["tokens"] for one in data["examples"]] == [one.tokens for one in evidence.examples]
    assert data["examples"][0]["activations"][data["examples"][0]["anchor"]] == pytest.approx(
        evidence.maximum, rel=1e-3
    )
    for one in data["examples"]:
        assert [MODEL.str_token(i) for i in one["ids"]] == one["tokens"]
    assert [one["share"] for one in data["intervals"]] == [band.share for band in evidence.bands]
    promoted = [(one["token"], one["effect"]) for one in data["logits"]["promoted"]]
    assert [token for token, _ in promoted] == [token for token, _ in evidence.promoted[:10]]
    assert [value for _, value in promoted] == pytest.approx([v for _, v in evidence.promoted[:10]], abs=1e-3)
    assert sum(data["logits"]["histogram"]["counts"]) == MODEL.cfg.d_vocab
    row = TOPK.W_dec[latent].numpy()
    best = np.argsort(-row)[:3]
    assert [one["neuron"] for one in data["neurons"]["rows"]] == best.tolist()
    assert [one["share"] for one in data["neurons"]["rows"]] == pytest.approx(
        (np.abs(row[best]) / np.abs(row).sum()).tolist()
    )
    assert data["provenance"]["weights"] == TOPK.fingerprint
    assert set(data["missing"]) == {"heads", "explanation", "correlated_neurons"}


def test_moments_over_all_tokens_count_silence(index):
    latent = int(index.top(1, by="count")["latent"].iloc[0])
    tokens, row = index.meta["tokens"], index.table.iloc[latent]
    whole = page(index, latent).parts["statistics"]["all"]
    assert whole["mean"] == pytest.approx(row["mean"] * row["count"] / tokens)
    assert whole["sd"] ** 2 == pytest.approx(
        (row["sd"] ** 2 + row["mean"] ** 2) * row["count"] / tokens - whole["mean"] ** 2
    )
    assert whole["kurtosis"] > row["kurtosis"]


def test_without_an_index_the_weights_speak():
    found = page(None, 3, dictionary=TOPK, model=MODEL)
    assert {"geometry", "neighbours", "neurons", "logits"} <= set(found.parts)
    assert "monosem latents index" in found.missing["examples"]
    assert "no corpus" in found.summary
    without = page(None, 3, dictionary=TOPK)
    assert "logits" in without.missing


def test_what_cannot_be_has_an_error(index):
    with pytest.raises(UnknownName, match=f"0 to {WIDTH - 1}"):
        page(index, WIDTH)
    with pytest.raises(BadInput, match="index or a dictionary"):
        page(None, 0)
    with pytest.raises(Mismatch):
        page(index, 0, model=model_of("gpt2"))


def test_shares_of_heads_add_up():
    model = model_of("llama")
    sae = tiny_dictionary("topk", site="z.1", model_name="llama")
    found = page(None, 2, dictionary=sae, model=model).parts["heads"]
    norms = [float(part.norm()) for part in sae.W_dec[2].split(model.cfg.d_head)]
    assert [one["share"] for one in found] == pytest.approx([norm / sum(norms) for norm in norms])


def test_a_notebook_and_a_file_have_the_page_of_the_explorer(index, tmp_path):
    found = page(index, 3)
    shown = found._repr_html_()
    assert shown.count("<iframe") == 1
    assert 'sandbox="allow-scripts"' in shown  # no access to the notebook around it
    assert len(shown.encode()) <= 100_000
    inside = html.unescape(shown.partition('srcdoc="')[2].rpartition('"')[0])
    packed = inside.partition('type="text/plain">')[2].partition("<")[0]
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == [found.to_json()]
    assert found.save(tmp_path / "page.html").read_text() == inside
    assert json.loads(found.save(tmp_path / "page.json").read_text()) == found.to_json()
    assert found.save(tmp_path / "page.csv").read_text().count("\n") == 1 + len(found.parts["examples"])
    hostile = replace(found, dictionary='"></iframe><script>alert(1)</script>')
    assert "<script>alert" not in hostile._repr_html_()
    with pytest.raises(BadInput):
        found.save(tmp_path / "page.docx")


def test_evidence_is_drawn_by_the_same_renderer(index, tmp_path):
    evidence, whole = index.evidence(3), page(index, 3).to_json()
    file = evidence.save(tmp_path / "evidence.html").read_text()
    assert f'srcdoc="{html.escape(file)}"' in evidence._repr_html_()
    packed = file.partition('type="text/plain">')[2].partition("<")[0]
    (held,) = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert file.partition('type="text/plain">')[0] == export_page([whole]).partition('type="text/plain">')[0]
    same = ("latent", "dictionary", "summary", "histogram", "tokens", "examples", "intervals")
    assert {name: held[name] for name in same} == {name: whole[name] for name in same}
    assert held["logits"]["promoted"] == whole["logits"]["promoted"]
    for name in ("count", "tokens", "density", "maximum", "quantiles"):
        assert held["statistics"][name] == whole["statistics"][name]
