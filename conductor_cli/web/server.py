"""uvicorn in one plain thread, started and stopped like every other service."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import uvicorn

from conductor_cli.errors import ConfigError
from conductor_cli.service import Service
from conductor_cli.web import app, sockets
from conductor_cli.web.connection import Connection

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp

GRACE: Final = 0.3  # seconds a slow client may hold the stop


class WebServer(Service):
    """Serves health, readiness and metrics from a daemon thread named "web". Runs once.

    ``readiness`` gives the reasons not to be ready, empty when all is well; it is called in the
    event loop, so it must answer from memory, at once. With a ``token``, all but health and
    readiness want ``Authorization: Bearer``. ``start`` returns when clients can connect and raises
    ConfigError when it cannot listen. Takes over no signals.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        readiness: Callable[[], Sequence[str]],
        token: str | None = None,
        dashboard: bool = True,
        on_death: Callable[[Service, BaseException], None] | None = None,
    ) -> None:
        super().__init__("web", on_death=on_death)
        if token is not None and not token.strip():
            raise ConfigError("server.token is empty: give it a value, or leave it out.")
        self._host = host
        self._wanted = port
        self._sockets: list[socket.socket] = []
        self._port = port
        self._server = _Server(_config(app.create(readiness, token, dashboard=dashboard)))

    @property
    def port(self) -> int:
        """The port it listens on; the real one, once started, where 0 was asked for."""
        return self._port

    @property
    def url(self) -> str:
        host = self._host.removeprefix("[").removesuffix("]")
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def stop(self) -> None:
        super().stop()
        self._server.ask_to_stop()

    def setup(self) -> None:
        self._server.config.load()
        self._sockets = sockets.listen(self._host, self._wanted)
        self._port = self._sockets[0].getsockname()[1]

    def run(self) -> None:
        self._server.run(self._sockets)

    def teardown(self) -> None:
        for one in self._sockets:
            one.close()


class _Server(uvicorn.Server):
    """Sleeps until asked to stop, where uvicorn looks ten times a second: 0.6 % of a core."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = asyncio.Event()

    def ask_to_stop(self) -> None:
        """From any thread, at any time."""
        self.should_exit = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: it has stopped already
                self._loop.call_soon_threadsafe(self._asked.set)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()  # before the look at should_exit: no wake is missed
        if not await self.on_tick(0):
            await self._asked.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(GRACE, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _config(application: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,  # it would need a tick every second
        backlog=sockets.BACKLOG,
        timeout_graceful_shutdown=1,
    )
