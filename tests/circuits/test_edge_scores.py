"""Scores of edges against autograd through masks, exact runs, identities, and what EAP-IG gives itself."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from monosem.circuits import EDGE_METHODS, Circuit, attribute, exact, learn_circuit, node_scores
from monosem.circuits.methods import Options
from monosem.circuits.running import run_circuits, run_masks
from monosem.data import TokenPairs
from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from monosem.patching import mean, resample, zero
from tiny import tiny_model
from tiny_circuits import FAMILIES, batch_of, logit_gap, random_pairs, wide

CASES = Path(__file__).parents[3] / "shared" / "cases" / "directions-circuits" / "eap_gpt2"


def in_masks(batch, share: float = 0.0) -> Tensor:
    """-∂(metric)/∂(weight of an edge) of the circuit run at the whole model: autograd through the masks."""
    graph = batch.wiring.graph
    masks = graph.real.expand(graph.shape).double()[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(logit_gap(run_masks(batch, masks, grad=True)[0], batch.pairs, None).sum(), masks)
    return slope[0] * graph.real


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("corruption", [None, zero()], ids=["prompt", "zero"])
def test_eap_is_the_derivative_of_the_circuit_run(family: str, corruption) -> None:
    model = wide(family)
    batch = batch_of(model, random_pairs(model), corruption=corruption)
    scores = EDGE_METHODS["eap"].score(batch, Options())
    assert scores.abs().max() > 0.1
    torch.testing.assert_close(scores, in_masks(batch), rtol=1e-4, atol=2e-6)  # norms are read off in float32


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edges_by_position_are_derivatives_too(family: str) -> None:
    model = wide(family)
    pairs = random_pairs(model, (6, 6))
    batch = batch_of(model, pairs, tuple(map(str, range(6))))
    scores = EDGE_METHODS["eap"].score(batch, Options())
    torch.testing.assert_close(scores, in_masks(batch), rtol=1e-4, atol=2e-6)
    whole = EDGE_METHODS["eap"].score(batch_of(model, pairs), Options())
    torch.testing.assert_close(scores.sum(0, keepdim=True), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_scores_are_circuit_runs_without_the_edge(family: str) -> None:
    model = wide(family)
    pairs = random_pairs(model)
    batch = batch_of(model, pairs)
    graph = batch.wiring.graph
    some = [name for name, _ in graph.names()][:: graph.n_edges // 23]
    scores = exact(model, pairs, some, metric=logit_gap, quiet=True)
    without = [Circuit.full(graph).without(Circuit.of(graph, [name]).edges) for name in some]
    runs = run_circuits(batch, without)
    clean = logit_gap(batch.clean_logits, pairs, None).mean()
    fell = [float(clean - logit_gap(run, pairs, None).mean()) for run in runs]
    assert [float(scores.values[graph.index(name)]) for name in some] == pytest.approx(fell, abs=1e-9)
    assert max(map(abs, fell)) > 0.01
    assert int(scores.values[0][graph.real].isnan().sum()) == graph.n_edges - len(some)


def straightened(model: Model) -> Model:
    """Without norms, softmax or activation functions: attention is even, MLPs and the read-out are linear."""
    for block in model.hf.transformer.h:
        block.ln_1 = block.ln_2 = torch.nn.Identity()
        block.mlp.act = torch.nn.Identity()
        block.attn.c_attn.weight[:, :64] = 0  # queries and keys: every pattern is even
        block.attn.c_attn.bias[:64] = 0
    model.hf.transformer.ln_f = torch.nn.Identity()
    return Model(model.hf, model.tokenizer, name="straight")


def test_in_a_linear_model_eap_is_exact() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model = straightened(model)
    model.hf.double()
    pairs = random_pairs(model)
    found = attribute(model, pairs, "eap", metric=logit_gap, quiet=True)
    true = exact(model, pairs, metric=logit_gap, quiet=True)
    real = found.graph.real
    assert float(true.values[0][real].abs().max()) > 0.05
    torch.testing.assert_close(found.values[0][real], true.values[0][real], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_of_the_input_add_up_to_what_the_metric_falls_by(family: str) -> None:
    model = wide(family)
    found = [attribute(model, random_pairs(model), "eap-ig", metric=logit_gap, steps=n, quiet=True) for n in (4, 64)]
    gaps = [abs(float(one.values[0, 0].sum()) - (one.clean - one.corrupted)) for one in found]
    assert gaps[1] < 1e-2 * abs(found[1].clean - found[1].corrupted) < abs(found[1].clean - found[1].corrupted)
    assert gaps[1] <= gaps[0]


@pytest.mark.parametrize("method", EDGE_METHODS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_neither_batches_nor_padding_change_scores(method: str, family: str) -> None:
    if method == "random":
        return
    model = wide(family)
    pairs = random_pairs(model, (7, 5, 6))
    one, all_at_once = (attribute(model, pairs, method, metric=logit_gap, batch_size=n, quiet=True) for n in (1, 3))
    torch.testing.assert_close(one.values, all_at_once.values, rtol=1e-6, atol=1e-9)
    assert one.values.isfinite().all()


def test_what_eap_ig_with_one_step_is() -> None:
    """One midpoint step is the gradient halfway; both ends alone are clean-corrupted's two halves."""
    model = wide("gpt2")
    batch = batch_of(model, random_pairs(model))
    left, right = (EDGE_METHODS["eap-ig"].score(batch, Options(1, rule)) for rule in ("left", "right"))
    both = EDGE_METHODS["clean-corrupted"].score(batch, Options())
    torch.testing.assert_close((left + right) / 2, both)
    torch.testing.assert_close(right, EDGE_METHODS["eap"].score(batch, Options()))  # no norm behind branches here
    assert (left - right).abs().max() > 1e-3


