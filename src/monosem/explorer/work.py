"""What jobs compute with the model: each takes what was asked, and gives plain data that a page draws."""

from collections.abc import Callable
from typing import Any

import torch

from .. import graphs, lenses, patching
from ..data import TokenPairs
from ..errors import BadInput
from ..files import json_value
from ..graphs.viewer import page as graph_page
from ..latents import head_sources, page, pooled, removal, top
from .asks import Ask, Graph, Lens, Patch, PromptText, Removed, Sources, TryText, Weights
from .bench import Bench
from .library import Library
from .queue import Job
from .steering import steer

MATRIX_LATENTS = 60  # of a prompt's matrix


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


def lens(bench: Bench) -> dict[str, Any]:
    """The likeliest token of every layer at every token."""
    ask: Lens = bench.ask
    if ask.lens == "tuned" and bench.model.name not in (shipped := lenses.TunedLens.shipped()):
        raise BadInput(
            f"no tuned lens of {bench.model.name} is here (of {', '.join(shipped)} is); choose the logit lens"
        )
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
    if prompts[0] == prompts[1]:
        raise BadInput("the clean prompt and the corrupted prompt are the same; they need different answers")
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


def removed(bench: Bench) -> dict[str, Any]:
    """What removing a latent does to the next tokens of an example; kept, because one looks again."""
    ask: Removed = bench.ask
    key = (bench.model.name, ask.dictionary, ask.latent, tuple(ask.ids))
    if (found := _REMOVED.get(key)) is None:
        if max(ask.ids) >= bench.model.cfg.d_vocab:
            raise BadInput(f"the model has tokens 0 to {bench.model.cfg.d_vocab - 1}")
        with bench.watched():
            table = removal(bench.model, bench.book.dictionary, ask.latent, ask.ids).table
        found = {"tokens": bench.strings(ask.ids), "rows": json_value(table.drop(columns="token"))}
        while len(_REMOVED) >= MOST_REMOVED:
            _REMOVED.pop(next(iter(_REMOVED)))
        _REMOVED[key] = found
    return found


_REMOVED: dict[Any, dict[str, Any]] = {}
MOST_REMOVED = 500


def sources(bench: Bench) -> dict[str, Any]:
    """What each head, looking at each token, gives to a latent's pre-activation at one token."""
    ask: Sources = bench.ask
    with bench.watched():
        found = head_sources(bench.model, bench.text, bench.book.dictionary, ask.latent, position=ask.position)
    ids = bench.model.tokens(bench.text).rows()[0]
    return {
        "tokens": bench.strings(ids),
        "values": json_value(found.values),
        **{name: json_value(getattr(found, name)) for name in ("bias", "preactivation", "activation")},
    }


def weights(bench: Bench) -> dict[str, Any]:
    """The parts of a latent's page that need the model's weights."""
    ask: Weights = bench.ask
    book = bench.book
    with book.lock:
        whole = page(book.usable, ask.latent, dictionary=book.dictionary, model=bench.model).to_json()
    return {name: whole[name] for name in ("logits", "set_effects", "heads") if name in whole}


WORK: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "try": try_text,
    "prompt": prompt_latents,
    "steer": steer,
    "lens": lens,
    "patch": patch,
    "graph": graph,
    "removed": removed,
    "sources": sources,
    "weights": weights,
}


def started(library: Library, kind: str, ask: Ask) -> Callable[[Job], Any]:
    """The work of a job: the model is loaded in it, and what was asked is computed without gradients kept."""

    def work(job: Job) -> Any:
        return WORK[kind](Bench(library, ask, job))

    return work
