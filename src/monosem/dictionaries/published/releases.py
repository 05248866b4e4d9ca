"""Which published dictionaries there are: by model, site, layer and width, without a network."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import BadInput, UnknownName, check_name, did_you_mean
from ...files import ASSETS
from ...models.places.sites import IN_BLOCK, ONCE, Site
from ...models.transformerlens.names import ALIASES
from ...reading import read_object
from ...results import Result, analysis
from ..compatibility import plain_name
from .registry import Published, dictionaries, registry

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Releases(Result):
    """Published dictionaries, a row each in `table`; `by_release` and `by_model` count them.

    Attributes:
        dictionaries: shipped ones first, then by model and release.
    """

    dictionaries: tuple[Published, ...]

    def __len__(self) -> int:
        return len(self.dictionaries)

    def __iter__(self) -> Iterator[Published]:
        return iter(self.dictionaries)

    def __repr__(self) -> str:
        return f"Releases({len(self)} dictionaries in {len(self.groups('release'))} releases)"

    @property
    def names(self) -> list[str]:
        """What `load_dictionary` takes."""
        return [one.name for one in self]

    @property
    def table(self) -> "pd.DataFrame":
        """One row a dictionary: `name` is what `load_dictionary` takes."""
        return _frame(rows(self))

    @property
    def by_release(self) -> "pd.DataFrame":
        """One row a release: what is in it."""
        return _frame(self.groups("release"))

    @property
    def by_model(self) -> "pd.DataFrame":
        """One row a model: for which sites, and of which widths, there are dictionaries."""
        return _frame(self.groups("model"))

    def groups(self, key: str) -> list[dict[str, Any]]:
        """One row for each release or model: which sites, layers and widths, and how many dictionaries."""
        held: dict[str, list[Published]] = {}
        for one in self:
            held.setdefault(getattr(one, key), []).append(one)
        return [{key: name, **_summary(key, ones)} for name, ones in held.items()]


@analysis
def releases(
    *,
    model: str | None = None,
    site: str | None = None,
    layer: int | None = None,
    width: int | str | None = None,
    release: str | None = None,
) -> Releases:
    """The published dictionaries that fit, the shipped ones included; nothing is downloaded.

    Args:
        model: in any spelling (`gemma-2-2b`, `google/gemma-2-2b`).
        site: which they read: `resid_post`, `resid_post.12` or `blocks.12.hook_resid_post`.
        width: number of latents; `"16k"` means 16,000 to 16,999, or 16 x 1,024.
        release: a part of the release's name.

    Raises:
        UnknownName: no such model, site or release; near ones are named. BadInput: a width that is no number.
    """
    name, layer = _site(site, layer)
    of_width = _fits(0 if width is None else width)
    fits = [one for one in _every(model, release) if name in (None, one.site_name) and layer in (None, one.layer)]
    if width is not None:
        fits = [one for one in fits if of_width(one.width)]
    return Releases(tuple(fits))


def rows(ones: Iterable[Published]) -> list[dict[str, Any]]:
    """What is shown of each dictionary."""
    shown = ("model", "site", "site_out", "width", "l0", "neuronpedia", "repo", "path")
    return [{"name": one.name} | {name: getattr(one, name) for name in shown} for one in ones]


def short(width: int | None) -> str:
    """16384 -> 16k, 1048576 -> 1m: as releases call their widths."""
    if width is None:
        return "?"
    return f"{width // 10**6}m" if width >= 10**6 else f"{width // 1000}k" if width >= 1000 else str(width)


def _every(model: str | None, release: str | None) -> Iterator[Published]:
    """The dictionaries of a model and of releases whose names hold a text (None: of all)."""
    shipped: dict[str, list[Published]] = {}
    for one in _shipped():
        shipped.setdefault(one.release, []).append(one)
    models = {name: plain_name(ones[0].model) for name, ones in shipped.items()}
    models |= {name: plain_name(entry["model"]) for name, entry in registry().items()}
    if model is not None:
        check_name("published dictionary for", plain_name(model), sorted(set(models.values())))
    chosen = [name for name, its in models.items() if model is None or its == plain_name(model)]
    if release is not None and not any(release in name for name in chosen):
        near = did_you_mean(release, chosen) or "; all: ms.dictionaries.releases().by_release"
        raise UnknownName(f"no published release whose name holds {release!r}{near}")
    for name in chosen:
        if release is None or release in name:
            yield from shipped[name] if name in shipped else dictionaries(name)


def _shipped() -> Iterator[Published]:
    """The dictionaries inside the package, as entries; a release is a model's name here."""
    for path in sorted(ASSETS.glob("*/*/cfg.json")):
        cfg = read_object(path)
        metadata: Mapping[str, Any] = cfg["metadata"]
        site, out = Site.parse(metadata["hook_name"]), metadata.get("hook_name_out")
        yield Published(
            release=path.parent.parent.name,
            repo="",
            model=metadata["model_name"],
            layout="shipped",
            id=path.parent.name,
            path=path.parent.name,
            site_name=site.name,
            site_out_name=None if out is None else Site.parse(out).name,
            layer=site.layer,
            width=cfg["d_sae"],
        )


def _site(site: str | None, layer: int | None) -> tuple[str | None, int | None]:
    """The site's name, and its layer where that is given."""
    if site is None:
        return None, layer
    plain = ALIASES.get(site, site)
    if plain in IN_BLOCK or plain in ONCE:
        return plain, layer
    found = Site.parse(site)
    if layer not in (None, found.layer):
        raise BadInput(f"site {site} is at layer {found.layer}, and layer {layer} was asked for; give one of the two")
    return found.name, found.layer


def _fits(width: int | str) -> Callable[[int | None], bool]:
    """Whether a number of latents is of this width."""
    found = re.fullmatch(r"(\d+)([km]?)", str(width).strip().lower())
    if found is None:
        raise BadInput(f"width {width!r} is no number of latents; write 16384, 16k or 1m")
    units = {"": (1,), "k": (1000, 2**10), "m": (10**6, 2**20)}[found[2]]
    return lambda held: held is not None and int(found[1]) in [held // unit for unit in units]


def _summary(key: str, ones: list[Published]) -> dict[str, Any]:
    first = {"releases": len({one.release for one in ones})} if key == "model" else {"model": ones[0].model}
    layers = sorted({one.layer for one in ones if one.layer is not None})
    sparsity = sorted({one.l0 for one in ones if one.l0 is not None})
    places = {f"{one.site_name or '?'}{f' -> {one.site_out_name}' if one.site_out_name else ''}": None for one in ones}
    widths = sorted({one.width for one in ones if one.width is not None})
    return first | {
        "sites": ", ".join(places),
        "layers": _ranges(layers),
        "widths": ", ".join(map(short, widths)) or "?",
        "l0": f"{sparsity[0]:g} to {sparsity[-1]:g}" if len(sparsity) > 1 else "".join(f"{one:g}" for one in sparsity),
        "dictionaries": len(ones),
    }


def _ranges(layers: list[int]) -> str:
    """`0 to 25`, or the layers one by one where some are left out; the first and last of many."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers)) if len(layers) <= 8 else f"{len(layers)} from {layers[0]} to {layers[-1]}"


def _frame(held: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(held)
