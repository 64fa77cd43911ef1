"""The database as virtual servers and clients see it: real sessions, an unreliable network.

A ``Line`` stands where a connection does. Each statement is a step of its own; some are slow (the
others act before their commit), some requests are lost, and some replies after the commit. What
waits for a lock gives up after a moment, since nobody else could act meanwhile.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.pq import ExecStatus

from conductor_cli.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.pq.abc import PGresult

    from conductor_cli.database import Connection
    from tests.support.interleaving.stage import Stage

EPOCH: Final = datetime(2040, 1, 1, tzinfo=UTC)  # at the stage's 1000; Postgres started long ago
LOCK_TIMEOUT: Final = "2ms"
DRESS: Final = b"select set_config('test.now', $1, false), set_config('test.actor', $2, false)"


def moment(now: float) -> datetime:
    """What the database's clock shows at a moment of the stage."""
    return EPOCH + timedelta(seconds=now - 1000.0)


class Sessions:
    """Real sessions, shared by all seeds of a test; the first is for statements that commit
    themselves at once, which nobody can see half done."""

    def __init__(self, open_one: Callable[[], Connection], names: dict[str, str]) -> None:
        self.names = names  # of statements, by their SQL
        self._open = open_one
        self._free: list[Connection] = []
        self._dress: dict[Connection, tuple[float, str]] = {}
        self.first = self._new()

    def take(self) -> Connection:
        """One with a transaction begun."""
        taken = self._free.pop() if self._free else self._new()
        self.command(taken, "begin")
        return taken

    def give_back(self, raw: Connection, how: str) -> None:
        self.command(raw, how)
        if how == "rollback":
            self._dress.pop(raw, None)
        self._free.append(raw)

    def dress(self, raw: Connection, now: float, actor: str) -> None:
        """Tell the session what time it is and who uses it."""
        if self._dress.get(raw) != (now, actor):
            values = [moment(now).isoformat().encode(), actor.encode()]
            _check(raw.pgconn.exec_prepared(b"dress", values))
            self._dress[raw] = now, actor

    def command(self, raw: Connection, sql: str) -> None:
        """One without rows, by the shortest way; psycopg does not forget its prepared statements,
        as it would after a rollback of its own."""
        _check(raw.pgconn.exec_(sql.encode()))

    def close(self) -> None:
        for raw in (self.first, *self._free):
            raw.close()

    def _new(self) -> Connection:
        raw = self._open()
        raw.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'".encode())
        raw.execute("set plan_cache_mode = force_generic_plan")
        raw.pgconn.prepare(b"dress", DRESS)
        return raw


class Net(Database):
    """What one server or client (``group``) takes for its database."""

    def __init__(self, stage: Stage, sessions: Sessions, group: str) -> None:
        super().__init__("postgresql://nowhere")
        self.stage, self.sessions, self.group = stage, sessions, group
        self.trouble = 0.0  # how likely a request or a reply is lost
        self.slowness = 0.0  # how likely others act before a commit
        self.lateness = 0.0  # seconds that a slow request takes at most to arrive
        self.sent: list[tuple[str, dict[str, Any]]] = []  # what wrote about claims

    def connect(self, name: str, **limits: float) -> Any:
        return Line(self)

    @contextmanager
    def connection(self, patience: float = 0.0) -> Iterator[Any]:
        line = Line(self)
        try:
            yield line
        finally:
            line.close()

    @contextmanager
    def transaction(self, patience: float = 0.0) -> Iterator[Any]:
        with self.connection() as line, line.transaction():
            yield line

    def drop_dead(self) -> None:
        """There is no pool."""

    def send(self, message: tuple[str, dict[str, Any]]) -> None:
        """Deliver a message again; it claims nothing."""
        sql, parameters = message
        given = {**parameters, "limit": 0}
        with suppress(psycopg.OperationalError), self.connection() as line:
            line.run(sql, given, True, None)

    def fate(self) -> str:
        """What becomes of the next message."""
        chance = self.stage.chance.random()
        if chance < self.trouble / 2:
            return "request lost"
        if chance < self.trouble:
            return "reply lost"
        return "slow" if chance < self.trouble + self.slowness else ""


