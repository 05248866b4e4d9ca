"""Transcoders, and several dictionaries from one stream."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import BATCH, FEATURES, D, MemoryStream, config, job, losses
from torch import Tensor

from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors, evaluate, load_dictionary
from monosem.dictionaries.training import SeveralConfig, TrainConfig, train, train_on, train_several, train_several_on
from monosem.dictionaries.training.architectures import ARCHITECTURES
from monosem.dictionaries.training.export import About, export
from monosem.dictionaries.training.form import TrainingForm
from monosem.dictionaries.training.forward import forward_of
from monosem.dictionaries.training.rows import DecoderRows
from monosem.errors import BadInput, Mismatch
from monosem.models import Site

D_OUT = 24


class TwoSites(MemoryStream):
    """What is read as in `MemoryStream`; what is written is another direction for each feature, and a linear part."""

    def __init__(self, seed: int = 0, linear: float = 0.0, **options: Any):
        super().__init__(seed, **options)
        generator = torch.Generator().manual_seed(5)
        written = torch.randn(FEATURES, D_OUT, generator=generator)
        self.written = written / written.norm(dim=1, keepdim=True)
        self.matrix = linear * torch.randn(D, D_OUT, generator=generator) / D**0.5

    def __next__(self) -> Any:  # the codes are drawn again, as the parent draws them
        self.given += 1
        active = torch.rand(BATCH, FEATURES, generator=self.generator) < 3 / FEATURES
        codes = active * (torch.rand(BATCH, FEATURES, generator=self.generator) + 0.5)
        x = 7 * codes @ self.truth + 2 + 20 * self.truth[0]
        return {
            Site.parse("resid_mid.1"): x,
            Site.parse("mlp_out.1"): 300 * (codes @ self.written) - 9 + x @ self.matrix,
        }


def pair(steps: int = 30, **changes: Any) -> TrainConfig:
    return config(steps, **{"site": "resid_mid.1", "site_out": "mlp_out.1", "kind": "batchtopk"} | changes)


def explained(dictionary: Any, stream: MemoryStream) -> float:
    batch: Any = next(stream)
    x, y = batch.values()
    return 1 - float((y - dictionary(x)).square().sum() / (y - y.mean(0)).square().sum())


# --- transcoders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_a_transcoder_learns_what_features_write(tmp_path: Path, kind: str) -> None:
    stream, seen = TwoSites(), []
    trained = train_on(stream, pair(500, kind=kind), folder=tmp_path, quiet=True, on_step=seen.append)
    loaded = load_dictionary(tmp_path)
    assert (loaded.transcoder, loaded.d_in, loaded.d_out) == (True, D, D_OUT)
    assert (str(loaded.site), str(loaded.site_out)) == ("resid_mid.1", "mlp_out.1")
    assert (stream.written @ loaded.W_dec.T).amax(1).mean() > 0.7  # random rows: 0.5
    found = explained(loaded, TwoSites(seed=7))
    assert found > 0.5
    assert found == pytest.approx(seen[-1]["fve"], abs=0.05)
    torch.testing.assert_close(loaded.W_dec, trained.W_dec)


def test_a_skip_connection_takes_the_linear_part(tmp_path: Path) -> None:
    found = {}
    for skip in (False, True):
        settings = pair(500, skip_connection=skip)
        train_on(TwoSites(linear=50.0), settings, folder=tmp_path / str(skip), quiet=True)
        loaded = load_dictionary(tmp_path / str(skip))
        assert (loaded.W_skip is not None) == skip
        found[skip] = explained(loaded, TwoSites(seed=7, linear=50.0))
    assert found[True] > found[False] + 0.1


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_an_exported_transcoder_on_raw_activations_is_the_training_form(kind: str) -> None:
    """By the formula: scale what is read, centre it, and divide what comes out by the other scale."""
    torch.manual_seed(0)
    form = TrainingForm(FEATURES, torch.randn(D_OUT), 3, b_in=torch.randn(D), skip=True)
    with torch.no_grad():
        for parameter in (form.W_enc, form.b_enc, form.W_skip):
            parameter.add_(0.2 * torch.randn(parameter.shape))  # type: ignore[union-attr]
    x, settings = torch.randn(300, D), pair(kind=kind, skip_connection=True, k=5)
    done = forward_of(settings, x.device)(form, x, settings)
    pre = ((x - form.b_in) @ form.W_enc.T + form.b_enc).relu()
    codes = pre * (pre >= pre.flatten().topk(5 * 300).values.min())
    expected = codes @ form.W_dec + form.b_dec + (x - form.b_in) @ form.W_skip.T  # type: ignore[union-attr]
    torch.testing.assert_close(done.reconstruction, expected, atol=1e-5, rtol=1e-4)
    dictionary = export(form, settings, (0.3, 0.02), float(done.floor) * (1 - 1e-6), About("tiny", "run", {}))
    torch.testing.assert_close(dictionary(x / 0.3) * 0.02, expected, atol=1e-5, rtol=1e-4)


def test_a_transcoder_goes_on_from_a_transcoder(tmp_path: Path) -> None:
    settings = pair(60, skip_connection=True)
    first = train_on(TwoSites(linear=9.0), settings, folder=tmp_path / "first", quiet=True)
    batch = next(TwoSites(seed=2, linear=9.0))
    x, y = batch.values()
    more = pair(5, skip_connection=True, start=str(tmp_path / "first"))
    form = ARCHITECTURES["transcoder"].started(more, [0.3 * x.mean(0), torch.zeros(D_OUT)], [0.3, 0.02], [x, y])
    pre = (0.3 * x - form.centre) @ form.W_enc.T + form.b_enc
    torch.testing.assert_close(pre / 0.02, first.preactivations(x), atol=2e-2, rtol=1e-3)
    codes = first.encode(x).dense()
    expected = 0.02 * (codes @ first.W_dec + first.b_dec + x @ first.W_skip.T)
    torch.testing.assert_close(0.02 * codes @ form.W_dec + form.offset(0.3 * x), expected, atol=2e-3, rtol=1e-3)
    with pytest.raises(Mismatch, match="is a transcoder, but this run trains an SAE"):
        train_on(MemoryStream(), config(5, start=str(tmp_path / "first")), folder=tmp_path / "a", quiet=True)
    with pytest.raises(Mismatch, match="has a skip connection; set skip_connection, or start from another"):
        train_on(TwoSites(), pair(5, start=str(tmp_path / "first")), folder=tmp_path / "b", quiet=True)


def test_settings_of_transcoders() -> None:
    with pytest.raises(BadInput, match="skip_connection is of a transcoder; give site_out, or leave it out"):
        config(skip_connection=True)
    with pytest.raises(BadInput, match="no file format holds a transcoder of kind topk; take batchtopk or matryoshka"):
        pair(kind="topk")


def test_a_wild_row_of_either_site_is_left_out(tmp_path: Path) -> None:
    class Wild(TwoSites):
        def __next__(self) -> Any:
            x, y = super().__next__().values()
            if self.given == 20:
                x[3], y[4] = x[3] * 1e4, y[4] * 1e4
            return {"resid_mid.1": x, "mlp_out.1": y}

    trained = train_on(Wild(), pair(60), folder=tmp_path / "wild", quiet=True)
    calm = train_on(TwoSites(), pair(60), folder=tmp_path / "calm", quiet=True)
    assert trained.metadata["outliers"] == 2
    assert explained(trained, TwoSites(seed=7)) == pytest.approx(explained(calm, TwoSites(seed=7)), abs=0.02)


def test_a_transcoder_from_text_is_measured_at_its_output(tiny_model: Any, tmp_path: Path) -> None:
    settings = job(
        tmp_path, model="llama", site="mlp_input.1", site_out="mlp_out.1", kind="batchtopk", skip_connection=True
    )
    settings = settings.model_copy(update={"held_out": settings.texts, "held_out_tokens": 200})
    made = train(settings, folder=tmp_path / "run", model=tiny_model("llama"), quiet=True)
    again = load_dictionary(tmp_path / "run")
    held_out = made.card["held_out"][settings.texts[0]]
    assert held_out["fve"] == pytest.approx(again.card["held_out"][settings.texts[0]]["fve"])
    assert held_out["fve"] > 0.3


# --- several ----------------------------------------------------------------------------------------------------------

SEVERAL = {
    "a": {"site": "resid_mid.1", "width": 48},
    "b": {"site": "resid_mid.1", "kind": "batchtopk", "seed": 3},
    "c": {"site": "resid_mid.1", "site_out": "mlp_out.1", "kind": "batchtopk", "lr": 1e-3},
}


def several(steps: int = 30, **changes: Any) -> SeveralConfig:
    fields = {"model": "tiny", "width": FEATURES, "k": 3, "batch_tokens": BATCH, "lr": 3e-3, "log_every": 1}
    fields |= {"dead_tokens": 20 * BATCH, "tokens": steps * BATCH, "dictionaries": SEVERAL}
    return SeveralConfig.parse(fields | changes)


def alone(name: str, steps: int = 30) -> Any:
    return config(steps, **SEVERAL[name])


def test_each_of_several_is_what_it_is_alone(tmp_path: Path) -> None:
    made = train_several_on(TwoSites(), several(), folder=tmp_path / "all", quiet=True)
    for name, dictionary in made.items():
        single = train_on(TwoSites(), alone(name), folder=tmp_path / name, quiet=True)
        for part, tensor in single.tensors.present().items():
            assert torch.equal(dictionary.tensors.present()[part], tensor), (name, part)
        assert losses(tmp_path / "all" / name) == losses(tmp_path / name)
        assert torch.equal(load_dictionary(tmp_path / "all" / name).W_dec, single.W_dec)


def test_several_go_on_exactly(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(name: str, record: dict[str, float]) -> None:
        if record["step"] == 17 and name == "b":
            raise Killed

    settings = several(checkpoint_tokens=5 * BATCH)
    whole = train_several_on(TwoSites(), settings, folder=tmp_path / "whole", quiet=True)
    with pytest.raises(Killed):
        train_several_on(TwoSites(), settings, folder=tmp_path / "run", quiet=True, on_step=kill)
    again = train_several_on(TwoSites(), settings, folder=tmp_path / "run", quiet=True)
    for name in SEVERAL:
        assert torch.equal(again[name].W_dec, whole[name].W_dec)
        assert losses(tmp_path / "run" / name) == losses(tmp_path / "whole" / name)
    assert SeveralConfig.read(tmp_path / "run" / "config.yaml") == settings
    other = several(dictionaries=SEVERAL | {"a": {"site": "resid_mid.1", "width": 40}})
    with pytest.raises(Mismatch, match=r"dictionaries\.a\.width: 48, now 40"):
        train_several_on(TwoSites(), other, folder=tmp_path / "run", quiet=True)


def test_one_that_is_none_does_not_lose_the_others(tmp_path: Path) -> None:
    entries = SEVERAL | {"bad": {"site": "mlp_out.1", "width": 4096, "k": 1, "auxk": 0, "dead_tokens": BATCH}}
    with pytest.raises(BadInput, match=r"^bad: training ended, .* of its latents are dead"):
        train_several_on(TwoSites(), several(dictionaries=entries), folder=tmp_path, quiet=True)
    cards = {name: json.loads((tmp_path / name / "dictionary" / "card.json").read_text()) for name in entries}
    assert {name: card["finished"] for name, card in cards.items()} == {"a": True, "b": True, "c": True, "bad": False}


def test_what_is_for_all_is_for_the_kinds_that_have_it() -> None:
    entries = {"a": {"kind": "relu"}, "b": {"kind": "jumprelu", "target_l0": 4}, "c": {"kind": "topk"}, "d": {"k": 2}}
    each = several(site="z.1", kind="abstopk", sparsity=0.2, dictionaries=entries).each
    assert {name: (one.kind, one.k, one.sparsity) for name, one in each.items()} == {
        "a": ("relu", None, 0.2), "b": ("jumprelu", None, 0.2), "c": ("topk", 3, None), "d": ("abstopk", 2, None)
    }  # fmt: skip
    with pytest.raises(BadInput, match=r"dictionaries\.a: k is of kind topk or .*, not of relu"):
        several(dictionaries={"a": {"kind": "relu", "k": 3, "site": "z.1"}})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "dictionaries: "),
        ({"a": {"site": "z.1", "widht": 3}}, r"dictionaries\.a: widht: no such field; did you mean 'width'"),
        ({"a": {"site": "z.1", "tokens": 3}}, r"dictionaries\.a\.tokens: all dictionaries of a run share tokens"),
        ({"a": {"site": "z.1", "k": 100}}, r"dictionaries\.a: k is 100, but there are only 64"),
        ({"a": {}}, r"dictionaries\.a: site: Field required"),
        ({"../a": {"site": "z.1"}}, "'../a' is no name for a folder"),
        ({"checkpoints": {"site": "z.1"}}, "'checkpoints' is no name for a folder"),
        ({"a": 3}, r"dictionaries\.a: "),
    ],
)
def test_wrong_lists_of_dictionaries(entries: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        several(dictionaries=entries)


def test_several_from_text_take_one_pass(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_training import counted_runs

    base = job(tmp_path, model="llama").model_dump(exclude={"site"})
    entries = {name: {"site": f"resid_post.{layer}"} for layer, name in enumerate(("early", "late"))}
    settings = SeveralConfig.parse(base | {"dictionaries": entries})
    runs = counted_runs(monkeypatch)
    made = train_several(settings, folder=tmp_path / "run", model=tiny_model("llama"), quiet=True)
    read: Tensor = torch.cat(runs[8:])
    assert 1024 <= read.numel() <= 1.15 * 1024
    for name, dictionary in made.items():
        assert str(dictionary.site) == entries[name]["site"]
        assert evaluate(tiny_model("llama"), dictionary, read[:8], tokens=None, quiet=True).fve > 0.3
        assert json.loads((tmp_path / "run" / name / "dictionary" / "card.json").read_text())["tokens_read"]


# --- meta-SAEs --------------------------------------------------------------------------------------------------------


def of_rows(tmp_path: Path, **changes: Any) -> TrainConfig:
    """A dictionary whose rows are sums of two of 24 directions, and the config of one trained on them."""
    torch.manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(24, D), dim=1)
    rows = atoms[torch.stack([torch.randperm(24)[:2] for _ in range(1000)])].sum(1)
    rows += 0.01 * torch.randn(1000, D)
    parts = DictionaryParts(
        DictionaryTensors(rows.T, torch.zeros(1000), 3 * rows, torch.zeros(D)), site="resid_post.1", model_name="tiny"
    )
    dictionary = Dictionary(parts)
    dictionary.name = "base"
    dictionary.save(tmp_path / "base")
    torch.save(atoms, tmp_path / "atoms.pt")
    fields = {"width": 24, "k": 2, "meta_of": str(tmp_path / "base"), "checkpoint_tokens": 50 * BATCH}
    return config(400, **fields | changes)


def test_a_meta_dictionary_finds_what_decoder_rows_share(tiny_model: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 130:
            raise Killed

    settings = of_rows(tmp_path)
    made = train(settings, folder=tmp_path / "whole", quiet=True)
    atoms = torch.load(tmp_path / "atoms.pt")
    assert (atoms @ made.W_dec.T).amax(1).mean() > 0.85
    assert load_dictionary(tmp_path / "whole").metadata["meta_of"] == str(tmp_path / "base")
    with pytest.raises(BadInput, match="codes the decoder rows of .*base, not activations"):
        evaluate(
            tiny_model("llama", name="tiny"), load_dictionary(tmp_path / "whole"), ["the cat sat " * 40], context=16
        )
    with pytest.raises(BadInput, match="held_out: a meta-SAE codes decoder rows"):
        of_rows(tmp_path, held_out=["x.txt"])
    with pytest.raises(Killed):
        train(settings, folder=tmp_path / "run", quiet=True, on_step=kill)
    assert torch.equal(train(settings, folder=tmp_path / "run", quiet=True).W_dec, made.W_dec)


def test_every_row_is_read_once_in_an_epoch(tmp_path: Path) -> None:
    stream = DecoderRows.of(of_rows(tmp_path, batch_tokens=250, tokens=2000))
    rows = torch.cat([next(stream) for _ in range(4)])
    assert len(torch.unique(rows, dim=0)) == 1000
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1000))
    again = torch.cat([next(stream) for _ in range(4)])
    assert not torch.equal(rows, again)
    with pytest.raises(StopIteration):
        next(stream)


def test_meta_dictionaries_that_do_not_fit(tmp_path: Path) -> None:
    for changes, error, message in (
        ({"batch_tokens": 4096}, BadInput, "has 1,000 decoder rows, fewer than a batch; make batch_tokens smaller"),
        ({"site": "resid_post.0"}, Mismatch, "are written at resid_post.1; set site to that, not to resid_post.0"),
    ):
        with pytest.raises(error, match=message):
            train(of_rows(tmp_path, **changes), folder=tmp_path / "run", quiet=True)
