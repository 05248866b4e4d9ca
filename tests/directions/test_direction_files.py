"""Files of other tools and what their layer numbers mean: against a file of repeng's and Hugging Face's own states."""

import base64
import json
import zlib

import gguf
import numpy as np
import pytest
import torch

from monosem import edits
from monosem.data import PromptPairs
from monosem.directions import Direction, Directions
from monosem.directions.formats import read_any, write_any
from monosem.directions.layers import TOOLS, number_of, site_of
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.models import Site
from tiny_latents import MODEL, NEGATIVE, POSITIVE

# written by repeng 0.4.0 (ControlVector.export_gguf), of layers 2 and 1, in this order
REPENG = zlib.decompress(
    base64.b64decode(
        "eNpzdw91Y2ZgYGBigABmKC0CpdNT81KLEnP0EouSMzJLUpNLSotSOYDivFD55Py8kqL8nDKgTH6RBDZBvdz8lNSc+IzMvBKQRlao"
        "mpycxNxESawachIrU4vik/NL80pYoE7jhipMySwCqsnMz9MzYgRyWRgwAaZSQ3SlCiga7BkYGvYBMZBmcMA0DywOY+9HlwUABIgy"
        "kA=="
    )
)
N = MODEL.cfg.n_layers


def direction(site="resid_post.1", d=32, seed=0, **provenance):
    vector = torch.randn(d, generator=torch.Generator().manual_seed(seed))
    return Direction(vector, Site.parse(site), "", {"model_type": "llama", **provenance})


# ---------------------------------------------------------------------- layer numbers
@pytest.fixture(scope="module")
def states():
    ids = MODEL.tokens("the cat sat").ids
    hidden = MODEL.hf(input_ids=ids, output_hidden_states=True).hidden_states
    inputs, outputs, handles = {}, {}, []

    def before(layer):
        return lambda _, args, kwargs: inputs.update({layer: args[0] if args else kwargs["hidden_states"]})

    def after(layer):
        return lambda _, args, out: outputs.update({layer: out[0] if isinstance(out, tuple) else out})

    for layer, block in enumerate(MODEL.hf.model.layers):
        handles.append(block.register_forward_pre_hook(before(layer), with_kwargs=True))
        handles.append(block.register_forward_hook(after(layer)))
    MODEL.hf(input_ids=ids)
    for handle in handles:
        handle.remove()
    return hidden, inputs, outputs


def value_at(site):
    return MODEL.run("the cat sat", capture=site)[site]


