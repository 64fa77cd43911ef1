"""What the server answers. Every answer carries the security headers, errors included."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conductor_cli import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ENDPOINTS: Final = ("GET /healthz", "GET /readyz", "GET /metrics")


def create(
    readiness: Callable[[], Sequence[str]], token: str | None, *, dashboard: bool
) -> ASGIApp:
    """The application; ``readiness`` gives the reasons not to be ready, none when all is well."""
    pages = _Pages(readiness, token, dashboard)
    routes = [
        Route("/healthz", pages.healthz, methods=["GET"]),
        Route("/readyz", pages.readyz, methods=["GET"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: pages.error})
    app.router.redirect_slashes = False  # it would redirect to whatever Host the client claims
    return _SecurityHeaders(app)


class _Pages:
    def __init__(
        self, readiness: Callable[[], Sequence[str]], token: str | None, dashboard: bool
    ) -> None:
        self._readiness = readiness
        self._token = token
        self._dashboard = dashboard

    async def healthz(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        reasons = self._reasons()
        if reasons:
            return JSONResponse({"status": "unready", "reasons": reasons}, 503)
        return JSONResponse({"status": "ready"})

    def metrics(self, request: Request) -> Response:
        """Not async: Starlette runs it in a thread, so that no gauge can hold up the health."""
        self._check_token(request)
        return Response(telemetry.metrics(), headers={"Content-Type": telemetry.METRICS_TYPE})

    async def error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = self._nothing_here(request) if error.status_code == 404 else error.detail
        return JSONResponse({"error": detail}, error.status_code, headers=error.headers)

    def _reasons(self) -> list[str]:
        try:
            return [telemetry.redact(str(reason)) for reason in self._readiness()]
        except Exception as error:
            return [telemetry.redact(f"the readiness check itself failed: {error!r}")]

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), self._token.encode())
        if scheme.lower() != "bearer" or not same:
            message = "This needs the token: send 'Authorization: Bearer <server.token>'."
            raise HTTPException(401, message, headers={"WWW-Authenticate": "Bearer"})

    def _nothing_here(self, request: Request) -> str:
        off = "" if self._dashboard else " The dashboard is off (server.dashboard = false)."
        return f"There is nothing at {request.url.path!r}.{off} There is: {', '.join(ENDPOINTS)}."


class _SecurityHeaders:
    """Adds the headers of `HEADERS` that an answer does not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
