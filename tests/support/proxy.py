"""A proxy between the package and its Postgres that can stop to forward, or to let in."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator


class Proxy:
    """Accepts connections and forwards them. ``url``: the database as seen through it."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as conn:
            self._host, self._port = conn.info.host, conn.info.port
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        self.url = make_conninfo(url, host="127.0.0.1", port=port, sslmode="disable")
        self.made = 0  # connections that it has let in
        self._lock = threading.Lock()
        self._flows = True
        self._refuses = False
        self._pairs: list[_Pair] = []
        self._stuck: list[_Pair] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def stall(self) -> None:
        """Forward nothing any more; connections, old and new, stay as they are."""
        self._set(flows=False)

    def stall_open(self) -> None:
        """Forward nothing of the connections there are, ever; new ones pass."""
        with self._lock:
            for pair in self._pairs:
                pair.flows.clear()
            self._stuck += self._pairs
            self._pairs = []

    def refuse(self) -> None:
        """Cut every connection, and let none in."""
        with self._lock:
            self._refuses = True
            for pair in self._pairs + self._stuck:
                pair.cut()

    def go(self) -> None:
        """Let everything through again; what was held back comes late."""
        self._refuses = False
        self._set(flows=True)

    def close(self) -> None:
        self.refuse()
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()
        for pair in self._pairs + self._stuck:
            pair.close()

    def _set(self, *, flows: bool) -> None:
        with self._lock:
            self._flows = flows
            for pair in self._pairs:
                (pair.flows.set if flows else pair.flows.clear)()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client = self._server.accept()[0]
                with self._lock:
                    if self._refuses:
                        client.close()
                        continue
                    self.made += 1
                    self._pairs.append(_Pair(client, self._upstream(), flows=self._flows))

    def _upstream(self) -> socket.socket:
        if not self._host.startswith("/"):
            return socket.create_connection((self._host, self._port))
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(str(Path(self._host, f".s.PGSQL.{self._port}")))
        return upstream


class _Pair:
    """One connection, and its other half."""

    def __init__(self, client: socket.socket, server: socket.socket, *, flows: bool) -> None:
        self.flows = threading.Event()
        if flows:
            self.flows.set()
        self._ends = (client, server)
        self._threads = [
            threading.Thread(target=self._forward, args=ends, daemon=True)
            for ends in (self._ends, self._ends[::-1])
        ]
        for thread in self._threads:
            thread.start()

    def cut(self) -> None:
        """What is held back is lost."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.flows.set()

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                target.sendall(data)
        self.flows.wait()
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def between(url: str) -> Iterator[Proxy]:
    """A proxy before the database of ``url``."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
