"""Servers for the test session: which there are, and databases made and dropped on them."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conductor_cli import migrate
from conductor_cli.embedded import programs
from conductor_cli.embedded.place import SERVER_ACCOUNTS, Account
from conductor_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conductor_cli.database import Connection

GIVEN: Final = "CONDUCTOR_TEST_DATABASE_URL"
DEBIAN: Final = Path("/usr/lib/postgresql/15/bin")  # the oldest that is supported
PREFIX: Final = "conductor-tests-"

SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    "checkpoint_timeout": "1h",
    "dynamic_shared_memory_type": "mmap",  # in the folder, to go with it
    "timezone": "America/New_York",  # whoever relies on the server's zone shall notice
}

# Becomes the account, asks the kernel to end the server with the test session, becomes the
# server: in this order, since a change of account revokes the request.
LAUNCH: Final = """
import ctypes, os, signal, sys
parent, uid, gid, *command = sys.argv[1:]
if uid:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(1, signal.SIGQUIT, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)
os.execv(command[0], command)
"""


class Server:
    """Databases on one Postgres, given or our own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._prefix = f"conductor_test_{os.getpid()}_{os.urandom(3).hex()}"
        self._numbers = itertools.count(1)
        self._admin = psycopg.connect(url, autocommit=True)
        self._lock = threading.Lock()
        self._templates: dict[str, str] = {}
        self._over: list[str] = []

    def close(self) -> None:
        """Drop everything that was made."""
        self._drop_what_is_over()
        for template in self._templates.values():
            self._run("alter database {} is_template false", template)
            self._drop(template)
        self._admin.close()

    @contextlib.contextmanager
    def empty(self) -> Iterator[str]:
        """A database without anything; yields its URL."""
        with self._database("template0") as url:
            yield url

    @contextlib.contextmanager
    def migrated(self, filled: Callable[[Connection], None] | None = None) -> Iterator[str]:
        """A database with the current schema; yields its URL.

        What ``filled`` puts into it is made once, and copied from then on.
        """
        with self._database(self._template(filled)) as url:
            yield url

    @contextlib.contextmanager
    def _database(self, template: str) -> Iterator[str]:
        """Dropped when the next is made: by then its sessions are gone, which Postgres awaits."""
        name = f"{self._prefix}_{next(self._numbers)}"
        self._drop_what_is_over()
        self._create(name, template)
        try:
            yield self._url_of(name)
        finally:
            self._over.append(name)

    def _template(self, filled: Callable[[Connection], None] | None) -> str:
        key = "empty" if filled is None else filled.__name__
        if key not in self._templates:
            base = "template0" if filled is None else self._template(None)
            name = f"{self._prefix}_{key}"
            self._create(name, base)
            with psycopg.connect(self._url_of(name), autocommit=True) as conn:
                if filled is None:
                    conn.execute(migrate.script(None).encode())
                else:
                    filled(conn)
            self._run("alter database {} is_template true", name)
            self._templates[key] = name
        return self._templates[key]

    def _drop_what_is_over(self) -> None:
        while self._over:
            self._drop(self._over.pop())

    def _create(self, name: str, template: str) -> None:
        self._run("create database {} template {} strategy file_copy", name, template)

    def _drop(self, name: str) -> None:
        self._run("drop database if exists {} with (force)", name)

    def _run(self, statement: str, *names: str) -> None:
        with self._lock:
            self._admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _url_of(self, name: str) -> str:
        if "://" not in self._url:
            return make_conninfo(self._url, dbname=name)
        head, _, query = self._url.partition("?")
        scheme, _, rest = head.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}/{name}{'?' if query else ''}{query}"


class Flavours:
    """The kinds of Postgres there are here, each started when first asked for."""

    def __init__(self) -> None:
        self._given = os.environ.get(GIVEN)
        self._found = {} if self._given else _find()
        self._open = contextlib.ExitStack()
        self._servers: dict[str, Server] = {}

    @property
    def names(self) -> list[str]:
        return ["given"] if self._given else list(self._found)

    def server(self, name: str) -> Server:
        if name not in self._servers:
            url = self._given or self._open.enter_context(running(self._found[name]))
            server = self._servers[name] = Server(url)
            self._open.callback(server.close)
        return self._servers[name]

    def close(self) -> None:
        self._open.close()


@contextlib.contextmanager
def running(
    binaries: Path, settings: Mapping[str, str] = MappingProxyType({}), *, standby: bool = False
) -> Iterator[str]:
    """Run a Postgres of our own on a socket in a temporary folder; yields its URL.

    ``settings`` beat those of all tests; a ``standby`` waits for WAL that never comes. It ends
    with this block; or, by the kernel, with this thread.
    """
    account = _account()
    binaries = programs.for_account(binaries, account)
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_place()))
    try:
        folder.chmod(0o711)
        if account is not None:
            os.chown(folder, account.uid, account.gid)
        with (folder / "log").open("wb") as log:
            _initialise(binaries, folder, account, log.fileno(), standby=standby)
            words = [f"--{name}={value}" for name, value in {**SETTINGS, **settings}.items()]
            command = [binaries / "postgres", "-D", folder / "data", "-k", folder, *words]
            server = _launch(command, account, log.fileno())
        try:
            url = f"postgresql://postgres@/postgres?host={folder}"
            _wait(server, url, folder / "log")
            yield url
        finally:
            _stop(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> Path:
    """A folder with a short path; in memory if there is room, where a copy takes 20 ms."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**31:
        return memory
    return Path("/tmp")


def _find() -> dict[str, Path]:
    found: dict[str, Path] = {}
    with contextlib.suppress(ConfigError):
        found = {_flavour(folder): folder for folder in [programs.find()]}
    if (DEBIAN / "postgres").exists():
        found.setdefault(_flavour(DEBIAN), DEBIAN)
    return found


def _flavour(folder: Path) -> str:
    return f"pg{programs.major(programs.version(folder))}"


def _account() -> Account | None:
    if os.geteuid() != 0:
        return None
    for name in SERVER_ACCOUNTS:
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return Account(name, found.pw_uid, found.pw_gid)
    raise RuntimeError(f"root needs one of the accounts {SERVER_ACCOUNTS} to run Postgres as")


def _initialise(
    binaries: Path, folder: Path, account: Account | None, log: int, *, standby: bool
) -> None:
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    made = _launch([binaries / "initdb", "-D", folder / "data", *options], account, log)
    if made.wait(120):
        raise RuntimeError(f"initdb failed:\n{(folder / 'log').read_text()}")
    if standby:
        (folder / "data" / "standby.signal").touch()


def _launch(
    command: list[str | Path], account: Account | None, log: int
) -> subprocess.Popen[bytes]:
    who = (account.uid, account.gid) if account else ("", "")
    return subprocess.Popen(
        [sys.executable, "-ISc", LAUNCH, *map(str, (os.getpid(), *who, *command))],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=programs.environment(),
        cwd="/",
        start_new_session=True,  # Ctrl-C is the test session's
    )


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Postgres did not start: {error}\n{log.read_text()}") from error
            time.sleep(0.02)
        else:
            return


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)
            return


def _remove_leftovers() -> None:
    """Folders of sessions that were killed; the kernel has ended their servers."""
    for folder in _place().glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue
