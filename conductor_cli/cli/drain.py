"""``conductor drain``."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conductor_cli.models import DrainReport
    from conductor_cli.orchestrator import Orchestrator

CUT_SHORT: Final = 4
ASK_AGAIN: Final = 0.02


@click.command(cls=options.Command, short_help="Work until nothing is left to run now.")
@options.queue_flags
@click.option(
    "--timeout",
    type=options.seconds,
    metavar="DURATION",
    help="Stop after so long, e.g. 90 or 5m; exit code 4.",
)
@click.option("--wait-until-empty", is_flag=True, help="Wait for what is due later, too.")
@click.option("--retry-now", is_flag=True, help="Retry what fails at once, without its backoff.")
@options.json_flag
@click.pass_obj
def drain(
    given: options.Given,
    *,
    queues: Sequence[str],
    timeout: float | None,
    wait_until_empty: bool,
    retry_now: bool,
    as_json: bool,
) -> int:
    """Work until nothing is left that could run now, then stop.

    Exit code 1: an execution failed, or waits to be retried; 4: it was cut short.
    """
    from conductor_cli import telemetry
    from conductor_cli.cli import process, session
    from conductor_cli.orchestrator import Orchestrator

    process.begin(lambda: os._exit(CUT_SHORT))  # nothing has been started yet
    config = session.settings(given)
    telemetry.configure(config.log.level, config.log.format)
    session.tasks(config, None)
    with session.located(config, output.tell) as found:
        orchestrator = Orchestrator.from_config(found, queues=queues)
        session.reach(orchestrator.conductor.database)
        given.leaves_threads = True
        with _ended_by_signals(orchestrator, config.coordinator.shutdown_timeout):
            report = orchestrator.drain(
                timeout, wait_until_empty=wait_until_empty, retry_now=retry_now
            )
        given.leaves_threads = report.timed_out
        orchestrator.close()
    _show(report, as_json=as_json)
    return exit_code(report)


def exit_code(report: DrainReport) -> int:
    """Cut short beats failed."""
    if report.timed_out:
        return CUT_SHORT
    return 1 if report.failed or report.left_retrying else 0


@contextmanager
def _ended_by_signals(orchestrator: Orchestrator, shutdown_timeout: float) -> Iterator[None]:
    from conductor_cli.interrupts import Signals

    def end_early() -> None:
        _end_at_the_latest(shutdown_timeout)
        _end_early(orchestrator)

    with Signals(end_early, orchestrator.hurry, owns_hangup=True):
        yield


def _end_early(orchestrator: Orchestrator) -> None:
    """A stop that comes before the drain has begun is not heard: ask until it is."""
    while not (orchestrator.info.is_shutting_down or orchestrator.info.is_stopped):
        orchestrator.stop()
        time.sleep(ASK_AGAIN)


def _end_at_the_latest(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, [CUT_SHORT])
    timer.daemon = True
    timer.start()


def _show(report: DrainReport, *, as_json: bool) -> None:
    if as_json:
        output.json(report)
        return
    how = "Cut short after" if report.timed_out else "Drained in"
    output.say(
        f"{how} {report.elapsed:.1f} s: {report.completed} completed, {report.failed} failed, "
        f"{report.cancelled} cancelled."
    )
    left = {
        "to be retried": report.left_retrying,
        "due later": report.left_scheduled,
        "waiting": report.left_waiting,
        "held up by a limit": report.left_blocked,
        "of tasks not served here": report.left_unserved,
    }
    if any(left.values()):
        output.say("Left: " + ", ".join(f"{n} {what}" for what, n in left.items() if n) + ".")
    for failure in report.failures:
        why = f": {failure.error.type}: {failure.error.message}" if failure.error else ""
        output.say(f"Failed: {failure.id} {failure.task}{output.cut(output.plain(why), 200)}")
