"""Runs one claimed execution and tells how it ended, as a value.

The one place that catches what a task raises, whatever it is: nothing a task does may reach
the thread that runs it.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import threading
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from conductor_cli import payloads, registry, timing
from conductor_cli.context import Abort, AsyncContext, Context, TaskTimeout, current
from conductor_cli.errors import Cancel, Fail, PayloadError, Released, Retry
from conductor_cli.models import (
    Cancelled,
    Completed,
    ExecutionError,
    Failed,
    HandedBack,
    Outcome,
    Retrying,
)
from conductor_cli.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from conductor_cli.catalog import TaskSet
    from conductor_cli.client import Conductor
    from conductor_cli.context import Attempt
    from conductor_cli.models import Claimed
    from conductor_cli.registry import Task

MESSAGE_LIMIT: Final = 8_000
TRACEBACK_LIMIT: Final = 32_000
_NULL: Final = Completed("null")


class Runner:
    """Runs attempts of a set of tasks. Shared by all threads of a process."""

    def __init__(
        self, tasks: TaskSet, *, conductor: Conductor, loop: EventLoop, state: Any, limit: int
    ) -> None:
        self.tasks = tasks
        self._conductor = conductor
        self._loop = loop
        self._state = state
        self._limit = limit

    def run(self, attempt: Attempt) -> Outcome:
        """Run the task to its end. Never raises."""
        claimed = attempt.claimed
        task = self.tasks.get(claimed.task)
        if task is None:  # another version of this program claimed it under this id
            return HandedBack(1.0)
        try:
            args, kwargs = task.binder.bind(claimed.payload)
        except PayloadError as error:
            return Failed(describe(error))
        before = current.set(attempt)
        try:
            result = self._call(task, attempt, args, kwargs)
            outcome: Outcome = _NULL if result is None else self._completed(task, result)
        except BaseException as error:
            outcome = ending(task, claimed, attempt.abort_reason, error)
        finally:
            current.reset(before)
        if attempt.abort_reason is Abort.TIMEOUT and isinstance(outcome, Completed):
            outcome = ending(task, claimed, Abort.TIMEOUT, TaskTimeout("timed out"))
        return outcome

    def timeout_of(self, claimed: Claimed) -> float | None:
        """Seconds this execution may run; the invocation's beats the task's."""
        if claimed.timeout is not None:
            return claimed.timeout
        task = self.tasks.get(claimed.task)
        return None if task is None else registry.as_seconds(task.settings.timeout)

    def _call(
        self, task: Task[..., Any], attempt: Attempt, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        if task.is_async:
            if task.binder.context is not None:
                self._give(task, AsyncContext(attempt, self._conductor, self._state), args, kwargs)
            return self._loop.run(attempt, lambda: task.function(*args, **kwargs))
        if task.binder.context is not None:
            self._give(task, Context(attempt, self._conductor, self._state), args, kwargs)
        if self.timeout_of(attempt.claimed) is None:
            return task.function(*args, **kwargs)
        return interruptible(attempt, lambda: task.function(*args, **kwargs))

    def _give(
        self, task: Task[..., Any], context: object, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        if task.binder.context_first:
            args.insert(0, context)
        else:
            kwargs[str(task.binder.context)] = context

    def _completed(self, task: Task[..., Any], result: object) -> Completed:
        if inspect.isawaitable(result):
            raise Fail("it returned an awaitable; define it with async def")
        return Completed(payloads.encode(result, f"The result of {task.name!r}", self._limit))


def ending(
    task: Task[..., Any], claimed: Claimed, why: Abort | None, error: BaseException
) -> Outcome:
    """The outcome of an attempt that raised ``error``; ``why`` it had been asked to stop."""
    match error:
        case Released():
            return HandedBack(0.0)
        case Cancel(reason=reason):
            return Cancelled(_clean(reason, MESSAGE_LIMIT) if reason else None)
        case Fail() | PayloadError():
            return Failed(describe(error))
        case Retry(counts=False, delay=delay):
            return Retrying(max(0.0, delay or 0.0), None, counts=False)
        case asyncio.CancelledError() if why is Abort.CANCELLED:
            return Cancelled(None)
        case asyncio.CancelledError() if why in (Abort.SHUTDOWN, Abort.LOST):
            return HandedBack(0.0)
        case asyncio.CancelledError() if why is Abort.TIMEOUT:
            return _failure(task, claimed, TaskTimeout("timed out"))
        case _:
            return _failure(task, claimed, error)


def timed_out(task: Task[..., Any], claimed: Claimed) -> Outcome:
    """The outcome of an attempt that did not return after its timeout."""
    return _failure(task, claimed, TaskTimeout("timed out, and did not stop when asked to"))


def describe(error: BaseException) -> ExecutionError:
    """An exception as it is stored: texts cut, free of NUL, whatever its ``__str__`` does."""
    try:
        message = str(error)
    except Exception as worse:
        message = f"(its __str__ raises {type(worse).__name__})"
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "conductor_cli.errors", "conductor_cli.context"):
        name = f"{kind.__module__}.{name}"
    if isinstance(error, TaskTimeout):
        name = "TimeoutError"
    return ExecutionError(name, _clean(message, MESSAGE_LIMIT), _traceback(error))


class EventLoop(Service):
    """The event loop on which all async tasks of a process run; started by the first one."""

    def __init__(self) -> None:
        super().__init__("async")
        self._starting = threading.Lock()
        self._started = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, attempt: Attempt | None = None, make: Callable[[], Any] | None = None) -> Any:
        """In its own thread: turn the loop. With an attempt: run it there and wait for its end."""
        if attempt is None or make is None:
            return self._turn()
        loop = self._ensure_started()
        raised, value = asyncio.run_coroutine_threadsafe(_guarded(attempt, make), loop).result()
        if raised is not None:
            raise raised
        return value

    def stop(self) -> None:
        super().stop()
        if self._loop is not None:
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

    def _turn(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


def interruptible(attempt: Attempt, call: Callable[[], Any]) -> Any:
    """Run ``call`` so that :func:`interrupt` may raise into it, and only into it."""
    with _interrupting:
        attempt.thread_id = threading.get_ident()
    try:
        return call()
    finally:
        with _interrupting:
            attempt.thread_id = None
            # One that was sent and has not arrived must not arrive later.
            _set_async_exc(threading.get_ident(), None)


def interrupt(attempt: Attempt) -> bool:
    """Raise TaskTimeout in the attempt's thread; False when it cannot be done (just now)."""
    with _interrupting:
        if attempt.thread_id is None or attempt.shield:
            return False
        _set_async_exc(attempt.thread_id, TaskTimeout)
        return True


