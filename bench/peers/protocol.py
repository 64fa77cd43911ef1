"""What an adapter process speaks: one JSON object per line, commands in, events out.

An adapter is started with the database's URL as its only argument and says

    {"event": "hello", "versions": "..."}

Then it answers each command, in order, with `{"event": "done", ...}`, or
`{"event": "failed", "message": ...}`:

    {"do": "setup"}                                            install the peer's schema
    {"do": "enqueue_many", "task": T, "count": N, "size": B}   -> count, seconds, cpu (seconds)
    {"do": "enqueue_for", "task": T, "seconds": S}             one by one -> count, seconds, cpu
    {"do": "enqueue_paced", "tasks": [T, ...], "count": N, "pauses": [S, ...]}
                              tasks and pauses in turn         -> sent: when each call began, ns
    {"do": "enqueue_later", "task": T, "count": N, "seconds": S}   due S from now (if it `can`)
    {"do": "transact_for", "task": T | null, "seconds": S}     one by one, each in a transaction of
                              the caller's that also inserts an order (if it `can`) -> as above
    {"do": "work", "settings": "default" | "tuned", "count": N}  serve all tasks until "stop"
    {"do": "stop"}                                             -> ran, stamps: [[n, ns], ...]

End of input ends it. A working one also says, unasked,

    {"event": "first", "at": ns}     the first task body starts
    {"event": "ran", "at": ns}       the N-th task body has ended

All moments are CLOCK_MONOTONIC in nanoseconds, which processes of one machine share. The tasks
are `noop`, `sleep` (1 ms), `cpu` (100 µs of the thread's CPU time), `stamp` (notes `n` and the
moment) and `hold` (the same, then sleeps 10 ms); of durable peers also `steps` (STEPS steps, one
after the other, each returns its number) and `children` (starts CHILDREN children that return
their number, and ends when all have); a payload is `{"n": 17, "to":
"user-17@example.org"}`, made longer to `size` bytes of JSON if asked. This file is the Python
side, with nothing but the standard library, for peers' environments have nothing else in common;
`protocol.mjs` is the other one. Standard output is taken away from the peer's code, which may
like to print.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import threading
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Payload = dict[str, Any]

HOLD: Final = 0.01  # seconds that a `hold` sleeps
STEPS: Final = 5  # of one `steps`
CHILDREN: Final = 10  # of one `children`
INSERT_ORDER: Final = "insert into bench_orders (note) values ('one order')"
_READ_LIMIT: Final = 2**20  # bytes of one command


class Adapter(Protocol):
    """The narrow side that each Python peer implements. What is blocking may block."""

    versions: str

    async def setup(self) -> None:
        """Install the peer's schema into an empty database."""

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        """Enqueue all, durably, in the fastest way that the peer documents."""

    async def enqueue(self, task: str, payload: Payload) -> None:
        """Enqueue one, durably, in a transaction of its own."""

    async def start(self, settings: str, bodies: Bodies) -> None:
        """Begin to work in the background, calling `bodies`; return when that is under way."""

    async def stop(self) -> None:
        """Stop working, gracefully."""


class Later(Protocol):
    """What an adapter has besides when its peer can put off executions."""

    async def enqueue_later(self, task: str, payloads: list[Payload], seconds: float) -> None:
        """As `enqueue_many`, but due only `seconds` from now."""


class Transacting(Protocol):
    """What an adapter has besides when its peer can enqueue in a transaction of the caller's."""

    async def transact(self, task: str | None, payload: Payload) -> None:
        """One transaction on a connection of the caller's: INSERT_ORDER, then enqueue `task`."""


class Bodies:
    """The task bodies, and what the harness wants to know of them. Thread-safe.

    Async peers call `note`, `begin` and `end` around their own sleep; others `noop` and so on.
    """

    def __init__(self, emit: Callable[..., None], count: int | None) -> None:
        self._emit = emit
        self._last = count
        self._next_end = itertools.count(1).__next__  # one step even with threads
        self._lock = threading.Lock()
        self._begun = False
        self.stamps: list[tuple[int, int]] = []

    def noop(self) -> None:
        self.begin()
        self.end()

    def sleep(self) -> None:
        self.begin()
        time.sleep(0.001)
        self.end()

    def cpu(self) -> None:
        self.begin()
        until = time.thread_time_ns() + 100_000
        while time.thread_time_ns() < until:
            pass
        self.end()

    def stamp(self, n: int) -> None:
        self.note(n)
        self.begin()
        self.end()

    def hold(self, n: int) -> None:
        self.note(n)
        self.begin()
        time.sleep(HOLD)
        self.end()

    def note(self, n: int) -> None:
        self.stamps.append((n, time.monotonic_ns()))

    def begin(self) -> None:
        if not self._begun:
            with self._lock:
                if not self._begun:
                    self._emit("first", at=time.monotonic_ns())
                    self._begun = True

    def end(self) -> None:
        ended = self._next_end()
        if ended == self._last:
            self._emit("ran", at=time.monotonic_ns())

    def count(self) -> int:
        """How many bodies have ended. Only once no more can end."""
        return self._next_end() - 1


