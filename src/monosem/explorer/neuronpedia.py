"""Neuronpedia's addresses under /api, answered from the dictionaries that are open here.

A notebook changes the base URL alone. A model's id is the last part of its name; a source is `{layer}-{site}`, with
`__{name}` where several dictionaries lie at one site.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from torch import Tensor

from .. import edits, graphs
from ..errors import BadInput, UnknownName
from ..graphs.files import graph_json
from ..reading import parse_json
from .asks import parsed
from .bench import Bench
from .library import Book, Library
from .neuronpedia_asks import (
    MOST_FOUND,
    Activation,
    Active,
    Listed,
    OfLatent,
    SearchAll,
    SearchTop,
    SearchWords,
    SteerText,
    Traced,
    Wanted,
)
from .neuronpedia_places import Found, Row, places
from .notes import Change, Notes
from .queue import ENDED, Job, Jobs
from .steering import say

PAGE = 20  # results of a search
MOST_GRAPHS = 20
LOOK_SECONDS = 0.03


# ---------------------------------------------------------------------- what the model says
@dataclass(frozen=True)
class Read:
    """A text, and every latent at every token; `counted`: tokens that the dictionary was trained on."""

    tokens: list[str]
    codes: Float[Tensor, "pos width"]
    counted: Bool[Tensor, "pos"]


def read(bench: Bench, text: str) -> Read:
    own, prompt = bench.book.dictionary, bench.as_prompt(text)
    with bench.watched():
        run = bench.model.run(prompt, capture=[own.site], logits=False)
    counted = own.skipper(bench.model).counted(run.tokens, {str(own.site): run[own.site]})[0]
    return Read(bench.strings(run.tokens.ids[0]), own.encode(run[own.site][0]).dense().float().cpu(), counted.cpu())


def peak(values: Tensor) -> Row:
    """Values of a latent over a text with their strongest place, as the service names them."""
    at = int(values.abs().argmax())
    return {
        "values": values.tolist(),
        "maxValue": float(values[at]),
        "maxValueIndex": at,
        "maxValueTokenIndex": at,
        "minValue": float(values.min()),
        "dfaValues": [],
        "dfaMaxValue": None,
        "dfaTargetIndex": None,
    }


def spoken(bench: Bench, ask: SteerText, wanted: list[edits.Edit]) -> Row:
    """A continuation, and the log-probability of each of its tokens beside the likeliest ones."""
    options: Row = {"max_new_tokens": ask.n_tokens, "temperature": ask.temperature, "seed": ask.seed}
    made, rows = say(bench, ask.prompt, wanted, **options), []
    for token, log_p in zip(made.new, made.logits.log_softmax(-1)):
        best = log_p.topk(ask.n_logprobs) if ask.n_logprobs else None
        pairs = [] if best is None else zip(best.indices.tolist(), best.values.tolist())
        tops = [{"token": bench.model.str_token(i), "logprob": value} for i, value in pairs]
        rows.append({"token": bench.model.str_token(token), "logprob": float(log_p[token]), "top_logprobs": tops})
    return {"text": made.text, "logprobs": rows}


class Neuronpedia:
    """The routes, and graphs that were made through them."""

    def __init__(self, library: Library, jobs: Jobs, notes: Notes):
        self.library, self.jobs, self.notes = library, jobs, notes
        self.graphs: dict[tuple[str, str], Row] = {}

    # --- which dictionary
    @cached_property
    def places(self) -> dict[tuple[str, str], Book]:
        return places(self.library)

    def found(self, model: str, source: str) -> Found:
        """Raises `UnknownName` with what there is."""
        if (model, source) not in self.places:
            there = ", ".join("/".join(one) for one in self.places)
            raise UnknownName(f"no source {model}/{source} here; there are {there}")
        return Found(self.places[model, source], model, source)

    def all(self, model: str | None = None) -> Iterator[Found]:
        for (name, source), book in self.places.items():
            if model in (None, name):
                yield Found(book, name, source)

    # --- stored data
    def feature(self, request: Request) -> Any:
        place = parsed(OfLatent, request.path_params)
        return self.found(place.modelId, place.source).row(place.index)

    def open(self, request: Request) -> Response:
        """The address of a latent's page there leads to the page here."""
        place = self.found(request.path_params["modelId"], request.path_params["source"])
        return RedirectResponse(
            str(
                request.url.replace(path="/latent", query="").include_query_params(
                    d=place.book.name, i=int(request.path_params["index"])
                )
            ),
            303,
        )

    def stored(self, ask: OfLatent) -> Any:
        return self.found(ask.modelId, ask.source).row(ask.index)["activations"]

    def words(self, ask: SearchWords) -> Any:
        """By words over labels and what latents fire on; there is no cosine, because nothing is embedded."""
        rows: list[Row] = []
        for place in self.all(ask.modelId):
            if place.book.usable is None or (ask.layers and place.source not in ask.layers):
                continue
            for one in place.book.search(ask.query, n=MOST_FOUND // 5):
                brief = place.brief(int(one["latent"]))
                label = next((each["description"] for each in brief["explanations"]), None)
                about = {"description": label or one["matched"], "typeName": "monosem" if label else "monosem words"}
                named = {key: brief[key] for key in ("modelId", "layer", "index")}
                rows.append({**named, **about, "score": one["score"], "cosine_similarity": None, "neuron": brief})
        rows.sort(key=lambda row: -row["score"])
        shown, end = rows[ask.offset : ask.offset + PAGE], ask.offset + PAGE
        more = {"hasMore": end < len(rows), "nextOffset": end if end < len(rows) else None}
        return {"request": ask.model_dump(), "results": shown, "resultsCount": len(shown), **more}

    def keep(self, ask: Listed) -> Any:
        put = [(self.found(one.modelId, one.source).book.name, one.index) for one in ask.features]
        self.notes.change(parsed(Change, {"put": (ask.name, put)}))
        return {"listId": ask.name, "id": ask.name, "url": "/lists"}

    def graph(self, request: Request) -> Any:
        """What is known of a graph, or (`/json`) the graph itself."""
        model, slug = request.path_params["modelId"], request.path_params["slug"]
        if (model, slug) not in self.graphs:
            raise UnknownName(f"no graph {model}/{slug}; the last {MOST_GRAPHS} of POST /api/graph/generate are kept")
        held = self.graphs[model, slug]
        if request.url.path.endswith("/json"):
            return held
        about = {"prompt": held["metadata"]["prompt"], "promptTokens": held["metadata"]["prompt_tokens"]}
        return {"modelId": model, "slug": slug, "url": f"/api/graph/{model}/{slug}/json", **about}

    # --- work with the model: each gives a function of the job
    def activation(self, ask: Activation) -> Callable[[Job], Any]:
        place = self.found(ask.feature.modelId, ask.feature.source).having(ask.feature.index)

        def work(job: Job) -> Any:
            bench = place.bench(self.library, job)
            many = isinstance(ask.customText, list)
            texts = ask.customText if isinstance(ask.customText, list) else [ask.customText]
            rows = []
            for text in texts:
                found = read(bench, text)
                rows.append({"tokens": found.tokens, **peak(found.codes[:, ask.feature.index])})
            return rows if many else rows[0]

        return work

    def active(self, ask: Active) -> Callable[[Job], Any]:
        place = self.found(ask.modelId, ask.source)

        def work(job: Job) -> Any:
            bench, results = place.bench(self.library, job), []
            for text in ask.customText if isinstance(ask.customText, list) else [ask.customText]:
                found = read(bench, text)
                firing: dict[str, list[list[float]]] = {}
                for position, latent in found.codes.nonzero().tolist():
                    firing.setdefault(str(latent), []).append([position, float(found.codes[position, latent])])
                results.append({"tokens": found.tokens, "activeFeatures": firing})
            return {"results": results}

        return work

    def search(self, ask: SearchAll) -> Callable[[Job], Any]:
        chosen = [place for place in self.all(ask.modelId) if place.source.partition("-")[2] == ask.sourceSet]
        chosen = [place for place in chosen if not ask.selectedLayers or place.source in ask.selectedLayers]
        if not chosen:
            raise UnknownName(f"no source of the set {ask.sourceSet!r} of {ask.modelId} among those asked for")

        def work(job: Job) -> Any:
            rows: list[tuple[float, Row]] = []
            for place in chosen:
                found = read(place.bench(self.library, job), ask.text)
                codes = found.codes.where(found.counted[:, None] if ask.ignoreBos else torch.tensor(True), 0)
                codes = codes.where(place.rare(ask.densityThreshold), 0)
                at = [i for i in ask.sortIndexes if i < len(codes)]
                size = codes[at].abs().sum(0) if at else codes.abs().amax(0)
                for latent in size.topk(min(ask.numResults, len(size))).indices.tolist():
                    if size[latent] > 0:
                        row: Row = {"modelId": place.model, "layer": place.source, "index": str(latent)}
                        row |= {**peak(codes[:, latent]), "neuron": place.brief(latent)}
                        rows.append((float(size[latent]), row))
            rows.sort(key=lambda one: -one[0])
            return {"tokens": found.tokens, "result": [row for _, row in rows[: ask.numResults]]}

        return work

    def search_tokens(self, ask: SearchTop) -> Callable[[Job], Any]:
        place = self.found(ask.modelId, ask.source)

        def work(job: Job) -> Any:
            found = read(place.bench(self.library, job), ask.text)
            codes, results = found.codes.where(place.rare(ask.densityThreshold), 0), []
            for position, token in enumerate(found.tokens):
                if ask.ignoreBos and not found.counted[position]:
                    continue
                size = codes[position].abs()
                best = [i for i in size.topk(min(ask.numResults, len(size))).indices.tolist() if size[i] > 0]
                rows = [
                    {"activationValue": float(codes[position, i]), "featureIndex": i, "feature": place.brief(i)}
                    for i in best
                ]
                results.append({"position": position, "token": token, "topFeatures": rows})
            return {"source": place.source, "results": results}

        return work

    def steer(self, ask: SteerText) -> Callable[[Job], Any]:
        """Their arithmetic: h + c v, or h with its part along v times c; c = multiplier × strength, v the decoder row.
        Tokens that a dictionary was not trained on (the first) stay as they are."""
        chosen = [(self.found(one.modelId, one.source).having(one.index), one) for one in ask.features]

        def work(job: Job) -> Any:
            bench, wanted = chosen[0][0].bench(self.library, job), []
            for place, one in chosen:
                amount, own = ask.strength_multiplier * one.strength, place.book.dictionary
                if ask.steer_method == "SIMPLE_ADDITIVE":
                    wanted.append(edits.add_latent(own, one.index, amount))
                else:
                    wanted.append(edits.scale_along((own.site, own.decoder_rows(one.index)[0]), amount))
            reply: Row = {"id": job.id, "shareUrl": None}
            for side, given in (("default", []), ("steered", wanted)):
                made = spoken(bench, ask, given)
                reply |= {side.upper(): ask.prompt + made["text"], f"{side}LogProbs": made["logprobs"]}
            return reply

        return work

    def trace(self, ask: Traced) -> Callable[[Job], Any]:
        place = next(self.all(ask.modelId), None)
        if place is None:
            raise UnknownName(f"no dictionary of a model {ask.modelId!r} is open here")

        def work(job: Job) -> Any:
            bench, slug = place.bench(self.library, job), ask.slug or f"graph-{job.id}"
            prompt = bench.as_prompt(ask.prompt)
            whole = graphs.attribution_graph(bench.model, prompt, n_nodes=ask.maxFeatureNodes, quiet=True)
            job.check()
            kept = whole.prune(ask.nodeThreshold, ask.edgeThreshold)
            self.graphs[ask.modelId, slug] = made = graph_json(kept, slug)
            for old in list(self.graphs)[:-MOST_GRAPHS]:
                del self.graphs[old]
            address = f"/api/graph/{ask.modelId}/{slug}/json"
            counts = {"numNodes": len(made["nodes"]), "numLinks": len(made["links"])}
            return {"message": "Graph created", "modelId": ask.modelId, "slug": slug, "url": address, **counts}

        return work

    # --- routes
    def routes(self, data: Callable[[Callable[[Request], Any]], Any]) -> list[Route]:
        """`data` makes a route of a handler that gives plain data."""
        return [
            Route("/api/feature/{modelId}/{source}/{index}", data(self.feature)),
            Route("/api/graph/{modelId}/{slug}", data(self.graph)),
            Route("/api/graph/{modelId}/{slug}/json", data(self.graph)),
            *(Route(f"/api/{name}", self.answered(*way), methods=["POST"]) for name, way in self.ways().items()),
            Route("/{modelId}/{source}/{index:int}", self.open),
        ]

    def ways(self) -> dict[str, tuple[type[Wanted], Callable[[Any], Any]]]:
        """Address -> what is asked, and who answers."""
        searches = ("explanation/search", "explanation/search-model", "explanation/search-all")
        return {
            "activation/new": (Activation, self.activation),
            "activation/get": (OfLatent, self.stored),
            "activation/source": (Active, self.active),
            "search-all": (SearchAll, self.search),
            "search-topk-by-token": (SearchTop, self.search_tokens),
            "steer": (SteerText, self.steer),
            "graph/generate": (Traced, self.trace),
            "list/new-with-features": (Listed, self.keep),
            **dict.fromkeys(searches, (SearchWords, self.words)),
        }

    def answered(self, kind: type[Wanted], handler: Callable[[Any], Any]) -> Callable[[Request], Any]:
        """A route: what is asked is checked, work with the model waits for its turn, and ends when the client left."""

        async def route(request: Request) -> Response:
            try:
                values = parse_json((await request.body()).decode())
            except ValueError as error:
                raise BadInput(f"the request is not JSON: {error}") from error
            made = await asyncio.to_thread(lambda: handler(parsed(kind, values)))
            if not callable(made):
                return JSONResponse(made)
            job = self.jobs.add("api", request.url.path.removeprefix("/api/"), made)
            while job.state not in ENDED:
                if await request.is_disconnected():
                    self.jobs.cancel(job.id)
                await asyncio.sleep(LOOK_SECONDS)
            last = job.events[-1]
            if last["type"] != "done":
                raise BadInput(last.get("words", "cancelled"))
            return JSONResponse(last["result"])

        return route
