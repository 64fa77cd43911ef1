"""Sets of tasks, and how they are told to the database."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from conductor_cli import arguments, timing
from conductor_cli.config import WorkerConfig
from conductor_cli.errors import ConfigError, TaskDefinitionError, UnknownTask
from conductor_cli.models import ScheduleSpec, TaskSpec, TriggerSpec
from conductor_cli.registry import (
    Seconds,
    Task,
    as_seconds,
    check_name,
    nearest,
    trigger_payload,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class TaskSet:
    """The tasks one process serves or knows, by name; two of one name are refused."""

    def __init__(self, tasks: Iterable[Task[..., Any]] = ()) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}
        for each in arguments.as_several(tasks, "tasks"):
            self.add(each)

    def add(self, added: Task[..., Any]) -> None:
        """Raise TaskDefinitionError, naming both places, if another task has its name."""
        if not isinstance(added, Task):
            raise arguments.no_task(added)
        there = self._tasks.setdefault(added.name, added)
        if there is not added:
            raise TaskDefinitionError(_same_name(there, added))

    def get(self, name: str) -> Task[..., Any] | None:
        return self._tasks.get(name)

    def named(self, name: str) -> Task[..., Any]:
        """The task of this name; raises UnknownTask with the nearest names."""
        found = self._tasks.get(name)
        if found is None:
            raise UnknownTask(name, nearest(name, self._tasks))
        return found

    def in_queues(self, queues: Iterable[str]) -> TaskSet:
        """Those whose own queue is one of these."""
        wanted = set(queues)
        return TaskSet(t for t in self if t.queue in wanted)

    def __iter__(self) -> Iterator[Task[..., Any]]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def queues(self) -> list[str]:
        return sorted({t.queue for t in self})


def task_specs(
    queue: str, tasks: Iterable[Task[..., Any]], *, completed: float, failed: float
) -> list[TaskSpec]:
    """How tasks served in a queue are registered; ``completed``, ``failed``: default retention."""
    return [
        TaskSpec(
            queue=queue,
            name=t.name,
            home=t.queue == queue,
            priority=t.settings.priority,
            max_attempts=t.settings.max_attempts,
            max_crashes=t.settings.max_crashes,
            retain_completed=retention(t.settings.retain_completed, completed),
            retain_failed=retention(t.settings.retain_failed, failed),
            options=shown_options(t),
        )
        for t in tasks
    ]


def schedule_specs(tasks: Iterable[Task[..., Any]], timezone: str) -> list[ScheduleSpec]:
    """The schedules of tasks; ``timezone`` where a trigger names none."""
    return [
        ScheduleSpec(
            task=t.name,
            name=trigger.name,
            queue=t.queue,
            expression=trigger.expression,
            timezone=trigger.timezone or timezone,
            missed=trigger.missed,
            payload=trigger_payload(trigger.name, trigger.payload),
        )
        for t in tasks
        for trigger in t.triggers
    ]


def trigger_specs(tasks: Iterable[Task[..., Any]]) -> list[TriggerSpec]:
    """The events that start these tasks."""
    return [
        TriggerSpec(
            task=t.name,
            queue=t.queue,
            place=place,
            event=trigger.event,
            payload=None
            if trigger.payload is None
            else trigger_payload(trigger.event, trigger.payload),
            exact=trigger.exact,
            tests=trigger.tests,
        )
        for t in tasks
        for place, trigger in enumerate(t.events)
    ]


def shown_options(t: Task[..., Any]) -> dict[str, Any]:
    """The options of a task in JSON's types, durations in seconds."""
    settings = t.settings
    return {
        "max_attempts": settings.max_attempts,
        "max_crashes": settings.max_crashes,
        "retry": _shown_retry(settings.retry),
        "timeout": as_seconds(settings.timeout),
        "priority": settings.priority,
        "invocable": settings.invocable,
        "retain_completed": _shown_retention(settings.retain_completed),
        "retain_failed": _shown_retention(settings.retain_failed),
    }


def retention(given: Seconds | bool | None, default: float) -> float | None:
    """Seconds to keep an ended execution; None: for ever; 0: not at all."""
    keep = default if given is None or given is True else as_seconds(given) or 0.0
    return None if keep == math.inf else float(keep)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker to be: its queue, the tasks it serves there, and its settings."""

    queue: str
    tasks: TaskSet
    config: WorkerConfig

    @classmethod
    def create(
        cls, queue: str, tasks: Iterable[Task[..., Any]], settings: Mapping[str, Any]
    ) -> WorkerSpec:
        """Raises TaskDefinitionError, ConfigError."""
        try:
            check_name("queue", queue)
        except ValueError as problem:
            raise ConfigError(f"create_worker: {problem}") from None
        known = [each.name for each in fields(WorkerConfig)]
        for name in settings:
            if name not in known:
                raise ConfigError(f"create_worker has no setting {name!r}: {', '.join(known)}.")
        return cls(queue, TaskSet(tasks), replace(WorkerConfig(), **settings))


def _same_name(there: Task[..., Any], added: Task[..., Any]) -> str:
    named = f"Two tasks are named {added.name!r}"
    if there.place != added.place:
        return f"{named}: {there.place} and {added.place}. Give one of them another name=."
    if there.module != added.module:
        return (
            f"{named}: {added.place} was imported twice, as the module {there.module!r} and as "
            f"{added.module!r}. Import it under one name everywhere."
        )
    return (
        f"{named}: {there.place} and {added.place}, which is one place that was executed twice, as "
        "in a loop or a factory. Give each of them a name of its own: @task(name=...)."
    )


def _shown_retention(value: Seconds | bool | None) -> float | str | None:
    if value is None or value is True:
        return None
    keep = as_seconds(value) or 0.0
    return "forever" if keep == math.inf else float(keep)


def _shown_retry(policy: timing.RetryPolicy | None) -> Any:
    match policy:
        case None:
            return None
        case timing.Backoff():
            return {k: as_seconds(v) for k, v in asdict(policy).items()}
        case _ if callable(policy):
            return getattr(policy, "__qualname__", repr(policy))
        case _:
            return [as_seconds(delay) for delay in policy]
