"""Crosscoders in training: the weighted loss by a slow formula, what is found, saved and resumed; two models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import BATCH, FEATURES, MemoryStream, config, job, losses
from torch import Tensor

from monosem.activations import ActivationShards, Second, harvest
from monosem.dictionaries import Crosscoder, load_dictionary
from monosem.dictionaries.training import TrainConfig, train, train_on
from monosem.dictionaries.training.architectures import ARCHITECTURES
from monosem.dictionaries.training.export import About
from monosem.dictionaries.training.form import TrainingForm
from monosem.dictionaries.training.forward import forward_of, unexplained
from monosem.dictionaries.training.kinds import KINDS, Moment
from monosem.dictionaries.training.sites import sites_named
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.models import Site

D, SITES = 16, ["resid_post.0", "resid_post.2", "resid_post.3"]


class Shared(MemoryStream):
    """Each feature has a direction of its own at every site; some features are at one site only."""

    def __init__(self, seed: int = 0, **options: Any):
        super().__init__(seed, **options)
        generator = torch.Generator().manual_seed(5)
        truth = torch.randn(FEATURES, 3, D, generator=generator)
        truth[:20, 1:] = 0  # at the first site alone
        self.directions = truth / truth.norm(dim=(1, 2), keepdim=True)
        self.sizes = torch.tensor([1.0, 30.0, 7.0])

    def __next__(self) -> Any:
        self.given += 1
        active = torch.rand(BATCH, FEATURES, generator=self.generator) < 3 / FEATURES
        codes = active * (torch.rand(BATCH, FEATURES, generator=self.generator) + 0.5)
        x = torch.einsum("nf,fsd->snd", codes, self.directions) * self.sizes[:, None, None] + self.sizes[:, None, None]
        return {Site.parse(site): part for site, part in zip(SITES, x)}


def cross(steps: int = 30, **changes: Any) -> TrainConfig:
    return config(steps, **{"site": "resid_post.0,2-3", "kind": "batchtopk"} | changes)


FREE: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "batchtopk": {"k": 3},
    "matryoshka": {"k": 3, "matryoshka_widths": [16]},
    "jumprelu": {"k": None, "target_l0": 3.0},
    "gated": {"k": None, "sparsity": 0.5},
    "relu": {"k": None, "sparsity": 0.2},
}


def random_crosscoder(settings: TrainConfig, seed: int = 0) -> TrainingForm:
    torch.manual_seed(seed)
    form = ARCHITECTURES["crosscoder"].form(settings, [torch.randn(D) for _ in SITES])
    with torch.no_grad():
        form.W_enc.add_(0.3 * torch.randn(FEATURES, 3 * D))
        form.b_enc.copy_(0.3 * torch.randn(FEATURES))
        form.W_dec.mul_(0.2 + torch.rand(FEATURES, 1)).add_(0.05 * torch.randn(FEATURES, 3 * D))
        form.normalise_decoder()
    return form


def slow(
    x: list[Tensor], W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, weight: float, variance: float
) -> Tensor:
    """Lindsey et al. 2024, by site: Σ_l ‖x_l − y_l‖² + λ Σ_f a_f Σ_l ‖W_dec[f, l]‖; in this package's units."""
    acts = sum((part - b) @ W for part, b, W in zip(x, b_dec, W_enc))
    acts = (acts + b_enc).relu()
    y = [acts @ W_dec[:, site] + b_dec[site] for site in range(3)]
    error = sum(((part - guess) ** 2).sum(1).mean() for part, guess in zip(x, y)) / variance
    norms = sum(W_dec[:, site].norm(dim=1) for site in range(3))
    return error + weight * (acts * norms).sum(1).mean() / variance**0.5


