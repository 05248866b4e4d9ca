"""The tuned-lens package beside monosem: lenses that one writes and the other reads."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem import lenses
from monosem.lenses import TunedLens
from tiny import tiny_hf, tiny_model

package = pytest.importorskip("tuned_lens", reason="it does not run beside TransformerLens 4: make test-peers")


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_package_reads_what_is_exported(family: str, rank: int | None, tmp_path: Path, caplog: Any) -> None:
    model = tiny_model(family)
    lens = TunedLens.of(model, rank)
    draw = torch.Generator().manual_seed(1)
    for parameter in lens.translators.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    lens.save(tmp_path / "lens", published=True)
    ids = torch.randint(3, 100, (1, 6), generator=draw)
    with caplog.at_level(logging.WARNING):
        theirs = package.TunedLens.from_model_and_pretrained(tiny_hf(family), str(tmp_path / "lens"))
    assert not caplog.records  # no warning: the hash is its own
    seen = lenses.tuned(model, ids, lens, site="resid_pre", top=100)
    hidden = tiny_hf(family)(ids, output_hidden_states=True).hidden_states
    for layer in range(len(lens)):
        want = theirs(hidden[layer], layer).softmax(-1)
        got = torch.zeros_like(want).scatter(-1, seen.top_ids[layer], seen.top_probabilities[layer])
        torch.testing.assert_close(got, want.detach(), atol=1e-4, rtol=1e-3)
