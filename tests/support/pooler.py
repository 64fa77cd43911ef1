"""Poolers in transaction mode: a small one of our own, and PgBouncer where it is installed.

Ours is as mean as one may be: every transaction goes to the server session that has rested
longest, so that what a client set, prepared or listens to is not there the next time, and what
it finds there is somebody else's. Like PgBouncer it makes up the process id it greets with,
refuses start-up parameters it does not know, and drops notifications.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.support.postgres import LAUNCH, _account

if TYPE_CHECKING:
    from collections.abc import Iterator

SSL_REQUEST: Final = 80877103
CANCEL_REQUEST: Final = 80877102
KNOWN: Final = (b"user", b"database", b"application_name", b"client_encoding", b"TimeZone")
PGBOUNCER: Final = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
KINDS: Final = ["own", *(["pgbouncer"] if PGBOUNCER else [])]

SIZE: Final = 4
SETTINGS: Final = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 4
min_pool_size = 0
server_round_robin = 1
logfile = {folder}/log
"""


@contextlib.contextmanager
def pooled(url: str, kind: str = "own", *, mode: str = "transaction") -> Iterator[str]:
    """The same database behind a pooler of four server sessions; yields its URL."""
    maker = _own if kind == "own" else _pgbouncer
    with maker(url, mode) as port:
        user = conninfo_to_dict(url).get("user", "postgres")
        yield f"postgresql://{user}@127.0.0.1:{port}{urlsplit(url).path}?sslmode=disable"


@contextlib.contextmanager
def _own(url: str, mode: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = Proxy(url, mode)
        threading.Thread(target=proxy.serve, args=(listening,), daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            proxy.close()


@contextlib.contextmanager
def _pgbouncer(url: str, mode: str) -> Iterator[int]:
    parts = conninfo_to_dict(url)
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="conductor-pooler-"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    settings = SETTINGS.format(
        host=parts["host"], port=parts.get("port", 5432), user=parts.get("user", "postgres"),
        listen=port, folder=folder, mode=mode,
    )  # fmt: skip
    (folder / "ini").write_text(settings)
    who = (str(account.uid), str(account.gid)) if account else ("", "")
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    assert PGBOUNCER is not None
    # The signal it gets when this process is gone, and at the end: not every version knows SIGQUIT.
    launch = LAUNCH.replace("signal.SIGQUIT", "signal.SIGTERM")
    process = subprocess.Popen(
        [sys.executable, "-ISc", launch, str(os.getpid()), *who, PGBOUNCER, str(folder / "ini")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(process, port)
        yield port
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """At once: before 1.23 SIGTERM says so and SIGQUIT is unknown, from then on the reverse."""
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
            return
    process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 15
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            assert process.poll() is None, "PgBouncer did not start"
            assert time.monotonic() < until, "PgBouncer does not answer"
            time.sleep(0.02)
        else:
            return


class Session:
    """One session with Postgres, opened by the driver and then spoken to by the byte."""

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True)
        self.socket = socket.socket(fileno=os.dup(self._conn.fileno()))
        self.socket.setblocking(True)
        self.greeting = b"".join(
            _message(b"S", name + b"\0" + value + b"\0")
            for name in (b"server_version", b"client_encoding", b"DateStyle", b"TimeZone",
                         b"standard_conforming_strings", b"integer_datetimes")
            if (value := self._conn.pgconn.parameter_status(name))
        )  # fmt: skip

    def cancel(self) -> None:
        self._conn.cancel_safe(timeout=5)

    def close(self) -> None:
        self.socket.close()
        self._conn.close()


class Proxy:
    """Lends server sessions to clients, for a transaction or, in session mode, for good."""

    def __init__(self, url: str, mode: str) -> None:
        self._url = url
        self._for_good = mode == "session"
        self._idle: queue.Queue[Session | None] = queue.Queue()  # None: not yet opened
        for _ in range(SIZE):
            self._idle.put(None)
        self._clients: set[socket.socket] = set()
        self._keys: dict[bytes, socket.socket] = {}
        self._serving: dict[socket.socket, Session] = {}
        self._threads: list[threading.Thread] = []
        self._closing = False

    def serve(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._clients.add(client)
                thread = threading.Thread(target=self._attend, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        self._closing = True
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        while not self._idle.empty():
            if (session := self._idle.get()) is not None:
                session.close()

    def _attend(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), client:
            if self._greet(client):
                while not self._closing:
                    self._transaction(client)
        self._clients.discard(client)

    def _greet(self, client: socket.socket) -> bool:
        while True:
            (length,) = struct.unpack("!I", _exactly(client, 4))
            body = _exactly(client, length - 4)
            (code,) = struct.unpack("!I", body[:4])
            if code == CANCEL_REQUEST:
                if (session := self._serving.get(self._keys[body[4:]])) is not None:
                    session.cancel()
                return False
            if code != SSL_REQUEST:
                break
            client.sendall(b"N")
        names = body[4:].split(b"\0")[0:-2:2]
        if strange := [name for name in names if name not in KNOWN]:
            text = b"SFATAL\0C08P01\0Munsupported startup parameter: " + strange[0] + b"\0\0"
            client.sendall(_message(b"E", text))
            return False
        session = self._borrow()
        greeting = session.greeting
        self._idle.put(session)
        key = struct.pack("!II", random.getrandbits(31), random.getrandbits(32))
        self._keys[key] = client
        client.sendall(
            _message(b"R", struct.pack("!I", 0)) + greeting + _message(b"K", key)
            + _message(b"Z", b"I")
        )  # fmt: skip
        return True

    def _transaction(self, client: socket.socket) -> None:
        """From its first message to the moment the server may be another's."""
        first = _read(client)
        if first[:1] == b"X":
            raise EOFError
        session = self._serving[client] = self._borrow()
        try:
            self._carry(client, session.socket, first)
        except (OSError, EOFError):
            session.close()  # with whatever the client has begun
            self._idle.put(None)
            raise
        finally:
            del self._serving[client]
        self._idle.put(session)

    def _carry(self, client: socket.socket, server: socket.socket, message: bytes) -> None:
        asked = 0  # how often the server will yet say that it is ready
        begun = False  # something was sent that no such answer will follow by itself
        while True:
            if message:
                server.sendall(message)
                closes = message[:1] in (b"Q", b"S", b"F")
                asked += closes
                begun = not closes and (begun or message[:1] != b"H")
            message = b""
            ready, _, _ = select.select([client, server], [], [])
            if server in ready:
                answer = _read(server)
                if answer[:1] != b"A":
                    client.sendall(answer)
                asked -= answer[:1] == b"Z"
                over = answer == _message(b"Z", b"I") and not (asked or begun)
                if over and not self._for_good:
                    return
            elif (message := _read(client))[:1] == b"X":
                raise EOFError

    def _borrow(self) -> Session:
        session = self._idle.get(timeout=120)
        if session is None:
            return Session(self._url)
        if _has_died(session.socket):
            session.close()
            return Session(self._url)
        return session


def _has_died(server: socket.socket) -> bool:
    """What came while it was idle is for nobody, unless it was its last words."""
    while select.select([server], [], [], 0)[0]:
        try:
            if _read(server)[:1] == b"E":
                return True
        except (OSError, EOFError):
            return True
    return False


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _read(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    (length,) = struct.unpack("!I", head[1:])
    return head + _exactly(source, length - 4)


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = source.recv(min(count, 65536))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
