"""``conductor executions``: look and act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from conductor_cli.cli.selection import Filters
    from conductor_cli.client import Conductor
    from conductor_cli.models import Execution

F = TypeVar("F", bound="Callable[..., Any]")

STATES: Final = ("pending", "running", "waiting", "completed", "failed", "cancelled")
ENDED_BADLY: Final = ("failed", "cancelled")
NOT_ENDED: Final = ("pending", "running", "waiting")
LISTED: Final = 100
ACTED_UPON: Final = 10_000
PREVIEWED: Final = 20
COLUMNS: Final = ("id", "task", "queue", "state", "attempt", "created_at", "run_at", "error")


class ListByDefault(options.Group):
    """Lists when no command is named: ``conductor executions --state failed``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def filters(command: F) -> F:
    """The filters that all of these commands share."""
    for option in (
        click.option("--limit", type=click.IntRange(1), help="At most so many, the newest."),
        click.option("--since", type=options.Since(), help="Created since a moment, or 90m, 2d."),
        click.option("--error", metavar="TEXT", help="Whose error contains this text."),
        click.option("--group", help="Of this group."),
        click.option("--queue", help="Of this queue."),
        click.option("--task", help="Of this task."),
        click.option("--state", type=click.Choice(STATES), help="In this state."),
    ):
        command = option(command)
    return command


@click.group(cls=ListByDefault)
def executions() -> None:
    """Look at executions, retry and cancel them. An id may be cut short where it stays unique."""


@executions.command("list")
@filters
@options.json_flag
@click.pass_obj
def list_(given: options.Given, as_json: bool, limit: int | None, **wanted: Any) -> None:
    """List executions, newest first (100 without --limit)."""
    from conductor_cli.cli import selection, session

    with session.client(given) as conductor:
        found = selection.matching(conductor, **wanted, limit=limit or LISTED)
    _show(found, as_json=as_json)


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
    if as_json:
        output.json(found)
        return
    for name, text in explanation.lines(found):
        output.say(f"{name + ':':<13}{text}")
    if why:
        output.say(f"\n{output.plain(why)}")


@executions.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters
@click.option("--yes", is_flag=True, help="Really do it for all that match the filters.")
@options.json_flag
@click.pass_obj
def retry(
    given: options.Given, ids: Sequence[str], yes: bool, as_json: bool, **wanted: Any
) -> int:
    """Run failed or cancelled executions again, each with its id.

    Name them, or choose by filters (failed ones, where --state says nothing else): these show
    what they would retry, and need --yes.
    """
    _refuse_states(wanted, ENDED_BADLY, "retried")
    wanted["states"] = [wanted.pop("state") or "failed"]
    return _act(given, ids, wanted, yes, as_json, "retried", lambda conductor: conductor.retry)


@executions.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters
@click.option("--reason", help="Why; kept with the execution.")
@click.option("--yes", is_flag=True, help="Really do it for all that match the filters.")
@options.json_flag
@click.pass_obj
def cancel(
    given: options.Given,
    ids: Sequence[str],
    reason: str | None,
    yes: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Cancel executions that have not ended. A running one is asked to stop.

    Name them, or choose by filters: these show what they would cancel, and need --yes.
    """
