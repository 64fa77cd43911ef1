"""What may be given to commands: before or after them, and to several alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")

LONGEST: Final = 1e9  # seconds: thirty years


@dataclass
class Given:
    """The options that every command takes.

    ``leaves_threads``: set by a command whose threads may still run tasks when it is done.
    """

    config: str | None = None
    database_url: str | None = None
    debug: bool = False
    leaves_threads: bool = False


def _store(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    if value:
        setattr(ctx.ensure_object(Given), str(parameter.name), value)


def _shared() -> list[click.Parameter]:
    """Made anew for each command: what comes after a command beats what came before it."""
    return [
        click.Option(
            ["--config"], metavar="FILE", expose_value=False, callback=_store,
            help="The configuration. Default: $CONDUCTOR_CONFIG, else ./conductor.toml.",
        ),
        click.Option(
            ["--database-url"], metavar="URL", expose_value=False, callback=_store,
            help="The database. Anybody here can read a password given so; better set "
            "$CONDUCTOR_DATABASE_URL.",
        ),
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_store,
            help="Show the traceback of an error.",
        ),
    ]  # fmt: skip


class Refused(click.ClickException):
    """A command was understood, and is not to be done: a value or a combination is wrong."""

    exit_code = 2


class Command(click.Command):
    """A command that also takes what every command takes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(_shared())

    def invoke(self, ctx: click.Context) -> Any:
        """Raises UsageError for words that neither Postgres nor JSON has a place for."""
        for parameter in self.params:
            value = ctx.params.get(str(parameter.name))
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not _is_unicode(text):
                    raise click.BadParameter(f"{text!r} is not text in UTF-8.", ctx, parameter)
        return super().invoke(ctx)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(_shared())

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """In the order in which one meets them."""
        return list(self.commands)


class ListByDefault(Group):
    """Lists when no command is named: ``conductor executions --state failed``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(
                f"`{ctx.command_path}` alone lists, with the options of `{ctx.command_path} list`."
            )


def _is_unicode(text: str) -> bool:
    """Whether all of its bytes could be read when it was typed."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


json_flag: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
queue_flags: Final = click.option(
    "--queue", "queues", multiple=True, metavar="QUEUE", help="Only this queue; may be repeated."
)


def server_flags(command: F) -> F:
    """Where the server listens."""
    host = click.option("--host", help="The address to listen at.")
    port = click.option(
        "--port", type=click.IntRange(0, 65535), help="The port to listen at; 0 takes any free one."
    )
    return host(port(command))


def server_overrides(host: str | None, port: int | None) -> Mapping[str, object]:
    """The server flags as settings."""
    return {"server.host": host, "server.port": port}


def seconds(text: str) -> float:
    """A duration in seconds: ``90``, ``1.5``, ``90s``, ``30m``, ``2d``, ``1w``, ``1h30m``."""
    found = _duration(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not a duration: give seconds, such as 90 or 1.5, or a number with its "
            "unit, such as 90s, 30m, 12h, 7d or 1h30m."
        )
    return found


def moment(text: str) -> datetime:
    """A moment: RFC 3339, in UTC where it names no zone, or a duration: so long ago."""
    try:
        if not re.fullmatch(r"\d{8}", text.strip()) and (ago := _duration(text)) is not None:
            return datetime.now(UTC) - timedelta(seconds=ago)
        given = datetime.fromisoformat(text.strip())
        return given if given.tzinfo else given.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a moment such as 2026-01-31T12:00:00Z nor an age such as 90, "
            "90s, 30m, 12h or 7d."
        ) from None


_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_NUMBER: Final = r"\d{1,10}(?:\.\d{1,9})?|\.\d{1,9}"


def _duration(text: str) -> float | None:
    """Seconds; None for what is no duration, or a longer one than anything here may take."""
    given = text.strip().lower()
    if not re.fullmatch(rf"(?:{_NUMBER})|(?:(?:{_NUMBER})[smhdw])+", given):
        return None
    parts = re.findall(rf"({_NUMBER})([smhdw]?)", given)
    found = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return found if found < LONGEST else None
