"""Values of edits: which axes they have, which tokens they belong to. Oracles: one row at a time; writes by hand."""

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, EditDidNotFire
from monosem.models import TokenBatch
from tiny import model_of

MODEL = model_of("llama")  # d_model 32, 4 heads, 2 kv heads, d_head 8
DRAW = torch.Generator().manual_seed(7)
X = torch.randint(3, 100, (4, 4), generator=DRAW)  # as many rows as tokens, as heads
Y = torch.randint(3, 100, (4, 4), generator=DRAW)
SITE = "resid_post.1"
UNEQUAL = [[7, 11, 23], [5, 61, 8, 30, 44], [9, 9, 4, 2]]
OTHERS = [[71, 12, 3], [55, 6, 83, 35, 4], [19, 91, 41, 28]]  # of the same lengths
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def logits(x, edit):
    return MODEL.run(x, edits=edit, logits="last").logits


def by_hand(site, write):
    def fn(x):
        write(x)
        return x

    return edits.function(site, fn)


@pytest.mark.parametrize("site", [SITE, "z.1", "k.1", "mlp_post.1", "rot_q.1", "ln2_scale.1", "result.1"])
def test_each_rows_last_state_goes_to_its_own_row(site):
    other, axes = MODEL.run(Y, capture=site), " ".join(["batch", *MODEL.site(site).shape[1:]])
    axes += " 1" if axes == "batch" else ""
    edit = edits.patch(site, other.last(site), axes=axes).at(positions="last")

    def alone(row):
        def write(x):
            x[0, -1] = other[site][row, -1]

        return logits(X[[row]], by_hand(site, write))

    torch.testing.assert_close(logits(X, edit), torch.cat([alone(row) for row in range(4)]), **CLOSE)


@pytest.mark.parametrize(
    ("site", "shape", "readings"),
    [
        (SITE, (4, 32), "'batch d_model' or 'position d_model'"),
        ("z.1", (4, 4, 8), "'batch head d_head' or 'position head d_head'"),
        ("mlp_post.1", (4, 48), "'batch neuron' or 'position neuron'"),
        ("pattern.1", (4, 4, 4), "'batch position key' or 'head position key'"),
        ("ln1_scale.1", (4, 1), "'batch 1' or 'position 1'"),
    ],
)
def test_a_value_that_can_be_read_in_several_ways_is_refused(site, shape, readings):
    with pytest.raises(BadInput, match="say which with axes=") as error:
        edits.patch(site, torch.zeros(shape))
    assert readings in str(error.value)


def test_axes_are_read_by_name_in_any_order():
    whole = torch.randn(4, 4, 32, generator=DRAW)
    same = logits(X, by_hand(SITE, lambda x: x.copy_(whole)))
    for axes, value in (
        (None, whole),
        ("batch pos d_model", whole),
        ("d_model batch position", whole.permute(2, 0, 1)),
        ("1 batch position d_model", whole[None]),
    ):
        torch.testing.assert_close(logits(X, edits.patch(SITE, value, axes=axes)), same, **CLOSE)
    for axes, value, spread in (
        ("position d_model", whole[0], whole[0].expand(4, -1, -1)),
        ("batch d_model", whole[0], whole[0][:, None].expand(-1, 4, -1)),
        ("batch 1 d_model", whole[0][:, None], whole[0][:, None].expand(-1, 4, -1)),
        ("batch", whole[0, 0, :4], whole[0, 0, :4, None, None].expand(4, 4, 32)),
        ("position", whole[0, 0, :4], whole[0, 0, None, :4, None].expand(4, 4, 32)),
    ):
        expected = logits(X, by_hand(SITE, lambda x, spread=spread: x.copy_(spread)))
        torch.testing.assert_close(logits(X, edits.patch(SITE, value, axes=axes)), expected, **CLOSE)
    heads = torch.randn(4, generator=DRAW)
    expected = logits(X, by_hand("z.1", lambda x: x.copy_(heads[None, None, :, None].expand_as(x))))
    torch.testing.assert_close(logits(X, edits.patch("z.1", heads, axes="head")), expected, **CLOSE)


