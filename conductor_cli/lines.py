"""Which line of a run a call comes from, and what becomes of the lines beside the main one.

An asyncio task knows who has started it: the event loop's task factory writes that down. A thread
knows it where it was given a copy of the starter's context, as ``asyncio.to_thread`` does; any
other thread counts as started by the main line. A thread of a pool does one piece of work after
the other, and each of them is a line of its own: it begins and ends with the frame of the function
that the pool has called.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, ref

from conductor_cli.attempt import Abort, current
from conductor_cli.journal import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from conductor_cli.attempt import Attempt

_POOLS: Final = ("threading", "concurrent.futures", "multiprocessing.pool", "conductor_cli.threads")
"""Modules whose functions call those of others in threads of theirs."""

_RUNNER: Final = "conductor_cli.runner"
_making: Final = threading.Lock()

LONGEST_END: Final = 5.0
"""Seconds that asyncio tasks are given to end when they are cancelled."""

_line: Final[ContextVar[tuple[Lines, int, Line] | None]] = ContextVar(
    "conductor_line", default=None
)


class Lines:
    """The lines of one run, besides the main one."""

    def __init__(self) -> None:
        self.main = Line()
        self.starters: WeakKeyDictionary[asyncio.Task[Any], asyncio.Task[Any] | None] = (
            WeakKeyDictionary()
        )
        self._tasks: WeakKeyDictionary[asyncio.Task[Any], Line] = WeakKeyDictionary()
        self._threads: dict[tuple[int, int], tuple[FrameType, Line]] = {}
        self._most_threads = 100
        self._lock = threading.Lock()

    def of_task(self, task: asyncio.Task[Any] | None, main: object) -> Line:
        """The line of an asyncio task; ``main`` is the one that runs the task's function."""
        if task is None or task is main:
            return self.main
        line = self._tasks.get(task)
        if line is None:
            parent = self.of_task(self.starters.get(task), main)
            line = self._tasks[task] = Line(parent, _ended_task(task))
        return line

    def of_thread(self) -> Line:
        """The line of this thread, which is not the main one."""
        ident, root = threading.get_ident(), _root(sys._getframe(1))
        key = ident, id(root)  # the frame is kept, so that no other gets its id
        with self._lock:
            if (known := self._threads.get(key)) is not None:
                return known[1]
            line = Line(self._starter(ident), _ended_frame(ident, root))
            self._threads[key] = root, line
            if len(self._threads) > self._most_threads:
                self._forget_ended()
        _line.set((self, ident, line))
        return line

    def _forget_ended(self) -> None:
        """A pool may do a million pieces of work for one run: keep no frame of those done."""
        living = set(map(id, _frames()))
        self._threads = {
            key: (root, line) for key, (root, line) in self._threads.items() if id(root) in living
        }
        self._most_threads = 2 * len(self._threads) + 100

    def _starter(self, ident: int) -> Line:
        inherited = _line.get()
        if inherited is None or inherited[0] is not self:
            return self.main
        _, thread, line = inherited
        if thread == ident:  # what this thread did before
            return line.parent or self.main
        return line

    def are_busy(self) -> bool:
        """Whether a step is in progress on any line."""
        lines = [self.main, *self._tasks.values(), *(line for _, line in self._threads.values())]
        return any(line.calls for line in lines)

    def close_threads(self, attempt: Attempt) -> None:
        """The main line has ended: wait until the others have, which ends their steps; at most
        until the run may not go on."""
        pause = 0.0005
        while any(not line.has_ended for _, line in list(self._threads.values())):
            why = attempt.abort_reason
            if why in (Abort.TIMEOUT, Abort.LOST) or (why is not None and attempt.insisted):
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    async def close_tasks(self, attempt: Attempt) -> None:
        """The main line has ended: let tasks inside a step finish, and cancel the others."""
        until: float | None = None
        cancelled: set[asyncio.Task[Any]] = set()
        while left := {task for task in list(self.starters) if not task.done()} - {attempt.main}:
            kept = self._kept(left, attempt)
            for task in left - kept - cancelled:
                cancelled.add(task)
                task.cancel()
            if kept or self._finishes(left, attempt):
                until = None
            elif until is None:
                until = time.monotonic() + LONGEST_END
            elif time.monotonic() > until:
                return
            await asyncio.wait(left, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)

    def _finishes(self, left: set[asyncio.Task[Any]], attempt: Attempt) -> bool:
        """Whether a step that a cancel does not cut off is still in progress."""
        lines = [self._tasks.get(task) for task in left]
        return attempt.abort_reason is Abort.CANCELLED and any(
            line and line.calls for line in lines
        )

    def _kept(self, left: set[asyncio.Task[Any]], attempt: Attempt) -> set[asyncio.Task[Any]]:
        """Those inside a step, and those that have started them and may wait for them."""
        kept = set()
        why = attempt.abort_reason
        for task in left:
            line = self._tasks.get(task)
            if line is None or not line.calls:
                continue
            if why is not None and (why is not Abort.SHUTDOWN or attempt.insisted):
                continue  # a step that is shielded goes on when its task is cancelled
            up: asyncio.Task[Any] | None = task
            while up is not None and up not in kept:
                kept.add(up)
                up = self.starters.get(up)
        return kept


def of(attempt: Attempt) -> Lines:
    """The lines of a run; made when first asked for."""
    if attempt.lines is None:
        with _making:
            if attempt.lines is None:
                attempt.lines = Lines()
    return attempt.lines


def has_left(code: CodeType) -> bool:
    """Whether this thread has left the task's function: its frame is being taken down, and the
    late ``finally`` of a generator, or a ``__del__``, is all that still runs."""
    frame: FrameType | None = sys._getframe(1)
    below: FrameType | None = None
    while frame is not None:
        if frame.f_code is code:
            return False
        if frame.f_globals.get("__name__") == _RUNNER:
            return below is not None and _is_late(below.f_code)
        frame, below = frame.f_back, frame
    return False


def _is_late(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_GENERATOR) or code.co_name == "__del__"


def task_factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """Makes asyncio's own tasks, and writes down who has started one that belongs to a run."""
    made: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    attempt = current.get() if context is None else context.get(current)
    if attempt is not None and attempt.main is not None:
        of(attempt).starters[made] = asyncio.current_task()
    return made


def _ended_task(task: asyncio.Task[Any]) -> Callable[[], bool]:
    found = ref(task)

    def has_ended() -> bool:
        alive = found()
        return alive is None or alive.done()

    return has_ended


def _frames() -> Iterator[FrameType]:
    """All frames that are being run in any thread."""
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            yield frame
            frame = frame.f_back


def _root(frame: FrameType) -> FrameType:
    """The frame of the function that a thread was started with, or a pool has called in it."""
    root, up = frame, frame.f_back
    while up is not None and not _is_pool(up):
        root, up = up, up.f_back
    return root


def _is_pool(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(_POOLS)


def _ended_frame(ident: int, root: FrameType) -> Callable[[], bool]:
    def has_ended() -> bool:
        frame = sys._current_frames().get(ident)
        while frame is not None:
            if frame is root:
                return False
            frame = frame.f_back
        return True

    return has_ended
