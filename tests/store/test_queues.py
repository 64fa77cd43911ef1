"""Pausing, resuming and purging queues: nobody claims, whatever happens at the same moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from conductor_cli.store import queues, reports
from tests.support.sessions import Ears, background, wait_until_blocked
from tests.support.store import (
    add,
    add_many,
    claim,
    claim_one,
    end,
    finish,
    history,
    live,
    running,
    state,
)

if TYPE_CHECKING:
    from conductor_cli.database import Connection, Database
    from tests.support.clock import Clock


def test_nobody_claims_from_a_paused_queue_until_it_is_resumed(conn: Connection) -> None:
    held, ready, other = running(conn), add(conn), add(conn, queue="other")
    ears = Ears(conn, "conductor")
    assert queues.pause(conn, "q")
    assert not queues.pause(conn, "q")
    assert claim(conn) == []
    assert claim_one(conn, queue="other").id == other
    assert finish(conn, end(held)).missing == []
    assert queues.resume(conn, "q")
    assert not queues.resume(conn, "q")
    assert not queues.resume(conn, "never paused")
    assert claim_one(conn).id == ready
    assert ears.payloads() == ["pause:q", "resume:q"]


def test_a_pause_that_is_rolled_back_was_none(conn: Connection) -> None:
    add(conn)
    with conn.transaction(force_rollback=True):
        queues.pause(conn, "q")
    assert len(claim(conn)) == 1


def test_a_pause_waits_for_a_claim_that_is_under_way(conn: Connection, database: Database) -> None:
    first = add(conn)
    with database.connect("pausing") as pausing, background() as start:
        with conn.transaction():
            claimed = claim_one(conn)
            call = start(queues.pause, pausing, "q")
            with database.connect("watching") as watching:
                wait_until_blocked(watching, pausing)
            assert not call.done()
        assert call.result(10)
    assert claimed.id == first
    assert state(conn, first) == "running"


def test_a_claim_that_begins_before_a_pause_is_committed_finds_nothing_after_it(
    conn: Connection, database: Database
) -> None:
    add(conn)
    with database.connect("claiming") as claiming, background() as start:
        for _ in range(7):  # so that its plan is a generic one, too
            assert claim(claiming, queue="empty") == []
        with conn.transaction():
            queues.pause(conn, "q")
            call = start(claim, claiming)
            with database.connect("watching") as watching:
                wait_until_blocked(watching, claiming)
        assert call.result(10) == []


def test_what_is_no_name_cannot_be_paused(conn: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="a b"):
        queues.pause(conn, "a b")


def test_a_paused_queue_is_reported_even_when_it_is_empty(conn: Connection) -> None:
    queues.pause(conn, "none.yet")
    (report,) = reports.queues(conn)
    assert (report.queue, report.paused) == ("none.yet", True)
    queues.resume(conn, "none.yet")
    assert reports.queues(conn) == []


def test_an_execution_in_a_paused_queue_stands_there_because_of_that(conn: Connection) -> None:
    id = add(conn)
    queues.pause(conn, "q")
    standing = reports.standing(conn, id)
    assert standing is not None
    assert standing.paused


def test_a_purge_cancels_what_has_not_begun_batch_by_batch(conn: Connection, clock: Clock) -> None:
    clock.stop()
    held, waits = running(conn), running(conn)
    conn.execute(
        "update conductor.live set state = 'w', owner = null, run_at = null where id = %s",
        [waits.id],
    )
    ready, later, others = add_many(conn, 5), add_many(conn, 2, delay=60), add(conn, queue="p")
    (blocked,) = add_many(conn, 1)
    conn.execute("update conductor.live set state = 'b' where id = %s", [blocked])
    pending = queues.pending(conn, "q")
    assert pending.count == 8
    clock.advance(1)
    new = add(conn)
    counts = []
    while count := queues.purge(conn, "q", before=pending.counted_at, limit=3):
        counts.append(count)
    assert counts == [3, 3, 2]
    for id in (*ready, *later, blocked):
        assert history(conn, id).state == "k"
        assert history(conn, id).error["message"] == "purged"
    assert {state(conn, id) for id in (new, others)} == {"pending"}
    assert [live(conn, each.id).state for each in (held, waits)] == ["x", "w"]


def test_a_purge_skips_what_somebody_has_locked(conn: Connection, database: Database) -> None:
    locked, free = add(conn), add(conn)
    with database.connect("other") as other, other.transaction():
        other.execute("select from conductor.live where id = %s for update", [locked])
        pending = queues.pending(conn, "q")
        assert queues.purge(conn, "q", before=pending.counted_at, limit=10) == 1
    assert (state(conn, locked), state(conn, free)) == ("pending", "cancelled")
