"""What a server would serve: for ``start-server --dry-run``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from conductor_cli.catalog import schedule_specs
from conductor_cli.cli import output, session
from conductor_cli.config import Config, check_exposure
from conductor_cli.orchestrator import Orchestrator
from conductor_cli.scheduling import first_tick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.catalog import WorkerSpec

NOWHERE = "postgresql://"  # an orchestrator connects when it starts, and this one never does


@dataclass(frozen=True, slots=True)
class Queue:
    queue: str
    concurrency: int
    tasks: list[str]


@dataclass(frozen=True, slots=True)
class Trigger:
    task: str
    name: str
    expression: str
    timezone: str
    next: datetime | None


@dataclass(frozen=True, slots=True)
class Plan:
    """``server`` is an address, ``database`` a description without its password; each of
    ``processes`` serves all of ``queues``."""

    server: str
    database: str
    processes: int
    queues: list[Queue]
    triggers: list[Trigger]


def of(config: Config, queues: Sequence[str], *, jobs: bool) -> Plan:
    """Load the modules and work it out; connects to nothing. Raises what a start would."""
    check_exposure(config)
    session.tasks(config)
    database = replace(config.database, url=NOWHERE)
    served = Orchestrator.from_config(
        replace(config, database=database), queues=queues, jobs=jobs
    ).workers
    return Plan(
        server=f"http://{config.server.host}:{config.server.port}",
        database=session.where(config),
        processes=config.worker.processes if jobs else 1,
        queues=[_queue(worker) for worker in served],
        triggers=[each for worker in served for each in _triggers(worker, config)],
    )


def show(plan: Plan, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        output.json(plan)
        return
    output.say(f"Server:   {plan.server}\nDatabase: {output.plain(plan.database)}")
    output.say(f"Processes: {plan.processes}")
    if not plan.queues:
        output.say("No queue would be served.")
        return
    rows = [(queue.queue, queue.concurrency, queue.tasks) for queue in plan.queues]
    output.say("")
    output.table(["queue", "concurrency", "tasks"], rows, folds=("tasks",))
    if plan.triggers:
        columns = ["task", "trigger", "expression", "timezone", "next"]
        output.say("")
        output.table(
            columns, [(t.task, t.name, t.expression, t.timezone, t.next) for t in plan.triggers]
        )


def _queue(worker: WorkerSpec) -> Queue:
    return Queue(worker.queue, worker.config.concurrency, sorted(t.name for t in worker.tasks))


def _triggers(worker: WorkerSpec, config: Config) -> list[Trigger]:
    now = datetime.now(UTC).timestamp()
    return [
        Trigger(
            spec.task,
            spec.name,
            spec.expression,
            spec.timezone,
            first_tick(spec, now),
        )
        for spec in schedule_specs(worker.tasks, config.scheduler.timezone)
    ]
