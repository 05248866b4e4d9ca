"""The likeliest next tokens of a run, against what Hugging Face's own model gives each prompt alone."""

import pytest
import torch

from monosem.errors import BadInput
from tiny import tiny_model

PROMPTS = ["the cat sat", "a dog ran to the house", "rome"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("logits", [True, "last"])
def test_next_tokens_are_those_of_each_prompt_alone(family, logits):
    model = tiny_model(family)
    found = model.run(PROMPTS, logits=logits).next_tokens(3)
    for prompt, listed in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            own = model.hf(torch.tensor(model.tokens([prompt]).rows())).logits[0, -1].softmax(-1)
        best = own.topk(3)
        assert [token for token, _ in listed] == [model.str_token(int(i)) for i in best.indices]
        assert [p for _, p in listed] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_no_more_tokens_than_there_are_and_none_without_logits():
    model = tiny_model("llama")
    (listed,) = model.run("the cat").next_tokens(10_000)
    assert len(listed) == model.cfg.d_vocab
    assert sum(p for _, p in listed) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(BadInput, match="without logits=False"):
        model.run("the cat", capture="resid_post.0", logits=False).next_tokens()
