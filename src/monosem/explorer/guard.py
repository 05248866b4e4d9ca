"""Who may talk to the server: this machine's browser with the token, from the server's own pages, in small requests."""

import asyncio
import hmac
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

MOST_BYTES = 2_000_000  # of a request's body
MOST_ADDRESS = 16_000  # bytes of a request's path and query
MOST_SECONDS = 20.0  # until a body is there
SAFE = ("GET", "HEAD")

Headers = dict[bytes, bytes]


class Guard:
    """An ASGI application in front of another one.

    A page of another site can send requests to a port of this machine, and a name that it owns can be made to point
    here: so the Host must be ours, what changes something must come from our Origin, and every request needs the token,
    as the cookie that the first visit (`/?token=...`) sets, or from a program: as `Authorization: Bearer ...`, as
    `x-api-key: ...`, or in front of the path (`/key/TOKEN/api/...`), for programs that know a base URL alone.

    Args:
        port: that the server listens at. policy: the Content-Security-Policy of pages.
        larger: paths that take more than `MOST_BYTES` in a request's body -> how many.
    """

    def __init__(self, app: Any, port: int, token: str, policy: str, larger: Mapping[str, int] | None = None):
        self.app, self.token, self.policy, self.larger = app, token, policy, larger or {}
        self.hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost", "[::1]")}
        self.origins = {b"http://" + host for host in self.hosts}
        self.cookie = f"monosem-{port}"

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers: Headers = dict(scope["headers"])
        scope, headers = unlocked(scope, headers)
        if (refused := self.refusal(scope, headers)) is not None:
            await answer(send, *refused)
        elif (place := self.welcome(scope)) is not None:
            cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await answer(send, 303, "", [(b"location", place.encode()), (b"set-cookie", cookie.encode())])
        elif not self.known(headers):
            await answer(send, 403, "open the address with the token that `monosem explore` printed")
        else:
            await self.app(scope, self.limited(receive, self.most(scope)), self.hardened(send))

    def most(self, scope: dict[str, Any]) -> int:
        return self.larger.get(scope["path"], MOST_BYTES)

    def refusal(self, scope: dict[str, Any], headers: Headers) -> tuple[int, str] | None:
        """Status and words for a request that is refused whoever sends it."""
        if headers.get(b"host", b"").lower() not in self.hosts:
            return 421, "this server answers under 127.0.0.1 alone"
        if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_ADDRESS:
            return 414, f"an address has at most {MOST_ADDRESS:,} bytes"
        origin = headers.get(b"origin")
        if origin is not None and origin not in self.origins:
            return 403, "another site may not use this server"
        if origin is None and scope["method"] not in SAFE and b"authorization" not in headers:
            return 403, "a change needs an Origin, or the token in the header Authorization"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most(scope):
            return 413, f"a request has at most {self.most(scope):,} bytes"
        return None

    def welcome(self, scope: dict[str, Any]) -> str | None:
        """Where a first visit with the right token goes on: the same place without it."""
        query = scope["query_string"].decode("latin-1")
        given = parse_qs(query).get("token", [])
        if scope["method"] != "GET" or not given or not self.right(given[0]):
            return None
        rest = urlencode([pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "token"])
        # one slash: "//name" would be another site
        return "/" + scope["path"].lstrip("/").encode("ascii", "ignore").decode() + (f"?{rest}" if rest else "")

    def known(self, headers: Headers) -> bool:
        cookies = headers.get(b"cookie", b"").decode("latin-1").split(";")
        held = dict(one.strip().partition("=")[::2] for one in cookies)
        bearer = headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ")
        return self.right(held.get(self.cookie, "")) or self.right(bearer)

    def right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    def limited(self, receive: Any, most: int) -> Any:
        """`receive`, within the limits of size and time; beyond them the client is as good as gone."""
        size = 0

        async def inner() -> Any:
            nonlocal size
            try:
                message = await asyncio.wait_for(receive(), MOST_SECONDS if size >= 0 else None)
            except TimeoutError as error:
                raise TooLarge(f"nothing of the request came for {MOST_SECONDS:.0f} seconds; send it again") from error
            size += len(message.get("body", b""))
            if size > most:
                raise TooLarge(f"a request has at most {most:,} bytes, and comes in one go")
            if not message.get("more_body"):
                size = -most  # what comes now is the end of the connection, for which a stream waits long
            return message

        return inner

    def hardened(self, send: Any) -> Any:
        """`send`, with the headers that every answer has; a page may bring a policy of its own."""
        default = [
            (b"content-security-policy", self.policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

        async def inner(message: Any) -> None:
            if message["type"] == "http.response.start":
                held = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in default if pair[0] not in held)]
            await send(message)

        return inner


def unlocked(scope: dict[str, Any], headers: Headers) -> tuple[dict[str, Any], Headers]:
    """Scope and headers with a token that came by another way as the header `Authorization`."""
    path, raw = scope["path"], scope["raw_path"]
    if path.startswith("/key/") and raw.startswith(b"/key/"):
        _, _, token, *rest = raw.split(b"/")
        scope = {**scope, "path": "/" + path.split("/", 3)[-1] if rest else "/", "raw_path": b"/" + b"/".join(rest)}
        return scope, headers | {b"authorization": b"Bearer " + token}
    if (key := headers.get(b"x-api-key")) is not None and b"authorization" not in headers:
        return scope, headers | {b"authorization": b"Bearer " + key}
    return scope, headers


class TooLarge(Exception):
    """A body that goes on for longer, in bytes or seconds, than a request may; says which."""


async def answer(send: Any, status: int, words: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    body = words.encode()
    given = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})
