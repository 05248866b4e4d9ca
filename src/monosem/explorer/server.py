"""The explorer as a process: a port of this machine, a token, and the end with Ctrl-C."""

import contextlib
import secrets
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput, require
from ..models import Model
from ..progress import say
from .library import Library
from .notes import Notes

PORT = 8420
TRIED = 50  # ports, from the first on


def serve(
    dictionaries: Sequence[str] = (),
    *,
    model: str | Model | None = None,
    port: int | None = None,
    notes: Path | None = None,
    reports: Sequence[Path] = (),
    directions: Sequence[Path] = (),
    sweeps: Sequence[Path] = (),
    dashboards: Sequence[Path] = (),
    indexes: Sequence[Path] = (),
    texts: Sequence[Path] = (),
    open_browser: bool = True,
    quiet: bool = False,
) -> None:
    """Serve the explorer on this machine until Ctrl-C; prints its address, which holds the token, to stdout.

    Args:
        dictionaries: names or folders, shown first; the shipped ones follow.
        model: another model than the dictionaries' own; it is loaded when something needs it.
        port: None for the first free one from 8420 on; 0 for any.
        notes: the file of stars, lists and notes (default: in the user's data folder).
        reports: folders with reports of studies and robustness.
        directions: files of directions (`Direction.save`, `monosem direction`, other tools), or folders of such.
        sweeps: folders of sweeps of latents (`steering.sweep_latents`, `monosem sweep`).
        dashboards: files of sae-dashboard or of Neuronpedia's export, or folders of such.
        indexes: files of latent indexes (`monosem latents index --out`), in place of those beside their dictionaries.
        texts: files or folders that may be read for an index, when the browser asks for one.

    Raises:
        MissingExtra: without starlette and uvicorn. BadInput: the port is taken. UnknownName: no such dictionary.
        BadFile: a file of notes, directions, dashboards, text or an index, or a folder of a sweep, that is none.
        Mismatch: an index of a dictionary that is not here.
    """
    require("starlette", "explorer")
    uvicorn = require("uvicorn", "explorer")
    from .application import TEXTS, Explorer
    from .corpora import MOST_TEXT
    from .guard import Guard

    library = Library(dictionaries, model, directions, indexes)
    for name in dictionaries:
        _ = library.book(name).dictionary  # a wrong name is said here, not in the browser
    explorer = Explorer(library, Notes(notes), reports, sweeps, dashboards, texts)
    held = listening(port)
    number, token = held.getsockname()[1], secrets.token_urlsafe(24)
    guarded = Guard(explorer.application(), number, token, explorer.policy, {TEXTS: MOST_TEXT})
    address = f"http://127.0.0.1:{number}/?token={token}"
    print(address, flush=True)
    say(f"the explorer runs; Ctrl-C ends it; programs: http://127.0.0.1:{number}/key/{token}/api", quiet)
    if open_browser:
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(address)
    run(uvicorn, guarded, held)


def run(uvicorn: Any, application: Any, held: socket.socket) -> None:
    """Serve until Ctrl-C, with the limits of a server that one person uses."""
    config = uvicorn.Config(
        application,
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=32_768,
        http="h11",
        ws="none",
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[held])


def listening(port: int | None) -> socket.socket:
    """A socket at a port of the loopback interface. Raises `BadInput` where it is taken."""
    for number in range(PORT, PORT + TRIED) if port is None else [port]:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", number))
            return held
        except OSError:
            held.close()
    tried = f"ports {PORT} to {PORT + TRIED - 1} are taken" if port is None else f"port {port} is taken"
    raise BadInput(f"{tried}; give another one with --port")
