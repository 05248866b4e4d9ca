"""Writes docs/models.md: what monosem reads of every causal model type of the installed transformers, and why not.

    python recipes/model_types.py docs/models.md             # five minutes on two cores; no downloads
    python recipes/model_types.py /dev/stdout qwen3_5 zaya   # some types alone
    python recipes/model_types.py --again docs/models.md zaya    # some types again, the others as the page has them

With `--save rows.json` under the oldest allowed transformers, and `--beside rows.json` under the newest, the page says
what differs.

Each type is tried on a tiny random model with each of its kinds of layers (`tests/anymodel.py`). A new release of
transformers is a new page: what it brings that is not read yet stands in the last table, with the reason.
"""

import argparse
import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSeq2SeqLM

from monosem.errors import MonosemError, cause
from monosem.files import write_text
from monosem.models import Model, load_model
from monosem.models.checking.verify import verify
from monosem.models.places.kinds import KINDS, Kind
from monosem.models.places.table import BOTH_BY_TYPE, BY_TYPE
from monosem.models.places.table import REFUSED as TABLE_SAYS
from monosem.patching.sweeps.tape import NotApplicable, Tape

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from anymodel import TYPES, tiny_any
from tiny_encoder_decoders import tiny_both

HEAD = """# Model types

What `load_model` reads of the {n} causal language models of transformers {version} (torch {torch}), tried on a tiny
random model of each type with each of its kinds of layers: {read} are read, {table} through a row of the family table
and {inferred} through a row that is inferred from the model and used because its identities hold. {refused} are not,
with the reason below. `recipes/model_types.py` makes this page.

A block is a list of branches, each of a kind. Every type has `resid_pre`, `resid_post`, the streams between branches,
the sites of its norms, and of each branch `<branch>_input`, `_raw` and `_out`. Inside, a kind has these sites, and
these weights can be read (`model.W_Q`; of a branch with an output projection, `model.branch(name, layer).weight()`).
A sweep ([patching.md](patching.md)) "grows" where layers go on from a part of the tokens; with "whole rows", rows
that join in a layer hold all tokens; elsewhere it patches whole texts in batches and warns. `sweeps` is what three
types did (of the types with the kind, the ones whose layers have the fewest kinds).

| kind | sites inside | weights | sweeps |
|---|---|---|---|
"""
READ = """
## Read

`error` is the largest of all identities (`monosem verify`, float32; up to 1e-4 counts as rounding). `generates`: it
continues texts with its own cache, as whole runs do.

| type | row | blocks, with their layers | error | generates |
|---|---|---|---|---|
"""
REFUSED = """
## Not read

| type | why |
|---|---|
"""
BOTH = """
## Encoder–decoders

Read as one model with sites on both sides: see [sites-and-runs.md](sites-and-runs.md#encoderdecoders). Padding of
sources and targets, and generation with the cache, are among the identities.

| type | row | blocks of the encoder | blocks of the decoder | error |
|---|---|---|---|---|
"""

BOTH_REFUSED = """
Not read as one, of the types of `AutoModelForSeq2SeqLM`:

| type | why |
|---|---|"""


# types of which no tiny model runs on token ids alone
NO_TEXT = {
    "gemma3n": "the whole cannot be built without timm; its checkpoints are loaded as `gemma3n_text`",
    "gemma4_assistant": "drafts for a larger Gemma 4, whose keys and values it is given",
    "gemma4_unified_assistant": "drafts for a larger Gemma 4, whose keys and values it is given",
    "mllama": "a text goes past its layers that look at pictures; its checkpoints are loaded without them, and read",
    "musicgen": "codes of sound; transformers' causal class cannot be built from this config",
    "musicgen_melody": "codes of sound; transformers' causal class cannot be built from this config",
}


@dataclass
class Row:
    """What was found of a type; `why` is empty where it is read."""

    kind: str
    way: str = ""
    blocks: str = ""
    error: float = 0.0
    generates: str = ""
    why: str = ""


