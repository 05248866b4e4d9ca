"""Our attention function against transformers' eager one, for all that models hand to it."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from anymodel import TYPES, tiny_any
from monosem.errors import BadInput
from monosem.models.places.attention import visiting
from tiny import VOCAB

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
IDS = torch.randint(3, VOCAB - 20, (2, 24), generator=torch.Generator().manual_seed(0))

# type -> what it hands over beside scaling, soft cap and a sink for each head
HANDED = {
    "inkling_text": "position_bias",
    "inkling2_text": "sinks",
    "deepseek_v32": "indices",
    "glm_moe_dsa": "indices",
    "axk2": "indices",
    "hy_v4": "indices",
    "dots3_note_text": "indices",
    "minimax_m3_vl_text": "block_indices",
}


def attentions(hf):
    """The modules that call the attention function, and the names of what they hand over, seen by another function."""
    seen = {}

    def watch(module, query, key, value, attention_mask, **kwargs):
        seen[module] = {name for name, given in kwargs.items() if given is not None}
        return query.new_zeros(*value.shape[:1], query.shape[2], query.shape[1], value.shape[-1]), None

    AttentionInterface.register("watch", watch)
    AttentionMaskInterface.register("watch", sdpa_mask)
    before = hf.config._attn_implementation
    hf.set_attn_implementation("watch")
    hf(input_ids=IDS, use_cache=False)
    hf.set_attn_implementation(before)
    return seen


@pytest.mark.parametrize("kind", HANDED)
def test_what_a_model_hands_over_counts_as_in_its_eager_function(kind):
    if kind not in TYPES:
        pytest.skip(f"not in this transformers: {kind}")
    hf = tiny_any(kind)
    handed = attentions(hf)
    assert HANDED[kind] in set.union(*handed.values())
    hf.set_attn_implementation("eager")
    expected = hf(input_ids=IDS, use_cache=False).logits
    patterns = []

    def visit(name, value, _):
        if name == "pattern":
            patterns.append(value)
        return value

    last = list(handed)[-1]
    for modules in (list(handed), [last]):  # all of them; one, while the others are handed on
        with visiting(hf, dict.fromkeys(modules, visit)):
            logits = hf(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(logits, expected, **CLOSE)
    assert len(patterns) == len(handed) + 1


def test_what_an_indexer_leaves_out_is_not_attended_to():
    """DeepSeek 3.2 masks it under "eager" and "sdpa" alone, and hands its choice to any other attention function."""
    hf = tiny_any("deepseek_v32")
    patterns = []
    visits = {
        module: lambda name, x, _: patterns.append(x) or x if name == "pattern" else x for module in attentions(hf)
    }
    with visiting(hf, visits):
        hf(input_ids=IDS, use_cache=False)
    kept = (torch.stack(patterns) > 0).sum(-1)
    assert kept.max() == hf.config.index_topk < IDS.shape[1]


def test_attention_that_is_not_causal_sees_all_without_a_mask():
    hf = tiny_any("bert")
    hf.set_attn_implementation("eager")
    expected = hf(input_ids=IDS).logits
    with visiting(hf, dict.fromkeys(attentions(hf), lambda name, value, _: value)):
        torch.testing.assert_close(hf(input_ids=IDS).logits, expected, **CLOSE)


def test_what_is_not_known_and_would_change_numbers_is_refused_by_name():
    hf = tiny_any("llama")
    module = hf.model.layers[1].self_attn
    with visiting(hf, {module: lambda name, value, _: value}):
        hf(input_ids=IDS, use_cache=False, novel_flag=True)  # no number
        with pytest.raises(BadInput, match="LlamaAttention hands novel_bias to its attention function"):
            hf(input_ids=IDS, use_cache=False, novel_bias=torch.ones(1))
