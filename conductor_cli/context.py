"""``Context`` and ``AsyncContext``: what a task is given besides its payload.

Who it is, whether it should stop, how to log; and what it remembers from attempt to attempt.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, cast, overload

import msgspec

from conductor_cli import calls, lines, payloads, telemetry
from conductor_cli.attempt import (
    Abort,
    AsyncSignal,
    Attempt,
    Signal,
    current,
    shielded,
)
from conductor_cli.calls import Calls
from conductor_cli.errors import StepError, TaskTimeout
from conductor_cli.step import Step
from conductor_cli.stepping import AsyncStepping, Stepping

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from uuid import UUID

    from psycopg import Connection

    from conductor_cli.aio import AsyncConductor
    from conductor_cli.client import Conductor
    from conductor_cli.journal import Line
    from conductor_cli.registry import ConfiguredTask, Invocation, Task

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)
else:
    from typing import TypeVar

    S = TypeVar("S")

P = ParamSpec("P")
R = TypeVar("R")

__all__ = [
    "Abort",
    "AsyncContext",
    "AsyncSignal",
    "Attempt",
    "Context",
    "Event",
    "Signal",
    "TaskTimeout",
    "current",
    "shielded",
]


@dataclass(frozen=True, slots=True)
class Event:
    """What caused an execution: a schedule's tick or an event. Its name and payload, and the
    moment of the tick."""

    name: str
    payload: Any
    scheduled_for: datetime | None


class _Base(Generic[S]):
    conductor: Any

    def __init__(self, attempt: Attempt, conductor: Conductor, state: S) -> None:
        self._attempt = attempt
        self._calls = Calls(attempt, conductor, self._line)
        self.conductor = conductor
        self.state = state

    def _line(self) -> Line:
        """The line of the run that a call comes from."""
        raise NotImplementedError

    @property
    def execution_id(self) -> UUID:
        return self._attempt.claimed.id

    @property
    def attempt(self) -> int:
        """Which attempt it is, from 1: the failures before it and this one. A resumption, a rescue
        and a hand-back go on with the same attempt."""
        return self._attempt.claimed.attempt

    @property
    def max_attempts(self) -> int:
        """How many attempts the task has."""
        return self._attempt.max_attempts

    @property
    def runs(self) -> int:
        """Which run it is, from 1: how often a server has claimed this execution. A hand-back at
        shutdown takes its own claim back."""
        return self._attempt.claimed.runs

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What the invocation carried besides its payload."""
        text = self._attempt.claimed.metadata
        return msgspec.json.decode(text) if text else {}

    @cached_property
    def event(self) -> Event | None:
        """What caused this execution, when it was a schedule or an event; else None."""
        text = self._attempt.claimed.event
        return None if text is None else msgspec.json.decode(text, type=Event)

    @cached_property
    def logger(self) -> Any:
        """A structlog logger bound to this execution."""
        claimed = self._attempt.claimed
        return telemetry.logger(
            task=claimed.task,
            execution=str(claimed.id),
            attempt=claimed.attempt,
            run=claimed.runs,
        )