@pytest.mark.parametrize(
    ("value", "axes", "message"),
    [
        (torch.zeros(4, 6, 32), None, "6 tokens, row 0 4"),
        (torch.zeros(4, 3, 32), None, "3 tokens, row 0 4"),
        (torch.zeros(6, 32), "position d_model", "6 tokens, row 0 4"),
        (torch.zeros(1, 4, 32), None, "1 along 'batch', not 4; leave the axis out"),
        (torch.zeros(4, 1, 32), None, "1 tokens, row 0 4"),
        (torch.zeros(2, 32), "batch d_model", "2 along 'batch', not 4"),
        (torch.zeros(31), None, "31 along 'd_model', not 32"),
        (torch.zeros(1), None, "1 along 'd_model', not 32"),
        (torch.zeros(4, 32), "batch head", "does not name the 2 axes"),
        (torch.zeros(4, 32), "batch batch", "does not name the 2 axes"),
        (torch.zeros(4, 32), "batch", "does not name the 2 axes"),
        (torch.zeros(4, 32), "1 d_model", "axis of size 4"),
        (torch.zeros(2, 2, 4, 4, 32), None, "5 axes"),
    ],
)
def test_a_value_of_another_size_is_refused(value, axes, message):
    with pytest.raises(BadInput, match=message):
        logits(X, edits.patch(SITE, value, axes=axes))


def test_features_of_heads_that_could_be_rows_are_refused_when_they_meet_the_run():
    edit = edits.patch("z.1", torch.zeros(4, 8))
    with pytest.raises(BadInput, match="'head d_head' or 'batch d_head' or 'position d_head'"):
        logits(X, edit)
    logits(X[:3, :3], edit)  # 4 is the number of heads alone
    with pytest.raises(BadInput, match="4 along 'head', not 2"):
        logits(X[:3, :3], edits.patch("k.1", torch.zeros(4, 8)))


# ---------------------------------------------------------------------- values that follow tokens
def rowwise(edit_of_row):
    return torch.cat([logits([row], edit_of_row(i)) for i, row in enumerate(UNEQUAL)])


def own_value(site, i):
    value = MODEL.run([OTHERS[i]], capture=site)[site]
    return by_hand(site, lambda x: x.copy_(value))


@pytest.mark.parametrize("site", [SITE, "z.1", "rot_k.1", "pattern.1", "scores.1", "ln1_normalized.1"])
@pytest.mark.parametrize("sides", [("right", "left"), ("left", "right"), ("right", "right")])
def test_a_runs_value_follows_its_tokens_whatever_the_padding(site, sides):
    source, target = TokenBatch.of(OTHERS, 2, sides[0]), TokenBatch.of(UNEQUAL, 2, sides[1])
    other, expected = MODEL.run(source, capture=site), rowwise(lambda i: own_value(site, i))
    torch.testing.assert_close(logits(target, edits.patch(site, other)), expected, **CLOSE)
    torch.testing.assert_close(logits(target, edits.patch(site, other[site], tokens=source)), expected, **CLOSE)
    with pytest.raises(BadInput, match=r"3 to 5 tokens.*patch\(site, run\)"):
        logits(target, edits.patch(site, other[site]))


@pytest.mark.parametrize("site", [SITE, "z.1", "rot_k.1", "pattern.1", "logits"])
def test_a_runs_value_in_generation(site):
    """Runs pad on the right, generation on the left. Oracle: whole passes over each row, the prompt written by hand."""
    if site == "logits":
        edit = edits.patch(site, MODEL.run(OTHERS, capture=site)).at(positions="last")
    else:
        edit = edits.patch(site, MODEL.run(OTHERS, capture=site)).at(scope="prompt")
    made = MODEL.generate(UNEQUAL, edits=edit, max_new_tokens=4, stop_at_eos=False)
    for i, row in enumerate(UNEQUAL):
        n, value = len(row), MODEL.run([OTHERS[i]], capture=site)[site]

        def write(x, n=n, value=value):
            where = (slice(None), slice(n - 1 if site == "logits" else 0, n))
            if site == "pattern.1":
                x[:, :, :n, :n] = value
            else:
                x[where] = value[where]

        ids = list(row)
        for _ in range(4):
            ids.append(int(MODEL.run([ids], edits=by_hand(site, write)).logits[0, -1].argmax()))
        assert made.ids.rows()[i] == ids


