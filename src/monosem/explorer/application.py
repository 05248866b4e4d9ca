"""The explorer's web application: pages, their data as JSON, jobs as a stream of events."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from .. import __version__
from ..dictionaries.codes import latent_ids
from ..errors import BadInput, MonosemError, UnknownName, check_name
from ..latents import public_latent, read_dashboards
from ..latents.drawing import export_page
from ..latents.public import split_place
from ..pages import environment
from ..reading import parse_json
from ..terminal import notice, one_line
from .apart import apart
from .asks import ASKS, parsed
from .computed import COMPUTED, Computed, books
from .corpora import KIND, Chosen, Corpora, IndexOf
from .guard import TooLarge
from .library import MOST_ROWS, Library, family, made_of, relation
from .modules import MODULES, PAGES, imports, module
from .neuronpedia import Neuronpedia
from .notes import Change, Notes
from .queue import ENDED, Job, Jobs
from .sweeps import Sweeps
from .words import spoken
from .work import started

EVENT_SECONDS, BEAT_SECONDS = 0.05, 10.0
TEXTS = "/api/texts"  # where a text is sent to


class Explorer:
    """What the routes need: the library, the jobs, the notes, and reports on the disk.

    Args:
        reports: folders that are searched for reports (`report.html` in them or one level below).
        sweeps: folders of sweeps of latents. dashboards: files of other tools, as `latents.read_dashboards` takes them.
        texts: files or folders of which indexes may be made.
    """

    def __init__(
        self,
        library: Library,
        notes: Notes,
        reports: Sequence[Path] = (),
        sweeps: Sequence[Path] = (),
        dashboards: Sequence[Path] = (),
        texts: Sequence[Path] = (),
    ):
        self.sweeps = Sweeps(sweeps, library)
        self.dashboards = [(str(path), read_dashboards(path).pages) for path in dashboards]
        self.library, self.notes, self.jobs = library, notes, Jobs()
        self.corpora = Corpora(library, texts)
        self.computed = Computed(library, notes.path.parent / "computed")
        self.reports = {str(n): path for n, path in enumerate(found_reports(list(reports)))}

    @cached_property
    def importmap(self) -> str:
        return json.dumps({"imports": imports()})

    @cached_property
    def policy(self) -> str:
        """Scripts and styles of our own files alone; the import map by its hash."""
        digest = base64.b64encode(hashlib.sha256(self.importmap.encode()).digest()).decode()
        return (
            f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; img-src 'self' data:; "
            "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
        )

    # --- pages ------------------------------------------------------------------------------------------------------

    def shell(self, request: Request) -> Response:
        page = environment("monosem.explorer", escape=True).get_template("shell.html.jinja")
        return HTMLResponse(page.render(importmap=self.importmap))

    def missing(self, request: Request, error: Exception) -> Response:
        """An address that is no page: the app says so to a browser."""
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("Not Found", status_code=404)
        page = self.shell(request)
        page.status_code = 404
        return page

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in MODULES:
            raise UnknownName(f"no file {name!r}")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(module(name), media_type=kind, headers={"cache-control": "no-cache"})

    def report(self, request: Request) -> Response:
        path = self.reports.get(request.path_params["number"])
        if path is None:
            raise UnknownName("no such report")
        return apart(path.read_text(encoding="utf-8"))

    def job_file(self, request: Request) -> Response:
        page = self.jobs.get(request.path_params["id"]).files.get(request.path_params["name"])
        if page is None:
            raise UnknownName("the job has no such page")
        return apart(page)

    def export(self, request: Request) -> Response:
        book, numbers = self.library.book(asked(request, "d")), whole(request, "i")
        page = export_page([book.latent(number) for number in numbers])
        name = f"{book.name.replace('/', '_')}_{'_'.join(map(str, numbers[:5]))}.html"
        clean = "".join(c if c.isalnum() or c in "._-" else "_" for c in name if c.isascii())
        return HTMLResponse(page, headers={"content-disposition": f'attachment; filename="{clean}"'})

    # --- data -------------------------------------------------------------------------------------------------------

    def home(self, request: Request) -> Any:
        reports = [{"number": number, "path": str(path)} for number, path in self.reports.items()]
        files = [{"number": n, "path": path, "latents": list(pages)} for n, (path, pages) in enumerate(self.dashboards)]
        more = {"reports": reports, "sweeps": self.sweeps.about(), "files": files, "texts": self.corpora.about()}
        return {"version": __version__, **self.library.about(), **more}

    def file(self, request: Request) -> Any:
        """A latent of a file of another tool."""
        number, latent = whole(request, "n")[0], whole(request, "i")[0]
        if number >= len(self.dashboards) or latent not in self.dashboards[number][1]:
            raise UnknownName(f"no latent {latent} in file {number}")
        return self.dashboards[number][1][latent].to_json()

    def table(self, request: Request) -> Any:
        return self.library.book(asked(request, "d")).columns()

    def rows(self, request: Request) -> Any:
        return self.library.book(asked(request, "d")).rows(whole(request, "i"))

    def latent(self, request: Request) -> Any:
        return self.library.book(asked(request, "d")).latent(whole(request, "i")[0])

    def sweep(self, request: Request) -> Any:
        return self.sweeps.columns(whole(request, "n")[0])

    def sweep_rows(self, request: Request) -> Any:
        return self.sweeps.rows(whole(request, "n")[0], whole(request, "i"))

    def public(self, request: Request) -> Any:
        """A latent of Neuronpedia; the server is the one that is set, whatever address was given."""
        _, names = split_place(asked(request, "u"))
        return public_latent("/".join(names)).to_json()

    def search(self, request: Request) -> Any:
        return self.library.book(asked(request, "d")).search(asked(request, "q"), n=200)

    def map(self, request: Request) -> Any:
        return self.library.book(asked(request, "d")).map()

    def relation(self, request: Request) -> Any:
        one, other = (self.library.book(asked(request, name)) for name in "de")
        return relation(one, whole(request, "i")[0], other, whole(request, "j")[0])

    def family(self, request: Request) -> Any:
        return family(self.library, self.library.book(asked(request, "d")), whole(request, "i")[0])

    def made_of(self, request: Request) -> Any:
        return made_of(self.library, self.library.book(asked(request, "d")), whole(request, "i")[0])

    def computed_read(self, request: Request) -> Any:
        """What was computed before, or null."""
        kind = asked(request, "kind")
        check_name("kind", kind, COMPUTED)
        try:
            values = parse_json(asked(request, "ask"))
        except ValueError as error:
            raise BadInput(f"ask= is not JSON: {error}") from error
        return {"result": self.computed.held(kind, parsed(COMPUTED[kind][0], values))}

    def notes_read(self, request: Request) -> Any:
        return self.notes.json()

    def job_list(self, request: Request) -> Any:
        return self.jobs.list()

    # --- changes ----------------------------------------------------------------------------------------------------

    def notes_change(self, values: Any, request: Request) -> Any:
        return self.notes.change(parsed(Change, values))

    def index_choose(self, values: Any, request: Request) -> Any:
        ask = parsed(Chosen, values)
        book = self.library.book(ask.dictionary)
        book.use_made(ask.use == "made")
        return book.about()

    async def text(self, request: Request) -> Response:
        return JSONResponse(await self.corpora.receive(request))

    def job_add(self, values: Any, request: Request) -> Any:
        kind = values.pop("kind", None) if isinstance(values, dict) else None
        if kind == KIND:
            return self.corpora.add(self.jobs, parsed(IndexOf, values)).about()
        if isinstance(kind, str) and kind in COMPUTED:
            wanted = parsed(COMPUTED[kind][0], values)
            title = f"{kind}: {', '.join(book.name for book in books(self.library, wanted))}"
            return self.jobs.add(kind, title, self.computed.work(kind, wanted)).about()
        if not isinstance(kind, str) or kind not in ASKS:
            raise UnknownName(f"no kind of job {kind!r}; there are {', '.join([*ASKS, *COMPUTED, KIND])}")
        ask: Any = parsed(ASKS[kind], values)
        book = self.library.book(ask.dictionary)
        if hasattr(ask, "latent"):
            latent_ids(ask.latent, book.dictionary.width)
        return self.jobs.add(kind, f"{kind}: {ask.title}", started(self.library, kind, ask)).about()

    def job_cancel(self, values: Any, request: Request) -> Any:
        return self.jobs.cancel(request.path_params["id"]).about()

    def events(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["id"])
        return StreamingResponse(stream(job), media_type="text/event-stream")

    # --- the application --------------------------------------------------------------------------------------------

    def application(self) -> Any:
        get: dict[str, Callable[[Request], Any]] = {
            "home": self.home,
            "table": self.table,
            "rows": self.rows,
            "latent": self.latent,
            "public": self.public,
            "file": self.file,
            "sweep": self.sweep,
            "sweep_rows": self.sweep_rows,
            "search": self.search,
            "map": self.map,
            "relation": self.relation,
            "family": self.family,
            "made_of": self.made_of,
            "computed": self.computed_read,
            "notes": self.notes_read,
            "jobs": self.job_list,
        }
        post: dict[str, Callable[[Any, Request], Any]] = {
            "notes": self.notes_change,
            "index": self.index_choose,
            "jobs": self.job_add,
            "jobs/{id}/cancel": self.job_cancel,
        }
        routes = [
            *(Route(f"/{page}", self.shell) for page in ("", *PAGES)),
            *(Route(f"/api/{name}", data(handler), methods=["GET"]) for name, handler in get.items()),
            *(Route(f"/api/{name}", change(handler), methods=["POST"]) for name, handler in post.items()),
            Route(TEXTS, self.text, methods=["POST"]),
            Route("/api/jobs/{id}/events", self.events),
            Route("/api/jobs/{id}/{name}", self.job_file),
            Route("/api/export", self.export),
            Route("/reports/{number}", self.report),
            Route("/static/{name:path}", self.static),
            *Neuronpedia(self.library, self.jobs, self.notes).routes(data),
        ]
        handlers: Any = {
            404: self.missing,
            MonosemError: refused,
            TooLarge: too_large,
            ClientDisconnect: gone,
            Exception: fault,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=4)
        return app


def data(handler: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """A handler of plain data as a route; it runs in a thread, so that nobody waits for the disk."""

    def route(request: Request) -> Response:
        return JSONResponse(handler(request))

    return route


def change(handler: Callable[[Any, Request], Any]) -> Callable[[Request], Any]:
    async def route(request: Request) -> Response:
        body = await request.body()
        try:
            values = parse_json(body.decode()) if body else {}
        except ValueError as error:
            raise BadInput(f"the request is not JSON: {error}") from error
        return JSONResponse(await asyncio.to_thread(handler, values, request))

    return route


def refused(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, UnknownName) else 400
    return JSONResponse({"error": spoken(error)}, status_code=status)


def too_large(request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), status_code=413)


def gone(request: Request, error: Exception) -> Response:
    """For nobody: who asked went away before all of it was here."""
    return PlainTextResponse("the request ended early", status_code=400)


def fault(request: Request, error: Exception) -> Response:
    notice(f"a fault in monosem at {request.url.path}: {type(error).__name__}: {one_line(str(error))}")
    return JSONResponse({"error": f"a fault in monosem: {type(error).__name__}"}, status_code=500)


async def stream(job: Job) -> AsyncIterator[str]:
    """Server-sent events of a job: all so far, then each as it comes."""
    sent, quiet = 0, 0.0
    while True:
        ended, new = job.state in ENDED, job.events[sent:]
        for event in new:
            yield f"data: {json.dumps(event)}\n\n"
        sent += len(new)
        if ended and sent == len(job.events):
            return
        quiet = 0.0 if new else quiet + EVENT_SECONDS
        if quiet >= BEAT_SECONDS:  # so that a client that went away is noticed
            quiet = 0.0
            yield ": waiting\n\n"
        await asyncio.sleep(EVENT_SECONDS)


def asked(request: Request, name: str) -> str:
    """Raises `BadInput` where the query does not have it."""
    value = request.query_params.get(name, "")
    if not value or len(value) > 1000:
        raise BadInput(f"the request needs {name}=, of at most 1,000 characters")
    return value


def whole(request: Request, name: str) -> list[int]:
    """Numbers separated by commas. Raises `BadInput`."""
    parts = request.query_params.get(name, "").split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts) or len(parts) > MOST_ROWS:
        raise BadInput(f"{name}= takes up to {MOST_ROWS} whole numbers, separated by commas")
    return [int(part) for part in parts]


def found_reports(folders: list[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        found += [path for path in (folder / "report.html", *sorted(folder.glob("*/report.html"))) if path.is_file()]
    return found
