"""One execution lived to its end, killed once at a chosen boundary, and judged from outside.

A *boundary* is a moment next to something that lasts: before and after each write to the journal,
before and after each effect. A killed run does nothing any more: each later boundary of it raises.
Its row is taken back as a rescue does, and the next run begins.

The world keeps what was really done, in order. The judge knows what the contract says of lines,
and nothing of how the package finds them: a shape names the line of each effect itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from psycopg.pq import TransactionStatus

from conductor_cli import Conductor
from conductor_cli.attempt import Abort, Attempt, current
from conductor_cli.catalog import TaskSet
from conductor_cli.database import Database
from conductor_cli.models import (
    Cancelled,
    Completed,
    Failed,
    HandedBack,
    Outcome,
    Retrying,
    Suspended,
)
from conductor_cli.runner import EventLoop, Runner
from conductor_cli.store import claims, endings, events
from conductor_cli.store import ledger as rows
from conductor_cli.store.claims import Requeued
from conductor_cli.store.endings import Leaving
from conductor_cli.task_transaction import TaskTransaction
from tests.support.store import claim, end, finish

if TYPE_CHECKING:
    import pytest

    from conductor_cli import Task
    from conductor_cli.models import Claimed

LONGEST: Final = 40  # runs


class Crash(BaseException):
    """The process is gone."""


class Broken(Exception):
    """An effect that failed; ``args`` tell which, and at which try."""


@dataclass
class World:
    """What has really happened, and what is yet to fail."""

    fails: dict[str, int] = field(default_factory=dict)  # name: the first so many tries
    log: list[tuple[Any, ...]] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)  # a line and the one that started it
    crash_at: int | None = None
    boundaries: int = 0
    run: int = 0
    dead: bool = False
    tries: dict[str, int] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def note(self, *what: Any) -> None:
        with self._lock:
            if not self.dead:
                self.log.append((self.run, *what))

    def boundary(self, what: str) -> None:
        with self._lock:
            if self.dead:
                raise Crash("dead already")
            here, self.boundaries = self.boundaries, self.boundaries + 1
            if here == self.crash_at:
                self.dead = True
                attempt = current.get()
                if attempt is not None:
                    attempt.signal.set(Abort.LOST)
                raise Crash(f"at {what}")

    def do(self, name: str, line: str = "main") -> str:
        """An effect: a step's function."""
        self.boundary(f"before {name}")
        with self._lock:
            tries = self.tries[name] = self.tries.get(name, 0) + 1
            self.note("effect", name, line)
            failing = tries <= self.fails.get(name, 0)
            if failing:
                self.note("failed", name, line)
        if failing:
            raise Broken(name, tries)
        self.boundary(f"after {name}")
        return f"{name}!"

    async def ado(self, name: str, line: str = "main") -> str:
        """The same, awaited."""
        return self.do(name, line)

    async def hang(self, name: str, line: str = "main") -> None:
        """An effect that only ends when it is cut off."""
        self.do(name, line)
        try:
            await asyncio.sleep(30)
        finally:
            self.note("failed", name, line)

    def caught(self, name: str, error: BaseException) -> None:
        """The code has caught a failure of a named call."""
        self.note("caught", name, type(error).__name__, error.args)

    def ended(self, line: str) -> None:
        """A line has ended."""
        self.note("ended", line)

    def start(self, line: str, by: str = "main") -> None:
        """A line begins."""
        self.lines[line] = by
        self.note("started", line)

    @property
    def stands(self) -> set[str]:
        """Names whose failure, or being cut off, the journal keeps."""
        return {entry[2] for entry in self.log if entry[1] == "wrote" and entry[3] in "fk"}


Shape = Callable[[Any, World], Any]


