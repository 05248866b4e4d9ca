"""Activations over windows of tokens: several sites from one forward pass, which ends after the last of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data import TextSource, TokenStore, as_store
from ..errors import BadInput
from ..jobs import module_fingerprint
from ..models import Model, Site, SiteLike, TokenBatch
from .second import AnySite, Second, any_site, check_pair, validated
from .skipping import Skipper, SkipRule


@dataclass(frozen=True, eq=False)
class ActivationBatch:
    """The kept tokens of some windows. Row i of every tensor belongs to the same token.

    Attributes:
        activations: site -> `n d` (sites with heads are flattened to head * d_head, as dictionaries want them).
        tokens, windows, positions: `n`: token id, index of its window in the source, position in the window.
    """

    activations: Mapping[AnySite, Float[Tensor, "n d"]]
    tokens: Int[Tensor, "n"]
    windows: Int[Tensor, "n"]
    positions: Int[Tensor, "n"]

    def __getitem__(self, site: SiteLike | Second) -> Float[Tensor, "n d"]:
        return self.activations[any_site(site)]

    def __len__(self) -> int:
        return len(self.tokens)


class Harvest:
    """Reads activations of chosen windows. Iterating goes once over all windows, in order, `batch_size` at a time.

    `harvest.read(indices)` gives the batch of any windows; `harvest.skipped` counts the tokens by reason so far.
    """

    def __init__(
        self,
        model: Model,
        store: TokenStore,
        sites: Sequence[AnySite],
        batch_size: int,
        skip: SkipRule,
        dtype: torch.dtype | None,
        thresholds: Mapping[str, float] | None = None,
        second: Model | None = None,
    ):
        self.second = second
        self.model, self.store, self.sites, self.batch_size, self.dtype = model, store, list(sites), batch_size, dtype
        self.skipper = Skipper(skip, model.special_ids, model.cfg.d_vocab)
        self._widths: dict[AnySite, int] = {}
        if thresholds is not None or skip.outlier is None:
            self.skipper.thresholds = dict(thresholds or {})
            self._run(torch.tensor([0]))
        else:
            self._calibrate()

    def __iter__(self) -> Iterator[ActivationBatch]:
        for start in range(0, len(self.store), self.batch_size):
            yield self.read(torch.arange(start, min(start + self.batch_size, len(self.store))))

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.store) // self.batch_size)

    @property
    def skipped(self) -> Counter[str]:
        return self.skipper.counts

    @property
    def thresholds(self) -> dict[str, float]:
        return self.skipper.thresholds

    def read(self, windows: Int[Tensor, "batch"]) -> ActivationBatch:
        """The kept tokens of these windows, in order."""
        ids, rows = self._run(windows)
        kept = self.skipper.keep(ids, rows)
        context = ids.shape[1]
        activations = {}
        for site in self.sites:
            x = rows[str(site)].index_select(0, kept)
            activations[site] = x if self.dtype is None else x.to(self.dtype)
        return ActivationBatch(
            activations,
            ids.flatten()[kept],
            windows.to(ids.device)[kept // context],
            kept % context,
        )

    def width(self, site: AnySite) -> int:
        """Length of a row at this site."""
        return self._widths[site]

    def _run(self, windows: Int[Tensor, "batch"]) -> tuple[Int[Tensor, "batch pos"], dict[str, Float[Tensor, "t d"]]]:
        ids = self.store[windows.numpy()].to(self.model.device)
        captured = self._captured(self.model, ids, {site: site for site in self.sites if isinstance(site, Site)})
        if self.second is not None:
            of_second: dict[AnySite, Site] = {site: site.site for site in self.sites if isinstance(site, Second)}
            captured |= self._captured(self.second, ids, of_second)
        rows = {}
        for site in self.sites:
            x = captured[site]
            if x.shape[:2] != ids.shape:
                raise BadInput(f"{site} has no row for each token (shape {list(x.shape)}), so it cannot be harvested")
            rows[str(site)] = x.flatten(0, 1).flatten(1)
        self._widths = {site: rows[str(site)].shape[1] for site in self.sites}
        return ids, rows

    def _captured(
        self, model: Model, ids: Int[Tensor, "batch pos"], sites: Mapping[AnySite, Site]
    ) -> dict[AnySite, Tensor]:
        """What one pass of a model gives at its sites, on the device of the first model."""
        if not sites:
            return {}
        run = model.run(TokenBatch.whole(ids.to(model.device)), capture=list(sites.values()), logits=False)
        return {name: run[site].to(self.model.device) for name, site in sites.items()}

    def _calibrate(self) -> None:
        """Medians from windows spread evenly over the source: the same ones in every run, whatever the batch size."""
        count = min(self.skipper.rule.calibration, len(self.store))
        spread = np.unique(np.linspace(0, len(self.store) - 1, count).round().astype(np.int64))
        parts = [self._run(chunk) for chunk in torch.from_numpy(spread).split(self.batch_size)]
        ids = torch.cat([ids for ids, _ in parts])
        self.skipper.calibrate(ids, {name: torch.cat([rows[name] for _, rows in parts]) for name in parts[0][1]})


def harvest(
    model: Model,
    texts: TextSource,
    sites: SiteLike | Second | Sequence[SiteLike | Second],
    *,
    batch_size: int = 16,
    skip: SkipRule | None = None,
    dtype: torch.dtype | None = None,
    context: int = 256,
    apart: bool = False,
    thresholds: Mapping[str, float] | None = None,
    second: Model | None = None,
) -> Harvest:
    """Activations at `sites` for every token of `texts` that the skip rule keeps.

    Args:
        texts: a `TokenStore`, windows of token ids, or documents (then packed into windows of `context`).
        sites: one or several, all from one forward pass.
        batch_size: windows a forward pass.
        skip: `SkipRule()` by default: special tokens, the first position, and norm outliers are left out and counted.
        dtype: of the result; the model's by default.
        apart: of documents: no window has tokens of two.
        thresholds: outlier thresholds of an earlier harvest (`.thresholds`) instead of calibrating anew.
        second: another model that reads the same tokens; its sites are written `second:resid_post.15`.

    Raises:
        UnknownName: no such site. Mismatch: a second model with other tokens.
        BadInput: no site, a site that does not have one row a token (patterns, scores), too little text, bad numbers.
    """
    if batch_size < 1:
        raise BadInput(f"batch_size must be at least 1, not {batch_size}")
    store = as_store(model, texts, context, apart=apart)
    wanted = as_sites(model, sites, second)
    if second is not None:
        check_pair(model, second, store.context)
    return Harvest(model, store, wanted, batch_size, skip or SkipRule(), dtype, thresholds, second)


def made_by(model: Model, second: Model | None) -> dict[str, str]:
    """Whose activations they are, for what goes on later: names, and fingerprints of the weights, which may have
    changed under the same name."""
    models = {"model": model} | ({} if second is None else {"second_model": second})
    return {key: one.name for key, one in models.items()} | {
        f"{key}_weights": module_fingerprint(one.hf) for key, one in models.items()
    }


def as_sites(
    model: Model, sites: SiteLike | Second | Sequence[SiteLike | Second], second: Model | None = None
) -> list[AnySite]:
    """One site in any spelling, or several, validated against their model.

    Raises:
        BadInput: no site, or one site twice; UnknownName: no such site.
    """
    found = [validated(model, second, site) for site in one_or_many(sites)]
    if not found or len(set(found)) != len(found):
        raise BadInput(f"give at least one site, and each once; got {', '.join(map(str, found)) or 'none'}")
    return found


def one_or_many(sites: SiteLike | Second | Sequence[SiteLike | Second]) -> list[SiteLike | Second]:
    """`("resid_post", 15)` is one site, `("resid_post.15", "z.3")` are two."""
    if isinstance(sites, str | Site | Second):
        return [sites]
    if isinstance(sites, tuple) and len(sites) == 2 and isinstance(sites[1], int):
        return [(str(sites[0]), sites[1])]
    return list(sites)  # type: ignore[arg-type]
