"""Seconds until a 32k-wide SAE is in memory: `load_dictionary` and SAELens' `SAE.load_from_disk`, on the same files.

Self-made weights in SAELens' layout, d = 576, in the page cache. *and encoded* adds the codes of one token, so that
nobody gains by reading late.
"""

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from torch import Tensor

from common import arguments, interleaved, machine, row
from monosem import load_dictionary

WIDTH, D, K = 32768, 576, 32


def made(folder: Path, width: int) -> None:
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=width, k=K))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    sae.save_model(folder)


def monosem_codes(folder: Path, x: Tensor) -> Tensor:
    return load_dictionary(folder).encode(x).dense()


def saelens_codes(folder: Path, x: Tensor) -> Tensor:
    return SAE.load_from_disk(folder).encode(x)


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"machine": machine(options.threads, ["torch", "monosem", "sae-lens"]), "rows": []}
    width = 1024 if options.tiny else WIDTH
    with TemporaryDirectory() as name:
        folder = Path(name)
        made(folder, width)
        x = torch.randn(1, D)
        torch.testing.assert_close(monosem_codes(folder, x), saelens_codes(folder, x), atol=1e-4, rtol=1e-4)
        calls = {
            "loaded": {
                "monosem load_dictionary": partial(load_dictionary, folder),
                "SAELens SAE.load_from_disk": partial(SAE.load_from_disk, folder),
            },
            "loaded and encoded": {
                "monosem load_dictionary": partial(monosem_codes, folder, x),
                "SAELens SAE.load_from_disk": partial(saelens_codes, folder, x),
            },
        }
        for case, contestants in calls.items():
            seconds = interleaved(contestants, options.rounds)
            baseline = next(iter(contestants))
            found["rows"] += [{"case": case, "width": width, **row(name, 1, seconds, baseline)} for name in seconds]
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
