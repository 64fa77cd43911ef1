"""The one judge: counts in the evidence what may not be, and what may be but is to be told.

Lost
    An invoke that succeeded and is in no table, or has not ended when all should have; and a tick
    that became an execution and did not end.
Ghost
    A run, or a row, of an invoke that failed or was rolled back; or of one that nobody made.
Double
    More than one recorded end of an execution.
Late
    A recorded result that is not of the last claim: who had been replaced was believed.
Invented
    A recorded result that no body returned.
Overlap
    Two bodies of one execution at the same time. Allowed after a fault that hit the first one
    (crash, stall, lost connection, timeout) before the second began; forbidden otherwise.
Step re-run
    A step's function entered after its value had been recorded.
Tick
    Each moment of a schedule between the first and the last makes one execution.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from tests.faults.evidence import NEVER, Evidence, Fault, Run

ENDED = ("completed", "failed", "cancelled")


@dataclass(slots=True)
class Count:
    """What was found. ``violations`` says each in a sentence, at most some of a kind."""

    executions: int = 0
    runs: int = 0
    lost: int = 0
    ghosts: int = 0
    double: int = 0
    late: int = 0
    invented: int = 0
    overlaps_allowed: int = 0
    overlaps_forbidden: int = 0
    ticks: int = 0
    ticks_missing: int = 0
    ticks_extra: int = 0
    step_reruns: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.violations

    def blame(self, kind: str, who: Iterable[object]) -> int:
        found = list(who)
        if found:
            shown = ", ".join(map(str, found[:3])) + (", ..." if len(found) > 3 else "")
            self.violations.append(f"{len(found)} {kind}: {shown}")
        return len(found)


def check(evidence: Evidence, *, every: timedelta | None = None, settled: bool = True) -> Count:
    """Count. ``every``: the spacing of the ticks, when there is a schedule; ``settled``: all work
    should have ended by now."""
    count = Count(executions=len(evidence.rows), runs=len(evidence.runs))
    rows = {row.id: row for row in evidence.rows}
    count.lost = count.blame("lost", _lost(evidence, settled))
    count.ghosts = count.blame("ghosts", _ghosts(evidence))
    ends = Counter(row.id for row in evidence.rows if row.state in ENDED)
    count.double = count.blame("double results", [id for id, times in ends.items() if times > 1])
    runs = {run.run: run for run in evidence.runs}
    results = [row for row in rows.values() if row.state == "completed" and _is_run(row.result)]
    count.invented = count.blame(
        "results that nobody returned",
        [r.id for r in results if r.result not in runs or not runs[r.result].returned],
    )
    count.late = count.blame(
        "results of a claim that had been replaced",
        [r.id for r in results if r.result in runs and runs[r.result].claim != r.claim],
    )
    _overlaps(evidence, count)
    count.step_reruns = count.blame("recorded steps that ran again", _step_reruns(evidence))
    if every is not None:
        _ticks(evidence, every, count)
    return count


def _is_run(result: object) -> bool:
    return isinstance(result, str) and result.startswith("run-")


def _lost(evidence: Evidence, settled: bool) -> list[UUID]:
    states: dict[UUID, set[str]] = defaultdict(set)
    for row in evidence.rows:
        states[row.id].add(row.state)
    made = {i.id for i in evidence.invokes if i.fate == "ok"}
    lost = [id for id in made if id not in states]
    if settled:
        lost += [id for id, found in states.items() if not found.intersection(ENDED)]
    return lost


def _ghosts(evidence: Evidence) -> list[UUID]:
    failed = {i.id for i in evidence.invokes if i.fate == "failed"}
    known = {i.id for i in evidence.invokes}
    ran = {run.id for run in evidence.runs if run.tick is None}
    there = {row.id for row in evidence.rows if row.tick is None}
    return sorted(failed & (ran | there) | (ran | there) - known)


def _overlaps(evidence: Evidence, count: Count) -> None:
    by_id: dict[UUID, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        by_id[run.id].append(run)
    forbidden = []
    for id, runs in by_id.items():
        runs.sort(key=lambda run: run.start)
        for n, first in enumerate(runs):
            for second in runs[n + 1 :]:
                if second.start >= _end_of(first, evidence):
                    continue
                if any(_excuses(fault, first, second) for fault in evidence.faults):
                    count.overlaps_allowed += 1
                else:
                    forbidden.append(id)
    count.overlaps_forbidden = count.blame("forbidden overlaps", forbidden)


def _end_of(run: Run, evidence: Evidence) -> float:
    """A body ends when it is left, or with its process."""
    return min(NEVER if run.end is None else run.end, evidence.exits.get(run.pid, NEVER))


def _excuses(fault: Fault, first: Run, second: Run) -> bool:
    """It hit the first while it ran, and before the second began."""
    mine = fault.pid is None or fault.pid == first.pid
    return mine and fault.until >= first.start and fault.since <= second.start


def _step_reruns(evidence: Evidence) -> list[str]:
    recorded: dict[tuple[UUID, str], float] = {}
    for each in evidence.steps:
        if each.what == "recorded":
            key = each.id, each.step
            recorded[key] = min(each.at, recorded.get(key, NEVER))
    return [
        f"{each.step} of {each.id}"
        for each in evidence.steps
        if each.what == "entered" and each.at > recorded.get((each.id, each.step), NEVER)
    ]


def _ticks(evidence: Evidence, every: timedelta, count: Count) -> None:
    ids: dict[datetime, set[UUID]] = defaultdict(set)
    for row in evidence.rows:
        if row.tick is not None:
            ids[datetime.fromisoformat(row.tick)].add(row.id)
    for run in evidence.runs:
        if run.tick is not None:
            ids[datetime.fromisoformat(run.tick)].add(run.id)
    count.ticks = len(ids)
    extra = [moment for moment, made in ids.items() for _ in range(len(made) - 1)]
    count.ticks_extra = count.blame("ticks that were made twice", extra)
    missing = []
    if ids:
        moment = min(ids)
        while (moment := moment + every) < max(ids):
            if moment not in ids:
                missing.append(moment)
    else:
        missing.append("all of them")
    count.ticks_missing = count.blame("ticks that were not made", missing)
