"""One execution in words, and why it is not running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from conductor_cli.cli import output
from conductor_cli.store import reports

if TYPE_CHECKING:
    from conductor_cli.client import Conductor
    from conductor_cli.models import Execution
    from conductor_cli.store.reports import Moment, Standing


def of(conductor: Conductor, execution: Execution) -> str:
    """Why it stands where it does; empty for one that has ended."""
    if execution.state.has_ended:
        return ""
    standing = conductor.database.retrying(lambda conn: reports.standing(conn, execution.id))
    return "It has just ended." if standing is None else " ".join(_why(execution, standing))


def lines(execution: Execution) -> list[tuple[str, str]]:
    """Its fields that say something, as names and texts."""
    shown = [(name, _text(getattr(execution, name))) for name in execution.__dataclass_fields__]
    error = execution.error
    if error is not None and error.traceback:
        shown += [("", output.plain(line)) for line in error.traceback.rstrip().splitlines()]
    return [(name, text) for name, text in shown if text]


def timeline(conductor: Conductor, execution: Execution) -> list[str]:
    """What has happened to it, a line each."""
    moments = conductor.database.retrying(lambda conn: reports.timeline(conn, execution.id))
    return [output.plain(_moment(each)) for each in moments]


def _moment(each: Moment) -> str:
    run = "" if each.run is None else f"#{each.run}"
    what = " ".join(text for text in (each.what, each.name) if text)
    detail = f" ({output.cut(each.detail, 100)})" if each.detail else ""
    return f"{output.moment(each.at)}  {run:<4}{what}{detail}"


def _text(value: object) -> str:
    from conductor_cli.models import ExecutionError

    if isinstance(value, ExecutionError):
        return output.plain(f"{value.type}: {value.message}")
    if isinstance(value, (dict, list)):
        return output.plain(msgspec.json.encode(value).decode())
    return output.cell(value)


def _why(execution: Execution, standing: Standing) -> list[str]:
    match standing.state:
        case "x":
            return _running(standing)
        case "w":
            until = f", until {output.moment(execution.run_at)}" if standing.due_in else ""
            return [f"It waits for a child or an event{until}."]
        case "b":
            return ["It is held up by a limit of its task or its group."]
        case "s" if standing.due_in and standing.due_in > 0:
            return [_later(execution, standing.due_in), *_obstacles(execution, standing)]
    return _obstacles(execution, standing) or [_ahead(standing)]


def _running(standing: Standing) -> list[str]:
    asked = ["It has been asked to stop."] if standing.cancel_asked else []
    if standing.host is None:
        return ["Its server is gone; another one will soon take it back.", *asked]
    return [f"It runs on {standing.host} (pid {standing.pid}).", *asked]


def _later(execution: Execution, seconds: float) -> str:
    when = f"{output.moment(execution.run_at)}, in {output.duration(seconds)}"
    if execution.failures:
        times = "once" if execution.failures == 1 else f"{execution.failures} times"
        return f"It has failed {times}, and will be retried at {when}."
    return f"It is scheduled for {when}."


def _obstacles(execution: Execution, standing: Standing) -> list[str]:
    if standing.paused:
        return [f"Its queue is paused: `conductor queues resume {execution.queue}` lets it go on."]
    if not standing.servers:
        return [
            f"No server serves its queue {execution.queue!r}: start one with "
            "`conductor start-server`."
        ]
    if not standing.registered:
        return [
            f"No server serves the task {execution.task!r} in the queue {execution.queue!r}: add "
            "its module to [tasks] modules of one that serves the queue."
        ]
    return []


def _ahead(standing: Standing) -> str:
    if not standing.ahead:
        return "It is the next of its queue."
    many = "10,000 or more are" if standing.ahead >= 10_000 else f"{standing.ahead:,} are"
    return f"{'1 is' if standing.ahead == 1 else many} ahead of it in its queue."
