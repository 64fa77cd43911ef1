"""Telling the database of tasks and their schedules, while several versions may run at once.

What a program defines is its edition. An edition is dated when it is first seen, and when an
operator runs ``conductor migrate`` with it. Of the editions whose servers live, the latest is in
force: an old server that restarts in the middle of a deploy changes nothing, and after a rollback
the old definitions come back by themselves once the last new server has left.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from conductor_cli import catalog, telemetry
from conductor_cli.scheduling import first_tick
from conductor_cli.store import definitions, events

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from conductor_cli.catalog import WorkerSpec
    from conductor_cli.database import Database
    from conductor_cli.models import ScheduleSpec, TaskSpec, TriggerSpec
    from conductor_cli.pump import Retention


class Definitions(msgspec.Struct, frozen=True):
    """What a program tells the database of the tasks it serves, and of their schedules."""

    tasks: Sequence[TaskSpec]
    schedules: Sequence[ScheduleSpec]
    triggers: Sequence[TriggerSpec] = ()

    @classmethod
    def of(cls, specs: Sequence[WorkerSpec], *, timezone: str, retention: Retention) -> Definitions:
        """``timezone`` and ``retention`` hold where a task names none."""
        tasks = [
            task
            for worker in specs
            for task in catalog.task_specs(
                worker.queue, worker.tasks, completed=retention.completed, failed=retention.failed
            )
        ]
        schedules = [
            schedule
            for worker in specs
            for schedule in catalog.schedule_specs(worker.tasks, timezone)
            if schedule.queue == worker.queue
        ]
        triggers = [
            trigger
            for worker in specs
            for trigger in catalog.trigger_specs(worker.tasks)
            if trigger.queue == worker.queue
        ]
        return cls(tasks, schedules, triggers)

    @property
    def names(self) -> list[str]:
        return sorted({task.name for task in self.tasks})

    @property
    def edition(self) -> str:
        """A fingerprint: two programs that define the same have the same."""
        tasks = sorted(self.tasks, key=lambda t: (t.queue, t.name))
        schedules = sorted(self.schedules, key=lambda s: (s.task, s.name))
        triggers = sorted(self.triggers, key=lambda t: (t.task, t.place))
        text = msgspec.json.encode((tasks, schedules, triggers), order="deterministic")
        return hashlib.sha256(text).hexdigest()[:32]

    def only(self, names: Collection[str]) -> Definitions:
        """Those of some tasks."""
        return Definitions(
            [task for task in self.tasks if task.name in names],
            [schedule for schedule in self.schedules if schedule.task in names],
            [trigger for trigger in self.triggers if trigger.task in names],
        )


def register(
    database: Database, given: Definitions, *, anew: bool = False, only_foreign: bool = False
) -> tuple[int, int]:
    """Tell the database of tasks and of their schedules; those they no longer name are removed.

    What a server of a later edition that lives has defined is left alone. ``anew``: from now on
    this edition is the latest, whenever it was known first. ``only_foreign``: look only at what
    stands as another edition has defined it. Returns how many tasks and schedules were told.
    """
    edition = given.edition
    if not given.tasks:
        return 0, 0
    with database.transaction() as conn:
        names = set(given.names)
        if only_foreign:
            names &= definitions.foreign(conn, edition, given.names)
        else:
            definitions.know_edition(conn, edition, anew=anew)
        left = definitions.superseded(conn, edition, list(names)) if names else set()
        mine = given.only(names - left)
        if mine.tasks:
            definitions.register_tasks(conn, mine.tasks, edition)
            now = definitions.clock(conn)
            definitions.save_schedules(
                conn, [(s, first_tick(s, now)) for s in mine.schedules], mine.names
            )
            events.save_triggers(conn, mine.triggers, mine.names)
    if mine.tasks:
        telemetry.emit("tasks.registered", count=len(mine.names), schedules=len(mine.schedules))
    if left and not only_foreign:
        telemetry.emit("tasks.superseded", count=len(left), tasks=sorted(left)[:10])
    return len(mine.names), len(mine.schedules)
