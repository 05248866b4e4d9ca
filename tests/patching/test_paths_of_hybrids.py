"""Path patching where layers have a memory, a convolution or experts, against its definition followed run by run."""

from contextlib import ExitStack
from functools import cache

import pytest
import torch
from torch import Tensor

from anymodel import tiny_any
from monosem import edits
from monosem.data import TokenPairs
from monosem.errors import UnknownName
from monosem.models import Branch, Model, Run, Site
from monosem.patching import paths

CLEAN, CORRUPTED = [7, 21, 33, 40, 52, 61, 70, 18, 9], [7, 21, 34, 40, 55, 61, 70, 18, 12]
# senders of an early layer and one of a later layer; receivers of later layers
CASES = {
    "qwen3_next": (["embed", "linear_z.0.1", "mlp_out.0", "linear_z.2.3"], ["q.3.2", "v.3.0", "mlp_in.2", "mlp_in.3"]),
    "olmo_hybrid": (["embed", "linear_z.0.1", "linear_z.2.0", "mlp_out.1"], ["k.3.1", "q.3.0", "mlp_in.1", "mlp_in.3"]),
    "falcon_h1": (["embed", "ssm_z.0.1", "z.1.0", "ssm_z.1.3"], ["q.2.1", "k.3.0", "mlp_in.1", "mlp_in.3"]),
    "bamba": (["embed", "ssm_z.0.2", "mlp_out.0", "ssm_z.1.0"], ["q.2.1", "v.2.0", "mlp_in.1", "mlp_in.3"]),
    "lfm2": (["embed", "conv_out.0", "mlp_out.1", "conv_out.1"], ["q.2.1", "k.2.0", "mlp_in.1", "mlp_in.3"]),
    "jamba": (["embed", "ssm_z.1.3", "z.0.0", "mlp_out.0"], ["mlp_in.2", "mlp_in.1", "mlp_in.3"]),
    "recurrent_gemma": (["embed", "recurrent_out.0", "mlp_out.1", "recurrent_out.1"], ["q.2.1", "k.2.0", "mlp_in.3"]),
}
_CLOSE = {"rtol": 1e-3, "atol": 2e-4}
METRICS = {f"logit {token}": lambda logits, pairs, clean, token=token: logits[:, token] for token in (3, 50, 97)}


@cache
def model_of(kind: str) -> Model:
    return Model(tiny_any(kind), name=kind)


def writes(branch: Branch) -> Site:
    """Where a branch is held: at what its heads give, or at what it adds."""
    return branch.site("z") if branch.units == "head" else branch.out


def recorded(model: Model, base: Run, source: Run, sender: str, freeze: bool) -> tuple[Run, dict[int, Tensor]]:
    """The sender writes as in the source run, other branches as in the base run (MLPs may answer instead)."""
    changes, held = [], [branch for branch in model.branches() if not branch.pointwise or freeze]
    kind, _, rest = sender.partition(".")
    if kind == "embed":
        changes.append(edits.patch("embed", source))
    layer, _, head = rest.partition(".")
    for branch in held:
        site = writes(branch)
        if str(site) == sender or (str(site) == f"{kind}.{layer}" and head):
            value = source[site] if not head else base[site].clone()
            if head:
                value[:, :, int(head)] = source[site][:, :, int(head)]
            changes.append(edits.patch(site, value, tokens=base.tokens))
        else:
            changes.append(edits.patch(site, base))
    if not freeze and kind in {branch.out.name for branch in model.branches() if branch.pointwise}:
        changes.append(edits.patch(sender, source))
    inputs: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for branch in model.branches():
            if branch.name == "mlp":

                def read(module: object, args: tuple[Tensor], layer: int = branch.layer) -> None:
                    inputs[layer] = args[0]

                hooks.callback(branch.module.register_forward_pre_hook(read).remove)
        asked = [Site(name, n) for name in "qkv" for n in model.layers() if model.has((name, n))]
        return model.run(base.tokens, asked, edits=changes), inputs


def received(model: Model, base: Run, run: Run, inputs: dict[int, Tensor], receiver: str) -> Tensor:
    kind, _, rest = receiver.partition(".")
    if kind == "logits":
        return run.logits[:, -1]
    if kind == "mlp_in":
        module = model.branch("mlp", int(rest)).module
        handle = module.register_forward_pre_hook(lambda module, args: (inputs[int(rest)], *args[1:]))
        try:
            return model.run(base.tokens, logits="last").logits
        finally:
            handle.remove()
    layer, head = map(int, rest.split("."))
    value = run[kind, layer]

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, head] = value[:, :, head]
        return x

    return model.run(base.tokens, edits=edits.function((kind, layer), put), logits="last").logits


@pytest.mark.parametrize("freeze", [True, False], ids=["direct", "through"])
@pytest.mark.parametrize("kind", CASES)
def test_every_edge_equals_the_definition(kind: str, freeze: bool) -> None:
    model, (senders, receivers) = model_of(kind), CASES[kind]
    pairs = TokenPairs.of(model, [CLEAN], [CORRUPTED], [11], [12])
    found = paths(model, pairs, senders, [*receivers, "logits"], metric=METRICS, freeze_mlps=freeze, quiet=True)
    sites = ["embed", *map(writes, model.branches())]
    base, source = (model.run(tokens, sites) for tokens in (pairs.clean, pairs.corrupted))
    taken = {sender: recorded(model, base, source, sender, freeze) for sender in senders}
    assert len(found.paths) > len(senders)
    moved = 0
    for number, path in enumerate(found.paths):
        expected = received(model, base, *taken[path.sender.label], path.receiver.label)
        for name, metric in METRICS.items():
            torch.testing.assert_close(
                found.values[name][number].float(),
                metric(expected, pairs, None),
                **_CLOSE,
                msg=f"{path}, {name}",
            )
        moved += bool((found.effects()[number].abs() > 1e-3).any())
    assert moved >= len(found.paths) / 2  # no comparison of zeros


@pytest.mark.parametrize(
    ("kind", "receiver", "reason"),
    [
        ("qwen3_next", "linear_q.0.1", "heads of linear attention do not read it off the stream directly"),
        ("deepseek_v3", "q.1", "heads of latent attention do not"),
        ("mamba2", "ssm_q", "heads of state space do not"),
    ],
)
def test_heads_that_read_in_several_steps_are_senders_alone(kind: str, receiver: str, reason: str) -> None:
    model = model_of(kind)
    pairs = TokenPairs.of(model, [CLEAN], [CORRUPTED], [11], [12])
    with pytest.raises(UnknownName, match=reason):
        paths(model, pairs, "embed", receiver, quiet=True)
