"""A Postgres of a scenario's own: started, stopped in every way, filled up, promoted.

The data folder is a copy of one that is made once a run, with the schema in it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg

from conductor_cli import migrate
from conductor_cli.embedded import programs
from conductor_cli.embedded.place import SERVER_ACCOUNTS, Account
from tests.support.postgres import LAUNCH

DATABASE: Final = "app"
NAME: Final = "conductor-faults-"
READY_WITHIN: Final = 60.0
PLAIN: Final = "sslmode=disable&gssencmode=disable&connect_timeout=5"
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "fsync": "off",  # the machine does not crash, only its processes
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    "dynamic_shared_memory_type": "mmap",
    "log_min_messages": "warning",
}


class Cluster:
    """One server process. ``with`` it; it ends with its block, or by the kernel with its maker."""

    def __init__(
        self, binaries: Path, folder: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        self.binaries, self.folder = binaries, folder
        self.port = free_port()
        self.settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> str:
        """By TCP."""
        return self.url_at(self.port)

    def url_at(self, port: int, user: str = "postgres") -> str:
        """By TCP through another port, a proxy's."""
        return f"postgresql://{user}@127.0.0.1:{port}/{DATABASE}?{PLAIN}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self, wait: bool = True) -> None:
        words = [f"--{name}={value}" for name, value in self.settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = launch(
                [self.binaries / "postgres", "-D", self.data, "-k", self.folder,
                 "-p", self.port, *words],
                log.fileno(),
            )  # fmt: skip
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        until = time.monotonic() + READY_WITHIN
        while True:
            try:
                return self.connect().close()
            except psycopg.OperationalError as error:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > until:
                    raise RuntimeError(f"Postgres is not ready: {error}\n{self.log}") from error
                time.sleep(0.02)

    def stop(self, how: str = "fast") -> None:
        """``smart``, ``fast`` or ``immediate``, as pg_ctl has it; waits until it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        first = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how]
        for number in (first, signal.SIGQUIT, signal.SIGKILL):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
                return

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def restart(self, how: str = "fast") -> None:
        self.stop(how)
        self.start()

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        """An autocommitting connection of the harness, by the socket."""
        return psycopg.connect(
            host=str(self.folder), port=self.port, user="postgres", dbname=DATABASE,
            autocommit=True, application_name="faults", **more,
        )  # fmt: skip

    def run(self, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """One statement on a connection of its own; all rows."""
        with self.connect() as conn:
            cursor = conn.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: LiteralString, *values: object) -> Any:
        rows = self.run(statement, *values)
        return rows[0][0] if rows else None

    def terminate(self, names: str = "conductor %") -> int:
        """Kill the backends of these application names; returns how many."""
        return len(
            self.run(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name like %s and pid <> pg_backend_pid()", names,
            )
        )  # fmt: skip

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]


class Clusters:
    """Makes clusters of one kind of Postgres, each from the same copied folder."""

    def __init__(self, binaries: Path) -> None:
        self.account = account()
        self.binaries = programs.for_account(binaries, self.account)
        self.version = programs.version(binaries)
        self._template: Path | None = None
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def running(
        self, settings: Mapping[str, str] | None = None, place: Path | None = None
    ) -> Iterator[Cluster]:
        """One with the current schema, in ``place`` if given."""
        with self.folder() as made:
            folder = place or made
            self.copy(self._made(), folder)
            cluster = Cluster(self.binaries, folder, settings)
            cluster.start()
            try:
                yield cluster
            finally:
                cluster.stop("immediate")

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that Postgres' account may use."""
        path = Path(tempfile.mkdtemp(prefix=f"{NAME}{os.getpid()}-", dir=place_for_data()))
        try:
            self.own(path)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def own(self, folder: Path) -> None:
        folder.chmod(0o711)
        if self.account is not None:
            os.chown(folder, self.account.uid, self.account.gid)

    def copy(self, source: Path, target: Path) -> None:
        """The data folder of one into another."""
        shutil.copytree(source / "data", target / "data", symlinks=True)
        self.own_all(target)

    def own_all(self, folder: Path) -> None:
        if self.account is not None:
            for found in (folder / "data", *(folder / "data").rglob("*")):
                os.chown(found, self.account.uid, self.account.gid, follow_symlinks=False)

    def _made(self) -> Path:
        if self._template is None:
            _remove_leftovers()
            folder = self._stack.enter_context(self.folder())
            self._initialize(folder)
            self._template = folder
        return self._template

    def _initialize(self, folder: Path) -> None:
        words = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        with (folder / "log").open("ab") as log:
            command = [self.binaries / "initdb", "-D", folder / "data", *words]
            if launch(command, log.fileno()).wait(120):
                raise RuntimeError(f"initdb failed:\n{(folder / 'log').read_text()}")
        cluster = Cluster(self.binaries, folder)
        cluster.start(wait=False)
        admin = eventually(lambda: _admin(cluster))
        admin.execute(f"create database {DATABASE}")
        admin.close()
        with cluster.connect() as conn:
            conn.execute(migrate.script(None).encode())
        cluster.stop("fast")


def launch(command: list[Any], log: int) -> subprocess.Popen[bytes]:
    """Start a program of Postgres as the account it wants, to end with this process."""
    found = account()
    who = (found.uid, found.gid) if found else ("", "")
    return subprocess.Popen(
        [sys.executable, "-ISc", LAUNCH, *map(str, (os.getpid(), *who, *command))],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=programs.environment(),
        cwd="/",
        start_new_session=True,
    )


def account() -> Account | None:
    if os.geteuid() != 0:
        return None
    for name in SERVER_ACCOUNTS:
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return Account(name, found.pw_uid, found.pw_gid)
    raise RuntimeError(f"root needs one of the accounts {SERVER_ACCOUNTS} to run Postgres as")


def place_for_data() -> Path:
    """In memory, if there is room: a copy takes a moment there."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**32:
        return memory
    return Path(tempfile.gettempdir())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(check: Callable[[], Any], within: float = 30.0, what: str = "it") -> Any:
    """The first true answer of ``check``; AssertionError when there is none in time."""
    until = time.monotonic() + within
    while not (answer := check()):
        if time.monotonic() > until:
            raise AssertionError(f"{what} did not happen within {within:g} s")
        time.sleep(0.02)
    return answer


def _admin(cluster: Cluster) -> psycopg.Connection[Any] | None:
    try:
        return psycopg.connect(
            host=str(cluster.folder), port=cluster.port, user="postgres", dbname="postgres",
            autocommit=True,
        )  # fmt: skip
    except psycopg.OperationalError:
        return None


def _remove_leftovers() -> None:
    """Folders of runs that were killed; the kernel has ended their servers."""
    for folder in place_for_data().glob(f"{NAME}*-*"):
        pid = folder.name.removeprefix(NAME).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
