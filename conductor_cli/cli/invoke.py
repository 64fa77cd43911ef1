"""``conductor invoke``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from conductor_cli.cli import options, output, payload

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from conductor_cli.catalog import TaskSet
    from conductor_cli.client import Conductor
    from conductor_cli.config import Config
    from conductor_cli.registry import Task


@click.command(cls=options.Command)
@click.argument("task")
@payload.argument
@click.option("--queue", help="Another queue than the task's own.")
@click.option("--delay", type=options.seconds, help="Not before so many seconds have passed.")
@click.option("--priority", type=int, help="Higher goes first; default: the task's own.")
@click.option("--dedupe-key", help="Create none if one with this key has not ended.")
@click.option("--wait", is_flag=True, help="Wait until it has ended, and print its result.")
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
    as_json: bool,
) -> None:
    """Create one execution of TASK, and print its id.

    JSON is its payload: an object whose keys are the task's parameters; @FILE reads it from a
    file, - from stdin. With --wait the exit code is 1 if the execution fails or is cancelled;
    with --wait --json the whole execution is printed.
    """
    from conductor_cli.cli import session

    chosen = {"queue": queue, "delay": delay, "priority": priority, "dedupe_key": dedupe_key}
    asked = {name: value for name, value in chosen.items() if value is not None}
    value = payload.read(text)
    config = session.settings(given)
    tasks = _tasks_if_importable(config)
    with session.client(given) as conductor:
        created = _create(conductor, tasks, task, value, asked)
        if wait:
            _wait(conductor, created, as_json=as_json)
        elif as_json:
            output.json({"id": created})
        else:
            output.say(str(created))


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


def _wait(conductor: Conductor, id: UUID, *, as_json: bool) -> None:
    from conductor_cli.errors import ExecutionCancelled, ExecutionFailed

    output.tell(f"Waiting for {id}")
    try:
        result = conductor.wait(id)
        output.json(conductor.get(id) if as_json else result)
    except (ExecutionFailed, ExecutionCancelled):
        if as_json:
            output.json(conductor.get(id))
        raise
