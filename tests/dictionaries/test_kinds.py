"""Kinds of encoders beyond relu, jumprelu and topk: a slow direct formula, and everything that uses a dictionary."""

import math

import numpy as np
import pytest
import torch

from monosem import edits, latents
from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors, evaluate, load_dictionary
from monosem.errors import BadInput, MonosemError
from monosem.models import Model
from tiny import tiny_hf, tiny_tokenizer
from tiny_dictionaries import random_tensors, tiny_dictionary
from tiny_saelens import RNG, D, F, X, folder, relu, same, weights

# ---------------------------------------------------------------------- formulas


def tensors(w: dict[str, np.ndarray]) -> DictionaryTensors:
    return DictionaryTensors.of({name: torch.from_numpy(value) for name, value in w.items()})


def made(kind: str, w: dict[str, np.ndarray], **about) -> Dictionary:
    return Dictionary(DictionaryParts(tensors(w), kind, site="resid_post.1", **about))


def test_a_jump_lets_negative_values_through_a_negative_threshold_and_a_jumprelu_does_not():
    w = weights(D, "threshold")
    w["threshold"] -= 1
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = np.where(pre > w["threshold"], pre, 0)
    assert (acts < 0).any()
    same(made("jump", w), acts, acts @ w["W_dec"] + w["b_dec"])
    same(made("jumprelu", w), relu(acts), relu(acts) @ w["W_dec"] + w["b_dec"])


def test_an_absjump_keeps_large_magnitudes():
    w = weights(D, "threshold")
    w["threshold"] *= 2
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = np.where(np.abs(pre) > w["threshold"], pre, 0)
    assert (acts < 0).any()
    same(made("absjump", w), acts, acts @ w["W_dec"] + w["b_dec"])


def test_a_jumptopk_is_the_topk_of_a_jumprelu():
    w = weights(D, "threshold")
    w["threshold"] += 6
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = np.zeros_like(pre)
    for row, values in enumerate(pre):
        passed = np.where(values > w["threshold"], relu(values), 0)
        best = np.argsort(-passed)[:3]
        acts[row, best] = passed[best]
    counts = (acts != 0).sum(1)
    assert counts.max() == 3
    assert counts.min() < 3  # both matter
    same(made("jumptopk", w, k=3), acts, acts @ w["W_dec"] + w["b_dec"])


def test_a_groupmax_keeps_the_largest_of_each_group():
    w = {name: value[..., :20] if name in ("W_enc", "b_enc") else value for name, value in weights().items()}
    w["W_dec"] = w["W_dec"][:20]
    pre = relu(X @ w["W_enc"] + w["b_enc"])
    acts = np.zeros_like(pre)
    for row in range(len(pre)):
        for group in range(5):
            best = 4 * group + pre[row, 4 * group : 4 * group + 4].argmax()
            acts[row, best] = pre[row, best]
    same(made("groupmax", w, k=5), acts, acts @ w["W_dec"] + w["b_dec"])
    with pytest.raises(BadInput, match="a width of 20 has no 3"):
        made("groupmax", w, k=3)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_a_gated_linear_unit_makes_other_preactivations(kind):
    w = weights(D, *["threshold"] * (kind == "jumprelu"))
    w |= {"W_glu": RNG.normal(size=(D, F)).astype(np.float32), "b_glu": RNG.normal(size=F).astype(np.float32)}
    pre = (X @ w["W_enc"] + w["b_enc"]) / (1 + np.exp(-(X @ w["W_glu"] + w["b_glu"])))
    if kind == "topk":
        limit = np.sort(pre, axis=1)[:, -4:-3]
        acts = np.where(pre >= limit, relu(pre), 0)
    else:
        acts = relu(pre) * (pre > w.get("threshold", 0))
    dictionary = made(kind, w, k=4 if kind == "topk" else None)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    x = torch.from_numpy(X).float()
    np.testing.assert_allclose(dictionary.latent_activations(x, [3, 1]), acts[:, [3, 1]], atol=1e-5)
    rowwise = dictionary.latent_activations_rowwise(x.reshape(3, 3, D), [3, 1, 0])
    np.testing.assert_allclose(rowwise, acts.reshape(3, 3, F)[[0, 1, 2], :, [3, 1, 0]], atol=1e-5)