class Lives:
    """Lives executions on one database."""

    def __init__(self, database_url: str, patch: pytest.MonkeyPatch) -> None:
        self.conductor = Conductor.create(database_url)
        self.database: Database = self.conductor.database
        self.loop = EventLoop()
        self.world = World()
        self._uncommitted: list[tuple[str, str]] = []
        self._watch(patch)

    def close(self) -> None:
        self.loop.stop()
        self.conductor.close()

    def live(self, tasks: list[Task[..., Any]], world: World) -> tuple[Outcome, World]:
        """Live one execution of the first task to its end; its last outcome."""
        self.world = world
        runner = Runner(
            TaskSet(tasks), conductor=self.conductor, loop=self.loop, state=world, limit=100_000
        )
        id = self.conductor.invoke(tasks[0], {}, queue="q")
        names = [each.name for each in tasks]
        for _ in range(LONGEST):
            with self.database.connection() as conn:
                events.dispatch(conn, 100)
                self._come_due()
                claimed = claim(conn, uuid4(), queue="q", tasks=names, limit=1)
            assert claimed, f"nothing is left to run: {world.log}"
            outcome = self._run(runner, claimed[0])
            if claimed[0].id == id and isinstance(outcome, (Completed, Failed, Cancelled)):
                return outcome, world
        raise AssertionError(f"it does not end: {world.log}")

    def _run(self, runner: Runner, claimed: Claimed) -> Outcome | None:
        world, attempt = self.world, Attempt(claimed)
        world.run += 1
        outcome = runner.run(attempt)
        if not world.dead:
            with suppress(Crash):
                world.boundary(f"before its end {type(outcome).__name__}")
        if world.dead:
            self._rescue(claimed.id)
            world.dead = False
            return None
        world.note("end", type(outcome).__name__)
        self._apply(claimed, outcome)
        return outcome

    def _apply(self, claimed: Claimed, outcome: Outcome) -> None:
        with self.database.connection() as conn:
            match outcome:
                case Retrying() | HandedBack():
                    given = Requeued(claimed.id, claimed.token, outcome)
                    assert claims.requeue(conn, [given])
                case Suspended():
                    assert endings.suspend(conn, [Leaving(claimed.id, claimed.token, outcome)])
                case _:
                    assert finish(conn, end(claimed, outcome)).missing == []

    def _rescue(self, id: UUID) -> None:
        with self.database.connection() as conn:
            conn.execute(
                "update conductor.live set state = 'r', owner = null, token = null, "
                "run_at = conductor.now() where id = %s",
                [id],
            )

    def _come_due(self) -> None:
        with self.database.connection() as conn:
            conn.execute(
                "update conductor.ledger set until = conductor.now() - interval '1 second' "
                "where state = 'p' and until is not null"
            )
            conn.execute(
                "update conductor.live set state = 'r', run_at = conductor.now() "
                "where state = 's' or state = 'w' and run_at is not null"
            )

    def _wrote(self, names: list[tuple[str, str]]) -> None:
        for name, state in names:
            self.world.note("wrote", name, state)
        self.world.boundary(f"after writing {names}")

    def _watch(self, patch: pytest.MonkeyPatch) -> None:
        """A boundary before and after each write to a journal."""

        def watched(real: Any, told: Callable[[tuple[Any, ...]], list[tuple[str, str]]]) -> Any:
            def write(conn: Any, *args: Any, **options: Any) -> Any:
                names = told(args)
                self.world.boundary(f"before writing {names}")
                done = real(conn, *args, **options)
                if conn.info.transaction_status is TransactionStatus.IDLE:
                    self._wrote(names)
                else:  # with the task's own writes, by the commit to come
                    self._uncommitted = names
                return done

            return write

        def commit(loan: TaskTransaction) -> None:
            names, self._uncommitted = self._uncommitted, []
            try:
                self.world.boundary(f"before committing {names}")
            except Crash:
                loan.undo()
                raise
            committed(loan)
            self._wrote(names)

        committed = TaskTransaction.commit
        patch.setattr(TaskTransaction, "commit", commit)
        patch.setattr(
            rows, "record",
            watched(rows.record, lambda args: [(new.name, new.state) for new in args[2]]),
        )  # fmt: skip
        patch.setattr(
            rows, "adopt",
            watched(rows.adopt, lambda args: [(each.name, "p") for each in args[2].children]),
        )  # fmt: skip
        patch.setattr(events, "subscribe", watched(events.subscribe, lambda _: []))


def judge(world: World) -> None:
    """What the contract promises of any code, whatever it does with its failures."""
    written: dict[str, str] = {}
    ended: set[str] = set()
    opened: dict[str, str] = {}  # failures of this run, and their lines
    first_caught: dict[str, tuple[Any, ...]] = {}
    run = 0
    for entry in world.log:
        if entry[0] != run:
            run, ended, opened = entry[0], set(), {}
        match entry[1:]:
            case ("started", line):
                ended.discard(line)
            case ("ended", line):
                ended.add(line)
            case ("effect", name, line):
                assert written.get(name, "p") == "p", f"{name} is recorded and runs again: {entry}"
                late = [n for n, at in opened.items() if _heir(world, at, ended) == line]
                assert not late, f"{name} runs before {late} stand: {world.log}"
                opened.pop(name, None)
            case ("failed", name, line):
                opened[name] = line
            case ("wrote", name, state):
                assert written.get(name, "p") in ("p", state) or state == "k", entry
                written[name] = state
                if state != "c":
                    opened.pop(name, None)
            case ("caught", name, kind, args):
                if written.get(name) in ("f", "k") and name in first_caught:
                    assert (kind, args) == first_caught[name], f"{name} is raised unequal: {entry}"
                first_caught[name] = kind, args


def _heir(world: World, line: str, ended: set[str]) -> str:
    while line in ended and line in world.lines:
        line = world.lines[line]
    return line


@contextmanager
def lives(database_url: str, patch: pytest.MonkeyPatch) -> Iterator[Lives]:
    made = Lives(database_url, patch)
    try:
        yield made
    finally:
        made.close()
