"""`monosem verify`: identities that a supported model must satisfy."""

from typing import Annotated, Any

import typer

from ..progress import say
from .options import Device, ModelArgument, Printing, Trust, flag, option
from .output import as_json, frame

Dtypes = Annotated[
    list[str] | None, option("NAME", "float32, bfloat16, float16, float64 (default: float32). May be repeated.")
]


def verify(
    printing: Printing,
    model: ModelArgument = "smollm2",
    dtype: Dtypes = None,
    by_site: Annotated[bool, flag("One row for each site: its largest error.")] = False,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Check that a model is read and written correctly.

    Compares what is captured with what the model itself computes: the stream is the sum of its parts, heads sum to the
    attention's output, the read-out gives the logits, a value written back changes nothing, padding changes nothing,
    generation with and without the cache agree. Works on any model, even a folder of yours without a
    family row. Errors are relative to the largest value; exits with 1 when one is over its limit.

    Example: monosem verify gpt2 --dtype float32 --dtype bfloat16
    """
    import pandas as pd

    from ..models import load_model
    from ..models.checking.verify import side_by_side
    from ..models.checking.verify import verify as identities

    options: dict[str, Any] = {"device": device, "trust_remote_code": trust_remote_code, "quiet": printing.silent}
    models = (load_model(model, dtype=name, **options) for name in dtype or ["float32"])
    checks = [identities(one) for one in models]
    if by_site:
        shown = pd.concat([check.by_site for check in checks], axis=1).reset_index()
    else:
        shown = checks[0].table if len(checks) == 1 else side_by_side(checks)
    as_json(shown) if printing.json else frame(shown)
    for check in checks:
        say(f"{check.model}, {check.dtype}: {check.note}", printing.silent or not check.note)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
