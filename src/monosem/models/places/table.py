"""ONE table: the rows of all families, by the model types that they read."""

from typing import Any

from ...errors import UnknownName
from .encoder_decoders import ENCODER_DECODERS
from .encoders import ENCODERS
from .families import PLAIN, Family
from .hybrids import HYBRIDS
from .older import OLDER
from .variants import VARIANTS

FAMILIES = (*PLAIN, *VARIANTS, *HYBRIDS, *OLDER, *ENCODERS)
# types whose blocks do not add branches to a stream
REFUSED = {
    "cpmant": "it puts 32 tokens of its own before every text, so that its streams have other tokens than the text",
    "blt": "it is three models in a row (bytes, patches of bytes, bytes), with no one list of blocks",
    "dory": "some of its blocks are called again and again (looped), so that a site of a layer has several values",
    "hrm_text": "two stacks of blocks are called in turns (looped), so that a site of a layer has several values",
    "inkling2_loop_text": "its blocks are called several times (looped), so that a site of a layer has several values",
    "roc_bert": "its embedding joins characters with their shapes and their sounds",
    "xmod": "adapters of a language, chosen for each text, stand between its blocks' modules",
    "zaya": "each block scales and shifts the stream itself, so that nothing adds up over layers",
    "inkling2_text": "its branches read a mixture of what groups of blocks wrote, and its stream begins anew with each",
    **dict.fromkeys(
        ("qwen4_exp", "qwen4_exp_text"),
        "it carries several streams in one long vector, and adds what it looks up for the last few tokens to each",
    ),
    "prophetnet": "it carries several streams, one after the other, along the axis of tokens",
    "led": "it fills every source up to a multiple of its window, so that its streams have other tokens than the text",
    "longformer": "it fills every text up to a multiple of its window, so that its streams have other tokens than it",
    "pegasus_x": "it has tokens of its own in its encoder beside the text, and fills sources up to whole blocks",
    "fsmt": "it holds tokens before texts (`pos batch d_model`) in its blocks, and its encoder is no model of its own",
    "t5gemma2": "it looks at the source and at earlier tokens of the target in one attention",
    "encoder-decoder": "it joins any two models; pass its encoder or its decoder, loaded alone",
    **dict.fromkeys(("seamless_m4t", "seamless_m4t_v2"), "it is one model for text and several for speech"),
    "reformer": "its blocks are reversible: they carry two streams and are called by a function of their own",
    **dict.fromkeys(
        ("xlm", "flaubert"), "the parts of its blocks lie in lists beside each other, and no module is a block"
    ),
    "deberta": "its queries and values get biases outside their projection, where no site is (v2 and v3 are read)",
    "layoutlm": "it reads pages: where each token lies on its page is added to the token's embedding",
    "tapas": "it reads tables: seven embeddings of rows and columns are added to each token's",
    "luke": "it reads entities beside tokens, and has other queries for each pair of these",
    "ibert": "it computes with whole numbers that its layers hand on with their scales",
    "fnet": "it mixes tokens by a Fourier transform of the whole text, so that padding changes what it computes",
    "funnel": "it shortens the text from block to block, so that its streams have other tokens than the text",
    "perceiver": "its blocks hold latents of a fixed number instead of tokens",
    "mobilebert": "each block computes in a narrower stream of its own, between two projections of the wide one",
    "squeezebert": "it holds tokens last (`batch d_model pos`) in its blocks",
    "xlnet": "it carries two streams and reads tokens in any order",
    **dict.fromkeys(
        ("convbert", "nystromformer", "mra", "yoso"),
        "it mixes tokens by windows of columns, so that padding changes what it computes",
    ),
}
# what a config asks for that the row of its type does not read: type -> attribute -> reason
ASKED: dict[str, dict[str, str]] = {
    "bloom": {
        "apply_residual_connection_post_layernorm": "its blocks go on from the norm of the stream, so that what its "
        "branches write does not add up over layers"
    },
    "rwkv": {
        "rescale_every": "its stream is halved every few blocks; load it with rescale_every=0 "
        "(AutoModelForCausalLM.from_pretrained(..., rescale_every=0)): only float16 needs the halving"
    },
    "doge": {"is_moe": "its router mixes the tokens of a batch"},
    "ernie": {"use_task_id": "an embedding of the task is added, which no site has"},
}
# what is switched off in a checkpoint's config, because the model then computes the same and its row reads it
SWITCHED: dict[str, dict[str, Any]] = {"rwkv": {"rescale_every": 0}}
BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}
BOTH_BY_TYPE = {model_type: family for family in ENCODER_DECODERS for model_type in family.model_types}


def family_of(config: Any) -> Family:
    """The table's row for a Hugging Face config. Raises `UnknownName` for an architecture without one."""
    refuse_type(config)
    if config.is_encoder_decoder:
        if config.model_type not in BOTH_BY_TYPE:
            raise UnknownName(
                f"models of type {config.model_type!r} are an encoder and a decoder, and not read as one; read are "
                f"{', '.join(BOTH_BY_TYPE)}; where transformers has the decoder alone (AutoModelForCausalLM), pass that"
            )
        return BOTH_BY_TYPE[config.model_type]
    if config.model_type not in BY_TYPE:
        raise UnknownName(
            f"no family row for model type {config.model_type!r}: load_model infers one; Model takes family=Family(...)"
        )
    return BY_TYPE[config.model_type]


def refuse_type(config: Any) -> None:
    """Raises `UnknownName` for a type that is known not to be read."""
    if (reason := REFUSED.get(config.model_type)) is not None:
        raise UnknownName(f"models of type {config.model_type!r} are not read: {reason}")
    for asked, reason in ASKED.get(config.model_type, {}).items():
        if getattr(config, asked, False):
            raise UnknownName(f"models of type {config.model_type!r} with {asked} are not read: {reason}")
