"""Directions of all layers but the last from pairs of prompts, against repeng and steering-vectors; and what a
condition that never fires costs while text is written.

Three sets of pairs, read at the last token of the same model in float32: few and more of the bundled film reviews,
positive against negative, and what repeng's own examples make: a persona and its opposite before statements that are
cut after every word.
Vectors of the same formula, as they were timed, have to agree to 1e-4: the difference of means with
steering-vectors' `mean_aggregator`, the first axis of uncentred differences with repeng's `pca_center` and
steering-vectors' `pca_aggregator`. (repeng's default, `pca_diff`, centres the differences, which takes the direction
out; its time is shown, its vectors are others.) Times are processor time of one thread; before a table each of its
contestants finds the directions of four short pairs, untimed.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from common import SITE, arguments, interleaved, machine, row
from monosem import edits, load_model
from monosem.benchmarks import labelled
from monosem.data import PromptPairs
from monosem.directions import METHODS, Directions
from monosem.directions.sample import Sample
from monosem.models import Model
from monosem.probes import read_rows
from monosem.studies import StudyConfig

np.float_ = np.float64  # repeng 0.4.0 names it, and NumPy 2 has it no more

import repeng  # noqa: E402
import steering_vectors  # noqa: E402

BATCH, MORE = 32, 96
OURS, BARE = "monosem, with its diagnostics", "monosem, vectors alone"
Vectors = dict[int, torch.Tensor]  # layer -> vector


def pairs_of(n: int, longest: int) -> PromptPairs:
    """The first reviews of up to so many letters."""
    data = labelled("sentiment")
    rows = [(text, label) for text, label in zip(data.texts, data.labels) if len(text) <= longest]
    sides = [[text for text, label in rows if label == side][:n] for side in ("positive", "negative")]
    return PromptPairs(*sides)


def cut_pairs(statements: int, longest: int) -> PromptPairs:
    """Personas before the first words of reviews, one pair after every word up to the longest."""
    texts = [text.split()[:longest] for text in labelled("sentiment").texts if len(text.split()) >= longest]
    cut = [" ".join(words[:n]) for words in texts[:statements] for n in range(1, longest + 1)]
    sides = [[f"Act as if you are extremely {who}. {text}" for text in cut] for who in ("happy", "sad")]
    return PromptPairs(*sides)


def contestants(
    model: Model, pairs: PromptPairs, layers: list[int], alone: bool
) -> dict[str, dict[str, Callable[[], Vectors]]]:
    """Formula -> contestants; the first one of each is the baseline. `alone`: also what reads prompt by prompt, and a
    default that gives other vectors."""
    sites = [f"resid_post.{layer}" for layer in layers]
    entries = [repeng.DatasetEntry(*pair) for pair in pairs]
    texts, labels = [*pairs.positive, *pairs.negative], [1] * len(pairs.positive) + [0] * len(pairs.negative)

    def ours(method: str) -> Vectors:
        found = Directions.fit(model, pairs, layers=layers, method=method, batch_size=BATCH)
        return {layer: one.vector for layer, one in zip(layers, found)}

    def bare(method: str) -> Vectors:
        x = read_rows(model, texts, labels, sites, batch_size=BATCH).x
        up, down = x.split(len(pairs.positive), 1)
        return {n: METHODS[method].find(Sample.of(*both)).vector.float() for n, both in zip(layers, zip(up, down))}

    def of_repeng(method: str) -> Vectors:
        made = repeng.ControlVector.train(
            model.hf, model.tokenizer, entries, hidden_layers=layers, batch_size=BATCH, method=method
        )
        return {layer: torch.from_numpy(made.directions[layer]) for layer in layers}

    def of_steering_vectors(aggregator: Any, batch: int) -> Vectors:
        made = steering_vectors.train_steering_vector(
            model.hf, model.tokenizer, list(pairs), layers=layers, aggregator=aggregator, batch_size=batch
        )
        return {layer: vector.float().cpu() for layer, vector in made.layer_activations.items()}

    mean, pca = steering_vectors.mean_aggregator(), steering_vectors.pca_aggregator()
    found: dict[str, dict[str, Callable[[], Vectors]]] = {
        "difference of means": {
            OURS: lambda: ours("dim"),
            BARE: lambda: bare("dim"),
            "steering-vectors, batches of 32": lambda: of_steering_vectors(mean, BATCH),
            "steering-vectors, its default (1)": lambda: of_steering_vectors(mean, 1),
        },
        "first axis of differences": {
            OURS: lambda: ours("pca_pairs"),
            BARE: lambda: bare("pca_pairs"),
            "repeng pca_center": lambda: of_repeng("pca_center"),
            "repeng pca_diff, its default": lambda: of_repeng("pca_diff"),
            "steering-vectors PCA, batches of 32": lambda: of_steering_vectors(pca, BATCH),
        },
    }
    left_out = () if alone else ("steering-vectors, its default (1)", "repeng pca_diff, its default")
    return {formula: {name: one for name, one in own.items() if name not in left_out} for formula, own in found.items()}


def keep(made: dict[str, Vectors], name: str, make: Callable[[], Vectors]) -> None:
    made[name] = make()


def apart(one: Vectors, other: Vectors, axes: bool) -> float:
    """The largest distance at a layer, over the vector's length; of axes, which have neither length nor sign (repeng's
    sign goes by most pairs, the others' by the mean), of the unit vectors, turned the same way."""
    worst = 0.0
    for layer, a in one.items():
        b = other[layer]
        a, b = (a / a.norm(), b / b.norm() * torch.sign(a @ b)) if axes else (a, b)
        worst = max(worst, float((a - b).norm() / a.norm()))
    return worst


