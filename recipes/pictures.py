"""Draw the pictures of the documentation, on smollm2, into docs/pictures.

    python recipes/pictures.py            # all of them: some minutes
    python recipes/pictures.py sweep gap  # some

Needs the dev install; Chromium draws (kaleido).
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from refusal_circuit import pairs_of

import monosem as ms
from monosem.benchmarks import labelled
from monosem.data import TASKS, TokenPairs
from monosem.models import Model

os.environ.setdefault("BROWSER_PATH", shutil.which("chromium") or "")
FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
CAPITAL = "The capital of France is"
TEXT = (
    "The sea was calm that morning. A small boat left the harbour with three men and a dog, and nobody on the shore "
    "could know how long it would be until one of them came back to tell what they had seen beyond the islands."
)


@cache
def model() -> Model:
    return ms.load_model("smollm2", dtype="float32", device="cpu", quiet=True)


@cache
def pairs() -> TokenPairs:
    return ms.data.ioi(model(), n=4, seed=1, template="ABBA", corruption="s2_flip")


@cache
def one_pair() -> TokenPairs:
    clean = "When Mary and John went to the store, John gave a drink to"
    return TokenPairs.of(model(), [clean], [clean.replace(", John", ", Mary")], [" Mary"], [" John"])


def logit_lens() -> Any:
    return ms.lenses.logit(model(), CAPITAL, targets=" Paris").plot(layers=range(10, 30))


def tuned_lens() -> Any:
    return ms.lenses.tuned(model(), CAPITAL, targets=" Paris").plot(layers=range(10, 30))


def entropy_lens() -> Any:
    prompts = ["Once upon a time there was", "The first ten numbers are one, two, three,"]
    return ms.lenses.entropy_profile(model(), prompts, max_new_tokens=12).plot()


def token_gap() -> Any:
    groups = {
        "good film": ["The film was wonderful. I felt", "I loved every minute of it. I was"],
        "bad film": ["The film was terrible. I felt", "I hated every minute of it. I was"],
    }
    return ms.lenses.gap(model(), groups, [" happy", " glad"], [" sad", " angry"]).plot()


def trajectory() -> Any:
    return ms.lenses.trajectory(model(), CAPITAL, "The capital of Italy is").plot("js")


def languages() -> Any:
    words = {"English": ["dog", "house", "water", "book"], "French": ["chien", "maison", "eau", "livre"]}
    forms = [("dog", "chien"), ("house", "maison"), ("water", "eau"), ("book", "livre")]
    prompts = [
        "English: " + a + " - Français: " + b + "\nEnglish: " + c + " - Français:"
        for (a, b), (c, _) in zip(forms, forms[1:] + forms[:1])
    ]
    return ms.lenses.languages(model(), prompts, words).plot()


@cache
def texts() -> list[str]:
    """English that every Python carries."""
    from pydoc_data.topics import topics

    return [text for text in topics.values() if len(text) > 1500]


def patchscope() -> Any:
    return ms.lenses.patchscope(model(), "The Colosseum in Rome", ms.lenses.ENTITY_DESCRIPTION, quiet=True).plot()


def jacobian_lens() -> Any:
    lens = ms.lenses.JacobianLens.fit(
        model(), texts(), layers=range(14, 29, 2), n=8, length=40, skip_first=8, probes=64, quiet=True
    )
    return lens(model(), "To make bread you need flour, water and").plot()


def future_lens() -> Any:
    layers, offsets = range(3, 30, 3), (0, 1, 2)
    lens = ms.lenses.FutureLens.fit(model(), texts()[:40], layers=layers, offsets=offsets, length=80, quiet=True)
    return lens.evaluate(model(), texts()[40:48]).plot("agreement")


def token_lens() -> Any:
    effects = ms.lenses.copying_effects(model(), "token", 8, quiet=True)
    lens = ms.lenses.HeadLens.of(model(), effects, n=22)
    return lens(model(), "The old lighthouse keeper").plot(layers=range(2, 26))


def composition() -> Any:
    return ms.components.composition_scores(model(), "K").plot()


def sweep() -> Any:
    return ms.patching.sweep(model(), one_pair(), quiet=True).plot()


def comparison() -> Any:
    return ms.patching.check_estimate(model(), pairs(), "z", over=("layer", "head"), quiet=True).plot()


def paths() -> Any:
    return ms.patching.paths(model(), pairs(), ("z", "mlp_out"), "logits", quiet=True).plot()


def scrubbing() -> Any:
    names = ["Mary", "John", "Anna", "Tom", "Paul"]
    form = ["When {first} and {second} went to the {place}, {s2} gave a {object} to"]
    given = ms.data.ioi(model(), n=40, template="ABBA", names=names, sentences=form)
    word = lambda span: [  # noqa: E731
        model().str_token(row[at]) for row, at in zip(given.clean.rows(), given.spans[span].tolist())
    ]
    examples = [{"io": io, "s": s} for io, s in zip(word("io"), word("s2"))]
    moved = ms.patching.Claim("resid_pre.23", lambda e: e["io"], positions="io")
    asked = ms.patching.Claim("resid_pre.23", lambda e: (e["io"], e["s"]), positions="end")
    mover = ms.patching.Claim("attn_out.23", lambda e: e["io"], positions="end", inputs=[moved, asked])
    return ms.patching.scrub(model(), given, [mover], examples=examples, quiet=True).plot()


def subspace() -> Any:
    others, given = (ms.data.ioi(model(), n=n, seed=seed, corruption="s2_flip") for n, seed in ((16, 1), (8, 0)))
    sides = (model().run(side, capture="z.20", logits=False) for side in (others.clean, others.corrupted))
    clean, corrupted = (run.last("z.20")[:, 0] for run in sides)
    direction = torch.linalg.svd(clean - corrupted, full_matrices=False).Vh[:1]
    return ms.patching.subspace(model(), given, direction, site="z.20", positions="end", head=0).plot()


def head_scores() -> Any:
    return ms.components.head_scores(model()).plot("induction")


def direct_attribution() -> Any:
    prompt = "After John and Mary went to the store, John gave a bottle of milk to"
    return ms.components.direct_attribution(model(), prompt, " Mary", " John").plot()


def probe_survey() -> Any:
    data = labelled("sentiment").first(120)
    labels, groups = [one == "positive" for one in data.labels], ms.probes.near_duplicates(data.texts)
    rows = ms.probes.read_rows(model(), data.texts, labels, groups=groups)
    found = ms.probes.survey(ms.probes.split(rows))
    print(found.table[found.table["chosen"]].to_string(), found.baselines)
    return found.plot()


def directions() -> Any:
    pairs = ms.studies.StudyConfig.load("french").pairs
    return ms.directions.Directions.fit(model(), pairs, at="last").plot()


def doses() -> Any:
    french = ["Je suis allé au marché", "La maison est très grande", "Nous avons mangé du pain"]
    french += ["Il fait froid ce matin"]
    english = ["I went to the market", "The house is very big", "We ate some bread", "It is cold this morning"]
    direction = ms.directions.Direction.fit(model(), french, english, "resid_post.15")
    prompts = ["I went to the market and", "My opinion is that", "The weather today is", "Once upon a time there was"]
    amounts = [0, 0.25, 0.5, 1, 1.5, 2]
    return ms.steering.dose_response(model(), prompts, direction, amounts, controls=3).plot()


def robustness() -> Any:
    """The report of docs/robustness.md: about half an hour of one core the first time; it goes on where it stopped."""
    small = {"most_prompts": 16, "most_train": 40, "max_new_tokens": 16, "layers": [10, 14, 18, 22], "keep_texts": True}
    grid = {"amounts": [1.0], "scales": [1.0, 2.0], "ks": [1, 4], "steps": [5]}
    tasks = {"capabilities": ["capitals", "ioi", "pronouns"]}
    config = ms.robustness.RobustnessConfig.load("planted-refusal", **small, **grid, **tasks)
    return ms.robustness.assess(config, folder="runs/robustness-planted-refusal").plot("success")


CIRCUITS = {  # name -> model, task, edges asked for, edges drawn (docs/circuits.md, docs/task-circuits.md)
    "circuit": ("smollm2", "ioi", 1000, 50),
    "circuit_pronouns": ("smollm2", "pronouns", 1000, 40),
    "circuit_capitals": ("smollm2", "capitals", 1000, 32),
    "circuit_agreement": ("smollm2", "agreement", 1000, 26),
    "circuit_opposites": ("smollm2", "opposites", 1000, 26),
    "circuit_gemma_pronouns": ("gemma3-270m", "pronouns", 300, 22),
    "circuit_refusal": ("planted-refusal", "", 1000, 24),
}


def circuit(name: str) -> Any:
    """As `monosem circuit MODEL --task TASK --n 32`: scores of the first half of the pairs."""
    of, task, asked, drawn = CIRCUITS[name]
    if task:
        lm = model() if of == "smollm2" else ms.load_model(of, dtype="float32", device="cpu", quiet=True)
        found = TASKS[task](lm, n=32)[[*range(16)]]
    else:
        lm, organism = ms.load_model(of, quiet=True), ms.organisms.Organism.load(of)
        found = pairs_of(lm, organism.prompts["behaviour_test"][:24])[[*range(8)]]
    scores = ms.circuits.attribute(lm, found, "eap-ig", batch_size=2, quiet=True)
    return scores.greedy(asked).plot(drawn)


PICTURES: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (
        logit_lens,
        tuned_lens,
        entropy_lens,
        token_gap,
        trajectory,
        languages,
        patchscope,
        jacobian_lens,
        future_lens,
        token_lens,
        sweep,
        comparison,
        paths,
        scrubbing,
        subspace,
        head_scores,
        composition,
        direct_attribution,
        probe_survey,
        directions,
        doses,
        robustness,
    )
} | {name: partial(circuit, name) for name in CIRCUITS}


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or PICTURES:
        figure = PICTURES[name]()
        height = min(figure.layout.height or 400, 1400 if name in CIRCUITS else 560)
        figure.update_layout(paper_bgcolor="white", plot_bgcolor="white")
        # older ones stay png until they are given up
        place = next(FOLDER.glob(f"{name}.png"), FOLDER / f"{name}.webp")
        figure.write_image(place, width=860, height=height, scale=1.25)
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
