#!/usr/bin/env bash
# tracr-pypi 1.0.0 (jax 0.10.2, dm-haiku 0.0.17, chex 0.1.92): a RASP program whose value is None somewhere, such as tracr's own
#   `lib.shift_by(1, tokens)`, as a compiled model.
# One would guess: the model says None where the program does, or the validators say that the program cannot be compiled.
# What happens: static and dynamic validation find nothing, and the model answers with a token there. Attention falls on BOS, the
#   output's part of the residual stream is all zero, and the first of equal entries is decoded. A circuit that is judged by such
#   answers is judged by a token that no head wrote.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    tracr-pypi==1.0.0 jax==0.10.2 dm-haiku==0.0.17 chex==0.1.92
cd "$folder" && PYTHONHASHSEED=0 JAX_PLATFORMS=cpu venv/bin/python -W ignore - <<'END'
import numpy as np
from tracr.compiler import compiling, lib, validating
from tracr.rasp import rasp

words = {"a", "b", "c"}
nobody = rasp.Aggregate(rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k == "c").named("is_c"), rasp.tokens).named("where_c")
for name, program, text in (
    ("shift_by(1)", lib.shift_by(1, rasp.tokens), ["b", "c", "a"]),
    ("a token that is not there", nobody, ["b", "a", "b"]),
):
    model = compiling.compile_rasp_to_model(program, vocab=words, max_seq_len=4, compiler_bos="BOS")
    said, run = program(text), model.apply(["BOS", *text])
    answer = run.decoded[1:]
    own = [at for at, label in enumerate(model.residual_labels) if label.startswith(f"{program.label}:")]
    written = np.asarray(run.residuals[-1])[0, 1:][:, own]
    print(f"{name} of {text}: RASP {said}, the model {answer}; written at these places: "
          f"{[float(abs(row).max().round(6)) for row in written]}; validation: {validating.validate(program, text)}")
    empty = [at for at, one in enumerate(said) if one is None]
    assert empty and own and not validating.validate(program, text), "the finding is out of date"
    assert all(answer[at] in words and abs(written[at]).max() < 1e-6 for at in empty), "the finding is out of date"
    assert all(answer[at] == one for at, one in enumerate(said) if one is not None), "the finding is out of date"
END