@pytest.mark.parametrize("site", [SITE, "z.1", "rot_k.1", "pattern.1"])
def test_a_patch_that_lacks_generated_tokens_says_what_to_do(site):
    for value in (MODEL.run(X, capture=site), MODEL.run(X, capture=site)[site]):
        with pytest.raises(BadInput, match=r"nothing for token 4 of row 0.*scope='prompt'"):
            MODEL.generate(X, edits=edits.patch(site, value), max_new_tokens=3, stop_at_eos=False)
        narrow = edits.patch(site, value).at(scope="prompt")
        assert len(MODEL.generate(X, edits=narrow, max_new_tokens=3, stop_at_eos=False).new[0]) == 3


def test_a_value_with_generated_tokens_reaches_them():
    made = MODEL.generate(UNEQUAL, max_new_tokens=4, stop_at_eos=False)
    source = MODEL.run(made.ids, capture=SITE, edits=edits.scale(SITE, -2.0))
    again = MODEL.generate(UNEQUAL, edits=edits.patch(SITE, source), max_new_tokens=4, stop_at_eos=False)
    for i, row in enumerate(UNEQUAL):
        for _ in range(4):
            value = source[SITE][i, : len(row)]
            write = by_hand(SITE, lambda x, value=value: x.copy_(value[None]))
            row = [*row, int(logits([row], write).argmax())]
        assert again.ids.rows()[i] == row


def test_what_a_run_kept_is_what_is_written():
    part = MODEL.run(Y, capture=["z.1", SITE], positions=[1, -1], heads=[2])
    whole = MODEL.run(Y, capture=["z.1", SITE])

    def write(x):
        x[:, [1, 3], 2] = whole["z.1"][:, [1, 3], 2]

    found = logits(X, edits.patch("z.1", part).at(positions=[1, -1]))
    torch.testing.assert_close(found, logits(X, by_hand("z.1", write)), **CLOSE)
    with pytest.raises(BadInput, match=r"nothing for token 0 of row 0.*positions that the run kept"):
        logits(X, edits.patch("z.1", part))
    with pytest.raises(BadInput, match=r"kept heads \[2\], the edit reaches 1"):
        logits(X, edits.patch("z.1", part).at(positions=1, heads=[1, 2]))


def test_a_runs_rows_of_other_lengths_are_refused():
    for rows in ([row[:3] for row in OTHERS], [[*row, 5] for row in OTHERS]):
        with pytest.raises(BadInput, match=r"row \d has \d tokens and the value's \d; take what you mean"):
            logits(UNEQUAL, edits.patch(SITE, MODEL.run(rows, capture=SITE)).at(positions=-1))
    with pytest.raises(BadInput, match="2 along 'batch', not 3"):
        logits(UNEQUAL, edits.patch(SITE, MODEL.run(OTHERS[:2], capture=SITE)))
    with pytest.raises(BadInput, match="knows its tokens"):
        edits.patch(SITE, MODEL.run(OTHERS, capture=SITE), axes="batch position d_model")


def test_a_longer_prompts_run_is_no_value_for_generated_tokens():
    longer = MODEL.run([[*row, 5, 6, 7] for row in OTHERS], capture=SITE)
    with pytest.raises(BadInput, match="row 0 has 3 tokens and the value's 6"):
        MODEL.generate(UNEQUAL, edits=edits.patch(SITE, longer), max_new_tokens=3)


@pytest.mark.parametrize("site", ["pattern.1", "scores.1"])
def test_kept_queries_of_a_pattern_have_all_keys(site):
    whole = MODEL.run(Y, capture=site)
    part = MODEL.run(Y, capture=site, positions=[3, 1, 2, 0])
    torch.testing.assert_close(logits(X, edits.patch(site, part)), logits(X, edits.patch(site, whole)), **CLOSE)
    some = edits.patch(site, MODEL.run(Y, capture=site, positions=[1, -1])).at(positions=[1, -1])
    expected = logits(X, edits.patch(site, whole).at(positions=[1, 3]))
    torch.testing.assert_close(logits(X, some), expected, **CLOSE)


