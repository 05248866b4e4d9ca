"""Copying scores against full passes with a hook, head lenses against explicit matrices and native heads."""

import numpy as np
import pandas as pd
import pytest
import torch

from monosem import edits
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.lenses.copying.arithmetic import nearest
from monosem.lenses.copying.heads import CopyingEffects, CopyingHeader, copying_effects, copying_pairs
from monosem.lenses.copying.lens import HeadLens
from tiny import FAMILIES

WORDS = ["the cat", "big dog", "red sun moon", "tree", "sad child", "one two three"]
HEADS = [(0, 1), (2, 3), (1, 0)]


def native_probability(model, ids, answer, at=None, patch=None):
    """p(answer) after the last token, one head's part of the output projection's input overwritten at one position."""
    handles = []
    if patch is not None:
        layer, head, value = patch
        out = model.blocks[layer].get_submodule(model.branch("attn", layer).slot.mixer.at("out"))

        def overwrite(module, args):
            z = args[0].clone().unflatten(-1, (model.cfg.n_heads, -1))
            z[:, at, head] = value
            return (z.flatten(-2),)

        handles.append(out.register_forward_pre_hook(overwrite))
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return float(logits.softmax(-1)[answer])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["token", "concept"])
def test_a_score_is_the_gain_of_one_full_pass_with_a_hook(family, kind, tiny_model):
    model = tiny_model(family)
    options = {"words": WORDS, "length": 8, "seed": 3}
    found = copying_effects(model, kind, 3, metric="probability", **options, quiet=True)
    pairs = copying_pairs(model, kind, 3, **options)
    at = {"token": -1, "concept": -2}[kind]
    z = [model.run([row], capture=[f"z.{layer}" for layer in range(3)]) for row in pairs.clean.rows()]
    base = [native_probability(model, row, int(a)) for row, a in zip(pairs.corrupted.rows(), pairs.right)]
    for layer in range(3):
        for head in range(4):
            gains = []
            for row, answer, own, start in zip(pairs.corrupted.rows(), pairs.right, z, base):
                value = own[f"z.{layer}"][0, at, head]
                gains.append(native_probability(model, row, int(answer), at, (layer, head, value)) - start)
            assert float(found.effects[layer, head]) == pytest.approx(np.mean(gains), abs=2e-6)
            assert float(found.errors[layer, head]) == pytest.approx(np.std(gains, ddof=1) / 3**0.5, abs=2e-6)
    assert found.header.corrupted == pytest.approx(np.mean(base), rel=1e-4)


