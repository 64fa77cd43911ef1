"""Marks on what is waited for: every way to end tells of a marked row, and of no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from conductor_cli.models import HandedBack, Retrying
from conductor_cli.store import claims, executions, fleet
from conductor_cli.store.claims import Requeued
from tests.support.sessions import Ears
from tests.support.store import (
    BROKEN,
    DONE,
    STOPPED,
    add,
    claim_one,
    end,
    finish,
    live,
    register,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor_cli.database import Connection, Database

ENDED = "conductor_ended"


def mark(conn: Connection, *ids: UUID) -> dict[UUID, bool]:
    return executions.mark(conn, ids, ping=None)


@pytest.mark.parametrize("outcome", [DONE, BROKEN, STOPPED])
@pytest.mark.parametrize("keep", [0, 60.0, None])
def test_an_end_is_told_of_what_is_marked_and_of_nothing_else(
    conn: Connection, outcome: Any, keep: float | None
) -> None:
    marked, other = running(conn), running(conn)
    assert mark(conn, marked.id) == {marked.id: True}
    ears = Ears(conn, ENDED)
    assert finish(conn, end(marked, outcome, keep), end(other, outcome, keep)).missing == []
    assert ears.heard() == [(ENDED, str(marked.id))]


def _cancel(conn: Connection, id: UUID) -> None:
    assert executions.cancel(conn, id, None)


def _crash(conn: Connection, id: UUID) -> None:
    register(conn, "t", max_crashes=0)
    assert claim_one(conn, uuid4()).id == id
    assert fleet.rescue(conn)[0].crashed == 1


def _lose_a_cancelled_one(conn: Connection, id: UUID) -> None:
    owner = uuid4()
    assert claim_one(conn, owner).id == id
    assert executions.cancel(conn, id, None)
    assert claims.reconcile(conn, owner, "q", list) == 1


@pytest.mark.parametrize("way", [_cancel, _crash, _lose_a_cancelled_one])
def test_every_other_way_to_end_tells_of_it_too(
    conn: Connection, way: Callable[[Connection, UUID], None]
) -> None:
    marked = add(conn)
    mark(conn, marked)
    ears = Ears(conn, ENDED)
    way(conn, marked)
    assert live(conn, marked) is None
    assert ears.heard() == [(ENDED, str(marked))]


@pytest.mark.parametrize("outcome", [Retrying(0.0, None, counts=True), HandedBack(0.0)])
def test_a_mark_outlives_an_attempt_that_is_not_the_last(conn: Connection, outcome: Any) -> None:
    first = running(conn)
    mark(conn, first.id)
    ears = Ears(conn, ENDED)
    claims.requeue(conn, [Requeued(first.id, first.token, outcome)])
    assert ears.heard() == []
    finish(conn, end(claim_one(conn)))
    assert ears.heard() == [(ENDED, str(first.id))]


def test_what_has_ended_or_never_was_cannot_be_marked(conn: Connection) -> None:
    ended = running(conn)
    finish(conn, end(ended))
    assert mark(conn, ended.id, uuid4()) == {}


def test_a_row_that_somebody_has_locked_is_left_unmarked_and_not_waited_for(
    conn: Connection, database: Database
) -> None:
    locked, free = add(conn), add(conn)
    with database.connect("other") as other, other.transaction():
        other.execute("select from conductor.live where id = %s for update", [locked])
        assert mark(conn, locked, free) == {locked: False, free: True}
    assert mark(conn, locked, free) == {locked: True, free: True}


def test_marking_what_is_ready_wakes_the_worker_that_may_have_skipped_it(conn: Connection) -> None:
    held, ready, later = running(conn), add(conn, rank=-3), add(conn, delay=60)
    ears = Ears(conn, "conductor")
    mark(conn, ready, later, held.id)
    assert ears.payloads() == ["ready:-3:q"]
    mark(conn, ready, later, held.id)
    assert ears.payloads() == []


def test_a_ping_comes_back_on_its_channel(conn: Connection) -> None:
    ears = Ears(conn, "mine")
    id = add(conn)
    for _ in range(2):
        executions.mark(conn, [id], ping="mine")
        assert ears.heard() == [("mine", "ping")]


def test_a_mark_is_in_time_before_the_end_is_committed_or_there_is_nothing_to_mark(
    conn: Connection, database: Database
) -> None:
    held = running(conn)
    ears = Ears(conn, ENDED)
    with database.connect("other") as other, other.transaction():
        finish(other, end(held))
        assert mark(conn, held.id) == {held.id: False}  # so it is asked again
    assert mark(conn, held.id) == {}
    assert ears.heard() == []


def test_the_cancel_of_one_that_is_not_kept_is_told_too(conn: Connection) -> None:
    register(conn, "t", retain_failed=0)
    marked = add(conn)
    mark(conn, marked)
    ears = Ears(conn, ENDED)
    assert executions.cancel(conn, marked, None)
    assert ears.heard() == [(ENDED, str(marked))]
