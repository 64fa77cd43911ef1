"""Claim and end: who gets what, and whose writes count."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest

from conductor_cli.models import Cancelled, Completed, ExecutionError, Failed, HandedBack
from conductor_cli.store import claims, executions, fleet
from conductor_cli.store.claims import Ended, Place, Requeued
from tests.support.sessions import at_once
from tests.support.store import (
    BROKEN,
    DAY,
    DONE,
    STOPPED,
    add,
    add_many,
    claim,
    claim_one,
    end,
    enqueue,
    exchange,
    finish,
    history,
    join,
    live,
    running,
    scalar,
    spec,
    state,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.database import Connection, Database
    from conductor_cli.models import Claimed
    from tests.support.clock import Clock


# ── Claim ───────────────────────────────────────────────────────────────────────────────────


def test_the_claim_goes_by_priority_then_moment_then_order(conn: Connection, clock: Clock) -> None:
    now = clock.stop()
    earlier, later = now - timedelta(seconds=2), now - timedelta(seconds=1)
    wanted = [("a", -1, later), ("b", 0, earlier), ("c", 0, later), ("d", 0, later), ("e", 3, now)]
    shuffled = [wanted[i] for i in (4, 2, 1, 3, 0)]
    enqueue(conn, *[spec(payload=p, rank=rank, run_at=at) for p, rank, at in shuffled])
    assert [json.loads(c.payload) for c in claim(conn)] == list("abcde")


def test_a_claim_names_owner_token_and_attempt(conn: Connection, clock: Clock) -> None:
    now = clock.stop()
    made = add(conn, payload={"a": 1}, rank=2, timeout=7.5, metadata={"m": 1}, event={"name": "e"})
    owner = uuid4()
    claimed = claim_one(conn, owner, token=77)
    row = live(conn, made)
    assert (claimed.id, claimed.token, claimed.task, claimed.payload) == (
        made, 77, "t", '{"a": 1}',
    )  # fmt: skip
    assert (claimed.runs, claimed.failures, claimed.crashes) == (1, 0, 0)
    assert (claimed.timeout, claimed.metadata, claimed.event) == (7.5, '{"m": 1}', '{"name": "e"}')
    assert (claimed.rank, claimed.run_at, claimed.seq) == (2, now, row.seq)
    assert (row.state, row.owner, row.token, row.runs) == ("x", owner, 77, 1)
    assert row.started_at == now
    assert state(conn, made) == "running"


def test_a_claim_takes_at_most_its_limit(conn: Connection) -> None:
    ids = add_many(conn, 5)
    assert [c.id for c in claim(conn, limit=2)] == ids[:2]
    assert claim(conn, limit=0) == []
    assert [c.id for c in claim(conn, limit=9)] == ids[2:]
    assert claim(conn) == []


def test_a_claim_takes_only_its_queue_and_the_tasks_it_serves(conn: Connection) -> None:
    mine = add(conn)
    also = add(conn, "u")
    add(conn, queue="p")
    add(conn, "unserved", rank=-100)
    assert [c.id for c in claim(conn, tasks=["t", "u"])] == [mine, also]
    assert claim(conn, tasks=[]) == []


@pytest.mark.parametrize("letter", ["s", "b", "w", "x"])
def test_only_what_is_ready_is_claimed(conn: Connection, letter: str) -> None:
    add(conn)
    conn.execute("update conductor.live set state = %s, owner = id, token = 1", [letter])
    assert claim(conn) == []


def test_a_claim_starts_at_its_place(conn: Connection, clock: Clock) -> None:
    now = clock.stop()
    enqueue(conn, *[spec(rank=rank, run_at=now - timedelta(seconds=age))
                    for rank in (0, 1) for age in (5, 4)])  # fmt: skip
    everything = [Place(c.rank, c.run_at, c.seq) for c in _peek(conn)]
    assert len(everything) == 4
    for index, place in enumerate(everything):
        assert [c.seq for c in _peek(conn, start=place)] == [p.seq for p in everything[index:]]
    assert len(_peek(conn, start=Place(1, None, 0))) == 2
    assert _peek(conn, start=Place(1, now, 0)) == []


def _peek(conn: Connection, **more: Any) -> list[Claimed]:
    """What a claim would get."""
    with conn.transaction(force_rollback=True):
        return claim(conn, **more)


def test_a_claim_passes_over_what_another_session_holds(
    conn: Connection, other: Connection
) -> None:
    ids = add_many(conn, 4)
    with conn.transaction():
        assert [c.id for c in claim(conn, limit=2)] == ids[:2]
        assert [c.id for c in claim(other)] == ids[2:]


def test_of_claims_at_once_each_execution_goes_to_one(database: Database, conn: Connection) -> None:
    ids = add_many(conn, 400)

    def take(session: Connection) -> list[Claimed]:
        taken: list[Claimed] = []
        while more := claim(session, limit=7):
            taken += more
        return taken

    taken = [c for each in at_once(database, *[take] * 4) for c in each]
    assert sorted(c.id for c in taken) == sorted(ids)
    assert {c.runs for c in taken} == {1}


def test_one_statement_ends_a_batch_and_claims_the_next(conn: Connection) -> None:
    first = running(conn)
    second = add(conn)
    done = exchange(conn, [end(first)])
    assert ([c.id for c in done.claimed], done.missing, done.cancelled) == ([second], [], [])
    assert state(conn, first.id) == "completed"


def test_what_ends_gives_its_dedupe_key_back_to_be_claimed_later(conn: Connection) -> None:
    first = running(conn, dedupe_key="k")
    finish(conn, end(first))
    assert live(conn, add(conn, dedupe_key="k")).state == "r"


# ── End ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("outcome", "letter", "name", "result", "error", "failures"),
    [
        (Completed('{"a": 1.0}'), "c", "completed", {"a": 1.0}, None, 0),
        (Completed("null"), "c", "completed", None, None, 0),
        (Failed(ExecutionError("E", "why", "where")), "f", "failed", None,
         {"type": "E", "message": "why", "traceback": "where"}, 1),
        (Cancelled("reason"), "k", "cancelled", None,
         {"type": "Cancelled", "message": "reason", "traceback": None}, 0),
        (Cancelled(None), "k", "cancelled", None,
         {"type": "Cancelled", "message": "", "traceback": None}, 0),
    ],
)  # fmt: skip
def test_an_outcome_is_recorded(
    conn: Connection, clock: Clock, outcome: claims.Ending, letter: str, name: str,
    result: object, error: object, failures: int,
) -> None:  # fmt: skip
    began = clock.stop()
    claimed = running(conn, payload=[1], metadata={"m": 1}, event={"name": "e"}, group="g", rank=4)
    clock.advance(5)
    assert finish(conn, end(claimed, outcome)).missing == []
    assert live(conn, claimed.id) is None
    row = history(conn, claimed.id)
    assert (row.state, row.result, row.error, row.failures) == (letter, result, error, failures)
    assert (row.runs, row.crashes, row.token, row.rank) == (1, 0, claimed.token, 4)
    assert (row.payload, row.metadata, row.event, row.group_key) == (
        [1], {"m": 1}, {"name": "e"}, "g",
    )  # fmt: skip
    assert (row.created_at, row.started_at, row.run_at) == (began, began, began)
    assert row.finished_at == began + timedelta(seconds=5)
    assert state(conn, claimed.id) == name


def test_a_result_of_null_is_not_no_result(conn: Connection) -> None:
    claimed = running(conn)
    finish(conn, end(claimed, Completed("null")))
    query = "select result::text from conductor.executions where id = %s"
    assert scalar(conn, query, claimed.id) == "null"


@pytest.mark.parametrize("outcome", [DONE, BROKEN, STOPPED])
@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0.5, 0.5),
        (7 * DAY, 7 * DAY),
        (34 * DAY, 34 * DAY),
        (400 * DAY, 400 * DAY),
        (None, None),
    ],
)
def test_the_ended_are_kept_as_long_as_they_should_be(
    conn: Connection, outcome: claims.Ending, keep: float | None, kept: float | None
) -> None:
    claimed = running(conn)
    finish(conn, end(claimed, outcome, keep))
    row = history(conn, claimed.id)
    assert (row.kept, row.for_ever) == (kept, keep is None)


@pytest.mark.parametrize("outcome", [DONE, BROKEN, STOPPED])
def test_what_is_not_kept_is_gone(conn: Connection, outcome: claims.Ending) -> None:
    claimed = running(conn)
    assert finish(conn, end(claimed, outcome, keep=0)).missing == []
    assert live(conn, claimed.id) is None
    assert history(conn, claimed.id) is None


def test_a_mixed_batch_of_five_hundred_ends_in_one_statement(conn: Connection) -> None:
    add_many(conn, 500)
    outcomes = (DONE, BROKEN, STOPPED)
    keeps = (0, None, 60, DAY)
    ended = [
        end(c, outcomes[i % 3], keeps[i % 4])
        for i, c in enumerate(reversed(claim(conn, limit=500)))
    ]
    assert len(ended) == 500
    more = add_many(conn, 500)
    done = exchange(conn, ended, limit=500)
    assert (done.missing, done.cancelled) == ([], [])
    assert [c.id for c in done.claimed] == more
    assert scalar(conn, "select count(*) from conductor.live") == 500
    assert scalar(conn, "select count(*) from conductor.history") == 375
    for each in ended:
        row = history(conn, each.id)
        if each.keep == 0:
            assert row is None
        else:
            assert row.state == {DONE: "c", BROKEN: "f", STOPPED: "k"}[each.outcome]


def test_a_bad_value_ends_nothing_and_claims_nothing(conn: Connection) -> None:
    first, second = running(conn), running(conn)
    waiting = add(conn)
    with pytest.raises(psycopg.DataError):
        exchange(conn, [end(first), end(second, Completed('"\\u0000'))])
    assert [live(conn, each).state for each in (first.id, second.id, waiting)] == ["x", "x", "r"]


# ── Fencing ─────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_token_ends_nothing(conn: Connection) -> None:
    good, bad = running(conn), running(conn)
    stale = Ended(bad.id, bad.token + 1, DONE, DAY)
    done = finish(conn, end(good), stale)
    assert done.missing == [bad.id]
    assert live(conn, bad.id).state == "x"
    assert claims.inspect(conn, [bad.id], [stale.token]) == {bad.id: "stale"}
    assert verdict(conn, good) == "recorded"


def test_what_never_was_is_stale(conn: Connection) -> None:
    ghost = Ended(uuid4(), 1, DONE, DAY)
    assert finish(conn, ghost).missing == [ghost.id]
    assert claims.inspect(conn, [ghost.id], [1]) == {ghost.id: "stale"}


def test_what_is_ended_twice_was_recorded_the_first_time(conn: Connection) -> None:
    claimed = running(conn)
    finish(conn, end(claimed, Completed("1")))
    assert finish(conn, end(claimed, Completed("2"))).missing == [claimed.id]
    assert verdict(conn, claimed) == "recorded"
    assert history(conn, claimed.id).result == 1


def test_a_rescued_execution_ignores_its_first_owner(conn: Connection, clock: Clock) -> None:
    dead, alive = join(conn), uuid4()
    first = running(conn, dead)
    clock.advance(60)
    fleet.rescue(conn)
    assert finish(conn, end(first, Completed('"late"'))).missing == [first.id]
    assert verdict(conn, first) == "stale"
    second = claim_one(conn, alive)
    assert (second.id, second.runs) == (first.id, 2)
    assert finish(conn, end(first, Completed('"late"'))).missing == [first.id]
    assert verdict(conn, first) == "stale"
    assert finish(conn, end(second, Completed('"in time"'))).missing == []
    assert verdict(conn, first) == "stale"
    assert history(conn, first.id).result == "in time"


def test_a_late_end_of_what_crashed_too_often_is_stale(conn: Connection, clock: Clock) -> None:
    first = running(conn, join(conn))
    conn.execute("update conductor.live set crashes = 3")
    clock.advance(60)
    fleet.rescue(conn)
    assert state(conn, first.id) == "failed"
    assert finish(conn, end(first)).missing == [first.id]
    assert verdict(conn, first) == "stale"


def test_a_hand_back_that_was_recorded_is_told_apart_from_a_stale_one(conn: Connection) -> None:
    claimed = running(conn)
    back = Requeued(claimed.id, claimed.token, HandedBack(0))
    assert claims.requeue(conn, [back]) == {claimed.id}
    assert claims.requeue(conn, [back]) == set()
    assert verdict(conn, claimed) == "released"
    claim_one(conn)
    assert claims.requeue(conn, [back]) == set()
    assert verdict(conn, claimed) == "stale"


# ── Cancel asked ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", [DONE, BROKEN, Cancelled("my own reason")])
def test_however_it_ends_it_is_cancelled_when_somebody_asked(
    conn: Connection, outcome: claims.Ending
) -> None:
    claimed, plain = running(conn), running(conn)
    executions.cancel(conn, claimed.id, "their reason")
    assert verdict(conn, claimed) == "cancelled"
    done = finish(conn, end(claimed, outcome), end(plain))
    assert (done.missing, done.cancelled) == ([], [claimed.id])
    row = history(conn, claimed.id)
    assert (row.state, row.result, row.error["message"]) == ("k", None, "their reason")
    assert history(conn, plain.id).state == "c"


def test_a_cancelled_one_that_is_not_kept_is_told_all_the_same(conn: Connection) -> None:
    claimed = running(conn)
    executions.cancel(conn, claimed.id, None)
    assert finish(conn, end(claimed, keep=0)).cancelled == [claimed.id]
    assert history(conn, claimed.id) is None


def test_a_row_that_somebody_has_locked_does_not_hold_up_the_batch(
    conn: Connection, other: Connection
) -> None:
    add_many(conn, 100)
    claimed = claim(conn)
    held = claimed[50]
    with other.transaction():
        executions.cancel(other, held.id, "not committed yet")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            finish(conn, *map(end, claimed))
        assert locked(conn, claimed) == {held.id}
        assert finish(conn, *(end(c) for c in claimed if c is not held)).missing == []
        assert verdict(conn, held) == "locked"
    assert locked(conn, claimed) == set()
    assert verdict(conn, held) == "cancelled"
    assert finish(conn, end(held)).cancelled == [held.id]
    assert scalar(conn, "select count(*) from conductor.history where state = 'c'") == 99
    assert history(conn, held.id).error["message"] == "not committed yet"


def test_an_exchange_that_waits_in_vain_has_done_nothing(
    conn: Connection, other: Connection
) -> None:
    add_many(conn, 3)
    first, second, _ = claim(conn)
    add(conn)
    with other.transaction():
        executions.cancel(other, second.id, None)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            exchange(conn, [end(first), end(second)], limit=10)
    assert history(conn, first.id) is None
    assert scalar(conn, "select count(*) from conductor.live where state = 'r'") == 1
    assert scalar(conn, "select current_setting('lock_timeout')") != "100ms"


def locked(conn: Connection, claimed: Sequence[Claimed]) -> set[UUID]:
    return claims.locked(conn, [c.id for c in claimed], [c.token for c in claimed])


def test_a_cancel_that_is_rolled_back_changes_no_outcome(
    conn: Connection, other: Connection
) -> None:
    claimed = running(conn)
    with other.transaction(force_rollback=True):
        executions.cancel(other, claimed.id, None)
        assert locked(conn, [claimed]) == {claimed.id}
    assert finish(conn, end(claimed)).missing == []
    assert state(conn, claimed.id) == "completed"


def test_ends_and_cancels_at_once_agree(database: Database, conn: Connection) -> None:
    """Every cancel that says it changed something is kept, and no other."""
    add_many(conn, 60)
    claimed = claim(conn)
    cancelled: set[UUID] = set()

    def cancel(session: Connection) -> None:
        cancelled.update(c.id for c in claimed if executions.cancel(session, c.id, None))

    def ends(session: Connection) -> None:
        left = {c.id: c for c in reversed(claimed)}
        while left:
            batch = list(left.values())[:5]
            missing = finish(session, *map(end, batch)).missing
            for c in batch:
                if c.id not in missing:
                    del left[c.id]

    at_once(database, cancel, ends)
    rows = conn.execute("select id, state from conductor.history").fetchall()
    assert len(rows) == 60
    assert {each for each, letter in rows if letter == "k"} == cancelled
