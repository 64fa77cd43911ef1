"""What was seen from outside: by task bodies, by the client, by whoever injects the faults.

One file a scenario, one JSON object a line, each added by a single O_APPEND write, so that
neither a kill nor another writer can tear or lose it. Moments are of the monotonic clock, which
all processes of one machine share and which no scenario moves.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

NEVER: Final = float("inf")


@dataclass(slots=True)
class Run:
    """One time that a task's body was entered. ``end`` is None when it never left it."""

    id: UUID
    task: str
    claim: int
    pid: int
    run: str
    start: float
    end: float | None = None
    returned: bool = False
    tick: str | None = None


@dataclass(frozen=True, slots=True)
class Invoke:
    """What the client knows of one invocation: ``ok``, ``failed`` (surely not committed) or
    ``unknown`` (the reply was lost)."""

    id: UUID
    fate: str
    at: float


@dataclass(frozen=True, slots=True)
class Fault:
    """What may excuse a second run: ``kill``, ``stall``, ``outage``, ``timeout``.

    Of the process ``pid``, or of all when that is None, from ``since`` to ``until``.
    """

    what: str
    pid: int | None
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class StepRun:
    """A step's function was entered (``entered``) or its value had been recorded (``recorded``)."""

    id: UUID
    step: str
    what: str
    at: float


@dataclass(frozen=True, slots=True)
class Row:
    """An execution as the database has it at the end."""

    id: UUID
    task: str
    state: str
    claim: int
    failures: int
    crashes: int
    result: Any
    error: str | None
    tick: str | None


@dataclass(slots=True)
class Evidence:
    """Everything the checker judges by."""

    runs: list[Run] = field(default_factory=list)
    invokes: list[Invoke] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    steps: list[StepRun] = field(default_factory=list)
    exits: dict[int, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    until: float = NEVER

    def runs_of(self, ids: Iterable[UUID]) -> list[Run]:
        wanted = set(ids)
        return [run for run in self.runs if run.id in wanted]


class Notebook:
    """The file. ``note`` may be called by any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        path.chmod(0o666)

    def note(self, kind: str, **fields: object) -> None:
        write(self.path, {"kind": kind, "at": time.monotonic(), **fields})

    def read(self) -> Evidence:
        """What stands in it now; the rows are the database's and not in it. A last line that is
        still being written is left for the next time."""
        evidence = Evidence()
        open_runs: dict[str, Run] = {}
        for line in self.path.read_text().split("\n")[:-1]:
            _READERS[(entry := json.loads(line))["kind"]](evidence, open_runs, entry)
        return evidence


def write(path: Path | str, entry: dict[str, object]) -> None:
    """Add one line in one write."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, json.dumps(entry, default=str).encode() + b"\n")
    finally:
        os.close(file)


def _start(evidence: Evidence, runs: dict[str, Run], e: dict[str, Any]) -> None:
    run = Run(UUID(e["id"]), e["task"], e["claim"], e["pid"], e["run"], e["at"], tick=e["tick"])
    runs[run.run] = run
    evidence.runs.append(run)


def _end(evidence: Evidence, runs: dict[str, Run], e: dict[str, Any]) -> None:
    run = runs[e["run"]]
    run.end, run.returned = e["at"], e["returned"]


def _invoke(evidence: Evidence, runs: dict[str, Run], e: dict[str, Any]) -> None:
    evidence.invokes.append(Invoke(UUID(e["id"]), e["fate"], e["at"]))


def _fault(evidence: Evidence, runs: dict[str, Run], e: dict[str, Any]) -> None:
    evidence.faults.append(Fault(e["what"], e["pid"], e["since"], e["until"]))


def _step(evidence: Evidence, runs: dict[str, Run], e: dict[str, Any]) -> None:
    evidence.steps.append(StepRun(UUID(e["id"]), e["step"], e["what"], e["at"]))


def _exit(evidence: Evidence, runs: dict[str, Run], e: dict[str, Any]) -> None:
    evidence.exits[e["pid"]] = e["at"]


_READERS: Final = {
    "start": _start,
    "end": _end,
    "invoke": _invoke,
    "fault": _fault,
    "step": _step,
    "exit": _exit,
}


def first_starts(runs: Sequence[Run], after: float) -> dict[UUID, float]:
    """When each execution was first started after a moment."""
    found: dict[UUID, float] = {}
    for run in runs:
        if run.start > after:
            found[run.id] = min(run.start, found.get(run.id, NEVER))
    return found
