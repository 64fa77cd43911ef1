"""``Conductor``: the client. Creates executions, asks for them, cancels and retries them."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload
from uuid import UUID

import msgspec

from conductor_cli import catalog, context, database, errors, payloads, registry
from conductor_cli.config import Config, load
from conductor_cli.invoking import Ids, Invoked, Row, Target, array, ids, row
from conductor_cli.models import Execution, State
from conductor_cli.registry import Invocation, InvokeOptions, Task
from conductor_cli.store import definitions, events, executions, reports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from psycopg_pool import ConnectionPool

    from conductor_cli.database import Connection
    from conductor_cli.embedded import Embedded

R = TypeVar("R")

_KNOWN_FOR: Final = 5.0  # seconds for which a task looked up by name is remembered
_FIRST_LOOK: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
PORTION: Final = 2000  # rows that travel together, while the next are made


class Conductor:
    """Invokes tasks on one Postgres. Thread-safe; its pool opens on first use, once per process."""

    def __init__(
        self, database: database.Database, *, max_payload: int = payloads.DEFAULT_LIMIT
    ) -> None:
        self.database = database
        self.max_payload = max_payload
        self._embedded: Embedded | None = None
        self._found: dict[str, tuple[float, definitions.Registered]] = {}

    @classmethod
    def create(
        cls,
        url: str | None = None,
        *,
        pool: ConnectionPool[Any] | None = None,
        pool_size: int = 10,
        max_payload: int = payloads.DEFAULT_LIMIT,
    ) -> Conductor:
        """A client of the Postgres at ``url``, or on a pool of the caller's.

        ``pool_size``: connections at most; ``max_payload``: bytes of JSON. Connects on first use.
        """
        if (url is None) == (pool is None):
            raise errors.ConfigError("Conductor.create needs either a URL or pool=, not both.")
        return cls(database.Database(url, pool=pool, size=pool_size), max_payload=max_payload)

    @classmethod
    def from_config(cls, config: Config | Path | str | None = None) -> Conductor:
        """A client configured by ``conductor.toml`` (see ``config.load`` for where it is looked
        for). Reads the file only, imports no module. ``url = "embedded"`` starts the private
        Postgres, or joins the one that runs. Raises ConfigError."""
        settings = config if isinstance(config, Config) else load(config)
        embedded = None
        url = settings.database.url
        if url == "embedded":
            from conductor_cli import embedded as private

            embedded = private.start(settings.folder)
            url = embedded.url
        made = cls(
            database.Database(
                url,
                size=settings.worker.concurrency + 4,
                behind_pooler=settings.database.pooler,
            ),
            max_payload=settings.tasks.max_payload,
        )
        made._embedded = embedded
        return made

    def close(self) -> None:
        """Close the pool, and let go of an embedded Postgres. May be used again afterwards,
        except with an embedded one."""
        self.database.close()
        if self._embedded is not None:
            self._embedded.close()

    def __enter__(self) -> Conductor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def ensure_installed(self) -> None:
        """Bring the schema to the latest version. Raises SchemaTooNew, DatabaseUnavailable."""
        from conductor_cli import migrate

        migrate.upgrade(self.database)

    def invoke(
        self,
        task: Target,
        payload: object = None,
        *,
        connection: Connection | None = None,
        **options: Any,
    ) -> UUID:
        """Create an execution; returns its id.

        ``options``: those of :class:`InvokeOptions`: queue, id, run_at, delay, priority,
        dedupe_key, on_duplicate, group, timeout, metadata. With ``connection`` it is part of the
        caller's transaction: it exists if and only if that commits. Without, it is committed
        when this returns, and a lost reply is recognised, not repeated.

        Raises PayloadError, UnknownTask, Duplicate, DatabaseUnavailable.
        """
        row = self._row(Invoked.of(task, payload, options))
        if connection is not None:
            return _send_one(database.callers(connection), row)
        tries = iter((_send_one, _send_one_again))
        with context.shielded():
            return self.database.retrying(lambda conn: next(tries)(conn, row))

    def invoke_many(
        self,
        task: Target,
        payloads: Iterable[object],
        *,
        connection: Connection | None = None,
        **options: Any,
    ) -> Ids:
        """Create many executions at once, all or none; returns their ids in order.

        Each payload may also be an Invocation with options of its own.
        """
        common = Invoked.of(task, None, options)
        rows = (
            self._row(Invoked.of(each, None, options))
            if isinstance(each, Invocation)
            else self._row(common, each)
            for each in payloads
        )
        return self._enqueue(rows, connection)

    def get(self, id: UUID) -> Execution | None:
        """The execution as it stands, or None."""
        with context.shielded():
            return self.database.retrying(lambda conn: reports.get(conn, id))

    def list(
        self,
        *,
        state: State | str | None = None,
        task: str | Task[..., Any] | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
    ) -> Sequence[Execution]:
        """Executions that match, newest first, at most ``limit``."""
        name = task.name if isinstance(task, Task) else task
        wanted = None if state is None else State(state)
        with context.shielded():
            return self.database.retrying(
                lambda conn: reports.list_executions(
                    conn, state=wanted, task=name, queue=queue, since=since, limit=limit
                )
            )

    @overload
    def wait(self, id: UUID, task: Task[..., R], timeout: float | timedelta | None = None) -> R: ...
    @overload
    def wait(
        self, id: UUID, task: None = None, timeout: float | timedelta | None = None
    ) -> Any: ...
    def wait(
        self,
        id: UUID,
        task: Task[..., Any] | None = None,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Wait until an execution ends and return its result, decoded for ``task`` if given.

        ``timeout`` in seconds. Raises ExecutionFailed, ExecutionCancelled, ExecutionNotFound,
        TimeoutError. Refused inside a task, whose thread it would hold.
        """
        if context.current.get() is not None:
            raise errors.ConductorError(
                "wait() inside a task would hold its thread while the other may need it."
            )
        ended = self._until_ended(id, registry.as_seconds(timeout))
        if ended.state is State.COMPLETED:
            return _result(ended, task)
        if ended.state is State.CANCELLED:
            raise errors.ExecutionCancelled(id, ended.error.message if ended.error else None)
        raise errors.ExecutionFailed(id, cast("Any", ended.error))

    def emit(
        self, event: str, payload: object = None, *, connection: Connection | None = None
    ) -> UUID:
        """Emit an event; returns its id. Those who wait for it, and the tasks that it triggers,
        hear of it after the commit.

        With ``connection`` it is part of the caller's transaction. Raises PayloadError,
        DatabaseUnavailable.
        """
        registry.check_name("event", event)
        value = {} if payload is None else payload
        text = payloads.encode(value, f"The payload of event {event!r}", self.max_payload)
        if connection is not None:
            return events.emit(database.callers(connection), event, text)
        with context.shielded(), self.database.transaction() as conn:
            return events.emit(conn, event, text)

    def cancel(self, id: UUID, reason: str | None = None) -> bool:
        """Cancel an execution; whether this call changed anything.

        A pending one ends at once. A running one is asked to stop and becomes cancelled when it
        ends, however it ends.
        """
        with context.shielded(), self.database.transaction() as conn:
            return executions.cancel(conn, id, reason)

    def retry(self, id: UUID) -> bool:
        """Let a failed or cancelled execution run again, with the same id and all its attempts.

        Whether there was one to retry.
        """
        with context.shielded(), self.database.transaction() as conn:
            return executions.retry(conn, id)

    def create_worker(
        self, queue: str, tasks: Iterable[Task[..., Any]], **settings: Any
    ) -> catalog.WorkerSpec:
        """A worker of one queue for ``Orchestrator.create(workers=[...])``; ``settings`` are
        those of WorkerConfig."""
        return catalog.WorkerSpec.create(queue, tasks, settings)

    def child(self, task: Target, payload: object, options: Mapping[str, Any]) -> Row:
        """The row of an execution that another is to create; refuses options that a child cannot
        have."""
        return self._child(Invoked.of(task, payload, options))

    def children(
        self, task: Target, payloads: Iterable[object], options: Mapping[str, Any]
    ) -> Sequence[Row]:
        """The rows of executions that another is to create; each payload may be an Invocation."""
        common = Invoked.of(task, None, options)
        return [
            self._child(Invoked.of(each, None, options))
            if isinstance(each, Invocation)
            else self._child(common, each)
            for each in payloads
        ]

    def _child(self, target: Invoked, *payload: object) -> Row:
        given = target.options
        for option in ("id", "timeout"):
            if getattr(given, option) is not None:
                raise TypeError(f"a child has no option {option!r}")
        if given.on_duplicate != "return":
            raise TypeError("a child joins the execution that has its dedupe_key already")
        return self._row(target, *payload)

    def _row(self, target: Invoked, *payload: object) -> Row:
        """``payload``, where the target has none of its own."""
        value = payload[0] if payload else target.payload
        if isinstance(target.task, Task):
            return self._row_of_task(target.task, value, target.options)
        return self._row_by_name(target.task, value, target.options)

    def _row_of_task(self, task: Task[..., Any], payload: object, options: InvokeOptions) -> Row:
        if not task.settings.invocable:
            raise errors.ConductorError(
                f"Task {task.name!r} is not invocable: only its triggers run it."
            )
        if payload is None and not task.binder.whole:
            payload = {}
        text = payloads.encode(payload, f"The payload for task {task.name!r}", self.max_payload)
        task.binder.check(task.name, text)
        return row(task.name, options.queue or task.queue, task.settings.priority, text, options)

    def _row_by_name(self, name: str, payload: object, options: InvokeOptions) -> Row:
        registry.check_name("task", name)
        text = payloads.encode(
            {} if payload is None else payload, f"The payload for task {name!r}", self.max_payload
        )
        if options.queue is not None:
            return row(name, options.queue, 0, text, options)
        known = self._find(name)
        return row(name, known.queue, known.priority, text, options)

    def _find(self, name: str) -> definitions.Registered:
        there = self._found.get(name)
        if there is not None and there[0] > time.monotonic():
            return there[1]
        with self.database.connection() as conn:
            found = definitions.find_task(conn, name)
            if found is None:
                raise errors.UnknownTask(
                    name,
                    registry.nearest(name, definitions.task_names(conn)),
                    "Servers and `conductor migrate` register the tasks they are configured "
                    "with; queue= skips this check.",
                )
        self._found[name] = (time.monotonic() + _KNOWN_FOR, found)
        return found

    def _enqueue(self, rows: Iterator[Row], connection: Connection | None) -> Ids:
        """``rows`` are made while earlier ones are already on their way."""
        made: list[Row] = []
        if connection is not None:
            return _send(database.callers(connection), rows, made)
        tries = iter((_send, _send_again))
        with context.shielded():
            return self.database.retrying(lambda conn: next(tries)(conn, rows, made))

    def _until_ended(self, id: UUID, timeout: float | None) -> Execution:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_LOOK
        while True:
            found = self.get(id)
            if found is None:
                raise errors.ExecutionNotFound(id)
            if found.state.has_ended:
                return found
            if deadline is not None and time.monotonic() + pause > deadline:
                pause = max(0.0, deadline - time.monotonic())
                if pause == 0.0:
                    raise TimeoutError(f"Execution {id} is {found.state} after {timeout:g} s.")
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.3)


