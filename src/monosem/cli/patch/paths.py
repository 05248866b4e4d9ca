"""`monosem patch paths`: what reaches a receiver from a sender."""

from typing import Annotated

from ..options import Machine, Written, names, option
from ..output import as_json, frame, show
from .pairs import Metric, Pairs, Positions, metric_of, positions_of


def paths(
    pairs: Pairs,
    machine: Machine,
    written: Written,
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
) -> None:
    """Patch the path from each sender to each receiver.

    How much of what a head or MLP does reaches the answer through one receiver, such as the queries of a later head.

    Example: monosem patch paths smollm2 --task ioi --n 4 --senders z --receivers logits --out paths.html
    """
    from ...patching import paths as patched

    pairs.check(metric)
    model = machine.load(pairs.model, written.silent)
    prompts = pairs.made(model)
    result = patched(
        model,
        prompts,
        senders=names(senders),
        receivers=names(receivers),
        metric=metric_of(prompts, metric),
        direction=direction,  # type: ignore[arg-type]
        positions=positions_of(positions),
        freeze_mlps=not thaw_mlps,
        quiet=written.silent,
    )
    written.save(result)
    if written.json:
        as_json(result.table)
    else:
        show(f"{prompts.source or 'pairs'}, {len(prompts)} pairs, {result.metrics[0]}")
        frame(result.top(top), f"largest effects of {len(result):,} paths, {direction}")
    written.say_where()
