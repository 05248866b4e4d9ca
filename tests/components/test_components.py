"""Direct attribution, circuits, composition, detectors: against slow explicit computations on every family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem import components, edits
from monosem.components import FactoredMatrix, HeadResults, composition_scores, direct_attribution, head_scores
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, TokenBatch
from tiny import FAMILIES, is_parallel
from tiny_dictionaries import tiny_dictionary

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5))
RIGHT, WRONG = [7, 8], [9, 10]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_model) -> Model:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def llama(tiny_model) -> Model:
    return tiny_model("llama")


def has(model: Model, site: str, layer: int = 1) -> bool:
    try:
        model.site((site, layer))
    except UnknownName:
        return False
    return True


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def unembedded(model: Model, ids=IDS) -> torch.Tensor:
    """Native logits, and where there is a cap what the unembedding itself gives, by a plain hook."""
    seen = {}
    handle = model.hf.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.update(out=out))
    logits = model.hf(ids, use_cache=False).logits
    handle.remove()
    if getattr(model.hf.config, "final_logit_softcapping", None):
        return seen["out"]
    return logits


def centres(norm, x: torch.Tensor) -> bool:
    """A LayerNorm does not see a constant added to its input."""
    return torch.allclose(norm(x + 5.0), norm(x), atol=1e-3)


def through(module, raw: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """A part of a norm's input as a part of its output, scale frozen: the native output and input give the factor.

    A row turned by any number of places has the same scale. Over all turns every place sees all of the row's values, so
    none divides by a value near zero, where a quotient of float32 values says little.
    """
    if module is None:
        return part
    zero = module(torch.zeros_like(raw))  # its bias alone
    if centres(module, raw):
        raw, part = raw - raw.mean(-1, keepdim=True), part - part.mean(-1, keepdim=True)
    turns = torch.stack([raw.roll(places, -1) for places in range(raw.shape[-1])])
    return part * ((module(turns) - zero) * turns).sum(0) / turns.square().sum(0)


def slow_writes(model: Model, layer: int, captured) -> tuple[torch.Tensor, torch.Tensor]:
    """What heads and neurons add to the stream, all of it at once: `batch pos head|neuron d_model`."""
    block = model.blocks[layer]
    found = []
    for site, name, part in (("z", "attn", "out"), ("mlp_post", "mlp", "down")):
        if site == "mlp_post" and not has(model, site, layer):
            found.append(None)
            continue
        branch = model.branch(name, layer)
        path = branch.slot.mixer.at(part)
        x = captured[site, layer]
        linear = block.get_submodule(path)
        alone = torch.zeros(*x.shape[:3], x.shape[2] if site == "mlp_post" else x.shape[2] * x.shape[3])
        n = x.shape[2]
        width = alone.shape[-1] // n
        for i in range(n):
            alone[:, :, i, i * width : (i + 1) * width] = x[:, :, i].reshape(*x.shape[:2], width)
        parts = linear(alone) - linear(torch.zeros_like(alone))
        raw = linear(x.flatten(2))
        found.append(through(branch.norm_out, raw[:, :, None].expand_as(parts), parts) * branch.scale)
    return found[0], found[1]


# ---------------------------------------------------------------------- direct attribution
@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
def test_contributions_add_up_to_the_logit_before_the_cap(model, by):
    if by == "neuron" and not has(model, "mlp_post"):
        with pytest.raises(BadInput, match="by='head'"):
            direct_attribution(model, IDS, 7, by=by)
        return
    expected = unembedded(model)
    rows = torch.arange(2)[:, None]
    found = direct_attribution(model, IDS, RIGHT, WRONG, by=by, positions=slice(None))
    difference = expected[rows, torch.arange(9), torch.tensor(RIGHT)[:, None]]
    difference = difference - expected[rows, torch.arange(9), torch.tensor(WRONG)[:, None]]
    close(found.total, difference)
    close(found.values.sum(-1), difference)
    assert found.error < 1e-4
    one = direct_attribution(model, IDS, 7, by=by)
    close(one.values.sum(-1), expected[:, -1:, 7])
    assert len({str(part) for part in one.parts}) == len(one.parts) == one.values.shape[-1]


def test_parts_are_what_the_native_modules_write_through_the_frozen_norm(model):
    sites = [
        (name, layer) for layer in range(3) for name in ("z", "mlp_post", "attn_out", "mlp_out") if has(model, name)
    ]
    run = model.run(IDS, capture=[*sites, "resid_post.2", "embed"])
    final = model.part(model.family.final_norm)
    resid = run["resid_post.2"]
    u = model.hf.get_output_embeddings().weight[7] - model.hf.get_output_embeddings().weight[9]
    scale = float(model.logit_transform(torch.tensor(1e-3, dtype=torch.float64)) / 1e-3)

    by_layer = direct_attribution(model, IDS, 7, 9, by="layer", positions=slice(None))
    columns = {str(part): by_layer.values[..., i] for i, part in enumerate(by_layer.parts)}
    close(columns["embed"], through(final, resid, run["embed"]) @ u * scale)
    for layer in range(3):
        close(columns[f"L{layer} attn"], through(final, resid, run["attn_out", layer]) @ u * scale)
        close(columns[f"L{layer} mlp"], through(final, resid, run["mlp_out", layer]) @ u * scale)

    by = "neuron" if has(model, "mlp_post") else "head"
    found = direct_attribution(model, IDS, 7, 9, by=by, positions=slice(None))
    for layer in range(3):
        heads, neurons = slow_writes(model, layer, run)
        for kind, writes in (("head", heads), ("neuron", neurons)):
            if writes is None:
                continue
            at = [i for i, part in enumerate(found.parts) if part.kind == kind and part.layer == layer]
            expected = through(final, resid[:, :, None].expand_as(writes), writes) @ u * scale
            close(found.values[..., at], expected)


def test_a_direction_in_the_stream_is_attributed_without_a_norm(model):
    v = torch.randn(32, generator=torch.Generator().manual_seed(1))
    unit = v / v.norm()
    sites = ["resid_pre.2", "resid_post.1"] + (["resid_mid.1"] if not is_parallel(model) else [])
    for site in sites:
        found = direct_attribution(model, IDS, direction=(site, v), positions=slice(None), by="head")
        expected = model.run(IDS, capture=site)[site] @ unit
        close(found.total, expected)
        close(found.values.sum(-1), expected)
        layers = {(part.layer, part.kind) for part in found.parts}
        assert (2, "head") not in layers
        assert (1, "head") in layers
        assert ((1, "mlp") in layers) is not site.startswith("resid_mid")
    run = model.run(IDS, capture=["z.1"])
    if has(model, "mlp_post"):
        run = model.run(IDS, capture=["z.1", "mlp_post.1"])
    heads, _ = slow_writes(model, 1, run)
    at = [i for i, part in enumerate(found.parts) if part.kind == "head" and part.layer == 1]
    close(found.values[..., at], heads @ unit)
    read = direct_attribution(model, IDS, direction=("final_norm", v))
    close(read.values.sum(-1), model.run(IDS, capture="final_norm")["final_norm"][:, -1:] @ unit)


def test_the_soft_caps_slope(tiny_model):
    model = tiny_model("gemma2")
    cap = model.hf.config.final_logit_softcapping
    z = unembedded(model)[:, -1:]
    slope = 1 - torch.tanh(z / cap) ** 2
    a, b = (direct_attribution(model, IDS, token).values for token in (7, 9))
    capped = direct_attribution(model, IDS, 7, 9, capped=True)
    close(capped.values, a * slope[..., 7, None] - b * slope[..., 9, None])
    close(capped.total, (cap * torch.tanh(z / cap))[..., 7] - (cap * torch.tanh(z / cap))[..., 9])
    assert (slope[..., 7] < 0.95).any()
    with pytest.raises(BadInput, match="do not add up"):
        _ = capped.error
    plain = tiny_model("llama")
    close(direct_attribution(plain, IDS, 7, capped=True).values, direct_attribution(plain, IDS, 7).values)


def test_rows_of_different_length_and_the_table(llama):
    batch = TokenBatch.of([[5, 6, 7, 8, 9], [11, 12, 13]], 2, "right")
    found = direct_attribution(llama, batch, [7, 8], [9, 9])
    for row, ids in enumerate(batch.rows()):
        alone = direct_attribution(llama, [ids], [[7, 8][row]], 9)
        close(found.values[row], alone.values[0])
    table = found.table
    assert table.contribution.sum() == pytest.approx(float(found.total.mean()), rel=1e-4)
    assert table[table.kind == "head"].shape[0] == 12
    assert table.contribution_se.notna().all()
    assert found.heads().shape == (3, 4)
    assert float(found.heads()[1, 2]) == pytest.approx(float(table[table.part == "L1H2"].contribution.iloc[0]))
    assert found.top(3).contribution.abs().is_monotonic_decreasing
    figure = found.plot()
    assert figure.data[0].z[1][2] == pytest.approx(float(found.heads()[1, 2]))
    words = direct_attribution(llama, ["the cat sat", "a dog ran"], " cat", " dog", by="layer")
    assert words.target == "logit of ' cat' - ' dog'"
    with pytest.raises(BadInput, match="by='head'"):
        words.heads()


def test_bad_targets(llama):
    with pytest.raises(BadInput, match="say what to attribute"):
        direct_attribution(llama, IDS)
    with pytest.raises(BadInput, match="2 tokens"):
        direct_attribution(llama, IDS, "the cat")
    with pytest.raises(BadInput, match="3 tokens for 2 rows"):
        direct_attribution(llama, IDS, [1, 2, 3])
    with pytest.raises(BadInput, match="not at q"):
        direct_attribution(llama, IDS, direction=("q.1", torch.ones(32)))
    with pytest.raises(BadInput, match="by is"):
        direct_attribution(llama, IDS, 7, by="token")


# ---------------------------------------------------------------------- head results
def test_head_results(model):
    run = model.run(IDS, capture=[(s, layer) for layer in range(3) for s in ("z", "mlp_post") if has(model, s, layer)])
    results = HeadResults.of(model, IDS)
    u = torch.randn(32, generator=torch.Generator().manual_seed(2))
    for layer in range(3):
        expected, _ = slow_writes(model, layer, run)
        close(results[layer], expected)
        close(results[layer, 2], expected[:, :, 2])
        close(results[layer, [3, 0]], expected[:, :, [3, 0]])
        close(results.along(u)[layer], expected @ u)
        close(results.norms()[layer], expected.norm(dim=-1))
    last = HeadResults.of(model, IDS, positions="last")
    close(last[1], results[1][:, -1:])


# ---------------------------------------------------------------------- factored matrices
@st.composite
def factored(draw, square: bool = False):
    m, r = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    n = m if square else draw(st.integers(1, 6))
    batch = draw(st.sampled_from([(), (2,), (2, 3)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    A = torch.randn(*batch, m, r, generator=generator, dtype=torch.float64)
    return FactoredMatrix(A, torch.randn(*batch, r, n, generator=generator, dtype=torch.float64))


@given(factored())
@settings(max_examples=60, deadline=None)
def test_decompositions(M):
    U, S, Vh = M.svd()
    torch.testing.assert_close(U @ torch.diag_embed(S) @ Vh, M.AB)
    expected = torch.linalg.svdvals(M.AB)
    k = min(S.shape[-1], expected.shape[-1])
    torch.testing.assert_close(S[..., :k], expected[..., :k], atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(M.S[..., :k], S[..., :k], atol=1e-9, rtol=1e-7)
    assert bool((S.diff(dim=-1) <= 1e-9).all())
    torch.testing.assert_close(M.norm(), torch.linalg.matrix_norm(M.AB))
    torch.testing.assert_close(M.T.AB, M.AB.mT)
    if M.rank <= min(M.shape[-2:]):
        torch.testing.assert_close(U.mT @ U, torch.eye(S.shape[-1], dtype=U.dtype).expand(*S.shape, -1))


@given(factored(square=True))
@settings(max_examples=60, deadline=None)
def test_eigenvalues_are_those_of_the_product(M):
    """Power sums name a set of numbers: Σ λ^k over the eigenvalues of A B, zeros do not count."""
    for k in (1, 2, 3):
        expected = torch.linalg.matrix_power(M.AB, k).diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close((M.eigenvalues**k).sum(-1).real, expected, atol=1e-8, rtol=1e-6)


@given(factored(), st.data())
@settings(max_examples=60, deadline=None)
def test_products_and_indices(M, data):
    m, n = M.shape[-2:]
    X = torch.randn(n, 3, dtype=torch.float64)
    Y = torch.randn(2, m, dtype=torch.float64)
    torch.testing.assert_close((M @ X).AB, M.AB @ X)
    torch.testing.assert_close((Y @ M).AB, Y @ M.AB)
    torch.testing.assert_close(M @ X[:, 0], M.AB @ X[:, 0])
    torch.testing.assert_close(Y[0] @ M, Y[0] @ M.AB)
    torch.testing.assert_close((2.5 * M).AB, 2.5 * M.AB)
    inner = FactoredMatrix(torch.randn(n, 2, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64))
    both = M @ inner
    torch.testing.assert_close(both.AB, M.AB @ inner.AB)
    assert both.rank == min(M.rank, 2)
    i, j = data.draw(st.integers(0, m - 1)), data.draw(st.integers(0, n - 1))
    lead = (0,) * (M.ndim - 2)
    for index in (
        (*lead, i, j),
        (*lead, i),
        (..., j),
        (..., i, slice(None)),
        (*lead, slice(0, i + 1)),
        (*lead, [i], [j]),
        lead,
    ):
        if index == () or (index[-2:] == ([i], [j]) and not lead):
            continue
        expected = M.AB[index] if index[-2:] != ([i], [j]) else M.AB[(*lead, slice(i, i + 1), slice(j, j + 1))]
        got = M[index]
        torch.testing.assert_close(got.AB if isinstance(got, FactoredMatrix) else got, expected)


def test_factored_matrices_refuse_what_does_not_fit():
    with pytest.raises(BadInput, match="share r"):
        FactoredMatrix(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(BadInput, match="square"):
        _ = FactoredMatrix(torch.ones(3, 2), torch.ones(2, 4)).eigenvalues
    with pytest.raises(BadInput, match="3 indices"):
        _ = FactoredMatrix(torch.ones(3, 2), torch.ones(2, 4))[0, 0, 0]


# ---------------------------------------------------------------------- circuits
def test_folded_qk_gives_the_scores(tiny_model):
    """Without rotation and biases the scores are a bilinear form of the stream."""
    model = tiny_model("gpt2")
    block = model.blocks[1]
    for bias in (block.attn.c_attn.bias, block.ln_1.bias):
        bias.zero_()
    run = model.run(IDS, capture=["resid_pre.1", "scores.1", "pattern.1", "z.1"])
    x = run["resid_pre.1"]
    size = (x.var(-1, unbiased=False, keepdim=True) + block.ln_1.eps).sqrt()
    for head in range(4):
        circuit = components.QK(model, 1, head, folded=True)
        scores = (x / size) @ circuit.AB @ (x / size).mT / 8**0.5
        lower = torch.ones(9, 9).tril().bool()
        close(scores[:, lower], run["scores.1"][:, head, lower])
        bare = components.QK(model, 1, head)
        normed = block.ln_1(x)
        close((normed @ bare.AB @ normed.mT / 8**0.5)[:, lower], run["scores.1"][:, head, lower])


def test_folded_ov_gives_what_a_head_writes(model, tiny_model):
    if not has(model, "pattern") or model.branch("attn", 1).slot.mixer.clip:
        return  # no pattern to weigh with; values that are clipped on the way are not linear
    model = tiny_model(model.name)  # biases are taken out of it
    ln1, attention = model.branch("attn", 1).norm_in, model.branch("attn", 1).module
    for name, parameter in attention.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    if ln1 is not None and getattr(ln1, "bias", None) is not None:
        ln1.bias.zero_()
    run = model.run(IDS, capture=["resid_pre.1", "pattern.1", "z.1"])
    x, results = run["resid_pre.1"], HeadResults.of(model, IDS)
    normed = x if ln1 is None else ln1(x)
    for head in (0, 3):
        bare = components.OV(model, 1, head)
        close(run["pattern.1"][:, head] @ (normed @ bare.AB), run["z.1"][:, :, head] @ model.W_O[1, head])
        scale = 1.0
        if ln1 is not None:
            centred = x - x.mean(-1, keepdim=True) if centres(ln1, x) else x
            scale = centred.square().mean(-1, keepdim=True).sqrt()
        written = run["pattern.1"][:, head] @ ((x / scale) @ components.OV(model, 1, head, folded=True).AB)
        expected = results[1, head]
        # a post-norm's scale is not part of the weights: directions agree, sizes by one number a token
        ratio = (written * expected).sum(-1, keepdim=True) / written.square().sum(-1, keepdim=True)
        close(written * ratio, expected, 1e-3)
        if model.branch("attn", 1).norm_out is None:
            close(ratio, torch.ones_like(ratio), 1e-3)
    assert components.OV(model).shape == (3, 4, 32, 32)
    close(components.QK(model, folded=True).AB[1, 2], components.QK(model, 1, 2, folded=True).AB)


def test_copying_scores_are_those_of_the_full_circuit(model):
    found = components.copying_scores(model)
    for layer, head in ((0, 1), (2, 3)):
        full = components.full_OV(model, layer, head)
        assert full.shape == (100, 100)
        values = torch.linalg.eigvals(full.AB.double())
        assert float(found[layer, head]) == pytest.approx(float(values.sum().real / values.abs().sum()), abs=1e-3)
    assert components.full_QK(model, 1, 0).shape == (100, 100)


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_is_the_explicit_ratio_of_norms(model, kind):
    found = composition_scores(model, kind)
    OV, QK = components.OV(model, folded=True).AB, components.QK(model, folded=True).AB
    for a, h, b, g in ((0, 1, 2, 3), (1, 0, 2, 0), (0, 2, 1, 1)):
        reader = {"Q": QK, "K": QK.mT, "V": OV}[kind][b, g]
        expected = (OV[a, h] @ reader).norm() / (OV[a, h].norm() * reader.norm())
        assert float(found.scores[a, h, b, g]) == pytest.approx(float(expected), rel=1e-4)
    assert found.scores[1, :, 1].isnan().all()
    assert found.scores[2, :, 0].isnan().all()
    table = found.table
    assert len(table) == 3 * 16
    assert table.score.is_monotonic_decreasing


def test_the_baseline_is_what_random_rotations_give(llama):
    generator = torch.Generator().manual_seed(0)
    A, B = components.OV(llama, 0, 1).AB, components.QK(llama, 2, 0).AB
    squares = []
    for _ in range(300):
        rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
        squares.append(((A @ rotation @ B).norm() / (A.norm() * B.norm())) ** 2)
    baseline = composition_scores(llama).baseline
    assert float(torch.stack(squares).mean().sqrt()) == pytest.approx(baseline, rel=0.03)
    assert composition_scores(llama).plot().data[0].z.shape == (12, 12)
    with pytest.raises(BadInput, match="kind"):
        composition_scores(llama, "X")


# ---------------------------------------------------------------------- detectors
def test_standard_scores_are_means_of_the_pattern(model):
    n, rows = 5, 2
    if not has(model, "pattern"):
        with pytest.raises(UnknownName, match="attention registry"):
            head_scores(model, n=n)
        return
    captured = {}
    handle = model.hf.register_forward_pre_hook(lambda m, a, kw: captured.update(kw), with_kwargs=True)
    found = head_scores(model, n=n, rows=rows, seed=3)
    handle.remove()
    ids = captured["input_ids"]
    assert ids.shape == (rows, 2 * n + 1)
    assert torch.equal(ids[:, 1 : n + 1], ids[:, n + 1 :])
    assert (ids[:, 0] == model.bos).all()
    assert not set(ids[:, 1:].flatten().tolist()) & model.special_ids
    run = model.run(ids, capture=[("pattern", layer) for layer in range(3)])
    for layer, head in ((0, 0), (2, 3)):
        A = run["pattern", layer][:, head]
        second = range(n + 1, 2 * n + 1)
        expected = {
            "previous": torch.stack([A[:, t, t - 1] for t in range(1, 2 * n + 1)]).mean(),
            "duplicate": torch.stack([A[:, t, t - n] for t in second]).mean(),
            "induction": torch.stack([A[:, t, t - n + 1] for t in second]).mean(),
            "first": torch.stack([A[:, t, 0] for t in range(1, 2 * n + 1)]).mean(),
        }
        for name, value in expected.items():
            assert float(found[name][layer, head]) == pytest.approx(float(value), abs=1e-5), name
            row = found.table[(found.table["layer"] == layer) & (found.table["index"] == head)]
            assert float(row[name].iloc[0]) == pytest.approx(float(value), abs=1e-5)


def slow_detect(pattern, ids, name, no_bos, no_current, measure) -> float:
    """TransformerLens's definition, token by token."""
    T = len(ids)
    wanted = torch.zeros(T, T)
    for q in range(T):
        for k in range(q + 1):
            if name == "previous_token_head":
                wanted[q, k] = float(k == q - 1)
            elif name == "duplicate_token_head":
                wanted[q, k] = float(k < q and ids[k] == ids[q])
            else:
                wanted[q, k] = float(0 < k <= q and k - 1 < q and ids[k - 1] == ids[q] and k - 1 != q)
    on = off = gap = 0.0
    for q in range(T):
        for k in range(T):
            if (no_bos and k == 0) or (no_current and k == q):
                continue
            on += float(pattern[q, k] * wanted[q, k])
            off += float(pattern[q, k])
            gap += abs(float(pattern[q, k] - wanted[q, k]))
    return on / off if measure == "mul" else 1 - gap / T


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("name", ["previous_token_head", "duplicate_token_head", "induction_head"])
def test_detection_on_a_text_is_transformerlens_definition(llama, name, measure):
    ids = torch.tensor([0, 5, 6, 7, 5, 6, 9, 5, 5])
    A = llama.run(ids, capture="pattern.1")["pattern.1"][0]
    for no_bos, no_current in ((False, False), (True, True)):
        found = components.detect_head(
            llama, ids, name, exclude_bos=no_bos, exclude_current_token=no_current, error_measure=measure
        )
        for head in (0, 3):
            expected = slow_detect(A[head], ids, name, no_bos, no_current, measure)
            assert float(found[1, head]) == pytest.approx(expected, abs=1e-4)


