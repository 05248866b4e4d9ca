"""`monosem verify`: identities that a supported model must satisfy."""

import typer

from .options import Device, Dtype, Json, ModelArgument, Quiet
from .output import as_json, frame


def verify(
    model: ModelArgument = "smollm2",
    dtype: Dtype = "float32",
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a model is read and written correctly.

    Compares what is captured with what the model itself computes: the stream is the sum of its parts, patterns sum to
    one, padding changes nothing, generation with and without the cache agree, and so on. Exits with 1 when one fails.

    Example: monosem verify gpt2
    """
    from ..models import load_model
    from ..models.verifying import verify as identities

    found = identities(load_model(model, dtype=dtype, device=device, quiet=quiet))
    as_json(found.table) if json else frame(found.table)
    if not found.ok:
        raise typer.Exit(1)
