"""Every event there is, with its level and its counter; every histogram there is."""

from __future__ import annotations

from logging import DEBUG, ERROR, INFO, WARNING
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Event(NamedTuple):
    """One row of the catalogue; ``line_every``: at most one line per so many seconds and labels."""

    level: int
    help: str
    counted: bool = False
    labels: tuple[str, ...] = ()
    line_every: float = 0.0


class Histogram(NamedTuple):
    metric: str
    help: str
    labels: tuple[str, ...]


def _told(level: int, help: str) -> Event:
    return Event(level, help)


def _counted(level: int, help: str, *labels: str, line_every: float = 0.0) -> Event:
    return Event(level, help, True, labels, line_every)


# What is counted has a counter named after it: conductor_executions_claimed_total.
CATALOGUE: Final[Mapping[str, Event]] = {
    "server.starting": _told(INFO, "The server begins to start."),
    "server.ready": _told(INFO, "Everything the server consists of is up."),
    "server.stopping": _told(INFO, "The server was asked to stop."),
    "server.stopped": _told(INFO, "The server has stopped."),
    "server.declared_dead": _counted(ERROR, "Times a peer declared this server dead."),
    "process.started": _told(INFO, "The server starts one of its processes."),
    "process.ended": _counted(WARNING, "Processes of the server that ended by themselves."),
    "service.died": _counted(ERROR, "Services that ended with an error.", "service"),
    "executions.claimed": _counted(DEBUG, "Executions claimed.", "queue"),
    "executions.finished": _counted(DEBUG, "Executions that ended.", "queue", "task", "state"),
    "executions.summary": _told(INFO, "Executions that ended since the last such line, by state."),
    "execution.failed": _told(WARNING, "An execution ended failed."),
    "execution.retrying": _counted(INFO, "Attempts that failed, to be retried.", "queue", "task"),
    "execution.crashed": _counted(WARNING, "Attempts that were lost with their process."),
    "executions.rescued": _counted(WARNING, "Executions taken back from dead servers."),
    "executions.stale": _counted(WARNING, "Late writes refused: the claim was no longer held."),
    "executions.reconciled": _counted(WARNING, "Claims taken back: their reply was lost.", "queue"),
    "executions.suspended": _counted(
        DEBUG, "Attempts that left to sleep or wait.", "queue", "task"
    ),
    "executions.released": _counted(INFO, "Executions handed back."),
    "worker.stuck": _counted(ERROR, "Tasks that did not return after their timeout.", "queue"),
    "worker.unstuck": _counted(INFO, "Such tasks that returned after all.", "queue"),
    "leadership.gained": _counted(INFO, "Times this server became the leader."),
    "leadership.lost": _counted(INFO, "Times this server ceased to be the leader."),
    "schedule.ticked": _counted(DEBUG, "Ticks that became executions."),
    "schedule.missed": _counted(WARNING, "Ticks whose moment passed with no server to run them."),
    "schedule.refused": _told(WARNING, "A schedule's expression is not understood here."),
    "schedule.hindered": _told(WARNING, "A schedule cannot tick now: it is tried again soon."),
    "events.dispatched": _counted(DEBUG, "Events told to those who wait and to tasks."),
    "event.failed": _counted(WARNING, "Events that could not be dispatched, to be tried again."),
    "event.dead": _counted(ERROR, "Events given up: they cannot be dispatched, and are kept."),
    "history.pruned": _counted(DEBUG, "Executions deleted by retention."),
    "database.lost": _counted(
        WARNING, "Database calls that found no database.", "component", line_every=1.0
    ),
    "service.hindered": _counted(
        WARNING,
        "Statements of services that met a lock, a time limit or a missing right.",
        "component",
        line_every=1.0,
    ),
    "database.back": _told(INFO, "The database answers again."),
    "heartbeat.late": _counted(WARNING, "Heartbeats that came later than they should."),
    "clock.offset": _counted(WARNING, "Times this clock and the database's were found to differ."),
    "pooler.found": _told(INFO, "A pooler shares sessions: no notifications, work is polled for."),
    "clock.jumped": _counted(WARNING, "Times the database's clock jumped."),
    "listener.proven": _told(DEBUG, "The listener heard its own ping."),
    "listener.lost": _counted(WARNING, "Times the listener went silent and polling took over."),
    "tasks.registered": _told(INFO, "The tasks this server serves were registered."),
    "migration.applied": _told(INFO, "A migration was applied."),
    "migration.waiting": _told(INFO, "A migration waits for somebody's lock; it tries again."),
    "schema.outgrown": _told(ERROR, "The schema has become newer than this program can work with."),
    "tasks.none": _told(WARNING, "A module of [tasks] modules defines no task."),
    "tasks.superseded": _told(
        INFO, "Tasks whose options a later version that runs has defined; they were left so."
    ),
    "gauge.failed": _counted(WARNING, "Gauges that could not be read.", "gauge", line_every=60.0),
    "log.lines_dropped": _counted(WARNING, "Log lines lost to a full queue or broken output."),
}
HISTOGRAMS: Final[Mapping[str, Histogram]] = {
    "execution.run": Histogram(
        "conductor_execution_run_seconds", "How long attempts ran.", ("queue", "task")
    ),
}
BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0),
)
UNKNOWN: Final = Event(WARNING, "Not in the catalogue: a mistake the unit tests catch.")
