"""Sparse feature circuits: edges against the chain rule and runs with all else held; circuits run alone."""

import pytest
import torch

from monosem import edits
from monosem.data import TokenPairs
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.latents import Means, exact_latents, feature_circuit, latent_scores
from tiny_circuits import logit_gap, random_pairs, wide
from tiny_dictionaries import random_tensors, tiny_dictionary

PLAIN = {"skip_rule": {"special": False, "first": 0, "outlier": None}}
LATER = {"skip_rule": {"special": True, "first": 1, "outlier": None}}


def coder(site, seed, kind="relu", metadata=PLAIN, **about):
    tensors = random_tensors(32, 20, seed, (0.3, 0.3), torch.float64)
    return tiny_dictionary(kind, tensors, site=site, model_name="", name=site, metadata=metadata, **about)


def dictionaries(metadata=PLAIN):
    return [
        coder("resid_post.1", 4, "topk", k=5, metadata=metadata),
        coder("resid_post.0", 1, metadata=metadata),
        coder("z.1", 2, metadata=metadata),
        coder("ln2_output.1", 3, site_out="mlp_out.1", transcoder=True, metadata=metadata),
    ]


@pytest.mark.parametrize("other", ["zero", "corrupted"])
@pytest.mark.parametrize(("by", "metadata"), [("latent", PLAIN), ("token", LATER)])
def test_edges_into_all_nodes_and_the_metric_add_up_to_the_score(other, by, metadata):
    """The chain rule: nothing is lost and nothing is counted twice."""
    model, pairs = wide("gpt2"), random_pairs(wide("gpt2"), (5, 5))
    circuit = feature_circuit(
        model, pairs, dictionaries(metadata), metric=logit_gap, other=other, by=by, node_threshold=0,
        edge_threshold=0, n_nodes=10_000, quiet=True,
    )  # fmt: skip
    assert [str(one.site_out) for one in circuit.dictionaries] == ["resid_post.0", "z.1", "mlp_out.1", "resid_post.1"]
    sums = circuit.edges.groupby("source")["weight"].sum()
    for node in circuit.nodes.itertuples():
        assert sums.get(node.id, 0.0) == pytest.approx(node.score, abs=1e-9)
    assert circuit.nodes.score.abs().max() > 0.01
    assert circuit.inputs("metric").target.eq("metric").all()
    for number, one in enumerate(circuit.dictionaries):
        scores = latent_scores(model, pairs, one, metric=logit_gap, other=other, by=by, quiet=True)
        torch.testing.assert_close(circuit.scores[number].values, scores.values)


def test_an_edge_is_a_run_with_all_other_nodes_held():
    """u changes by a little, what lies between has its clean value; v's answer counts by what the metric makes of v."""
    model, (late, early, heads, coder_) = wide("gpt2"), dictionaries()
    pairs, step = random_pairs(model, (5,)), 1e-5
    circuit = feature_circuit(
        model, pairs, [late, early, heads, coder_], metric=logit_gap, node_threshold=0, edge_threshold=0,
        n_nodes=10_000, quiet=True,
    )  # fmt: skip
    clean = model.run(pairs.clean, capture=[early.site, heads.site, late.site, coder_.site, coder_.site_out])
    codes = early.encode(clean[early.site]).dense()

    def changed(latent, sign, held):
        delta = -sign * step * codes[..., latent, None] * early.W_dec[latent]
        hold = [edits.function(site, lambda x, site=site: clean[site]) for site in held]
        move = edits.function(early.site, lambda x: x + delta)
        return model.run(pairs.clean, capture=[heads.site, coder_.site], edits=[move, *hold], logits="last")

    def gradient(dictionary, latent, position):
        """Of the metric by a latent's activation, central differences."""
        gaps = []
        for sign in (1, -1):
            delta = torch.zeros_like(clean[dictionary.site_out].flatten(2))
            delta[0, position] = sign * step * dictionary.W_dec[latent]
            edit = edits.function(dictionary.site_out, lambda x, delta=delta: x + delta.reshape(x.shape))
            gaps.append(float(logit_gap(model.run(pairs.clean, edits=edit, logits="last").logits, pairs, None)))
        return (gaps[0] - gaps[1]) / (2 * step)

    checked = 0
    weights = circuit.edges.set_index(["source", "target"])["weight"]
    for latent in (0, 3, 6, 11):
        for target, held in ((heads, []), (coder_, [heads.site])):
            runs = [target.encode(changed(latent, sign, held)[target.site].flatten(2)).dense() for sign in (1, -1)]
            moved = (runs[0] - runs[1])[0] / (2 * step)
            for node in (1, 5, 9):
                there = moved[:, node]
                expected = -sum(
                    float(there[p]) * gradient(target, node, p) for p in range(5) if abs(float(there[p])) > 1e-12
                )
                found = weights.get((f"resid_post.0/{latent}", f"{target.site_out}/{node}"), 0.0)
                assert found == pytest.approx(expected, abs=1e-6)
                checked += abs(expected) > 1e-5
    assert checked > 3