_interrupting: Final = threading.Lock()


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

    current.set(attempt)
    attempt.cancel = cancel
    attempt.signal.on_set(cancel_when_due)
    try:
        return None, await make()
    except BaseException as error:
        return error, None


def _failure(task: Task[..., Any], claimed: Claimed, error: BaseException) -> Outcome:
    failures = claimed.failures + 1
    if failures >= task.settings.max_attempts:
        return Failed(describe(error))
    if isinstance(error, Retry) and error.delay is not None:
        return Retrying(max(0.0, error.delay), describe(error), counts=True)
    try:
        delay = timing.retry_delay(task.settings.retry, failures, error)
    except Exception as worse:
        return Failed(describe(worse))
    if delay is None:
        return Failed(describe(error))
    return Retrying(delay, describe(error), counts=True)


def _traceback(error: BaseException) -> str | None:
    if error.__traceback__ is None:
        return None
    try:
        frames = _own_frames_off(error)
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception as worse:
        return f"(its traceback raises {type(worse).__name__})"
    return _clean(text, TRACEBACK_LIMIT, keep_end=True)


def _own_frames_off(error: BaseException) -> Any:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames or error.__traceback__


def _clean(text: str, limit: int, *, keep_end: bool = False) -> str:
    """Cut, without NUL and without lone surrogates."""
    text = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    if len(text) <= limit:
        return text
    return f"... {text[-limit:]}" if keep_end else f"{text[:limit]} ..."