class Line:
    """A connection that commits each statement itself, except in ``transaction()``."""

    autocommit = True

    def __init__(self, net: Net) -> None:
        self.closed = self.broken = False
        self._net, self._stage, self._sessions = net, net.stage, net.sessions
        self._raw: Connection | None = None  # while in a transaction

    def cursor(self, *, binary: bool = False, row_factory: Any = None) -> _Cursor:
        return _Cursor(self, binary, row_factory)

    @contextmanager
    def transaction(self) -> Iterator[Line]:
        if self._raw is not None:
            with self._savepoint(self._raw):
                yield self
            return
        self._raw = self._sessions.take()
        try:
            yield self
            self._commit()
        finally:
            if self._raw is not None:
                self._end("rollback")

    def close(self) -> None:
        if self._raw is not None:
            self._end("rollback")
        self.closed = True

    def run(self, sql: str, parameters: Any, binary: bool, row_factory: Any) -> list[Any] | None:
        """One statement; its rows, if it has any."""
        if self.closed or self.broken:
            raise psycopg.OperationalError("the connection is closed")
        if parameters and parameters.get("ids") and "outcome" in sql:
            self._net.sent.append((sql, parameters))
        fate = self._net.fate()
        self._stage.wait()
        if fate == "request lost":
            self._note(sql, parameters, fate)
            raise self._break()
        if fate == "slow" and self._net.lateness:
            self._stage.wait(self._stage.chance.random() * self._net.lateness)
        rows = self._execute(sql, parameters, binary, row_factory, fate)
        self._note(sql, parameters, f"-> {rows} {fate}")
        if fate == "reply lost":
            raise self._break()
        return rows

    def _execute(
        self, sql: str, parameters: Any, binary: bool, row_factory: Any, fate: str
    ) -> list[Any] | None:
        if self._raw is not None:
            return self._on(self._raw, sql, parameters, binary, row_factory)
        if fate != "slow":
            return self._on(self._sessions.first, sql, parameters, binary, row_factory)
        raw, how = self._sessions.take(), "rollback"
        try:
            rows = self._on(raw, sql, parameters, binary, row_factory)
            how = self._stage.chance.choice(["commit", "rollback"])  # if it dies now
            self._note(sql, parameters, "begins")
            self._stage.wait()
            how = "commit"
            return rows
        finally:
            self._sessions.give_back(raw, how)

    def _on(
        self, raw: Connection, sql: str, parameters: Any, binary: bool, row_factory: Any
    ) -> list[Any] | None:
        assert self._stage.current is not None
        self._sessions.dress(raw, self._stage.now, self._stage.current.name)
        try:
            with raw.cursor(binary=binary, row_factory=row_factory) as cursor:
                cursor.execute(_impatient(sql), parameters, prepare=True)
                return cursor.fetchall() if cursor.description else None
        except psycopg.Error as error:
            self._note(sql, parameters, f"-> {type(error).__name__}")
            raise

    @contextmanager
    def _savepoint(self, raw: Connection) -> Iterator[None]:
        how = "rollback to s; release s"
        self._sessions.command(raw, "savepoint s")
        try:
            yield
            how = "release s"
        finally:
            if self._raw is not None:
                self._sessions.command(raw, how)

    def _commit(self) -> None:
        fate = self._net.fate()
        self._stage.wait()
        if self._raw is None:  # it broke, and whoever used it took no notice
            raise psycopg.OperationalError("the connection is closed")
        self._end("rollback" if fate == "request lost" else "commit")
        self._stage.note("commit", fate)
        if fate.endswith("lost"):
            raise self._break()

    def _break(self) -> psycopg.OperationalError:
        if self._raw is not None:
            self._end("rollback")
        self.broken = self.closed = True
        return psycopg.OperationalError("the network failed")

    def _end(self, how: str) -> None:
        raw, self._raw = self._raw, None
        assert raw is not None
        self._sessions.give_back(raw, how)

    def _note(self, sql: str, parameters: Any, more: str) -> None:
        self._stage.note(self._sessions.names.get(sql, "?"), (parameters, more))


class _Cursor:
    def __init__(self, line: Line, binary: bool, row_factory: Any) -> None:
        self._line, self._binary, self._row_factory = line, binary, row_factory
        self._rows: list[Any] | None = None

    def __enter__(self) -> _Cursor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing is held."""

    def execute(self, sql: str, parameters: Any = None, *, prepare: bool = True) -> None:
        self._rows = self._line.run(sql, parameters, self._binary, self._row_factory)

    def fetchall(self) -> list[Any]:
        assert self._rows is not None
        return self._rows


@cache
def _impatient(sql: str) -> bytes:
    """With lock timeouts of its own cut short, too."""
    return re.sub(r"(?<='lock_timeout', )'\d+m?s'", f"'{LOCK_TIMEOUT}'", sql).encode()


def _check(result: PGresult) -> None:
    assert result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK), result.error_message