# tool -> how it itself finds the activation of a number, from hidden states, inputs and outputs of blocks
THEIRS = {
    "repeng": lambda number, hidden, inputs, outputs: outputs[number % N],
    "llama.cpp": lambda number, hidden, inputs, outputs: outputs[number],
    "steering-vectors": lambda number, hidden, inputs, outputs: outputs[number],
    "caa": lambda number, hidden, inputs, outputs: outputs[number],
    "ibm": lambda number, hidden, inputs, outputs: outputs[number],
    "aisteer360": lambda number, hidden, inputs, outputs: outputs[number],
    "arditi": lambda number, hidden, inputs, outputs: inputs[number],
    "cosmic": lambda number, hidden, inputs, outputs: inputs[number],
    "repe": lambda number, hidden, inputs, outputs: hidden[number],
    "transformers": lambda number, hidden, inputs, outputs: hidden[number],
    "heretic": lambda number, hidden, inputs, outputs: hidden[number],
    "vllm": lambda number, hidden, inputs, outputs: outputs[number - 1] if number else inputs[0],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_number_means_the_activation_that_the_tool_reads(tool, states):
    for number in TOOLS[tool].numbers(N):
        site = site_of(tool, number, N)
        torch.testing.assert_close(value_at(site), THEIRS[tool](number, *states), rtol=1e-5, atol=1e-5)
        again = number_of(tool, site, N)
        assert site_of(tool, again, N) == site
    for outside in (N + 1, -N - 1):
        with pytest.raises(BadInput, match="has layers"):
            site_of(tool, outside, N)


def test_the_same_stream_has_a_number_in_each_tool():
    stream = Site("resid_post", 1)  # = resid_pre.2
    numbers = {tool: number_of(tool, stream, N) for tool in TOOLS}
    assert numbers == {
        "repeng": -2,
        "llama.cpp": 1,
        "steering-vectors": 1,
        "caa": 1,
        "ibm": 1,
        "aisteer360": 1,
        "arditi": 2,
        "cosmic": 2,
        "repe": -2,
        "transformers": 2,
        "heretic": 2,
        "vllm": 2,
    }
    assert number_of("llama.cpp", Site("resid_pre", 2), N) == 1
    absent = {"llama.cpp": "resid_post.0", "arditi": "resid_post.2", "repeng": "mlp_out.1", "repe": "embed"}
    for tool, site in absent.items():
        with pytest.raises(BadInput, match="no layer number"):
            number_of(tool, Site.parse(site), N)
    with pytest.raises(UnknownName, match="repeng"):
        site_of("repeg", 1, N)


# ---------------------------------------------------------------------- GGUF
def test_repengs_file_is_read_and_written_byte_by_byte(tmp_path):
    (tmp_path / "theirs.gguf").write_bytes(REPENG)
    found = read_any(tmp_path / "theirs.gguf")
    assert [str(one.site) for one in found] == ["resid_post.1", "resid_post.2"]
    assert found[0].vector.tolist() == [1.0, 0.0, 0.0, -1.0]
    assert found[1].vector.tolist() == [0.5, -0.25, 1.0, 2.0]
    write_any(tmp_path / "ours.gguf", found[::-1])
    assert (tmp_path / "ours.gguf").read_bytes() == REPENG


def test_a_control_vector_steers_as_the_direction_does(tmp_path):
    pairs = PromptPairs(POSITIVE, NEGATIVE)
    found = Directions.fit(MODEL, pairs, layers=[1, 2])
    found.save(tmp_path / "vector.gguf")
    again = Directions.load(tmp_path / "vector.gguf", MODEL)
    for one, other in zip(found, again, strict=True):
        assert (other.site, other.model_name) == (one.site, MODEL.name)
        assert torch.equal(one.vector, other.vector)
    # llama.cpp adds direction.N to the output of block N
    steered = MODEL.run("the cat", edits=[edits.add(again[0], 1.0)], capture="resid_pre.2")["resid_pre.2"]
    clean = MODEL.run("the cat", capture="resid_pre.2")["resid_pre.2"]
    torch.testing.assert_close(steered - clean, again[0].vector.expand_as(clean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([direction("resid_post.0")], "block 0 has none"),
        ([direction("mlp_out.1")], "no layer number"),
        ([direction(), direction("resid_pre.2")], "two directions"),
        ([direction(), direction("resid_post.2", d=16)], "of one model"),
        ([direction(), direction("resid_post.2", model_type="gpt2")], "of one model"),
        ([direction(method="leace")], "only be added"),
        ([], "at least one"),
    ],
)
def test_what_a_control_vector_cannot_say_is_refused(given, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        write_any(tmp_path / "x.gguf", given)
    assert not (tmp_path / "x.gguf").exists()


def test_a_subspace_is_no_control_vector(tmp_path):
    found = Direction.fit(MODEL, POSITIVE, NEGATIVE, "resid_post.1", method="svd", k=2, paired=True)
    with pytest.raises(BadInput, match="subspace"):
        write_any(tmp_path / "x.gguf", [found])
    with pytest.raises(BadInput, match=r"\.safetensors or \.gguf"):
        write_any(tmp_path / "x.svec", [found])


def written(path, tensors, architecture="controlvector"):
    writer = gguf.GGUFWriter(path, architecture)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "no direction"),
        ({"direction.-1": np.ones(4, np.float32)}, "counts layers from the end"),
        ({"other.1": np.ones(4, np.float32)}, "is no direction"),
        ({"direction.1": np.ones((2, 4), np.float32)}, "is no direction"),
        ({"direction.1": np.ones(4, np.float32), "direction.2": np.ones(5, np.float32)}, "several widths"),
        ({"direction.1": np.zeros(4, np.float32)}, "is no direction"),
        ({"direction.1": np.full(4, np.nan, np.float32)}, "is no direction"),
    ],
)
def test_bad_control_vectors_are_refused(tensors, words, tmp_path):
    with pytest.raises(BadFile, match=words):
        read_any(written(tmp_path / "x.gguf", tensors))


