"""Text written per second: bare Hugging Face, monosem, with one latent clamped; and several arms in one batch or alone.

The same 24 prompts of unequal length, 20 new tokens, greedy, float32. Without an edit the new tokens have to be Hugging
Face's own; arms together have to write what each writes alone.
"""

import json
from collections.abc import Callable
from typing import Any

import torch

from common import arguments, interleaved, machine, row
from monosem import edits, load_dictionary, load_model
from monosem.dictionaries import Dictionary
from monosem.models import Model
from monosem.steering import outcome, outcomes
from monosem.studies import StudyConfig

NATIVE, ALONE = "Hugging Face generate", "an arm after the other"
LATENTS = [11, 402, 1377, 2048, 2901, 3333, 4077, 5120]


def generations(model: Model, dictionary: Dictionary, prompts: list[str], new: int) -> dict[str, Callable[[], Any]]:
    batch = model.tokens(prompts, padding="left")
    options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    edit = edits.clamp(dictionary, LATENTS[0], 20.0)

    def native() -> list[list[int]]:
        made = model.hf.generate(batch.ids, attention_mask=batch.mask.long(), **options)
        return made[:, batch.ids.shape[1] :].tolist()

    def ours(*changes: edits.Edit) -> list[list[int]]:
        return model.generate(prompts, edits=changes, max_new_tokens=new, stop_at_eos=False).new

    assert native() == ours()
    return {NATIVE: native, "monosem generate": ours, "monosem generate, one latent clamped": lambda: ours(edit)}


def arms(model: Model, dictionary: Dictionary, prompts: list[str], new: int) -> dict[str, Callable[[], Any]]:
    changes = [edits.clamp(dictionary, latent, 20.0) for latent in LATENTS]

    def alone() -> list[list[str]]:
        return [outcome(model, prompts, edit, max_new_tokens=new).texts for edit in changes]

    def together() -> list[list[str]]:
        return [made.texts for made in outcomes(model, prompts, changes, max_new_tokens=new, quiet=True)]

    assert alone() == together()
    return {ALONE: alone, "arms together": together}


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"machine": machine(options.threads, ["torch", "transformers", "monosem"]), "rows": []}
    model, dictionary = load_model("smollm2", dtype="float32", quiet=True), load_dictionary("smollm2/resid_post.15")
    config = StudyConfig.load("french")
    prompts, new = [*config.test, *config.control][: 3 if options.tiny else 24], 4 if options.tiny else 20
    cases: list[tuple[str, Any, int, str]] = [
        ("generation", generations, len(prompts) * new, NATIVE),
        (f"{len(LATENTS)} arms", arms, len(LATENTS) * len(prompts) * new, ALONE),
    ]
    for case, make, tokens, baseline in cases:
        contestants = make(model, dictionary, prompts, new)
        seconds = interleaved(contestants, options.rounds)
        about = {"case": f"{case}, {len(prompts)} prompts × {new} new tokens"}
        found["rows"] += [about | row(name, tokens, seconds, baseline) for name in contestants]
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
