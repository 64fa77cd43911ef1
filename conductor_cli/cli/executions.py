"""``conductor executions``: look and act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from conductor_cli.client import Conductor
    from conductor_cli.models import Execution

F = TypeVar("F", bound="Callable[..., Any]")

STATES: Final = ("pending", "running", "waiting", "completed", "failed", "cancelled")
ENDED_BADLY: Final = ("failed", "cancelled")
NOT_ENDED: Final = ("pending", "running", "waiting")
LISTED: Final = 100
ACTED_UPON: Final = 10_000
PREVIEWED: Final = 20
MANY: Final = click.IntRange(1, 1_000_000)
NOTHING_CHANGED: Final = 1


def filters(command: F) -> F:
    """The filters that all of these commands share."""
    for option in (
        click.option("--limit", type=MANY, help="At most so many, the newest."),
        click.option(
            "--since",
            type=options.moment,
            metavar="MOMENT",
            help="Created since a moment, or so long ago: 90m, 2d.",
        ),
        click.option("--error", metavar="TEXT", help="Whose error contains this text."),
        click.option("--group", help="Of this group."),
        click.option("--queue", help="Of this queue."),
        click.option("--task", help="Of this task."),
        click.option("--state", type=click.Choice(STATES), help="In this state."),
    ):
        command = option(command)
    return command


@click.group(cls=options.ListByDefault)
def executions() -> None:
    """Look at executions, retry and cancel them. An id may be cut short where it stays unique."""


@executions.command("list")
@filters
@options.json_flag
@click.pass_obj
def list_(given: options.Given, /, *, as_json: bool, limit: int | None, **wanted: Any) -> None:
    """List executions, newest first (100 without --limit)."""
    from conductor_cli.cli import selection, session

    with session.client(given) as conductor:
        found = selection.matching(conductor, **wanted, limit=limit or LISTED)
        ambiguous = selection.ambiguous(conductor, found) if output.is_terminal() else ()
    _show(found, ambiguous, as_json=as_json)


@executions.command()
@click.argument("id")
@options.json_flag
@click.pass_obj
def show(given: options.Given, id: str, as_json: bool) -> None:
    """Show one execution, and why it is not running."""
    from conductor_cli.cli import explanation, selection, session

    with session.client(given) as conductor:
        found = selection.one(conductor, id)
        why = "" if as_json else explanation.of(conductor, found)
        past = [] if as_json else explanation.timeline(conductor, found)
    if as_json:
        output.json(found)
        return
    for name, text in explanation.lines(found):
        output.say(f"{name + ':':<13}{text}")
    output.say("\nTimeline:")
    for line in past:
        output.say(f"  {line}")
    if why:
        output.say(f"\n{output.plain(why)}")


@executions.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters
@click.option("--restart", is_flag=True, help="From the beginning: forget the recorded steps.")
@click.option("--force", is_flag=True, help="Also a child whose failure its parent has gone past.")
@click.option("--yes", is_flag=True, help="Really do it for all that match the filters.")
@options.json_flag
@click.pass_obj
def retry(
    given: options.Given,
    /,
    *,
    ids: Sequence[str],
    restart: bool,
    force: bool,
    yes: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Run failed or cancelled executions again, each with its id.

    Name them, or choose them by filters (the failed ones, unless --state says otherwise): then
    they are only shown, unless --yes is given. What they have recorded is kept, unless --restart
    is given.
    """

    def do(conductor: Conductor, each: UUID) -> bool:
        return conductor.retry(each, restart, force)

    act = Act("retried", "retried", do, ENDED_BADLY, ("failed",))
    return _act(act, given, ids, wanted, yes=yes, as_json=as_json)