def pursued(w, s, applied, steps, tolerance, stop):
    """Matching pursuit, one token and one step at a time."""
    acts = np.zeros((len(X), F))
    for token, x in enumerate(X):
        left = x * s - applied * w["b_dec"]
        for _ in range(steps):
            scores = relu(left @ w["W_dec"].T)
            best = scores.argmax()
            again = acts[token, best] != 0 or scores[best] == 0
            acts[token, best] += scores[best]
            left = left - scores[best] * w["W_dec"][best]
            if (stop and again) or np.linalg.norm(left) < tolerance:
                break
    return acts, (acts @ w["W_dec"] + applied * w["b_dec"]) / s


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("s", [None, 0.37])
def test_matching_pursuit(tmp_path, s, applied, stop):
    """Rows that are not of norm 1; without apply_b_dec_to_input no bias on decode; a scale divides the tolerance."""
    w = {name: value for name, value in weights().items() if name in ("W_dec", "b_dec")}
    w["W_dec"] = w["W_dec"] / np.linalg.norm(w["W_dec"], axis=1, keepdims=True)
    w["W_dec"] *= np.random.default_rng(3).uniform(0.7, 1.1, size=(F, 1)).astype(np.float32)
    cfg = {"residual_threshold": 1.5, "max_iterations": 9, "stop_on_duplicate_support": stop}
    norm = "none" if s is None else "expected_average_only_in"
    cfg |= {"architecture": "matching_pursuit", "apply_b_dec_to_input": applied, "normalize_activations": norm}
    path = folder(tmp_path / "p", w, **cfg)
    acts, y = pursued(w, s or 1, applied, 9, 1.5, stop)
    read = load_dictionary(path, norm_scaling_factor=s)
    read.save(tmp_path / "again")
    for dictionary in (read, load_dictionary(tmp_path / "again"), Dictionary(read.parts)):
        same(dictionary, acts / (s or 1), y)
        assert dictionary.kind == "matching_pursuit"
    with pytest.raises(MonosemError, match="residual_threshold"):
        load_dictionary(folder(tmp_path / "bad", w, architecture="matching_pursuit", residual_threshold=-1.0))


def temporal_folder(path, tied, applied, layers=2, **cfg):
    """Width 16, two heads over a bottleneck of 4: a projection of keys is [4, 16]."""
    rng, width = np.random.default_rng(5), 16
    w = {"W_dec": rng.normal(size=(width, D)), "b_dec": rng.normal(size=D), "W_enc": rng.normal(size=(D, width))}
    for layer in range(layers):
        for name, rows in (("k_ctx", 4), ("q_target", 4), ("v_ctx", width), ("c_proj", width)):
            w[f"attn_layers.{layer}.{name}.weight"] = rng.normal(size=(rows, width)) * 0.5
            w[f"attn_layers.{layer}.{name}.bias"] = rng.normal(size=rows)
    if tied:
        del w["W_enc"]
    w = {name: value.astype(np.float32) for name, value in w.items()}
    told = {"n_heads": 2, "n_attn_layers": layers, "bottleneck_factor": 4, "tied_weights": tied, "d_sae": width}
    return folder(path, w, architecture="temporal", apply_b_dec_to_input=applied, **{**told, **cfg}), w


def temporal(w, x, tied, applied, k, factor, layers=2):
    """Novel codes and reconstruction of one text `[pos, d]`, query by query."""
    W_enc = (w["W_dec"].T if tied else w["W_enc"]) / (4 * D)
    left = x * factor - applied * w["b_dec"]
    predicted = np.zeros_like(left)
    for layer in range(layers):
        p = {key.split(".", 2)[2]: value for key, value in w.items() if key.startswith(f"attn_layers.{layer}.")}
        here = relu(left @ W_enc)
        there = np.concatenate([np.zeros((1, 16)), here[:-1]])
        q = here @ p["q_target.weight"].T + p["q_target.bias"]
        keys = there @ p["k_ctx.weight"].T + p["k_ctx.bias"]
        v = there @ p["v_ctx.weight"].T + p["v_ctx.bias"]
        mixed = np.zeros((len(x), 16))
        for t in range(len(x)):
            for head in range(2):
                scores = keys[: t + 1, 2 * head : 2 * head + 2] @ q[t, 2 * head : 2 * head + 2] / math.sqrt(2)
                weight = np.exp(scores - scores.max())
                mixed[t, 8 * head : 8 * head + 8] = weight / weight.sum() @ v[: t + 1, 8 * head : 8 * head + 8]
        part = relu(mixed @ p["c_proj.weight"].T + p["c_proj.bias"]) @ w["W_dec"]
        size = np.linalg.norm(part, axis=1, keepdims=True) + 1e-6
        part = part * ((part * left).sum(1, keepdims=True) / size**2)
        predicted, left = predicted + part, left - part
    codes = relu(left @ W_enc)
    acts = np.zeros_like(codes)
    for row, values in enumerate(codes):
        best = np.argsort(-values)[:k]
        acts[row, best] = values[best]
    bias = w["b_dec"] if applied or not tied else 0
    return acts, (acts @ w["W_dec"] + predicted + bias) / factor