@pytest.mark.parametrize("memory", [None, "1MB"])
def test_values_by_row_in_a_run_in_parts(memory):
    other = MODEL.run(OTHERS * 40, capture=SITE)
    last = edits.patch("mlp_out.2", MODEL.run(OTHERS * 40, capture="mlp_out.2").last("mlp_out.2"), axes="batch d_model")
    given = [edits.patch(SITE, other), last.at(positions=-1)]
    found = MODEL.run(UNEQUAL * 40, edits=given, logits="last", memory=memory).logits
    torch.testing.assert_close(found[:3], found[-3:], **CLOSE)
    torch.testing.assert_close(found[:3], logits(UNEQUAL, [edits.patch(SITE, MODEL.run(OTHERS, capture=SITE)),
        edits.patch("mlp_out.2", MODEL.run(OTHERS, capture="mlp_out.2").last("mlp_out.2"), axes="batch d_model").at(
            positions=-1)]), **CLOSE)  # fmt: skip


# ---------------------------------------------------------------------- vectors and amounts
def test_vectors_that_are_added_or_projected_out():
    by_rows = torch.randn(4, 32, generator=DRAW)
    found = logits(X, edits.add((SITE, by_rows), 2.0, axes="batch d_model"))
    torch.testing.assert_close(found, logits(X, by_hand(SITE, lambda x: x.add_(2 * by_rows[:, None]))), **CLOSE)
    by_heads = torch.randn(4, 8, generator=DRAW)
    found = logits(X[:3, :3], edits.ablate(("z.1", by_heads)))

    def project(x):
        for head, v in enumerate(by_heads):
            x[:, :, head] -= (x[:, :, head] @ v)[..., None] * v / v.square().sum()

    torch.testing.assert_close(found, logits(X[:3, :3], by_hand("z.1", project)), **CLOSE)
    with pytest.raises(BadInput, match="add at resid_post.1: a value .* can be"):
        edits.add((SITE, by_rows))
    with pytest.raises(BadInput, match="a direction is a vector"):
        edits.ablate((SITE, torch.tensor(1.0)))
    with pytest.raises(BadInput, match="8 along 'd_model', not 32"):
        logits(X, edits.add((SITE, torch.ones(8))))


@pytest.mark.parametrize("amount", [[1.0], [1.0, 2.0], torch.ones(5), torch.ones(4, 4)])
def test_amounts_of_another_number_than_rows_are_refused(amount):
    with pytest.raises(BadInput, match="one a row"):
        logits(X, edits.add((SITE, torch.ones(32)), amount))
    with pytest.raises(BadInput, match="one a row"):
        logits(X, edits.scale(SITE, amount))


def test_an_amount_for_each_row_of_a_scale():
    amounts = [0.0, 1.0, 2.0, -1.0]
    expected = torch.cat([logits(X[[i]], edits.scale("z.1", amount)) for i, amount in enumerate(amounts)])
    torch.testing.assert_close(logits(X, edits.scale("z.1", amounts)), expected, **CLOSE)


def test_a_function_that_writes_in_place_changes_chosen_tokens_alone():
    found = MODEL.run(X, capture=SITE, edits=edits.function(SITE, lambda x: x.mul_(0)).at(positions=1, rows=[2]))[SITE]
    expected = MODEL.run(X, capture=SITE)[SITE].clone()
    expected[2, 1] = 0
    torch.testing.assert_close(found, expected)
    with pytest.raises(BadInput, match="returned shape NoneType"):
        logits(X, edits.function(SITE, lambda x: None))


