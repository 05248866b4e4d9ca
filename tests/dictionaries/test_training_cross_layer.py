"""Cross-layer transcoders in training: loss and gradients by a slow formula, what is found, saved and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import BATCH, FEATURES, MemoryStream, config, job, losses
from torch import Tensor

from monosem.activations import harvest
from monosem.dictionaries import CrossLayer, load_dictionary
from monosem.dictionaries.training import TrainConfig, train, train_on
from monosem.dictionaries.training.architectures import ARCHITECTURES
from monosem.dictionaries.training.export import About
from monosem.dictionaries.training.form import CrossLayerForm
from monosem.dictionaries.training.forward import passes_of, revival, together, unexplained
from monosem.dictionaries.training.kinds import KINDS
from monosem.dictionaries.training.state import TrainingState
from monosem.dictionaries.training.step import train_step
from monosem.errors import BadInput, UnknownName
from monosem.jobs import Health
from monosem.models import Site

D, LAYERS, CPU = 12, 3, torch.device("cpu")


class Layered(MemoryStream):
    """Features of each layer's input; each writes to its own layer's output and to the later ones."""

    def __init__(self, seed: int = 0, **options: Any):
        super().__init__(seed, **options)
        generator = torch.Generator().manual_seed(5)
        self.read = torch.nn.functional.normalize(torch.randn(LAYERS, 24, D, generator=generator), dim=-1)
        self.write = torch.randn(LAYERS, 24, LAYERS, D, generator=generator)
        for layer in range(LAYERS):
            self.write[layer, :, :layer] = 0

    def __next__(self) -> Any:
        self.given += 1
        active = torch.rand(LAYERS, BATCH, 24, generator=self.generator) < 2 / 24
        codes = active * (torch.rand(LAYERS, BATCH, 24, generator=self.generator) + 0.5)
        sizes = torch.tensor([1.0, 20.0, 5.0])[:, None, None]
        x = sizes * (codes @ self.read + 1)
        y = (torch.einsum("snf,sftd->tnd", codes, self.write) - 2) * sizes.flip(0)
        named = zip(("mlp_input", "mlp_out"), (x, y))
        return {Site(name, layer): rows[layer] for name, rows in named for layer in range(LAYERS)}


def layered(steps: int = 30, **changes: Any) -> TrainConfig:
    fields = {"site": "mlp_input.0-2", "site_out": "mlp_out.0-2", "kind": "batchtopk", "width": FEATURES, "k": 2}
    return config(steps, **fields | changes)


FREE: dict[str, dict[str, Any]] = {
    "topk": {"k": 2},
    "batchtopk": {"k": 2},
    "jumprelu": {"k": None, "target_l0": 3.0, "bandwidth": 0.05},
    "relu": {"k": None, "sparsity": 0.1},
}


def random_clt(settings: TrainConfig) -> CrossLayerForm:
    torch.manual_seed(0)
    form: Any = ARCHITECTURES["cross_layer"].form(settings, [torch.randn(D) for _ in range(2 * LAYERS)])
    with torch.no_grad():
        for layer in form.layers:
            layer.form.b_enc.copy_(0.3 * torch.randn(FEATURES))
            for name in layer.form.own:
                layer.form.own[name].add_(0.3 * torch.rand(FEATURES))
    return form


def slow(form: CrossLayerForm, x: Tensor, codes_of: Any) -> tuple[list[Tensor], list[Tensor]]:
    """y[t] = b[t] + Σ_{s ≤ t} codes[s] W_dec[s][:, t − s], term by term."""
    forms: Any = form.forms
    codes = [codes_of(s, (x[s] - one.b_in) @ one.W_enc.T + one.b_enc) for s, one in enumerate(forms)]
    y = []
    for t in range(LAYERS):
        total = forms[0].b_dec[t * D : (t + 1) * D]
        for s in range(t + 1):
            total = total + codes[s] @ forms[s].W_dec[:, (t - s) * D : (t - s + 1) * D]
        y.append(total)
    return codes, y


def batchtopk(s: int, pre: Tensor) -> Tensor:
    return pre.relu() * (pre >= pre.detach().flatten().topk(2 * len(pre)).values.min())


@pytest.mark.parametrize("kernels", ["sparse", "dense"])
def test_the_loss_and_its_gradients_are_those_of_the_slow_formula(kernels: str) -> None:
    settings = layered(kernels=kernels)
    x, y = 2 * torch.randn(LAYERS, 70, D), torch.randn(LAYERS, 70, D)
    found = []
    for direct in (False, True):
        form = random_clt(settings)
        if direct:
            _, guess = slow(form, x, batchtopk)
            loss = sum(((y[t] - guess[t]) ** 2).sum(1).mean() for t in range(LAYERS)) / 5.0
        else:
            done = together(form, passes_of(form, torch.cat([*x], 1), settings, CPU))
            loss = unexplained(done, torch.cat([*y], 1), settings, 5.0)
        loss.backward()  # type: ignore[union-attr]
        found.append((loss, {name: p.grad for name, p in form.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
    assert not [name for name in found[0][1] if name.endswith("b_dec") and not name.startswith("forms.0")]


def test_the_penalty_is_the_mean_over_layers_of_each_layer() -> None:
    """As a step logs it: L0 against its target in each layer."""
    settings, stream = layered(kind="jumprelu", k=None, target_l0=3.0, sparsity_warmup=0.0), Layered()
    state = TrainingState.begin(settings, [tuple(next(stream).values())], CPU)
    batch = tuple(next(stream).values())
    form: Any = state.form
    x = torch.stack([rows * scale for rows, scale in zip(batch[:LAYERS], state.scales)])
    theta = [one.own["threshold"] for one in form.forms]
    codes, guess = slow(form, x, lambda s, pre: pre * (pre > theta[s]))
    y = torch.stack([rows * scale for rows, scale in zip(batch[LAYERS:], state.scales[LAYERS:])])
    l0 = torch.stack([(one > 0).float().sum(1).mean() for one in codes])
    expected = ((l0 / 3 - 1) ** 2).mean()
    error = (y - torch.stack(guess)).square().sum((0, 2)).mean() / state.variance
    record = train_step(state, settings, batch, CPU, Health(CPU), logged=True)
    assert record["sparsity"] == pytest.approx(float(expected), rel=1e-5)
    assert record["loss"] == pytest.approx(float((expected + error).detach()), rel=1e-5)
    assert record["l0"] == pytest.approx(float(l0.sum()), rel=1e-5)
    spread = (y - y.mean(1, keepdim=True)).square().sum()
    rest = ((y - torch.stack(guess)).square().sum() / spread).detach()
    assert record["fve"] == pytest.approx(float(1 - rest), abs=1e-5)


def test_dead_latents_of_each_layer_learn_what_is_left_over_of_its_outputs() -> None:
    form, settings = random_clt(layered()), layered()
    x, residual = torch.randn(LAYERS, 50, D), torch.randn(50, LAYERS * D)
    dead = [torch.tensor([3, 9]), torch.tensor([], dtype=torch.long), torch.tensor([1, 2, 40])]
    expected = torch.zeros(())
    for s, some in enumerate(dead):
        if len(some):
            one: Any = form.forms[s]
            codes = ((x[s] - one.b_in) @ one.W_enc[some].T + one.b_enc[some]).relu()
            rest = residual[:, s * D :]
            error = (rest - codes @ one.W_dec[some]).square().sum(1).mean()
            expected = expected + error / (rest - rest.mean(0)).square().sum(1).mean() * min(len(some) / 8, 1)
    found = revival(form, torch.cat([*x], 1), residual, dead, 8, settings.kind == "abstopk")
    torch.testing.assert_close(found, expected / LAYERS)


@pytest.mark.parametrize("kind", FREE)
def test_the_file_computes_on_raw_activations_what_the_form_does(tmp_path: Path, kind: str) -> None:
    settings = layered(kind=kind, **FREE[kind])
    form, scales = random_clt(settings), [0.5, 0.01, 3.0, 2.0, 0.2, 7.0]
    x = 2 * torch.randn(LAYERS, 80, D)
    passes = passes_of(form, torch.cat([*x], 1), settings, CPU)
    done = together(form, passes)
    floors = [float(one.floor) * (1 - 1e-6) for one in passes] if KINDS[kind].one_threshold else None
    made = ARCHITECTURES["cross_layer"].exported(form, settings, scales, floors, About("tiny", "run", {}))
    made.save(tmp_path / "made")
    loaded = load_dictionary(tmp_path / "made")
    assert isinstance(loaded, CrossLayer)
    raw = x / torch.tensor(scales[:LAYERS])[:, None, None]
    y = loaded(raw) * torch.tensor(scales[LAYERS:])[:, None, None]
    torch.testing.assert_close(torch.cat([*y], 1), done.reconstruction, atol=1e-3, rtol=1e-4)
    active = torch.stack([(one.values != 0).sum(-1) for one in loaded.encode(raw)])
    assert int(active.sum()) == int(done.active)
    assert loaded.k == (2 if kind == "topk" else None)
    if kind == "topk":
        assert active.tolist() == [[2] * 80] * LAYERS
    for layer in range(LAYERS):
        norms = loaded.rows(layer, range(FEATURES)).flatten(1).norm(dim=1)
        norms = norms.mean() if kind == "topk" else norms  # of all together: the order of codes is that of training
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert [str(site) for site in loaded.sites_out] == ["mlp_out.0", "mlp_out.1", "mlp_out.2"]
    assert (tmp_path / "made" / "W_dec_2.safetensors").is_file()


@pytest.mark.parametrize("kind", FREE)
def test_a_trained_one_explains_all_outputs(tmp_path: Path, kind: str) -> None:
    """More than transcoders that do not write to later layers could."""
    stream, seen = Layered(), []
    settings = layered(700, kind=kind, log_every=100, **FREE[kind])
    train_on(stream, settings, folder=tmp_path, quiet=True, on_step=seen.append)
    loaded: Any = load_dictionary(tmp_path)
    batch = list(next(Layered(seed=7)).values())
    x, y = torch.stack(batch[:LAYERS]), torch.stack(batch[LAYERS:])
    spread = (y - y.mean(1, keepdim=True)).square().sum((1, 2))
    fve = 1 - (y - loaded(x)).square().sum((1, 2)) / spread
    assert fve.min() > 0.45
    codes = loaded.encode(x)
    own = torch.stack([codes[t].dense() @ loaded.rows(t, range(FEATURES))[:, 0] for t in range(LAYERS)])
    own = own - own.mean(1, keepdim=True) + y.mean(1, keepdim=True)
    alone = 1 - (y - own).square().sum((1, 2)) / spread
    assert fve[2] > alone[2] + 0.2  # a third of what the last layer writes comes of its own latents
    card = json.loads((tmp_path / "dictionary" / "card.json").read_text())
    assert card["finished"]
    assert card["last_activations"]["saved"]["fve"] == pytest.approx(seen[-1]["fve"], abs=0.1)
    assert loaded.card == card


def test_a_killed_run_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(record: dict[str, float]) -> None:
        if record["step"] == 17:
            raise Killed

    settings = layered(40, checkpoint_tokens=7 * BATCH, dead_tokens=BATCH)
    whole: Any = train_on(Layered(), settings, folder=tmp_path / "whole", quiet=True)
    with pytest.raises(Killed):
        train_on(Layered(), settings, folder=tmp_path / "run", quiet=True, on_step=kill)
    again: Any = train_on(Layered(), settings, folder=tmp_path / "run", quiet=True)
    assert all(torch.equal(one, other) for one, other in zip(again.W_dec, whole.W_dec))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_from_text_with_a_card(tiny_model: Any, tmp_path: Path) -> None:
    settings = job(tmp_path, model="llama", site="mlp_input.0-1", site_out="mlp_out.0-1", kind="batchtopk")
    settings = settings.model_copy(update={"held_out": settings.texts, "held_out_tokens": 300})
    model = tiny_model("llama")
    train(settings, folder=tmp_path / "run", model=model, quiet=True)
    loaded: Any = load_dictionary(tmp_path / "run")
    loaded.check(model)
    (batch,) = harvest(model, torch.randint(3, 100, (4, 16)), settings.sites, batch_size=4)
    y = loaded({site: batch[site] for site in settings.reads})
    assert [str(site) for site in y] == settings.writes
    assert loaded.card["held_out"][settings.texts[0]]["fve"] > 0.2
    assert loaded.card["training"]["site_out"] == "mlp_out.0-1"
    with pytest.raises(UnknownName, match="mlp_input.3: llama has layers 0 to 2"):
        train(job(tmp_path, site="mlp_input.0-9", site_out="mlp_out.0-9", kind="relu", k=None),
              folder=tmp_path / "b", model=model, quiet=True)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "abstopk"},
            "no file format holds a cross-layer transcoder of kind abstopk; take topk or batchtopk or",
        ),
        (
            {"kind": "gated", "k": None},
            "there is not a cross-layer transcoder of kind gated; take topk or batchtopk or",
        ),
        ({"skip_connection": True}, "skip_connection is of a transcoder; leave it out"),
        ({"start": "x"}, "start: a cross-layer transcoder starts anew"),
        ({"site_out": "mlp_out.0-1"}, "site_out: files of cross-layer transcoders hold one place in each layer from 0"),
        ({"site": "mlp_input.1-3"}, "site: files of cross-layer transcoders hold one place in each layer from 0"),
        ({"site": "z.0,mlp_input.1-2"}, "site: files of cross-layer transcoders hold one place"),
    ],
)
def test_settings_that_cross_layer_transcoders_do_not_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        layered(**changes)


def test_sites_of_different_widths(tmp_path: Path) -> None:
    class Uneven(Layered):
        def __next__(self) -> Any:
            return {site: x[:, : D - (site.name == "mlp_out")] for site, x in super().__next__().items()}

    with pytest.raises(BadInput, match="a cross-layer transcoder needs sites of one width"):
        train_on(Uneven(), layered(), folder=tmp_path, quiet=True)
