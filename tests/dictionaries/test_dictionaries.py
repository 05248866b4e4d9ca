"""The canonical form: codes, encoders, folds, and what a dictionary says about single latents."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem import edits
from monosem.dictionaries import (
    Codes,
    Dictionary,
    DictionaryParts,
    DictionaryTensors,
    batch_topk,
    dictionary,
    latent_ids,
    load_dictionary,
)
from monosem.dictionaries.folds import (
    fold_activation_scale,
    fold_decoder_bias,
    fold_decoder_norm,
    fold_scale,
    fold_whitening,
)
from monosem.errors import BadInput, Mismatch, UnknownName
from tiny import tiny_model

D, F, OUT = 6, 40, 5
KINDS = [("relu", {}), ("jumprelu", {}), ("batchtopk", {}), ("topk", {"k": 5}), ("abstopk", {"k": 5})]
NORMS = ["none", "layer_norm", "constant_norm_rescale"]


def made(seed=0, d_in=D, width=F, d_out=D, threshold=False, skip=False, dtype=torch.float32) -> DictionaryTensors:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(d_in, width), (width,), (width, d_out), (d_out,)]
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    theta = torch.rand(width, generator=draw, dtype=torch.float64) * 2 if threshold else None
    w_skip = torch.randn(d_out, d_in, generator=draw, dtype=torch.float64) if skip else None
    return DictionaryTensors(tensors[0], tensors[1] - 0.5, tensors[2], tensors[3], theta, w_skip).to(dtype)


def built(kind="relu", seed=0, **options) -> Dictionary:
    options = dict(KINDS)[kind] | {"site": "resid_post.1", "name": "test"} | options
    shape = {key: options.pop(key) for key in ("d_in", "width", "d_out", "skip") if key in options}
    return Dictionary(
        DictionaryParts(made(seed, threshold=kind in ("jumprelu", "batchtopk"), **shape), kind, **options)
    )


def inputs(*shape, seed=1) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.3


def plain_acts(d: Dictionary, pre: torch.Tensor) -> torch.Tensor:
    """The activation functions again, dense and the slow way, row by row."""
    out = torch.zeros_like(pre)
    for i, row in enumerate(pre):
        order = sorted(range(len(row)), key=lambda j: -abs(row[j]) if d.kind == "abstopk" else -row[j])
        for j in order[: d.k] if d.k else range(len(row)):
            keep = d.kind == "abstopk" or (row[j] > 0 and (d.threshold is None or row[j] > d.threshold[j]))
            out[i, j] = row[j] if keep else 0
    return out


# ---------------------------------------------------------------------- codes


def test_codes_dense_of_and_l0_ignore_padding():
    codes = Codes(torch.tensor([[2.0, 3.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([[4, 0, 0], [0, 0, 0]]), 6)
    assert codes.dense().tolist() == [[3, 0, 0, 0, 2, 0], [0] * 6]
    assert codes.of([0, 5, 4]).tolist() == [[3, 0, 2], [0, 0, 0]]
    assert codes.of(4).tolist() == [[2], [0]]
    assert codes.l0().tolist() == [2, 0]


def test_codes_of_many_latents_equals_of_few():
    codes = built("topk").encode(inputs(3, 4, D))
    assert torch.equal(codes.of(range(F)), torch.cat([codes.of([i]) for i in range(F)], -1))


@pytest.mark.parametrize("bad", [F, -1, [3, F + 5], 2.0, torch.tensor([True]), [0.5]])
def test_latents_that_do_not_exist(bad):
    with pytest.raises(UnknownName, match=f"0 (to|to) {F - 1}"):
        latent_ids(bad, F)
    d = built()
    for ask in (d.decoder_rows, d.encode(inputs(2, D)).of, lambda i: d.latent_activations(inputs(2, D), i)):
        with pytest.raises(UnknownName):
            ask(bad)


# ---------------------------------------------------------------------- encoding


@pytest.mark.parametrize(("kind", "options"), [*KINDS, ("topk", {"k": 30}), ("topk", {"k": F})])
@pytest.mark.parametrize("norm", NORMS)
def test_encoding_equals_the_slow_dense_definition(kind, options, norm):
    """Also with more places than there are positive pre-activations, and than there are latents."""
    d = built(kind, token_norm=norm, **options)
    x = inputs(11, D)
    codes = d.encode(x)
    expected = plain_acts(d, d.preactivations(x))
    assert torch.allclose(codes.dense(), expected, atol=1e-6)
    assert torch.equal(codes.l0(), (expected != 0).sum(-1))
    active = codes.values != 0
    assert (codes.indices[~active] == 0).all()  # the padding convention
    for row, mask in zip(codes.indices, active):
        assert len(set(row[mask].tolist())) == int(mask.sum())


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_some_latents_equal_those_of_all(kind, options, norm):
    d = built(kind, token_norm=norm)
    x = inputs(3, 7, D)
    latents = torch.tensor([5, 0, F - 1, 5])
    exact = kind in ("topk", "abstopk")  # matmuls of other shapes may round differently
    of = d.encode(x).of(latents)
    found = d.latent_activations(x, latents)
    assert torch.equal(found, of) if exact else torch.allclose(found, of, atol=1e-5)
    rowwise = d.latent_activations_rowwise(x, torch.tensor([5, 0, 9]))
    for row, latent in enumerate([5, 0, 9]):
        assert torch.allclose(rowwise[row], d.encode(x[row]).of(latent)[..., 0], atol=1e-5)
    with pytest.raises(BadInput, match="2 latents for 3 rows"):
        d.latent_activations_rowwise(x, [1, 2])


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_long_inputs_go_in_chunks_with_the_same_result(kind, options, monkeypatch):
    d = built(kind, token_norm="layer_norm")
    x = inputs(5, 8, D)
    whole = d.encode(x)
    y = d(x)
    monkeypatch.setattr(dictionary, "DENSE_ELEMENTS", 7 * F)  # 7 rows at a time
    parts = d.encode(x)
    assert parts.values.shape == whole.values.shape
    eps = torch.finfo(torch.float32).eps  # the codes are sums of D terms, the reconstruction of up to F
    assert torch.allclose(parts.dense(), whole.dense(), atol=D * eps * float(whole.values.abs().max()))
    assert torch.allclose(d(x), y, atol=F * eps * float(y.abs().max()))


def test_no_active_latent_and_no_rows():
    d = built("jumprelu")
    d.threshold.fill_(1e6)
    codes = d.encode(inputs(4, D))
    assert codes.values.shape == (4, 0)
    assert torch.equal(d.decode(codes), d.b_dec.expand(4, D))
    assert codes.of([1, 2]).tolist() == [[0, 0]] * 4
    for kind, _ in KINDS:
        d = built(kind)
        assert d(inputs(0, 3, D)).shape == (0, 3, D)
        assert torch.allclose(d(inputs(D)), d(inputs(1, D))[0])


def test_a_value_that_is_not_finite_is_never_hidden():
    for kind, _ in KINDS:
        x = inputs(3, D)
        x[1, 2] = float("nan")
        y = built(kind)(x)
        assert y[1].isnan().any(), kind
        assert built(kind).firings(built(kind).preactivations(x))[2].isnan().any(), kind
        assert y[[0, 2]].isfinite().all()


def test_batch_topk_takes_the_largest_of_the_whole_batch():
    pre = inputs(8, F) * torch.linspace(0.1, 3, 8)[:, None]
    values, indices = batch_topk(pre, 2.5)
    dense = Codes(values, indices, F).dense()
    kept = pre.flatten().sort(descending=True).values[:20]
    assert torch.equal(dense[dense != 0].sort(descending=True).values, kept)
    assert torch.equal(dense[dense != 0], pre[dense != 0])
    assert (batch_topk(-pre.abs(), 3)[0] == 0).all()


def test_a_batchtopk_dictionary_is_a_threshold():
    d = built("batchtopk")
    assert d.kind == "jumprelu"
    assert d.metadata["training_architecture"] == "batchtopk"


# ---------------------------------------------------------------------- decoding


@pytest.mark.parametrize("share", [1, 10**9])
def test_sparse_and_dense_decoding_agree_with_the_definition(share, monkeypatch):
    monkeypatch.setattr(dictionary, "SPARSE_SHARE", share)  # 1: always sparse; huge: always dense
    for kind, norm in [("topk", "none"), ("relu", "layer_norm"), ("abstopk", "constant_norm_rescale")]:
        d, x = built(kind, token_norm=norm), inputs(9, D)
        codes = d.encode(x)
        y = codes.dense() @ d.W_dec + d.b_dec
        if norm == "layer_norm":
            y = y * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
        if norm == "constant_norm_rescale":
            y = y * x.norm(dim=-1, keepdim=True) / math.sqrt(D)
        assert torch.allclose(d.decode(codes), y, atol=1e-5)


def test_a_dtype_may_be_a_name_and_has_to_be_one_of_weights(tmp_path):
    built("topk").save(tmp_path)
    assert load_dictionary(tmp_path, dtype="bfloat16").W_dec.dtype == torch.bfloat16
    with pytest.raises(UnknownName, match="no dtype 'int8'"):
        load_dictionary(tmp_path, dtype="int8")
    with pytest.raises(BadInput, match="weights cannot be held in torch.int8"):
        load_dictionary(tmp_path, dtype=torch.int8)
    with pytest.raises(BadInput, match="device 'nowhere' cannot be used here"):
        load_dictionary(tmp_path, device="nowhere")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_arithmetic_is_float32_and_reconstructions_have_the_dtype_of_x(dtype):
    d, x = built("topk"), inputs(4, D).to(dtype)
    assert d(x).dtype == dtype
    assert d.encode(x).values.dtype == torch.float32
    assert torch.equal(d.encode(x).values, d.encode(x.float()).values)
    assert torch.equal(d(x), d(x.float()).to(dtype))
    wide = Dictionary(DictionaryParts(made(dtype=torch.float64), "topk", k=5))
    assert wide.encode(x).values.dtype == torch.float64


def test_heads_are_flattened_and_put_back():
    d = built("topk", site="z.1")
    x = inputs(2, 4, 3, 2)
    assert d(x).shape == x.shape
    assert torch.equal(d(x).flatten(2), d(x.flatten(2)))
    assert torch.equal(d.decode(d.encode(x)), d(x).flatten(2))
    with pytest.raises(Mismatch, match=r"\(2, 4, 3, 2\)"):
        built("topk").encode(x)


def test_gradients_flow_through_codes_and_decoding():
    for kind, _ in KINDS:
        d = Dictionary(
            DictionaryParts(
                made(threshold=kind in ("jumprelu", "batchtopk"), dtype=torch.float64), kind, **dict(KINDS)[kind]
            )
        )
        x = inputs(3, D).double().requires_grad_()
        assert torch.autograd.gradcheck(d, x), kind


def test_codes_that_do_not_belong_are_refused():
    d = built("topk")
    with pytest.raises(Mismatch, match="30 latents cannot be decoded by one with 40"):
        d.decode(built("topk", width=30).encode(inputs(2, D)))
    with pytest.raises(BadInput, match="token statistics that layer_norm needs"):
        built("topk", token_norm="layer_norm").decode(d.encode(inputs(2, D)))
    with pytest.raises(Mismatch, match="the last axis must be 6"):
        d.encode(inputs(2, D + 1))
    with pytest.raises(Mismatch):
        d.encode(torch.tensor(1.0))


def test_token_scale_turns_a_decoder_row_into_raw_units():
    """Raising a latent's code by c must move the reconstruction by c * W_dec[i] * token_scale."""
    for norm in NORMS:
        d, x = built("relu", token_norm=norm), inputs(5, D)
        codes = d.encode(x)
        dense = codes.dense()
        dense[:, 7] += 2.5
        raised = Codes(dense, torch.arange(F).expand(5, F), F, codes.norm)
        scale = d.token_scale(x)
        expected = 2.5 * d.decoder_rows(7) * (1 if scale is None else scale)
        assert torch.allclose(d.decode(raised) - d.decode(codes), expected, atol=1e-5)


