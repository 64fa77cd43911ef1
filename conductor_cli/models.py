"""What the rooms hand to each other: executions, claims, outcomes.

The states of an execution, as everyone outside sees them::

    -         -> pending    invoked, or its schedule ticked
    pending   -> running    due and claimed: a new claim token, runs + 1
    running   -> completed  the task returned
    running   -> failed     it raised or timed out and its failures reached max_attempts,
                            or it took its process down more than max_crashes times
    running   -> pending    retry, sleep, release at shutdown, rescue
    running   -> waiting    for a child, an execution or an event
    waiting   -> pending    what it waited for has come, or its deadline has
    pending, waiting, running
              -> cancelled  cancel (a running one: when it ends, however it ends)
    failed, cancelled
              -> pending    retry by an operator

In the database a pending execution is ``r`` ready, ``s`` scheduled or ``b`` blocked; a waiting
one is ``w``, a running one ``x``; ended ones are ``c`` completed, ``f`` failed, ``k`` cancelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

NAME_PATTERN: Final = r"[A-Za-z0-9_.:-]{1,200}"


class State(StrEnum):
    """Where an execution stands; a blocked, retrying or scheduled one is pending."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        return self in (State.COMPLETED, State.FAILED, State.CANCELLED)


class Flag(IntFlag):
    """What a finishing statement must know about a row beyond the plain case."""

    CANCEL_ASKED = 1
    HAS_LEDGER = 2  # rows in the ledger
    AWAITED = 4  # a row of some ledger is to be told how it ends
    WATCHED = 8  # somebody waits for its end: tell them
    HAS_LOG = 16  # rows in attempts or progress
    SLEEPS = 32
    RETRIES_A_STEP = 64


@dataclass(frozen=True, slots=True)
class ExecutionError:
    """Why an execution failed or was cancelled; texts are cut and free of NUL."""

    type: str
    message: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution as it stood when it was read.

    ``attempt`` is ``failures`` + 1: the attempt that is under way or comes next; of an ended
    execution the attempt that ended it. ``runs`` counts claims; a hand-back at shutdown takes
    its own back. ``failures`` are attempts that raised or timed out, ``crashes`` runs that were
    lost with their process. ``cancel_requested``: it still runs and was asked to stop. Moments
    are UTC.
    """

    id: UUID
    task: str
    queue: str
    state: State
    payload: Any
    result: Any
    error: ExecutionError | None
    attempt: int
    failures: int
    crashes: int
    priority: int
    run_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    parent_id: UUID | None
    progress: Any
    metadata: Mapping[str, Any] | None
    group: str | None
    runs: int
    cancel_requested: bool
    dedupe_key: str | None


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """An execution this process holds: its token fences every write about it.

    JSON columns are still text. ``rank``, ``run_at`` and ``seq`` are its place in the queue.
    """

    id: UUID
    token: int
    task: str
    payload: str
    runs: int
    failures: int
    crashes: int
    timeout: float | None
    metadata: str | None
    event: str | None
    rank: int
    run_at: datetime
    seq: int
    flags: int

    @property
    def attempt(self) -> int:
        """Which attempt this run belongs to, from 1."""
        return self.failures + 1


def is_suspect(crashes: int, max_crashes: int) -> bool:
    """Whether an execution has been lost with its process so often that it may be the cause.

    Once happens to everything that runs in a process that is killed. (RESCUE says the same.)
    """
    return crashes >= max(1, min(2, max_crashes))


class Completed(msgspec.Struct, frozen=True, gc=False):
    """The task returned; ``result`` is JSON text."""

    result: str


class Failed(msgspec.Struct, frozen=True, gc=False):
    """The attempt failed and there is no other."""

    error: ExecutionError


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """The task cancelled itself, or obeyed when asked to."""

    reason: str | None


class Retrying(msgspec.Struct, frozen=True, gc=False):
    """The attempt ended and there is another after ``delay`` seconds.

    ``counts`` says whether it was a failure; a snooze is not.
    """

    delay: float
    error: ExecutionError | None
    counts: bool


class HandedBack(msgspec.Struct, frozen=True, gc=False):
    """This process cannot run it (now): pending again after ``delay`` seconds, this run
    not counted."""

    delay: float


class Park(StrEnum):
    """What a suspended execution stays for: a moment, the next try of a step, or an event."""

    SLEEPS = "z"
    RETRIES = "r"
    WAITS = "w"


class Suspended(msgspec.Struct, frozen=True, gc=False):
    """The attempt left its thread until something comes; that is no failure.

    ``name``: of what it stays for; ``until``: the moment it goes on at the latest, None: never
    by itself; ``wakes``: how often it had been woken when it last looked.
    """

    name: str
    park: Park
    until: datetime | None
    wakes: int


Outcome = Completed | Failed | Cancelled | Retrying | HandedBack | Suspended


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What the database knows of a task served in a queue. Durations in seconds, None: for ever."""

    queue: str
    name: str
    home: bool
    priority: int
    max_attempts: int
    max_crashes: int
    retain_completed: float | None
    retain_failed: float | None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """A schedule as it is stored; its key is (task, name).

    ``declared``: by a trigger of its task; the others were made at run time.
    """

    task: str
    name: str
    queue: str
    expression: str
    timezone: str
    missed: str
    payload: str
    declared: bool = True


@dataclass(frozen=True, slots=True)
class TriggerSpec:
    """An event trigger as it is stored; JSON is text, no payload: the event's own."""

    task: str
    queue: str
    place: int
    event: str
    payload: str | None
    exact: str
    tests: str


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What a drain did and what it left. ``elapsed`` in seconds.

    ``failures`` holds the first hundred executions that ended failed.
    """

    completed: int
    failed: int
    cancelled: int
    left_retrying: int
    left_scheduled: int
    left_waiting: int
    left_blocked: int
    left_unserved: int
    timed_out: bool
    elapsed: float
    failures: tuple[Execution, ...]
