"""Threads for what an event loop may not do itself: the plain steps of async tasks.

What a function has raised comes back as a value. ``asyncio.to_thread`` cannot carry a
``StopIteration``: a future refuses it, and who awaits the future waits for ever. Nor is there a
number of threads that all tasks share: a step never waits for another task's step.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    Job = Callable[[], object]
    Told = tuple[BaseException | None, Any]

R = TypeVar("R")

IDLE_FOR: Final = 10.0
"""Seconds after which a thread that has nothing to do ends."""

_idle: Final[list[SimpleQueue[Job]]] = []
"""One for each thread that has nothing to do; jobs are put there. Its pop, append and remove are
atomic."""

os.register_at_fork(after_in_child=_idle.clear)  # a fork has no threads


async def run(call: Callable[[], R]) -> R:
    """What ``call`` returns, or raises, in a thread that has a copy of the caller's context.

    A caller that is cancelled waits no longer; the call goes on. A StopIteration arrives as the
    RuntimeError that Python makes of one in a coroutine.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Told] = loop.create_future()
    context, pid = copy_context(), os.getpid()

    def settle(told: Told) -> None:
        if not done.done():  # the caller was cancelled meanwhile
            done.set_result(told)

    def job() -> None:
        told = outcome(lambda: context.run(call))
        if os.getpid() != pid:
            end_child(told[0])
        with suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(settle, told)

    _hand_over(job)
    error, value = await done
    if error is not None:
        raise error
    return cast("R", value)


def outcome(call: Callable[[], Any]) -> Told:
    """What a call has raised, and what it has returned."""
    try:
        return None, call()
    except BaseException as error:
        return error, None


def end_child(error: BaseException | None) -> NoReturn:
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


def _hand_over(job: Job) -> None:
    try:
        box = _idle.pop()
    except IndexError:
        box = SimpleQueue()
        threading.Thread(target=_work, args=[box], name="conductor-step", daemon=True).start()
    box.put(job)


def _work(box: SimpleQueue[Job]) -> None:
    while True:
        try:
            job = box.get(timeout=IDLE_FOR)
        except Empty:
            # The race: this thread ends, and at the same moment somebody takes its box to give it
            # a job. The job would never run. Whoever removes the box from the list decides: where
            # it is gone, a job is on its way.
            # tests/unit/test_threads.py: test_a_thread_that_is_about_to_end_loses_no_job
            with suppress(ValueError):
                _idle.remove(box)
                return
            job = box.get()
        job()
        del job  # it holds what the step was given
        _idle.append(box)
