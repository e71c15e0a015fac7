"""What a request must fulfil before it is looked at: host, origin, token, size, queue and time.

`Guard` is ASGI middleware around the application. It answers requests that it refuses with a sentence, and adds
security headers to every response.

Example:
    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from starlette.exceptions import HTTPException

from foveal.serve.limits import Limits, Refused

if TYPE_CHECKING:
    from foveal.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CLASSIFY = ("/v1/classify", "/v1/classify/stream", "/v1/report")
"""Paths whose requests run the model, and wait in the queue."""
OPEN_TO_ALL = ("/healthz",)
"""Paths that need no token: probes have none."""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether a name or address is that of this machine for itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


class Guard:
    """ASGI middleware that refuses requests.

    Args:
        app: the application.
        limits: bytes, queue and seconds.
        token: secret of the clients; None if all may ask. Without a token only hosts of the loopback are answered: a
            page of another site that had its name resolved to 127.0.0.1 sends that name.
        seconds_each: time that a classification takes now, for Retry-After.
        metrics: counts responses.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        token: str | None,
        seconds_each: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self.app, self.limits, self.metrics, self.seconds_each = app, limits, metrics, seconds_each
        self._token = None if token is None else token.encode()
        self._cookie = None if token is None else hashlib.sha256(b"foveal cookie " + token.encode()).hexdigest()
        self._accepted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets
        answer = _Answer(send, self.metrics.watch(scope["path"]))
        # HEAD is answered as GET is; the server leaves the body out.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            if self._sees_token(scope):
                await self._remember(scope, answer)
            else:
                self._check(scope)
                await self._limited(inner, receive, answer)
        except Refused as refused:
            await answer.refuse(refused)
        except TimeoutError:
            what = f"the request was not answered within {self.limits.seconds:g} s; ask for fewer looks, or try later"
            await answer.refuse(Refused(503, what, self._wait()))

    # ---- who asks

    def _check(self, scope: Scope) -> None:
        headers = _headers(scope)
        host = headers.get("host", "")
        if self._token is None and not is_loopback(_hostname(host)):
            raise Refused(403, "this service answers to localhost only; open it as http://localhost with its port")
        origin = headers.get("origin")
        foreign = origin is not None and origin.lower().partition("://")[2] != host.lower()
        visits = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if foreign or (headers.get("sec-fetch-site") in ("cross-site", "same-site") and not visits):
            raise Refused(403, "pages of other sites cannot use this service; ask from its own page or a program")
        if self._token is not None and scope["path"] not in OPEN_TO_ALL and not self._is_known(headers):
            raise Refused(
                401,
                "a token is needed; send it as Authorization: Bearer TOKEN, or open the page once with ?token=TOKEN",
            )

    def _is_known(self, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._token is not None:
            return hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie_name(headers))
        except CookieError:
            cookie = None
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), str(self._cookie).encode())

    def _sees_token(self, scope: Scope) -> bool:
        """Whether the right token is in the address of a page."""
        if self._token is None or scope["method"] not in ("GET", "HEAD"):
            return False
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token")
        return given is not None and hmac.compare_digest(given.encode(), self._token)

    async def _remember(self, scope: Scope, answer: _Answer) -> None:
        """Set the cookie, and lead to the same address without the token, which would stay in the history."""
        rest = urlencode([pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"])
        name = self._cookie_name(_headers(scope))
        cookie = f"{name}={self._cookie}; HttpOnly; SameSite=Strict; Path=/; Max-Age=2592000"
        where = "/" + quote(scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
        await answer.send_whole(303, b"", {"location": where, "set-cookie": cookie, "cache-control": "no-store"})

    def _cookie_name(self, headers: dict[str, str]) -> str:
        # Cookies of a host are shared by its ports.
        port = headers.get("host", "").rpartition(":")[2]
        return f"foveal_{port if port.isdecimal() else 'token'}"

    # ---- how much

    async def _limited(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if scope["path"] not in CLASSIFY:
            await self.app(scope, self._counted(scope, receive, 1 << 20), answer)
            return
        if self._accepted >= self.limits.queue:
            raise Refused(429, f"{self._accepted} requests are waiting already; try again later", self._wait())
        self._accepted += 1
        self.metrics.accepted.set(self._accepted)
        try:
            async with asyncio.timeout(self.limits.seconds) as timer:
                # A stream of looks has begun its answer, and keeps the time itself.
                answer.on_start = lambda: timer.reschedule(None)
                await self.app(scope, self._counted(scope, receive, self.limits.upload_bytes), answer)
        finally:
            answer.on_start = lambda: None
            self._accepted -= 1
            self.metrics.accepted.set(self._accepted)

    def _counted(self, scope: Scope, receive: Receive, most: int) -> Receive:
        told = _headers(scope).get("content-length", "")
        what = f"the body of a request may have {most:,} bytes; name the path of a larger image instead"
        if told.isdecimal() and int(told) > most:
            raise Refused(413, what)
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, what)  # FastAPI passes no other exception on while it reads a form
            return message

        return counted

    def _wait(self) -> int:
        return max(1, math.ceil(self._accepted * self.seconds_each()))


class _Answer:
    """`send` with security headers; remembers whether the response has begun."""

    def __init__(self, send: Send, count: Callable[[int], None]) -> None:
        self._send, self._count = send, count
        self.begun = False
        self.on_start: Callable[[], None] = lambda: None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.on_start()
            self._count(message["status"])
            own = {name for name, _ in message.get("headers", ())}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await self._send(message)

    async def send_whole(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        headers = {**headers, "content-length": str(len(body))}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": status, "headers": raw})
        await self({"type": "http.response.body", "body": body})

    async def refuse(self, refused: Refused) -> None:
        if self.begun:
            return
        body = json.dumps({"detail": str(refused)}).encode()
        await self.send_whole(refused.status, body, {"content-type": "application/json", **refusal_headers(refused)})


def refusal_headers(refused: Refused) -> dict[str, str]:
    """Headers of the response to a refused request."""
    headers = {"cache-control": "no-store"}
    if refused.retry_after is not None:
        headers["retry-after"] = str(refused.retry_after)
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _hostname(host: str) -> str:
    """Host without the port: ``[::1]:8000`` is ``::1``."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
