"""Fetching a dictionary from any repository of the hub: what lies right in its folder, never a whole collection."""

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from ...errors import UnknownName
from ...hub import asked_once
from .hub import listed, reason

ENDINGS = (".safetensors", ".npz", ".pt", ".pth", ".bin")
# files by which a folder is one dictionary, and the weights that may lie beside them
ONE = (
    *("sae_weights.safetensors", "sae.safetensors", "params.npz", "params.safetensors", "ae.pt"),
    *("latest_ckpt.safetensors", "checkpoints/final.safetensors"),
)
BESIDE = ("activation_whitening.safetensors",)
CONFIGS = ("config.yaml", "config.json", "cfg.json", "wandb-config.yaml", "wanb-config.yaml", "{stem}_cfg.json")


def fetched_from(repo: str, inside: str, lead: str) -> Path:
    """A folder or file of a repository in the hub's cache, downloaded if it is not there.

    Args:
        inside: its path in the repository; "" for the repository itself. lead: what the message of silence begins with.

    Raises:
        UnknownName: the hub gives nothing, there is no such path, or it holds several dictionaries (one is named).
    """
    from huggingface_hub import hf_hub_download

    with asked_once() as silent:
        try:
            wanted = chosen(repo, inside, listed(repo))
            found = [Path(hf_hub_download(repo, name)) for name in wanted]
        except UnknownName:
            raise
        except Exception as error:  # the hub's client raises many kinds, offline and not
            what = f" --include '{inside}/*'" if inside else ""
            raise UnknownName(
                f"{lead}the hub gave nothing ({reason(error, silent)}); where there is a network: "
                f"hf download {repo}{what} --local-dir DIR, then "
                f"load_dictionary({'/'.join(['DIR', inside]).rstrip('/')!r})"
            ) from error
    return found[0].parents[len(PurePosixPath(wanted[0]).parts) - 1] / inside


def chosen(repo: str, inside: str, files: list[str]) -> list[str]:
    """Which files of a repository the dictionary at a path has. Errors as `fetched_from`."""
    place = PurePosixPath(inside)
    if inside in files:
        beside = [(place.parent / name.format(stem=place.stem)).as_posix() for name in CONFIGS]
        return [inside, *(name for name in beside if name in files)]
    below = {PurePosixPath(name).relative_to(place).as_posix(): name for name in files if _below(name, inside)}
    if not below:
        raise UnknownName(f"the hub repository {repo} has no {inside!r}")
    known = [name for name in ONE if name in below]
    weights = known or [name for name in below if "/" not in name and name.endswith(ENDINGS)]
    if len(weights) == 1 or (known and weights):
        held = [name for name in below if name in BESIDE or ("/" not in name and not name.endswith(ENDINGS))]
        return [below[name] for name in (*weights, *held) if not fnmatch(name, "README*")]
    inner = sorted({str(PurePosixPath(name).parent) for name in below if name.endswith(ENDINGS)} - {"."})
    several = weights or inner
    if not several:
        raise UnknownName(f"{repo}/{inside} holds no weights: {', '.join(list(below)[:5])}")
    kind = "files of weights" if weights else "folders"
    example = (PurePosixPath(repo) / inside / several[0]).as_posix()
    raise UnknownName(
        f"{(PurePosixPath(repo) / inside).as_posix()} has {len(several)} {kind}; give one, such as {example}"
    )


def _below(name: str, inside: str) -> bool:
    return not inside or name.startswith(f"{inside}/")