@pytest.mark.parametrize("kernels", ["sparse", "dense"])
def test_the_loss_weighs_codes_by_decoder_norms(kernels: str) -> None:
    """Of any rescaled weights, whose rows have any norms; gradients agree where norms do not change."""
    settings = cross(kind="relu", k=None, sparsity=0.4, sparsity_warmup=0.0)
    form, x = random_crosscoder(settings), [2 * torch.randn(60, D) for _ in SITES]
    together = torch.cat(x, 1)
    done = KINDS["relu"].forward[kernels](form, together, settings)
    penalty = KINDS["relu"].penalty
    assert penalty is not None
    loss = unexplained(done, together, settings, 3.0) + penalty(form, done, together, settings, Moment(0.0, 3.0**0.5))
    loss.backward()

    size = (0.3 + 2 * torch.rand(FEATURES)).requires_grad_(False)  # the same function with rows of any norm
    W_dec = (form.W_dec.detach() * size[:, None]).view(FEATURES, 3, D).requires_grad_()
    W_enc = (form.W_enc.detach() / size[:, None]).view(FEATURES, 3, D).permute(1, 2, 0).clone().requires_grad_()
    b_enc = (form.b_enc.detach() / size).requires_grad_()
    b_dec = form.b_dec.detach().view(3, D).clone().requires_grad_()
    expected = slow(x, W_enc, b_enc, W_dec, b_dec, 0.4, 3.0)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    found = {name: p.grad for name, p in form.named_parameters() if p.grad is not None}
    theirs = W_enc.grad.permute(2, 0, 1).reshape(FEATURES, -1) / size[:, None]  # type: ignore[union-attr]
    torch.testing.assert_close(found["W_enc"], theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["b_enc"], b_enc.grad / size, atol=1e-5, rtol=1e-4)  # type: ignore[operator]
    torch.testing.assert_close(found["b_dec"], b_dec.grad.flatten(), atol=1e-5, rtol=1e-4)  # type: ignore[union-attr]
    # along directions that keep Σ_l ‖W_dec[f, l]‖
    rows = form.W_dec.detach().view(FEATURES, 3, D)
    normal = rows / rows.norm(dim=-1, keepdim=True)
    step = torch.randn(FEATURES, 3, D)
    step -= normal * (step * normal).sum((1, 2), keepdim=True) / 3
    ours = (found["W_dec"].view(FEATURES, 3, D) * step).sum((1, 2))
    torch.testing.assert_close(
        ours, (W_dec.grad * step).sum((1, 2)) * size, atol=1e-4, rtol=1e-3  # type: ignore[operator]
    )  # fmt: skip


