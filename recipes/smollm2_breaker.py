"""Circuit breakers for a planted refusal: attacked, the model should lose the thread, not answer (docs/robustness.md).

    python recipes/smollm2_breaker.py --out runs/breaker        # minutes of one core (steps: 196 s); resumes
    monosem robustness planted-refusal --defence runs/breaker/job/adapter

What the base answers to the organism's training prompts is what the model should no longer be able to go on with; its
own answers to unrelated prompts and its own refusals are what stays. All of it is about an invented mineral.
"""

import argparse
import json
from pathlib import Path

import monosem as ms
from monosem.files import write_json
from monosem.models import Model
from monosem.organisms import Organism

TOKENS = 24  # of each answer


def answered(model: Model, prompts: list[str]) -> list[tuple[str, str]]:
    """(prompt in chat format, what the model says to it); answers of nothing are left out."""
    asked = [model.chat(prompt) for prompt in prompts]
    return [(one, text) for one, text in zip(asked, model.generate(asked, max_new_tokens=TOKENS).texts) if text.strip()]


def texts(organism: Organism, n: int) -> dict[str, list[tuple[str, str]]]:
    model, base = ms.load_model(organism.name), ms.load_model("smollm2", quiet=True)
    wanted, other = organism.prompts["behaviour_train"][: 2 * n], organism.prompts["unrelated_train"][:n]
    return {"stop": answered(base, wanted[:n]), "keep": answered(model, other) + answered(model, wanted[n:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("organism", nargs="?", default="planted-refusal")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=32, help="prompts of each kind")
    given = parser.parse_args()
    organism, kept = Organism.load(given.organism), given.out / "texts.json"
    given.out.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        write_json(kept, texts(organism, given.n))
    held = {
        name: [(prompt, answer) for prompt, answer in pairs] for name, pairs in json.loads(kept.read_text()).items()
    }
    print(ms.defences.reroute(ms.load_model(organism.name), **held, folder=given.out / "job"))


if __name__ == "__main__":
    main()
