"""``conductor invoke``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from conductor_cli.cli import options, output, payload

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from conductor_cli.catalog import TaskSet
    from conductor_cli.client import Conductor
    from conductor_cli.config import Config
    from conductor_cli.registry import Task

CUT_SHORT: Final = 4


@click.command(cls=options.Command, short_help="Create one execution of a task.")
@click.argument("task")
@payload.argument
@click.option("--queue", help="Another queue than the task's own.")
@click.option(
    "--delay",
    type=options.seconds,
    metavar="DURATION",
    help="Not before so long from now, e.g. 90 or 2h.",
)
@click.option("--priority", type=int, help="Higher goes first; default: the task's own.")
@click.option("--dedupe-key", help="Create none if one with this key has not ended.")
@click.option("--wait", is_flag=True, help="Wait until it has ended, and print its result.")
@click.option(
    "--timeout",
    type=options.seconds,
    metavar="DURATION",
    help="Wait no longer than so, e.g. 90 or 2m; exit code 4.",
)
@options.json_flag
@click.pass_obj
def invoke(
    given: options.Given,
    *,
    task: str,
    text: str | None,
    queue: str | None,
    delay: float | None,
    priority: int | None,
    dedupe_key: str | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Create one execution of TASK, and print its id.

    JSON is its payload: an object whose keys are the task's parameters; @FILE reads it from a
    file, - from stdin. With --wait the exit code is 1 if the execution fails or is cancelled, and 4
    if it has not ended in time; what keeps it from running is told. With --wait --json the whole
    execution is printed.
    """
    from conductor_cli.cli import session

    if timeout is not None and not wait:
        raise options.Refused("--timeout goes with --wait.")

    chosen = {"queue": queue, "delay": delay, "priority": priority, "dedupe_key": dedupe_key}
    asked = {name: value for name, value in chosen.items() if value is not None}
    value = payload.read(text)
    config = session.settings(given)
    tasks = _tasks_if_importable(config)
    with session.client(given) as conductor:
        created = _create(conductor, tasks, task, value, asked)
        if wait:
            return _wait(conductor, created, timeout, as_json=as_json)
    if as_json:
        output.json({"id": created})
    else:
        output.say(str(created))
    return 0


def _tasks_if_importable(config: Config) -> TaskSet:
    """To check the payload here already; a machine without the application may invoke, too."""
    from conductor_cli.catalog import TaskSet
    from conductor_cli.cli import session
    from conductor_cli.errors import TaskDefinitionError

    try:
        return session.tasks(config)
    except TaskDefinitionError as error:
        output.tell(f"The payload is not checked here: {output.plain(str(error))}")
        return TaskSet()


def _create(
    conductor: Conductor, tasks: TaskSet, name: str, value: Any, asked: Mapping[str, Any]
) -> UUID:
    from conductor_cli import errors, registry

    task: Task[..., Any] | str = tasks.get(name) or name
    try:
        return conductor.invoke(task, value, **asked)
    except errors.UnknownTask as error:
        near = registry.nearest(name, {*(known.name for known in tasks), *error.nearest})
        raise errors.UnknownTask(
            name, near, "`conductor tasks` lists those of your modules; --queue skips this check."
        ) from None
    except ValueError as error:
        raise options.Refused(f"{error}.") from None
    except errors.ConductorError as error:
        if type(error) is errors.ConductorError:  # only its triggers may run it
            raise options.Refused(str(error)) from None
        raise


def _wait(conductor: Conductor, id: UUID, timeout: float | None, *, as_json: bool) -> int:
    """Print the result; say meanwhile what it waits for."""
    from conductor_cli.cli import explanation, waiting
    from conductor_cli.errors import ExecutionCancelled, ExecutionFailed

    output.tell(f"Waiting for {id}")
    try:
        result = waiting.patiently(conductor, id, timeout)
    except KeyboardInterrupt:
        output.tell(f"No longer waiting. `conductor executions show {id}` tells how it goes on.")
        raise
    except TimeoutError:
        found = conductor.get(id)
        if as_json:
            output.json(found)
        why = "" if found is None else explanation.of(conductor, found)
        told = f"Execution {id} has not ended after {timeout:g} s. {why}"
        output.tell(f"Error: {output.plain(told.strip())}")
        return CUT_SHORT
    except (ExecutionFailed, ExecutionCancelled):
        if as_json:
            output.json(conductor.get(id))
        raise
    output.json(conductor.get(id) if as_json else result)
    return 0
