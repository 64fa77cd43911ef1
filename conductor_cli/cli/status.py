"""``conductor status``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from conductor_cli.cli import options, output
from conductor_cli.cli.queues import COLUMNS as QUEUES
from conductor_cli.cli.queues import SHORT as SHORT_QUEUES
from conductor_cli.cli.queues import short as short_queue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from conductor_cli.database import Connection
    from conductor_cli.store.reports import QueueReport, ServerReport, UnservedReport


@dataclass(frozen=True, slots=True)
class Status:
    """The fleet and its work; ``unserved``: what is due, and no server serves."""

    leader: UUID | None
    servers: Sequence[ServerReport]
    queues: Sequence[QueueReport]
    unserved: Sequence[UnservedReport]


@click.command(cls=options.Command, short_help="Show servers, queues and their rates.")
@options.json_flag
@click.pass_obj
def status(given: options.Given, as_json: bool) -> None:
    """Show servers, their leader, queues and their rates, and what waits for nobody."""
    from conductor_cli.cli import session

    with session.client(given) as conductor:
        found = conductor.database.retrying(_read)
    if as_json:
        output.json(found)
    else:
        _show(found)


def _read(conn: Connection) -> Status:
    from conductor_cli.store import reports

    servers = reports.servers(conn)
    leader = next((each.id for each in servers if each.leader and each.alive), None)
    return Status(leader, servers, reports.queues(conn), reports.unserved(conn))


SERVERS: Final = (
    *("server", "leads", "host", "pid", "version", "running", "state", "beat_seconds_ago"),
    *("started_at", "queues"),
)
SHORT_SERVERS: Final = ("server", "leads", "host", "pid", "run", "state", "age", "queues")
UNSERVED: Final = ("queue", "task", "count", "oldest_seconds")


def _show(found: Status) -> None:
    people = output.is_terminal()
    if not found.servers:
        output.say("No server runs: start one with `conductor start-server`.")
    elif people:
        output.table(
            SHORT_SERVERS,
            [_short_server(each) for each in found.servers],
            "Servers",
            folds=("queues",),
        )
    else:
        output.table(SERVERS, [_server(each) for each in found.servers])
    output.say("")
    if people:
        rows = [short_queue(each) for each in found.queues]
        output.table(SHORT_QUEUES, rows, "Queues; done and bad: in the last minute")
    else:
        output.table(QUEUES, _rows(found.queues, QUEUES), "Queues")
    if found.unserved:
        output.say("")
        output.table(UNSERVED, _rows(found.unserved, UNSERVED), "Due, and served by no server")


def _rows(reports: Iterable[object], columns: Iterable[str]) -> list[list[object]]:
    return [[getattr(each, name) for name in columns] for each in reports]


def _server(each: ServerReport) -> tuple[object, ...]:
    who = (each.id, each.leader, each.hostname, each.pid, each.version, each.running)
    return (*who, _state(each), each.last_beat_seconds, each.started_at, each.queues)


def _short_server(each: ServerReport) -> tuple[object, ...]:
    who = (str(each.id)[: output.SHORT_ID], each.leader, each.hostname, each.pid, each.running)
    return (*who, _state(each), output.age(each.started_at), each.queues)


def _state(each: ServerReport) -> str:
    if not each.alive:
        return f"silent for {output.duration(each.last_beat_seconds)}"
    return "stopping" if each.stopping else "alive"
