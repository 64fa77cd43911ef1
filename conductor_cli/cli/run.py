"""``conductor run``: a task here and now, without queue, database or retries."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from conductor_cli.cli import options, output, payload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor_cli.attempt import Attempt
    from conductor_cli.cli.options import Given
    from conductor_cli.client import Conductor
    from conductor_cli.config import Config
    from conductor_cli.models import Claimed, ExecutionError, Outcome
    from conductor_cli.registry import Task
    from conductor_cli.runner import Runner

FAILED: Final = 1


@click.command(cls=options.Command, short_help="Run a task here and now, without a queue.")
@click.argument("task")
@payload.argument
@options.json_flag
@click.pass_obj
def run(given: Given, task: str, text: str | None, as_json: bool) -> int:
    """Run TASK here and now, once, and print its result as JSON.

    JSON is its payload, as for `conductor invoke`. Nothing is queued, recorded or retried, and no
    database is needed unless the task uses ctx.conductor. Exit code 1 if the task fails.
    """
    from conductor_cli import telemetry
    from conductor_cli.cli import session

    value = payload.read(text)
    config = session.settings(given, database=False)
    telemetry.configure(config.log.level, config.log.format)
    outcome = _run(given, config, session.tasks(config).named(task), value)
    telemetry.flush(1.0)
    return _show(outcome, as_json=as_json)


def _run(given: Given, config: Config, task: Task[..., Any], value: Any) -> Outcome:
    from conductor_cli.attempt import Attempt
    from conductor_cli.catalog import TaskSet
    from conductor_cli.runner import EventLoop, Runner
    from conductor_cli.surroundings import Surroundings
    from conductor_cli.unqueued import Unqueued

    claimed, limit = _claimed(task, value, config), config.tasks.max_payload
    with ExitStack() as stack:
        common = stack.enter_context(Surroundings(config.tasks))
        client = _client(given, stack)
        runner = Runner(
            TaskSet([task]), conductor=client, loop=EventLoop(), state=common.state, limit=limit,
            context=common.context, middleware=common.middleware,
        )  # fmt: skip
        attempt = Attempt(claimed)
        attempt.ledger = Unqueued(attempt, client, limit)
        with _timeout(runner, attempt):
            return runner.run(attempt)


def _claimed(task: Task[..., Any], value: Any, config: Config) -> Claimed:
    """What a worker would have claimed. Raises PayloadError."""
    from datetime import UTC, datetime

    from conductor_cli import payloads
    from conductor_cli.invoking import new_id
    from conductor_cli.models import Claimed

    given = {} if value is None and not task.binder.whole else value
    text = payloads.encode(given, f"The payload for task {task.name!r}", config.tasks.max_payload)
    task.binder.check(task.name, text)
    return Claimed(
        id=new_id(), token=0, task=task.name, payload=text, runs=1, failures=0, crashes=0,
        timeout=None, metadata=None, event=None, rank=0, run_at=datetime.now(UTC), seq=0,
        flags=0,
    )  # fmt: skip


def _client(given: Given, stack: ExitStack) -> Conductor:
    """A client that looks for its database when the task first uses it."""
    from conductor_cli import client
    from conductor_cli.cli import session

    class Late(client.Conductor):
        def __init__(self) -> None:
            """What a client consists of comes when it is first asked for."""

        def __getattr__(self, name: str) -> Any:
            if "database" in vars(self):
                raise AttributeError(f"a Conductor has no {name!r}")
            vars(self).update(vars(stack.enter_context(session.client(given))))
            return object.__getattribute__(self, name)

    return Late()


@contextmanager
def _timeout(runner: Runner, attempt: Attempt) -> Iterator[None]:
    """Ends the task when its timeout has passed, as a worker would."""
    seconds = runner.timeout_of(attempt.claimed)
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, _interrupt, [attempt])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _interrupt(attempt: Attempt) -> None:
    from conductor_cli import runner
    from conductor_cli.attempt import Abort

    attempt.signal.set(Abort.TIMEOUT, attempt.time_is_up)
    if attempt.cancel is None:
        runner.interrupt(attempt)


def _show(outcome: Outcome, *, as_json: bool) -> int:
    from conductor_cli import models

    match outcome:
        case models.Completed(result=result):
            (output.say if as_json else output.json_text)(result)
            return 0
        case models.Cancelled(reason=reason):
            output.tell(f"Error: The task cancelled itself{_because(reason)}.")
        case models.Failed(error=error):
            _show_error(error)
        case models.Retrying(error=None, delay=delay):
            output.tell(f"Error: The task asked to be run again in {delay:g} s.")
        case models.Retrying(error=error, delay=delay):
            _show_error(error)
            output.tell(f"From a queue it would be retried in {delay:.0f} s.")
        case models.HandedBack():
            output.tell("Error: The task gave up its attempt.")
    return FAILED


def _show_error(error: ExecutionError | None) -> None:
    from conductor_cli import telemetry

    assert error is not None
    for line in (error.traceback or "").rstrip().splitlines():
        output.tell(output.plain(telemetry.redact(line)))
    told = telemetry.redact(f"The task failed: {error.type}: {error.message}")
    output.tell(f"Error: {output.plain(told)}")


def _because(reason: str | None) -> str:
    return f": {output.plain(reason)}" if reason else ""
