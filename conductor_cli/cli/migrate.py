"""``conductor migrate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.config import Config
    from conductor_cli.database import Database
    from conductor_cli.migrate import Migration


@click.command(cls=options.Command, short_help="Bring the schema to its latest version.")
@click.option("--status", "only_status", is_flag=True, help="List all; exit code 1 if one is due.")
@click.option("--sql", "only_sql", is_flag=True, help="Print the SQL of what is due, and grants.")
@options.json_flag
@click.pass_obj
def migrate(given: options.Given, only_status: bool, only_sql: bool, as_json: bool) -> int:
    """Bring the schema to its latest version, and register the tasks and their schedules."""
    from conductor_cli.cli import session

    if only_sql and (only_status or as_json):
        raise options.Refused("--sql goes with neither --status nor --json.")
    config = session.settings(given, database=not only_sql)
    if only_sql:
        return _print_sql(config)
    return _status(config, as_json=as_json) if only_status else _migrate(config, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Migrated:
    """What ``conductor migrate`` did."""

    applied: Sequence[str]
    tasks: int
    schedules: int


@dataclass(frozen=True, slots=True)
class Step:
    """One migration: ``state`` is applied or pending."""

    version: int
    name: str
    state: str
    breaking: bool


def _migrate(config: Config, *, as_json: bool) -> int:
    from conductor_cli import migrate as schema
    from conductor_cli import registration
    from conductor_cli.cli import session
    from conductor_cli.orchestrator import Orchestrator
    from conductor_cli.pump import Retention

    session.tasks(config)  # a mistake in a module is told before anything changes
    with session.located(config, output.tell) as found:
        served = Orchestrator.from_config(found)
        database = served.conductor.database
        session.reach(database)
        applied = schema.upgrade(database)
        given = registration.Definitions.of(
            served.workers, timezone=config.scheduler.timezone,
            retention=Retention(config.retention.completed, config.retention.failed),
        )  # fmt: skip
        tasks, schedules = registration.register(database, given, anew=True)
        served.close()
    _show(Migrated([each.name for each in applied], tasks, schedules), as_json=as_json)
    return 0


def _show(done: Migrated, *, as_json: bool) -> None:
    if as_json:
        output.json(done)
        return
    for name in done.applied:
        output.say(f"Applied {name}")
    if not done.applied:
        output.say("The schema is up to date.")
    output.say(f"Registered {_many(done.tasks, 'task')} and {_many(done.schedules, 'schedule')}.")


def _status(config: Config, *, as_json: bool) -> int:
    from conductor_cli.cli import session
    from conductor_cli.client import Conductor

    with session.located(config) as found, Conductor.from_config(found) as conductor:
        session.reach(conductor.database)
        steps = _steps(conductor.database)
    if as_json:
        output.json(steps)
    else:
        columns = ["version", "name", "state", "breaking"]
        output.table(columns, [(f"{s.version:04}", s.name, s.state, s.breaking) for s in steps])
    return 1 if any(step.state == "pending" for step in steps) else 0


def _steps(database: Database) -> list[Step]:
    from conductor_cli import migrate as schema

    with database.connection() as conn:
        due: Sequence[Migration] = schema.pending(conn)
        there = schema.applied(conn)
    done = [Step(each.version, each.name, "applied", each.breaking) for each in there]
    return done + [Step(each.version, each.name, "pending", each.breaking) for each in due]


def _print_sql(config: Config) -> int:
    """A database that does not answer is taken for an empty one."""
    from conductor_cli import migrate as schema
    from conductor_cli.cli import session
    from conductor_cli.client import Conductor
    from conductor_cli.errors import DatabaseUnavailable

    if not config.database.url:
        output.tell("No database is configured: this is the SQL of all migrations.")
        output.say(schema.script(None))
        return 0
    try:
        with (
            session.located(config) as found,
            Conductor.from_config(found) as conductor,
            conductor.database.connect("migrate") as conn,
        ):
            output.say(schema.script(conn))
    except DatabaseUnavailable as error:
        output.tell(f"This is the SQL of all migrations: {output.plain(str(error))}")
        output.say(schema.script(None))
    return 0


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