def test_detection_of_ones_own_pattern(llama):
    texts = ["the cat sat on the mat", "a dog ran to the big house"]
    own = components.detect_head(llama, texts, "previous_token_head")
    alone = torch.stack([components.detect_head(llama, text, "previous_token_head") for text in texts])
    torch.testing.assert_close(own, alone.mean(0))
    for heads in ([(1, 2)], {1: [2]}):
        some = components.detect_head(llama, texts, "previous_token_head", heads=heads)
        assert float(some[1, 2]) == pytest.approx(float(own[1, 2]))
    assert (some == -1).sum() == 11
    ones = torch.ones(3, 3).tril()
    torch.testing.assert_close(components.detect_head(llama, "the cat sat", ones), torch.ones(3, 4))
    with pytest.raises(BadInput, match="lower triangle"):
        components.detect_head(llama, "the cat sat", torch.ones(3, 3))
    with pytest.raises(UnknownName, match="did you mean 'induction_head'"):
        components.detect_head(llama, "the cat", "induction")
    with pytest.raises(UnknownName, match="did you mean 'induction'"):
        head_scores(llama, n=3)["inductoin"]
    with pytest.raises(BadInput, match="context"):
        head_scores(llama, n=40)


@pytest.mark.smollm2
def test_a_real_model_has_induction_and_previous_token_heads(smollm2):
    scores = head_scores(smollm2, n=16, rows=2)
    top = scores.top(3, by="induction")
    assert top.induction.min() > 0.5
    assert scores.top(1, by="previous").previous.iloc[0] > 0.5
    assert float(scores["induction"].median()) < 0.1
    assert scores.plot("induction").data[0].z.shape == (30, 9)
    found = direct_attribution(
        smollm2, "After John and Mary went to the store, John gave a bottle of milk to", " Mary", " John"
    )
    assert found.error < 1e-4
    assert float(found.total) > 0


