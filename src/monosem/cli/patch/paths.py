"""`monosem patch paths`: what reaches a receiver from a sender."""

from typing import Annotated

from ..options import Machine, OutFile, Printing, names, option
from ..output import as_json, frame, notice, show
from .pairs import Metric, Pairs, Positions, metric_of, positions_of


def paths(
    pairs: Pairs,
    machine: Machine,
    printing: Printing,
    senders: Annotated[
        str, option("--senders", "LIST", "embed, z.L.H, mlp_out.L; without numbers all of a kind.")
    ] = "embed,z,mlp_out",
    receivers: Annotated[str, option("--receivers", "LIST", "logits, q.L.H, k.L.H, v.L.H or mlp_in.L.")] = "logits",
    metric: Metric = None,
    positions: Positions = None,
    direction: Annotated[
        str, option("--direction", "NAME", "noising: corrupted values along the path. denoising: clean ones.")
    ] = "noising",
    thaw_mlps: Annotated[
        bool, option("--thaw-mlps", None, "Let MLPs between sender and receiver answer to the change.")
    ] = False,
    top: Annotated[int, option("--top", "N", "Paths to print, largest effect first.", min=1)] = 10,
    out: OutFile = None,
) -> None:
    """Patch the path from each sender to each receiver.

    How much of what a head or MLP does reaches the answer through one receiver, such as the queries of a later head.

    Example: monosem patch paths smollm2 --task ioi --n 4 --senders z --receivers logits --out paths.html
    """
    from ...patching import paths as patched

    pairs.check(metric)
    model = machine.load(pairs.model, printing.silent)
    made = pairs.made(model)
    found = patched(
        model,
        made,
        senders=names(senders),
        receivers=names(receivers),
        metric=metric_of(made, metric),
        direction=direction,  # type: ignore[arg-type]
        positions=positions_of(positions),
        freeze_mlps=not thaw_mlps,
        quiet=printing.silent,
    )
    if out is not None:
        found.save(out)
    if printing.json:
        as_json(found.table)
    else:
        show(f"{made.source or 'pairs'}, {len(made)} pairs, {found.metrics[0]}")
        frame(found.top(top), f"largest effects of {len(found):,} paths, {direction}")
    if out is not None and not printing.quiet:
        notice(f"written: {out}")
