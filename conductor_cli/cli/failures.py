"""The one place where an error becomes a line to read and an exit code."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

import click

from conductor_cli import errors, telemetry
from conductor_cli.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

WORK_FAILED: Final = 1
BAD_USAGE: Final = 2
SCHEMA_TOO_NEW: Final = 3
CUT_SHORT: Final = 4
UNREACHABLE: Final = 5


def report(error: Exception, *, debug: bool) -> int:
    """Say what happened, a line for each problem, and return the exit code it stands for."""
    if debug:
        output.tell(telemetry.redact("".join(traceback.format_exception(error)).rstrip()))
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return BAD_USAGE
    error = _told(error)
    for line in lines(error):
        output.tell(f"Error: {output.plain(telemetry.redact(line))}")
    return exit_code(error)


def lines(error: Exception) -> Sequence[str]:
    """What a person should read."""
    match error:
        case errors.ConfigError():
            return error.problems
        case click.UsageError():
            return [_usage(error)]
        case click.ClickException():
            return [error.format_message()]
        case errors.ConductorError():
            return [" ".join(str(error).split("\n"))]
        case OSError() if error.filename is not None:
            return [f"{error.filename}: {error.strerror}."]
    text = " ".join(str(error).split())
    return [f"{type(error).__name__}: {text} (--debug shows where)"]


def exit_code(error: Exception) -> int:
    """The exit code of an error that ended a command."""
    match error:
        case click.ClickException():
            return error.exit_code
        case errors.SchemaTooNew():
            return SCHEMA_TOO_NEW
        case errors.ShutdownTimeout():
            return CUT_SHORT
        case errors.DatabaseUnavailable() if not isinstance(error, errors.DatabaseBusy):
            return UNREACHABLE
        case (
            errors.ConfigError()
            | errors.TaskDefinitionError()
            | errors.UnknownTask()
            | errors.PayloadError()
        ):
            return BAD_USAGE
    return WORK_FAILED


def _told(error: Exception) -> Exception:
    """The error, or what it means where a driver raised it."""
    if isinstance(error, errors.ConductorError | click.ClickException):
        return error
    from conductor_cli import driver_errors

    if not driver_errors.is_of_driver(error):
        return error
    return driver_errors.told(error, "the database")


def _usage(error: click.UsageError) -> str:
    where = error.ctx.command_path if error.ctx is not None else "conductor"
    message = " ".join(error.format_message().split())
    return f"{message} `{where} --help` shows what there is."
