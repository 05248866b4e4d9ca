"""Documents that an index leaves out: as an index of the text without them, and nothing of them quoted."""

import numpy as np
import pytest
import torch

from monosem.activations import ActivationShards, harvest
from monosem.data import TokenStore
from monosem.errors import BadInput
from monosem.latents import IndexConfig, build_index, check_index
from tiny_latents import MODEL, SITE, STORE, TOPK, WIDTH

OUT = [name for name in STORE.packing.documents if name.endswith(("3", "7"))]
CONFIG = IndexConfig(examples=5, left=6, right=3, leave_out="[37]$")


@pytest.mark.parametrize("source", ["model", "shards"])
def test_left_out_documents_are_neither_counted_nor_quoted(source, tmp_path):
    shards = ActivationShards.build(MODEL, STORE, SITE, tmp_path / "shards") if source == "shards" else None
    index = build_index(MODEL, TOPK, STORE, tmp_path / "i.sqlite", CONFIG, shards=shards, quiet=True)
    assert check_index(index, model=MODEL).broken == {}

    codes, kept = torch.zeros(WIDTH, dtype=torch.long), 0
    for batch in harvest(MODEL, STORE, SITE):  # the slow way: which document has this token?
        places = zip(batch.windows.tolist(), batch.positions.tolist())
        inside = torch.tensor([STORE.document(window, position) not in OUT for window, position in places])
        codes += (TOPK.encode(batch[SITE]).dense()[inside] != 0).sum(0)
        kept += int(inside.sum())
    assert 0 < index.meta["skipped"]["left out"] < kept
    assert index.meta["tokens"] == kept
    assert index.meta["leave_out"] == CONFIG.leave_out
    np.testing.assert_array_equal(index.table["count"], codes)
    quoted = {example.document for latent in range(WIDTH) for example in index.evidence(latent).examples}
    assert quoted
    assert not quoted & set(OUT)


def test_what_cannot_be_left_out_is_said(tmp_path):
    with pytest.raises(BadInput, match=r"ids of documents.*token ids"):
        build_index(MODEL, TOPK, TokenStore.of(STORE[:]), tmp_path / "i.sqlite", CONFIG, quiet=True)
    with pytest.raises(BadInput, match="not a regular expression"):
        IndexConfig.parse({"leave_out": "("})
    with pytest.raises(BadInput, match="no token of this text counts"):
        build_index(MODEL, TOPK, STORE, tmp_path / "j.sqlite", IndexConfig(leave_out="doc"), quiet=True)
