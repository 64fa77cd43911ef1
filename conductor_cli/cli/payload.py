"""The JSON argument of ``invoke`` and ``run``."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from conductor_cli.errors import PayloadError

argument = click.argument("text", required=False, metavar="[JSON]")


def read(text: str | None) -> Any:
    """The value of a payload given as JSON, ``@file`` or ``-``; None when none was given.

    Raises PayloadError, which says where it is not JSON.
    """
    import json

    if text is None:
        return None
    try:
        return json.loads(_text(text), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        message = error.msg[0].lower() + error.msg[1:]
        raise PayloadError(
            f"The payload is not JSON: {message} at {line}column {error.colno} of "
            f"{_beginning(text)}."
        ) from None
    except RecursionError:
        raise PayloadError("The payload is nested too deeply.") from None


def _text(given: str) -> str:
    from pathlib import Path

    try:
        if given == "-":
            return sys.stdin.read()
        return Path(given[1:]).read_text("utf-8-sig") if given.startswith("@") else given
    except OSError as error:
        raise PayloadError(f"The payload {given} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise PayloadError(f"The payload {given} is not UTF-8 text.") from None


def _refuse(constant: str) -> NoReturn:
    raise PayloadError(f"The payload is not JSON: it has no place for {constant}.")


def _beginning(given: str) -> str:
    if given == "-":
        return "stdin"
    shown = given if len(given) <= 60 else f"{given[:57]}..."
    return shown if given.startswith("@") else repr(shown)
