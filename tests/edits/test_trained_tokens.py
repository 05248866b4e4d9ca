"""Edits of latents leave out the tokens that the dictionary was not trained on; bare Hugging Face as oracle."""

import pytest
import torch

from monosem import edits
from monosem.activations import SkipRule, median_norms
from monosem.activations.medians import TEXT
from monosem.dictionaries import Dictionary, load_dictionary
from monosem.errors import BadFile, BadInput, EditDidNotFire
from monosem.models import Model, Site
from monosem.steering import compare, outcomes
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

SITE = "resid_post.1"
HUGE = 50
ROWS = [[10, 11, HUGE, 12, 1, 13], [14, 15, 16, 17], [18, HUGE, 19, 20, 21]]  # 1 is special (</s>)
USUAL = torch.tensor([[0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
REAL = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)


LARGE = {HUGE}  # tokens whose embedding, and so their stream in every layer, is an outlier


@pytest.fixture(scope="module")
def model() -> Model:
    made = tiny_model("llama")

    def enlarge(module, args, embeddings):
        large = torch.isin(args[0], torch.tensor(sorted(LARGE)))
        return torch.where(large[..., None], 1000 * embeddings, embeddings)

    made.hf.get_input_embeddings().register_forward_hook(enlarge)
    return made


@pytest.fixture(scope="module", params=["its file says", "measured"])
def sae(request, model) -> Dictionary:
    rule = {"skip_rule": {"special": True, "first": 1, "outlier": 10.0, "outlier_norm": 150.0}}
    metadata = rule if request.param == "its file says" else {}
    return tiny_dictionary("relu", random_tensors(32, 24, 0, (1 / 6, 1 / 4)), model_name="", metadata=metadata)


def bare(model: Model, rows=ROWS) -> list[torch.Tensor]:
    """The stream of each row, from transformers itself."""
    return [model.hf(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0] for row in rows]


EDITS = {
    "clamp": (lambda sae, **o: edits.clamp(sae, 5, 4.0, **o), lambda f: 4.0 - f),
    "scale": (lambda sae, **o: edits.scale_latent(sae, 5, 3.0, **o), lambda f: 2 * f),
    "add": (lambda sae, **o: edits.add_latent(sae, 5, 1.5, **o), lambda f: torch.full_like(f, 1.5)),
    "ablate": (lambda sae, **o: edits.ablate_latent(sae, 5, **o), lambda f: -f),
    "splice": (lambda sae, **o: edits.splice(sae, **o), None),
}


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("kind", EDITS)
def test_what_is_edited(model, sae, kind, everywhere):
    make, change = EDITS[kind]
    edited = model.run(ROWS, capture=SITE, edits=make(sae, everywhere=everywhere))[SITE]
    for row, x in enumerate(bare(model)):
        codes = torch.relu(x @ sae.W_enc + sae.b_enc)
        new = codes @ sae.W_dec + sae.b_dec if change is None else x + change(codes[:, 5:6]) * sae.W_dec[5]
        where = REAL[row] if everywhere else USUAL[row]
        oracle = torch.where(where[: len(x), None], new, x)
        torch.testing.assert_close(edited[row, : len(x)], oracle, rtol=1e-3, atol=1e-3)
        kept = ~where[: len(x)]
        torch.testing.assert_close(edited[row, : len(x)][kept], x[kept], rtol=1e-6, atol=1e-4)


def test_the_cache_and_generated_outliers_make_no_difference(model, sae):
    edit = edits.clamp(sae, 5, 4.0)
    prompts = [[10, 11, HUGE, 12], [60, 15]]
    first = model.generate(prompts, edits=edit, max_new_tokens=1).new[1][0]
    assert first not in {*prompts[1], *prompts[0], *model.special_ids}
    LARGE.add(first)  # the first token that the second row says is an outlier
    try:
        made = model.generate(prompts, edits=edit, max_new_tokens=6, stop_at_eos=False, capture=SITE)
        assert made.new[1][0] == first
        for row, (prompt, new) in enumerate(zip(prompts, made.new)):
            so_far = list(prompt)
            for token in new:
                assert int(model.run([so_far], edits=edit).logits[0, -1].argmax()) == token
                so_far.append(token)
            alone = model.run([so_far], edits=edit, capture=SITE)[SITE][0]
            torch.testing.assert_close(made[SITE][row, : len(so_far)], alone, rtol=1e-3, atol=1e-3)
            plain = bare(model, [so_far])[0]
            moved = (alone - plain).norm(dim=-1) > 1e-2
            left_out = torch.isin(torch.tensor(so_far), torch.tensor([HUGE, first, *model.special_ids]))
            assert moved.tolist() == [position > 0 and not out for position, out in enumerate(left_out.tolist())]
    finally:
        LARGE.remove(first)


def test_which_tokens_are_edited_depends_on_no_other_prompt(model, sae):
    edit = edits.clamp(sae, 5, 4.0)
    together = model.run(ROWS, capture=SITE, edits=edit)[SITE]
    left = model.run(model.tokens(ROWS, padding="left"), capture=SITE, edits=edit)
    many = model.run([[HUGE] * 3 + [7]] * 20 + ROWS, capture=SITE, edits=edit)[SITE][20:]
    parts = model.run(ROWS, capture=SITE, edits=edit, memory="40KB")[SITE]
    for row, ids in enumerate(ROWS):
        alone = model.run([ids], capture=SITE, edits=edit)[SITE][0]
        for other in (together[row, : len(ids)], left[SITE][row][left.tokens.mask[row]], many[row, : len(ids)]):
            torch.testing.assert_close(other, alone, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(parts[row, : len(ids)], alone, rtol=1e-5, atol=1e-4)


def test_an_earlier_edit_at_the_site_makes_no_outliers(model, sae):
    """The second edit of three is judged by the activation before all of them."""
    both = [edits.add((SITE, torch.ones(32)), 1e4), edits.add_latent(sae, 5, 2.0)]
    shifted, twice = (model.run(ROWS, capture=SITE, edits=some)[SITE] for some in (both[:1], both))
    moved = (twice - shifted).norm(dim=-1) > 0.1
    assert torch.equal(moved & REAL, USUAL)


def refused(run, *words: str) -> None:
    with pytest.raises(EditDidNotFire) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    assert "everywhere=True" in message
    assert all(word in message for word in words), message


def test_named_tokens_that_are_left_out_are_refused(model, sae):
    edit = edits.clamp(sae, 5, 4.0)
    refused(lambda: model.run(ROWS, edits=edit.at(positions=0)), "row 0", "token 0", "first")
    refused(lambda: model.run(ROWS, edits=edit.at(positions=[3, 2])), "row 0", "token 2", "outlier")
    refused(lambda: model.run(ROWS, edits=edit.at(positions=[1, 2], rows=2)), "row 2", "token 1", "outlier")
    refused(lambda: model.run(ROWS, edits=edit.at(positions=-2)), "row 0", "token 4", "'</s>'", "special")
    refused(lambda: model.generate(ROWS, edits=edit.at(positions=0), max_new_tokens=3), "token 0")
    refused(lambda: model.run(ROWS, edits=edit.at(tokens=[11, 1], rows=0)), "token 4", "special")
    with model.editing(edit.at(positions=0)):
        refused(lambda: model.run(ROWS), "token 0")
    honoured = model.run(ROWS, capture=SITE, edits=edits.clamp(sae, 5, 4.0, everywhere=True).at(positions=0))[SITE]
    moved = (honoured - model.run(ROWS, capture=SITE)[SITE]).norm(dim=-1) > 1e-2
    assert moved[:, 0].all()
    assert not moved[:, 1:].any()


def test_a_row_of_which_nothing_is_left_is_refused(model, sae):
    edit = edits.clamp(sae, 5, 4.0)
    refused(lambda: model.run([[10, 11], [12], [13, 14]], edits=edit), "row 1", "any token")
    refused(lambda: model.run([[10, HUGE, 1, 12]], edits=edit.at(positions=slice(0, 3))), "row 0", "any token")
    refused(lambda: model.run([[10, 11, HUGE]], edits=edit.at(tokens=HUGE)), "row 0", "outlier")
    refused(lambda: model.generate([[10], [11]], edits=edit, max_new_tokens=1), "row 0", "any token")
    refused(lambda: model.generate([[10]], edits=edit.at(scope="prompt"), max_new_tokens=4), "row 0", "any token")
    first = edit.at(positions=slice(0, 1))
    refused(lambda: model.generate(ROWS, edits=first, max_new_tokens=4), "reached no token")
    refused(lambda: compare(model, ROWS, first, max_new_tokens=4), "reached no token")
    refused(lambda: compare(model, [[10, 11], [12]], edit, max_new_tokens=0), "row 1")
    made = model.generate([[10], [11, 12]], edits=edit, max_new_tokens=3, stop_at_eos=False)  # later tokens come
    assert len(made.new[0]) == 3


def test_arms_that_run_together_leave_out_the_same(model, sae):
    arms = [(), edits.clamp(sae, 5, 40.0), edits.splice(sae), edits.add((SITE, torch.ones(32)), 1.0)]
    prompts = [[10, 11, HUGE, 12], [14, 15, 16]]
    for found, arm in zip(outcomes(model, prompts, arms, max_new_tokens=4, quiet=True), arms, strict=True):
        alone = [model.generate([prompt], edits=arm, max_new_tokens=4) for prompt in prompts]
        assert found.new == [made.new[0] for made in alone]
        torch.testing.assert_close(found.logits, torch.cat([one.logits for one in alone]), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- the rule
def test_the_usual_norm_is_the_median_over_the_text(monkeypatch):
    model, site = tiny_model("llama", seed=3), Site.parse(SITE)
    pieces = TEXT.read_text(encoding="utf-8").split("\n\n")
    assert len(pieces) == 16
    rows = [model.tokenizer(piece.strip()).input_ids[:48] for piece in pieces]
    norms = [
        float(x[position].norm())
        for row, x in zip(rows, bare(model, rows))
        for position in range(1, len(row))
        if row[position] not in model.special_ids
    ]
    with model.editing(edits.scale("embed", 100.0)):  # not its own edits
        found = median_norms(model, [site])[site]
    assert found == pytest.approx(torch.tensor(norms).median().item(), rel=1e-5)
    monkeypatch.setattr(model, "run", None)  # once
    assert median_norms(model, [site]) == {site: found}


def test_without_a_tokenizer_drawn_tokens_are_read():
    model = Model(tiny_model("llama", seed=4).hf)
    sae = tiny_dictionary("relu", model_name="")
    edited, plain = (model.run(ROWS, capture=SITE, edits=e)[SITE] for e in (edits.add_latent(sae, 5, 9.0), ()))
    moved = (edited - plain).norm(dim=-1) > 1e-2
    assert not moved[:, 0].any()
    assert moved[:, 1:][REAL[:, 1:]].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_every_dtype(dtype):
    model = tiny_model("llama", seed=5)
    model.hf.to(dtype)
    sae = tiny_dictionary("relu", model_name="")
    edited, plain = (model.run(ROWS[2:], capture=SITE, edits=e)[SITE] for e in (edits.add_latent(sae, 5, 9.0), ()))
    assert ((edited - plain).float().norm(dim=-1) > 1).tolist() == [[False, True, True, True, True]]


def test_the_rule_is_saved_and_read_back(tmp_path):
    rule = {"special": False, "first": 2, "outlier": 4.0, "calibration": 3, "outlier_norm": 77.5}
    tiny_dictionary("relu", metadata={"skip_rule": rule}).save(tmp_path / "own")
    again = load_dictionary(tmp_path / "own")
    assert again.skip == SkipRule(special=False, first=2, outlier=4.0, calibration=3)
    assert again.outlier_norm == 77.5
    tiny_dictionary("relu").save(tmp_path / "foreign")
    foreign = load_dictionary(tmp_path / "foreign")
    assert (foreign.skip, foreign.outlier_norm) == (SkipRule(), None)
    told = load_dictionary(tmp_path / "own", skip=SkipRule.none())
    assert (told.skip, told.outlier_norm) == (SkipRule.none(), None)
    told.save(tmp_path / "told")
    assert load_dictionary(tmp_path / "told").skip == SkipRule.none()


def test_another_rule_is_followed(model):
    tensors = random_tensors(32, 24, 0, (1 / 6, 1 / 4))
    rules = {"first": SkipRule(first=2, special=False, outlier=None), "none": SkipRule.none()}
    wanted = {"first": [0, 0, 1, 1, 1, 1], "none": [1] * 6}
    for name, rule in rules.items():
        sae = tiny_dictionary("relu", tensors, model_name="", metadata={"skip_rule": vars(rule)})
        edited = model.run(ROWS[:1], capture=SITE, edits=edits.add_latent(sae, 5, 40.0))[SITE][0]
        assert ((edited - bare(model)[0]).norm(dim=-1) > 1e-1).int().tolist() == wanted[name]


BAD = [[], "first", {"first": -1}, {"first": "1"}, {"outlier": float("nan")}, {"outlier": 0.5}, {"last": 2}]
BAD += [{"outlier_norm": "a"}, {"outlier_norm": float("nan")}, {"outlier_norm": -1.0}, {"special": 3}, 4]
BAD += [{"first": 2**63}, {"first": 10**30}, {"calibration": 10**30}, {"outlier": 10**400}, {"outlier_norm": 10**400}]
BAD += [{"outlier": float("inf")}, {"outlier_norm": float("inf")}]


@pytest.mark.parametrize("rule", BAD)
def test_what_is_no_rule_is_refused(rule, tmp_path):
    with pytest.raises(BadInput, match="rule"):
        tiny_dictionary("relu", metadata={"skip_rule": rule})
    import json

    tiny_dictionary("relu").save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg["metadata"]["skip_rule"] = rule
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(BadFile, match="rule"):
        load_dictionary(tmp_path)


def test_rules_are_read_from_what_str_wrote():
    for rule in (SkipRule(), SkipRule.none(), SkipRule(False, 3, 2.5, 7), SkipRule(outlier=1e30)):
        assert SkipRule.parse(str(rule)) == rule
    for text in ("", "SkipRule()", "SkipRule(special=True, first=x, outlier=10.0, calibration=16)"):
        with pytest.raises(BadInput):
            SkipRule.parse(text)
