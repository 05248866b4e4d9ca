"""The registry of published dictionaries, and their names.

It is data (`assets/published.json.gz`, made by `recipes/registry.py` from SAELens' list and a few more): releases, each
with what its dictionaries share and with columns of what they differ in. A dictionary has several names:

    gpt2-small-res-jb/blocks.3.hook_resid_pre           release and id, as in SAELens
    neuronpedia:gpt2-small/3-res-jb                     Neuronpedia's; the prefix may be left out
    jbloom/GPT2-Small-SAEs-Reformatted/blocks.3.hook_resid_pre     where it lies on the hub
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

from ...errors import UnknownName, did_you_mean
from ...files import ASSETS

FILE = ASSETS / "published.json.gz"
NEURONPEDIA = ("neuronpedia:", "https://www.neuronpedia.org/", "https://neuronpedia.org/")
# column of the file -> field; a column that is no list is the value of all
_COLUMNS = {
    "ids": "id",
    "paths": "path",
    "sites": "site_name",
    "outs": "site_out_name",
    "layers": "layer",
    "widths": "width",
    "l0": "l0",
    "neuronpedia": "neuronpedia",
    "scales": "scale",
}


@dataclass(frozen=True)
class Published:
    """One published dictionary, as the registry has it; None where it does not know.

    Attributes:
        id: within the release; "" where the whole repository is one dictionary.
        repo, path: the repository on the hub, and the folder or file in it.
        layout: which files it has (`hub.LAYOUTS`).
        model: id of the model on the hub.
        site_name, site_out_name, layer: where it reads and, of transcoders, writes.
        l0: mean number of active latents, as published.
        scale: what its inputs are multiplied by, where its own files do not say (`norm_scaling_factor`).
        overrides: entries of its config that are wrong or missing in its files.
    """

    release: str
    repo: str
    model: str
    layout: str
    id: str = ""
    path: str = ""
    site_name: str | None = None
    site_out_name: str | None = None
    layer: int | None = None
    width: int | None = None
    l0: float | None = None
    neuronpedia: str | None = None
    scale: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What `load_dictionary` takes."""
        return f"{self.release}/{self.id}" if self.id else self.release

    @property
    def config(self) -> dict[str, Any]:
        """Entries of its config that count before its file's."""
        return {**self.overrides, **({} if self.scale is None else {"norm_scaling_factor": self.scale})}

    @property
    def site(self) -> str | None:
        return self._at(self.site_name)

    @property
    def site_out(self) -> str | None:
        return self._at(self.site_out_name)

    def _at(self, name: str | None) -> str | None:
        return name if name is None or self.layer is None else f"{name}.{self.layer}"


@cache
def registry() -> dict[str, dict[str, Any]]:
    """Release -> its entry of the file."""
    return {one["release"]: one for one in json.loads(gzip.decompress(FILE.read_bytes()))["releases"]}


def dictionaries(release: str) -> Iterator[Published]:
    """The dictionaries of a release, in the order of its publisher."""
    entry = registry()[release]
    shared = {key: entry[key] for key in ("release", "repo", "model", "layout")}
    shared["overrides"] = entry.get("overrides", {})
    held = {"paths": entry["ids"]} | {name: entry[name] for name in _COLUMNS if name in entry}
    shared |= {_COLUMNS[name]: value for name, value in held.items() if not isinstance(value, list)}
    lists = {_COLUMNS[name]: value for name, value in held.items() if isinstance(value, list)}
    for row in zip(*lists.values(), strict=True):
        yield Published(**shared, **dict(zip(lists, row)))


def named(name: str) -> Published | None:
    """The published dictionary of this name, in any of its spellings; None where there is no such release or id.

    Raises:
        UnknownName: no such dictionary in a release that there is; no such id of Neuronpedia.
    """
    for prefix in NEURONPEDIA:
        if name.startswith(prefix):
            return _neuronpedia(name.removeprefix(prefix))
    if (release := _release(name, list(registry()))) is not None:
        return _in_release(release, name[len(release) + 1 :])
    place = neuronpedia_ids().get(name)
    return place if place is not None else _on_hub(name)


@cache
def neuronpedia_ids() -> dict[str, Published]:
    """Neuronpedia's id -> dictionary."""
    held = [release for release, entry in registry().items() if "neuronpedia" in entry]
    every = chain.from_iterable(dictionaries(release) for release in held)
    return {one.neuronpedia: one for one in every if one.neuronpedia}


def near(name: str) -> str:
    """`"; did you mean ...?"` for a name that is near to a release's or to a dictionary's of Neuronpedia."""
    return did_you_mean(name.partition("/")[0], registry()) or did_you_mean(name, neuronpedia_ids())


def _release(name: str, known: list[str]) -> str | None:
    fits = [release for release in known if name == release or name.startswith(f"{release}/")]
    return max(fits, key=len, default=None)


def _in_release(release: str, name: str) -> Published:
    held = {one.id: one for one in dictionaries(release)}
    if name in held:
        return held[name]
    said = did_you_mean(name, held) if name else ""
    few = ", ".join(list(held)[:3])
    raise UnknownName(
        f"release {release!r} has {len(held)} dictionaries, {f'none of them {name!r}' if name else 'give one'}"
        f"{said or f'; such as {few}'}; all: monosem list dictionaries --release {release} --all"
    )


def _neuronpedia(name: str) -> Published:
    model, _, rest = name.partition("/")
    plain = f"{model}/{rest.partition('/')[0]}"  # an address may go on with a latent
    if (found := neuronpedia_ids().get(plain)) is not None:
        return found
    known = [one for one in neuronpedia_ids() if one.startswith(f"{model}/")] or list(neuronpedia_ids())
    raise UnknownName(
        f"no published dictionary with Neuronpedia's id {plain!r}{did_you_mean(plain, known)}; "
        f"ids are in: monosem list dictionaries --json"
    )


def _on_hub(name: str) -> Published | None:
    """By repository and path; where several releases have it, the one that says most."""
    repos = [release for release, entry in registry().items() if name.startswith(f"{entry['repo']}/")]
    fits = [one for release in repos for one in dictionaries(release) if f"{one.repo}/{one.path}" == name]
    return max(fits, key=lambda one: one.neuronpedia is not None, default=None)
