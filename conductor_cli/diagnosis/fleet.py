"""Servers, their leader, and work that does not get done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from conductor_cli import timing
from conductor_cli.diagnosis.finding import duration, error, ok, some, warning
from conductor_cli.errors import TaskDefinitionError
from conductor_cli.store import definitions, reports
from conductor_cli.store import diagnosis as store
from conductor_cli.store import events as store_events
from conductor_cli.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.diagnosis.finding import Findings, Patient
    from conductor_cli.store.diagnosis import ScheduleFacts
    from conductor_cli.store.reports import ServerReport

LATE: Final = 60.0  # seconds after which a tick that was not made is no longer merely late
WAITING_LONG: Final = 300.0  # seconds that ready work may wait where it is served
UNDISPATCHED: Final = 60.0  # seconds after which an event should have been dispatched
REGISTERING: Final = 60.0  # seconds a server may take from registering its tasks to being alive


def servers(patient: Patient) -> Findings:
    """Who runs, who has fallen silent, and what they left behind."""
    found = reports.servers(patient.conn)
    alive, silent = _parted(found)
    held = store.orphans(patient.conn)
    for each in silent:
        yield warning(
            "servers", f"{_name(each)} has been silent for {duration(each.last_beat_seconds)} and "
            f"holds {each.running} executions.",
            "Any living server takes them back at once: start one."
            if not alive else "If this stays, look for service.died in the logs of the others.",
        )  # fmt: skip
    if held:
        yield warning(
            "servers", f"{held} executions are held by servers that are not there any more.",
            "A living server takes them back within a minute."
            if alive else "Start a server: it takes them back.",
        )  # fmt: skip
    if alive:
        yield ok("servers", f"{len(alive)} alive: {some([_name(each) for each in alive])}.")
    elif not silent and not held:
        yield ok("servers", "None runs: start one with `conductor start-server`.")


def versions(patient: Patient) -> Findings:
    """Living servers of another version than this program's."""
    alive, _ = _parted(reports.servers(patient.conn))
    strange = [f"{_name(each)}: {each.version}" for each in alive if each.version != __version__]
    if strange:
        yield warning(
            "versions", f"This program is {__version__}; others are not: {some(strange)}.",
            "Versions may run side by side during a deploy; then bring all to one.",
        )  # fmt: skip
    else:
        yield ok("versions", f"Nobody runs another version than {__version__}.")


def leader(patient: Patient) -> Findings:
    """Where servers are, one has to lead: schedules tick and history is pruned by it."""
    alive, _ = _parted(reports.servers(patient.conn))
    working = [each for each in alive if each.queues]
    timeout = patient.config.coordinator.heartbeat_timeout
    renewed = store.lease(patient.conn)
    if renewed is not None and renewed <= timeout:
        name = next((_name(each) for each in alive if each.leader), "a server")
        yield ok("leader", f"{name} leads; renewed {duration(max(0.0, renewed))} ago.")
    elif not working:
        yield ok("leader", "None, since no server works.")
    elif _age(patient, working) < 2 * timeout:
        yield ok("leader", "None yet: the servers have only just started.")
    else:
        last = "there is none" if renewed is None else f"the last renewed {duration(renewed)} ago"
        yield error(
            "leader", f"{len(working)} servers work and none leads ({last}): no schedule ticks.",
            "A server takes an expired lease with its next heartbeat: look for database.lost and "
            "heartbeat.late in their logs. (`conductor drain` never leads.)",
        )  # fmt: skip