@pytest.mark.parametrize(("tied", "applied"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("factor", [1.0, 0.37])
def test_temporal_codes_depend_on_earlier_tokens(tmp_path, tied, applied, factor):
    norm = {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": factor}
    path, w = temporal_folder(tmp_path / "t", tied, applied, kval_topk=3, **(norm if factor != 1 else {}))
    read = load_dictionary(path)
    read.save(tmp_path / "again")
    x = torch.from_numpy(X.reshape(3, 3, D)).float()
    for dictionary in (read, load_dictionary(tmp_path / "again"), Dictionary(read.parts)):
        codes = dictionary.encode(x)
        for text in range(3):
            acts, y = temporal(w, X.reshape(3, 3, D)[text], tied, applied, 3, factor)
            np.testing.assert_allclose(codes.dense()[text], acts, atol=1e-5)
            np.testing.assert_allclose(dictionary.decode(codes)[text], y, atol=3e-5)
            np.testing.assert_allclose(dictionary(x)[text], y, atol=3e-5)
        with pytest.raises(BadInput, match="depend on the tokens before it: give whole texts"):
            dictionary.encode(x[0])


# ---------------------------------------------------------------------- what uses a dictionary

MODEL = Model(tiny_hf("llama"), tiny_tokenizer(), "tiny")
SITE, WIDTH, SIZE = "resid_post.1", 24, 32


def extra(**about) -> DictionaryTensors:
    """Random tensors for the tiny model, with more of them."""
    draw = torch.Generator().manual_seed(7)
    held = {name: torch.randn(shape, generator=draw) for name, shape in about.items()}
    return DictionaryTensors.of(random_tensors(SIZE, WIDTH).present() | held)


def temporal_tensors() -> DictionaryTensors:
    shapes = {"b_in": (SIZE,)}
    for name, rows in (("k", 4), ("q", 4), ("v", WIDTH), ("o", WIDTH)):
        shapes |= {f"{name}_weight": (1, rows, WIDTH), f"{name}_bias": (1, rows)}
    return extra(**shapes)


KINDS = {
    "jump": lambda: tiny_dictionary("jump", extra(threshold=(WIDTH,))),
    "absjump": lambda: tiny_dictionary("absjump", extra(threshold=(WIDTH,))),
    "jumptopk": lambda: tiny_dictionary("jumptopk", extra(threshold=(WIDTH,))),
    "groupmax": lambda: tiny_dictionary("groupmax", k=6),
    "glu": lambda: tiny_dictionary("relu", extra(W_glu=(SIZE, WIDTH), b_glu=(WIDTH,))),
    "glu topk": lambda: tiny_dictionary("topk", extra(W_glu=(SIZE, WIDTH), b_glu=(WIDTH,))),
    "matching_pursuit": lambda: tiny_dictionary(
        "matching_pursuit", options={"steps": 6, "tolerance": 0.1, "stop_at_repeat": True}
    ),
    "temporal": lambda: tiny_dictionary("temporal", temporal_tensors(), k=6, options={"heads": 2, "eps": 1e-6}),
    "layer_norm_in": lambda: tiny_dictionary("relu", token_norm="layer_norm_in"),
}


@pytest.fixture(params=KINDS)
def dictionary(request) -> Dictionary:
    return KINDS[request.param]()


TEXTS = ["a good b", "the cat"]


def test_edits_of_one_latent_and_of_one_a_row(dictionary):
    clean = MODEL.run("a good b", capture=SITE)[SITE]
    codes = dictionary.encode(clean).dense()
    latent = int((codes[0, 1:] != 0).sum(0).argmax())
    rows = dictionary.W_dec
    for made, change in (
        (edits.clamp(dictionary, latent, 2.5, everywhere=True), 2.5 - codes[..., latent]),
        (edits.ablate_latent(dictionary, latent, everywhere=True), -codes[..., latent]),
        (edits.add_latent(dictionary, latent, 3.0, everywhere=True), torch.full_like(codes[..., latent], 3.0)),
    ):
        edited = MODEL.run("a good b", edits=[made], capture=SITE)[SITE]
        torch.testing.assert_close(edited, clean + change[..., None] * rows[latent], atol=2e-4, rtol=1e-4)
    by_row = edits.clamp(dictionary, [latent, 3], 2.5, everywhere=True)
    both = MODEL.run(["a good b", "a good b"], edits=[by_row], capture=SITE)
    for row, one in enumerate((latent, 3)):
        wanted = clean[0] + (2.5 - codes[0, :, one])[:, None] * rows[one]
        torch.testing.assert_close(both[SITE][row], wanted, atol=2e-4, rtol=1e-4)
    spliced = MODEL.run("a good b", edits=[edits.splice(dictionary, everywhere=True)], capture=SITE)[SITE]
    torch.testing.assert_close(spliced, dictionary(clean), atol=2e-4, rtol=1e-4)


def test_some_latents_only_are_the_same_numbers(dictionary):
    x = MODEL.run(torch.randint(4, 60, (2, 5)), capture=SITE)[SITE]
    dense = dictionary.encode(x).dense()
    torch.testing.assert_close(dictionary.latent_activations(x, [5, 1]), dense[..., [5, 1]], atol=1e-5, rtol=1e-5)
    rowwise = dictionary.latent_activations_rowwise(x, [5, 1])
    torch.testing.assert_close(rowwise, torch.stack([dense[0, :, 5], dense[1, :, 1]]), atol=1e-5, rtol=1e-5)


def test_what_reads_a_corpus_works_or_says_why_not(dictionary, tmp_path):
    ids = torch.randint(4, 60, (6, 16), generator=torch.Generator().manual_seed(0))
    jobs = [
        lambda: evaluate(MODEL, dictionary, ids, tokens=None, quiet=True).l0,
        lambda: latents.build_index(MODEL, dictionary, ids, tmp_path / "index.sqlite", quiet=True).densities.sum(),
    ]
    for job in jobs:
        if dictionary.whole_texts:
            with pytest.raises(BadInput, match="depend on the tokens before it"):
                job()
        else:
            assert job() > 0
    if not dictionary.whole_texts:
        index = latents.Index(tmp_path / "index.sqlite", dictionary)
        assert not latents.check_index(index, model=MODEL).table["broken"].any()
    codes = dictionary.encode(MODEL.run("a good b", capture=SITE)[SITE])
    table = latents.top(MODEL, dictionary, "a good b", n=WIDTH).table
    last = table[table["last"]].set_index("latent")["value"]
    dense = codes.dense()[0, -1]
    assert set(last.index) == set(dense.nonzero()[:, 0].tolist())
    np.testing.assert_allclose(last.to_numpy(), dense[last.index.tolist()], rtol=1e-4)


def test_whole_texts_alone_are_edited():
    dictionary = KINDS["temporal"]()
    made = edits.clamp(dictionary, 3, 2.0, everywhere=True)
    with pytest.raises(BadInput, match="on texts of one length"):
        MODEL.run(TEXTS, edits=[made])
    with pytest.raises(BadInput, match="a step of generation with a cache"):
        MODEL.generate("a good b", edits=[made], max_new_tokens=3)
    with pytest.raises(BadInput, match="otherwise than from pre-activations"):
        dictionary.preactivations(torch.zeros(1, 2, SIZE))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"matching_pursuit", "temporal"}))
