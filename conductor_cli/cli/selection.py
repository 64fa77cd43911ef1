"""Which executions are meant: ids by their beginning, or filters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import UUID

from conductor_cli import errors
from conductor_cli.cli import options, output
from conductor_cli.models import State
from conductor_cli.store import reports

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from conductor_cli.client import Conductor
    from conductor_cli.models import Execution


def matching(
    conductor: Conductor,
    *,
    state: str | None,
    task: str | None,
    queue: str | None,
    group: str | None,
    error: str | None,
    since: datetime | None,
    limit: int,
) -> list[Execution]:
    """Executions that match all that is given, newest first."""
    return conductor.database.retrying(
        lambda conn: reports.list_executions(
            conn, state=None if state is None else State(state), task=task, queue=queue,
            group=group, error=error, since=since, limit=limit,
        )
    )  # fmt: skip


def one(conductor: Conductor, given: str) -> Execution:
    """The execution whose id begins so. Raises when there is none, or more than one."""
    low, high = _range(given)
    found = conductor.database.retrying(lambda conn: reports.by_prefix(conn, low, high, 4))
    if not found and low == high:
        raise errors.ExecutionNotFound(low)
    if not found:
        raise errors.ConductorError(f"No execution has an id that begins with {given!r}.")
    if len(found) > 1:
        several = ", ".join(str(each.id) for each in found[:3])
        more = ", ..." if len(found) > 3 else ""
        raise options.Refused(
            f"{given!r} is the beginning of several ids: {several}{more}. Give more of it."
        )
    return found[0]


def named(conductor: Conductor, given: Sequence[str]) -> list[Execution]:
    """The executions meant, each once, in the order given."""
    return list({each.id: each for each in (one(conductor, text) for text in given)}.values())


def ambiguous(conductor: Conductor, found: Sequence[Execution]) -> set[UUID]:
    """Those whose ids need more than their beginning, as tables show it, to be told apart."""
    ranges = {each.id: _range(str(each.id)[: output.SHORT_ID]) for each in found}
    return set(conductor.database.retrying(lambda conn: reports.with_neighbours(conn, ranges)))


def _range(given: str) -> tuple[UUID, UUID]:
    digits = given.strip().lower().replace("-", "")
    if not re.fullmatch(r"[0-9a-f]{1,32}", digits):
        raise options.Refused(f"{output.cut(given, 60)!r} is not the beginning of an id.")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
