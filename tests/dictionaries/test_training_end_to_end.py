"""End-to-end training: loss and gradient by Hugging Face's own modules, what is learned, resumed and refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import MemoryStream, config, job, losses
from torch import Tensor

from monosem.activations import TokenStream, harvest
from monosem.dictionaries import evaluate, load_dictionary
from monosem.dictionaries.training import SeveralConfig, TrainConfig, train, train_on, train_several
from monosem.dictionaries.training.end_to_end import Cost, EndToEnd
from monosem.errors import BadInput, Mismatch, UnknownName

CONTEXT = 12


def whole(tmp_path: Path, **changes: Any) -> TrainConfig:
    """The config of a run of 1,024 tokens in windows of 16."""
    return job(tmp_path, **{"model": "llama", "site": "resid_post.0", "loss": "kl"} | changes)


def windows(n: int = 24, context: int = CONTEXT) -> Tensor:
    ids = torch.randint(3, 100, (n, context), generator=torch.Generator().manual_seed(0))
    ids[1::3, 5] = 0  # a special token
    return ids


def stream_of(model: Any, sites: list[str], ids: Tensor | None = None) -> TokenStream:
    return TokenStream(harvest(model, windows() if ids is None else ids, sites), 6, 0, 1)


@contextmanager
def replaced(module: torch.nn.Module, value: Tensor) -> Iterator[None]:
    """A module of Hugging Face gives this instead of its output."""

    def hook(_: Any, args: Any, output: Any) -> Any:
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def output_of(model: Any, module: torch.nn.Module, ids: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, out: kept.append(out[0] if isinstance(out, tuple) else out))
    model.hf(ids)
    handle.remove()
    return kept[0]


PLACES = {
    "resid_post.0": lambda hf: hf.model.layers[0],
    "resid_post.2": lambda hf: hf.model.layers[2],
    "mlp_out.1": lambda hf: hf.model.layers[1].mlp,
}


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("site", PLACES)
def test_loss_and_gradient_are_those_of_the_model_with_the_reconstruction_in_it(
    tiny_model: Any, site: str, loss: str
) -> None:
    model, later = tiny_model("llama"), "resid_post.2" if site != "resid_post.2" else None
    settings = TrainConfig.parse(
        {"model": "llama", "site": site, "width": 8, "k": 2, "tokens": 72, "batch_tokens": 72, "context": 12}
        | {"loss": loss, "later_sites": later, "later_weight": 0.7}
    )
    stream = stream_of(model, settings.sites)
    ids = next(stream)
    rows, rest = EndToEnd(stream, settings).read(ids)
    torch.manual_seed(0)
    noise = 0.5 * torch.randn_like(rows[site])
    wild = torch.zeros(len(noise), 1, dtype=torch.bool)
    wild[4] = True
    rebuilt = (rows[site] + noise).requires_grad_()
    found = rest.loss(rebuilt, wild, settings)
    (gradient,) = torch.autograd.grad(found, rebuilt)

    module = PLACES[site](model.hf)
    clean = output_of(model, module, ids)
    special = torch.isin(ids, torch.tensor(sorted(model.special_ids)))
    counts = ~special & (torch.arange(CONTEXT) > 0)
    assert special.any()
    assert int(counts.sum()) == len(noise)  # no outliers here
    changed = clean[counts] + noise
    changed[4] = clean[counts][4]
    changed = changed.clone().requires_grad_()
    spliced = clean.clone()
    spliced[counts] = changed
    with replaced(module, spliced):
        logits, after = model.hf(ids).logits, output_of(model, model.hf.model.layers[2], ids)
    predicting = counts.clone()
    predicting[:, -1] = False
    following = ids.roll(-1, 1)[predicting]
    log_q = logits[predicting].log_softmax(-1)
    if loss == "ce":
        expected = -log_q.gather(1, following[:, None]).mean()
    else:
        log_p = model.hf(ids).logits[predicting].log_softmax(-1)
        expected = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    if later:
        before = output_of(model, model.hf.model.layers[2], ids)[counts]
        error = (after[counts] - before).square().sum() / (before - before.mean(0)).square().sum()
        expected = expected + 0.7 * error
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (theirs,) = torch.autograd.grad(expected, changed)
    theirs[4] = 0
    assert theirs.abs().max() > 1e-4
    torch.testing.assert_close(gradient, theirs, atol=1e-6, rtol=1e-3)


def test_the_weights_of_the_model_learn_nothing(tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    train(whole(tmp_path, later_sites="resid_post.1"), folder=tmp_path / "run", model=model, quiet=True)
    for name, parameter in model.hf.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize(
    "form",
    [
        {"kind": "topk"},
        {"kind": "batchtopk", "site": "mlp_input.1", "site_out": "mlp_out.1"},
        {"kind": "jumprelu", "k": None, "target_l0": 6.0},
        {"kind": "relu", "k": None, "sparsity": 0.001},
    ],
)
def test_the_rest_of_the_model_notices_less(tiny_model: Any, tmp_path: Path, form: dict[str, Any], loss: str) -> None:
    """After training, what was minimised is less on the same text than after a few steps. (A random model learns much
    of this text through the dictionary when the loss is ce: it is then far from the unedited one.)"""
    model, cost = tiny_model("llama"), []
    for steps in (5, 150):
        settings = whole(tmp_path, loss=loss, tokens=steps * 64, lr=1e-2, **form)
        made: Any = train(settings, folder=tmp_path / str(steps), model=model, quiet=True)
        text = Path(settings.texts[0]).read_text().splitlines()
        measured = evaluate(model, made, text, tokens=300, context=16, quiet=True)
        cost.append(measured.kl if loss == "kl" else measured.ce_spliced)
        assert load_dictionary(tmp_path / str(steps)).card["finished"]
    assert cost[1] < 0.7 * cost[0]


def test_end_to_end_costs_less_than_reconstruction_at_the_same_size(tiny_model: Any, tmp_path: Path) -> None:
    """With 2 latents of 24 a token, the error matters less than where it lies."""
    model, kl = tiny_model("llama"), {}
    for loss in ("reconstruction", "kl"):
        settings = whole(tmp_path, loss=loss, site="resid_post.2", tokens=300 * 64, lr=1e-2, k=2, width=24, auxk=0)
        made: Any = train(settings, folder=tmp_path / loss, model=model, quiet=True)
        text = Path(settings.texts[0]).read_text().splitlines()
        kl[loss] = evaluate(model, made, text, tokens=500, context=16, quiet=True).kl
    assert kl["kl"] < 0.9 * kl["reconstruction"]


def test_a_killed_run_goes_on_to_the_same_losses(tiny_model: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    model, settings = tiny_model("llama"), whole(tmp_path, checkpoint_tokens=3 * 64, later_sites="resid_post.1,2")
    seen = train(settings, folder=tmp_path / "whole", model=model, quiet=True)
    for step in (2, 11):  # while calibration batches wait, and after

        def kill(record: dict[str, float], step: int = step) -> None:
            if record["step"] == step:
                raise Killed

        folder = tmp_path / f"run{step}"
        with pytest.raises(Killed):
            train(settings, folder=folder, model=model, quiet=True, on_step=kill)
        again: Any = train(settings, folder=folder, model=model, quiet=True)
        assert torch.equal(again.W_dec, seen.W_dec)
        assert losses(folder) == losses(tmp_path / "whole")
        assert again.card["tokens_left_out"] == seen.card["tokens_left_out"]
        assert again.card["tokens_read"] == 1024 == seen.card["tokens_read"]


def test_the_card_says_what_the_file_costs_and_what_zeros_cost(tiny_model: Any, tmp_path: Path) -> None:
    model, run = tiny_model("llama"), tmp_path / "run"
    made: Any = train(whole(tmp_path, tokens=5 * 64), folder=run, model=model, quiet=True)
    newest = max((run / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime)
    ids = torch.load(newest, weights_only=True)["state"]["tokens"]
    layer, cost = model.hf.model.layers[0], made.card["last_activations"]["cost"]
    clean = output_of(model, layer, ids)
    counts = ~torch.isin(ids, torch.tensor(sorted(model.special_ids)))
    counts[:, 0] = False
    predicting = counts.clone()
    predicting[:, -1] = False
    log_p = model.hf(ids).logits[predicting].log_softmax(-1)
    for name, rows in (("spliced", made(clean)), ("zeros", torch.zeros_like(clean))):
        with replaced(layer, torch.where(counts[..., None], rows, clean)):
            log_q = model.hf(ids).logits[predicting].log_softmax(-1)
        expected = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
        assert cost[name] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("spliced", "zeros"), [(float("nan"), 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_one_that_is_no_better_than_zeros_is_no_result(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spliced: float, zeros: float
) -> None:
    monkeypatch.setattr(EndToEnd, "cost", lambda *_: Cost(spliced, zeros))
    with pytest.raises(BadInput, match=rf"not finished: spliced into the model it costs {spliced:.3f} nats, and zeros"):
        train(whole(tmp_path, tokens=2 * 64), folder=tmp_path / "run", model=tiny_model("llama"), quiet=True)
    with pytest.warns(UserWarning, match="not finished: spliced into the model"):
        assert load_dictionary(tmp_path / "run").card["finished"] is False


def test_several_share_a_pass(tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = whole(tmp_path).model_dump(exclude={"site"})
    entries: dict[str, Any] = {"early": {"site": "resid_post.0"}, "late": {"site": "resid_post.1", "width": 32}}
    several = SeveralConfig.parse(base | {"dictionaries": entries})
    made: Any = train_several(several, folder=tmp_path / "all", model=model, quiet=True)
    for name, entry in entries.items():
        alone: Any = train(whole(tmp_path, **entry), folder=tmp_path / name, model=model, quiet=True)
        torch.testing.assert_close(made[name].W_dec, alone.W_dec, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"site": "resid_post.0-1", "kind": "batchtopk"},
            "loss kl is of a dictionary that writes to one place, not of",
        ),
        ({"kind": "matryoshka"}, "kind: matryoshka has a loss of its own beside loss kl; take topk or"),
        ({"meta_of": "x"}, "meta_of: loss kl runs the model on the text as it trains; leave meta_of out"),
        ({"source": "shards"}, "source shards: loss kl runs the model"),
        ({"batch_tokens": 60}, "batch_tokens: loss kl trains on whole windows, and 60 is no multiple of context 16"),
        ({"loss": "reconstruction", "later_sites": "resid_post.1"}, "later_sites is of loss ce or kl"),
        ({"loss": "fvu"}, "loss: "),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        whole(tmp_path, **changes)


def test_places_that_are_not_there(tiny_model: Any, tmp_path: Path) -> None:
    model, run = tiny_model("llama"), {"folder": tmp_path / "run", "quiet": True}
    for changes, error, message in (
        ({"site_out": "mlp_out.9", "kind": "batchtopk"}, UnknownName, "mlp_out.9: llama has layers 0 to 2"),
        ({"later_sites": "resid_post.9"}, UnknownName, "resid_post.9: llama has layers 0 to 2"),
        ({"later_sites": "mlp_out.0"}, BadInput, "later_sites: mlp_out.0 does not come after resid_post.0"),
        ({"later_sites": "embed"}, BadInput, "later_sites: embed does not come after resid_post.0"),
    ):
        with pytest.raises(error, match=message):
            train(whole(tmp_path, **changes), model=model, **run)
    with pytest.raises(BadInput, match="loss kl runs the model on windows of tokens: give a TokenStream, not a Memory"):
        train_on(MemoryStream(), config(loss="kl"), **run)


def test_batches_without_a_token_that_counts(tiny_model: Any, tmp_path: Path) -> None:
    ids = windows()
    model = tiny_model("llama")
    stream = stream_of(model, ["resid_post.0"], ids)
    ids[:] = 0
    settings = TrainConfig.parse(
        {"model": "llama", "site": "resid_post.0", "width": 8, "k": 2, "tokens": 72, "batch_tokens": 72}
        | {"context": 12, "loss": "kl"}
    )
    with pytest.raises(BadInput, match="no token of a batch counts"):
        train_on(stream, settings, folder=tmp_path, quiet=True)


def test_windows_come_once_in_an_epoch_and_go_on(tiny_model: Any) -> None:
    model, ids = tiny_model("llama"), windows()
    source = harvest(model, ids, "resid_post.0")
    stream = TokenStream(source, 8, 3, 2)
    first = [next(stream) for _ in range(3)]
    assert sorted(map(tuple, torch.cat(first).tolist())) == sorted(map(tuple, ids.tolist()))
    state = stream.state_dict()
    rest = list(stream)
    assert len(rest) == 3
    again = TokenStream(source, 8, 3, 2)
    again.load_state_dict(state)
    assert torch.equal(torch.cat(list(again)), torch.cat(rest))
    with pytest.raises(Mismatch, match="seed"):
        TokenStream(source, 8, 4, 2).load_state_dict(state)
    with pytest.raises(BadInput, match="batches of 100 windows cannot be served from 24"):
        TokenStream(source, 100, 3, 1)