# ---------------------------------------------------------------------- inside editing
@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
@pytest.mark.parametrize(
    "site",
    ["embed", "z.1", "mlp_post.1", "attn_out.1", "mlp_out.1", "resid_mid.1", "resid_post.1", "final_norm", "logits"],
)
def test_inside_editing_parts_add_up_to_the_models_own_logits_or_are_refused(llama, site, by):
    held = {"embed", "z.1", "mlp_post.1"}
    held |= {"layer": {"attn_out.1", "mlp_out.1"}, "head": {"mlp_out.1"}, "neuron": set()}[by]
    with llama.editing(edits.function(site, lambda x: x * 1.7 + 0.3)):
        if site not in held:
            with pytest.raises(BadInput, match="would not add up"):
                direct_attribution(llama, IDS, 7, 9, by=by)
            return
        found = direct_attribution(llama, IDS, 7, 9, by=by)
        logits = llama.run(IDS, logits="last").logits
    close(found.values.sum(-1)[:, 0], logits[:, 7] - logits[:, 9])


def test_edits_behind_a_direction_are_no_matter_to_it(llama):
    there = ("resid_post.0", torch.ones(32))
    plain = direct_attribution(llama, IDS, direction=there)
    with llama.editing(edits.scale("resid_post.1", 0.5), edits.scale("final_norm", 0.5)):
        close(direct_attribution(llama, IDS, direction=there).values, plain.values)
    with llama.editing(edits.scale("resid_post.0", 0.5)), pytest.raises(BadInput, match="add up"):
        direct_attribution(llama, IDS, direction=there)