class Context(_Base[S]):
    """Given to a plain function whose parameter is annotated with it."""

    conductor: Conductor

    def __init__(self, attempt: Attempt, conductor: Conductor, state: S) -> None:
        super().__init__(attempt, conductor, state)
        attempt.main = threading.get_ident()
        self._steps = Stepping(attempt, self._calls)

    @property
    def signal(self) -> Signal:
        """Set when the task should stop."""
        return self._attempt.signal

    def checkpoint(self) -> None:
        """A moment at which the task may be stopped: cancelled, timed out, or handed back
        because the server is stopping (it then runs again elsewhere; its steps do not)."""
        self._calls.check()
        self._attempt.signal.raise_if_aborted()

    def step(self, name: str | Step, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``fn`` and remember what it returns: once that is recorded, ``fn`` never runs
        again in this execution, and later runs are given the recorded result.

        The result is decoded by the function's return annotation, the first time too. What it
        raises is raised here; once the task goes on to another call, that failure stands and is
        raised again in later runs. :class:`Step` in place of the name has it tried again by itself.
        Raises StepError when a name is used twice, or the code is not what it was.
        """
        return cast("R", self._steps.run(calls.named(name), fn, partial(fn, *args, **kwargs)))

    def transact(
        self,
        name: str | Step,
        fn: Callable[Concatenate[Any, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """A step whose writes are committed together with its record: ``fn`` is called with a
        psycopg connection, in a transaction, before its other arguments."""
        step = calls.named(name)
        return cast("R", self._steps.transact(step, fn, lambda conn: fn(conn, *args, **kwargs)))

    def transaction(self) -> Connection[Any]:
        """A psycopg connection, in a transaction that is committed together with the task's
        completion, or not at all. Nothing may be waited for afterwards."""
        return cast("Connection[Any]", self._calls.transaction()())

    def sleep(self, name: str, seconds: float | timedelta) -> None:
        """Leave the thread for so many seconds, counted from when this is first reached."""
        self._calls.sleep(name, seconds)()

    def sleep_until(self, name: str, moment: datetime) -> None:
        """Leave the thread until a moment: the one that was given when this was first reached."""
        self._calls.sleep_until(name, moment)()

    @overload
    def invoke(
        self,
        name: str,
        task: Invocation[R],
        payload: None = None,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> R: ...
    @overload
    def invoke(
        self,
        name: str,
        task: Task[..., R] | ConfiguredTask[..., R],
        payload: object = None,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> R: ...
    @overload
    def invoke(
        self,
        name: str,
        task: str,
        payload: object = None,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> Any: ...
    def invoke(
        self,
        name: str,
        task: Any,
        payload: object = None,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> Any:
        """Run another task as a child, leave the thread until it has ended, return its result.

        ``timeout``: seconds to wait; a child that takes longer goes on. ``options``: queue,
        run_at, delay, priority, dedupe_key, group, metadata. When this execution fails or is
        cancelled, so are the children it waits for. Raises ChildFailed, ChildCancelled,
        ChildTimedOut.
        """
        return self._calls.invoke(name, task, payload, timeout, options)()

    def invoke_many(
        self,
        name: str,
        task: Any,
        payloads: Sequence[object],
        return_exceptions: bool = False,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> list[Any]:
        """Run children at the same time; their results in the order of ``payloads``.

        Goes on once all have ended, or when the first fails: then that one's ChildFailed or
        ChildCancelled is raised, and the others go on. With ``return_exceptions`` errors stand
        in the place of results. A payload may be an Invocation. Raises ChildTimedOut.
        """
        work = self._calls.invoke_many(
            name, task, payloads, timeout, options, tolerant=return_exceptions
        )
        return work()

    def start(self, name: str, task: Any, payload: object = None, **options: Any) -> UUID:
        """Start another execution and go on; its id, which is the same after any crash."""
        return self._calls.start(name, task, payload, options)()

    def wait(self, name: str, id: UUID, timeout: float | timedelta | None = None) -> Any:
        """Leave the thread until any execution has ended; its result as JSON's values.

        Raises ChildFailed, ChildCancelled, ChildTimedOut, ExecutionNotFound.
        """
        return self._calls.wait(name, id, timeout)()

    def wait_for_event(
        self,
        name: str,
        event: str,
        where: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Leave the thread until an event comes that was emitted after this was first reached;
        its payload. Of several the oldest.

        ``where``: what its payload has to be like: ``{"id": 7, "kind": one_of("a", "b")}``.
        Raises EventTimedOut after ``timeout`` seconds.
        """
        return self._calls.wait_for_event(name, event, where, timeout)()

    def subscribe(
        self, name: str, event: str, where: Mapping[str, Any] | None = None
    ) -> Subscription:
        """Register for an event before doing what brings it about; then ``.wait(timeout=)``."""
        self._calls.subscribe(name, event, where, waits=False)()
        return Subscription(self, name)

    def emit(self, event: str, payload: object = payloads.NOT_GIVEN) -> UUID:
        """Emit an event; its id. A retry emits it again, unless it is done in a step."""
        return self._calls.emit(event, payload)()

    def cancel(self, id: UUID, reason: str | None = None) -> bool:
        """Cancel another execution; whether that changed anything."""
        return self._calls.cancel(id, reason)()

    def progress(
        self,
        done: float,
        total: float | None = None,
        message: str | None = None,
        data: object = None,
    ) -> None:
        """Tell how far the task has come: ``Execution.progress``. Written at most once a second,
        so that it may be called as often as one likes."""
        self._calls.progress(done, total, message, data)()

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
        """As ``Conductor.schedule``; when the task runs again, it changes nothing again."""
        self._calls.check()
        return self.conductor.schedule(
            task, name, expression, payload, timezone=timezone, missed=missed
        )

    def unschedule(self, task: Task[..., Any] | str, name: str) -> bool:
        """As ``Conductor.unschedule``."""
        self._calls.check()
        return self.conductor.unschedule(task, name)

    def _line(self) -> Line:
        found = lines.of(self._attempt)
        return found.main if threading.get_ident() == self._attempt.main else found.of_thread()


class Subscription:
    """A registration for an event."""

    def __init__(self, context: Context[Any], name: str) -> None:
        self._context = context
        self._name = name

    def wait(self, timeout: float | timedelta | None = None) -> Any:
        """Leave the thread until the event comes; its payload. Raises EventTimedOut."""
        return self._context._calls.heard(self._name, timeout)()


class AsyncSubscription:
    """The awaitable twin of :class:`Subscription`."""

    def __init__(self, context: AsyncContext[Any], name: str) -> None:
        self._context = context
        self._name = name

    async def wait(self, timeout: float | timedelta | None = None) -> Any:
        """As ``Subscription.wait``."""
        return await self._context._do(self._context._calls.heard(self._name, timeout))


class AsyncContext(_Base[S]):
    """Given to an ``async def`` function whose parameter is annotated with it. The methods are
    those of :class:`Context`, awaited."""

    conductor: AsyncConductor

    def __init__(self, attempt: Attempt, conductor: Conductor, state: S) -> None:
        super().__init__(attempt, conductor, state)
        self._steps = AsyncStepping(attempt, self._calls, self._do)

    @cached_property
    def signal(self) -> AsyncSignal:
        """Set when the task should stop."""
        return AsyncSignal(self._attempt.signal)

    async def checkpoint(self) -> None:
        """As ``Context.checkpoint``; other tasks of the event loop get their turn."""
        await asyncio.sleep(0)
        self._calls.check()
        self._attempt.signal.raise_if_aborted()

    @overload
    async def step(
        self, name: str | Step, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def step(
        self, name: str | Step, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    async def step(self, name: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As ``Context.step``; a plain function runs in a thread, so that it blocks nobody."""
        return await self._steps.run(calls.named(name), fn, partial(fn, *args, **kwargs))

    async def transact(
        self,
        name: str | Step,
        fn: Callable[Concatenate[Any, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """As ``Context.transact``: ``fn`` is a plain function, called in a thread."""
        step = calls.named(name)
        if inspect.iscoroutinefunction(fn):
            with self._calls.sticking():
                raise StepError(f"Step {step.name!r}: transact() takes a plain function.")
        found = await self._steps.transact(step, fn, lambda conn: fn(conn, *args, **kwargs))
        return cast("R", found)

    async def transaction(self) -> Connection[Any]:
        """As ``Context.transaction``. The connection is a blocking one: use it in a thread."""
        return cast("Connection[Any]", await self._do(self._calls.transaction()))

    async def sleep(self, name: str, seconds: float | timedelta) -> None:
        """Leave the thread for so many seconds, counted from when this is first reached."""
        await self._do(self._calls.sleep(name, seconds))

    async def sleep_until(self, name: str, moment: datetime) -> None:
        """Leave the thread until a moment: the one that was given when this was first reached."""
        await self._do(self._calls.sleep_until(name, moment))

    @overload
    async def invoke(
        self,
        name: str,
        task: Invocation[R],
        payload: None = None,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> R: ...
    @overload
    async def invoke(
        self,
        name: str,
        task: Task[..., R] | ConfiguredTask[..., R],
        payload: object = None,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> R: ...
    @overload
    async def invoke(
        self,
        name: str,
        task: str,
        payload: object = None,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> Any: ...
    async def invoke(
        self,
        name: str,
        task: Any,
        payload: object = None,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> Any:
        """Run another task as a child, leave the thread until it has ended, return its result.

        ``timeout``: seconds to wait; a child that takes longer goes on. ``options``: queue,
        run_at, delay, priority, dedupe_key, group, metadata. When this execution fails or is
        cancelled, so are the children it waits for. Raises ChildFailed, ChildCancelled,
        ChildTimedOut.
        """
        return await self._do(self._calls.invoke(name, task, payload, timeout, options))

    async def invoke_many(
        self,
        name: str,
        task: Any,
        payloads: Sequence[object],
        return_exceptions: bool = False,
        timeout: float | timedelta | None = None,
        **options: Any,
    ) -> list[Any]:
        """Run children at the same time; their results in the order of ``payloads``.

        Goes on once all have ended, or when the first fails: then that one's ChildFailed or
        ChildCancelled is raised, and the others go on. With ``return_exceptions`` errors stand
        in the place of results. A payload may be an Invocation. Raises ChildTimedOut.
        """
        work = self._calls.invoke_many(
            name, task, payloads, timeout, options, tolerant=return_exceptions
        )
        return await self._do(work)

    async def start(self, name: str, task: Any, payload: object = None, **options: Any) -> UUID:
        """Start another execution and go on; its id, which is the same after any crash."""
        return await self._do(self._calls.start(name, task, payload, options))

    async def wait(self, name: str, id: UUID, timeout: float | timedelta | None = None) -> Any:
        """Leave the thread until any execution has ended; its result as JSON's values.

        Raises ChildFailed, ChildCancelled, ChildTimedOut, ExecutionNotFound.
        """
        return await self._do(self._calls.wait(name, id, timeout))

    async def wait_for_event(
        self,
        name: str,
        event: str,
        where: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Leave the thread until an event comes that was emitted after this was first reached;
        its payload. Of several the oldest.

        ``where``: what its payload has to be like: ``{"id": 7, "kind": one_of("a", "b")}``.
        Raises EventTimedOut after ``timeout`` seconds.
        """
        return await self._do(self._calls.wait_for_event(name, event, where, timeout))

    async def subscribe(
        self, name: str, event: str, where: Mapping[str, Any] | None = None
    ) -> AsyncSubscription:
        """Register for an event before doing what brings it about; then ``.wait(timeout=)``."""
        await self._do(self._calls.subscribe(name, event, where, waits=False))
        return AsyncSubscription(self, name)

    async def emit(self, event: str, payload: object = payloads.NOT_GIVEN) -> UUID:
        """Emit an event; its id. A retry emits it again, unless it is done in a step."""
        return await self._do(self._calls.emit(event, payload))

    async def cancel(self, id: UUID, reason: str | None = None) -> bool:
        """Cancel another execution; whether that changed anything."""
        return await self._do(self._calls.cancel(id, reason))

    async def progress(
        self,
        done: float,
        total: float | None = None,
        message: str | None = None,
        data: object = None,
    ) -> None:
        """Tell how far the task has come: ``Execution.progress``. Written at most once a second,
        so that it may be called as often as one likes."""
        await self._do(self._calls.progress(done, total, message, data))

    async def schedule(
        self,
        task: Task[..., Any] | Invocation[Any] | str,
        name: str,
        expression: str,
        payload: object = None,
        *,
        timezone: str | None = None,
        missed: str = "latest",
    ) -> bool:
        """As ``Context.schedule``."""
        self._calls.check()
        return await self.conductor.schedule(
            task, name, expression, payload, timezone=timezone, missed=missed
        )

    async def unschedule(self, task: Task[..., Any] | str, name: str) -> bool:
        """As ``Conductor.unschedule``."""
        self._calls.check()
        return await self.conductor.unschedule(task, name)

    def _line(self) -> Line:
        return lines.of(self._attempt).of_task(asyncio.current_task(), self._attempt.main)

    async def _do(self, work: Callable[[], R]) -> R:
        """Work that may block, in the thread that waits for this task."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[BaseException | None, Any]] = loop.create_future()

        def settle(error: BaseException | None, value: object) -> None:
            if not done.done():  # the task was cancelled meanwhile
                done.set_result((error, value))

        def job() -> None:
            told: tuple[BaseException | None, Any]
            try:
                told = None, work()
            except BaseException as error:
                told = error, None
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(settle, *told)

        jobs = self._attempt.jobs
        assert jobs is not None, "the context is used outside its task"
        jobs.put(job)
        error, value = await done
        if error is not None:
            raise error
        return cast("R", value)
