"""What a latent does to the next tokens, against the Hugging Face model with a hook of its own."""

import pytest
import torch

from monosem.errors import BadInput, UnknownName
from monosem.latents import IndexConfig, ablation, build_index, removal
from tiny_latents import MODEL, SAE, SITE, STORE

TEXT = "the king sat on a good day e f g"


def by_hand(latent: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(activation, clean, without, with the last state changed at each token) log-probabilities."""
    hf, block = MODEL.hf, MODEL.hf.model.layers[1]
    kept: dict[str, torch.Tensor] = {}

    def read(_module, _args, output):
        kept["x"] = output if isinstance(output, torch.Tensor) else output[0]

    handle = block.register_forward_hook(read)
    out = hf(ids, output_hidden_states=True)
    handle.remove()
    x = kept["x"]
    act = (x @ SAE.W_enc[:, latent] + SAE.b_enc[latent]).relu()
    act[:, 0] = 0  # the first token does not count
    act = torch.where(MODEL.run(ids, logits=False, capture=SITE).tokens.mask, act, 0)
    handle = block.register_forward_hook(lambda _m, _a, output: output - act[..., None] * SAE.W_dec[latent])
    after = hf(ids).logits
    handle.remove()
    last: dict[str, torch.Tensor] = {}
    handle = hf.model.norm.register_forward_hook(lambda _m, args, _o: last.setdefault("x", args[0]))
    hf(ids)
    handle.remove()
    direct = hf.lm_head(hf.model.norm(last["x"] - act[..., None] * SAE.W_dec[latent]))
    return act[0], *(one[0].double().log_softmax(-1) for one in (out.logits, after, direct))


def chosen() -> int:
    ids = MODEL.tokens(TEXT).ids
    x = MODEL.run(TEXT, capture=SITE, logits=False)[SITE]
    assert x.shape[1] == ids.shape[1]
    return int((SAE.encode(x[0, 1:]).dense() > 0).float().mean(0).argmax())


@torch.no_grad()
def test_with_and_without():
    latent, ids = chosen(), MODEL.tokens(TEXT).ids
    act, clean, without, direct = by_hand(latent, ids)
    assert (act > 0).sum() > 2
    table = removal(MODEL, SAE, latent, TEXT, n=3).table
    assert table["activation"].tolist() == pytest.approx(act.tolist(), rel=1e-4, abs=1e-5)
    following = ids[0, 1:, None]
    losses = [-one[:-1].gather(1, following)[:, 0] for one in (clean, without, direct)]
    assert table["loss"].tolist()[:-1] == pytest.approx(losses[0].tolist(), rel=1e-4)
    assert table["loss_change"].tolist()[:-1] == pytest.approx((losses[1] - losses[0]).tolist(), abs=1e-4)
    assert table["direct_loss_change"].tolist()[:-1] == pytest.approx((losses[2] - losses[0]).tolist(), abs=1e-4)
    assert table.iloc[-1][["loss", "loss_change"]].isna().all()
    kl = (clean.exp() * (clean - without)).sum(-1)
    assert table["kl"].tolist() == pytest.approx(kl.tolist(), abs=1e-5)
    assert table["kl"].max() > 1e-3
    at = int(table["kl"].argmax())
    change = clean[at] - without[at]
    best = change.topk(3)
    assert [token for token, _ in table["raised"][at]] == [MODEL.str_token(int(i)) for i in best.indices]
    assert [value for _, value in table["raised"][at]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert table["lowered"][at][0][1] == pytest.approx(float(change.min()), abs=1e-4)


def test_over_the_strongest_examples(tmp_path):
    index = build_index(MODEL, SAE, STORE, tmp_path / "i.sqlite", IndexConfig(examples=4), quiet=True)
    latent = int(index.top(1, by="maximum")["latent"].iloc[0])
    found, kls = ablation(index, latent, model=MODEL, n=3), []
    for example in index.evidence(latent).examples[:3]:
        kls.append(removal(MODEL, SAE, latent, example.ids).table["kl"][example.anchor])
    assert found["examples"] == 3
    assert found["kl"] == pytest.approx(sum(kls) / 3)
    assert found["kl_se"] >= 0


def test_what_cannot_be_removed():
    with pytest.raises(BadInput, match="one text"):
        removal(MODEL, SAE, 0, ["a b", "c d"])
    with pytest.raises(UnknownName):
        removal(MODEL, SAE, 400, TEXT)