def test_control_vectors_in_other_numbers_mean_the_same(tmp_path):
    tensors = {"direction.0": np.arange(4, dtype=np.float16), "direction.3": np.arange(4, dtype=np.float64)}
    found = read_any(written(tmp_path / "x.gguf", tensors))
    assert [str(one.site) for one in found] == ["resid_post.0", "resid_post.3"]
    assert found[0].vector.tolist() == [0, 1, 2, 3]
    with pytest.raises(BadFile, match="'llama'"):
        read_any(written(tmp_path / "y.gguf", {"direction.1": np.ones(4, np.float32)}, "llama"))
    (tmp_path / "cut.gguf").write_bytes(REPENG[:150])
    with pytest.raises(BadFile, match="truncated"):
        read_any(tmp_path / "cut.gguf")


# ---------------------------------------------------------------------- JSON and PyTorch
def svec(path, **changes):
    data = {"model_type": "llama", "directions": {"3": [1.0, 2.0], "1": [0.5, -1.0]}, "explained_variances": {"1": 0.7}}
    path.write_text(json.dumps(data | changes))
    return path


def test_svec_of_both_tools(tmp_path):
    found = read_any(svec(tmp_path / "a.svec"))
    assert [str(one.site) for one in found] == ["resid_post.1", "resid_post.3"]
    assert found[0].vector.tolist() == [0.5, -1.0]
    assert (found[0].provenance["tool"], found[0].provenance["explained_variance"]) == ("ibm", 0.7)
    (other,) = read_any(svec(tmp_path / "b.svec", directions={"2": [[1.0, 2.0]]}, explained_variances=None))
    assert (str(other.site), other.provenance["tool"]) == ("resid_post.2", "aisteer360")
    for changes, words in (
        ({"directions": {"2": [[1.0, 2.0], [3.0, 4.0]]}}, "2 vectors"),
        ({"num_heads": 4}, "4 heads"),
        ({"directions": {"x": [1.0]}}, "no layer number"),
        ({"directions": {"1": ["a"]}}, "is no direction"),
        ({"directions": {"1": None}}, "is no direction"),
        ({"directions": {}}, "no direction"),
        ({"directions": []}, "no table"),
    ):
        with pytest.raises(BadFile, match=words):
            read_any(svec(tmp_path / "c.svec", **changes))


def test_arditis_direction_is_at_the_input_of_its_block(tmp_path):
    vector = torch.randn(32)
    torch.save(vector.double(), tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -2, "layer": 1}))
    for path in (tmp_path, tmp_path / "direction.pt"):
        (found,) = read_any(path, MODEL)
        assert (str(found.site), found.position, found.model_name) == ("resid_pre.1", "-2", MODEL.name)
        torch.testing.assert_close(found.vector, vector)
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -2, "layer": N}))
    with pytest.raises(UnknownName, match=r"resid_pre\.3|layers"):
        read_any(tmp_path, MODEL)
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"layer": "one"}))
    with pytest.raises(BadFile, match="whole numbers"):
        read_any(tmp_path)
    torch.save({"direction": vector}, tmp_path / "direction.pt")
    with pytest.raises(BadFile):
        read_any(tmp_path)


def test_caas_vectors_are_at_the_output_of_their_layer(tmp_path):
    folder = tmp_path / "sycophancy"
    folder.mkdir()
    for layer in (2, 1):
        torch.save(torch.full((32,), float(layer)), folder / f"vec_layer_{layer}_Llama-2-7b-hf.pt")
    found = read_any(folder)
    assert [(str(one.site), float(one.vector[0])) for one in found] == [("resid_post.1", 1.0), ("resid_post.2", 2.0)]
    assert found[0].provenance["behaviour"] == "sycophancy"
    assert found[0].provenance["made_for"] == "Llama-2-7b-hf"
    (one,) = read_any(folder / "vec_layer_2_Llama-2-7b-hf.pt")
    assert str(one.site) == "resid_post.2"


def test_another_model_is_refused(tmp_path):
    with pytest.raises(Mismatch, match="16 entries"):
        read_any(write_any(tmp_path / "x.safetensors", [direction(d=16)]), MODEL)
    other = Direction(torch.ones(32), Site("resid_post", 1), "another")
    with pytest.raises(Mismatch, match="made for another"):
        read_any(write_any(tmp_path / "y.safetensors", [other]), MODEL)
    (tmp_path / "z.bin").write_bytes(b"?")
    with pytest.raises(BadFile, match="known here"):
        read_any(tmp_path / "z.bin")
    with pytest.raises(BadFile, match="no direction file"):
        read_any(tmp_path / "none.gguf")