def _send_one(conn: Connection, row: Row) -> UUID:
    if (kind := row.kind) is not None:
        task, queue, rank = kind
        executions.enqueue_plain(conn, f"[{row.plain}]", task=task, queue=queue, rank=rank)
        return row.id
    met = executions.enqueue(conn, array((row.full,)), recheck=row.options.id is not None)
    return ids((row,), {m.asked: m.met for m in met})[0]


def _send_one_again(conn: Connection, row: Row) -> UUID:
    met = executions.enqueue(conn, array((row.full,)), recheck=True)
    return ids((row,), {m.asked: m.met for m in met})[0]


def _send(conn: Connection, rows: Iterator[Row], made: list[Row]) -> Ids:
    """Send rows, many of them in portions; keeps in ``made`` what has been taken from ``rows``."""
    portion = list(islice(rows, PORTION))
    made.extend(portion)
    if len(portion) <= 1:
        return ids(made, _send_portion(conn, portion, again=False))
    met: dict[UUID, UUID] = {}
    with database.atomically(conn), conn.pipeline():
        while portion:
            met |= _send_portion(conn, portion, again=False)
            portion = list(islice(rows, PORTION))
            made.extend(portion)
        return ids(made, met)


def _send_again(conn: Connection, rows: Iterator[Row], made: list[Row]) -> Ids:
    """The reply to a first try was lost, and it may have done its work."""
    made.extend(rows)
    with database.atomically(conn):
        return ids(made, _send_portion(conn, made, again=True))


def _send_portion(conn: Connection, rows: Sequence[Row], *, again: bool) -> dict[UUID, UUID]:
    kinds = {row.kind for row in rows}
    kind = kinds.pop() if len(kinds) == 1 and not again else None
    if kind is not None:
        task, queue, rank = kind
        plain = array(row.plain for row in rows)
        executions.enqueue_plain(conn, plain, task=task, queue=queue, rank=rank)
        return {}
    chosen = any(row.options.id is not None for row in rows)
    met = executions.enqueue(conn, array(row.full for row in rows), recheck=again or chosen)
    return {m.asked: m.met for m in met}


def _result(ended: Execution, task: Task[..., Any] | None) -> Any:
    if task is None:
        return ended.result
    return task.result_type.decode(msgspec.json.encode(ended.result).decode())
