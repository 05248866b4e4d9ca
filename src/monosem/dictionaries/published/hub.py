"""Fetching a published dictionary: exactly the files that reading it needs, into the hub's cache."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import UnknownName, cause
from .registry import Published

# layout -> the files of a dictionary at a path, and those that may be missing
LAYOUTS: dict[str, tuple[list[str], list[str]]] = {
    "saelens": (["{path}/cfg.json", "{path}/sae_weights.safetensors"], []),
    "gemma_scope": (["{path}/params.npz"], []),
    "gemma_scope_2": (["{path}/params.safetensors"], ["{path}/config.json"]),
    "dictionary_learning": (["{path}/ae.pt", "{path}/config.json"], []),
    "sparsify": (["{path}/cfg.json", "{path}/sae.safetensors"], []),
    "llama_scope": (["{path}/hyperparams.json", "{path}/checkpoints/final.safetensors"], []),
    "llamascopium": (["{path}/config.json", "{path}/sae_weights.safetensors"], []),
    "temporal": (["{path}/conf.yaml", "{path}/latest_ckpt.safetensors"], []),
    "file": (["{path}"], []),
    "file_with_cfg": (["{path}", "{stem}_cfg.json"], []),
    "circuit_tracer_layer": (["{path}"], ["config.yaml", "wandb-config.yaml", "wanb-config.yaml"]),
}
# layout of a whole repository -> patterns of its files
SETS = {
    "circuit_tracer_clt": ["config.yaml", "W_enc_*.safetensors", "W_dec_*.safetensors"],
    "circuit_tracer_set": ["config.yaml", "layer_*.safetensors"],
}


def files(one: Published) -> tuple[list[str], list[str]]:
    """The files of a dictionary in its repository, and those that may be missing."""
    stem = one.path.removesuffix(".pt")
    needed, optional = LAYOUTS[one.layout]
    return [name.format(path=one.path, stem=stem) for name in needed], [name.format(path=one.path) for name in optional]


def fetched(one: Published) -> Path:
    """Where it lies in the hub's cache, downloaded if it is not there.

    Raises:
        UnknownName: the hub gives nothing (no network, terms to accept, gone); the message says what to do.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    if one.layout not in LAYOUTS and one.layout not in SETS:
        raise UnknownName(
            f"{one.name} is one layer of a cross-layer transcoder, whose latents write to all later layers too; "
            f"load all of it: load_dictionary({one.repo!r})"
        )
    try:
        if one.layout in SETS:
            return Path(snapshot_download(one.repo, allow_patterns=SETS[one.layout]))
        needed, optional = files(one)
        found = [Path(hf_hub_download(one.repo, name)) for name in needed]
    except Exception as error:  # the hub's client raises many kinds, offline and not
        raise UnknownName(f"{one.name}: {advice(one, error)}") from error
    for name in optional:
        _optional(hf_hub_download, one.repo, name)
    root = found[0].parents[len(Path(needed[0]).parts) - 1]
    return root / one.path


def advice(one: Published, error: BaseException) -> str:
    """Why the hub gave nothing, and what to do: one line."""
    if type(error).__name__ == "GatedRepoError":
        return f"{one.repo} wants its terms accepted at https://huggingface.co/{one.repo}; then: hf auth login"
    told = {"site": one.site, "site_out": one.site_out, "model_name": one.model, "norm_scaling_factor": one.scale}
    given = "".join(f", {key}={value!r}" for key, value in told.items() if value is not None)
    place = f"DIR/{one.path}".rstrip("/")
    folder = f"; or add --local-dir DIR, and load_dictionary({place!r}{given})"
    return (
        f"the hub gave nothing ({silence(error)}); where there is a network, run: {command(one)}; then this name is "
        f"found in its cache, also in a copy of it (HF_HOME){'' if one.overrides else folder}"
    )


def silence(error: BaseException) -> str:
    """Why the hub gave nothing, in a few words where its own are many."""
    offline = type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled")
    return "no network, and not in its cache" if offline else cause(error)


def command(one: Published) -> str:
    """What downloads it with the hub's own tool."""
    names = [f"--include '{pattern}'" for pattern in SETS[one.layout]] if one.layout in SETS else _flat(files(one))
    return f"hf download {one.repo} {' '.join(names)}"


def _flat(parts: Iterable[list[str]]) -> list[str]:
    return [f"'{name}'" if set(name) & set(" ':") else name for part in parts for name in part]


def _optional(download: Any, repo: str, name: str) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # not there, or no network and not in the cache
    with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
        download(repo, name)