# ---------------------------------------------------------------------- numbers that are not finite
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_edit_that_overflows_is_refused_with_the_numbers(dtype):
    from monosem.models import Model
    from tiny import tiny_hf

    half = Model(tiny_hf("llama").to(dtype), None, "half")
    big = 1e5 if dtype == torch.float16 else 3e38
    with pytest.raises(BadInput, match=rf"scale by .* at mlp_post.1 makes -?inf of .*{dtype} holds up to"):
        half.generate(X, edits=[edits.scale("mlp_post.1", 1e2), edits.scale("mlp_post.1", big)], max_new_tokens=2)
    with pytest.raises(BadInput, match="makes nan of"):
        half.run(X, edits=edits.patch(SITE, float("nan")))
    with pytest.raises(BadInput, match="the logits of row 0 are NaN"):
        half.run(X, edits=edits.scale("ln2_scale.1", 0.0))
    half.run(X, edits=edits.function("logits", lambda x: x.index_fill(-1, torch.tensor([5]), -torch.inf)))


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_an_edit_whose_square_overflows_is_refused(size):
    """The norm after it would divide the token by infinity: finite logits, of nothing."""
    for edit in (edits.patch(SITE, size), edits.add((SITE, torch.ones(32)), size), edits.scale("mlp_out.0", size)):
        for call in (lambda e: logits(X, e), lambda e: MODEL.generate(X, edits=e, max_new_tokens=2)):
            with pytest.raises(BadInput, match=r"numbers beyond 1e\+17 overflows in the next norm"):
                call(edit)
    assert logits(X, edits.patch(SITE, 1e16)).isfinite().all()
    assert logits(X, edits.patch("scores.1", -1e30)).isfinite().all()  # scores are no vectors


@pytest.mark.parametrize("value", [1e39, 1e300, float("inf"), float("nan")])
def test_amounts_are_finite_as_the_model_computes(value):
    with pytest.raises(BadInput, match="an amount must be finite in float32, not"):
        logits(X, edits.scale(SITE, value))


# ---------------------------------------------------------------------- rows that are missed
@pytest.mark.parametrize(
    ("positions", "row"), [(3, 0), (-4, 0), ([0, 4], 0), (slice(3, None), 0), (torch.tensor([-5]), 0), (slice(4, 9), 0)]
)
def test_positions_that_a_row_lacks_are_refused(positions, row):
    with pytest.raises(EditDidNotFire, match=f"no token of row {row}: it has 3 tokens"):
        logits(UNEQUAL, edits.scale(SITE, 0.0).at(positions=positions))
    have = [1] if not isinstance(positions, int) else [1, 2]
    logits(UNEQUAL, edits.scale(SITE, 0.0).at(positions=positions, rows=have))
    with pytest.raises(EditDidNotFire, match="no token of row 63"):
        MODEL.run([UNEQUAL[1]] * 63 + UNEQUAL, edits=edits.scale(SITE, 0.0).at(positions=positions), memory="300KB")


def test_positions_of_generated_tokens_are_those_that_will_be_read():
    """Of five new tokens four are read, at 3 to 6 in the shortest row."""
    late = edits.scale(SITE, 0.0).at(positions=6)
    MODEL.generate(UNEQUAL, edits=late, max_new_tokens=5, stop_at_eos=False)
    with pytest.raises(EditDidNotFire, match="row 0: it has 3 tokens and no position 7"):
        MODEL.generate(UNEQUAL, edits=late.at(positions=[6, 7]), max_new_tokens=5, stop_at_eos=False)
    with pytest.raises(EditDidNotFire, match="row 0: it has 3 tokens and no position -4"):
        MODEL.generate(UNEQUAL, edits=late.at(positions=-4), max_new_tokens=5)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_edit_of_generated_tokens_leaves_the_first_new_token(steps):
    force = edits.function("logits", lambda x: x.index_fill(-1, torch.tensor([7]), 1e9)).at(scope="generated")
    plain = MODEL.generate(X, max_new_tokens=steps, stop_at_eos=False).new
    found = MODEL.generate(X, edits=force, max_new_tokens=steps, stop_at_eos=False).new
    assert found == [[row[0], *[7] * (steps - 1)] for row in plain]
    kept = MODEL.generate(X, edits=edits.patch(SITE, 0.0).at(scope="generated"), max_new_tokens=1, capture=SITE)
    assert [bool((row[-1] == 0).all()) for row in kept[SITE]] == [True] * 4
