"""GGUF files: dequantised to a plain dense model, with a tokenizer that splits text as the original did."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from ...errors import BadFile, cause
from .checkpoint import explain, load_weights
from .contents import unused_tensors
from .gguf_config import Described, described
from .gguf_rope import TENSORS

# `tokenizer.ggml.pre` names of byte-level vocabularies in which each digit stands alone (llama.cpp, llama-vocab.cpp:
# these names share the expressions `\p{N}` and GPT-2's). transformers 5.23 knows none of them and splits with GPT-2's
# expression only, under which the blank line before "1." becomes two tokens instead of one.
DIGITS_ALONE = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
GPT2_LIKE = frozenset({"gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "phi-2", "gigachat"})
_TOKENS = "tokenizer.ggml.tokens"


def check_gguf(path: str | os.PathLike[str]) -> Path:
    """Raises `BadFile` when the file is missing or does not begin as a GGUF file does."""
    file = Path(path).expanduser()
    try:
        with open(file, "rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise BadFile(f"cannot read {file}: {cause(error)}") from error
    if magic != b"GGUF":
        raise BadFile(f"{file} is not a GGUF file: it begins with {magic!r} instead of b'GGUF'")
    return file


def load_gguf(path: Path, **wanted: Any) -> tuple[PreTrainedModel, list[str]]:
    """The file's model with every weight dequantised (exactly, when in float32), and notes for the user.

    Raises:
        BadFile: damaged, or it asks for something that transformers does not compute; the key or tensor is named.
    """
    file = described(path)
    arguments = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "config": file.config,
        "quantization_config": GgufConfig(dequantize=True),
        "trust_remote_code": False,
    }
    with _one_table_of_names():
        hf, notes = load_weights(AutoModelForCausalLM, arguments, path.name, **wanted)
        return hf, [*file.notes, *notes, *_unused(file, hf, path.name)]


@contextmanager
def _one_table_of_names() -> Iterator[None]:
    """Within, gguf's table of all tensors' names is made once. transformers asks for it anew at every module: at 62
    blocks that takes minutes."""
    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made


def _unused(file: Described, hf: PreTrainedModel, name: str) -> list[str]:
    """Tensors that transformers went past without a word. Raises `BadFile` where they belong to a block in use."""
    if is_gguf_arch_supported(file.architecture):  # reported by the loading itself
        return []
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config={})
    known = {key.removesuffix(".weight") for key in get_gguf_hf_weights_map(hf, processor)}
    left = [t for t in file.tensors if t.removesuffix(".weight") not in known and t not in TENSORS]
    blocks = tuple(f"blk.{layer}." for layer in range(hf.config.num_hidden_layers))
    if lost := [tensor for tensor in left if tensor.startswith(blocks) and not tensor.endswith("attn_rot_embd.weight")]:
        few = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise BadFile(f"cannot load {name}: transformers' {hf.config.model_type} has no place for {few}")
    return unused_tensors(left)


def gguf_tokenizer(path: Path) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The file's tokenizer, and notes for the user where it may split text differently from the original."""
    try:
        metadata, _ = read_gguf_metadata(str(path), [_TOKENS])
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise BadFile(f"cannot load the tokenizer of {path}: {explain(error)}") from error
    if metadata.get("tokenizer.ggml.model") != "gpt2":  # SentencePiece vocabularies have one way of splitting
        _match_space_runs(tokenizer, metadata.get(_TOKENS) or [])
        return tokenizer, []
    split = metadata.get("tokenizer.ggml.pre")
    if split in DIGITS_ALONE:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif split not in GPT2_LIKE and split not in GGUF_PRE_TOKENIZER_SPLITS:
        return tokenizer, [
            f"its tokenizer's splitting rule {split!r} is unknown, GPT-2's is used; tokenizer= takes the original"
        ]
    return tokenizer, []


def _match_space_runs(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    """Let runs of spaces that are user-defined tokens be matched whole, before any merge, the longest first.

    So do SentencePiece and llama.cpp, whose converter writes them with real spaces for that purpose (Gemma's vocabulary
    has them). transformers 5.23 makes merges of them instead, which gives the same tokens up to the longest run (31)
    and others beyond: 40 spaces become 16 + 24 instead of 31 + 9.
    """
    runs = [AddedToken("▁" * len(t), normalized=True, special=False) for t in tokens if t and not t.strip(" ")]
    tokenizer.add_tokens(runs)
