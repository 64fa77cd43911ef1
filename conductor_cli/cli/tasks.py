"""``conductor tasks``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conductor_cli.registry import Task

COLUMNS: Final = ("name", "queue", "triggers", "limits")


@click.command(cls=options.Command, short_help="List the tasks of your modules.")
@options.json_flag
@click.pass_obj
def tasks(given: options.Given, as_json: bool) -> None:
    """List the tasks of the modules that the configuration names."""
    from conductor_cli.cli import session

    config = session.settings(given, database=False)
    shown = [_shown(task, config.scheduler.timezone) for task in session.tasks(config)]
    if as_json:
        output.json(shown)
    elif shown:
        rows = [(t.name, t.queue, [x.expression for x in t.triggers], _limits(t)) for t in shown]
        output.table(COLUMNS, rows)
    elif config.tasks.modules:
        output.tell("There are none.")
    else:
        output.tell("There are none: name the modules that define tasks in [tasks] modules.")


@dataclass(frozen=True, slots=True)
class Trigger:
    """A schedule, with what holds where it says nothing."""

    name: str
    expression: str
    timezone: str
    missed: str
    payload: Any


@dataclass(frozen=True, slots=True)
class Shown:
    """A task; durations among its options are seconds."""

    name: str
    queue: str
    triggers: Sequence[Trigger]
    options: Mapping[str, Any]


def _shown(task: Task[..., Any], timezone: str) -> Shown:
    from conductor_cli.catalog import shown_options

    triggers = [
        Trigger(each.name, each.expression, each.timezone or timezone, each.missed, each.payload)
        for each in task.triggers
    ]
    return Shown(task.name, task.queue, triggers, shown_options(task))


def _limits(task: Shown) -> list[str]:
    given = task.options
    limits = [f"{given['max_attempts']} attempts"]
    if given["timeout"] is not None:
        limits.append(f"{given['timeout']:g} s")
    return limits
