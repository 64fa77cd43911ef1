"""Where everything that happened arrives, and the one output it goes to."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from logging import INFO
from typing import TYPE_CHECKING

from conductor_cli.telemetry import meters
from conductor_cli.telemetry.catalogue import CATALOGUE, UNKNOWN
from conductor_cli.telemetry.failures import Failures
from conductor_cli.telemetry.lines import Records
from conductor_cli.telemetry.summary import Summary
from conductor_cli.telemetry.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Context
    from typing import TextIO, TypeAlias

    from conductor_cli.telemetry.lines import Form
    from conductor_cli.telemetry.writer import Turn

    Handler: TypeAlias = Callable[[str, int, Mapping[str, object]], None]


def emit(event: str, /, *, count: int = 1, **fields: object) -> None:
    """Count, tell subscribers and log one event (``count`` of them at once; the line omits a 1).

    Never raises and never waits for output. Costs about 1 us when its level is not logged.
    """
    try:
        known = CATALOGUE.get(event, UNKNOWN)
        due = meters.count(event, known, count, fields)
        if (
            event == "executions.finished"
            and writer.form.enabled(INFO)
            and writer.summary.add(str(fields.get("state", "")), count)
        ):
            writer.wake()  # only now: it is to see that there is something to wait for
        if _subscribers:
            _tell(event, count, fields)
        if due and writer.form.enabled(known.level):
            writer.submit(known.level, event, fields if count == 1 else {"count": count, **fields})
    except Exception:
        writer.lose(1)


def subscribe(handler: Handler) -> Callable[[], None]:
    """Call ``handler(event, count, fields)`` for every event, whatever its level; returns the undo.

    It runs in the emitting thread, so it must be quick; what it raises is ignored.
    """
    entry = object()
    _subscribers[entry] = handler

    def undo() -> None:
        _subscribers.pop(entry, None)

    return undo


def flush(timeout: float) -> bool:
    """Wait until all lines so far are out, a pending summary too; at most ``timeout`` seconds.

    Returns whether they are. A line that the output refused counts as out.
    """
    until = time.monotonic() + timeout
    told = failures.flush(timeout)  # they may log, in their turn
    return writer.flush(max(0.0, until - time.monotonic())) and told


def failure(
    error: BaseException,
    told: str,
    *,
    final: bool,
    task: str,
    context: Context | None = None,
    **fields: object,
) -> None:
    """A record of the logger "conductor.task" about a run that failed; see ``failures``.

    ``context``: in which handlers are called; None: a copy of this one.
    """
    failures.tell(error, told, {"task": task, **fields}, final=final, context=context)


def write(text: str) -> None:
    """Put ``text`` between the lines, as it is; to stderr where no output has been configured."""
    if writer.stream is None:
        sys.stderr.write(text)
    else:
        writer.put(text)


def switch(form: Form, stream: TextIO | None, turn: Turn | None = None) -> None:
    """From now on lines take this form and go there; those on their way get a second to get out."""
    _replace(form, stream, turn).retire()


def _tell(event: str, count: int, fields: Mapping[str, object]) -> None:
    for handler in tuple(_subscribers.values()):
        with contextlib.suppress(Exception):
            handler(event, count, fields)


def _lose(count: int) -> None:
    writer.lose(count)


def _begin_in_child() -> None:
    """A forked child has no writer thread and may have inherited the writer's locks held."""
    _replace(writer.form, writer.stream, writer.turn)


def _replace(form: Form, stream: TextIO | None, turn: Turn | None) -> Writer:
    """Make a new writer the current one; returns the one before."""
    global writer
    previous, writer = writer, Writer(form, stream, Summary(emit), turn)
    return previous


_subscribers: dict[object, Handler] = {}
failures = Failures(_lose)
writer = Writer(Records(), None, Summary(emit))
os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(flush, 1.0)
