"""``Conductor``: the client. Creates executions, asks for them, cancels and retries them."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload
from uuid import UUID

from conductor_cli import (
    arguments,
    catalog,
    context,
    database,
    door,
    errors,
    payloads,
    registry,
    scheduling,
    sending,
    timing,
    waiting,
)
from conductor_cli.config import Config, load
from conductor_cli.invoking import (
    PLAIN,
    Ids,
    Invoked,
    Row,
    Target,
    ids_in_order,
    new_id,
    rank_of,
    row,
)
from conductor_cli.models import Execution, State
from conductor_cli.registry import Invocation, InvokeOptions, Task
from conductor_cli.sections import URL
from conductor_cli.service import Deadline
from conductor_cli.store import definitions, events, executions, queues, reports, schedules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from psycopg_pool import ConnectionPool

    from conductor_cli.embedded import Embedded

R = TypeVar("R")

_KNOWN_FOR: Final = 5.0  # seconds for which a task looked up by name is remembered


class Conductor:
    """Invokes tasks on one Postgres. Thread-safe; its pool opens on first use, once per process."""

    def __init__(
        self,
        database: database.Database,
        *,
        max_payload: int = payloads.DEFAULT_LIMIT,
        timezone: str = "UTC",
    ) -> None:
        self.database = database
        self.max_payload = max_payload
        self.timezone = timezone
        self.door = door.Door(database)
        self.ends = waiting.Ends(database, self.door)
        self._embedded: Embedded | None = None
        self._found: dict[str, tuple[float, definitions.Registered | None]] = {}
        self._makers: dict[Task[..., Any], Callable[[object], Row]] = {}  # of plain rows

    @classmethod
    def create(
        cls,
        url: str | None = None,
        *,
        pool: ConnectionPool[Any] | None = None,
        pool_size: int = 10,
        max_payload: int = payloads.DEFAULT_LIMIT,
        timezone: str = "UTC",
    ) -> Conductor:
        """A client of the Postgres at ``url``, or on a pool of the caller's.

        ``pool_size``: connections at most; ``max_payload``: bytes of JSON; ``timezone``: of
        schedules that name none. Connects on first use.
        """
        if (url is None) == (pool is None):
            raise errors.ConfigError("Conductor.create needs either a URL or pool=, not both.")
        arguments.as_count(pool_size, "pool_size", 1)
        arguments.as_count(max_payload, "max_payload", 1)
        timing.zone(arguments.as_text(timezone, "timezone"))
        address = None if url is None else _address(url)
        if pool is not None and not hasattr(pool, "getconn"):
            raise errors.ConfigError(
                f"pool={arguments.shown(pool)} is no psycopg_pool.ConnectionPool. A connection "
                "of yours goes to the single call: invoke(..., connection=...)."
            )
        made = database.Database(address, pool=pool, size=pool_size)
        return cls(made, max_payload=max_payload, timezone=timezone)

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
            timezone=settings.scheduler.timezone,
        )
        made._embedded = embedded
        return made

    def close(self) -> None:
        """Close the pool, and let go of an embedded Postgres. May be used again afterwards,
        except with an embedded one."""
        self.ends.close()
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

        with self.door:
            migrate.upgrade(self.database)

    def invoke(
        self,
        task: Target,
        payload: object = None,
        *,
        connection: object = None,
        **options: Any,
    ) -> UUID:
        """Create an execution; returns its id.

        ``options``: those of :class:`InvokeOptions`: queue, id, run_at, delay, priority,
        dedupe_key, on_duplicate, group, timeout, metadata. With ``connection`` it is part of the
        caller's transaction: it exists if and only if that commits. That may be a connection of
        psycopg, SQLAlchemy (or a session), Django or psycopg2; asynchronous ones are for
        AsyncConductor. Without, it is committed when this returns, and a lost reply is
        recognised, not repeated.

        Raises PayloadError, UnknownTask, Duplicate, DatabaseUnavailable.
        """
        row = self.row(task, payload, options)
        if connection is not None:
            return sending.on_borrowed(connection, iter((row,)))[0]
        with context.shielded():
            return sending.one_on_own(self.door, row)

    def invoke_many(
        self,
        task: Target,
        payloads: Iterable[object],
        *,
        connection: object = None,
        **options: Any,
    ) -> Ids:
        """Create many executions at once, all or none; returns their ids in order.

        Each payload may also be an Invocation with options of its own.
        """
        return self._enqueue(self.rows(task, payloads, options), connection)

    def get(self, id: UUID | str) -> Execution | None:
        """The execution as it stands, or None."""
        asked = arguments.as_id(id)
        with context.shielded():
            return self.door.retrying(lambda conn: reports.get(conn, asked))

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
        name = None if task is None else scheduling.name_of(task)
        wanted = None if state is None else arguments.as_state(state)
        if queue is not None:
            registry.check_name("queue", queue)
        moment = None if since is None else arguments.as_moment(since, "since")
        most = arguments.as_count(limit, "limit")
        with context.shielded():
            return self.door.retrying(
                lambda conn: reports.list_executions(
                    conn, state=wanted, task=name, queue=queue, since=moment, limit=most
                )
            )

    @overload
    def wait(
        self, id: UUID | str, task: Task[..., R], *, timeout: float | timedelta | None = None
    ) -> R: ...
    @overload
    def wait(
        self, id: UUID | str, task: None = None, *, timeout: float | timedelta | None = None
    ) -> Any: ...
    def wait(
        self,
        id: UUID | str,
        task: Task[..., Any] | None = None,
        *,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Wait until an execution ends and return its result, decoded for ``task`` if given.

        ``timeout`` in seconds. Raises ExecutionFailed, ExecutionCancelled, ExecutionNotFound (also
        for one that is deleted as it ends), TimeoutError; DatabaseUnavailable when Postgres has
        been away for half a minute. Refused inside a task, whose thread it would hold.
        """
        waiting.refuse_in_task("wait")
        asked, known, seconds = waiting.checked(id, task, timeout)
        deadline = Deadline(seconds)
        found = self._found_now(asked)
        with self.ends.expected(asked) as end:
            while not found.state.has_ended:
                in_time = end.wait(deadline.remaining)
                found = self._found_now(asked)
                if not in_time and not found.state.has_ended:
                    raise waiting.late(found, seconds)
        return waiting.result(found, known)

    def watch(self, id: UUID | str) -> Iterator[Execution]:
        """The execution as it stands, and again at each change that is seen, until its end.

        The end is told at once, other changes are looked for twice a second or more; of several
        that come at once only the last is seen. Raises ExecutionNotFound, as ``wait`` does.
        Refused inside a task.
        """
        waiting.refuse_in_task("watch")
        return self._watch(arguments.as_id(id))

    def _watch(self, id: UUID) -> Iterator[Execution]:
        last, pauses = self._found_now(id), waiting.Pauses()
        yield last
        with self.ends.expected(id) as end:
            while not last.state.has_ended:
                end.wait(pauses.next())
                found = self._found_now(id)
                if found != last:
                    pauses.restart()
                    yield found
                last = found

    def emit(
        self, event: str, payload: object = payloads.NOT_GIVEN, *, connection: object = None
    ) -> UUID:
        """Emit an event; returns its id. Those who wait for it, and the tasks that it triggers,
        hear of it after the commit. A payload that is not given is ``{}``; None is null.

        With ``connection`` it is part of the caller's transaction, as with ``invoke``. Raises
        PayloadError, DatabaseUnavailable.
        """
        text = self.event_payload(event, payload)
        if connection is not None:
            return sending.event_on_borrowed(connection, event, text)
        with context.shielded(), self.door.transaction() as conn:
            return events.emit(conn, event, text)

    def cancel(self, id: UUID | str, reason: str | None = None) -> bool:
        """Cancel an execution; whether this call changed anything.

        A pending one ends at once. A running one is asked to stop and becomes cancelled when it
        ends, however it ends.
        """
        asked = arguments.as_id(id)
        if reason is not None:
            arguments.as_text(reason, "reason")
        with context.shielded(), self.door.transaction() as conn:
            return executions.cancel(conn, asked, reason)

    def retry(self, id: UUID | str, restart: bool = False, force: bool = False) -> bool:
        """Let a failed or cancelled execution run again, with the same id and all its attempts.

        Its steps are kept, unless it is to ``restart`` from its beginning. A child by whose
        failure it ended runs again with it. Whether there was one to retry.

        Raises ConductorError for a child whose failure its parent has gone past: nobody would
        hear of its result. With ``force`` it runs all the same.
        """
        asked = arguments.as_id(id)
        arguments.as_switch(restart, "restart")
        arguments.as_switch(force, "force")
        with context.shielded(), self.door.transaction() as conn:
            if not force and (parent := executions.has_gone_past(conn, asked)):
                raise errors.ConductorError(
                    f"Execution {asked} is a child of {parent}, which has been told of its failure "
                    "and has gone on: nobody would hear of a new result. Retry it with force "
                    "(force=True, --force) to run it all the same."
                )
            return executions.retry(conn, asked, restart=restart)

    def schedule(
        self,
        task: Task[..., Any] | Invocation[Any] | str,
        name: str,
        expression: str,
        payload: object = None,
        *,
        timezone: str | None = None,
        missed: str = "latest",
    ) -> bool:
        """Run a task at each tick of a cron expression, until ``unschedule``.

        ``name`` tells the schedules of one task apart: another call with it changes the
        schedule, whose next tick is then the first of the new expression. ``payload`` is that of
        every execution, and checked as ``invoke`` checks it. ``timezone`` and ``missed`` are
        those of ``cron``. Restarts and deploys leave it as it is. Whether this changed anything.

        Raises TaskDefinitionError for an expression, PayloadError, UnknownTask; ConductorError
        for the name of a schedule that the task's triggers declare.
        """
        spec = scheduling.spec(
            task, name, expression, payload,
            timezone=timezone or self.timezone, missed=missed, limit=self.max_payload,
            queue_of=self._queue_of,
        )  # fmt: skip
        with context.shielded(), self.door.transaction() as conn:
            return scheduling.save(conn, spec)

    def unschedule(self, task: Task[..., Any] | str, name: str) -> bool:
        """Remove a schedule; whether there was one. What it has made already goes on.

        One that the task's triggers declare comes back when a server of the task starts.
        """
        task_name = scheduling.name_of(task)
        registry.check_name("schedule", name)
        with context.shielded(), self.door.transaction() as conn:
            return schedules.remove(conn, task_name, name)

    def pause(self, queue: str) -> bool:
        """Let nothing of a queue be claimed, by nobody, from the moment this returns until
        ``resume``. What runs goes on. Whether this changed anything."""
        registry.check_name("queue", queue)
        with context.shielded(), self.door.transaction() as conn:
            return queues.pause(conn, queue)

    def resume(self, queue: str) -> bool:
        """Let a paused queue go on, at once. Whether this changed anything."""
        registry.check_name("queue", queue)
        with context.shielded(), self.door.transaction() as conn:
            return queues.resume(conn, queue)

    def create_worker(
        self, queue: str, tasks: Iterable[Task[..., Any]], **settings: Any
    ) -> catalog.WorkerSpec:
        """A worker of one queue for ``Orchestrator.create(workers=[...])``; ``settings`` are
        those of WorkerConfig."""
        return catalog.WorkerSpec.create(queue, tasks, settings)

    def event_payload(self, event: str, payload: object) -> str:
        """What ``emit`` would send, checked; raises what it raises."""
        registry.check_name("event", event)
        value = {} if payload is payloads.NOT_GIVEN else payload
        return payloads.encode(value, f"The payload of event {event!r}", self.max_payload)

    def child(self, task: Target, payload: object, options: Mapping[str, Any]) -> Row:
        """The row of an execution that another is to create; refuses options that a child cannot
        have."""
        return self._child(Invoked.of(task, payload, options))

    def children(
        self, task: Target, payloads: Iterable[object], options: Mapping[str, Any]
    ) -> Sequence[Row]:
        """The rows of executions that another is to create; each payload may be an Invocation."""
        common = Invoked.common(task, options)
        arguments.as_several(payloads, "payloads")
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

    def row(self, task: Target, payload: object, options: Mapping[str, Any]) -> Row:
        """What ``invoke`` would insert, checked; raises what it raises."""
        if not options and isinstance(task, Task):
            if (make := self._makers.get(task)) is None:
                make = self._makers[task] = self._maker(task, PLAIN)
            return make(payload)
        return self._row(Invoked.of(task, payload, options))

    def rows(
        self, task: Target, payloads: Iterable[object], options: Mapping[str, Any]
    ) -> Iterator[Row]:
        """What ``invoke_many`` would insert, each checked when it is asked for."""
        common = Invoked.common(task, options)
        arguments.as_several(payloads, "payloads")
        make = (
            self._maker(common.task, common.options, ids_in_order())
            if isinstance(common.task, Task)
            else partial(self._row, common)
        )
        return (
            self.row(each, None, options) if isinstance(each, Invocation) else make(each)
            for each in payloads
        )

    def _row(self, target: Invoked, *payload: object) -> Row:
        """``payload``, where the target has none of its own."""
        value = payload[0] if payload else target.payload
        if isinstance(target.task, Task):
            return self._maker(target.task, target.options)(value)
        return self._row_by_name(target.task, value, target.options)

    def _maker(
        self,
        task: Task[..., Any],
        options: InvokeOptions,
        next_id: Callable[[], UUID] = new_id,
    ) -> Callable[[object], Row]:
        """What makes a row of a payload; what many have in common is looked up once."""
        name, settings, binder, limit = task.name, task.settings, task.binder, self.max_payload
        if not settings.invocable:
            raise _not_invocable(name)
        queue, rank = options.queue or task.queue, rank_of(settings.priority, options)
        what = f"The payload for task {name!r}"

        def make(payload: object) -> Row:
            if payload is None and not binder.whole:
                payload = {}
            text = payloads.encode(payload, what, limit)
            binder.check(name, text)
            return Row(options.id or next_id(), name, queue, rank, text, options)

        return make

    def _row_by_name(self, name: str, payload: object, options: InvokeOptions) -> Row:
        registry.check_name("task", name)
        text = payloads.encode(
            {} if payload is None else payload, f"The payload for task {name!r}", self.max_payload
        )
        known = self._find(name, queue=options.queue)
        if known is not None and not known.invocable:
            raise _not_invocable(name)
        if options.queue is not None:
            return row(name, options.queue, 0, text, options)
        assert known is not None
        return row(name, known.queue, known.priority, text, options)

    def _queue_of(self, name: str) -> str:
        found = self._find(name)
        assert found is not None
        return found.queue

    def _find(self, name: str, *, queue: str | None = None) -> definitions.Registered | None:
        """What is registered of a task. None only where a ``queue`` is named: then it may be
        unknown."""
        there = self._found.get(name)
        if there is not None and there[0] > time.monotonic() and (there[1] or queue):
            return there[1]
        found = self.door.retrying(lambda conn: definitions.find_task(conn, name))
        if found is None and queue is None:
            raise errors.UnknownTask(
                name,
                registry.nearest(name, self.door.retrying(definitions.task_names)),
                "Servers and `conductor migrate` register the tasks they are configured "
                "with; queue= skips this check.",
            )
        self._found[name] = (time.monotonic() + _KNOWN_FOR, found)
        return found

    def _enqueue(self, rows: Iterator[Row], connection: object) -> Ids:
        if connection is not None:
            return sending.on_borrowed(connection, rows)
        with context.shielded():
            return sending.on_own(self.door, rows)

    def _found_now(self, id: UUID) -> Execution:
        found = self.get(id)
        if found is None:
            raise errors.ExecutionNotFound(id)
        return found


def _address(url: object) -> str:
    """The address of a database, as the driver takes it; raises ConfigError."""
    try:
        found = URL.read(url)
    except ValueError:
        raise errors.ConfigError(
            f"url = {URL.shown(url)}: expected postgresql://user:password@host:port/database"
        ) from None
    if found == "embedded":
        raise errors.ConfigError(
            'url = "embedded" is for conductor.toml: Conductor.from_config() starts that Postgres.'
        )
    return found


def _not_invocable(name: str) -> errors.ConductorError:
    return errors.ConductorError(f"Task {name!r} is not invocable: only its triggers run it.")