def echo(number: int) -> int:
    """What a step does."""
    return number


def url() -> str:
    """The database's URL."""
    return sys.argv[1]


def serve(
    adapter: Adapter, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    """Speak the protocol until standard input ends; then end the process, whatever still runs."""
    server = _Server(adapter)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.get_loop().run_until_complete(server.run())
        os._exit(0)


class _Server:
    def __init__(self, adapter: Adapter) -> None:
        self._adapter: Any = adapter  # may also be Later, Transacting
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._writing = threading.Lock()
        self._bodies: Bodies | None = None

    async def run(self) -> None:
        python = ".".join(map(str, sys.version_info[:3]))
        self._emit("hello", versions=f"{self._adapter.versions}, Python {python}")
        commands = asyncio.StreamReader(limit=_READ_LIMIT)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        while line := await commands.readline():
            command = json.loads(line)
            handler: Callable[..., Awaitable[dict[str, Any] | None]]
            handler = getattr(self, "_" + command.pop("do"))
            try:
                self._emit("done", **(await handler(**command) or {}))
            except Exception as error:
                traceback.print_exc()
                self._emit("failed", message=f"{type(error).__name__}: {error}")

    async def _setup(self) -> None:
        await self._adapter.setup()

    async def _enqueue_many(self, task: str, count: int, size: int = 0) -> dict[str, Any]:
        payloads = _payloads(count, size)
        began, cpu = time.monotonic_ns(), time.process_time_ns()
        await self._adapter.enqueue_many(task, payloads)
        return _spent(count, began, cpu)

    async def _enqueue_later(self, task: str, count: int, seconds: float) -> dict[str, Any]:
        payloads = _payloads(count)
        began, cpu = time.monotonic_ns(), time.process_time_ns()
        await self._adapter.enqueue_later(task, payloads, seconds)
        return _spent(count, began, cpu)

    async def _enqueue_for(self, task: str, seconds: float) -> dict[str, Any]:
        return await _repeat(partial(self._adapter.enqueue, task), seconds)

    async def _transact_for(self, task: str | None, seconds: float) -> dict[str, Any]:
        return await _repeat(partial(self._adapter.transact, task), seconds)

    async def _enqueue_paced(
        self, tasks: list[str], count: int, pauses: list[float]
    ) -> dict[str, Any]:
        """Keeps to the time-table: what comes too late is followed by the next at once."""
        sent = []
        due = time.monotonic()
        for number in range(count):
            due += pauses[number % len(pauses)]
            await asyncio.sleep(max(due - time.monotonic(), 0))
            payload = _payload(number)
            sent.append(time.monotonic_ns())
            await self._adapter.enqueue(tasks[number % len(tasks)], payload)
        return {"sent": sent}

    async def _work(self, settings: str, count: int | None = None) -> None:
        self._bodies = Bodies(self._emit, count)
        await self._adapter.start(settings, self._bodies)

    async def _stop(self) -> dict[str, Any]:
        assert self._bodies is not None
        await self._adapter.stop()
        return {"ran": self._bodies.count(), "stamps": self._bodies.stamps}

    def _emit(self, event: str, **values: object) -> None:
        with self._writing:
            self._out.write(json.dumps({"event": event, **values}) + "\n")


def _payload(n: int) -> Payload:
    return {"n": n, "to": f"user-{n}@example.org"}


def _payloads(count: int, size: int = 0) -> list[Payload]:
    """Of at least `size` bytes of JSON each, padded with what hardly can be compressed."""
    payloads = [_payload(n) for n in range(count)]
    if size:
        filler = random.Random(7).randbytes(size // 2 + 1).hex()
        for payload in payloads:
            payload["to"] += filler[: max(size - len(json.dumps(payload)), 0)]
    return payloads


async def _repeat(call: Callable[[Payload], Awaitable[None]], seconds: float) -> dict[str, Any]:
    count = 0
    began, cpu = time.monotonic_ns(), time.process_time_ns()
    until = began + seconds * 1e9
    while time.monotonic_ns() < until:
        await call(_payload(count))
        count += 1
    return _spent(count, began, cpu)


def _spent(count: int, began: int, cpu: int) -> dict[str, Any]:
    return {
        "count": count,
        "seconds": (time.monotonic_ns() - began) / 1e9,
        "cpu": (time.process_time_ns() - cpu) / 1e9,
    }
