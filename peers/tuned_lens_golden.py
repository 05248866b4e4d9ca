"""Write what the tuned-lens package makes of tiny models, for tests that run without it.

pip install --no-deps --target .venv-peers/tuned-lens tuned-lens==0.2.0
PYTHONPATH=src:tests:.venv-peers/tuned-lens .venv/bin/python peers/tuned_lens_golden.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tuned_lens import TunedLens
from tuned_lens.utils import tensor_hash

from tiny import tiny_hf

FOLDER = Path(__file__).parents[1] / "tests" / "lenses" / "golden" / "tuned_lens"
IDS = torch.randint(3, 100, (1, 6), generator=torch.Generator().manual_seed(5))
SHAPES = ((9, 32), (5, 300), (8, 200), (1000, 4), (130, 128))


def main() -> None:
    logits = {}
    for family in ("llama", "gpt2"):
        model = tiny_hf(family)
        lens = TunedLens.from_model(model, model_revision="main")
        draw = torch.Generator().manual_seed(1)
        for parameter in lens.layer_translators.parameters():
            parameter.data.copy_((0.2 * torch.randn(parameter.shape, generator=draw)).half())
        lens.save(FOLDER / family)
        hidden = model(IDS, output_hidden_states=True).hidden_states
        last = [lens(hidden[i][0, -1], i).tolist() for i in range(len(lens))]
        logits[family] = [[round(value, 5) for value in row] for row in last]
    hashes = {}
    for shape in SHAPES:
        whole = np.arange(np.prod(shape)).reshape(shape) * 7919 % 1009 - 500
        hashes["x".join(map(str, shape))] = tensor_hash((whole / 2.0 ** (whole % 13)).astype(np.float32))
    made = {"tuned_lens": version("tuned-lens"), "logits": logits, "hashes": hashes}
    (FOLDER / "numbers.json").write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
