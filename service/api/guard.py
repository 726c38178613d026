"""The gate before the routes: the name we are called by, other sites' pages, who asks, and how much.

A plain ASGI middleware inside the request boundary, so that nothing of a body is read before it. What a caller may do
is decided per route (`service.api.permissions`), after this. The gate itself refuses only what is wrong on any route.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.authenticator import Authenticator
from service.access.caller import Caller
from service.access.limits import ClientLimits
from service.access.listening import is_loopback
from service.api.problems import problem
from service.errors import ForeignHost, ForeignOrigin, TagsError
from service.telemetry.request_log import RequestRecord

READING = ("GET", "HEAD", "OPTIONS")
UNCOUNTED = "/health/"  # a probe that is refused for its neighbours' sake would have us restarted


class Guard:
    """Puts `caller` into the request's state: the caller, or the refusal that a route with roles will raise."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, limits: ClientLimits) -> None:
        self._app, self._authenticator, self._limits = app, authenticator, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if self._authenticator.is_open:
                refuse_foreign_host(scope, headers.get("host"))
            refuse_foreign_origin(scope["method"], headers)
            caller = await self._caller(headers)
            scope["state"]["caller"] = caller
            leave = self._count(scope, caller)
        except TagsError as error:
            record: RequestRecord = scope["state"]["record"]
            record.slug = error.slug
            await problem(error, record.request_id)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            leave()

    async def _caller(self, headers: Headers) -> Caller | TagsError:
        try:
            return await self._authenticator.caller(headers.get("authorization"), headers.get("x-forwarded-user"))
        except TagsError as error:
            return error

    def _count(self, scope: Scope, caller: Caller | TagsError) -> Callable[[], None]:
        """Raises: TooManyRequests."""
        if self._authenticator.is_open or scope["path"].startswith(UNCOUNTED):
            return lambda: None
        address = (scope.get("client") or ("", 0))[0]
        if isinstance(caller, Caller) and caller.how in ("key", "token"):
            return self._limits.enter(caller.identity)
        return self._limits.enter(f"address:{address}")


def refuse_foreign_host(scope: Scope, host: str | None) -> None:
    """Without authentication: only over loopback, and under no name that a site's DNS could have pointed here.

    Raises: ForeignHost.
    """
    server = (scope.get("server") or ("", 0))[0]
    named = urlsplit(f"//{host}").hostname if host else None
    if (_is_address(server) and not is_loopback(server)) or (named and not _is_address(named) and named != "localhost"):
        raise ForeignHost


def refuse_foreign_origin(method: str, headers: Headers) -> None:
    """What a page of another site has a visitor's browser send. Programs send neither header.

    Raises: ForeignOrigin.
    """
    if method in READING:  # without CORS headers no page of another site can read the answer
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
    if foreign:
        raise ForeignOrigin


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
