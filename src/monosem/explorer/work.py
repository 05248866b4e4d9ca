"""What jobs compute with the model: each takes what was asked, and gives plain data that a page draws."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import edits, graphs, lenses, patching, steering
from ..data import TokenPairs
from ..errors import BadInput
from ..files import json_value
from ..graphs.viewer import page as graph_page
from ..latents import pooled, top
from ..latents.spelling import readable, token_text
from ..models import Model, Moment, Site
from ..steering.outcome import Outcome, outcome
from .asks import Ask, Graph, Lens, Patch, PromptText, Steer, TryText
from .library import Book, Library
from .queue import Job

MOST_TOKENS = 1024  # of a text
MATRIX_LATENTS = 60  # of a prompt's matrix
CHANGES = {"add": edits.add_latent, "set": edits.clamp, "multiply": edits.scale_latent}


class Bench:
    """What one job works with: its request, the dictionary, the model, and the job itself to tell of progress."""

    def __init__(self, library: Library, ask: Any, job: Job):
        self.ask, self.job, self.library = ask, job, library
        self.book: Book = library.book(ask.dictionary)
        self.model: Model = library.model(self.book, job)
        job.progress("reading the text")

    @property
    def text(self) -> str:
        return self.as_prompt(self.ask.text)

    def as_prompt(self, text: str) -> str:
        prompt = self.model.chat(text) if self.ask.chat else text
        if (n := int(self.model.tokens(prompt).lengths[0])) > MOST_TOKENS:
            raise BadInput(f"the text has {n:,} tokens; at most {MOST_TOKENS:,} are read here")
        return prompt

    def strings(self, ids: Sequence[int] | Tensor) -> list[str]:
        """Texts of neighbouring tokens; a character spread over several stands at the last."""
        return readable(token_text(self.model, int(one)) for one in ids)

    @contextlib.contextmanager
    def watched(self, told: Callable[[Tensor], None] | None = None) -> Iterator[None]:
        """Every pass inside ends early when the job is cancelled; `told` hears of each new token: ids `batch pos`."""

        def look(x: Tensor, moment: Moment) -> Tensor:
            self.job.check()
            if told is not None:
                told(moment.tokens.ids[:, int(moment.prompt_lengths.max()) :])
            return x

        with self.model.editing(edits.Edit(Site.parse("resid_pre.0"), look, "watch", by_row=True)):
            yield


def try_text(bench: Bench) -> dict[str, Any]:
    """Where one latent fires in a text. Tokens that the dictionary was not trained on are said, their values kept."""
    ask: TryText = bench.ask
    own, site = bench.book.dictionary, bench.book.dictionary.site
    with bench.watched():
        run = bench.model.run(bench.text, capture=[site], logits=False)
    codes = own.encode(run[site][0])
    values = torch.where(codes.indices == ask.latent, codes.values, 0).sum(-1).float()
    counted = own.skipper(bench.model).counted(run.tokens, {str(site): run[site]})[0]
    index = bench.book.usable
    return {
        "tokens": bench.strings(run.tokens.ids[0]),
        "activations": values.tolist(),
        "counted": counted.tolist(),
        "maximum": None if index is None else float(index.maxima[ask.latent]),
    }


def prompt_latents(bench: Bench) -> dict[str, Any]:
    """The strongest latents of every token, and the tokens × latents of the strongest of all."""
    ask: PromptText = bench.ask
    own, index = bench.book.dictionary, bench.book.usable
    with bench.watched():
        found = top(bench.model, own, bench.text, n=ask.n, index=index).table
        best = _best(bench, found)
        run = bench.model.run(bench.text, capture=[own.site], logits=False)
        other = None
        if ask.other.strip():
            prompts = [bench.text, bench.as_prompt(ask.other)]
            both = pooled(bench.model, own, prompts, "max")
            largest = (both[0] - both[1]).abs().topk(min(MATRIX_LATENTS, own.width)).indices.tolist()
            other = [{"latent": i, "here": float(both[0, i]), "there": float(both[1, i])} for i in largest]
    # what the dictionary was not trained on (the first token takes part in almost every latent) says nothing
    counted = own.skipper(bench.model).counted(run.tokens, {str(own.site): run[own.site]})[0]
    dense = own.encode(run[own.site][0]).dense()[:, best].float().where(counted[:, None], 0)
    named = sorted({*best, *found["latent"].tolist(), *(one["latent"] for one in other or [])})
    strongest = found[["position", "latent", "value"]].to_dict(orient="records")
    maxima = None if index is None else index.maxima[best].tolist()
    return {
        "tokens": bench.strings(run.tokens.ids[0]),
        "top": strongest,
        "latents": best,
        "matrix": dense.T.tolist(),
        "counted": counted.tolist(),
        "maxima": maxima,
        "contrast": other,
        "words": bench.book.rows(named[:1000]),
    }


def _best(bench: Bench, found: Any) -> list[int]:
    """The latents of a matrix: those that come nearest to their own maximum, or are strongest where none is known."""
    if found.empty:
        raise BadInput("no latent fires on this text: its tokens are all left out (first, special or outliers)")
    measure = "of_maximum" if "of_maximum" in found else "value"
    order = found.assign(size=found[measure].abs()).groupby("latent")["size"].max().nlargest(MATRIX_LATENTS)
    return [int(latent) for latent in order.index]


def steer(bench: Bench) -> dict[str, Any]:
    """A continuation without and with the edits, token by token as they come."""
    ask: Steer = bench.ask
    own, text = bench.book.dictionary, bench.text
    change = CHANGES[ask.how]
    wanted = [change(own, dose.latent, dose.value) for dose in ask.doses]
    start = len(bench.model.tokens(text).rows()[0])
    options: dict[str, Any] = {"max_new_tokens": ask.tokens, "temperature": ask.temperature, "seed": ask.seed}

    def side(name: str) -> Callable[[Tensor], None]:
        seen = 0

        def told(ids: Tensor) -> None:
            nonlocal seen
            new = ids[0].tolist()
            if len(new) > seen:
                seen = len(new)
                bench.job.tell("tokens", side=name, texts=bench.strings(new))

        return told

    key = (bench.model.name, text, *options.values())
    if (plain := _PLAIN.get(key)) is None:
        bench.job.progress("writing without the edit")
        with bench.watched(side("plain")):
            plain = outcome(bench.model, text, (), **options)
        _PLAIN.clear()
        _PLAIN[key] = plain
    bench.job.tell("tokens", side="plain", texts=bench.strings(plain.new[0]))
    bench.job.progress("writing with the edit")
    with bench.watched(side("steered")):
        edited = outcome(bench.model, text, wanted, **options)
    compared = steering.Comparison.between(bench.model, plain, edited, top=10)
    row = compared.rows[0]
    bench.job.tell("tokens", side="steered", texts=bench.strings(edited.new[0]))
    return {
        "prompt_tokens": start,
        "plain": plain.texts[0],
        "steered": edited.texts[0],
        "row": json_value(row),
        "changes": _changes(bench, plain.logits[0], edited.logits[0]),
    }


_PLAIN: dict[Any, Outcome] = {}  # the last continuation without edits: one changes doses more often than prompts


def _changes(bench: Bench, before: Tensor, after: Tensor, n: int = 8) -> list[dict[str, Any]]:
    """Next tokens of which the log-probability moves most, among those with a chance of 0.1 % on one side."""
    a, b = before.double().log_softmax(-1), after.double().log_softmax(-1)
    moved = torch.where(torch.maximum(a, b) > torch.tensor(0.001).log(), b - a, 0)
    ids = moved.abs().topk(min(2 * n, len(moved))).indices.tolist()
    ids.sort(key=lambda i: -float(moved[i]))
    return [
        {"token": bench.model.str_token(i), "before": float(a[i].exp()), "after": float(b[i].exp())}
        for i in ids
        if moved[i] != 0
    ]


def lens(bench: Bench) -> dict[str, Any]:
    """The likeliest token of every layer at every token."""
    ask: Lens = bench.ask
    with bench.watched():
        found = getattr(lenses, ask.lens)(bench.model, bench.text, top=5, quiet=True)
    ids, p = found.top_ids[:, 0], found.top_probabilities[:, 0]
    spelled = {i: bench.model.str_token(i) for i in set(ids.flatten().tolist()) if i >= 0}
    return {
        "tokens": bench.strings(found.tokens.ids[0]),
        "layers": [str(site) for site in found.sites],
        "top": [[[spelled.get(i, "") for i in cell] for cell in layer] for layer in ids.tolist()],
        "probabilities": json_value(p),
        "final": bench.strings(found.targets["final"][0]),
        "rank": json_value(found.values("rank", "final")[:, 0].float()),
    }


def patch(bench: Bench) -> dict[str, Any]:
    """Every layer and token of the clean prompt written into the corrupted one: how far the answer comes back."""
    ask: Patch = bench.ask
    prompts = bench.text, bench.as_prompt(ask.corrupted)
    pairs = TokenPairs.of(bench.model, [prompts[0]], [prompts[1]], [ask.answer], [ask.wrong])
    bench.job.progress("patching every layer and token")
    swept = patching.sweep(bench.model, pairs, "resid_pre", ("layer", "position"), quiet=True)
    table = swept.table
    return {
        "tokens": bench.strings(pairs.clean.ids[0]),
        "corrupted": bench.strings(pairs.corrupted.ids[0]),
        "rows": json_value(table),
        "clean": json_value({name: value.mean() for name, value in swept.clean.items()}),
        "broken": json_value({name: value.mean() for name, value in swept.corrupted.items()}),
    }


def graph(bench: Bench) -> dict[str, Any]:
    """An attribution graph, pruned, as the viewer's page."""
    ask: Graph = bench.ask
    bench.job.progress("tracing how the prompt becomes its answer")
    whole = graphs.attribution_graph(bench.model, bench.text, n_nodes=ask.nodes, quiet=True)
    kept = whole.prune()
    bench.job.check()
    bench.job.files["graph.html"] = graph_page(kept)
    return {"page": "graph.html", "nodes": len(kept.nodes), "scores": json_value(whole.scores)}


WORK: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "try": try_text,
    "prompt": prompt_latents,
    "steer": steer,
    "lens": lens,
    "patch": patch,
    "graph": graph,
}


def started(library: Library, kind: str, ask: Ask) -> Callable[[Job], Any]:
    """The work of a job: the model is loaded in it, and what was asked is computed without gradients kept."""

    def work(job: Job) -> Any:
        return WORK[kind](Bench(library, ask, job))

    return work
