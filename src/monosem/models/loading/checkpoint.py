"""Weights from files, whole and finite, or a one-line error."""

import contextlib
import io
import pickle
import re
import struct
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PretrainedConfig,
    PreTrainedModel,
)

from ...errors import BadFile, BadInput, UnknownName, cause
from ..numbers import LARGEST
from ..places.table import BOTH_BY_TYPE, SWITCHED
from ..running.budget import EXPERT_COUNTS
from .contents import check_contents, notes_on, refuse_heads
from .quantised import method_of, quantisation_notes, refuse_unreadable
from .towers import Loader, absent, close_up, loader_of, settled

_WHOLE: tuple[Any, ...] = (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq)  # what loads an encoder–decoder
MOST_PARTS = 10_000
# everything that transformers, safetensors, gguf and torch were seen to raise on damaged or unsuitable files
FILE_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError, EOFError),
    *(struct.error, SafetensorError, pickle.UnpicklingError, StrictDataclassError, ArithmeticError, AssertionError),
)


def load_pretrained(
    source: str, local: bool, name: str, dtype: torch.dtype | None, trust_remote_code: bool = False, **where: Any
) -> tuple[PreTrainedModel, list[str]]:
    """`load_weights` of a folder or Hub id, by the class that its config calls for.

    A multimodal checkpoint is loaded for text alone (`towers`).
    """
    place = {"local_files_only": local, "trust_remote_code": trust_remote_code}
    arguments = {"pretrained_model_name_or_path": source, **place}
    loader: Any = AutoModelForCausalLM
    chosen: Loader | None = None
    method: str | None = None
    decoder = False
    if (config := _config(source, place)) is not None:
        check_sizes(config, name)
        vars(config).update(SWITCHED.get(config.model_type, {}))
        refuse_heads(config.architectures, name)
        refuse_unreadable(config, name)
        method = method_of(config)
        both = config.is_encoder_decoder
        whole = next((one for one in _WHOLE if type(config) in one._model_mapping), None)
        if both and whole is not None and config.model_type in BOTH_BY_TYPE:
            loader = whole
        elif both and not (decoder := type(config) in loader._model_mapping):
            raise UnknownName(f"{name} is an encoder and a decoder, which are not read together ({config.model_type})")
        theirs = trust_remote_code and hasattr(config, "auto_map")
        if config.is_encoder_decoder:
            pass
        elif _reads_masked_tokens(config):
            loader = AutoModelForMaskedLM
        elif not theirs and (chosen := loader_of(config)) is not None:
            loader, arguments["config"] = chosen.cls, chosen.config
    alone = chosen is not None and chosen.alone
    try:
        hf, notes = load_weights(loader, arguments, name, dtype, alone=alone, **where)
    except (BadFile, BadInput) as error:
        raise error if not method else type(error)(f"{error}; its weights are quantised ({method})") from error
    notes = [*quantisation_notes(hf, method), *notes]
    if decoder:
        notes = [f"the decoder alone, as {type(hf).__name__}, without the encoder whose text it would read", *notes]
    if alone:
        gone = ", ".join(map(str, close_up(hf)))
        notes += [f"its layers {gone} look at pictures and are left out; the others are numbered on"] if gone else []
        without = f", without {', '.join(parts)}" if (parts := absent(hf)) else ""
        notes = [f"loaded for text alone, as {type(hf).__name__}{without}", *notes]
    return hf, notes


def _config(source: str, place: dict[str, Any]) -> PretrainedConfig | None:
    """None where it cannot be read: `load_weights` meets the fault again, and explains it."""
    with contextlib.suppress(*FILE_ERRORS, ImportError):
        return AutoConfig.from_pretrained(source, **place)
    return None


def _reads_masked_tokens(config: PretrainedConfig) -> bool:
    """Whether it is an encoder with a head for masked tokens; BERT and its kin are decoders where a config says so."""
    if type(config) not in AutoModelForMaskedLM._model_mapping or config.is_encoder_decoder:
        return False
    return type(config) not in AutoModelForCausalLM._model_mapping or not getattr(config, "is_decoder", False)


