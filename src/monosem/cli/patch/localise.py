"""`monosem patch localise`: where in the model an answer is made, with a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ...errors import require
from ...terminal import notice, one_line
from ..options import OnModel, flag, names, option
from ..output import as_json, cell, frame, show, table
from .pairs import Pairs, Positions, positions_of

if TYPE_CHECKING:
    from ...patching import Localisation

Share = Annotated[float, option("SHARE", "Share of the effect from which a place counts.", min=0.0)]
HeadShare = Annotated[float | None, option("SHARE", "The same for heads (default: --threshold).", min=0.0)]
Sites = Annotated[str, option("LIST", "Outputs to search: attn_out, mlp_out; add resid_pre for a map of the stream.")]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """From which effect a place counts, and with what it is compared."""

    threshold: Share = 0.05
    head_threshold: HeadShare = None
    controls: Annotated[int, option("N", "Random sets to compare with.", min=0)] = 10
    no_backup: Annotated[bool, flag("Do not look for backup heads (saves a third).")] = False


def localise(
    pairs: Pairs,
    thresholds: Thresholds,
    asked: OnModel,
    sites: Sites = "attn_out,mlp_out",
    positions: Positions = None,
    out: Annotated[Path | None, option("DIR", "Folder of the report (default: runs/patch-TASK).")] = None,
) -> None:
    """Find the layers and heads that make an answer.

    Restores every attention and MLP output alone, checks what passes the threshold by corrupting it, goes down to
    heads, measures what all of it does together (sufficiency, necessity), looks for heads that stand in for it, and
    writes a report. With --json nothing is written unless --out is given.

    Example: monosem patch localise smollm2 --task ioi --n 16 --out runs/ioi

    Example: monosem patch localise smollm2 --pairs mine.csv --metric negative_kl
    """
    from ...files import check_writable
    from ...patching import localise as find

    pairs.check(one_token="localise")
    folder = out or (None if asked.json else Path("runs") / f"patch-{pairs.name}")
    if folder is not None:
        require("plotly", "plots")
        check_writable(folder / "report.html")
    model, prompts = pairs.load(asked)
    localisation = find(
        model,
        prompts,
        metric=pairs.metric,
        threshold=thresholds.threshold,
        head_threshold=thresholds.head_threshold,
        sites=names(sites),
        positions=positions_of(positions),
        controls=thresholds.controls,
        with_backup=not thresholds.no_backup,
        seed=pairs.seed,
        quiet=asked.silent,
    )
    page = None if folder is None else localisation.save(folder)
    if asked.json:
        found = {"found": localisation.table, "sets": localisation.sets, "notes": list(localisation.notes)}
        as_json(found | {"config": localisation.config})
    else:
        _print(localisation)
    if page is not None and not asked.quiet:
        notice(f"report: {page}")


def _print(localisation: "Localisation") -> None:
    config = localisation.config
    ends = f"{cell(localisation.clean)} clean, {cell(localisation.corrupted)} corrupted"
    show(f"{config['task']}, {config['pairs']} pairs, {config['metric']}: {ends}")
    if len(localisation.table):
        shown = localisation.table.drop(columns="restored_se").astype(object)
        frame(shown.where(shown.notna(), None), "what passed the threshold")
    rows = [
        (label, len(one.cells), str(one.sufficiency), str(one.necessity), str(one.pn), str(one.ps), _bounds(one.pns))
        for label, one in localisation.evidence.sets.items()
    ]
    if rows:
        table(["together", "places", "sufficiency", "necessity", "PN", "PS", "PNS"], rows)
    if localisation.backup is not None:
        heads = ", ".join(f"{one.layer}.{one.head}" for one in localisation.backup.backups) or "none"
        show(f"backup heads: {heads}")
    show(one_line(localisation.headline))
    for note in localisation.notes:
        show(f"note: {note}")


def _bounds(pns: tuple[float, float]) -> str:
    return f"{cell(pns[0])} to {cell(pns[1])}"
