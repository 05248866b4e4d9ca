"""`monosem convert`: a dictionary in another format."""

from pathlib import Path
from typing import Annotated, Any

from .options import DictionaryArgument, option
from .output import line


def convert(
    dictionary: DictionaryArgument,
    to: Annotated[
        str, option("FORMAT", "saelens, sparsify, circuit-tracer or compact (8 bits, read by monosem only).")
    ],
    out: Annotated[Path, option("DIR", "Folder to write; sparsify wants it named after the module (layers.3.mlp).")],
    site: Annotated[str | None, option("SITE", "Where it reads, if its file does not say.")] = None,
    site_out: Annotated[str | None, option("SITE", "Where a transcoder writes, if its file does not say.")] = None,
    model: Annotated[str | None, option("MODEL", "The model it was made for, if its file does not say.")] = None,
    kind: Annotated[str | None, option("NAME", "Its encoder (relu, topk), if its file does not say.")] = None,
    k: Annotated[int | None, option("N", "Its latents a token, if its file does not say.")] = None,
    norm_scaling_factor: Annotated[
        float | None, option("X", "sqrt(d_in) / mean norm of its inputs, if its file does not say.")
    ] = None,
    dtype: Annotated[str, option("NAME", "Of the weights: float32, bfloat16, float16.")] = "float32",
) -> None:
    """Write a dictionary in the format of another tool.

    The other tool then computes the same codes and reconstructions. What its format cannot hold is refused. Layers of a
    circuit-tracer set are written one by one into the same folder. A file that does not say all about itself becomes
    one that does, which every other command reads.

    Example: monosem convert gemma-2-2b/12-gemmascope-res-16k --to saelens --out ./sae
    """
    from ..dictionaries import load_dictionary
    from ..models.loading.precision import choose_dtype

    told: dict[str, Any] = {"kind": kind, "k": k, "norm_scaling_factor": norm_scaling_factor}
    loaded = load_dictionary(dictionary, site=site, site_out=site_out, model_name=model, **told)
    loaded.save(out, to, choose_dtype(dtype, loaded.W_enc.device))
    line(out)