def test_steps_of_a_path_of_one_are_the_whole_difference() -> None:
    model = wide("llama")
    batch = batch_of(model, random_pairs(model))
    one = [EDGE_METHODS[name].score(batch, Options(1)) for name in ("eap-ig", "eap-ig-path")]
    torch.testing.assert_close(*one, rtol=1e-9, atol=1e-12)


def activations_by_definition(batch, steps: int) -> Tensor:
    """EAP-IG's activations: autograd through masks, one branch's output at a time written on its way to the other."""
    from monosem.circuits.methods import _towards
    from monosem.circuits.slopes import slopes

    wiring, total = batch.wiring, 0
    differences = batch.differences(tangent=False)
    for part in wiring.graph.writes:
        for step in range(steps):
            share = (step + 0.5) / steps
            if part.kind == "input":
                found = batch.slopes([share])
            else:
                edits = [_towards(batch, part, [share])]
                found = slopes(wiring, batch.pairs.clean, batch.embeds([0.0]), batch.measure(), edits=edits)
            total = total - batch.contract(differences, lambda at, found=found: found.of(at, batch.keep))
    return total / (steps * len(wiring.graph.writes))


def test_steps_in_one_batch_are_steps_one_by_one() -> None:
    model = wide("gptj")
    batch = batch_of(model, random_pairs(model))
    together = EDGE_METHODS["eap-ig-activations"].score(batch, Options(3))
    torch.testing.assert_close(together, activations_by_definition(batch, 3), rtol=1e-9, atol=1e-12)


def test_information_flow_is_its_formula_token_by_token() -> None:
    model = wide("gpt2")
    pairs = random_pairs(model)
    found = attribute(model, pairs, "ifr", metric=logit_gap, quiet=True)
    graph, layer, slot = found.graph, 1, "m1"
    total = torch.zeros(len(graph.sources), dtype=torch.float64)
    for ids in pairs.clean.rows():
        run = model.run(
            [ids],
            capture=["resid_pre.0", *(f"{n}.{i}" for n in ("result", "mlp_out") for i in range(2)), "resid_mid.1"],
        )
        parts = [run["resid_pre.0"][0]]
        for number in range(layer + 1):
            parts += list(run[f"result.{number}"][0].unbind(1))
            parts += [run["mlp_out.0"][0]] if number == 0 else []
        stream = run["resid_mid.1"][0]
        for position in range(len(ids)):
            near = torch.stack([
                (stream[position].abs().sum() - (part[position] - stream[position]).abs().sum()).clamp(min=0)
                for part in parts
            ])  # fmt: skip
            total[: len(parts)] += near / near.sum().clamp(min=1e-12) / len(ids)
    column = graph.slots.index(slot)
    torch.testing.assert_close(found.values[0, :, column], total / len(pairs), rtol=1e-8, atol=1e-10)