def test_what_saelens_cannot_hold_is_refused(tmp_path, kind):
    with pytest.raises(
        BadInput, match="SAELens (has no architecture for a .* SAE|has no gated linear|does not normalise tokens so)"
    ):
        KINDS[kind]().save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "about", "message"),
    [
        ("jump", {}, "a jump dictionary needs threshold"),
        ("jumptopk", {"threshold": torch.zeros(WIDTH), "k": None}, "a jumptopk dictionary needs k"),
        ("relu", {"W_glu": torch.zeros(SIZE, WIDTH)}, "W_glu and b_glu belong together"),
        ("relu", {"W_glu": torch.zeros(WIDTH, SIZE), "b_glu": torch.zeros(WIDTH)}, "W_glu has shape .* transposed"),
        ("relu", {"strange": torch.zeros(3)}, "a relu dictionary has these further tensors: none"),
        ("matching_pursuit", {}, "has these options: steps .int., tolerance .float., stop_at_repeat .bool."),
        ("temporal", {"k": 6}, "has these options: heads"),
    ],
)
def test_parts_that_do_not_fit_their_kind_are_named(kind, about, message):
    told = {"k": about.pop("k", 6 if kind == "jumptopk" else None)}
    held = random_tensors(SIZE, WIDTH).present() | about
    with pytest.raises(BadInput, match=message):
        tiny_dictionary(kind, DictionaryTensors.of(held), **told)
