"""What a check finds, and what it is given to look at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conductor_cli.catalog import TaskSet
    from conductor_cli.config import Config
    from conductor_cli.database import Connection, Database


class Level(StrEnum):
    """``warning``: it will hurt some day, or only slows things down; ``error``: it is wrong now."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found; ``advice``: what to do about it, empty when all is well."""

    check: str
    level: Level
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What a check looks at. ``conn`` is the check's own, read only and bounded in time.

    ``tasks``: None when they could not be loaded; ``wall`` is this machine's clock.
    """

    conn: Connection
    database: Database
    config: Config
    tasks: TaskSet | None
    wall: Callable[[], float] = time.time


Findings: TypeAlias = Iterator[Finding]

SHOWN: Final = 5  # of a list of things found


def ok(check: str, message: str) -> Finding:
    return Finding(check, Level.OK, message)


def warning(check: str, message: str, advice: str) -> Finding:
    return Finding(check, Level.WARNING, message, advice)


def error(check: str, message: str, advice: str) -> Finding:
    return Finding(check, Level.ERROR, message, advice)


def some(things: Sequence[object]) -> str:
    """The first of a list, and how many there are besides."""
    text = ", ".join(map(str, things[:SHOWN]))
    return text if len(things) <= SHOWN else f"{text} and {len(things) - SHOWN} more"


def duration(seconds: float) -> str:
    """A duration, roughly."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def size(bytes: float) -> str:
    """An amount of storage, roughly."""
    for unit, factor in (("GB", 1 << 30), ("MB", 1 << 20)):
        if bytes >= factor:
            return f"{bytes / factor:.1f} {unit}"
    return f"{bytes / 1024:.0f} kB"
