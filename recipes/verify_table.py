"""Writes docs/verify.md: the largest error of every identity, for the embedded models and every family, in two dtypes.

    python recipes/verify_table.py docs/verify.md

Five minutes on two cores; the embedded models are fetched once.
"""

import argparse
import sys
import warnings
from pathlib import Path

import pandas as pd
import torch

from monosem.files import write_text
from monosem.models import Model, load_model
from monosem.models.checking.verify import TOLERANCE, side_by_side, verify

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import FAMILIES, tiny_hf, tiny_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEAD = """# Errors of the identities

`monosem verify MODEL` prints this for a model, `--dtype` for a dtype (may be repeated), `--by-site` the largest error
of each site. An error is the largest absolute one divided by the largest value of the reference, on two random
sequences of 12 tokens, on a CPU. 0 is bit for bit. Limits: {limits}.

"our attention = native" compares the explicit attention that patterns are read from with SDPA; with transformers' own
eager attention it agrees bit for bit in every family (`tests/models/test_models.py`). `recipes/verify_table.py` makes
this page.
"""
FAMILIES_HEAD = """
## Every family, {dtype}

Tiny models with random gains and biases (`tests/tiny.py`): the largest error of each site's identities.
`-`: the architecture has no such place (no gate, parallel blocks, experts), or it is not on the attention registry.
"""


def number(error: object) -> str:
    if isinstance(error, bool | str):
        return str(error)
    if error is None or error != error:
        return "-"
    return "0" if error == 0 else f"{float(error):.0e}".replace("e-0", "e-")  # type: ignore[arg-type]


def markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(number(value) for value in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def embedded(name: str) -> str:
    found = [verify(load_model(name, dtype=dtype, device="cpu", quiet=True)) for dtype in DTYPES]
    return f"\n## {name}\n\n{markdown(side_by_side(found).drop(columns='ok'))}"


def families(dtype: str) -> str:
    rows = {}
    for family in FAMILIES:
        found = verify(Model(tiny_hf(family).to(DTYPES[dtype]), tiny_tokenizer(), family))
        rows[family] = found.by_site
        print(f"{family} {dtype}: {'ok' if found.ok else 'FAILS'}", file=sys.stderr)
    table = pd.DataFrame(rows).T
    order = list(max(rows.values(), key=len).index)
    table = table[[*order, *(name for name in table.columns if name not in order)]]
    return FAMILIES_HEAD.format(dtype=dtype) + "\n" + markdown(table.rename_axis("family").reset_index())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="*", default=["smollm2", "gemma3-270m"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    limits = ", ".join(f"{TOLERANCE[value]:g} in {name}" for name, value in DTYPES.items())
    parts = [HEAD.format(limits=limits), *map(embedded, arguments.models), *map(families, DTYPES)]
    write_text(arguments.out, "".join(parts))


if __name__ == "__main__":
    main()
