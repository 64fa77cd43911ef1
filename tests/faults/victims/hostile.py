"""Tasks that mean harm, each in its own way."""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from notes import body, wait_for

from conductor_cli import Context, task

EXPLODES = r"(a+)+$"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words for it")

    __repr__ = __str__


class Unknown(BaseException):
    """Of a kind that nobody expects."""


def _raise(error: BaseException) -> NoReturn:
    raise error


def _cycle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def _deep() -> list[Any]:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    return nest


def _forking() -> str:
    """A child that goes its own way and ends."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "forked"


def _leaking() -> str:
    """Threads that never end."""
    for _ in range(50):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return "leaked"


def _handlers() -> str:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # refused outside of the main thread
    return "changed"


def _excepthooks() -> str:
    sys.excepthook = threading.excepthook = lambda *_: _raise(Unknown())
    sys.stdout = sys.stderr = None  # type: ignore[assignment]
    return "gone"


# What an attempt of each kind should end with: completed, or failed with this type of error.
VALUES: dict[str, Callable[[], Any]] = {
    "raises": lambda: _raise(ValueError("broken")),
    "exits": lambda: sys.exit(3),
    "interrupts": lambda: _raise(KeyboardInterrupt()),
    "unknown": lambda: _raise(Unknown()),
    "generator": lambda: _raise(GeneratorExit()),
    "unprintable": lambda: _raise(Unprintable()),
    "group": lambda: _raise(BaseExceptionGroup("two", [Unknown(), Unprintable()])),
    "nan": lambda: float("nan"),
    "infinity": lambda: {"deep": [float("inf")]},
    "set": lambda: {1, "a"},
    "object": object,
    "cycle": _cycle,
    "deep": _deep,
    "nul": lambda: "a\x00b",
    "surrogate": lambda: "\ud800",
    "huge": lambda: "x" * 100_000_000,
    "huge number": lambda: 10**5000,
    "recursion": lambda: _recurse(0),
    "memory": lambda: _raise(MemoryError()),
    "forks": _forking,
    "leaks": _leaking,
    "handlers": _handlers,
    "hooks": _excepthooks,
}


def _recurse(n: int) -> int:
    return _recurse(n + 1) + 1


@task(max_attempts=1)
def value(ctx: Context, kind: str) -> Any:
    """Ends in a hostile way; the process can survive it."""
    with body(ctx, "value"):
        return VALUES[kind]()


def _close_files() -> str:
    os.closerange(3, 4096)
    return "closed"


def _ignore_term() -> str:
    ctypes.CDLL(None).signal(signal.SIGTERM, 1)  # SIG_IGN, behind Python's back
    return "ignored"


DEADLY: dict[str, Callable[[], Any]] = {
    "os._exit": lambda: os._exit(9),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


@task(max_attempts=3, max_crashes=3)
def deadly(ctx: Context, kind: str) -> Any:
    """Takes its process down each time."""
    with body(ctx, "deadly"):
        return DEADLY[kind]()


@task
def closes(ctx: Context) -> str:
    """Closes every file of its process, once."""
    with body(ctx, "closes") as run:
        if ctx.runs == 1:
            _close_files()
        return run


@task
def ignores(ctx: Context) -> str:
    with body(ctx, "ignores") as run:
        _ignore_term()
        return run


@task(max_attempts=1, timeout=0.5)
def loops(ctx: Context, kind: str) -> None:
    """Never returns by itself: in Python, in a system call, or holding the interpreter's lock."""
    with body(ctx, "loops"):
        if kind == "python":
            while True:
                pass
        elif kind == "sleep":
            time.sleep(3600)
        elif kind == "catches":
            _catch_everything()
        elif kind == "waits":
            threading.Event().wait()


def _catch_everything() -> NoReturn:
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            continue


@task(max_crashes=50)
def greedy(ctx: Context, kind: str, seconds: float) -> str:
    """Holds the interpreter's lock, once: no other thread of its process runs meanwhile."""
    with body(ctx, "greedy") as run:
        if ctx.runs > 1:
            return run
        if kind == "regex":
            _long_regex(seconds)
        else:
            ctypes.PyDLL(None).sleep(int(seconds))
        return run


def _long_regex(seconds: float) -> None:
    """A match that takes at least so long: each further letter takes it twice as long."""
    letters = 20
    began = time.monotonic()
    re.match(EXPLODES, "a" * letters + "b")
    took = time.monotonic() - began
    letters += math.ceil(math.log2(seconds / took))
    re.match(EXPLODES, "a" * letters + "b")


@task(max_crashes=50)
def neighbour(ctx: Context, name: str) -> str:
    """Means no harm, and runs beside."""
    with body(ctx, "neighbour") as run:
        wait_for(ctx, name, 120.0)
        return run