def generations(model: Model, prompts: list[str], new: int) -> dict[str, Callable[[], Any]]:
    """Plain, with an edit whose condition looks at every token and never fires, and with the edit alone."""
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    change = edits.add((SITE, vector), 0.5)
    gate = edits.condition((f"resid_pre.{SITE.rpartition('.')[2]}", vector), above=1e9, every=1)

    def write(*changes: edits.Edit) -> list[list[int]]:
        return model.generate(prompts, edits=changes, max_new_tokens=new, stop_at_eos=False).new

    assert write() == write(change.when(gate))
    return {
        "plain": write,
        "an edit whose condition never fires": lambda: write(change.when(gate)),
        "the edit without a condition": lambda: write(change),
    }


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    packages = ["torch", "transformers", "numpy", "repeng", "steering-vectors", "monosem"]
    found: dict[str, Any] = {"machine": machine(1, packages), "rows": []}
    model = load_model("smollm2", dtype="float32", quiet=True)
    layers = [3, 15] if options.tiny else list(range(model.cfg.n_layers - 1))
    for words, pairs in {
        "reviews": pairs_of(4, 50) if options.tiny else pairs_of(24, 250),
        "more reviews": pairs_of(6, 50) if options.tiny else pairs_of(MORE, 250),
        "statements cut after every word": cut_pairs(1, 3) if options.tiny else cut_pairs(5, 12),
    }.items():
        for formula, own in contestants(model, pairs, layers, alone=words != "more reviews").items():
            made: dict[str, Vectors] = {}
            kept = {name: partial(keep, made, name, make) for name, make in own.items()}
            for warm_up in contestants(model, pairs_of(4, 50), layers, alone=True)[formula].values():
                warm_up()
            seconds = interleaved(kept, max(1, options.rounds // 3), warm=False, clock=time.process_time)
            axes = formula != "difference of means"
            errors = {name: 0.0 if name == BARE else apart(one, made[BARE], axes) for name, one in made.items()}
            same = {name: error for name, error in errors.items() if "pca_diff" not in name}
            assert max(same.values()) < 1e-4, errors
            case = f"{formula}, {len(pairs.positive)} pairs of {words}, {len(layers)} layers"
            for name in own:
                found["rows"].append(
                    {"case": case, "error": errors[name]} | row(name, 2 * len(pairs.positive), seconds, OURS)
                )
    config = StudyConfig.load("french")
    prompts, new = [*config.test, *config.control][: 3 if options.tiny else 8], 4 if options.tiny else 12
    writers = generations(model, prompts, new)
    seconds = interleaved(writers, max(1, options.rounds // 2), clock=time.process_time)
    about = {"case": f"generation, {len(prompts)} prompts × {new} new tokens", "error": None}
    found["rows"] += [about | row(name, len(prompts) * new, seconds, "plain") for name in writers]
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
