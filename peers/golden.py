"""Write what TransformerLens computes on tiny models, for tests that run without it.

.venv-peers/bin/python peers/golden.py
"""

import json
from pathlib import Path
from typing import Any

import torch

from lens import IDS, OTHER, VERSION, lens

LENS = Path(__file__).parents[1] / "tests" / "lenses" / "golden" / "jacobian_llama.pt"
FILE = Path(__file__).parents[1] / "tests" / "models" / "transformerlens_golden.json"


def number(value: torch.Tensor) -> list[float]:
    """Two numbers that stand for a tensor: its sum, weighted by a wave over its elements, and its size."""
    flat = value.detach().double().reshape(-1)
    flat = torch.where(flat > -1e4, flat, 0.0)  # masked scores
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64) * 0.7)
    return [round(float(flat @ wave), 5), round(float(flat.norm()), 5)]


def metric(logits: torch.Tensor) -> torch.Tensor:
    return (logits[:, -1, 7] - logits[:, -1, 8]).mean()


def stacks(cache: Any, folded: Any) -> dict[str, torch.Tensor]:
    return {
        "accumulated_resid": cache.accumulated_resid(apply_ln=True),
        "decompose_resid": cache.decompose_resid(pos_slice=-1),
        "stack_head_results": cache.stack_head_results(incl_remainder=True, pos_slice=(2, 5)),
        "stack_neuron_results": cache.stack_neuron_results(2, neuron_slice=[1, 4], pos_slice=-1),
        "get_full_resid_decomposition": cache.get_full_resid_decomposition(pos_slice=-1),
        "logit_attrs": folded.logit_attrs(folded.decompose_resid(pos_slice=-1), 7, 8, pos_slice=-1),
    }


def logit_lenses(cache: Any) -> dict[str, torch.Tensor]:
    """What the logit lens of 4.x gives of every option."""
    top = cache.logit_lens(top_k=3, positions=(2, 6), return_type="probs")
    named = cache.logit_lens(targets=[7, 8], incl_mid=True, positions=None, return_type="log_probs")
    rows = cache.logit_lens(targets=OTHER, positions=None, layers=[0, -1])
    moved = cache.logit_lens(vocab=[4, 9, 60], lens=lambda entry, place: entry * (place + 1) + 0.1, apply_ln=False)
    return {
        "whole": cache.logit_lens().values,
        "whole entropy": cache.logit_lens(positions=None).readout.entropy,
        "top": top.values,
        "top ids": top.readout.top_ids.double(),
        "named": named.values,
        "named ranks": named.rank_trajectory(8).double(),
        "rows": rows.values,
        "row ranks": rows.rank_trajectory().double(),
        "moved": moved.values,
        "one row": cache.logit_lens(batch_slice=1, positions=None, top_k=2).values,
        "table": torch.tensor(cache.logit_lens(layers=[1], batch_slice=0).to_dataframe(top_k=4).probability.tolist()),
    }


def patches(patching: Any, model: Any, clean: Any) -> dict[str, torch.Tensor]:
    names = ("resid_pre", "attn_head_out_all_pos", "attn_head_pattern_all_pos", "mlp_out")
    return {name: getattr(patching, f"get_act_patch_{name}")(model, IDS[:, :5], clean, metric) for name in names}


def jacobian_lens() -> Any:
    """A Jacobian lens of the prompts IDS, fitted by TransformerLens."""
    from transformer_lens.tools.analysis import JacobianLens

    model = lens("llama")
    model.to_tokens = lambda prompt, **_: IDS[int(prompt)][None]  # prompts by their number
    return JacobianLens.fit(model, ["0", "1"], corpus="tiny", skip_first_positions=2, show_progress=False)


def main() -> None:
    from transformer_lens import patching

    golden: dict[str, Any] = {"transformer_lens": VERSION}
    for family in ("gpt2", "llama"):
        model = lens(family)
        model.set_use_attn_result(True)
        cache = model.run_with_cache(IDS)[1]
        folded = lens(family, fold_ln=True).run_with_cache(IDS)[1]
        golden[family] = {
            "activations": {name: number(value) for name, value in cache.items() if value.is_floating_point()},
            "stacks": {name: number(value) for name, value in stacks(cache, folded).items()},
            "logit_lens": {name: number(value) for name, value in logit_lenses(cache).items()},
            "patches": {
                name: number(value)
                for name, value in patches(patching, model, model.run_with_cache(OTHER[:, :5])[1]).items()
            },
            "circuits": {"OV": number(model.OV.AB), "QK": number(model.QK.AB)},
        }
    jacobian_lens().save(str(LENS))
    FILE.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
