"""Rows of BERT and its kin, as decoders or with a head for masked tokens, part of the table in `table.py`."""

from dataclasses import replace
from typing import Any

from torch import nn

from .families import BranchRow, Family, attn, mlp
from .older import within


def _bert(
    *before: str, feed: tuple[str, ...] = ("intermediate", "output.dense"), **mixer: Any
) -> tuple[BranchRow, ...]:
    """BERT's block, whose modules `output` project, add the stream and norm it; or with norms before its branches."""
    first, second = before or (None, None)
    after, last = (None, None) if before else ("attention.output.LayerNorm", "output.LayerNorm")
    attention = attn(first, path="attention", q="self.query", k="self.key", v="self.value", out="output.dense")
    dense = mlp(second, path="", pre="intermediate.dense", pre_linear=None, down="output.dense")
    return within(attention, after, ends=("self", "output.dense"), **mixer), within(dense, last, ends=feed)


_BERT = Family(
    "bert",
    ("bert", "ernie"),
    _bert(),
    embed="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    types="embeddings.token_type_embeddings",
    entry=("embeddings.LayerNorm",),
    layers="encoder.layer",
    final_norm=None,
    head=("cls.predictions.transform",),
)
_ROBERTA = replace(
    _BERT,
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert", "data2vec-text"),
    numbered_after_padding=True,
    head=("lm_head.dense", "gelu", "lm_head.layer_norm"),
)

# Llama's modules, with norms that close the sums
_PLAIN = (within(attn(None), "post_attention_layernorm"), within(mlp(None), "post_mlp_layernorm"))


def _albert(groups: Any, config: Any) -> list[nn.Module]:
    """ALBERT's blocks as they are called: groups of blocks, each again and again for its share of the layers."""
    each = config.num_hidden_layers / config.num_hidden_groups
    return [block for n in range(config.num_hidden_layers) for block in groups[int(n / each)].albert_layers]


ENCODERS: tuple[Family, ...] = (
    _BERT,
    replace(
        _BERT,
        name="albert",
        model_types=("albert",),
        branches=(
            within(
                attn(None, path="attention", q="query", k="key", v="value", out="dense"),
                "attention.LayerNorm",
                ends=(".", "dense"),
            ),
            within(
                mlp(None, path="", pre="ffn", pre_linear=None, down="ffn_output"),
                "full_layer_layer_norm",
                ends=("ffn", "activation", "ffn_output"),
            ),
        ),
        entry=("embeddings.LayerNorm", "encoder.embedding_hidden_mapping_in"),
        layers="encoder.albert_layer_groups",
        order=_albert,
        head=("predictions.dense", "predictions.activation", "predictions.LayerNorm"),
    ),
    replace(_BERT, name="big_bird", model_types=("big_bird",), embed_scale="sqrt(d_model) where rescale_embeddings"),
    replace(
        _BERT,
        name="electra",
        model_types=("electra",),
        entry=("embeddings.LayerNorm", "embeddings_project"),
        head=("generator_predictions",),
    ),
    replace(  # rotates queries and keys
        _BERT,
        name="roformer",
        model_types=("roformer",),
        positions=None,
        entry=("embeddings.LayerNorm", "embeddings_project"),
    ),
    replace(
        _BERT,
        name="rembert",
        model_types=("rembert",),
        entry=("embeddings.LayerNorm", "encoder.embedding_hidden_mapping_in"),
        head=("cls.predictions.dense", "cls.predictions.activation", "cls.predictions.LayerNorm"),
    ),
    replace(_BERT, name="bert-generation", model_types=("bert-generation",), types=None, head=()),
    replace(
        _BERT,
        name="git",
        model_types=("git",),
        branches=_bert(registered=False),
        types=None,
        head=(),
    ),
    replace(
        _BERT,
        name="megatron-bert",
        model_types=("megatron-bert",),
        branches=_bert("attention.ln", "ln"),
        entry=(),
        final_norm="encoder.ln",
    ),
    _ROBERTA,
    replace(
        _ROBERTA,
        name="xlm-roberta-xl",
        model_types=("xlm-roberta-xl",),
        branches=_bert("attention.self_attn_layer_norm", "LayerNorm"),
        entry=(),
        final_norm="encoder.LayerNorm",
    ),
    replace(
        _ROBERTA,
        name="roberta-prelayernorm",
        model_types=("roberta-prelayernorm",),
        branches=_bert(
            "attention.LayerNorm",
            "intermediate.LayerNorm",
            feed=("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
        ),
        final_norm="LayerNorm",
    ),
    replace(
        _ROBERTA,
        name="mpnet",
        model_types=("mpnet",),
        branches=(
            within(attn(None, path="attention.attn", q="q", k="k", v="v", out="o"), "attention.LayerNorm"),
            _bert()[1],
        ),
        types=None,
    ),
    replace(
        _BERT,
        name="distilbert",
        model_types=("distilbert",),
        branches=(
            within(attn(None, path="attention", q="q_lin", k="k_lin", v="v_lin", out="out_lin"), "sa_layer_norm"),
            within(mlp(None, path="ffn", pre="lin1", pre_linear=None, down="lin2"), "output_layer_norm"),
        ),
        types=None,
        layers="transformer.layer",
        head=("vocab_transform", "activation", "vocab_layer_norm"),
    ),
    Family(
        "modernbert",
        ("modernbert",),
        (
            attn("attn_norm", path="attn", qkv="Wqkv", out="Wo"),
            mlp("mlp_norm", pre="Wi", pre_linear="Wi", down="Wo"),
        ),
        embed="embeddings.tok_embeddings",
        entry=("embeddings.norm",),
        final_norm="final_norm",
        head=("head",),
    ),
    Family(
        "modernbert-decoder",
        ("modernbert-decoder",),
        (
            attn("attn_norm", path="attn", out="Wo"),
            mlp("mlp_norm", pre="Wi", pre_linear="Wi", down="Wo"),
        ),
        embed="embeddings.tok_embeddings",
        entry=("embeddings.norm",),
        final_norm="final_norm",
        head=("lm_head",),
    ),
    replace(_BERT, name="nomic_bert", model_types=("nomic_bert",), branches=_PLAIN, positions=None, layers="layers"),
    replace(
        _BERT,
        name="gte",
        model_types=("gte",),
        branches=_PLAIN,
        positions=None,
        layers="layers",
        head=_ROBERTA.head,
    ),
    replace(
        _ROBERTA,
        name="jina_embeddings_v3",
        model_types=("jina_embeddings_v3",),
        branches=(_PLAIN[0], within(mlp(None, pre="fc1", pre_linear=None, down="fc2"), "post_mlp_layernorm")),
        positions=None,
        layers="layers",
    ),
    replace(  # its scores know positions, and the embedding of newer ones does not
        _BERT,
        name="deberta-v2",
        model_types=("deberta-v2",),
        branches=_bert(
            parts={"q": "self.query_proj", "k": "self.key_proj", "v": "self.value_proj", "out": "output.dense"}
        ),
    ),
)
