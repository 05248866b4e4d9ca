"""The Jacobian lens against whole Jacobians by torch.autograd.functional, summed by hand, and against linear blocks."""

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from monosem import lenses
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.jobs import Interrupted
from monosem.lenses.average_jacobian import Average
from monosem.lenses.jacobian import JacobianLens

# norms before, after and on both sides of a branch, parallel blocks, tuples, soft caps, sinks, multipliers
FAMILIES = ["llama", "gpt2", "gptj", "gpt_neox", "gemma2", "olmo2", "granite", "gpt_oss"]
DRAW = torch.Generator().manual_seed(4)
PROMPTS = [torch.randint(3, 100, (length,), generator=DRAW).tolist() for length in (7, 5)]


def whole_jacobian(model, ids, layer):
    """∂h_final / ∂h_layer of one prompt, `pos d pos d`, through hooks of our own on the native blocks."""

    def rest(h):
        kept = []
        put = lambda out, new: new if isinstance(out, torch.Tensor) else (new, *out[1:])  # noqa: E731
        handles = [
            model.blocks[layer].register_forward_hook(lambda m, a, out: put(out, h[None])),
            model.blocks[-1].register_forward_hook(
                lambda m, a, out: kept.append(out if isinstance(out, torch.Tensor) else out[0])
            ),
        ]
        model.hf(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return kept[0][0]

    states = []
    handle = model.blocks[layer].register_forward_hook(
        lambda m, a, out: states.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    model.hf(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return torch.autograd.functional.jacobian(rest, states[0][0].detach())


def by_hand(model, prompts, layer, skip_first, skip_last):
    total = torch.zeros(32, 32)
    for ids in prompts:
        whole = whole_jacobian(model, ids, layer)
        valid = range(skip_first, len(ids) - skip_last)
        for t in valid:
            for later in valid:
                if later >= t:
                    total += whole[later, :, t] / len(valid)
    return total / len(prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_fit_is_the_summed_jacobian(family, tiny_model):
    model = tiny_model(family)
    lens = JacobianLens.fit(model, PROMPTS, skip_first=2, batch_size=8, quiet=True)
    assert lens.layers == [0, 1, 2]
    for layer in (0, 1) if family == FAMILIES[0] else (0,):  # by hand takes long, and 0 goes through every block
        torch.testing.assert_close(lens.jacobians[layer], by_hand(model, PROMPTS, layer, 2, 1), rtol=1e-3, atol=1e-4)
    assert torch.equal(lens.jacobians[2], torch.eye(32))


def test_the_batch_size_changes_nothing(tiny_model):
    model = tiny_model("llama")
    first = JacobianLens.fit(model, PROMPTS, layers=1, skip_first=2, batch_size=1, quiet=True)
    for size in (2, 5, 100):
        other = JacobianLens.fit(model, PROMPTS, layers=1, skip_first=2, batch_size=size, quiet=True)
        torch.testing.assert_close(other.jacobians[1], first.jacobians[1], rtol=1e-4, atol=1e-5)


class Shift(nn.Module):
    """A linear block: h_t M + h_{t-1} N."""

    def __init__(self, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.M, self.N = torch.randn(2, 32, 32, generator=draw) / 6

    def forward(self, h, *args, **kwargs):
        return h @ self.M + torch.nn.functional.pad(h, (0, 0, 1, 0))[:, :-1] @ self.N


def test_linear_blocks_have_a_closed_form(tiny_model):
    """A block reaches one position ahead; the last valid one has nothing valid after it."""
    model = tiny_model("llama")
    one, two = Shift(1), Shift(2)
    model.blocks[1], model.blocks[2] = one, two
    ids = PROMPTS[0]  # valid positions 2..5: four of them
    lens = JacobianLens.fit(model, [ids], skip_first=2, skip_last=1, quiet=True)
    torch.testing.assert_close(lens.jacobians[1].T, two.M + two.N * 3 / 4)
    both = one.M @ two.M + (one.M @ two.N + one.N @ two.M) * 3 / 4 + one.N @ two.N * 2 / 4
    torch.testing.assert_close(lens.jacobians[0].T, both, rtol=1e-4, atol=1e-5)


def test_random_probes_are_unbiased_and_come_ever_closer(tiny_model):
    model = tiny_model("gpt2")
    fit = lambda **k: JacobianLens.fit(model, PROMPTS, layers=0, skip_first=2, quiet=True, **k).jacobians[0]  # noqa: E731
    exact = fit()
    error = lambda estimate: float((estimate - exact).norm() / exact.norm())  # noqa: E731
    few, more = ([error(fit(probes=k, seed=s)) for s in range(8)] for k in (4, 20))
    assert max(more) < min(few)
    mean = torch.stack([fit(probes=8, seed=s) for s in range(60)]).mean(0)
    assert error(mean) < 0.35 * min(few)
    assert torch.equal(fit(probes=8, seed=3), fit(probes=8, seed=3))
    assert not torch.equal(fit(probes=8, seed=3), fit(probes=8, seed=4))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_reading_is_the_unembedding_of_j_h(family, tiny_model):
    model = tiny_model(family)
    lens = JacobianLens.fit(model, PROMPTS, layers=[0, 2], skip_first=2, quiet=True)
    seen = lens(model, [PROMPTS[1]], top=100)
    h = model.run([PROMPTS[1]], capture="resid_post.0")["resid_post.0"][0]
    final = model.part(model.family.final_norm)(torch.einsum("oi,ti->to", lens.jacobians[0], h))
    logits = model.hf.get_output_embeddings()(final)
    if family == "gemma2":
        logits = 3 * torch.tanh(logits / 3)
    best = logits.softmax(-1).sort(descending=True)
    torch.testing.assert_close(seen.top_probabilities[0, 0], best.values, rtol=1e-4, atol=1e-6)
    assert seen.top_tokens(0, 0, 3)[0] == model.str_token(int(best.indices[3, 0]))
    p = model.hf(torch.tensor([PROMPTS[1]])).logits[0].softmax(-1).max(-1).values
    torch.testing.assert_close(seen.top_probabilities[1, 0, :, 0], p, rtol=1e-4, atol=1e-6)  # the last layer: the model


def test_saving_and_loading(tiny_model, tmp_path):
    model = tiny_model("llama")
    lens = JacobianLens.fit(model, PROMPTS, n=1, skip_first=2, probes=8, seed=5, quiet=True)
    again = JacobianLens.load(lens.save(tmp_path / "lens"))
    assert again.header == lens.header
    assert (again.header.prompts, again.header.probes, again.header.seed) == (1, 8, 5)
    assert all(torch.equal(again.jacobians[i], lens.jacobians[i]) for i in lens.layers)
    (tmp_path / "lens" / "lens.safetensors").write_bytes(b"broken")
    with pytest.raises(BadFile, match="lens.safetensors"):
        JacobianLens.load(tmp_path / "lens")
    (tmp_path / "lens" / "config.json").write_text('{"lens": "tuned"}')
    with pytest.raises(BadFile, match="a 'tuned' lens"):
        JacobianLens.load(tmp_path / "lens")


def test_a_published_file_is_read(tiny_model, tmp_path):
    """The layout that the reference code writes: half precision, no last layer, the output dimension first."""
    model = tiny_model("llama")
    lens = JacobianLens.fit(model, PROMPTS, layers=[0, 1], skip_first=2, quiet=True)
    held = {
        "J": {i: j.half() for i, j in lens.jacobians.items()},
        "n_prompts": 2,
        "source_layers": [0, 1],
        "d_model": 32,
    }
    torch.save(held, tmp_path / "tiny_jacobian_lens.pt")
    again = JacobianLens.load(tmp_path / "tiny_jacobian_lens.pt")
    assert (again.layers, again.header.prompts) == ([0, 1], 2)
    ours, theirs = (one(model, [PROMPTS[0]], top=3).top_probabilities for one in (lens, again))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
    with pytest.raises(Mismatch, match="width 32"):
        again(tiny_model("llama", hidden_size=48), [PROMPTS[0]])
    square = torch.eye(32)
    of_numbers = [
        {"J": {0: square}, "d_model": 32, "n_prompts": float("inf")},
        {"J": {}, "d_model": 32, "n_prompts": 2},
        {"J": {-1: square}, "d_model": 32, "n_prompts": 2},
        {"J": {0: square.cfloat()}, "d_model": 32, "n_prompts": 2},
    ]
    for broken in ({"J": {0: torch.eye(5)}, "d_model": 32}, {"K": 1}, [1], *of_numbers):
        torch.save(broken, tmp_path / "broken.pt")
        with pytest.raises(BadFile, match="broken.pt"):
            JacobianLens.load(tmp_path / "broken.pt")


def test_a_loaded_lens_is_the_model_at_the_last_layer_and_is_taken_by_every_analysis(tiny_model, tmp_path):
    """From a published file, which has no last layer, and one that was fitted at some layers only."""
    model = tiny_model("llama")
    some = JacobianLens.fit(model, PROMPTS, layers=[0], skip_first=2, quiet=True)
    matrix = some.jacobians[0].half()
    file = tmp_path / "lens.pt"
    torch.save({"J": {0: matrix}, "n_prompts": 2, "source_layers": [0], "d_model": 32}, file)
    h = model.run([PROMPTS[0]], capture="resid_post.0")["resid_post.0"][0]
    first = model.unembed(h @ matrix.float().T).softmax(-1)
    last = model.hf(torch.tensor([PROMPTS[0]])).logits[0].softmax(-1)
    a, b = 11, 12
    for lens in (str(file), file, some.save(tmp_path / "folder"), JacobianLens.load(file), some):
        seen = lenses.read(model, [PROMPTS[0]], lens=lens)
        assert [site.layer for site in seen.sites] == [0, 2]
        assert seen.lens == "Jacobian lens"
        for layer, want in enumerate((first, last)):
            torch.testing.assert_close(
                seen.top_probabilities[layer, 0, :, 0], want.max(-1).values, rtol=1e-2, atol=1e-3
            )
        profile = lenses.entropy_profile(model, [PROMPTS[0]], lens=lens)
        want = torch.stack([-(p * p.log()).sum(-1) for p in (first, last)])
        torch.testing.assert_close(profile["H1"][:, 0], want, rtol=1e-2, atol=1e-3)
        gap = lenses.gap(model, [PROMPTS[0]], a, b, lens=lens)
        odds = torch.stack([(p[-1, a] / p[-1, b]).log() for p in (first, last)])
        torch.testing.assert_close(gap.groups["prompts"][:, 0], odds, rtol=1e-2, atol=1e-2)
        two = lenses.trajectory(model, [PROMPTS[0]], [PROMPTS[0][:-1] + [5]], lens=lens)
        assert two.sites == profile.sites == gap.sites == seen.sites
        assert "Jacobian lens" in two.plot().layout.title.text
        words = lenses.languages(model, [PROMPTS[0]], {"one": ["London"], "two": ["capital"]}, lens=lens)
        assert words.sites == seen.sites
    before = some(model, [PROMPTS[0]], site="resid_pre")  # the same state, one layer later
    assert [site.layer for site in before.sites] == [1]
    torch.testing.assert_close(before["entropy"][0], some(model, [PROMPTS[0]])["entropy"][0])


def test_a_lens_that_does_not_map_states_says_how_it_reads(tiny_model, tmp_path):
    model = tiny_model("llama")
    prompt = lenses.SoftPrompt.of(model, 1, "the cat").save(tmp_path / "prompt")
    for analysis in (lenses.read, lenses.entropy_profile):
        with pytest.raises(BadInput, match="SoftPrompt.generate"):
            analysis(model, [PROMPTS[0]], lens=prompt)
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(BadFile, match="holds no lens"):
            analysis(model, [PROMPTS[0]], lens=tmp_path / "empty")
        with pytest.raises(UnknownName, match="no tuned lens"):
            analysis(model, [PROMPTS[0]], lens=tmp_path / "missing")


def test_an_interrupted_fit_goes_on_with_the_same_result(tiny_model, tmp_path, monkeypatch):
    model = tiny_model("llama")
    texts = [torch.randint(3, 100, (n,), generator=DRAW).tolist() for n in (7, 6, 5, 8, 7)]
    options = {"skip_first": 2, "probes": 8, "batch_size": 2, "quiet": True}
    whole = JacobianLens.fit(model, texts, **options)
    for stop in (1, 3, 9, 14):  # inside a batch of prompts, and in later ones
        folder = tmp_path / str(stop)
        made = []
        steps = Average._steps

        def stopped(self, steps=steps, stop=stop, made=made):
            for number, each in enumerate(steps(self)):
                made.append(each)
                if number == stop:
                    signal.raise_signal(signal.SIGINT)
                yield each

        monkeypatch.setattr(Average, "_steps", stopped)
        with pytest.raises(Interrupted):
            JacobianLens.fit(model, texts, folder=folder, **options)
        monkeypatch.setattr(Average, "_steps", steps)
        again = JacobianLens.fit(model, texts, folder=folder, **options)
        assert len(made) == stop + 1
        assert all(torch.equal(again.jacobians[layer], whole.jacobians[layer]) for layer in (0, 1, 2))
        assert again.header == whole.header == JacobianLens.load(folder / "lens").header
    with pytest.raises(Mismatch, match="seed"):
        JacobianLens.fit(model, texts, folder=folder, seed=4, **options)
    with pytest.raises(Mismatch, match="prompts"):
        JacobianLens.fit(model, texts[1:], folder=folder, **options)
    other = tiny_model("llama", seed=1)
    other.name = model.name
    with pytest.raises(Mismatch, match="model_weights"):
        JacobianLens.fit(other, texts, folder=folder, **options)
    model.hf.double()  # the same weights, another precision
    try:
        with pytest.raises(Mismatch, match="dtype"):
            JacobianLens.fit(model, texts, folder=folder, **options)
    finally:
        model.hf.float()


def test_merged_parts_are_the_whole(tiny_model):
    model = tiny_model("gpt2")
    whole = JacobianLens.fit(model, PROMPTS, skip_first=2, quiet=True)
    parts = [JacobianLens.fit(model, [prompt], skip_first=2, quiet=True) for prompt in PROMPTS]
    merged = JacobianLens.merge(parts)
    assert merged.header == whole.header
    for layer in (0, 1, 2):
        torch.testing.assert_close(merged.jacobians[layer], whole.jacobians[layer], rtol=1e-4, atol=1e-6)
    three = JacobianLens.merge([merged, parts[0]])  # two prompts and one
    expected = (2 * merged.jacobians[0] + parts[0].jacobians[0]) / 3
    torch.testing.assert_close(three.jacobians[0], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(Mismatch, match="settings"):
        JacobianLens.merge([parts[0], JacobianLens.fit(model, PROMPTS, skip_first=3, quiet=True)])
    for nothing in ([], "lens.pt", 3, [parts[0], None]):
        with pytest.raises(BadInput, match="give Jacobian lenses"):
            JacobianLens.merge(nothing)
    torch.testing.assert_close(JacobianLens.merge(iter(parts)).jacobians[0], merged.jacobians[0])


def test_files_of_another_tool(tiny_model, tmp_path):
    """A lens that TransformerLens 4.3 fitted on the same prompts and saved (`peers/golden.py`), and its layout."""
    model = tiny_model("llama")
    file = Path(__file__).parent / "golden" / "jacobian_llama.pt"
    theirs = JacobianLens.load(file)
    texts = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(5)).tolist()
    own = JacobianLens.fit(model, texts, skip_first=2, quiet=True)
    assert (theirs.layers, theirs.header.prompts) == ([0, 1], 2)
    for layer in (0, 1):
        torch.testing.assert_close(own.jacobians[layer], theirs.jacobians[layer], rtol=2e-3, atol=2e-3)
    own.save(tmp_path / "own.pt", published=True)
    written, given = (torch.load(path, weights_only=True) for path in (tmp_path / "own.pt", file))
    for name in ("n_prompts", "source_layers", "d_model"):
        assert written[name] == given[name]
    assert {layer: matrix.dtype for layer, matrix in written["J"].items()} == {0: torch.float16, 1: torch.float16}
    assert set(written) == set(given) - {"metadata"}
    sums = {layer: 2 * matrix.float() for layer, matrix in given["J"].items()}
    torch.save({"jacobian_sum": sums, "n_done": 2, "next_idx": 2, "source_layers": [0, 1]}, tmp_path / "checkpoint.pt")
    assert torch.equal(JacobianLens.load(tmp_path / "checkpoint.pt").jacobians[1], theirs.jacobians[1])


def test_what_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(BadInput, match="prompt 0 has 7 tokens and needs more than 10"):
        JacobianLens.fit(model, PROMPTS, skip_first=9, quiet=True)
    with pytest.raises(BadInput, match="5 prompts were asked for, the texts give 2"):
        JacobianLens.fit(model, PROMPTS, n=5, skip_first=2, quiet=True)
    for keywords in ({"probes": 33}, {"probes": 0}, {"batch_size": 0}, {"length": 1}, {"skip_last": -1}):
        with pytest.raises(BadInput, match="probes within 1..32"):
            JacobianLens.fit(model, PROMPTS, quiet=True, **keywords)
    lens = JacobianLens.fit(model, PROMPTS, layers=1, skip_first=2, probes=1, quiet=True)
    with pytest.raises(BadInput, match="no Jacobian was fitted for resid_post.0"):
        lens(model, [PROMPTS[0]], layers=[0, 1])
    with pytest.raises(BadInput, match="no Jacobian was fitted for resid_pre.1"):
        lens(model, [PROMPTS[0]], site="resid_pre", layers=1)
    with pytest.raises(BadInput, match="no Jacobian was fitted for attn_out"):
        lens(model, [PROMPTS[0]], site="attn_out")
    with pytest.raises(Mismatch, match="width 32"):
        lens(tiny_model("llama", hidden_size=48), PROMPTS[0])
