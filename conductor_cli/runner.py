"""Runs one claimed execution and tells how it ended, as a value.

The one place that catches what a task raises, whatever it is: nothing a task does may reach
the thread that runs it.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import sys
import threading
import traceback
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NoReturn

from conductor_cli import calls, registry, timing
from conductor_cli.aio import AsyncConductor
from conductor_cli.attempt import Abort, TaskTimeout, current
from conductor_cli.context import AsyncContext, Context
from conductor_cli.errors import (
    Cancel,
    Fail,
    PayloadError,
    Retry,
    Suspending,
    Suspension,
    TaskSignal,
)
from conductor_cli.failure import MESSAGE_LIMIT, clean, describe, text
from conductor_cli.models import (
    Cancelled,
    Completed,
    Failed,
    Flag,
    HandedBack,
    Outcome,
    Retrying,
)
from conductor_cli.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from conductor_cli.attempt import Attempt
    from conductor_cli.catalog import TaskSet
    from conductor_cli.client import Conductor
    from conductor_cli.ledger import Ledger
    from conductor_cli.models import Claimed
    from conductor_cli.registry import Task

_NULL: Final = Completed("null")


class Runner:
    """Runs attempts of a set of tasks. Shared by all threads of a process."""

    def __init__(
        self, tasks: TaskSet, *, conductor: Conductor, loop: EventLoop, state: Any, limit: int
    ) -> None:
        self.tasks = tasks
        self._timeouts = {t.name: registry.as_seconds(t.settings.timeout) for t in tasks}
        self._conductor = conductor
        self._awaitable = AsyncConductor(conductor)
        self._loop = loop
        self._state = state
        self._limit = limit
        self._pid = os.getpid()

    def run(self, attempt: Attempt) -> Outcome:
        """Run the task to its end. Never raises."""
        claimed = attempt.claimed
        task = self.tasks.get(claimed.task)
        if task is None:  # another version of this program claimed it under this id
            return HandedBack(1.0)
        attempt.max_attempts = task.settings.max_attempts
        before = current.set(attempt)
        try:
            outcome = self._attempted(task, attempt)
            if os.getpid() != self._pid:
                _end_child(None)
        except BaseException as error:
            if os.getpid() != self._pid:
                _end_child(error)
            outcome = ending(task, claimed, attempt.abort_reason, error)
        finally:
            current.reset(before)
        if attempt.ledger is not None:
            attempt.ledger.give_back()
            if attempt.ledger.is_settled:
                return outcome
            if attempt.ledger.unstorable is not None:  # whatever the code has made of it
                return Failed(describe(attempt.ledger.unstorable))
        if type(outcome) is Completed and attempt.abort_reason is Abort.TIMEOUT:
            outcome = ending(task, claimed, Abort.TIMEOUT, TaskTimeout("timed out"))
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
            return Failed(describe(error))
        result = self._call(task, attempt, args, kwargs)
        if (attempt.ledger or attempt.claimed.flags & Flag.HAS_LEDGER) and (
            wrong := calls.opened(attempt, self._conductor).at_end()
        ):
            return Failed(describe(wrong))
        outcome = _NULL if result is None else self._completed(task, result)
        return outcome if attempt.ledger is None else self._settled(attempt.ledger, outcome)

    def _settled(self, ledger: Ledger, outcome: Outcome) -> Outcome:
        """Where the task has a transaction of its own: that and its completion, or neither."""
        if ledger.loan is None or not isinstance(outcome, Completed):
            return outcome
        return outcome if ledger.complete(outcome.result) else HandedBack(0.0)

    def _call(
        self, task: Task[..., Any], attempt: Attempt, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        if task.binder.context is not None:
            kind = AsyncContext if task.is_async else Context
            given = kind(attempt, self._conductor, self._state)
            if task.is_async:
                given.conductor = self._awaitable
            task.binder.give(given, args, kwargs)
        if task.is_async:
            return self._loop.call(attempt, lambda: task.function(*args, **kwargs))
        if self.timeout_of(attempt.claimed) is None:
            return task.function(*args, **kwargs)
        return interruptible(attempt, lambda: task.function(*args, **kwargs))

    def _completed(self, task: Task[..., Any], result: object) -> Outcome:
        try:
            what = f"The result of {task.name!r}"
            return Completed(task.result_type.encode_fitting(result, what, self._limit))
        except PayloadError as error:
            if not inspect.isawaitable(result):
                return Failed(describe(error))
            if inspect.iscoroutine(result):
                result.close()
            return Failed(describe(Fail("it returned an awaitable; define it with async def")))


def _end_child(error: BaseException | None) -> NoReturn:
    """A process that the task has forked comes back from it: nothing here is its own, neither the
    connections nor what else the thread would claim and run. It ends as a program does."""
    code = 0
    try:
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def ending(
    task: Task[..., Any], claimed: Claimed, why: Abort | None, error: BaseException
) -> Outcome:
    """The outcome of an attempt that raised ``error``; ``why`` it had been asked to stop."""
    match _out_of_group(error):
        case Suspension() as left:
            return left.outcome if isinstance(left, Suspending) else HandedBack(0.0)
        case Cancel(reason=reason):
            return Cancelled(clean(text(reason), MESSAGE_LIMIT) if reason else None)
        case Fail() as fail:
            return Failed(describe(fail))
        case Retry() as retry:
            return _again(task, claimed, retry)
        case asyncio.CancelledError():
            return _cancelled(task, claimed, why, error)
        case _:
            return _failure(task, claimed, error)


def timed_out(task: Task[..., Any], claimed: Claimed) -> Outcome:
    """The outcome of an attempt that did not return after its timeout."""
    return _failure(task, claimed, TaskTimeout("timed out, and did not stop when asked to"))


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
        result = await make()
        if os.getpid() != pid:
            _end_child(None)
        return None, result
    except BaseException as error:
        if os.getpid() != pid:
            _end_child(error)
        return error, None


def _out_of_group(error: BaseException) -> BaseException:
    """What a task ends itself with, also when an asyncio.TaskGroup has wrapped it."""
    if isinstance(error, BaseExceptionGroup):
        _, others = error.split((Suspension, TaskSignal))
        while others is None and isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    return error


def _cancelled(
    task: Task[..., Any], claimed: Claimed, why: Abort | None, error: BaseException
) -> Outcome:
    match why:
        case None:
            return _failure(task, claimed, error)
        case Abort.CANCELLED:
            return Cancelled(None)
        case Abort.TIMEOUT:
            return _failure(task, claimed, TaskTimeout("timed out"))
        case Abort.SHUTDOWN | Abort.LOST:
            return HandedBack(0.0)


def _again(task: Task[..., Any], claimed: Claimed, retry: Retry) -> Outcome:
    if retry.counts:
        return _failure(task, claimed, retry, retry.delay)
    if retry.delay is not None:
        return Retrying(_bounded(retry.delay), None, counts=False)
    return _delayed(task, claimed.failures + 1, retry, counts=False)


def _failure(
    task: Task[..., Any], claimed: Claimed, error: BaseException, delay: float | None = None
) -> Outcome:
    failures = claimed.failures + 1
    if failures >= task.settings.max_attempts:
        return Failed(describe(error))
    if delay is not None:
        return Retrying(_bounded(delay), describe(error), counts=True)
    return _delayed(task, failures, error, counts=True)


def _delayed(task: Task[..., Any], failures: int, error: BaseException, *, counts: bool) -> Outcome:
    try:
        delay = timing.retry_delay(task.settings.retry, failures, error)
    except Exception as worse:
        return Failed(describe(worse))
    if delay is None:
        return Failed(describe(error))
    return Retrying(_bounded(delay), describe(error) if counts else None, counts=counts)


def _bounded(delay: float) -> float:
    return min(max(0.0, delay), registry.LONGEST)