# ---------------------------------------------------------------------- construction and folds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "top"}, "unknown encoder 'top'; did you mean 'topk'"),
        ({"kind": "topk"}, "a topk dictionary needs k"),
        ({"kind": "jumprelu"}, "a jumprelu dictionary needs threshold"),
        ({"kind": "relu", "k": 3}, "a relu dictionary has no k"),
        ({"kind": "topk", "k": 0}, "k must be from 1 to the width"),
        ({"kind": "topk", "k": 10**12}, "k must be from 1 to the width"),
        ({"token_norm": "batch"}, "unknown token_norm 'batch'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(BadInput, match=message):
        Dictionary(DictionaryParts(made(), **options))


def test_impossible_weights():
    good = vars(made())
    for name, value, message in [
        ("b_enc", torch.zeros(F + 1), r"b_enc has shape \[41\], expected \[40\]"),
        ("W_dec", torch.zeros(D, F), r"W_dec has shape \[6, 40\], expected \[40, 40\]|b_dec has shape"),
        ("W_skip", torch.zeros(D, D + 1), r"W_skip has shape \[6, 7\], expected \[6, 6\]"),
        ("W_enc", torch.full((D, F), float("nan")), "W_enc has 240 values that are not finite"),
        ("W_enc", torch.zeros(D), "W_enc must be"),
    ]:
        with pytest.raises(BadInput, match=message):
            Dictionary(DictionaryParts(DictionaryTensors(**(good | {name: value}))))


seeds = st.integers(0, 10**6)


def forward(w: DictionaryTensors, x: torch.Tensor, k: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    pre = x @ w.W_enc + w.b_enc
    acts = pre.relu() * (1 if w.threshold is None else pre > w.threshold)
    if k is not None:
        acts = torch.zeros_like(acts).scatter(-1, acts.topk(k).indices, acts.topk(k).values)
    return acts, acts @ w.W_dec + w.b_dec + (0 if w.W_skip is None else x @ w.W_skip.T)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, scale_in=st.floats(0.01, 50), scale_out=st.floats(0.01, 50), subtract=st.booleans())
def test_bias_and_scale_folds_are_exact(seed, scale_in, scale_out, subtract):
    w = made(seed, threshold=True, dtype=torch.float64, skip=not subtract, d_out=D if subtract else OUT)
    x = inputs(5, D, seed=seed).double()
    if subtract:  # an SAE: reads x * s - b_dec, writes y / s
        scale_out = scale_in
        acts = forward(w, x * scale_in - w.b_dec)[0]
        y = (acts @ w.W_dec + w.b_dec) / scale_in
        folded = fold_scale(fold_decoder_bias(w), scale_in)
    else:  # a transcoder: its input and its output have their own scales
        acts, y = forward(w, x * scale_in)
        y = y / scale_out
        folded = fold_scale(w, scale_in, scale_out)
    found_acts, found_y = forward(folded, x)
    assert torch.allclose(found_acts, acts, rtol=1e-9, atol=1e-9)
    assert torch.allclose(found_y, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_a_bias_fold_of_float32_weights_rounds_as_once_or_twice(transposed, precision):
    w = made(3, d_in=1000, width=512, d_out=1000)
    if transposed:
        w = replace(w, W_enc=w.W_enc.T.contiguous().T)
    exact = w.b_enc.double() - w.b_dec.double() @ w.W_enc.double()
    one = 2.0**-24 * exact.abs().amax()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        folded = fold_decoder_bias(w)
    finally:
        torch.set_float32_matmul_precision(before)
    assert folded.b_enc.dtype == torch.float32
    assert (folded.b_enc.double() - exact).abs().amax() < 4 * one


@settings(max_examples=25, deadline=None)
@given(seed=seeds, threshold=st.booleans())
def test_norm_fold_keeps_the_function_and_makes_rows_unit(seed, threshold):
    w = made(seed, threshold=threshold, dtype=torch.float64)
    w.W_dec[3] = 0
    x = inputs(5, D, seed=seed).double()
    folded = fold_decoder_norm(w)
    assert torch.allclose(forward(folded, x)[1], forward(w, x)[1], atol=1e-9)
    norms = folded.W_dec.norm(dim=-1)
    assert norms[3] == 0
    assert torch.allclose(norms[torch.arange(F) != 3], torch.ones(F - 1, dtype=torch.float64))


def test_norm_fold_is_no_equivalence_for_plain_topk():
    w, x = made(2, dtype=torch.float64), inputs(20, D).double()
    assert not torch.allclose(forward(fold_decoder_norm(w), x, k=4)[1], forward(w, x, k=4)[1], atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, subtract=st.booleans())
def test_whitening_and_activation_scale_folds_are_exact(seed, subtract):
    w = made(seed, threshold=True, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.linalg.qr(torch.randn(D, D, generator=draw, dtype=torch.float64)).Q * torch.linspace(0.3, 4, D)
    mean, factor = torch.randn(D, generator=draw).double(), torch.rand(F, generator=draw).double() + 0.1
    inverse, x = torch.linalg.inv(matrix), inputs(5, D, seed=seed).double()
    acts = factor * forward(w, (x - mean) @ matrix - subtract * w.b_dec)[0]
    y = (acts / factor @ w.W_dec + w.b_dec) @ inverse + mean
    folded = fold_whitening(fold_decoder_bias(w) if subtract else w, mean, matrix, inverse)
    found_acts, found_y = forward(folded, x)
    assert torch.allclose(found_acts * factor, acts, atol=1e-8)
    assert torch.allclose(found_y, y, atol=1e-8)
    assert torch.allclose(forward(fold_activation_scale(folded, factor), x)[0], acts, atol=1e-8)


# ---------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


def test_check_names_what_does_not_fit(model):
    fits = {"d_in": 32, "d_out": 32, "model_name": "tiny"}
    built("topk", **fits).check(model)
    built("topk", **fits | {"model_name": ""}).check(model)
    built("topk", **fits | {"model_name": "someone/Tiny"}).check(model)
    built("topk", d_in=48, d_out=48, site="mlp_post.2").check(model)
    built("topk", d_in=48, d_out=32, site="mlp_post.2", site_out="mlp_out.2").check(model)
    for change, message in [
        ({"model_name": "gpt2"}, "made for 'gpt2', not 'tiny'.*model_name='tiny'"),
        ({"d_in": 16}, "has width 16 at resid_post.1, model 'tiny' has 32"),
        ({"d_out": 16, "site_out": "resid_post.2"}, "has width 16 at resid_post.2"),
        ({"site": "resid_post.3"}, "belongs at resid_post.3, which 'tiny' does not have"),
        ({"site": "k.1"}, "has width 32 at k.1, model 'tiny' has 16"),
    ]:
        with pytest.raises(Mismatch, match=message):
            built("topk", **fits | change).check(model)
    with pytest.raises(BadInput, match="site="):
        built("topk", **fits | {"site": None}).check(model)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("site", ["resid_post.1", "z.1"])
def test_clamping_to_the_value_it_has_changes_nothing_and_splice_is_the_reconstruction(model, norm, site):
    d = built("topk", d_in=32, d_out=32, token_norm=norm, site=site)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    clean = model.run(ids, capture=site)
    x = clean[site]
    latent = int(d.encode(x).indices[0, -1, 0])
    value = float(d.encode(x).of(latent)[0, -1, 0])
    same = model.run(ids, edits=edits.clamp(d, latent, value).at(positions="last"))
    assert torch.allclose(same.logits, clean.logits, atol=1e-4)
    dose = model.run(ids, capture=site, edits=edits.clamp(d, latent, value + 3).at(positions="last"))
    moved = (dose[site] - x)[0, -1].flatten()
    scale = d.token_scale(x)
    assert torch.allclose(moved, 3 * d.decoder_rows(latent)[0] * (1 if scale is None else scale[0, -1]), atol=1e-4)
    spliced = model.run(ids, capture=site, edits=edits.splice(d, everywhere=True))
    assert torch.equal(spliced[site], d(x))