def schedules(patient: Patient) -> Findings:
    """Schedules that should have ticked, never will, or that nobody understands."""
    found = store.schedules(patient.conn)
    alive, _ = _parted(reports.servers(patient.conn))
    stuck = [each for each in found if each.late is not None and each.late > LATE]
    if stuck:
        worst = max(stuck, key=lambda each: each.late or 0.0)
        make = error if alive else warning
        yield make(
            "schedules", f"{some(_names(stuck))} should have ticked, the longest "
            f"{duration(worst.late or 0.0)} ago.",
            "See the finding on the leader; look for schedule.refused in its log."
            if alive else "Start a server: it makes up for them as each schedule's policy says.",
        )  # fmt: skip
    strange = [(each, why) for each in found if (why := _misunderstood(each))]
    for each, why in strange:
        yield error(
            "schedules", f"{_names([each])[0]} is not understood here: {why}",
            "It was registered by another version: bring all servers to one, or remove it.",
        )  # fmt: skip
    ended = [each for each in found if each.late is None]
    if ended:
        yield warning(
            "schedules", f"{some(_names(ended))} will never tick again.",
            "Correct its expression, or remove the trigger.",
        )  # fmt: skip
    if not (stuck or strange or ended):
        yield ok("schedules", f"{len(found)}, none of them late.")


def events(patient: Patient) -> Findings:
    """Events that nobody has dispatched, and those that were given up."""
    found = store_events.stuck(patient.conn, UNDISPATCHED)
    for each in found:
        why = f" Last error: {' '.join(each.error.split())[:300]}" if each.error else ""
        yield error(
            "events", f"{each.count} events {each.name!r} are not dispatched, the oldest since "
            f"{duration(each.oldest_seconds)}; {each.dead} were given up.{why}",
            "An event that was given up stays in conductor.events: delete the row, or set dead = "
            "false to try it again. Without an error: does a server run? See its log.",
        )  # fmt: skip
    if not found:
        yield ok("events", "All are dispatched.")


def unserved(patient: Patient) -> Findings:
    """Work that is due and that no living server would take."""
    found = store.unserved(patient.conn, REGISTERING)
    for each in found:
        yield error(
            "unserved", f"{each.count} of task {each.task!r} wait in queue {each.queue!r}, the "
            f"oldest for {duration(each.oldest_seconds)}, and no living server serves it.",
            f"Start a server of that queue whose modules have the task ({each.task})."
            if each.known else
            "Nobody has ever registered that task in that queue: is the name right? Start a server "
            "that has it, or cancel them: conductor executions cancel --task " + each.task + ".",
        )  # fmt: skip
    if not found:
        yield ok("unserved", "All that is due is somebody's.")


def waiting(patient: Patient) -> Findings:
    """Work that is served and waits all the same."""
    orphaned = {each.queue for each in store.unserved(patient.conn, REGISTERING)}
    found = reports.queues(patient.conn)
    slow = [
        each
        for each in found
        if not each.paused
        and each.queue not in orphaned
        and (each.oldest_ready_seconds or 0.0) > WAITING_LONG
    ]
    paused = [each for each in found if each.paused and each.ready]
    for each in paused:
        yield warning(
            "waiting", f"Queue {each.queue!r} is paused, and {each.ready} are ready in it.",
            f"If that is no longer wanted: conductor queues resume {each.queue}.",
        )  # fmt: skip
    for each in slow:
        yield warning(
            "waiting", f"Queue {each.queue!r}: {each.ready} are ready, {each.running} run, and the "
            f"oldest has waited {duration(each.oldest_ready_seconds or 0.0)}.",
            "Add servers or raise worker.concurrency; do tasks wait for something themselves?",
        )  # fmt: skip
    if not (slow or paused):
        yield ok("waiting", f"Nothing that is served has waited {duration(WAITING_LONG)}.")


def _parted(found: Sequence[ServerReport]) -> tuple[list[ServerReport], list[ServerReport]]:
    return [each for each in found if each.alive], [each for each in found if not each.alive]


def _age(patient: Patient, found: Sequence[ServerReport]) -> float:
    """Seconds since the first of them started, by the database's clock."""
    return definitions.clock(patient.conn) - min(each.started_at.timestamp() for each in found)


def _name(server: ServerReport) -> str:
    return f"{server.hostname} (pid {server.pid})"


def _names(found: Sequence[ScheduleFacts]) -> list[str]:
    return [f"{each.task}/{each.name}" for each in found]


def _misunderstood(schedule: ScheduleFacts) -> str | None:
    try:
        timing.Schedule.parse(schedule.expression, schedule.timezone)
    except (TaskDefinitionError, ValueError) as problem:
        return str(problem)
    return None
