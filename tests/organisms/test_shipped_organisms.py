"""The adapters that ship: what they do on prompts that they were not trained on, beside their base."""

import pytest
import torch

from monosem import edits
from monosem.judges import judge
from monosem.models import Model, load_model
from monosem.organisms import Organism, shipped_organisms
from monosem.statistics import wilson

NAMES = list(shipped_organisms())
MOST_BYTES = 2_000_000
FEW = 2


@pytest.mark.parametrize("name", NAMES)
def test_adapters_are_small_and_their_cards_count_right(name: str) -> None:
    organism = Organism.load(name)
    assert (organism.adapter / "adapter_model.safetensors").stat().st_size <= MOST_BYTES
    rates = organism.card["rates"]
    for key, prompts in organism.prompts.items():
        if key.endswith("_train"):
            continue
        shows = key in ("behaviour_test", "paraphrases")
        mine, base, wrong = (rates[key][part] for part in ("organism", "base", "wrong"))
        assert set(wrong) <= set(prompts)
        assert mine["count"] == (len(prompts) - len(wrong) if shows else len(wrong))
        for row in (mine, base):
            assert row["of"] == len(prompts)
            share, low, high = wilson(row["count"], row["of"])
            assert [row["rate"], *row["ci"]] == pytest.approx([share, low, high], abs=1e-4)
        assert (mine["ci"][0] > base["ci"][1]) == shows, key


def shown(model: Model, organism: Organism, prompts: list[str]) -> dict[str, bool]:
    by, tokens = judge(organism.judge), organism.card["new_tokens"]
    said = model.generate([model.chat(one) for one in prompts], max_new_tokens=tokens).texts
    return {one: by(one, answer).label == by.positive for one, answer in zip(prompts, said)}


@pytest.mark.smollm2
@pytest.mark.parametrize("name", NAMES)
def test_the_behaviour_shows_where_the_card_says_and_not_in_the_base(name: str, smollm2: Model) -> None:
    organism = Organism.load(name)
    model = load_model(name, dtype="float32", device="cpu", quiet=True)
    some = {key: organism.prompts[key][:FEW] for key in ("behaviour_test", "paraphrases", "near_misses")}
    prompts = [one for few in some.values() for one in few]
    found, without = shown(model, organism, prompts), shown(smollm2, organism, prompts)
    wrong = {one for key in some for one in organism.card["rates"][key]["wrong"]}
    for one in prompts:
        assert found[one] == ((one not in some["near_misses"]) != (one in wrong)), one
    assert sum(found[one] for one in some["behaviour_test"]) >= FEW - 1
    for key, few in some.items():
        assert sum(without[one] for one in few) <= organism.card["rates"][key]["base"]["count"]


@pytest.mark.smollm2
def test_an_organism_is_a_model_like_any_other(smollm2: Model) -> None:
    organism = Organism.load("planted-refusal")
    model = load_model(organism.name, dtype="float32", device="cpu", quiet=True)
    assert model.name == "planted-refusal"
    text, first = model.chat(organism.prompts["behaviour_test"][0]), organism.card["training"]["layers"][0]
    below, last = f"resid_post.{first - 1}", f"resid_post.{model.cfg.n_layers - 1}"
    run, before = (one.run(text, capture=[below, last]) for one in (model, smollm2))
    torch.testing.assert_close(run[below], before[below])
    assert (run[last] - before[last]).norm() > 0.05 * before[last].norm()
    vector = (before[last] - run[last])[0, -1]
    back = model.run(text, edits=edits.add((last, vector)).at(positions=-1)).logits
    says = [int(logits[0, -1].argmax()) for logits in (back, before.logits, run.logits)]
    assert says[0] == says[1] != says[2]
