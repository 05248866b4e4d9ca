"""Programs that tracr compiles into weights, with what tracr's own model answers: tests/circuits/tracr.json.

Lindner et al. 2023 (arXiv:2301.05062). Run where tracr-pypi 1.0.0 is installed (with jax, dm-haiku, chex, absl-py, jmp,
toolz, networkx); tests need the file alone:

    python peers/tracr_golden.py
"""

import json
from pathlib import Path

import numpy as np
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

LENGTH, VOCAB = 6, {"a", "b", "c", "x"}
PROGRAMS = {
    "proportion": lambda: lib.make_frac_prevs((rasp.tokens == "x").named("is_x")),
    "balance": lambda: lib.make_pair_balance(rasp.tokens, "a", "b"),
}


def main() -> None:
    draw, found = np.random.default_rng(0), {}
    for name, program in PROGRAMS.items():
        model = compiling.compile_rasp_to_model(
            program(), vocab=VOCAB, max_seq_len=LENGTH, compiler_bos="bos", causal=True
        )
        rows = [["bos", *draw.choice(sorted(VOCAB), LENGTH).tolist()] for _ in range(24)]
        found[name] = {
            "heads": model.model_config.num_heads, "layers": model.model_config.num_layers,
            "key_size": model.model_config.key_size, "labels": [str(label) for label in model.residual_labels],
            "output": str(program().name), "tokens": model.input_encoder.encoding_map,
            "weights": {
                f"{module.removeprefix('transformer/')}/{part}": np.asarray(value).round(6).tolist()
                for module, parts in model.params.items() for part, value in parts.items()
            },
            "rows": [[model.input_encoder.encoding_map[token] for token in row] for row in rows],
            "answers": [float(model.apply(row).decoded[-1]) for row in rows],
        }  # fmt: skip
        print(name, found[name]["labels"], found[name]["output"])
    target = Path(__file__).parents[1] / "tests" / "circuits" / "tracr.json"
    target.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
