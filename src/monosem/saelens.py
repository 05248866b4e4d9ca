"""SAELens's names, so that its tutorials run with the import changed.

    from monosem.saelens import SAE, HookedSAETransformer

    model = HookedSAETransformer.from_pretrained("gpt2")
    sae = SAE.from_pretrained("gpt2-small-res-jb", "blocks.7.hook_resid_pre")
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
    cache["blocks.7.hook_resid_pre.hook_sae_acts_post"]

An `SAE` is a `Dictionary` whose codes are dense, as SAELens's are; `sae.dictionary` is what the rest of monosem takes.
Weights are in the canonical form: norms and scales are folded, and no decoder bias is subtracted from the input.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .dictionaries import Dictionary, one_site, releases
from .dictionaries.compatibility import plain_name
from .dictionaries.writers.saelens import WRITTEN
from .edits import Edit, Gate
from .errors import BadInput, UnknownName
from .models import Model, load_model
from .models.loading.catalogue import EMBEDDED

__all__ = ["SAE", "HookedSAETransformer"]

_TRAINING = "ms.dictionaries.train(TrainConfig(...)) or `monosem train`: docs/training.md"
_CLASSES = "SAE, which holds every architecture: SAE.load_from_disk(folder)"
# SAELens's name, or the end of several -> what does the same here
ELSEWHERE = {
    "ActivationsStore": "ms.activations.ActivationStream.build(model, texts, site), or ms.data.TokenStore for tokens",
    "CacheActivationsRunner": "ms.activations.ActivationShards.build(model, texts, site, folder)",
    "CacheActivationsRunnerConfig": "ms.activations.ActivationShards.build(model, texts, site, folder)",
    "PretokenizeRunner": "ms.data.TokenStore.build(model, texts, context)",
    "PretokenizeRunnerConfig": "ms.data.TokenStore.build(model, texts, context)",
    "pretokenize_runner": "ms.data.TokenStore.build(model, texts, context)",
    "run_evals": "ms.dictionaries.evaluate(model, sae.dictionary, texts), or `monosem evaluate`",
    "MultiSAEEvaluator": "ms.dictionaries.evaluate_each",
    "MultiSAETrainingRunner": "ms.dictionaries.train_several: docs/training.md",
    "MultiSAETrainingRunnerConfig": "ms.dictionaries.train_several: docs/training.md",
    "upload_saes_to_huggingface": "sae.save_model(folder), then: hf upload OWNER/REPO folder",
    "get_pretrained_saes_directory": "ms.dictionaries.releases(), or `monosem list dictionaries`",
    "LoggingConfig": "metrics.jsonl in the folder of a training run",
    **dict.fromkeys(("register_sae_class", "register_sae_training_class"), "a file and a row: CONTRIBUTING.md"),
    **dict.fromkeys(("Runner", "RunnerConfig", "Trainer", "TrainingSAE", "TrainingSAEConfig"), _TRAINING),
    **dict.fromkeys(("SAE", "SAEConfig", "Transcoder", "TranscoderConfig"), _CLASSES),
}


def __getattr__(name: str) -> Any:
    found = next((told for end, told in ELSEWHERE.items() if name.endswith(end)), None)
    if name.startswith("_") or found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise UnknownName(f"SAELens's {name} is not in monosem.saelens; use {found}")


_NO_FOLD = "this is done when a dictionary is read: rows have the norms that the file's own activations need"


class SAE:
    """A dictionary with SAELens's methods.

    Attributes:
        dictionary: the dictionary itself; its attributes (`W_enc`, `W_dec`, `b_enc`, `b_dec`, ...) are the SAE's, too.
        use_error_term: what `model.run_with_saes(...)` does where it is not told.
    """

    def __init__(self, dictionary: Dictionary, use_error_term: bool = False):
        self.dictionary, self.use_error_term = dictionary, use_error_term

    @classmethod
    def from_pretrained(
        cls,
        release: str,
        sae_id: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
    ) -> SAE:
        """A published dictionary by its release and id; or a path, or any other name that `load_dictionary` takes."""
        name = release if sae_id is None else f"{release}/{sae_id}"
        return cls(one_site(name, device=device, dtype=_dtype(dtype)))

    @classmethod
    def from_pretrained_with_cfg_and_sparsity(
        cls, release: str, sae_id: str | None = None, device: str | torch.device = "cpu"
    ) -> tuple[SAE, dict[str, Any], None]:
        """The SAE, its settings, and None: log sparsity is not part of the dictionaries that are read here."""
        sae = cls.from_pretrained(release, sae_id, device)
        return sae, sae.cfg.to_dict(), None

    @classmethod
    def load_from_disk(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
    ) -> SAE:
        """A dictionary in a folder, of any format that is read here."""
        return cls(one_site(path, device=device, dtype=_dtype(dtype)))

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """In SAELens's layout."""
        self.dictionary.save(path)

    @property
    def cfg(self) -> Config:
        """What it is: `d_in`, `d_sae`, `dtype`, `device`, `architecture()`, `metadata` (also as `cfg.hook_name`)."""
        one = self.dictionary
        metadata = {
            **one.metadata,
            "model_name": one.model_name,
            "hook_name": one.site.hook_name,
            "hook_name_out": one.site_out.hook_name if one.transcoder else None,
        }
        sizes = {"d_in": one.d_in, "d_sae": one.width, "d_out": one.d_out}
        where = {"dtype": str(one.W_enc.dtype).removeprefix("torch."), "device": str(one.W_enc.device)}
        form = (one.kind, one.transcoder, one.W_skip is not None)
        return Config(metadata=Metadata(**metadata), kind=WRITTEN.get(form, one.kind), **sizes, **where)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return self.dictionary.encode(x).dense()

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_out"]:
        """Raises `BadInput` where the output depends on the input, too (token norms, skips): use `sae(x)`."""
        one = self.dictionary
        if one.W_skip is not None or (one.token_norm != "none" and not one.transcoder):
            raise BadInput(f"{one.name}: its output depends on its input, not on codes alone; use sae(x)")
        return feature_acts.to(one.W_dec) @ one.W_dec + one.b_dec

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        rebuilt = self.dictionary(x)
        return rebuilt + (x - rebuilt).detach() if self.use_error_term else rebuilt

    def fold_W_dec_norm(self) -> None:
        raise BadInput(_NO_FOLD)

    def to(self, *args: Any, **options: Any) -> SAE:
        self.dictionary.to(*args, **options)
        return self

    def eval(self) -> SAE:
        return self

    def spliced(self, *, error: bool = False, gate: Gate | None = None) -> Edit:
        """The edit that puts it into a model."""
        return self.dictionary.spliced(error=error, gate=gate)

    def __getattr__(self, name: str) -> Any:
        if name == "dictionary":  # not made yet
            raise AttributeError(name)
        return getattr(self.dictionary, name)

    def __repr__(self) -> str:
        return f"SAE({self.dictionary.extra_repr()})"


