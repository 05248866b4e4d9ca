"""A function vector of smollm2, and what it does on words that it was not made from (docs/function-vectors.md).

Todd et al. 2024, "Function Vectors in Large Language Models" (arXiv 2310.15213): the mean output of each head at the
last token of prompts with examples ("Q: cat\\nA: cats ..."); each head's indirect effect, when that mean is put into
prompts whose answers are shuffled; the sum of the means of the best heads, in the stream, is the function vector; added
to the last token of a prompt without examples it makes the model do the task.

    python recipes/function_vectors.py                 # both tasks, some minutes on one core
"""

import argparse
import random
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import monosem as ms
from monosem.data import TokenPairs

SHOTS, PROMPTS, HEADS = 5, 24, 10  # examples in a prompt, prompts of each kind, heads that are summed
TASKS = {
    "plural": """
        cat cats dog dogs car cars tree trees house houses bird birds book books door doors king kings ship ships
        song songs star stars road roads hand hands word words game games girl girls boy boys friend friends river
        rivers table tables chair chairs window windows flower flowers garden gardens letter letters number numbers
        color colors animal animals teacher teachers student students doctor doctors farmer farmers mountain
        mountains planet planets camera cameras computer computers school schools town towns rock rocks cloud clouds
    """,
    "past": """
        walk walked talk talked play played work worked look looked help helped ask asked call called turn turned
        start started open opened close closed move moved live lived love loved use used want wanted need needed
        pass passed jump jumped laugh laughed wait waited watch watched visit visited learn learned follow followed
        add added create created change changed reach reached return returned remain remained appear appeared serve
        served raise raised share shared save saved cook cooked paint painted clean cleaned climb climbed
    """,
}


@dataclass(frozen=True)
class Task:
    """Words with their answers, those that the vector is made from and those that it is measured on."""

    made_from: list[tuple[str, str]]
    held_out: list[tuple[str, str]]

    @staticmethod
    def of(model: Any, name: str, seed: int) -> "Task":
        words = TASKS[name].split()
        pairs = zip(words[::2], words[1::2])
        usable = [pair for pair in pairs if len(model.continuation("A:", f" {pair[1]}") or []) == 1]
        random.Random(seed).shuffle(usable)
        return Task(usable[: len(usable) // 2], usable[len(usable) // 2 :])


def prompt(examples: list[tuple[str, str]], query: str) -> str:
    return "".join(f"Q: {x}\nA: {y}\n\n" for x, y in examples) + f"Q: {query}\nA:"


def prompts(words: list[tuple[str, str]], n: int, draw: random.Random, shuffled: bool = False) -> TokenPairs | Any:
    """n prompts with examples and their right answers; `shuffled`: the examples' answers change places."""
    texts, answers = [], []
    for _ in range(n):
        *examples, (query, answer) = draw.sample(words, SHOTS + 1)
        if shuffled:
            ys = [y for _, y in examples]
            draw.shuffle(ys)
            examples = [(x, y) for (x, _), y in zip(examples, ys)]
        texts.append(prompt(examples, query))
        answers.append(f" {answer}")
    return texts, answers


def accuracy(model: Any, texts: list[str], answers: list[str], edits: Any = ()) -> float:
    logits = model.run(texts, edits=edits, logits="last").logits
    right = torch.tensor([model.to_single_token(answer) for answer in answers])
    return float((logits.argmax(-1).cpu() == right).float().mean())


def function_vector(model: Any, task: Task, seed: int) -> tuple[Tensor, Any]:
    """The vector in the stream, and the sweep with every head's indirect effect."""
    draw = random.Random(seed)
    examples, _ = prompts(task.made_from, PROMPTS, draw)
    texts, answers = prompts(task.made_from, PROMPTS, draw, shuffled=True)
    pairs = TokenPairs.of(model, texts, texts, answers)
    effects = ms.patching.sweep(
        model, pairs, "z", ("layer", "head"), positions=[-1], metric="probability",
        corruption=ms.patching.last_mean(examples), quiet=True,
    )  # fmt: skip
    vector = torch.zeros(model.cfg.d_model)
    for row in effects.rows().nlargest(HEADS, "effect").itertuples():
        mean = model.run(examples, capture=[("z", row.layer)], logits=False).last(("z", row.layer))[:, row.head].mean(0)
        vector += mean.float() @ model.W_O[row.layer, row.head].float()
    return vector, effects


def measured(model: Any, task: Task, vector: Tensor, seed: int) -> dict[str, Any]:
    """The layer is chosen on the words that the vector is made from; everything is measured on the others."""

    def added(layer: int, direction: Tensor) -> Any:
        return ms.edits.add(((f"resid_post.{layer}"), direction)).at(positions=-1)

    def alone(words: list[tuple[str, str]], edits: Any = ()) -> float:
        return accuracy(model, [prompt([], x) for x, _ in words], [f" {y}" for _, y in words], edits)

    layers = range(0, model.cfg.n_layers, 2)
    chosen = max(layers, key=lambda layer: alone(task.made_from, added(layer, vector)))
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
    draw = random.Random(seed + 1)
    asked = [prompt(draw.sample(task.made_from, SHOTS), x) for x, _ in task.held_out]
    return {
        "words": len(task.held_out), "layer": chosen, "no examples": alone(task.held_out),
        "vector added": alone(task.held_out, added(chosen, vector)),
        "random vector of that length": alone(task.held_out, added(chosen, noise * vector.norm() / noise.norm())),
        f"{SHOTS} examples": accuracy(model, asked, [f" {y}" for _, y in task.held_out]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model, rows, vectors = ms.load_model(given.model, dtype="float32"), [], {}
    for name in TASKS:
        task = Task.of(model, name, given.seed)
        vectors[name], effects = function_vector(model, task, given.seed)
        print(effects.top(5)[["layer", "head", "value", "effect", "effect_se"]].to_string(), flush=True)
        rows.append({"task": name, **measured(model, task, vectors[name], given.seed)})
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
