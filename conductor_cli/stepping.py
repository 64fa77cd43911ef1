"""How a step's function is run, tried again, cut off and let finish; plain and awaited.

What is recorded of it, and what a replay is given, is in ``steps``.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from conductor_cli import threads
from conductor_cli.attempt import Abort, AsyncSignal
from conductor_cli.calls import busy, inside
from conductor_cli.errors import StepError, StepTimedOut
from conductor_cli.limited import limited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conductor_cli.attempt import Attempt
    from conductor_cli.calls import Calls
    from conductor_cli.database import Connection
    from conductor_cli.step import Step
    from conductor_cli.steps import StepCall

CUT_AGAIN: Final = 5.0
"""Seconds, beside twice what it took before, in which a step has to be cut off again."""


AT_ONCE: Final = 32
"""Plain functions of one run that are in threads at the same time, in ``gather`` and its like."""


class Stepping:
    """Runs the steps of a plain task."""

    def __init__(self, attempt: Attempt, calls: Calls) -> None:
        self._attempt, self._calls = attempt, calls

    def run(self, step: Step, fn: Callable[..., Any], call: Callable[[], Any]) -> Any:
        """A step; ``call`` calls ``fn`` with its arguments."""

        def once(found: StepCall) -> Callable[[], None]:
            with inside(step):
                value = _limited(step, call)
            if inspect.isawaitable(value):
                raise StepError(f"Step {step.name!r} returned an awaitable; make the task async.")
            return partial(found.done, value)

        return self._to_record(self._calls.step(step, fn), once)

    def transact(self, step: Step, fn: Callable[..., Any], call: Callable[..., Any]) -> Any:
        """A step whose writes are committed together with its record; ``call`` takes the
        connection."""

        def once(found: StepCall) -> None:
            with inside(step):
                found.transact(partial(_with_connection, step, call))

        return self._to_record(self._calls.step(step, fn), once)

    def _to_record(
        self, found: StepCall, once: Callable[[StepCall], Callable[[], None] | None]
    ) -> Any:
        with self._calls.sticking():
            found.begin()
            if found.was_cut is not None:
                raise StepError(
                    f"Step {found.name!r} was cut off in an earlier run, which a plain task "
                    "cannot do: the code has changed since."
                )
            with busy(found.line):
                while not found.is_recorded:
                    try:
                        record = once(found)
                    except Exception as error:
                        if self._attempt.signal.wait(found.failed(error)):
                            self._attempt.signal.raise_if_aborted()
                        continue
                    if record is not None:
                        record()
        return found.value


class AsyncStepping:
    """Runs the steps of an async task. ``do`` does what may block in the thread that waits for
    the task."""

    def __init__(self, attempt: Attempt, calls: Calls, do: Callable[..., Any]) -> None:
        self._attempt, self._calls, self._do = attempt, calls, do
        self._room = asyncio.Semaphore(AT_ONCE)

    async def run(self, step: Step, fn: Callable[..., Any], call: Callable[[], Any]) -> Any:
        """A step; ``call`` calls ``fn`` with its arguments."""

        async def once(found: StepCall) -> Callable[[], Awaitable[None]]:
            with inside(step):
                value, cut = await _called(self._attempt, step, fn, call, self._in_thread)

            async def record() -> None:
                await self._do(partial(found.done, value))
                if cut is not None:
                    raise cut

            return record

        return await self._to_record(self._calls.step(step, fn), once)

    async def transact(self, step: Step, fn: Callable[..., Any], call: Callable[..., Any]) -> Any:
        """A step whose plain function writes together with its record; ``call`` takes the
        connection."""

        async def once(found: StepCall) -> None:
            await self._do(partial(found.transact, partial(_with_connection, step, call)))

        return await self._to_record(self._calls.step(step, fn), once)

    async def _to_record(
        self,
        found: StepCall,
        once: Callable[[StepCall], Awaitable[Callable[[], Awaitable[None]] | None]],
    ) -> Any:
        began = time.monotonic()
        try:
            with self._calls.sticking():
                if not found.begin_at_once():
                    await self._do(found.begin)
                if found.was_cut is not None:
                    await _cut_again(self._attempt, found)
                with busy(found.line):
                    while not found.is_recorded:
                        try:
                            record = await once(found)
                        except Exception as error:
                            await self._failed(found, error)
                            continue
                        if record is not None:
                            await record()
        except asyncio.CancelledError as error:
            if _is_by_code(self._attempt):
                found.cut(error, found.was_cut or time.monotonic() - began)
            raise
        return found.value

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        async with self._room:
            return await threads.run(call)

    async def _failed(self, found: StepCall, error: Exception) -> None:
        delay = await self._do(partial(found.failed, error))
        if await AsyncSignal(self._attempt.signal).wait(delay):
            self._attempt.signal.raise_if_aborted()


async def _cut_again(attempt: Attempt, found: StepCall) -> None:
    """Wait to be cut off as in an earlier run. What came before took no longer then than now, so
    that a step that is not cut off in time never will be: the code has changed."""
    assert found.was_cut is not None
    until = time.monotonic() + CUT_AGAIN + 2 * found.was_cut
    while time.monotonic() < until or (attempt.lines is not None and attempt.lines.are_busy()):
        await asyncio.sleep(0.05)
    raise StepError(
        f"An earlier run cut step {found.name!r} off after {found.was_cut:.3g} s, and this one "
        "does not: the code has changed, or nothing is left that could. Give a step a limit with "
        "Step(name, timeout=...), whose failure is recorded."
    )


async def _called(
    attempt: Attempt, step: Step, fn: Callable[..., Any], call: Any, in_thread: Any
) -> tuple[Any, asyncio.CancelledError | None]:
    """What the function returns; with a cancel that it has outlasted."""
    if inspect.iscoroutinefunction(fn):
        if not step.shield:
            return await _timed(step, call), None
        return await _outlasting(attempt, _timed(step, call), cuts=True)
    value, cut = await _outlasting(attempt, in_thread(partial(_limited, step, call)), cuts=False)
    if inspect.isawaitable(value):
        value = await _timed(step, lambda: value)
    return value, cut


async def _outlasting(
    attempt: Attempt, work: Any, *, cuts: bool
) -> tuple[Any, asyncio.CancelledError | None]:
    """The result of what a cancel may not cut off: a shielded function (``cuts``: other ends of the
    run do), or a plain one, which goes on in its thread anyhow."""
    inner, cut = asyncio.ensure_future(work), None
    while not inner.done():
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError as error:
            why = attempt.abort_reason
            if why is not Abort.CANCELLED and not (
                _is_quiet(attempt) and (cuts or attempt.has_ended)
            ):
                inner.cancel()
                raise
            cut = error
    return inner.result(), cut


async def _timed(step: Step, call: Callable[[], Awaitable[Any]]) -> Any:
    if step.timeout is None:
        return await call()
    scope = asyncio.timeout(step.seconds)
    try:
        async with scope:
            return await call()
    except TimeoutError:
        if scope.expired():
            raise StepTimedOut(step.name, step.seconds) from None
        raise


def _limited(step: Step, call: Callable[[], Any], stop: Any = None) -> Any:
    if step.timeout is None:
        return call()
    return limited(step.name, step.seconds, call, stop)


def _with_connection(step: Step, call: Callable[..., Any], conn: Connection) -> Any:
    return _limited(step, lambda: call(conn), conn.cancel)


def _is_quiet(attempt: Attempt) -> bool:
    """Whether nothing of the system's ends the run just now."""
    why = attempt.abort_reason
    return why is None or (why is Abort.SHUTDOWN and not attempt.insisted)


def _is_by_code(attempt: Attempt) -> bool:
    """Whether the task's own code has sent the cancel that has just arrived."""
    return _is_quiet(attempt) and not attempt.has_ended
