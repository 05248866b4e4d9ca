"""One latent of Neuronpedia, read over the network: by its three names, or by its address."""

import http.client
import os
import re
import urllib.error
import urllib.request

from ..errors import BadFile, BadInput, UnknownName, cause
from ..reading import parse_json
from .dashboards import read_row
from .latent_page import LatentPage
from .neuronpedia import SITE

MOST_BYTES = 50_000_000  # of an answer
KEY, WHERE = "NEURONPEDIA_API_KEY", "NEURONPEDIA_SITE"  # of the environment
NAMES = re.compile(r"(\w[\w.-]*)/(\w[\w.-]*)/(\d{1,9})", re.ASCII)
OFFLINE = "files of its public export are read without the network: latents.read_dashboards"


def public_latent(place: str, *, site: str | None = None, seconds: float = 10.0) -> LatentPage:
    """Read a latent's page from Neuronpedia, or from another server of the same addresses (`monosem explore` is one).

    The network is asked once, and not again. A key in the environment (`NEURONPEDIA_API_KEY`) goes along.

    Args:
        place: "gpt2-small/6-res-jb/650", or the address of the page or of its data.
        site: the server, for a place without one (default: `NEURONPEDIA_SITE` of the environment, or the public one).
        seconds: until it gives up.

    Raises:
        BadInput: the server cannot be reached, or refuses. UnknownName: it has no such latent.
        BadFile: an answer that is no latent.
    """
    base, names = split_place(place, site)
    address = f"{base}/api/feature/{'/'.join(names)}"
    headers = {"Accept": "application/json", "User-Agent": "monosem"}
    if key := os.environ.get(KEY):
        headers["x-api-key"] = key
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=seconds) as reply:
            held = reply.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise UnknownName(f"{base} has no latent {'/'.join(names)}") from error
        raise BadInput(f"{base} answers {error.code} {error.reason} for {'/'.join(names)}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        reason = cause(getattr(error, "reason", None) or error)  # type: ignore[arg-type]
        raise BadInput(f"{base} cannot be reached ({reason}); {OFFLINE}") from error
    if len(held) > MOST_BYTES:
        raise BadFile(f"{base} answers with more than {MOST_BYTES:,} bytes")
    try:
        row = parse_json(held.decode())
    except ValueError as error:
        raise BadFile(f"what {base} answers for {'/'.join(names)} is not JSON") from error
    return read_row(row, address)


def split_place(place: str, site: str | None = None) -> tuple[str, tuple[str, str, str]]:
    """(server, (model, source, index)) of a place. Raises `BadInput` for something else."""
    text = place.strip().split("?")[0].split("#")[0].rstrip("/")
    base = (site or os.environ.get(WHERE) or SITE).rstrip("/")
    if found := re.match(r"(https?://.+?)/(?:api/feature/)?([^/]+/[^/]+/[^/]+)$", text):
        base, text = found[1], found[2]
    names = NAMES.fullmatch(text)
    if names is None or not base.startswith(("http://", "https://")):
        raise BadInput(f"{place!r:.80} names no latent: write MODEL/SOURCE/NUMBER, such as gpt2-small/6-res-jb/650")
    return base, (names[1], names[2], names[3])