def look_at(kind: str) -> Row:
    if kind in NO_TEXT:
        return Row(kind, why=NO_TEXT[kind])
    try:
        hf = tiny_any(kind)
        with torch.no_grad():
            hf(input_ids=torch.arange(3, 11)[None], use_cache=False)
    except Exception as error:  # transformers' own, of any sort
        return Row(kind, why=f"no tiny model of it runs on token ids: {short(cause(error))}")
    try:
        model = load_model(hf, quiet=True)
        found = verify(model)
    except MonosemError as error:
        return Row(kind, why=reason(str(error)))
    except Exception as error:
        return Row(kind, why=f"crash: {type(error).__name__}: {short(cause(error))}")
    if bad := [f"'{row['identity']}' at {row['site']}" for row in found.rows if not row["ok"]]:
        return Row(kind, why=f"read, but an identity fails: {bad[0]}")
    way = "table" if model.config.model_type in BY_TYPE else "inferred"
    worst = max(float(row["error"]) for row in found.rows)  # type: ignore[arg-type]
    return Row(kind, way, blocks_of(model), worst, continues(model))


def continues(model: Model) -> str:
    if model.looks_ahead:
        return "no: attends in both directions"
    try:
        model.generate([[3, 4, 5]], max_new_tokens=2, stop_at_eos=False)
    except MonosemError as error:
        return f"no: {short(str(error).partition(': ')[0], 80)}"
    return "yes"


def sweeps_of(kind: str) -> str:
    """How a sweep of this type runs, as the tape of its layers decides."""
    model = load_model(tiny_any(kind), quiet=True)
    try:
        with torch.no_grad(), model.turn():
            return "grows" if Tape.of(model, model.tokens([list(range(3, 11))]), []).continues else "grows, whole rows"
    except NotApplicable:
        return "whole texts"


def sweeps_by_kind(rows: list[Row]) -> dict[str, str]:
    """For each kind of branch, which of three types are swept in which way."""
    kinds = {row.kind: set(re.findall(r"(\w+)[,:]", row.blocks)) for row in rows}  # `attn attention, mlp: 0-3`
    tried, said = cache(sweeps_of), {}
    for name in KINDS:
        ways = defaultdict(list)
        for kind in sorted((kind for kind in kinds if name in kinds[kind]), key=lambda kind: len(kinds[kind]))[:3]:
            ways[tried(kind)].append(kind)
        said[name] = "; ".join(f"{way}: {listed(of)}" for way, of in ways.items()) or "-"
    return said


def blocks_of(model: Model) -> str:
    """`attn attention, mlp mixture: 1-3; ...`"""
    layers = defaultdict(list)
    for number, block in enumerate(model.anatomy):
        says = ", ".join(
            slot.row.name + (f" {slot.mixer.kind}" if slot.mixer.kind != slot.row.name else "") for slot in block.slots
        )
        layers[says].append(number)
    return "; ".join(f"{says}: {ranges(numbers)}" for says, numbers in layers.items())


def ranges(numbers: list[int]) -> str:
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def reason(message: str) -> str:
    """What a refusal says about the model, without what it says about monosem."""
    message = message.partition("; add a row")[0].partition("; docs/your-model.md")[0]
    for start in ("none could be inferred: ", "inferred one fails: ", "cannot be read: ", "are not read: "):
        message = message.rpartition(start)[2]
    return short(message)


def short(text: str, most: int = 240) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " ..."


def both_sides() -> str:
    """The section on encoder–decoders."""
    lines = []
    for kind in BOTH_BY_TYPE:
        model = load_model(tiny_both(kind), quiet=True)
        found = verify(model)
        assert found.ok, found.table.query("not ok").to_string()
        assert model.encoder is not None
        worst = max(float(row["error"]) for row in found.rows)  # type: ignore[arg-type]
        name, sides = model.family.name, f"{blocks_of(model.encoder)} | {blocks_of(model)}"
        lines.append(f"| {kind} | {name} | {sides} | {worst:.0e} |")
        print(f"{kind}: {sides}", file=sys.stderr, flush=True)
    configs: Any = AutoModelForSeq2SeqLM._model_mapping
    others = sorted(
        kind.model_type for kind in configs if kind.is_encoder_decoder and kind.model_type not in BOTH_BY_TYPE
    )
    unread = [f"| {kind} | {TABLE_SAYS.get(kind, 'no row')} |" for kind in others]
    return "\n".join([f"{BOTH}{lines[0]}", *lines[1:], BOTH_REFUSED, *unread, ""])


