"""The command: words to calls, errors to exit codes.

``options`` (what is given before and after a command), ``session`` (a client that is ready to
use), ``output``, ``failures`` and ``process`` serve all commands; each command has a room of its
own. Only click is imported here: whatever else a command needs, it imports when it runs, so that
``conductor --help`` costs what click costs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from conductor_cli.cli import output
from conductor_cli.cli.doctor import doctor
from conductor_cli.cli.drain import drain
from conductor_cli.cli.executions import executions
from conductor_cli.cli.generate_task import generate_task
from conductor_cli.cli.healthcheck import healthcheck
from conductor_cli.cli.init import init
from conductor_cli.cli.invoke import invoke
from conductor_cli.cli.migrate import migrate
from conductor_cli.cli.options import Given, Group
from conductor_cli.cli.queues import queues
from conductor_cli.cli.run import run
from conductor_cli.cli.schedules import schedules
from conductor_cli.cli.start_server import start_server
from conductor_cli.cli.status import status
from conductor_cli.cli.tasks import tasks
from conductor_cli.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED: Final = 130
LAST_LINES_WITHIN: Final = 0.4  # seconds


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="conductor")
def root() -> None:
    """Background jobs, cron and durable work for Python, on nothing but Postgres."""


for _command in (
    *(init, start_server, drain, migrate, invoke, run, tasks, generate_task),
    *(executions, schedules, queues, status, doctor, healthcheck),
):
    root.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    output.prepare()
    given = Given()
    try:
        code = root.main(arguments, prog_name="conductor", standalone_mode=False, obj=given)
    except click.Abort:
        code = INTERRUPTED
    except Exception as error:
        from conductor_cli.cli import failures

        code = failures.report(error, debug=given.debug)
    if given.leaves_threads:
        _leave(code or 0)
    return code or 0


def _leave(code: int) -> None:
    """End the process now, once everything said is out: no thread goes on with a task."""
    from conductor_cli import telemetry

    telemetry.flush(LAST_LINES_WITHIN)
    output.flush()
    os._exit(code)
