"""A study that steers with directions as well: by method and from files, beside a random one of the same length."""

import pytest
import torch
from test_study import CONFIG, go, model, sae  # noqa: F401

from monosem import edits, studies
from monosem.directions import Direction
from monosem.directions.direction import write_directions
from monosem.errors import BadInput
from monosem.models import Site


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(8))
    made = [Direction(one, Site("resid_post", layer), "tiny") for layer, one in enumerate(vectors)]
    path = tmp_path_factory.mktemp("directions") / "mine.safetensors"
    write_directions(path, made)
    return path, vectors[1]


@pytest.fixture(scope="module")
def done(model, sae, file, tmp_path_factory):  # noqa: F811
    return go(model, sae, tmp_path_factory.mktemp("study"), directions=["dim", "logistic", str(file[0])])


def test_each_direction_is_an_arm_at_the_length_of_the_others(model, file, done):  # noqa: F811
    arms = done.results["sections"]["steering"]["arms"]
    own = {arm["named"]: arm for arm in arms if arm["kind"] == "direction"}
    assert list(own) == ["", "dim", "logistic", str(file[0])]
    assert len({arm["value"] for arm in own.values()}) == 1
    assert [arm["kind"] for arm in arms].count("any direction") == 1
    for part in ("test", "control"):
        # the study's reader is the difference of means itself
        assert own["dim"][part]["kl"] == pytest.approx(own[""][part]["kl"], rel=1e-3)
        assert own["dim"]["test"]["concept_shift"] == pytest.approx(own[""]["test"]["concept_shift"], rel=1e-3)
        edit = edits.add(("resid_post.1", file[1] / file[1].norm()), own[""]["value"]).at(positions=slice(1, None))
        p, q = (model.run(CONFIG[part], edits=e, logits="last").logits.log_softmax(-1) for e in ([], [edit]))
        found = own[str(file[0])][part]["kl"]
        assert found == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    text = (done.folder / "report.md").read_text()
    assert "direction mine.safetensors" in text
    assert "a random direction" in text


def test_directions_that_cannot_be_used(model, sae, file, tmp_path):  # noqa: F811
    for names, words in (
        (["dmi"], "no method 'dmi'"),
        (["mean_centred"], "needs other text"),
        (["pca"], "say which"),
        (["dim", "dim"], "named twice"),
    ):
        with pytest.raises(BadInput, match=words):
            studies.StudyConfig.parse(CONFIG | {"directions": names})
    other = tmp_path / "other.safetensors"
    write_directions(other, [Direction(file[1], Site("resid_post", 0), "tiny")])
    with pytest.raises(BadInput, match="0 directions at resid_post.1"):
        go(model, sae, tmp_path / "out", directions=[str(other)])