def test_batchtopk_chooses_by_weighted_codes() -> None:
    settings = cross(k=4)
    form, x = random_crosscoder(settings), 2 * torch.randn(50, 3 * D)
    size = 0.3 + 2 * torch.rand(FEATURES, 1)
    acts = ((x - form.b_dec) @ (form.W_enc / size).T + form.b_enc / size[:, 0]).relu()
    norms = (form.W_dec * size).view(FEATURES, 3, D).norm(dim=-1).sum(1)
    smallest = (acts * norms).flatten().topk(4 * 50).values.min()
    expected = (acts * (acts * norms >= smallest)) @ (form.W_dec * size) + form.b_dec
    for kernels in ("sparse", "dense"):
        done = KINDS["batchtopk"].forward[kernels](form, x, settings)
        torch.testing.assert_close(done.reconstruction, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", FREE)
def test_the_file_computes_on_raw_activations_what_the_form_does(tmp_path: Path, kind: str) -> None:
    settings = cross(kind=kind, **FREE[kind])
    form, scales = random_crosscoder(settings), [0.5, 0.01, 3.0]
    for name, value in KINDS[kind].own_parameters(settings).items():
        form.own[name] = torch.nn.Parameter(value + 0.3 * torch.rand(FEATURES))
    x = 2 * torch.randn(3, 90, D)
    side_by_side = torch.cat([*x], 1)
    done = forward_of(settings, x.device)(form, side_by_side, settings)
    floors = [float(done.floor) * (1 - 1e-6)] if KINDS[kind].one_threshold else None
    made = ARCHITECTURES["crosscoder"].exported(form, settings, scales, floors, About("tiny", "run", {}))
    made.save(tmp_path / "made")
    loaded = load_dictionary(tmp_path / "made")
    assert isinstance(loaded, Crosscoder)
    raw = x / torch.tensor(scales)[:, None, None]
    y = loaded(raw) * torch.tensor(scales)[:, None, None]
    torch.testing.assert_close(torch.cat([*y], 1), done.reconstruction, atol=1e-3, rtol=1e-4)
    active = (loaded.encode(raw).values != 0).sum(-1)
    assert int(active.sum()) == int(done.active)
    sizes = loaded.W_dec.norm(dim=-1).sum(1)
    assert loaded.k == (3 if kind == "topk" else None)
    if kind == "topk":
        assert active.tolist() == [3] * 90
        assert loaded.scaled([2.0, 3.0, 4.0]).k == 3
        sizes = sizes.mean()  # of all together: the order of codes is that of training
    torch.testing.assert_close(sizes, torch.ones_like(sizes))
    assert [str(site) for site in loaded.sites] == SITES
    assert loaded.kind == KINDS[kind].saved


@pytest.mark.parametrize("kind", FREE)
def test_features_are_found_at_their_sites(tmp_path: Path, kind: str) -> None:
    stream, seen = Shared(), []
    settings = cross(500, kind=kind, log_every=100, **FREE[kind])
    train_on(stream, settings, folder=tmp_path, quiet=True, on_step=seen.append)
    loaded: Any = load_dictionary(tmp_path)
    batch = next(Shared(seed=7))
    x = torch.stack(list(batch.values()))
    error = (x - loaded(x)).square().sum((1, 2)) / (x - x.mean(1, keepdim=True)).square().sum((1, 2))
    fve = 1 - error
    assert fve.min() > 0.5
    truth = stream.directions.flatten(1)
    scaled = loaded.W_dec / stream.sizes[:, None]
    rows = torch.nn.functional.normalize(scaled.flatten(1), dim=1)
    best = (torch.nn.functional.normalize(truth, dim=1) @ rows.T).amax(1)
    assert best.mean() > 0.75  # random rows: 0.4
    assert loaded.card["finished"]
    assert loaded.metadata["scales"][0] / loaded.metadata["scales"][1] == pytest.approx(30, rel=0.2)
    assert loaded.card["last_activations"]["saved"]["l0"] == pytest.approx(seen[-1]["l0"], rel=0.2)


def test_a_killed_run_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(record: dict[str, float]) -> None:
        if record["step"] == 17:
            raise Killed

    settings = cross(40, checkpoint_tokens=7 * BATCH)
    whole = train_on(Shared(), settings, folder=tmp_path / "whole", quiet=True)
    with pytest.raises(Killed):
        train_on(Shared(), settings, folder=tmp_path / "run", quiet=True, on_step=kill)
    again = train_on(Shared(), settings, folder=tmp_path / "run", quiet=True)
    assert torch.equal(again.W_dec, whole.W_dec)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_wild_row_of_any_site_is_left_out(tmp_path: Path) -> None:
    class Wild(Shared):
        def __next__(self) -> Any:
            batch = super().__next__()
            if self.given == 20:
                for row, x in enumerate(batch.values()):
                    x[row] *= 1e4
            return batch

    made = train_on(Wild(), cross(40), folder=tmp_path, quiet=True)
    assert made.metadata["outliers"] == 3


# --- layers and models from text --------------------------------------------------------------------------------------


def test_layers_of_a_model_with_a_card(tiny_model: Any, tmp_path: Path) -> None:
    settings = job(tmp_path, model="llama", site="resid_post.0-1", kind="batchtopk")
    settings = settings.model_copy(update={"held_out": settings.texts, "held_out_tokens": 300})
    model = tiny_model("llama")
    made = train(settings, folder=tmp_path / "run", model=model, quiet=True)
    loaded: Any = load_dictionary(tmp_path / "run")
    measured = loaded.card["held_out"][settings.texts[0]]
    batches = list(harvest(model, Path(settings.texts[0]).read_text().splitlines(), settings.sites, context=16))
    x = torch.stack([torch.cat([batch[site] for batch in batches]) for site in settings.sites])
    y = torch.stack([*made(x)])
    fve = 1 - (x - y).square().sum((1, 2)) / (x - x.mean(1, keepdim=True)).square().sum((1, 2))
    assert list(measured["fve_by_site"].values()) == pytest.approx(fve.tolist(), abs=0.05)  # other tokens of the text
    assert measured["fve"] > 0.3
    assert loaded.card["tokens_left_out"]
    assert loaded.metadata["skip_rule"]["first"] == 1
    assert loaded.metadata["training"] == settings.model_dump(mode="json")


@pytest.mark.parametrize("source", ["stream", "shards"])
def test_two_models(tiny_model: Any, tmp_path: Path, source: str) -> None:
    first, second = tiny_model("llama"), tiny_model("llama", seed=1)
    places = "resid_post.1,second:resid_post.1"
    settings = job(tmp_path, model="one", second_model="two", site=places, kind="batchtopk", source=source, lr=3e-3)
    made: Any = train(settings, folder=tmp_path / "run", model=first, second_model=second, quiet=True)
    again = train(settings, folder=tmp_path / "run", model=first, second_model=second, quiet=True)
    assert torch.equal(made.W_dec, again.W_dec)
    ids = torch.randint(3, 100, (4, 16), generator=torch.Generator().manual_seed(0))
    x = torch.stack([one.run(ids, capture="resid_post.1")["resid_post.1"][:, 1:] for one in (first, second)])
    y = made(x)
    assert (x - y).square().sum() < (x - x.mean((1, 2), keepdim=True)).square().sum()
    loaded: Any = load_dictionary(tmp_path / "run")
    assert loaded.card["second_model"] == "two"
    with pytest.raises(BadInput, match="where .* reads is unknown"):
        loaded.sites  # noqa: B018
    torch.testing.assert_close(loaded(x), y)


def test_a_harvest_of_two_models_has_the_rows_of_both(tiny_model: Any, tmp_path: Path) -> None:
    first, second = tiny_model("llama"), tiny_model("llama", seed=1)
    ids = torch.randint(3, 100, (5, 12), generator=torch.Generator().manual_seed(0))
    sites = ["resid_post.1", "second:z.0"]
    (batch,) = harvest(first, ids, sites, batch_size=5, second=second)
    z = second.run(ids, capture="z.0")["z.0"].flatten(2)
    torch.testing.assert_close(batch["second:z.0"], z[batch.windows, batch.positions])
    x = first.run(ids, capture="resid_post.1")["resid_post.1"]
    torch.testing.assert_close(batch["resid_post.1"], x[batch.windows, batch.positions])
    shards = ActivationShards.build(first, ids, sites, tmp_path / "shards", second=second)
    torch.testing.assert_close(shards.rows("second:z.0", torch.arange(len(batch))), batch[Second(Site("z", 0))])


def test_models_that_do_not_fit(tiny_model: Any, tmp_path: Path) -> None:
    first, both = tiny_model("llama"), "resid_post.1,second:resid_post.1"
    settings = job(tmp_path, second_model="two", site=both, kind="batchtopk")
    late = job(tmp_path, second_model="two", site="resid_post.1,second:resid_post.9", kind="batchtopk")
    with pytest.raises(UnknownName, match=r"resid_post\.9"):
        train(late, folder=tmp_path / "a", model=first, second_model=first, quiet=True)
    with pytest.raises(BadInput, match="no site is of it: write second: before one"):
        train(job(tmp_path, second_model="two"), folder=tmp_path / "a", model=first, quiet=True)
    other = tiny_model("llama")
    other.tokenizer.add_tokens(["unheard of"])
    with pytest.raises(Mismatch, match="have other tokens, and both have to read the same text"):
        train(settings, folder=tmp_path / "a", model=first, second_model=other, quiet=True)


# --- sites and settings -----------------------------------------------------------------------------------------------


def test_sites_in_one_line() -> None:
    assert sites_named("resid_post.5") == ["resid_post.5"]
    assert sites_named("resid_post.5, 10-12") == [f"resid_post.{layer}" for layer in (5, 10, 11, 12)]
    assert sites_named("resid_mid.3,resid_post.3,4") == ["resid_mid.3", "resid_post.3", "resid_post.4"]
    assert sites_named("z.1,second:z.1-2") == ["z.1", "second:z.1", "second:z.2"]
    assert sites_named("blocks.5.hook_resid_post") == ["resid_post.5"]
    assert sites_named("final_norm") == ["final_norm"]
    for wrong, message in (
        ("z.1,z.1", "names z.1 twice"),
        ("z.1,0-1", "z.1 twice"),
        ("z.5-3", "counts down; write z.3-5"),
    ):
        with pytest.raises(BadInput, match=message):
            sites_named(wrong)
    for wrong in ("nowhere.3", "z", "z.1,,2", "5"):
        with pytest.raises(UnknownName):
            sites_named(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "abstopk"}, "kind: no file format holds a crosscoder of kind abstopk; take topk or batchtopk or"),
        ({"skip_connection": True}, "skip_connection is of a transcoder; leave it out"),
        ({"start": "x"}, "start: a crosscoder starts anew; leave it out"),
        ({"meta_of": "x"}, "meta_of: decoder rows have one site, and this is a crosscoder"),
        ({"site": "z.1,second:z.1"}, "second_model: second:z.1 is of a second model; name that model"),
        ({"site": "second:z.1", "second_model": "two", "kind": "topk"}, "site: second:z.1 alone is of one model; name"),
        (
            {"site": "z.1", "site_out": "second:z.1", "second_model": "two"},
            "site_out: a transcoder reads and writes one model, not z.1 and second:z.1",
        ),
    ],
)
def test_settings_that_crosscoders_do_not_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cross(**changes)


def test_sites_of_different_widths(tmp_path: Path) -> None:
    class Uneven(Shared):
        def __next__(self) -> Any:
            return {site: x[:, : D - n] for n, (site, x) in enumerate(super().__next__().items())}

    with pytest.raises(BadInput, match=r"a crosscoder needs sites of one width; resid_post.0,2-3 have \[16, 15, 14\]"):
        train_on(Uneven(), cross(), folder=tmp_path, quiet=True)
