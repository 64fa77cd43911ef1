"""What commands print: JSON for programs, tables for people, tab-separated lines for pipes."""

from __future__ import annotations

import io
import os
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime
    from typing import TextIO

SHORT_ID: Final = 18  # characters: enough to be unique, and to be found by


def prepare() -> None:
    """No locale makes printing fail: what it cannot show is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print to stdout; a reader who has gone away is no error."""
    _write(sys.stdout, text)


def tell(text: str) -> None:
    """Print to stderr: what is not the answer itself."""
    _write(sys.stderr, text)


def flush() -> None:
    """Nothing printed so far waits in a buffer."""
    _write(sys.stdout, None)
    _write(sys.stderr, None)


def is_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


def json(value: object) -> None:
    """Print a value as JSON: moments as RFC 3339 in UTC, UUIDs as text; indented for people."""
    import msgspec

    json_text(msgspec.json.encode(value).decode())


def json_text(text: str) -> None:
    """Print JSON text; indented for people."""
    import msgspec

    say(msgspec.json.format(text, indent=2) if is_terminal() else text)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str = "",
    folds: Collection[str] = (),
) -> None:
    """Print a table; into a pipe a header line and tab-separated rows.

    ``folds``: the columns whose texts may be broken on a terminal that is too narrow for them.
    """
    texts = [[cell(value) for value in row] for row in rows]
    if is_terminal():
        _show(columns, texts, title, folds)
    else:
        say("\n".join("\t".join(row) for row in [columns, *texts]))


def cell(value: object) -> str:
    """A value in one line, with nothing in it that a terminal would obey."""
    from datetime import datetime

    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.1f}".removesuffix(".0")
        case datetime():
            return moment(value)
        case list() | tuple():
            return ", ".join(map(cell, value))
    return plain(str(value))


def plain(text: str) -> str:
    """Text in one line, its control characters escaped."""
    return text if text.isprintable() else "".join(map(_plain, text))


def moment(value: datetime | None) -> str:
    """A moment to the second, in UTC."""
    from datetime import UTC

    if value is None:
        return ""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(value: datetime) -> str:
    """How long ago a moment was, by this clock."""
    return duration(max(0.0, time.time() - value.timestamp()))


def duration(seconds: float) -> str:
    """A duration, roughly."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def since(value: datetime | None) -> str:
    """How long ago a moment was, by this clock."""
    return "" if value is None else f"{age(value)} ago"


def until(value: datetime | None) -> str:
    """In how long a moment comes, by this clock."""
    if value is None:
        return ""
    left = value.timestamp() - time.time()
    return f"in {duration(left)}" if left > 0 else "due"


def cut(text: str, limit: int) -> str:
    """The beginning of a text."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_line(text: str) -> str:
    """The first line of a text, with a sign when there are more."""
    first, *more = text.strip().splitlines() or [""]
    return f"{first} …" if more else first


def _plain(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def _show(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, folds: Collection[str]
) -> None:
    from rich.console import Console

    from conductor_cli.cli import tables

    console = Console()
    if title:
        console.print(title, style="italic", markup=False, highlight=False)
    head, *rest = tables.lines(columns, rows, console.width, folds) or ["There are none."]
    style = "bold" if rest and rest[0].startswith(tables.RULE) else None
    console.print(head, style=style, markup=False, highlight=False, soft_wrap=True)
    if rest:
        say("\n".join(rest))


def _write(stream: TextIO | None, text: str | None) -> None:
    if stream is None:  # it was closed when we were started
        return
    try:
        if text is not None:
            stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        # What is still in the buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