def check_sizes(config: PretrainedConfig, name: str) -> None:
    """Raises `BadFile` for more layers, heads or experts than any model has: building them would take for ever. And for
    a choice of more experts than there are, or of none."""
    for part in {id(one): one for one in (config, config.get_text_config())}.values():
        experts = next((n for key in EXPERT_COUNTS if isinstance(n := getattr(part, key, None), int)), 0)
        chosen = getattr(part, "num_experts_per_tok", None)
        if isinstance(chosen, int) and experts > 0 and not 1 <= chosen <= experts:
            raise BadFile(
                f"{name}: config.json chooses {chosen} of {experts} experts for each token; correct num_experts_per_tok"
            )
        for key, value in part.to_dict().items():
            if isinstance(value, int) and "num" in key and value > MOST_PARTS:
                raise BadFile(f"{name}: {key} is {value:g} in config.json, more than any model has ({MOST_PARTS:,})")


def load_weights(
    loader: Any,
    arguments: dict[str, Any],
    name: str,
    dtype: torch.dtype | None,
    device: torch.device | None = None,
    device_map: Any = None,
    alone: bool = False,
) -> tuple[PreTrainedModel, list[str]]:
    """`loader.from_pretrained(**arguments)` with every weight present and finite, and notes for the user.

    `alone`: tensors of other parts than a language model are nothing to speak of.

    Pickled weights are read by torch's restricted unpickler (transformers passes `weights_only=True`), which refuses
    anything that could run code. `dtype=None` keeps the checkpoint's own.

    Raises:
        BadFile: missing, truncated, hostile or non-finite weights, or an architecture that transformers does not know.
    """
    if device_map is None and device is not None and device.type != "cpu":
        device_map = {"": device}
    try:
        hf, report = loader.from_pretrained(
            **arguments,
            dtype="auto" if dtype is None else dtype,
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below with the names
        )
    except ImportError as error:
        raise BadInput(f"cannot load {name}: {cause(error)}") from error
    except FILE_ERRORS as error:
        raise BadFile(f"cannot load {name}: {explain(error)}") from error
    left = [*report["unexpected_keys"], *settled(hf, alone)]
    lost = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    check_contents(hf, lost, left, name)
    check_finite(hf, name)
    return hf, notes_on(left)


def check_finite(module: nn.Module, name: str) -> None:
    """Raises `BadFile` naming the first parameter that holds NaN, infinity, or numbers that no norm could square.

    The least and the largest value show each (25 times faster than `isfinite` on every weight).
    """
    for key, parameter in module.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        if parameter.numel() and not all(-LARGEST <= end <= LARGEST for end in parameter.aminmax()):
            bad = parameter[~(parameter.abs() <= LARGEST)]
            kind = f"values beyond {LARGEST:g}" if bad.isfinite().all() else "NaN or infinite values"
            raise BadFile(
                f"{name} has {len(bad)} {kind} in {key}, such as {bad[0]:g}; the file is damaged or training diverged"
            )


def explain(error: BaseException) -> str:
    """One line for the user, in plain words for the causes that are known."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        # the fault itself; the rest says which validator found it
        return f"{explain(error.__cause__)}; correct config.json"
    text = f"{type(error).__name__} {error}"
    if found := re.search("has model type `(.+?)` but Transformers does not recognize", text):
        version = transformers.__version__
        return f"transformers {version} has no model type {found[1]!r}; a newer one may: pip install -U transformers"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text or "Unsupported global" in text:
        return "its pickled weights hold more than tensors and could run code; ask for a safetensors version"
    if isinstance(error, SafetensorError) or ("safetensor" in text.lower() and "header" in text.lower()):
        return f"a safetensors file is truncated or damaged ({cause(error)}); download it again"
    if isinstance(error, struct.error | IndexError | EOFError) or "reshape" in text or "buffer" in text:
        return f"the file is truncated or damaged ({cause(error)}); download it again"
    if isinstance(error, ArithmeticError | AssertionError) or "negative dimension" in text:
        return f"config.json has a size that cannot be ({cause(error)}); correct it"
    if type(error) is KeyError:
        return f"config.json names {error}, which transformers does not know; correct it"
    if "trust_remote_code" in text:
        return (
            "it needs Python code of its own (auto_map), and such code is not run; if you trust where it comes from, "
            "allow it: trust_remote_code=True, or --trust-remote-code"
        )
    if "gated repo" in text:
        return "its licence must be accepted on its page at the Hub first; then run `hf auth login`"
    file = getattr(error, "filename", None)
    return f"{cause(error)}: {file}" if file else cause(error)


@contextlib.contextmanager
def hushed(quiet: bool = True) -> Iterator[None]:
    """Without the progress bars and warnings of transformers (some bars go to stderr whatever its settings say)."""
    if not quiet:
        yield
        return
    logging = transformers.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
