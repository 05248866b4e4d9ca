"""`monosem patch paths`: what reaches a receiver from a sender."""

from typing import Annotated

from ..options import Analysis, Top, flag, names, option
from ..output import frame, show
from .pairs import Pairs, Positions, positions_of

Senders = Annotated[str, option("LIST", "embed, z.L.H or mlp_out.L; z alone means all heads.")]
Receivers = Annotated[str, option("LIST", "logits, q.L.H, k.L.G, v.L.G (G: kv head) or mlp_in.L.")]
Direction = Annotated[str, option("NAME", "noising: corrupted values along the path. denoising: clean ones.")]


def paths(
    pairs: Pairs,
    asked: Analysis,
    senders: Senders = "embed,z,mlp_out",
    receivers: Receivers = "logits",
    positions: Positions = None,
    direction: Direction = "noising",
    thaw_mlps: Annotated[bool, flag("Let MLPs between sender and receiver answer to the change.")] = False,
    top: Top = 10,
) -> None:
    """Patch the path from each sender to each receiver.

    How much of what a head or MLP does reaches the answer through one receiver, such as the queries of a later head.

    Example: monosem patch paths smollm2 --task ioi --n 4 --senders z --receivers logits --out paths.html
    """
    from ...patching import paths as patched

    pairs.check(one_token="paths")
    model, prompts = pairs.load(asked)
    result = patched(
        model,
        prompts,
        senders=names(senders),
        receivers=names(receivers),
        metric=pairs.metric_of(prompts),
        direction=direction,  # type: ignore[arg-type]
        positions=positions_of(positions),
        freeze_mlps=not thaw_mlps,
        quiet=asked.silent,
    )

    def shown() -> None:
        show(f"{prompts.source or 'pairs'}, {len(prompts)} pairs, {result.metrics[0]}")
        frame(result.top(top), f"largest effects of {len(result):,} paths, {direction}")

    asked.give(result, shown)
