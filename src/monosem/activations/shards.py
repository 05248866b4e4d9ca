"""Activations on disk: harvested once, read back under a global shuffle for as many epochs as wanted."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data import TextSource, as_store
from ..errors import BadFile, BadInput
from ..files import replacing
from ..jobs import JobConfig, claim, claimed
from ..models import Model, SiteLike
from ..progress import Meter
from ..reading import parse_json
from .harvesting import Harvest, as_sites, made_by, one_or_many
from .schedule import Schedule
from .second import AnySite, Second, any_site, check_pair
from .skipping import SkipRule
from .stream import Batch, check_config

PLACES = ("tokens", "windows", "positions")  # where each row comes from, int32 beside the activations


class HarvestConfig(JobConfig):
    """What a folder of activation shards holds."""

    job: ClassVar[str] = "harvest"

    model: str = Field(description="name of the model")
    second_model: str | None = Field(default=None, description="name of the second model, whose sites are second:...")
    model_dtype: str = Field(description="dtype that the model ran in")
    sites: list[str] = Field(description="sites that were read, all from one forward pass")
    dtype: str = Field(description="dtype of the files")
    windows: str = Field(description="fingerprint of the token store")
    context: int = Field(gt=0, description="tokens a window")
    batch_size: int = Field(gt=0, description="windows a forward pass")
    shard_windows: int = Field(gt=0, description="windows a file")
    shards: int = Field(gt=0, description="number of files")
    skip: str = Field(description="which tokens are left out")


class ActivationShards:
    """A folder of safetensors files `shard-00000.safetensors`, ..., each with one `n d` tensor a site, and `PLACES`.

    Files are memory-mapped: opening costs nothing, and only rows that are read take memory.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Open a finished harvest.

        Raises:
            BadFile: no harvest there, a missing or damaged shard (run the harvest again: it fills what is missing).
        """
        self.path = Path(path)
        self.config = claimed(self.path, HarvestConfig)
        self.sites = [any_site(site) for site in self.config.sites]
        self._shards: list[dict[str, Tensor]] = []
        self.skipped: Counter[str] = Counter()
        self.thresholds: dict[str, float] = {}  # site -> norm above which a token was left out as an outlier
        for number in range(self.config.shards):
            tensors, about = _open_shard(self.path / _shard_name(number), self.config.sites)
            self._shards.append(tensors)
            self.skipped.update(about["skipped"])
            self.thresholds = dict(about["thresholds"])
        self._sizes = torch.tensor([len(shard["tokens"]) for shard in self._shards])
        self._starts = torch.cat([torch.zeros(1, dtype=torch.long), self._sizes.cumsum(0)[:-1]])

    @classmethod
    def build(
        cls,
        model: Model,
        texts: TextSource,
        sites: SiteLike | Second | Sequence[SiteLike | Second],
        path: str | os.PathLike[str],
        *,
        batch_size: int = 16,
        skip: SkipRule | None = None,
        dtype: torch.dtype | None = None,
        context: int = 256,
        apart: bool = False,
        shard_windows: int = 512,
        quiet: bool = True,
        second: Model | None = None,
    ) -> Self:
        """Harvest to `path`; a harvest that was cut off goes on with its first missing shard.

        Args:
            texts: a `TokenStore`, windows of token ids, or documents (then packed in memory).
            dtype: of the files; the model's by default.
            apart: of documents: no window has tokens of two.
            shard_windows: windows a file.
            second: another model that reads the same tokens, as in `harvest`.

        Raises:
            Mismatch: the folder holds a harvest with other settings (the message names them).
            BadInput, UnknownName: as `harvest`; BadFile: the disk is full.
        """
        if batch_size < 1 or shard_windows < 1:
            raise BadInput(f"batch_size and shard_windows must be at least 1; got {batch_size} and {shard_windows}")
        store = as_store(model, texts, context, apart=apart)
        rule, wanted = skip or SkipRule(), as_sites(model, sites, second)
        if second is not None:
            check_pair(model, second, store.context)
        config = HarvestConfig(
            model=model.name,
            second_model=None if second is None else second.name,
            model_dtype=str(model.dtype),
            sites=[str(site) for site in wanted],
            dtype=str(dtype or model.dtype),
            windows=store.fingerprint,
            context=store.context,
            batch_size=batch_size,
            shard_windows=shard_windows,
            shards=-(-len(store) // shard_windows),
            skip=str(rule),
        )
        with claim(path, config, work="shard-*.safetensors", made_with=made_by(model, second)) as folder:
            missing = [n for n in range(config.shards) if not (folder / _shard_name(n)).exists()]
            if missing:
                harvest = Harvest(model, store, wanted, batch_size, rule, dtype, _thresholds(folder), second)
                _fill(folder, harvest, missing, shard_windows, quiet)
        return cls(path)

    @property
    def tokens(self) -> int:
        """Rows in all shards."""
        return int(self._sizes.sum())

    def width(self, site: SiteLike | Second) -> int:
        """Length of a row at this site."""
        return self._shards[0][str(self._held(site))].shape[1]

    def size_of(self, sites: Sequence[SiteLike | Second]) -> int:
        """Bytes that all rows of these sites take."""
        return sum(shard[str(self._held(site))].nbytes for shard in self._shards for site in sites)

    def loaded(self, site: SiteLike | Second, device: torch.device | str) -> Float[Tensor, "n d"]:
        """All rows of a site, copied to a device."""
        key = str(self._held(site))
        out = torch.empty(self.tokens, self.width(site), dtype=self._shards[0][key].dtype, device=device)
        for shard, start in zip(self._shards, self._starts.tolist()):
            out[start : start + len(shard[key])] = shard[key]
        return out

    def rows(self, name: SiteLike | Second, indices: Int[Tensor, "n"]) -> Tensor:
        """Rows by index into all shards: of a site (`n d`), or of one of `PLACES` (`n`)."""
        key = name if isinstance(name, str) and name in PLACES else str(self._held(name))
        shard_of = torch.searchsorted(self._starts, indices, right=True) - 1
        first = self._shards[0][key]
        out = torch.empty(len(indices), *first.shape[1:], dtype=first.dtype)
        places = shard_of.argsort(stable=True).split(torch.bincount(shard_of, minlength=len(self._shards)).tolist())
        for shard, start, where in zip(self._shards, self._starts, places):
            if len(where):
                out[where] = shard[key].index_select(0, indices[where] - start)
        return out

    def stream(
        self,
        *,
        batch_tokens: int = 4096,
        seed: int = 0,
        epochs: int = 1,
        sites: SiteLike | Second | Sequence[SiteLike | Second] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        resident: bool | None = None,
    ) -> "ShardStream":
        """Batches under a permutation of all rows, another one each epoch. Same interface as `ActivationStream`.

        Args:
            device: of the batches.
            resident: keep a copy of all rows on the device, so that a batch is one gather; None does so on an
                accelerator where they take at most half of the free memory. The batches are the same either way.
        """
        wanted = self.sites if sites is None else [self._held(site) for site in one_or_many(sites)]
        return ShardStream(self, wanted, batch_tokens, seed, epochs, dtype, torch.device(device), resident)

    def _held(self, site: SiteLike | Second) -> AnySite:
        wanted = any_site(site)
        if wanted not in self.sites:
            raise BadInput(f"these shards hold {', '.join(map(str, self.sites))}, not {wanted}")
        return wanted


class ShardStream:
    """Iterator over globally shuffled batches; its state is one number."""

    def __init__(
        self,
        shards: ActivationShards,
        sites: list[AnySite],
        batch_tokens: int,
        seed: int,
        epochs: int,
        dtype: torch.dtype,
        device: torch.device,
        resident: bool | None = None,
    ):
        self.shards, self.sites, self.batch_tokens, self.dtype, self.device = shards, sites, batch_tokens, dtype, device
        self.schedule = Schedule(shards.tokens, seed, epochs)
        if not 1 <= batch_tokens <= len(self.schedule):
            raise BadInput(f"batches of {batch_tokens:,} tokens cannot be served from {len(self.schedule):,}")
        self.cursor = 0  # rows served
        if resident is None:
            resident = device.type == "cuda" and shards.size_of(sites) <= torch.cuda.mem_get_info(device)[0] / 2
        self._resident = {site: shards.loaded(site, device) for site in sites} if resident else {}
        self.config: dict[str, Any] = {
            **shards.config.model_dump(include={"model", "windows", "skip", "dtype"}),
            "sites": [str(site) for site in sites],
            "tokens": shards.tokens,
            "batch_tokens": batch_tokens,
            "seed": seed,
            "epochs": epochs,
        }

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        left = len(self.schedule) - self.cursor
        if left < self.batch_tokens:
            raise StopIteration
        indices = self.schedule.take(self.cursor, self.batch_tokens)
        rows = {site: self._rows(site, indices) for site in self.sites}
        self.cursor += self.batch_tokens
        return rows[self.sites[0]] if len(self.sites) == 1 else rows

    @property
    def skipped(self) -> Counter[str]:
        """Tokens by what became of them in the harvest, and the tokens that the last batch has no room for."""
        return self.shards.skipped + Counter(remainder=len(self.schedule) % self.batch_tokens)

    @property
    def skip(self) -> SkipRule:
        return SkipRule.parse(self.shards.config.skip)

    @property
    def thresholds(self) -> dict[str, float]:
        """Site -> norm above which a token was left out as an outlier."""
        return self.shards.thresholds

    @property
    def batches_at_most(self) -> int:
        """The number of batches (exact here)."""
        return len(self.schedule) // self.batch_tokens

    def _rows(self, site: AnySite, indices: Int[Tensor, "n"]) -> Float[Tensor, "n d"]:
        if site in self._resident:
            return self._resident[site].index_select(0, indices.to(self.device)).to(self.dtype)
        return self.shards.rows(site, indices).to(self.device, self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on with the very next batch."""
        return {"config": dict(self.config), "cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `Mismatch` when the state is of a stream with other settings."""
        check_config(self.config, state["config"])
        self.cursor = int(state["cursor"])


def _shard_name(number: int) -> str:
    return f"shard-{number:05}.safetensors"


def _fill(folder: Path, harvest: Harvest, missing: list[int], shard_windows: int, quiet: bool) -> None:
    context = harvest.store.context
    total = len(harvest.store)
    spans = [torch.arange(n * shard_windows, min((n + 1) * shard_windows, total)) for n in missing]
    ready = total - sum(map(len, spans))
    with Meter("harvest", total * context, "tok", quiet=quiet, start=ready * context) as meter:
        for number, windows in zip(missing, spans):
            before = Counter(harvest.skipped)
            batches = []
            for some in windows.split(harvest.batch_size):
                batches.append(harvest.read(some))
                meter.advance(len(some) * context)
            tensors = {str(site): torch.cat([b.activations[site] for b in batches]).cpu() for site in harvest.sites}
            for place in PLACES:
                tensors[place] = torch.cat([getattr(b, place) for b in batches]).to("cpu", torch.int32)
            counts = {reason: n - before[reason] for reason, n in harvest.skipped.items()}
            about = json.dumps({"skipped": counts, "thresholds": harvest.thresholds})
            with replacing(folder / _shard_name(number)) as temporary:
                save_file(tensors, temporary, metadata={"about": about})


def _thresholds(folder: Path) -> dict[str, float] | None:
    """The outlier thresholds of a harvest that was cut off; None where no shard was written yet."""
    first = next(iter(sorted(folder.glob("shard-*.safetensors"))), None)
    return None if first is None else dict(_open_shard(first, [])[1]["thresholds"])


def _open_shard(path: Path, sites: list[str]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The tensors of a shard, and what its harvest counted and measured."""
    if not path.exists():
        raise BadFile(f"{path} is missing: the harvest was cut off; run it again, it goes on where it stopped")
    try:
        with safe_open(path, "pt") as file:
            about = parse_json(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in (*sites, *PLACES)}
        if not all(isinstance(about[key], dict) for key in ("skipped", "thresholds")):
            raise TypeError("what the harvest counted is missing")
        if len({len(tensor) for tensor in tensors.values()}) > 1 or any(tensors[site].ndim != 2 for site in sites):
            raise ValueError("its tensors do not fit together")
        return tensors, about
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{path} is damaged ({error}); delete it and run the harvest again") from error