def test_routes_are_numbers_where_no_source_is_near() -> None:
    """Everything that nodes write points away from the stream, which is made by a bias that is nobody's: 0 / 0 in other
    tools."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.hf.transformer.wpe.weight.zero_()
        model.hf.transformer.wte.weight.copy_(-model.hf.transformer.wte.weight.abs())
        for block in model.hf.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.fill_(50.0)
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.fill_(-0.1)
    found = attribute(model, random_pairs(model), "ifr", quiet=True)
    assert found.values.isfinite().all()
    assert not found.values[0, :, found.graph.slots.index("m0")].any()


# ---------------------------------------------------------------------- what EAP-IG's own package gives
def peer_case() -> tuple[Model, TokenPairs, dict, dict]:
    hf = AutoModelForCausalLM.from_pretrained(CASES, dtype=torch.float64)
    given, own = (json.loads((CASES / f"{name}.json").read_text()) for name in ("eap_scores", "own_float64"))
    model = Model(hf, None, "toy")
    clean, corrupted, answers = zip(*given["pairs"])
    right, wrong = zip(*answers)
    return model, TokenPairs.of(model, list(clean), list(corrupted), right=list(right), wrong=list(wrong)), given, own


@pytest.mark.skipif(not CASES.exists(), reason="the peers' cases are not beside this checkout")
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "rule", "case"),
    [
        ("eap", "midpoint", "EAP"),
        ("eap-ig", "left", "EAP-IG-inputs left m=5"),
        ("eap-ig", "midpoint", "EAP-IG-inputs midpoint m=5"),
    ],
)
def test_scores_of_the_peers_toy(method: str, rule: str, case: str, batch_size: int) -> None:
    """Theirs are divided by batches: of batch size 1 they are the right ones, of 3 a third."""
    model, pairs, given, own = peer_case()
    found = attribute(model, pairs, method, rule=rule, steps=5, batch_size=batch_size, quiet=True)
    torch.testing.assert_close(found.values[0], torch.tensor(own[case], dtype=torch.float64), rtol=0, atol=1e-7)
    theirs = {"EAP": "EAP/batch1", "EAP-IG-inputs left m=5": "EAP-IG-inputs@5/batch1"}.get(case)
    if theirs:
        torch.testing.assert_close(found.values[0], torch.tensor(given["scores"][theirs]).double(), rtol=0, atol=2e-6)


# ---------------------------------------------------------------------- bad input
def test_a_metric_that_does_not_tell_the_runs_apart() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(BadInput, match="is 0 on clean and 0 on corrupted"):
        attribute(model, random_pairs(model), "eap", metric=lambda logits, pairs, clean: 0 * logits[:, 0], quiet=True)
    same = TokenPairs.of(model, [[5, 6, 7]], [[5, 6, 7]], right=[5], wrong=[9])
    for scored in (
        lambda: node_scores(model, same, quiet=True),
        lambda: learn_circuit(model, same, 20, steps=1, quiet=True),
        lambda: exact(model, same, quiet=True),
    ):
        with pytest.raises(BadInput, match=r"nothing to (explain|patch)"):
            scored()


def test_bad_options_say_what_to_do() -> None:
    model = tiny_model("gpt2")
    pairs = random_pairs(model)
    with pytest.raises(UnknownName, match="eap-ig"):
        attribute(model, pairs, "eapig", quiet=True)
    with pytest.raises(UnknownName, match="rule"):
        attribute(model, pairs, rule="centre", quiet=True)  # type: ignore[arg-type]
    for steps in (0, 2.5):
        with pytest.raises(BadInput, match="steps counts gradients"):
            attribute(model, pairs, steps=steps, quiet=True)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="needs prompts of one length"):
        attribute(model, pairs, places="positions", quiet=True)
    with pytest.raises(BadInput, match="no span 'subject'"):
        attribute(model, pairs, places=["subject"], quiet=True)
    with pytest.raises(BadInput, match="does not align"):
        TokenPairs.of(model, [[3, 4, 5], [3, 4]], [[3, 4], [3, 4, 5]])
    with pytest.raises(BadInput, match="draws 2: use samples=1"):
        attribute(
            model,
            random_pairs(model, (5, 5)),
            corruption=resample(samples=2),
            quiet=True,
        )


def test_means_count_every_real_token_once() -> None:
    """Of prompts of different lengths: the sum over real tokens by their number, each node with a mean of its own."""
    model = wide("llama")
    pairs = random_pairs(model, (7, 4, 5))
    batch = batch_of(model, pairs, corruption=mean(pairs.clean, outlier=None))
    run = model.run(pairs.clean, capture=["z.1", "mlp_out.0", "resid_pre.0"])
    for part in batch.wiring.graph.writes:
        site = str(batch.wiring.sent(part))
        if site not in ("z.1", "mlp_out.0", "resid_pre.0"):
            continue
        values = [run[site][row, column] for row, column in pairs.clean.mask.nonzero().tolist()]
        by_hand = torch.stack(values).mean(0)
        for row, column in pairs.clean.mask.nonzero().tolist():
            torch.testing.assert_close(batch.other.inner[part][row, column], by_hand)