@executions.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters
@click.option("--reason", help="Why; kept with the execution.")
@click.option("--yes", is_flag=True, help="Really do it for all that match the filters.")
@options.json_flag
@click.pass_obj
def cancel(
    given: options.Given,
    /,
    *,
    ids: Sequence[str],
    reason: str | None,
    yes: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Cancel executions that have not ended. A running one is asked to stop.

    Name them, or choose them by filters: then they are only shown, unless --yes is given.
    """

    def do(conductor: Conductor, each: UUID) -> bool:
        return conductor.cancel(each, reason)

    act = Act("cancelled", "asked to stop", do, NOT_ENDED, NOT_ENDED)
    return _act(act, given, ids, wanted, yes=yes, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Act:
    """What is done to executions: in which states it can be, and in which unless told.

    ``done`` says what was done; ``running`` the same of one that runs afterwards.
    """

    done: str
    running: str
    do: Callable[[Conductor, UUID], bool]
    states: Sequence[str]
    default: Sequence[str]


def _act(
    act: Act,
    given: options.Given,
    ids: Sequence[str],
    wanted: Mapping[str, Any],
    *,
    yes: bool,
    as_json: bool,
) -> int:
    """Exit code 1 when nothing has changed."""
    from conductor_cli.cli import selection, session

    _check(act, ids, wanted)
    with session.client(given) as conductor:
        meant = selection.named(conductor, ids) if ids else _chosen(conductor, act, wanted)
        if not ids and not yes:
            return _preview(conductor, act, meant, as_json=as_json)
        changed = {each.id for each in meant if act.do(conductor, each.id)}
        now = [conductor.get(each.id) or each for each in meant]
    if as_json:
        output.json(now)
    else:
        _tell(act, now, changed, each=bool(ids))
    if not changed:
        output.tell("Nothing changed.")
    return 0 if changed else NOTHING_CHANGED


def _check(act: Act, ids: Sequence[str], wanted: Mapping[str, Any]) -> None:
    given = [name for name, value in wanted.items() if value is not None]
    if ids and given:
        raise options.Refused(f"Give ids or filters, not both: --{given[0]} is a filter.")
    if not ids and not given:
        raise options.Refused(f"Name the executions to be {act.done}, or choose them by filters.")
    if wanted["state"] is not None and wanted["state"] not in act.states:
        raise options.Refused(f"One that is {wanted['state']} cannot be {act.done}.")


def _chosen(conductor: Conductor, act: Act, wanted: Mapping[str, Any]) -> list[Execution]:
    from conductor_cli.cli import selection

    states = [wanted["state"]] if wanted["state"] else act.default
    limit = wanted["limit"] or ACTED_UPON
    found = [
        each
        for state in states
        for each in selection.matching(conductor, **{**wanted, "state": state, "limit": limit})
    ]
    return sorted(found, key=lambda each: each.created_at, reverse=True)[:limit]


def _preview(conductor: Conductor, act: Act, meant: Sequence[Execution], *, as_json: bool) -> int:
    from conductor_cli.cli import selection

    if as_json:
        output.json(meant)
    elif meant:
        shown = meant[:PREVIEWED]
        _show(shown, selection.ambiguous(conductor, shown), as_json=False)
    if not meant:
        output.tell(f"None would be {act.done}: nothing matches. Nothing changed.")
    else:
        output.tell(f"{len(meant)} would be {act.done}. Nothing has changed: add --yes to do it.")
    return NOTHING_CHANGED


def _tell(act: Act, now: Sequence[Execution], changed: Collection[UUID], *, each: bool) -> None:
    if not each:
        output.say(f"{len(changed)} of {len(now)} {act.done}.")
        return
    for one in now:
        if one.id not in changed:
            output.say(f"{one.id} not {act.done}: it is {one.state}.")
        elif one.state == "running":
            output.say(f"{one.id} {act.running}.")
        else:
            output.say(f"{one.id} {act.done}.")


def _show(found: Sequence[Execution], ambiguous: Collection[UUID] = (), *, as_json: bool) -> None:
    if as_json:
        output.json(found)
    elif not output.is_terminal():
        output.table(COLUMNS, [_row(each) for each in found])
    elif found:
        rows = [_short(each, whole=each.id in ambiguous) for each in found]
        output.table(SHORT, rows, folds=("error",))
    else:
        output.tell("There are none.")


COLUMNS: Final = (
    "id",
    "task",
    "queue",
    "state",
    "attempt",
    "runs",
    "created_at",
    "run_at",
    "error",
)
SHORT: Final = ("id", "task", "queue", "state", "age", "error")


def _row(each: Execution) -> tuple[object, ...]:
    moments = (each.created_at, each.run_at)
    return (
        each.id,
        each.task,
        each.queue,
        each.state,
        each.attempt,
        each.runs,
        *moments,
        _error(each),
    )


def _short(each: Execution, *, whole: bool) -> tuple[object, ...]:
    """For people; ``whole``: the beginning of its id is another's, too."""
    short = str(each.id) if whole else str(each.id)[: output.SHORT_ID]
    age = output.age(each.created_at)
    return (short, each.task, each.queue, each.state, age, output.first_line(_error(each)))


def _error(each: Execution) -> str:
    return f"{each.error.type}: {each.error.message}" if each.error else ""