def test_the_prompts_are_what_the_scores_need(tiny_model):
    model = tiny_model("llama")
    pairs = copying_pairs(model, "concept", 5, words=WORDS, length=9, seed=1)
    newline = model.tokenizer("\n", add_special_tokens=False).input_ids[-1]
    known = {tuple(model.tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in WORDS}
    for clean, corrupted, answer in zip(pairs.clean.rows(), pairs.corrupted.rows(), pairs.right.tolist()):
        assert clean[9] == corrupted[9] == newline
        assert clean[10:] == corrupted[10:]  # the second half is the same, up to the entity's first token
        assert clean[:9] != corrupted[:9]
        assert clean[10:] == clean[: len(clean) - 10]
        entity = tuple(clean[len(clean) - 11 : 9])
        assert entity in known
        assert answer == entity[1]
    tokens = copying_pairs(model, "token", 6, length=9)
    for clean, answer in zip(tokens.clean.rows(), tokens.right.tolist()):
        assert answer == clean[len(clean) - 10]  # what followed the same list the first time
        assert not set(clean[:9]) & {0, 1, 2}
    again = copying_pairs(model, "token", 6, length=9)
    assert torch.equal(again.clean.ids, tokens.clean.ids)
    drawn = copying_pairs(model, "token", 6, length=9, texts=["cat dog cat"])
    assert set(drawn.clean.ids[:, :9].flatten().tolist()) <= set(model.tokens("cat dog cat").ids[0].tolist())


def one_head_natively(model, layer, head, h):
    """A prompt of one token, which attends to itself: what attention reads, what the head's projection makes of it, and
    what is added to the stream. The biases on the way are set to zero."""
    block = model.blocks[layer]
    branch = model.branch("attn", layer)
    attention, mixer = branch.module, branch.slot.mixer
    for name in {branch.slot.before, branch.slot.after, mixer.path}:
        for key, value in block.get_submodule(name).named_parameters() if name else ():
            if key.endswith("bias"):
                value.data.zero_()
    seen = {}
    reads = lambda module, args, kwargs: seen.update(read=args[0] if args else kwargs["hidden_states"])  # noqa: E731
    out = attention.get_submodule(mixer.parts["out"])
    handles = [
        attention.register_forward_pre_hook(reads, with_kwargs=True),
        out.register_forward_hook(lambda module, args, value: seen.update(wrote=value)),
    ]
    alone = edits.function(f"z.{layer}", lambda z: z * torch.nn.functional.one_hot(torch.tensor(head), 4)[:, None])
    put = edits.patch(f"resid_pre.{layer}", h[:, None])
    run = model.run([[5]] * len(h), capture=f"attn_out.{layer}", edits=[put, alone], logits=False)
    for handle in handles:
        handle.remove()
    return seen["read"][:, 0], seen["wrote"][:, 0], run[f"attn_out.{layer}"][:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_of_one_head_is_what_the_native_head_does(family, tiny_model):
    """Bare, it maps what attention reads to what the projection gives. Folded, it maps the stream to what is added to
    it, up to the sizes that norms divide by (and the share of attention that a sink takes)."""
    model = tiny_model(family, **({"clip_qkv": None} if family == "olmo" else {}))  # clipped values are no linear map
    h = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    for layer, head in HEADS:
        read, wrote, added = one_head_natively(model, layer, head, h)
        bare, folded = (HeadLens.of(model, [(layer, head)], fold=fold) for fold in (False, True))
        if family != "gpt_oss":
            torch.testing.assert_close(bare.apply(read), wrote, rtol=1e-4, atol=1e-5)
        cosine = torch.cosine_similarity(folded.apply(h), added, dim=-1)
        torch.testing.assert_close(cosine, torch.ones(3), rtol=0, atol=1e-4)
    whole = HeadLens.of(model, HEADS)
    assert whole.header.folded == (model.branch("attn", 0).norm_out is not None)
    parts = sum(HeadLens.of(model, [one]).matrix for one in HEADS)
    torch.testing.assert_close(whole.matrix, parts, rtol=1e-5, atol=1e-6)


def test_reading_through_the_lens(tiny_model):
    model = tiny_model("gemma2")
    lens = HeadLens.of(model, HEADS)
    seen = lens(model, "the cat sat", layers=[1], top=100)
    h = model.run("the cat sat", capture="resid_post.1")["resid_post.1"][0]
    p = model.unembed(h @ lens.matrix).softmax(-1).sort(descending=True)
    torch.testing.assert_close(seen.top_probabilities[0, 0], p.values, rtol=1e-4, atol=1e-6)
    assert seen.lens == "head lens"
    with pytest.raises(Mismatch, match="width 32"):
        lens(tiny_model("llama", hidden_size=48), "the cat")


def test_own_token_ranks_by_hand(tiny_model):
    model = tiny_model("llama")
    lens = HeadLens.of(model, HEADS)
    texts = ["the cat sat on mat", "a dog ran"]
    table = lens.own_token(model, texts, layers=[0, 2], batch_size=1).set_index("layer")
    for layer in (0, 2):
        mine, bare = [], []
        for text in texts:
            ids = model.tokens(text).ids[0]
            h = model.run(text, capture=f"resid_post.{layer}")[f"resid_post.{layer}"][0]
            for t in range(1, len(ids)):
                for ranks, state in ((mine, h[t] @ lens.matrix), (bare, h[t])):
                    logits = model.unembed(state)
                    ranks.append(1 + int((logits > logits[ids[t]]).sum()))
        assert table.loc[layer, "top1"] == pytest.approx(np.mean(np.array(mine) <= 1))
        assert table.loc[layer, "top10"] == pytest.approx(np.mean(np.array(mine) <= 10))
        assert table.loc[layer, "logit_top10"] == pytest.approx(np.mean(np.array(bare) <= 10))
        assert table.loc[layer, "median_rank"] == sorted(mine)[(len(mine) - 1) // 2]


def test_an_analogy_is_vector_arithmetic(tiny_model):
    model = tiny_model("llama")
    lens = HeadLens.of(model, HEADS)
    state = lambda word: model.run(f"I am {word}", capture="resid_post.1")["resid_post.1"][0, -1] @ lens.matrix  # noqa: E731
    target = state("Paris") - state("France") + state("sea")
    expected = {word: float(torch.cosine_similarity(state(word), target, dim=0)) for word in ("London", "sun", "big")}
    found = lens.analogy(model, ["Paris", "sea"], ["France"], ["London", "sun", "big"], 1, prompt="I am {}")
    pd.testing.assert_series_equal(
        found, pd.Series(expected).sort_values(ascending=False), check_names=False, rtol=1e-4
    )
    assert nearest(model, lambda h: h, ["sun"], [], ["sun", "sea"], 1).index[0] == "sun"
    pairs = [("Paris", "France"), ("London", "house"), ("Rome", "tree"), ("sun", "sea")]
    hits = []
    for a, b in pairs:
        for right, other in pairs:
            if right != a:
                wanted = state(a) - state(b) + state(other)
                rest = [word for word, _ in pairs if word != a]
                cosines = [float(torch.cosine_similarity(state(word), wanted, dim=0)) for word in rest]
                hits.append(rest[int(np.argmax(cosines))] == right)
    table = lens.analogies(model, pairs, layers=[0, 1], prompt="I am {}").set_index("layer")
    assert table.loc[1, "accuracy"] == pytest.approx(np.mean(hits))
    with pytest.raises(BadInput, match="three pairs"):
        lens.analogies(model, pairs[:2])
    with pytest.raises(BadInput, match="ends in"):
        lens.analogy(model, ["sun"], [], ["sea"], 1, prompt="{} is")


def test_scores_rank_heads_and_are_saved(tiny_model, tmp_path):
    scores = torch.tensor([[0.1, -0.2, 0.5], [0.0, 0.9, 0.3]])
    header = CopyingHeader("m", 32, 2, "token", "probability", 0.9, 0.1, 7)
    held = CopyingEffects(header, scores, scores.abs())
    assert held.best_heads(3) == [(1, 1), (0, 2), (1, 2)]
    assert held.best == (1, 1)
    assert held.table.iloc[0].to_dict() == {
        "layer": 1,
        "head": 1,
        "effect": pytest.approx(0.9),
        "effect_se": pytest.approx(0.9),
    }
    again = CopyingEffects.load(held.save(tmp_path / "scores"))
    assert torch.equal(again.effects, held.effects)
    assert again.header == held.header
    assert held.save(tmp_path / "scores.csv").read_text().startswith("layer,head,effect")
    assert np.asarray(held.plot().data[0].z).shape == (2, 3)
    with pytest.raises(BadFile, match="not a 'jacobian' lens"):
        __import__("monosem").lenses.JacobianLens.load(tmp_path / "scores")
    model = tiny_model("llama")
    lens = HeadLens.of(model, copying_effects(model, "token", 2, length=8, quiet=True), n=5)
    assert (len(lens.heads), lens.name) == (5, "token lens")
    back = HeadLens.load(lens.save(tmp_path / "lens"))
    assert back.header == lens.header
    assert torch.equal(back.matrix, lens.matrix)


def test_what_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(UnknownName, match="'token' or 'concept'"):
        copying_effects(model, "word", 2)
    with pytest.raises(BadInput, match="none of the 1 words"):
        copying_effects(model, "concept", 2, words=["cat"])
    with pytest.raises(BadInput, match="leaves no room"):
        copying_effects(model, "token", 4, length=5)
    for heads, message in [([], "layers 0 to 2"), ([(0, 4)], "heads 0 to 3"), ([(3, 0)], "layers 0 to 2")]:
        with pytest.raises(BadInput, match=message):
            HeadLens.of(model, heads)
    with pytest.raises(BadInput, match="n goes with copying effects"):
        HeadLens.of(model, HEADS, n=2)


@pytest.mark.smollm2
def test_smollm2_token_heads_read_out_the_token_where_the_logit_lens_does_not(smollm2):
    """The twelve best heads of `copying_effects(smollm2, "token", 24)`."""
    heads = [(29, 1), (23, 2), (23, 7), (18, 6), (20, 6), (17, 3), (18, 7), (23, 1), (23, 0), (23, 8), (17, 5), (22, 7)]
    text = "The old lighthouse keeper walked down to the harbour every morning to buy bread and fresh fish."
    table = HeadLens.of(smollm2, heads).own_token(smollm2, [text], layers=[2, 10])
    assert (table["top10"] > 0.4).all()
    assert (table["logit_top10"] < 0.2).all()
