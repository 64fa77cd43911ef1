"""Waiting for an execution, and saying why it does not run."""

from __future__ import annotations

import re
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final

from conductor_cli.cli import explanation, output
from conductor_cli.service import Deadline

if TYPE_CHECKING:
    from uuid import UUID

    from conductor_cli.client import Conductor

LOOKS: Final = (1.0, 2.0, 4.0, 8.0)  # seconds between looks; the last repeats


def patiently(conductor: Conductor, id: UUID, timeout: float | None) -> Any:
    """Its result. Says on stderr why it is not running, again whenever that has changed.

    Raises what ``Conductor.wait`` raises: TimeoutError when ``timeout`` seconds have passed.
    """
    deadline, said = Deadline(timeout), ""
    pauses = chain(LOOKS, repeat(LOOKS[-1]))
    while True:
        pause, left = next(pauses), deadline.remaining
        try:
            return conductor.wait(id, timeout=pause if left is None else min(pause, left))
        except TimeoutError:
            if deadline.has_passed:
                raise
        found = conductor.get(id)
        why = "" if found is None else explanation.of(conductor, found)
        if why and _without_numbers(why) != said:
            output.tell(output.plain(why))
            said = _without_numbers(why)


def _without_numbers(why: str) -> str:
    """A moment that comes nearer, or a queue that gets shorter, is no news."""
    return re.sub(r"\d+", "", why)
