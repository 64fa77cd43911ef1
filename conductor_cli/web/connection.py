"""One client's connection: uvicorn's HTTP/1.1, with limits it lacks.

Without them anyone who reaches the port could open connections until the process has no file
descriptor left to reconnect to Postgres with.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS: Final = 200  # at once; further ones are closed
PATIENCE: Final = 10.0  # seconds a client may take to send the head of a request


class Connection(H11Protocol):
    """Hangs up on whoever is one too many, or has a request half sent for too long."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._patience is None and self._is_dawdling():
            self._patience = self.loop.call_later(PATIENCE, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        if self._is_dawdling():
            self.transport.abort()

    def _is_dawdling(self) -> bool:
        begun = self.cycle is None or bool(self.conn.trailing_data[0])
        return begun and self.conn.their_state is h11.IDLE
