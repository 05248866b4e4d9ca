"""Crosscoders in Neel Nanda's layout: `crosscoder.pt` beside `crosscoder_cfg.json`.

His files have no scales, so activations are raw. They have no thresholds and no k: a jumprelu has the tensor
`threshold [width]` more, a topk the number `k`, which his class refuses (as a relu it would be another function).
`sites` in the config names the places, which his layers from 0 on do not have to be.
"""

from pathlib import Path

import torch

from ...errors import BadInput
from ...files import replacing, replacing_folder, write_json
from ..formats.crosscoder import CONFIG, KINDS, WEIGHTS
from ..several import SeveralSites


def write(crosscoder: SeveralSites, folder: Path, dtype: torch.dtype) -> None:
    """Write it into a folder of its own.

    Raises:
        BadInput: a crosscoder of another kind than these files can hold.
    """
    if crosscoder.kind not in KINDS:
        raise BadInput(f"crosscoder files hold one of kind {', '.join(KINDS)}; this one is a {crosscoder.kind}")
    names = ("W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if crosscoder.threshold is not None else []))
    state = {name: getattr(crosscoder, name).detach().to("cpu", dtype).contiguous() for name in names}
    if crosscoder.k is not None:
        state["k"] = torch.tensor(float(crosscoder.k))
    sites = [None if site is None else str(site) for site in crosscoder.facts.sites]
    config = {
        "dict_size": crosscoder.width,
        "d_in": crosscoder.d_in,
        "model_name": crosscoder.model_name,
        "name": crosscoder.name,
        "enc_dtype": str(dtype).removeprefix("torch."),
        "sites": sites,
        "models": crosscoder.metadata.get("models"),
    }
    with replacing_folder(folder) as target:
        with replacing(target / WEIGHTS) as temporary:
            torch.save(state, temporary)
        write_json(target / CONFIG, config)
