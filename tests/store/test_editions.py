"""Two versions of a program side by side: whose definitions are in force."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from conductor_cli.models import ScheduleSpec, TaskSpec
from conductor_cli.registration import Definitions, register
from conductor_cli.store import fleet
from tests.support.store import scalar

if TYPE_CHECKING:
    from conductor_cli.database import Connection, Database

TASK = TaskSpec(
    queue="q", name="t", home=True, priority=0, max_attempts=3, max_crashes=3,
    retain_completed=60.0, retain_failed=60.0, options={},
)  # fmt: skip
NIGHTLY = ScheduleSpec("t", "nightly", "q", "0 3 * * *", "UTC", "latest", "{}")

OLD = Definitions([TASK], [NIGHTLY])
NEW = Definitions(
    [replace(TASK, max_attempts=9)], [replace(NIGHTLY, name="hourly", expression="0 * * * *")]
)


def _start(database: Database, conn: Connection, given: Definitions) -> UUID:
    """As a server does: register, then join."""
    register(database, given)
    id = uuid4()
    fleet.join(
        conn, id, timeout=15, version="1", hostname="h", pid=1, queues=["q"], edition=given.edition
    )
    return id


def _in_force(conn: Connection) -> tuple[int, list[str]]:
    attempts = scalar(conn, "select max_attempts from conductor.tasks where name = 't'")
    names = conn.execute("select name from conductor.schedules order by name").fetchall()
    return attempts, [name for (name,) in names]


OLDS = (3, ["nightly"])
NEWS = (9, ["hourly"])


def test_the_same_definitions_have_the_same_edition() -> None:
    assert OLD.edition == Definitions([TASK], [NIGHTLY]).edition
    assert len({OLD.edition, NEW.edition, Definitions([TASK], []).edition}) == 3


def test_an_old_server_that_restarts_beside_a_new_one_changes_nothing(
    database: Database, conn: Connection
) -> None:
    _start(database, conn, OLD)
    assert _in_force(conn) == OLDS
    _start(database, conn, NEW)
    assert _in_force(conn) == NEWS
    _start(database, conn, OLD)
    assert _in_force(conn) == NEWS
    register(database, OLD, only_foreign=True)
    assert _in_force(conn) == NEWS


def test_the_old_definitions_are_back_once_no_new_server_is_left(
    database: Database, conn: Connection
) -> None:
    _start(database, conn, OLD)
    new = _start(database, conn, NEW)
    fleet.leave(conn, new)
    assert _in_force(conn) == NEWS
    assert register(database, OLD, only_foreign=True) == (1, 1)
    assert _in_force(conn) == OLDS
    assert register(database, OLD, only_foreign=True) == (0, 0)


@pytest.mark.parametrize("how", ["dead", "stopping"])
def test_a_new_server_that_is_leaving_or_dead_does_not_count(
    database: Database, conn: Connection, how: str
) -> None:
    _start(database, conn, OLD)
    new = _start(database, conn, NEW)
    if how == "dead":
        conn.execute("update conductor.orchestrators set timeout = 0.001 where id = %s", [new])
        time.sleep(0.05)
    else:
        fleet.beat(conn, new, stopping=True, stands=False, term=None, lease=15)
    register(database, OLD, only_foreign=True)
    assert _in_force(conn) == OLDS


def test_an_operators_word_makes_an_edition_the_latest(
    database: Database, conn: Connection
) -> None:
    _start(database, conn, OLD)
    _start(database, conn, NEW)
    register(database, OLD, anew=True)
    assert _in_force(conn) == OLDS
    _start(database, conn, OLD)
    _start(database, conn, NEW)  # restarts in the middle of the rollback
    assert _in_force(conn) == OLDS


def test_only_what_both_define_is_left_alone(database: Database, conn: Connection) -> None:
    own = replace(TASK, name="own")
    _start(database, conn, Definitions([TASK, own], [NIGHTLY]))
    _start(database, conn, NEW)
    mixed = Definitions(
        [TASK, replace(own, max_attempts=7)], [NIGHTLY, replace(NIGHTLY, task="own")]
    )
    conn.execute(
        "update conductor.editions set known_since = known_since + interval '1 hour'"
        " where edition = %s",
        [NEW.edition],
    )
    assert register(database, mixed) == (1, 1)
    assert _in_force(conn) == (9, ["hourly", "nightly"])
    assert scalar(conn, "select max_attempts from conductor.tasks where name = 'own'") == 7


def test_programs_that_share_no_task_do_not_disturb_each_other(
    database: Database, conn: Connection
) -> None:
    _start(database, conn, OLD)
    other = Definitions([replace(TASK, name="other")], [replace(NIGHTLY, task="other")])
    _start(database, conn, other)
    assert register(database, OLD, only_foreign=True) == (0, 0)
    assert scalar(conn, "select count(*) from conductor.schedules") == 2
