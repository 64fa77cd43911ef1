"""Attempts and runs, as everyone outside counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from conductor_cli.models import ExecutionError, HandedBack, Park, Retrying, Suspended
from conductor_cli.store import claims, endings, executions, fleet, reports
from conductor_cli.store.claims import Requeued
from conductor_cli.store.endings import Leaving
from tests.support.store import BROKEN, add, claim_one, end, finish, running

if TYPE_CHECKING:
    from conductor_cli.database import Connection
    from conductor_cli.models import Claimed

FAILED = Retrying(0.0, ExecutionError("ValueError", "no"), counts=True)
SNOOZED = Retrying(0.0, None, counts=False)


def counted(conn: Connection, id: UUID) -> tuple[int, int, int, int]:
    """attempt, runs, failures, crashes."""
    found = reports.get(conn, id)
    assert found is not None
    return found.attempt, found.runs, found.failures, found.crashes


def requeue(conn: Connection, claimed: Claimed, outcome: Retrying | HandedBack) -> None:
    assert claims.requeue(conn, [Requeued(claimed.id, claimed.token, outcome)])


def resumed(conn: Connection, claimed: Claimed) -> Claimed:
    leaving = Leaving(claimed.id, claimed.token, Suspended("s", Park.SLEEPS, claimed.run_at, 0))
    assert endings.suspend(conn, [leaving])
    return claim_one(conn)


def test_an_attempt_lasts_through_resumptions_crashes_and_snoozes_until_it_fails(
    conn: Connection,
) -> None:
    made = add(conn)
    assert counted(conn, made) == (1, 0, 0, 0)
    claimed = claim_one(conn)
    assert (claimed.attempt, claimed.runs) == (1, 1)
    claimed = resumed(conn, claimed)
    assert (claimed.attempt, claimed.runs) == (1, 2)
    fleet.rescue(conn)
    assert counted(conn, made) == (1, 2, 0, 1)
    requeue(conn, claim_one(conn), SNOOZED)
    assert counted(conn, made) == (1, 3, 0, 1)
    requeue(conn, claim_one(conn), FAILED)
    assert counted(conn, made) == (2, 4, 1, 1)
    assert claim_one(conn).attempt == 2


def test_a_hand_back_takes_its_run_back(conn: Connection) -> None:
    claimed = running(conn)
    requeue(conn, claimed, HandedBack(0.0))
    assert counted(conn, claimed.id) == (1, 0, 0, 0)


def test_an_ended_execution_names_the_attempt_that_ended_it(conn: Connection) -> None:
    claimed = running(conn)
    requeue(conn, claimed, FAILED)
    finish(conn, end(claim_one(conn)))
    assert counted(conn, claimed.id) == (2, 2, 1, 0)

    claimed = running(conn)
    requeue(conn, claimed, FAILED)
    finish(conn, end(claim_one(conn), BROKEN))
    assert counted(conn, claimed.id) == (2, 2, 2, 0)

    claimed = running(conn)
    requeue(conn, claimed, FAILED)
    assert executions.cancel(conn, claimed.id, None)
    assert counted(conn, claimed.id) == (2, 1, 1, 0)

    made = add(conn)
    assert executions.cancel(conn, made, None)
    assert counted(conn, made) == (1, 0, 0, 0)


def test_a_crash_that_ends_an_execution_is_no_failure_of_its_attempt(conn: Connection) -> None:
    made = add(conn)
    for _ in range(4):
        claim_one(conn, uuid4())
        fleet.rescue(conn)
    assert counted(conn, made) == (1, 4, 0, 4)


def test_an_operators_retry_counts_attempts_anew_and_runs_on(conn: Connection) -> None:
    claimed = running(conn)
    finish(conn, end(claimed, BROKEN))
    assert executions.retry(conn, claimed.id)
    assert counted(conn, claimed.id) == (1, 1, 0, 0)
    assert claim_one(conn).runs == 2


def test_a_running_one_that_was_asked_to_stop_says_so(conn: Connection) -> None:
    claimed = running(conn, dedupe_key="k")
    assert executions.cancel(conn, claimed.id, "why")
    found = reports.get(conn, claimed.id)
    assert found is not None
    assert (found.cancel_requested, found.dedupe_key, found.state) == (True, "k", "running")
