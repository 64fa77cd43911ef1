"""A network between daemon and Postgres that misbehaves when told to.

Connections are told apart by the application_name in their first packet, so that a fault can hit
``conductor heartbeat`` alone. A mode holds for connections that exist and those to come.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

READY: Final = b"Z\x00\x00\x00\x05"  # what Postgres says when a statement is over and committed
MODES: Final = ("pass", "stall", "delay", "half-close", "reset", "reset-mid-message", "swallow")


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to ``target``, unless told otherwise.

    ``target``: host and port, or the path of a socket.

    ``pass``; ``stall`` (nothing is forwarded any more, the connection stays); ``delay`` (each
    reply comes ``delay`` seconds later); ``half-close`` (the next reply is followed by the end of
    the stream, while the other direction stays open); ``reset`` (the next bytes of either side
    reset it); ``reset-mid-message`` (after half of the next reply); ``swallow`` (the next request
    reaches Postgres, which carries it out; its reply is lost and the connection reset).
    The last four hit a connection once each, and are counted in ``injected``.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self.target = target
        self.injected = 0
        self.delay = 0.1
        self._mode = "pass"
        self._matches: Callable[[bytes], bool] = lambda name: True
        self._budget: int | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._links: list[_Link] = []
        self._silent: set[_Link] = set()
        self._closed = False
        self._listener = _listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._accept_in_background(self._listener)

    def set(self, mode: str, *, names: str = "", times: int | None = None) -> None:
        """From now on; only for connections whose application_name contains ``names``, and at most
        so many ``times``."""
        if mode not in MODES:
            raise ValueError(f"no such mode: {mode!r}")
        wanted = names.encode()
        with self._changed:
            self._mode, self._budget = mode, times
            self._matches = lambda name: wanted in name
            self._changed.notify_all()

    def pass_new(self) -> None:
        """What is silent stays so for ever; connections to come pass."""
        silent = set(self._links)
        with self._changed:
            self._silent |= silent
            self._mode = "pass"
            self._changed.notify_all()

    def refuse(self) -> None:
        """Close the port, and every connection."""
        _close_listener(self._listener)
        self.drop_all()

    def admit(self) -> None:
        """Open the port again."""
        self._listener = _listen(self.port)
        self._accept_in_background(self._listener)

    def drop_all(self) -> int:
        """Reset every connection there is; returns how many."""
        links, self._links = self._links, []
        for link in links:  # before what was silent may go on
            link.reset()
        with self._changed:
            self._silent.clear()
            self._changed.notify_all()
        return len(links)

    def close(self) -> None:
        self._closed = True
        _close_listener(self._listener)
        with self._changed:
            self._mode = "pass"
            self._changed.notify_all()
        self.drop_all()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # For the links

    def mode_for(self, name: bytes, link: _Link) -> str:
        """What holds for a connection of this name; waits while it is to stall."""
        with self._changed:
            while self._stalls(name, link) and not self._closed:
                self._changed.wait()
            return self._mode if self._matches(name) else "pass"

    def _stalls(self, name: bytes, link: _Link) -> bool:
        return link in self._silent or (self._mode == "stall" and self._matches(name))

    def take(self, mode: str) -> bool:
        """Whether this fault may be injected once more."""
        with self._lock:
            if self._mode != mode or (self._budget is not None and self._budget <= 0):
                return False
            if self._budget is not None:
                self._budget -= 1
            self.injected += 1
            return True

    def _accept_in_background(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = _reach(self.target)
        except OSError:
            _reset(near)
            return
        far.settimeout(None)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(self, near, far)
        self._links.append(link)
        link.start()


class _Link:
    """One connection: two threads, one for each direction."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self._proxy, self._near, self._far = proxy, near, far
        self._name = b""
        self._swallows = False

    def start(self) -> None:
        for work in (self._requests, self._replies):
            threading.Thread(target=self._guarded, args=(work,), daemon=True).start()

    def reset(self) -> None:
        """End it without a farewell, as a crashed host or a firewall does."""
        _reset(self._near)
        _reset(self._far)

    def _guarded(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            work()
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RDWR)

    def _requests(self) -> None:
        for data in _chunks(self._near):
            if b"application_name" in data and not self._name:
                self._name = data.partition(b"application_name\x00")[2].partition(b"\x00")[0]
                self._far.sendall(data)
                continue
            mode = self._proxy.mode_for(self._name, self)
            if mode == "reset" and self._name and self._proxy.take(mode):
                self.reset()
                return
            if mode == "swallow" and self._name and self._proxy.take(mode):
                self._swallows = True
            self._far.sendall(data)

    def _replies(self) -> None:
        for data in _chunks(self._far):
            mode = self._proxy.mode_for(self._name, self)
            if self._swallows:
                if READY in data:
                    self.reset()
                    return
                continue
            if mode == "delay":
                time.sleep(self._proxy.delay)
            elif mode == "reset-mid-message" and self._named(data) and self._proxy.take(mode):
                self._near.sendall(data[: len(data) // 2])
                self.reset()
                return
            elif mode == "half-close" and self._named(data) and self._proxy.take(mode):
                self._near.sendall(data[: len(data) // 2])
                self._near.shutdown(socket.SHUT_WR)
                for _ in _chunks(self._far):  # whatever is still sent, nobody hears
                    pass
                return
            self._near.sendall(data)

    def _named(self, data: bytes) -> bool:
        return bool(self._name) and len(data) > 6


def _chunks(source: socket.socket) -> Iterator[bytes]:
    while data := source.recv(65536):
        yield data


def _reach(target: tuple[str, int] | str) -> socket.socket:
    if not isinstance(target, str):
        far = socket.create_connection(target, timeout=5)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return far
    far = socket.socket(socket.AF_UNIX)
    try:
        far.connect(target)
    except BaseException:
        far.close()
        raise
    return far


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener


def _close_listener(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes whoever accepts
    listener.close()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # wakes whoever reads it
    connection.close()