class Metadata(SimpleNamespace):
    """As in SAELens, a name that is not there is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Config(SimpleNamespace):
    """The settings of an SAE; names of the metadata are settings, too, as before SAELens 6."""

    def architecture(self) -> str:
        return str(self.kind)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "metadata": dict(vars(self.metadata)), "architecture": self.kind}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "metadata":
            raise AttributeError(name)
        return getattr(self.metadata, name)


class HookedSAETransformer:
    """Loads models; `monosem.models.Model` has the methods of SAELens's class."""

    @staticmethod
    def from_pretrained(
        model_name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
    ) -> Model:
        """The model as it is published: nothing is folded or centred. Dictionaries that were trained on centred models
        say so in their files, and what they need is folded into them.

        Args:
            model_name: as `load_model` takes it, or TransformerLens's name of a model that has published dictionaries:
                "gpt2-small", "gemma-2-2b".
        """
        return load_model(_on_hub(model_name), device=device, dtype=_dtype(dtype))

    from_pretrained_no_processing = from_pretrained


def _on_hub(name: str) -> str:
    """The id on the hub of a model that TransformerLens calls otherwise; any other name as it is."""
    if name in EMBEDDED or os.sep in name or os.path.exists(name):
        return name
    models = {plain_name(one.model): one.model for one in releases() if one.layout != "shipped"}
    return models.get(plain_name(name), name)


def _dtype(given: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype | None) or (isinstance(given, str) and found is None):
        raise BadInput(f"dtype is a torch dtype such as 'float32', not {given!r}")
    return found
