"""``conductor schedules``: look and act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conductor_cli.client import Conductor
    from conductor_cli.database import Connection
    from conductor_cli.store.schedules import ScheduleReport

NOTHING_CHANGED: Final = 1
COLUMNS: Final = (
    *("task", "name", "queue", "expression", "timezone", "missed"),
    *("declared", "paused", "next_at", "last_at"),
)
SHORT: Final = ("task", "name", "expression", "timezone", "next", "last")

which = click.argument("words", nargs=-1, required=True, metavar="[TASK] NAME")


@click.group(cls=options.ListByDefault)
def schedules() -> None:
    """Look at schedules, pause and resume them, make one tick now, delete one.

    A schedule is meant by its task and its name, or by one of them where that is enough.
    """


@schedules.command("list")
@click.option("--task", help="Of this task.")
@options.json_flag
@click.pass_obj
def list_(given: options.Given, task: str | None, as_json: bool) -> None:
    """List schedules."""
    from conductor_cli.cli import session

    with session.client(given) as conductor:
        found = _listed(conductor, task)
    if as_json:
        output.json(found)
    elif found or not output.is_terminal():
        if output.is_terminal():
            output.table(SHORT, [_short(each) for each in found])
        else:
            output.table(COLUMNS, [[getattr(each, name) for name in COLUMNS] for each in found])
    else:
        output.tell("There are none.")


@schedules.command()
@which
@options.json_flag
@click.pass_obj
def pause(given: options.Given, words: Sequence[str], as_json: bool) -> int:
    """Let a schedule make no more executions until it is resumed."""
    from conductor_cli.store import schedules as store

    return _act(given, words, store.pause, "paused", as_json=as_json)


@schedules.command()
@which
@options.json_flag
@click.pass_obj
def resume(given: options.Given, words: Sequence[str], as_json: bool) -> int:
    """Let a paused schedule go on with its next tick from now."""
    from conductor_cli import scheduling

    return _act(given, words, scheduling.resume, "resumed", as_json=as_json)


@schedules.command()
@which
@options.json_flag
@click.pass_obj
def delete(given: options.Given, words: Sequence[str], as_json: bool) -> int:
    """Delete a schedule. What it has made already goes on.

    One that a task's triggers declare comes back when a server of the task starts.
    """
    from conductor_cli.cli import session
    from conductor_cli.store import schedules as store

    with session.client(given) as conductor:
        meant = _meant(conductor, words)
        conductor.database.retrying(lambda conn: store.remove(conn, meant.task, meant.name))
    if meant.declared:
        output.tell("Its task declares it: it comes back when a server of the task starts.")
    _told(meant, "deleted", as_json=as_json)
    return 0


@schedules.command()
@which
@options.json_flag
@click.pass_obj
def trigger(given: options.Given, words: Sequence[str], as_json: bool) -> None:
    """Make one execution of a schedule now, as a tick would, and print its id."""
    from conductor_cli.cli import session
    from conductor_cli.store import schedules as store

    with session.client(given) as conductor:
        meant = _meant(conductor, words)
        with conductor.database.transaction() as conn:  # not to be sent twice
            made = store.trigger(conn, meant.task, meant.name)
    if as_json:
        output.json({"id": made})
    else:
        output.say(str(made))


def _act(
    given: options.Given,
    words: Sequence[str],
    act: Callable[[Connection, str, str], bool],
    done: str,
    *,
    as_json: bool,
) -> int:
    """Exit code 1 when nothing has changed."""
    from conductor_cli.cli import session

    with session.client(given) as conductor:
        meant = _meant(conductor, words)
        with conductor.database.transaction() as conn:
            changed = act(conn, meant.task, meant.name)
        now = _meant(conductor, (meant.task, meant.name))
    _told(now, done if changed else f"not {done}: it was already", as_json=as_json)
    if not changed:
        output.tell("Nothing changed.")
    return 0 if changed else NOTHING_CHANGED


def _short(each: ScheduleReport) -> tuple[object, ...]:
    due = "paused" if each.paused else output.until(each.next_at)
    last = output.since(each.last_at)
    return (each.task, each.name, each.expression, each.timezone, due, last)


def _told(schedule: ScheduleReport, what: str, *, as_json: bool) -> None:
    if as_json:
        output.json(schedule)
    else:
        output.say(f"{schedule.task} {schedule.name} {what}.")


def _meant(conductor: Conductor, words: Sequence[str]) -> ScheduleReport:
    """The one schedule that is meant. Raises when there is none, or more than one."""
    from conductor_cli import errors

    if len(words) > 2:
        raise options.Refused("Name one schedule: its task and its name.")
    task, name = words if len(words) == 2 else (None, words[0])
    found = _listed(conductor, task)
    meant = [each for each in found if each.name == name]
    if task is None and not meant:
        meant = [each for each in found if each.task == name]
    if not meant:
        raise errors.ConductorError(_unknown(conductor, words))
    if len(meant) > 1:
        several = ", ".join(f"{each.task} {each.name}" for each in meant)
        raise options.Refused(f"{name!r} may be any of: {several}. Give the task and the name.")
    return meant[0]


def _unknown(conductor: Conductor, words: Sequence[str]) -> str:
    from conductor_cli.registry import nearest

    there = [f"{each.task} {each.name}" for each in _listed(conductor, None)]
    if len(words) == 1:
        there += [word for each in there for word in each.split()]
    near = nearest(" ".join(words), set(there))
    hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
    return f"No schedule is named {' '.join(words)!r}.{hint} `conductor schedules` lists them."


def _listed(conductor: Conductor, task: str | None) -> list[ScheduleReport]:
    from conductor_cli.store import schedules as store

    return conductor.database.retrying(lambda conn: store.listed(conn, task=task))