def differences(rows: list[Row], older: dict[str, Any]) -> str:
    """A section on another release: which of its types are read otherwise, and which it does not have."""
    before = {row["kind"]: Row(**row) for row in older["rows"]}
    lines = [f"\n## With transformers {older['version']}\n"]
    read = sum(not row.why for row in before.values())
    without = ", ".join(row.kind for row in rows if row.kind not in before) or "none"
    lines.append(f"{read} of {len(before)} types are read. Types that it does not have yet: {without}.\n")
    other = [
        f"| {row.kind} | {before[row.kind].why or before[row.kind].blocks} |"
        for row in rows
        if row.kind in before and row.blocks != before[row.kind].blocks
    ]
    return "\n".join([*lines, *(["| type | there |", "|---|---|", *other] if other else ["The rest is the same."]), ""])


def page(rows: list[Row]) -> str:
    read = [row for row in rows if not row.why]
    ways = [row.way for row in read]
    counts = {"n": len(rows), "read": len(read), "refused": len(rows) - len(read)}
    counts |= {"table": ways.count("table"), "inferred": ways.count("inferred")}
    head = HEAD.format(version=transformers.__version__, torch=torch.__version__.partition("+")[0], **counts)
    sweeps = sweeps_by_kind(read)
    inside = [
        f"| {name} | {listed(kind.sites)} | {listed(weights_of(name, kind))} | {sweeps[name]} |"
        for name, kind in KINDS.items()
    ]
    says = [f"| {r.kind} | {r.way} | {r.blocks} | {r.error:.0e} | {r.generates} |" for r in read]
    not_read = [f"| {r.kind} | {r.why} |" for r in rows if r.why]
    return head + "\n".join(inside) + "\n" + READ + "\n".join(says) + "\n" + REFUSED + "\n".join(not_read) + "\n"


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def weights_of(name: str, kind: Kind) -> list[str]:
    """The views of weights that mean something for a kind of mixer."""
    if name == "latent_attention":
        return ["W_O", "components.latent_QK", "components.latent_OV"]
    if kind.attends and kind.plain:
        return ["W_Q", "W_K", "W_V", *(["W_O"] if kind.projected else [])]
    if name == "mlp":
        return ["W_in", "W_gate", "W_out"]
    return ["branch.weight()"] if kind.projected else []


def earlier(text: str) -> tuple[list[Row], str]:
    """The rows of a page, and what follows its tables."""
    _, read, rest = text.partition(READ)
    read, _, rest = rest.partition(REFUSED)
    refused, _, rest = rest.partition("\n\n")
    rows = []
    for line in read.strip().splitlines():
        kind, way, blocks, error, generates = line.strip("| ").split(" | ")
        rows.append(Row(kind, way, blocks, float(error), generates))
    rows += [Row(kind, why=why) for kind, why in (line.strip("| ").split(" | ") for line in refused.splitlines())]
    return rows, f"\n{rest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("types", nargs="*", default=TYPES)
    parser.add_argument("--save", type=Path, help="the rows as JSON, to be set beside another release's")
    parser.add_argument("--beside", type=Path, help="rows of another release")
    parser.add_argument("--again", action="store_true", help="keep what the page has of all other types")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for kind in arguments.types:
        rows.append(look_at(kind))
        print(f"{kind}: {rows[-1].why or rows[-1].blocks}", file=sys.stderr, flush=True)
    if arguments.again:
        kept, rest = earlier(arguments.out.read_text())
        all_rows = {row.kind: row for row in kept} | {row.kind: row for row in rows}
        return write_text(arguments.out, page([all_rows[kind] for kind in sorted(all_rows)]) + rest)
    if arguments.save:
        saved = {"version": transformers.__version__, "rows": [asdict(row) for row in rows]}
        write_text(arguments.save, json.dumps(saved))
    more = differences(rows, json.loads(arguments.beside.read_text())) if arguments.beside else ""
    both = both_sides() if len(rows) == len(TYPES) else ""
    write_text(arguments.out, page(rows) + more + both)


if __name__ == "__main__":
    main()
