"""Edits narrowed to tokens by id and to what a role says in a chat. Oracle: positions counted by hand."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from monosem import edits
from monosem.errors import BadInput, EditDidNotFire
from monosem.models import Model
from tiny import tiny_hf, tiny_model, tiny_tokenizer

SITE = "resid_post.1"
TEMPLATES = {
    "chatml": (
        ["<|im_start|>", "<|im_end|>"],
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    "llama3": (
        ["<|start|>", "<|end_header|>", "<|eot|>"],
        "<s>{% for m in messages %}<|start|>{{ m.role }}<|end_header|>\n\n{{ m.content }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|end_header|>\n\n{% endif %}",
    ),
    "gemma": (
        ["<turn>", "</turn>"],
        "<s>{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}</turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}",
    ),
    "glm": (
        ["<|user|>", "<|assistant|>", "<|system|>"],
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    "phi3": (  # a chat that waits for no answer ends with another token
        ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"],
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}",
    ),
    "qwen3": (  # the assistant's last turn begins with its thought, earlier ones do not
        ["<|im_start|>", "<|im_end|>"],
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'assistant' %}think a\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
}
CHAT = [
    {"role": "user", "content": "q cat sat"},
    {"role": "assistant", "content": "w was big"},
    {"role": "user", "content": "z the dog"},
]


def chat_model(kind: str) -> Model:
    special, template = TEMPLATES[kind]
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    hf = tiny_hf("llama", vocab_size=len(tokenizer))
    return Model(hf, tokenizer, kind)


def edited(model: Model, x, edit) -> list[list[str]]:
    """The tokens whose activations an edit has set to 0."""
    run = model.run(x, capture=SITE, edits=edit)
    return [
        [model.str_token(int(token)).strip() for token, value in zip(ids, states) if not bool(value.any())]
        for ids, states in zip(run.tokens.ids, run[SITE])
    ]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_a_role_says(kind):
    model = chat_model(kind)
    text = model.chat(CHAT)
    zero = edits.scale(SITE, 0.0)
    assert edited(model, [text], zero.at(role="user")) == [["q", "cat", "sat", "z", "the", "dog"]]
    assert edited(model, [text], zero.at(role="assistant")) == [["w", "was", "big"]]
    with pytest.raises(EditDidNotFire, match="row 0.*no such token"):
        edited(model, [text], zero.at(role="user", positions=0))
    if kind != "gemma":
        asked = model.chat([{"role": "system", "content": "x sat"}, *CHAT[:1]])
        assert edited(model, [asked], zero.at(role="system")) == [["x", "sat"]]
        with pytest.raises(EditDidNotFire, match="no such token"):
            edited(model, [text], zero.at(role="system"))


def test_every_turn_of_the_assistant_where_its_last_one_opens_otherwise():
    model = chat_model("qwen3")
    text = model.tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": "k is good"}], tokenize=False)
    said = edited(model, [text], edits.scale(SITE, 0.0).at(role="assistant"))[0]
    assert said[:3] == ["w", "was", "big"]
    assert said[-3:] == ["k", "is", "good"]
    assert {"q", "z", "dog"}.isdisjoint(said)


def test_turns_that_no_special_token_parts():
    """Llama 2's: the answer follows the question, and a role's turn would be both."""
    model = chat_model("chatml")
    model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>i {{ m.content }} j{% else %} {{ m.content }} "
        "<|im_end|>{% endif %}{% endfor %}"
    )
    text = model.tokenizer.apply_chat_template(CHAT, tokenize=False)
    with pytest.raises(BadInput, match="do not tell where the turn"):
        model.run([text], edits=edits.scale(SITE, 0.0).at(role="user"))


@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_the_assistant_writes_is_its_own(kind):
    """With the KV cache, against whole passes in which the tokens are named by position; rows of unequal lengths."""
    model = chat_model(kind)
    texts = [model.chat(CHAT), model.chat(CHAT[:1])]
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    edit = edits.add((SITE, vector), 6.0).at(role="assistant")
    made = model.generate(texts, edits=edit, max_new_tokens=5, stop_at_eos=False)
    plain = edits.add((SITE, vector), 6.0)
    for row, ids in enumerate(model.tokens(texts).rows()):
        prompt = len(ids)
        said = [i for i, token in enumerate(ids) if model.str_token(token).strip() in ("w", "was", "big")]
        for _ in range(5):
            late = range(prompt, len(ids)) if not model.special_ids.intersection(ids[prompt:]) else []
            where = [*said, *late]
            here = [plain.at(positions=where)] if where else []
            ids.append(int(model.run([ids], edits=here).logits[0, -1].argmax()))
        assert made.ids.rows()[row] == ids


@pytest.mark.parametrize("kind", TEMPLATES)
def test_special_tokens_are_left_out_or_edited_alone(kind):
    model = chat_model(kind)
    texts, zero = [model.chat(CHAT), model.chat(CHAT[:1])], edits.scale(SITE, 0.0)
    marks = {*TEMPLATES[kind][0], "<s>"}
    every = [[model.str_token(token).strip() for token in row] for row in model.tokens(texts).rows()]
    rest = [[token for token in row if token not in marks] for row in every]
    found = [[token for token in row if token != "<pad>"] for row in edited(model, texts, zero.at(special=False))]
    assert found == rest
    alone = [[token for token in row if token != "<pad>"] for row in edited(model, texts, zero.at(special=True))]
    assert alone == [[token for token in row if token in marks] for row in every]
    assert edited(model, texts[:1], zero.at(special=False, role="user")) == [["q", "cat", "sat", "z", "the", "dog"]]


def test_special_tokens_with_a_cache():
    """Against whole passes in which the positions are named; what is generated is edited, too."""
    model = chat_model("chatml")
    edit = edits.add((SITE, torch.randn(32, generator=torch.Generator().manual_seed(2))), 6.0)
    text = model.chat(CHAT)
    made = model.generate([text], edits=edit.at(special=False), max_new_tokens=5, stop_at_eos=False)
    (ids,) = model.tokens([text]).rows()
    marks = model.special_ids - {model.tokenizer.unk_token_id}  # which stands for what cannot be spelt
    for _ in range(5):
        where = [i for i, token in enumerate(ids) if token not in marks]
        ids.append(int(model.run([ids], edits=edit.at(positions=where)).logits[0, -1].argmax()))
    assert made.ids.rows()[0] == ids


def test_special_is_yes_or_no_and_reaches_something():
    model, zero = chat_model("chatml"), edits.scale(SITE, 0.0)
    with pytest.raises(BadInput, match="special= is False"):
        zero.at(special="no")
    with pytest.raises(EditDidNotFire, match="row 0.*no such token"):
        model.run([[*model.special_ids][:2]], edits=zero.at(special=False))


def test_models_without_turns():
    with pytest.raises(BadInput, match="no chat template"):
        tiny_model("llama").run("the cat", edits=edits.scale(SITE, 0.0).at(role="user"))
    model = tiny_model("llama")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    with pytest.raises(BadInput, match="no special token"):
        model.run("the cat", edits=edits.scale(SITE, 0.0).at(role="user"))


def test_tokens_by_id_and_by_text():
    model = chat_model("chatml")
    text = model.chat(CHAT)
    the, start = model.to_single_token(" the"), model.to_single_token("<|im_start|>")
    zero = edits.scale(SITE, 0.0)
    assert edited(model, [text], zero.at(tokens=the)) == [["the"]]
    assert edited(model, [text], zero.at(tokens=[the, "<|im_start|>"])) == [
        [*["<|im_start|>"] * 3, "the", "<|im_start|>"]
    ]
    assert edited(model, [text], zero.at(tokens=torch.tensor([start]))) == [["<|im_start|>"] * 4]
    assert edited(model, [text], zero.at(tokens=" cat", role="user")) == [["cat"]]
    with pytest.raises(EditDidNotFire, match="row 1: it has 2 tokens and no such token"):
        edited(model, ["the cat", "the dog"], zero.at(tokens=" cat"))
    assert edited(model, ["the cat", "the dog"], zero.at(tokens=" cat", rows=[0])) == [["cat"], []]
    with pytest.raises(BadInput, match="one is needed"):
        edited(model, [text], zero.at(tokens="the cat"))


def test_tokens_in_generation():
    model = tiny_model("llama")
    ids, new = [7, 11, 23, 11], []
    plain = model.generate([ids], max_new_tokens=6, stop_at_eos=False).new[0]
    named = [11, plain[1]]
    edit = edits.scale(SITE, -1.5)
    made = model.generate([ids], edits=edit.at(tokens=named), max_new_tokens=6, stop_at_eos=False)
    for _ in range(6):
        where = [i for i, token in enumerate(ids) if token in named]
        ids = [*ids, int(model.run([ids], edits=edit.at(positions=where)).logits[0, -1].argmax())]
        new = ids[4:]
    assert made.new[0] == new


def test_what_is_special_and_who_says_it_follow_the_tokenizer():
    """Tokens are added, and the chat template is replaced, after both were asked about."""
    model = chat_model("chatml")
    zero = edits.scale(SITE, 0.0)
    assert edited(model, [model.chat(CHAT)], zero.at(role="user")) == [["q", "cat", "sat", "z", "the", "dog"]]
    assert edited(model, ["a cat"], zero.at(special=False)) == [["a", "cat"]]
    before = model.special_ids
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<note>"]})
    model.hf.resize_token_embeddings(len(model.tokenizer), mean_resizing=False).eval()
    note = model.tokenizer.convert_tokens_to_ids("<note>")
    assert model.special_ids == before | {note}
    assert edited(model, [[5, note, 6]], zero.at(special=False)) == [["a", "cat"]]
    model.tokenizer.chat_template = TEMPLATES["chatml"][1].replace("{{ m.role }}", "{{ m.role }}<note>")
    assert edited(model, [model.chat(CHAT)], zero.at(role="user")) == [["q", "cat", "sat", "z", "the", "dog"]]
    assert edited(model, [model.chat(CHAT)], zero.at(role="assistant")) == [["w", "was", "big"]]


def test_a_generation_ends_where_the_model_now_says():
    model = tiny_model("llama")
    first = model.generate(["the cat"], max_new_tokens=6).new[0]
    model.hf.generation_config.eos_token_id = first[2]
    assert model.generate(["the cat"], max_new_tokens=6).new[0] == first[: first.index(first[2]) + 1]
