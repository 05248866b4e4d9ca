"""`monosem patch`: where in the model an answer is made, with a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import BadInput, UnknownName, did_you_mean, require
from .application import one_line
from .options import Device, Dtype, Json, ModelArgument, Quiet, Seed, option
from .output import as_json, cell, frame, notice, show, table

if TYPE_CHECKING:
    from ..data import TokenPairs
    from ..models import Model
    from ..patching import Localisation


def patch(
    model: ModelArgument,
    task: Annotated[str | None, option("--task", "NAME", "ioi, greater_than, capitals or pronouns.")] = None,
    pairs: Annotated[Path | None, option("--pairs", "FILE", "Instead: pairs from .csv, .json or .jsonl.")] = None,
    n: Annotated[int | None, option("--n", "N", "How many pairs (default: 16, or the whole file).", min=1)] = None,
    template: Annotated[str | None, option("--template", "NAME", "ioi: ABBA, BABA or mixed.")] = None,
    corruption: Annotated[str | None, option("--corruption", "NAME", "ioi: abc, s2_flip or random_names.")] = None,
    corrupted: Annotated[str | None, option("--corrupted", "COLUMN", "The file's column of corrupted prompts.")] = None,
    drop_unaligned: Annotated[
        bool, option("--drop-unaligned", None, "Leave out pairs of the file that do not align, instead of stopping.")
    ] = False,
    solved: Annotated[bool, option("--solved", None, "Keep only pairs that the model answers right.")] = False,
    metric: Annotated[
        str | None,
        option(
            "--metric", "NAME", "logit_diff, probability_diff, log_odds, negative_kl, ... (default: by the answers)."
        ),
    ] = None,
    threshold: Annotated[
        float, option("--threshold", "SHARE", "Share of the effect from which a place counts.", min=0.0)
    ] = 0.05,
    head_threshold: Annotated[
        float | None, option("--head-threshold", "SHARE", "The same for heads (default: --threshold).", min=0.0)
    ] = None,
    sites: Annotated[
        str, option("--sites", "LIST", "attn_out and mlp_out to choose from; resid_pre, for a map.")
    ] = "attn_out,mlp_out",
    positions: Annotated[
        str | None,
        option("--positions", "LIST", "Indices or span names, such as end,s2 or -1 (default: all, or spans)."),
    ] = None,
    controls: Annotated[int, option("--controls", "N", "Random sets to compare with.", min=0)] = 10,
    no_backup: Annotated[bool, option("--no-backup", None, "Do not look for backup heads (saves a third).")] = False,
    out: Annotated[Path | None, option("--out", "DIR", "Folder of the report (default: runs/patch-TASK).")] = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the layers and heads that make an answer; write a report.

    Patches activations between clean and corrupted prompts: restores every attention and MLP output alone, checks what
    passes the threshold by corrupting it, goes down to heads, measures what all of it does together (sufficiency,
    necessity), and looks for heads that stand in for it. With --json nothing is written unless --out is given.

    Example: monosem patch smollm2 --task ioi --n 16 --out runs/ioi

    Example: monosem patch smollm2 --pairs mine.csv --metric negative_kl
    """
    from ..files import writable_folder
    from ..models import load_model
    from ..patching import localise, metrics_of

    only_ioi = {"template": template, "corruption": corruption}
    _check(
        task, pairs, {name: value for name, value in only_ioi.items() if value is not None}, corrupted, drop_unaligned
    )
    if metric is not None:
        metrics_of(metric)
    folder = out or (None if json else Path("runs") / f"patch-{(task or str(pairs and pairs.stem)).replace('_', '-')}")
    if folder is not None:
        require("plotly", "plots")
        writable_folder(folder)
    lm = load_model(model, device=device, dtype=dtype, quiet=quiet or json)
    made = _pairs(lm, task, pairs, n, seed, only_ioi, corrupted, drop_unaligned)
    if solved:
        made = made.solved(lm)
    found = localise(
        lm,
        made,
        metric,
        threshold,
        sites=[site.strip() for site in sites.split(",")],
        positions=_positions(positions),
        head_threshold=head_threshold,
        controls=controls,
        with_backup=not no_backup,
        seed=seed,
        quiet=quiet or json,
    )
    page = None if folder is None else found.save(folder)
    if json:
        as_json({"found": found.table, "sets": found.sets, "notes": list(found.notes), "config": found.config})
    else:
        _print(found)
    if page is not None and not quiet:
        notice(f"report: {page}")


def _check(
    task: str | None, pairs: Path | None, only_ioi: dict[str, Any], corrupted: str | None, drop_unaligned: bool
) -> None:
    """Raises `BadInput` or `UnknownName` for options that do not go together, before anything is loaded."""
    from ..data import TASKS

    if (task is None) == (pairs is None):
        raise BadInput(f"give --task NAME ({', '.join(TASKS)}) or --pairs FILE")
    if task is not None and task.replace("-", "_") not in TASKS:
        near = did_you_mean(task, TASKS) or f"; there are {', '.join(TASKS)}"
        raise UnknownName(f"no task {task!r}{near}")
    if only_ioi and task != "ioi":
        raise BadInput(f"--{next(iter(only_ioi))} goes with --task ioi")
    if pairs is None and (corrupted is not None or drop_unaligned):
        raise BadInput("--corrupted and --drop-unaligned go with --pairs")


def _pairs(
    model: "Model",
    task: str | None,
    path: Path | None,
    n: int | None,
    seed: int,
    only_ioi: dict[str, Any],
    corrupted: str | None,
    drop_unaligned: bool,
) -> "TokenPairs":
    from ..data import TASKS, read_pairs

    if path is not None:
        return read_pairs(model, path, corrupted=corrupted, drop_unaligned=drop_unaligned, limit=n)
    given = {name: value for name, value in only_ioi.items() if value is not None}
    return TASKS[str(task).replace("-", "_")](model, n=n or 16, seed=seed, **given)


def _positions(text: str | None) -> Any:
    """`"end,s2,-1"` -> ["end", "s2", -1]; `"spans"` stays."""
    if text is None or text == "spans":
        return text
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if part.lstrip("-").isdigit() else part for part in parts]


def _print(found: "Localisation") -> None:
    from ..patching.localisation.report import headline

    config = found.config
    ends = f"{cell(found.clean)} clean, {cell(found.corrupted)} corrupted"
    show(f"{config['task']}, {config['pairs']} pairs, {config['metric']}: {ends}")
    if len(found.table):
        shown = found.table.drop(columns="error").astype(object)
        frame(shown.where(shown.notna(), None), "what passed the threshold")
    rows = [
        (label, len(one.cells), str(one.sufficiency), str(one.necessity), str(one.pn), str(one.ps), _bounds(one.pns))
        for label, one in found.evidence.items()
    ]
    if rows:
        table(["together", "places", "sufficiency", "necessity", "PN", "PS", "PNS"], rows)
    if found.backup is not None:
        heads = ", ".join(f"{one.layer}.{one.head}" for one in found.backup.found) or "none"
        show(f"backup heads: {heads}")
    show(one_line(headline(found)))
    for note in found.notes:
        show(f"note: {note}")


def _bounds(pns: tuple[float, float]) -> str:
    return f"{cell(pns[0])} to {cell(pns[1])}"