def test_head_results_are_not_read_past_an_edit_of_their_sum(llama):
    with llama.editing(edits.scale("attn_out.1", 0.0)):
        results = HeadResults.of(llama, IDS)
    assert results[0].shape == (2, 9, 4, 32)
    with pytest.raises(BadInput, match="attn_out.1 changed what the heads of layer 1 add"):
        results[1]
    with llama.editing(edits.scale("z.1", 0.0)):
        assert float(HeadResults.of(llama, IDS)[1].abs().max()) == 0


def test_edits_inside_dictionaries_are_edits_of_their_places(llama):
    plain = {"skip_rule": {"special": False, "first": 0, "outlier": None}}
    coder = tiny_dictionary("relu", site="ln2_output.1", site_out="mlp_out.1", metadata=plain, model_name="")
    sae = tiny_dictionary("relu", metadata=plain, model_name="")
    right, wrong = 5, 7
    with llama.editing(edits.clamp(coder, 3, 5.0)):
        found, run = direct_attribution(llama, IDS, right, wrong), llama.run(IDS, capture="attn_out.1")
        written = HeadResults.of(llama, IDS)[1].sum(2)
    shown = float(found.table.contribution.sum())
    assert shown == pytest.approx(float((run.logits[:, -1, right] - run.logits[:, -1, wrong]).mean()), abs=1e-4)
    close(written, run["attn_out.1"])
    with llama.editing(edits.scale(sae.latents, 0.5)), pytest.raises(BadInput, match="add up"):
        direct_attribution(llama, IDS, right, wrong)
