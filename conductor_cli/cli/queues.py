"""``conductor queues``: look and act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor_cli.client import Conductor
    from conductor_cli.errors import ConductorError
    from conductor_cli.store.queues import Pending
    from conductor_cli.store.reports import QueueReport

NOTHING_CHANGED: Final = 1
BATCH: Final = 1000
COLUMNS: Final = (
    *("queue", "paused", "ready", "scheduled", "retrying", "blocked", "waiting", "running"),
    *("oldest_ready_seconds", "finished_last_minute", "failed_last_minute"),
)
SHORT: Final = (
    *("queue", "paused", "ready", "later", "retry", "held", "wait", "run"),
    *("oldest", "done", "bad"),
)


@click.group(cls=options.ListByDefault)
def queues() -> None:
    """Look at queues, pause and resume them, empty one."""


@queues.command("list")
@options.json_flag
@click.pass_obj
def list_(given: options.Given, as_json: bool) -> None:
    """List queues with their counts."""
    from conductor_cli.cli import session

    with session.client(given) as conductor:
        found = _listed(conductor)
    if as_json:
        output.json(found)
    elif output.is_terminal():
        output.table(SHORT, [short(each) for each in found])
    else:
        output.table(COLUMNS, [[getattr(each, name) for name in COLUMNS] for each in found])


def short(each: QueueReport) -> list[object]:
    """A queue for people; what is done and has failed, in the last minute."""
    *shown, oldest, done, bad = (getattr(each, name) for name in COLUMNS)
    return [*shown, "" if oldest is None else output.duration(oldest), done, bad]


@queues.command()
@click.argument("queue")
@options.json_flag
@click.pass_obj
def pause(given: options.Given, queue: str, as_json: bool) -> int:
    """Let nothing of a queue start until it is resumed. What runs goes on."""
    return _act(given, queue, "paused", as_json=as_json)


@queues.command()
@click.argument("queue")
@options.json_flag
@click.pass_obj
def resume(given: options.Given, queue: str, as_json: bool) -> int:
    """Let a paused queue go on."""
    return _act(given, queue, "resumed", as_json=as_json)


@queues.command()
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Really do it.")
@options.json_flag
@click.pass_obj
def purge(given: options.Given, queue: str, yes: bool, as_json: bool) -> int:
    """Cancel everything of a queue that has not begun; only counted, unless --yes is given.

    What runs, and what waits for something in the middle of its work, goes on.
    """
    from conductor_cli.cli import session
    from conductor_cli.store import queues as store

    with session.client(given) as conductor:
        pending = conductor.database.retrying(lambda conn: store.pending(conn, queue))
        done = _purge(conductor, queue, pending) if yes else 0
        if not pending.count and _one(conductor, queue) is None:
            raise _unknown(conductor, queue)
    if as_json:
        output.json({"queue": queue, "pending": pending.count, "cancelled": done})
    elif yes:
        output.say(f"{done} of {pending.count} cancelled.")
    else:
        output.say(f"{pending.count} of queue {queue} would be cancelled.")
    if pending.count and not yes:
        output.tell("Nothing has changed: add --yes to do it.")
    elif not done:
        output.tell("Nothing changed.")
    return 0 if done else NOTHING_CHANGED


def _purge(conductor: Conductor, queue: str, pending: Pending) -> int:
    from conductor_cli.store import queues as store

    done, last = 0, BATCH
    while last:
        with conductor.database.transaction() as conn:
            last = store.purge(conn, queue, before=pending.counted_at, limit=BATCH)
        done += last
    return done


def _act(given: options.Given, queue: str, done: str, *, as_json: bool) -> int:
    """Pause or resume it, and say so. Exit code 1 when nothing has changed."""
    from conductor_cli.cli import session

    with session.client(given) as conductor:
        before = _one(conductor, queue)
        act = conductor.pause if done == "paused" else conductor.resume
        changed = _checked(act, queue)
        shown = _one(conductor, queue) or before
        if shown is None:
            raise _unknown(conductor, queue)
    if as_json:
        from msgspec import structs

        output.json(structs.replace(shown, paused=done == "paused"))
    elif changed:
        output.say(f"{queue} {done}.")
    else:
        output.say(f"{queue} not {done}: it was {'already' if done == 'paused' else 'not paused'}.")
    if before is None:
        output.tell(f"There is no queue {queue!r} yet; it is paused from its beginning.")
    if not changed:
        output.tell("Nothing changed.")
    return 0 if changed else NOTHING_CHANGED


def _checked(act: Callable[[str], bool], queue: str) -> bool:
    try:
        return act(queue)
    except ValueError as error:
        raise options.Refused(f"{error}.") from None


def _unknown(conductor: Conductor, queue: str) -> ConductorError:
    from conductor_cli.errors import ConductorError
    from conductor_cli.registry import nearest

    near = nearest(queue, [each.queue for each in _listed(conductor)])
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConductorError(f"There is no queue {queue!r}.{hint} `conductor queues` lists them.")


def _one(conductor: Conductor, queue: str) -> QueueReport | None:
    return next((each for each in _listed(conductor) if each.queue == queue), None)


def _listed(conductor: Conductor) -> list[QueueReport]:
    from conductor_cli.store import reports

    return conductor.database.retrying(reports.queues)
