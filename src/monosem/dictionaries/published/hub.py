"""Fetching from the hub: exactly the files that reading a dictionary needs, into the hub's cache."""

import contextlib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...errors import UnknownName, cause
from ...hub import asked_once
from .registry import Published

# layout -> the files of a dictionary at a path, and those that may be missing; of a pattern, all that there are
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
    "circuit_tracer_clt": (["W_enc_*.safetensors", "W_dec_*.safetensors"], ["config.yaml"]),
    "circuit_tracer_layer": (["{path}"], ["config.yaml", "wandb-config.yaml", "wanb-config.yaml"]),
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
    from huggingface_hub import hf_hub_download

    if one.layout not in LAYOUTS:
        raise UnknownName(
            f"{one.name} is one layer of a cross-layer transcoder, whose latents write to all later layers, too; "
            f"load_dictionary({one.repo!r}) reads all its layers"
        )
    with asked_once() as silent:
        try:
            needed, optional = files(one)
            if any("*" in name for name in needed):
                needed = _matching(one.repo, needed)
            found = [Path(hf_hub_download(one.repo, name)) for name in needed]
        except Exception as error:  # the hub's client raises many kinds, offline and not
            raise UnknownName(f"{one.name}: {advice(one, error, silent)}") from error
        for name in optional:
            _optional(hf_hub_download, one.repo, name)
    root = found[0].parents[len(Path(needed[0]).parts) - 1]
    return root / one.path


def advice(one: Published, error: BaseException, silent: str | None) -> str:
    """Why the hub gave nothing, and what to do: one line. `silent`: as `monosem.hub.silence`."""
    if type(error).__name__ == "GatedRepoError":
        return f"{one.repo} wants its terms accepted at https://huggingface.co/{one.repo}; then: hf auth login"
    told = {"site": one.site, "site_out": one.site_out, "model_name": one.model, "norm_scaling_factor": one.scale}
    given = "".join(f", {key}={value!r}" for key, value in told.items() if value is not None)
    folder = f"; or add --local-dir DIR, and load_dictionary('DIR/{one.path}'{given})"
    return (
        f"the hub gave nothing ({reason(error, silent)}); where there is a network, run: {command(one)}; then this "
        f"name is found in its cache, also in a copy of it (HF_HOME){'' if one.overrides else folder}"
    )


def reason(error: BaseException, silent: str | None) -> str:
    """Why the hub gave nothing, in a few words where its own are many."""
    return cause(error) if silent is None else f"it {silent}, and its cache lacks this"


def command(one: Published) -> str:
    """What downloads it with the hub's own tool."""
    names = [f"'{name}'" if set(name) & set(" ':*") else name for part in files(one) for name in part]
    patterns = any("*" in name for name in names)
    return f"hf download {one.repo} {' '.join(f'--include {name}' if patterns else name for name in names)}"


def _matching(repo: str, patterns: list[str]) -> list[str]:
    """The files of a repository that fit; where there is no network, of its copy in the cache."""
    held = listed(repo)
    found = [name for pattern in patterns for name in held if fnmatch(name, pattern)]
    if not found:
        raise UnknownName(f"it has none of {', '.join(patterns)}")
    return found


def _optional(download: Any, repo: str, name: str) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # not there, or no network and not in the cache
    with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
        download(repo, name)


def listed(repo: str) -> list[str]:
    """The files of a repository; without a network, those in the hub's cache. Raises what the hub's client does."""
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(repo)
    except Exception as error:  # no network, say
        if not (files := _cached(repo)):
            raise error
        return files


def _cached(repo: str) -> list[str]:
    """The files of a repository that are in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        root = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return []
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