@pytest.mark.parametrize("metadata", [PLAIN, LATER])
def test_all_nodes_are_the_model_and_none_are_the_other_run(metadata):
    model = wide("gpt2")
    pairs, listed = random_pairs(model, (5, 4)), dictionaries(metadata)
    about = {"metric": logit_gap, "other": "corrupted", "quiet": True, "edge_threshold": 1e9}
    whole = feature_circuit(model, pairs, listed, node_threshold=0, n_nodes=10_000, **about)
    for mask in whole.masks:
        mask[:] = True
    found = whole.faithfulness(model, pairs)
    rows = found.table.set_index("arm")["mean"]
    assert rows["circuit"] == pytest.approx(rows["model"], abs=1e-9)
    assert found.faithfulness == pytest.approx(1, abs=1e-6)
    sites = [one.site_out for one in listed]
    there = model.run(pairs.corrupted, capture=sites)
    first = 1 if metadata is LATER else 0

    def put(site):
        def fn(x):
            made = x.clone()
            made[:, first:] = there[site][:, first:]
            return made

        return edits.function(site, fn)

    logits = model.run(pairs.clean, edits=[put(site) for site in sites], logits="last").logits
    assert rows["nothing"] == pytest.approx(float(logit_gap(logits, pairs, None).mean()), abs=1e-9)
    few = feature_circuit(model, pairs, listed, node_threshold=0, n_nodes=12, **about)
    assert len(few.nodes) == 12
    alone = few.faithfulness(model, pairs)
    assert alone.table.set_index("arm")["share"]["nothing"] == 0
    assert 0 < abs(alone.faithfulness) < 5
    assert alone.faithfulness != pytest.approx(alone.completeness)


