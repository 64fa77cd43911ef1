"""``conductor tasks``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conductor_cli.registry import OnEvent, Task

COLUMNS: Final = ("name", "queue", "triggers", "limits")


@click.group(cls=options.ListByDefault, short_help="List the tasks of your modules.")
def tasks() -> None:
    """Look at the tasks of the modules that the configuration names."""


@tasks.command("list")
@options.json_flag
@click.pass_obj
def list_(given: options.Given, as_json: bool) -> None:
    """List tasks with their queue, what starts them, and their limits."""
    from conductor_cli.cli import session

    config = session.settings(given, database=False)
    shown = [_shown(task, config.scheduler.timezone) for task in session.tasks(config)]
    if as_json:
        output.json(shown)
    elif shown or not output.is_terminal():
        rows = [(t.name, t.queue, _starts(t), _limits(t)) for t in shown]
        output.table(COLUMNS, rows, folds=("limits",))
    if not shown and not config.tasks.modules:
        output.tell("There are none: name the modules that define tasks in [tasks] modules.")
    elif not shown:
        output.tell("There are none.")


@dataclass(frozen=True, slots=True)
class Trigger:
    """A schedule, with what holds where it says nothing."""

    name: str
    expression: str
    timezone: str
    missed: str
    payload: Any


@dataclass(frozen=True, slots=True)
class EventTrigger:
    """An event that starts the task; ``where``: what its payload has to be like."""

    event: str
    where: Mapping[str, Any]
    payload: Any


@dataclass(frozen=True, slots=True)
class Shown:
    """A task; durations among its options are seconds."""

    name: str
    queue: str
    triggers: Sequence[Trigger | EventTrigger]
    options: Mapping[str, Any]


def _shown(task: Task[..., Any], timezone: str) -> Shown:
    from conductor_cli.catalog import shown_options

    triggers: list[Trigger | EventTrigger] = [
        Trigger(each.name, each.expression, each.timezone or timezone, each.missed, each.payload)
        for each in task.triggers
    ]
    triggers += map(_event, task.events)
    return Shown(task.name, task.queue, triggers, shown_options(task))


def _event(trigger: OnEvent) -> EventTrigger:
    from conductor_cli import payloads

    where = {**payloads.decode(trigger.exact), **payloads.decode(trigger.tests)}
    return EventTrigger(trigger.event, where, trigger.payload)


def _starts(task: Shown) -> list[str]:
    return [each.expression if isinstance(each, Trigger) else _on(each) for each in task.triggers]


def _on(each: EventTrigger) -> str:
    where = f" where {', '.join(each.where)}" if each.where else ""
    return f"on {each.event}{where}"


def _limits(task: Shown) -> list[str]:
    given = task.options
    attempts, crashes = given["max_attempts"], given["max_crashes"]
    limits = [f"{attempts} attempt{'' if attempts == 1 else 's'}"]
    if given["timeout"] is not None:
        limits.append(f"{given['timeout']:g} s")
    if crashes != DEFAULT_CRASHES:
        limits.append(f"{crashes} crash{'' if crashes == 1 else 'es'}")
    if not given["invocable"]:
        limits.append("by its triggers alone")
    return limits


DEFAULT_CRASHES: Final = 3
