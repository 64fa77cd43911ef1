"""Runs one claimed execution and tells how it ended, as a value.

The one place that catches what a task raises, whatever it is: nothing a task does may reach
the thread that runs it.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import decimal
import inspect
import os
import threading
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from conductor_cli import calls, lines, outcomes, registry
from conductor_cli.aio import AsyncConductor
from conductor_cli.attempt import Abort, current
from conductor_cli.context import AsyncContext, Context
from conductor_cli.errors import Fail, PayloadError, TaskTimeout
from conductor_cli.failure import describe
from conductor_cli.middleware import around, around_async
from conductor_cli.models import Completed, Failed, Flag, HandedBack, Outcome
from conductor_cli.service import Service
from conductor_cli.threads import end_child

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from conductor_cli.attempt import Attempt
    from conductor_cli.catalog import TaskSet
    from conductor_cli.client import Conductor
    from conductor_cli.ledger import Ledger
    from conductor_cli.middleware import Layer
    from conductor_cli.models import Claimed
    from conductor_cli.registry import Task

_NULL: Final = Completed("null")


class Runner:
    """Runs attempts of a set of tasks. Shared by all threads of a process."""

    def __init__(
        self,
        tasks: TaskSet,
        *,
        conductor: Conductor,
        loop: EventLoop,
        state: Any,
        limit: int,
        context: contextvars.Context | None = None,
        middleware: Sequence[Layer] = (),
    ) -> None:
        self.tasks = tasks
        self._timeouts = {t.name: registry.as_seconds(t.settings.timeout) for t in tasks}
        self._conductor = conductor
        self._awaitable = AsyncConductor(conductor)
        self._loop = loop
        self._state = state
        self._limit = limit
        self._pid = os.getpid()
        self._layers = {t.name: (*middleware, *t.settings.middleware) for t in tasks}
        self._context = contextvars.Context() if context is None else context.copy()
        # The one value in it that is known to be changed in place.
        self._has_decimals = any(each.name == "decimal_context" for each in self._context)

    def run(self, attempt: Attempt) -> Outcome:
        """Run the task to its end. Never raises.

        Each run has a copy of what ``[tasks] setup`` has put into context variables: what a task
        puts there is not seen by the next one of its thread.
        """
        return self._context.copy().run(self._run, attempt)

    def _run(self, attempt: Attempt) -> Outcome:
        if self._has_decimals:
            decimal.setcontext(decimal.getcontext().copy())
        claimed = attempt.claimed
        task = self.tasks.get(claimed.task)
        if task is None:  # another version of this program claimed it under this id
            return HandedBack(1.0)
        attempt.max_attempts = task.settings.max_attempts
        attempt.timeout = self.timeout_of(claimed)
        current.set(attempt)
        try:
            outcome = self._attempted(task, attempt)
            if os.getpid() != self._pid:
                end_child(None)
        except BaseException as error:
            if os.getpid() != self._pid:
                end_child(error)
            attempt.failure = error
            attempt.context = attempt.context or contextvars.copy_context()
            outcome = outcomes.of_error_whatever(task, attempt, error)
        finally:
            attempt.has_ended = True
        attempt.lines = None
        if attempt.ledger is not None:
            attempt.ledger.journal.forget()
            attempt.ledger.give_back()
            if attempt.ledger.is_settled:
                return outcome
        if type(outcome) is Completed and attempt.abort_reason is Abort.TIMEOUT:
            attempt.failure = TaskTimeout(attempt.time_is_up)
            outcome = outcomes.too_late(task, attempt)
        return outcome

    def timeout_of(self, claimed: Claimed) -> float | None:
        """Seconds this execution may run; the invocation's beats the task's."""
        if claimed.timeout is not None:
            return claimed.timeout
        return self._timeouts.get(claimed.task)

    def _attempted(self, task: Task[..., Any], attempt: Attempt) -> Outcome:
        try:
            args, kwargs = task.binder.bind(attempt.claimed.payload)
        except PayloadError as error:
            return _failed(attempt, error)
        try:
            result = self._call(task, attempt, args, kwargs)
        finally:
            self._close(attempt)
        if attempt.ledger or attempt.claimed.flags & Flag.HAS_LEDGER:
            if attempt.stuck is not None:
                raise attempt.stuck
            ledger = calls.opened(attempt, self._conductor)
            if wrong := ledger.unstorable or ledger.at_end():
                return _failed(attempt, wrong)
        outcome = _NULL if result is None else self._completed(task, attempt, result)
        return outcome if attempt.ledger is None else self._settled(attempt.ledger, outcome)

    def _close(self, attempt: Attempt) -> None:
        """The main line has ended: so do the others, and what was told last is written."""
        attempt.has_ended = True
        if os.getpid() != self._pid:
            return
        if attempt.lines is not None:
            attempt.lines.close_threads(attempt)
        if attempt.ledger is not None:
            attempt.ledger.flush_at_end()

    def _settled(self, ledger: Ledger, outcome: Outcome) -> Outcome:
        """Where the task has a transaction of its own: that and its completion, or neither."""
        if ledger.loan is None or not isinstance(outcome, Completed):
            return outcome
        return outcome if ledger.complete(outcome.result) else HandedBack(0.0)

    def _call(
        self, task: Task[..., Any], attempt: Attempt, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        layers, given = self._layers[task.name], None
        if layers or task.binder.context is not None:
            kind = AsyncContext if task.is_async else Context
            given = kind(attempt, self._conductor, self._state)
            if task.is_async:
                given.conductor = self._awaitable
            if task.binder.context is not None:
                task.binder.give(given, args, kwargs)
        if task.is_async:
            if attempt.claimed.flags & Flag.HAS_LEDGER and task.binder.context is not None:
                calls.opened(attempt, self._conductor).load()
            if not layers:
                return self._loop.call(attempt, lambda: task.function(*args, **kwargs))
            return self._loop.call(
                attempt, lambda: around_async(layers, given, lambda: task.function(*args, **kwargs))
            )
        attempt.code = getattr(task.function, "__code__", None)
        if layers:
            call = partial(around, layers, given, lambda: task.function(*args, **kwargs))
            return call() if attempt.timeout is None else interruptible(attempt, call)
        if attempt.timeout is None:
            return task.function(*args, **kwargs)
        return interruptible(attempt, lambda: task.function(*args, **kwargs))

    def _completed(self, task: Task[..., Any], attempt: Attempt, result: object) -> Outcome:
        try:
            what = f"The result of {task.name!r}"
            return Completed(task.result_type.encode_fitting(result, what, self._limit))
        except PayloadError as error:
            if not inspect.isawaitable(result):
                return _failed(attempt, error)
            if inspect.iscoroutine(result):
                result.close()
            return _failed(attempt, Fail("it returned an awaitable; define it with async def"))


def _failed(attempt: Attempt, error: BaseException) -> Failed:
    attempt.failure = error
    return Failed(describe(error))


class EventLoop(Service):
    """The event loop on which all async tasks of a process run; started by the first one."""

    def __init__(self) -> None:
        super().__init__("async")
        self._starting = threading.Lock()
        self._started = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        while not self._stopping.is_set():
            # What asyncio lets through was raised in a task's own asyncio task, which has it too.
            with suppress(SystemExit, KeyboardInterrupt):
                self._loop.run_forever()

    def call(self, attempt: Attempt, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine in the loop, from any other thread, and do meanwhile what it may not
        do there; returns at its end."""
        loop = self._ensure_started()
        jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        attempt.jobs = jobs
        future = asyncio.run_coroutine_threadsafe(_guarded(attempt, make), loop)
        future.add_done_callback(lambda _: jobs.put(None))
        while (job := jobs.get()) is not None:
            job()
        raised, value = future.result()
        if raised is not None:
            raise raised
        return value

    def stop(self) -> None:
        super().stop()
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._loop.stop)

    def _ensure_started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if not self._started:
                self._started = True
                self.start()
        assert self._loop is not None
        return self._loop

    def setup(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(lines.task_factory)

    def teardown(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


def interruptible(attempt: Attempt, call: Callable[[], Any]) -> Any:
    """Run ``call`` so that :func:`interrupt` may raise into it, and only into it."""
    me = attempt.thread_id = threading.get_ident()
    try:
        attempt.permit()
        return call()
    finally:
        # A timeout may arrive at any line here, and then leaves nothing undone: only one is sent.
        if not attempt.forbid():
            attempt.await_interrupt()
            _set_async_exc(me, None)
        attempt.thread_id = None


def interrupt(attempt: Attempt) -> bool:
    """Raise TaskTimeout in the attempt's thread, once; False when it cannot be done (just now)."""
    if attempt.interrupted:
        return True
    thread_id = attempt.thread_id
    if thread_id is None or not attempt.forbid():
        return False
    try:
        _set_async_exc(thread_id, TaskTimeout)
    finally:  # also when that is this thread
        attempt.interrupted = True
    return True


def _set_async_exc(thread_id: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), None if error is None else ctypes.py_object(error)
    )


async def _guarded(
    attempt: Attempt, make: Callable[[], Coroutine[Any, Any, Any]]
) -> tuple[BaseException | None, Any]:
    """SystemExit and its like would end the loop for all tasks: they travel as values."""
    told: tuple[BaseException | None, Any]
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None

    def cancel() -> None:
        with suppress(RuntimeError):  # the loop has closed: so has the task
            loop.call_soon_threadsafe(me.cancel)

    def cancel_when_due() -> None:
        # On shutdown it may finish or reach a checkpoint; the worker insists later.
        if attempt.abort_reason is not Abort.SHUTDOWN:
            cancel()

    pid = os.getpid()
    current.set(attempt)
    attempt.main = me
    attempt.cancel = cancel
    attempt.signal.on_set(cancel_when_due)
    try:
        told = None, await make()
    except BaseException as error:
        told = error, None
        attempt.context = contextvars.copy_context()
    if os.getpid() != pid:
        end_child(told[0])
    attempt.has_ended = True
    while attempt.lines is not None:
        try:
            await attempt.lines.close_tasks(attempt)
            break
        except asyncio.CancelledError:  # a cancel that came when the task had ended
            continue
    return told