@pytest.mark.parametrize("metadata", [PLAIN, LATER])
def test_means_take_the_place_of_what_is_left_out(metadata):
    """Of every latent and of the activation, over the tokens that count; nothing kept is all means, by hand."""
    model, prompts = wide("gpt2"), [[13, 8, 21, 15], [9, 12], [40, 17, 11]]
    pairs, listed, first = random_pairs(model, (5, 4)), dictionaries(metadata), 1 if metadata is LATER else 0
    means = Means.of(model, listed, prompts, batch_size=2)
    states = {one.site_out: [] for one in listed}
    for row in prompts:
        run = model.run([row], capture=[*{site for one in listed for site in (one.site, one.site_out)}])
        for one in listed:
            codes = one.encode(run[one.site].flatten(2)).dense()
            states[one.site_out] += [*zip(codes[0, first:], run[one.site_out].flatten(2)[0, first:])]
    for site, rows in states.items():
        written, x = (torch.stack(side).mean(0) for side in zip(*rows))
        torch.testing.assert_close(means.written[site], written, rtol=0, atol=1e-10)
        torch.testing.assert_close(means.x[site], x, rtol=0, atol=1e-10)
        assert means.tokens[site] == len(rows) == 9 - 3 * first
    about = {"metric": logit_gap, "other": means, "quiet": True}
    circuit = feature_circuit(model, pairs, listed, node_threshold=0, edge_threshold=0, n_nodes=10_000, **about)
    sums = circuit.edges.groupby("source")["weight"].sum()
    assert max(abs(sums.get(node.id, 0.0) - node.score) for node in circuit.nodes.itertuples()) < 1e-9
    found = circuit.faithfulness(model, pairs)

    def put(site):
        def fn(x):
            made = x.clone()
            made[:, first:] = means.x[site].reshape(x.shape[2:]).to(x)
            return made

        return edits.function(site, fn)

    logits = model.run(pairs.clean, edits=[put(one.site_out) for one in listed], logits="last").logits
    rows = found.table.set_index("arm")["mean"]
    assert rows["nothing"] == pytest.approx(float(logit_gap(logits, pairs, None).mean()), abs=1e-9)
    late = listed[0]
    codes = late.encode((clean := model.run(pairs[:1].clean, capture=late.site, logits="last"))[late.site]).dense()
    most = int((means.written[late.site] - codes[0, first:]).abs().sum(0).argmax())
    alone = exact_latents(model, pairs[:1], late, [most], **about)
    change = (means.written[late.site][most] - codes[..., most, None]) * late.W_dec[most]
    change[:, :first] = 0
    moved = model.run(pairs[:1].clean, edits=[edits.function(late.site, lambda x: x + change)], logits="last")
    expected = float((logit_gap(clean.logits, pairs[:1], None) - logit_gap(moved.logits, pairs[:1], None)).sum())
    assert float(alone.values[0, most]) == pytest.approx(expected, abs=1e-9)
    assert abs(expected) > 1e-3
    with pytest.raises(Mismatch, match="these means are of"):
        latent_scores(model, pairs, listed[1], metric=logit_gap, other=Means.of(model, late, prompts), quiet=True)
    with pytest.raises(BadInput, match="no token of these prompts"):
        Means.of(model, dictionaries(LATER), [[5], [7]])


def test_thresholds_leave_out_and_the_picture_is_saved(tmp_path):
    model = wide("gpt2")
    pairs = random_pairs(model, (5,))
    every = feature_circuit(model, pairs, dictionaries(), metric=logit_gap, node_threshold=0, quiet=True)
    size = float(every.nodes.score.abs().median())
    some = feature_circuit(
        model, pairs, dictionaries(), metric=logit_gap, node_threshold=size, edge_threshold=size / 4, quiet=True
    )
    assert {*some.nodes.id} == {*every.nodes.id[every.nodes.score.abs() >= size]}
    assert some.edges.weight.abs().min() >= size / 4
    assert 0 < len(some.edges) < len(every.edges)
    some.save(tmp_path / "circuit.html")
    words = some.plot().data[-1].text
    assert [word.split(":")[0] for word in words] == [*some.nodes.id, "metric"]
    mean = feature_circuit(
        model, pairs, dictionaries(), method="integrated", metric=logit_gap, node_threshold=0, quiet=True
    )
    assert not torch.allclose(mean.scores[0].values, every.scores[0].values)


def test_bad_input_is_refused():
    model, (_, early, *_) = wide("gpt2"), dictionaries()
    pairs = random_pairs(model, (5,))
    circuit = feature_circuit(model, pairs, [early], metric=logit_gap, by="token", node_threshold=0, quiet=True)
    longer = TokenPairs.of(model, [[5, 6, 7]], [[5, 7, 8]], right=[5], wrong=[9])
    for wrong, error, says in [
        (lambda: feature_circuit(model, pairs, []), BadInput, "one at least"),
        (lambda: feature_circuit(model, pairs, [early, early]), BadInput, "two dictionaries write resid_post.0"),
        (
            lambda: feature_circuit(model, pairs, [early], node_threshold=1e6, quiet=True),
            BadInput,
            "lower node_threshold",
        ),
        (lambda: feature_circuit(model, pairs, [early], edge_threshold=-1), BadInput, "edge_threshold"),
        (lambda: feature_circuit(model, pairs, [early], method="direct"), UnknownName, "direct"),
        (lambda: circuit.inputs("x"), UnknownName, "'x'"),
        (lambda: circuit.faithfulness(model, longer), BadInput, "5 tokens"),
    ]:
        with pytest.raises(error, match=says):
            wrong()
