"""What SAELens' own evaluation says of a dictionary: oracle of `evaluate(..., skip=SkipRule(first=0, outlier=None))`.

.venv-bench/bin/python peers/saelens_evaluation.py                        # tiny, for the tests that run without it
.venv-bench/bin/python peers/saelens_evaluation.py PATH/wikitext2/test.txt    # the shipped one, beside monosem's
"""

import json
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.load_model import HookedProxyLM
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler

import monosem as ms
from monosem.activations import SkipRule
from monosem.dictionaries import Dictionary, evaluate
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

FILE = Path(__file__).parents[1] / "tests" / "dictionaries" / "golden" / "saelens_evaluation.json"
# SAELens' name -> ours; its KL also counts the last position of a window, which has no next token
SAME = {
    "explained_variance": "fve",
    "explained_variance_legacy": "fve_legacy",
    "mse": "mse",
    "cossim": "cosine",
    "l0": "l0",
    "l2_ratio": "l2_ratio",
    "ce_loss_without_sae": "ce_clean",
    "ce_loss_with_sae": "ce_spliced",
    "ce_loss_with_ablation": "ce_zero",
    "ce_loss_score": "ce_recovered",
    "kl_div_with_sae": "kl",
    "kl_div_with_ablation": "kl_zero",
    "kl_div_score": "kl_score",
}


class Windows:
    """As much of SAELens' ActivationsStore as `run_evals` asks for."""

    def __init__(self, ids: torch.Tensor, batch: int):
        self.ids, self.store_batch_size_prompts, self.context_size, self.read = ids, batch, ids.shape[1], 0

    def get_batch_tokens(self, n: int) -> torch.Tensor:
        self.read += n
        return self.ids[self.read - n : self.read]

    def reset_input_dataset(self) -> None:
        self.read = 0


def saelens(model: ms.Model, dictionary: Dictionary, ids: torch.Tensor, batch: int) -> dict[str, float]:
    folder = mkdtemp()
    dictionary.save(folder)
    sae = SAE.load_from_disk(folder)
    sae.cfg.metadata.hook_name = f"model.layers.{dictionary.site.layer}"
    names = ["batch_size_prompts", "n_eval_reconstruction_batches", "n_eval_sparsity_variance_batches"]
    asked: dict[str, Any] = dict.fromkeys(names, len(ids) // batch) | {"batch_size_prompts": batch}
    parts = ["kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics"]
    config = EvalConfig(**asked, **{f"compute_{part}": True for part in parts})
    proxy = HookedProxyLM(model.hf, model.tokenizer, hook_names=[sae.cfg.metadata.hook_name])
    found, _ = run_evals(sae, Windows(ids, batch), proxy, ActivationScaler(), config)
    flat = {name: value for group in found.values() for name, value in group.items()}
    return {ours: flat[name] for name, ours in SAME.items()}


def tiny() -> dict[str, Any]:
    ids = torch.randint(3, 100, (6, 12), generator=torch.Generator().manual_seed(3))
    ids[2, 5] = ids[4, 1] = 1  # </s>, a special token
    dictionary = tiny_dictionary("topk", random_tensors(32, 50, 0, (0.1, 0.3)), k=6)
    return {"windows": ids.tolist(), "expected": saelens(tiny_model("llama"), dictionary, ids, 2)}


def main() -> None:
    if len(sys.argv) == 1:
        FILE.write_text(json.dumps(tiny()) + "\n")
        return
    model, sae = ms.load_model("smollm2", dtype="float32"), ms.load_dictionary("smollm2/resid_post.15")
    ids = ms.data.TokenStore.build(model, ms.data.texts(sys.argv[1]), 256, tokens=8192)[:]
    rule = SkipRule(first=0, outlier=None)
    ours, theirs = evaluate(model, sae, ids, batch_size=8, skip=rule), saelens(model, sae, ids, 8)
    for name, value in theirs.items():
        print(f"{name:14} SAELens {value:12.5f}   monosem {getattr(ours, name):12.5f}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
