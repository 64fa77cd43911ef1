"""Back into the queue: retry, snooze, hand back, promote, hasten, reconcile, retry of the ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from conductor_cli.models import ExecutionError, HandedBack, Retrying
from conductor_cli.store import claims, executions, fleet
from conductor_cli.store.claims import Promoted, Requeued
from tests.support.sessions import Ears, at_once, background, wait_until_blocked
from tests.support.store import (
    BROKEN,
    DONE,
    STOPPED,
    add,
    add_many,
    claim,
    claim_one,
    end,
    enqueue,
    finish,
    finished,
    history,
    join,
    live,
    register,
    running,
    scalar,
    spec,
    state,
    verdict,
)

if TYPE_CHECKING:
    from conductor_cli.database import Connection, Database
    from conductor_cli.models import Claimed
    from tests.support.clock import Clock

MOMENT = datetime(2031, 5, 4, 12, tzinfo=UTC)
WRONG = ExecutionError("ValueError", "no", None)


def back(claimed: Claimed, outcome: Retrying | HandedBack) -> Requeued:
    return Requeued(claimed.id, claimed.token, outcome)


def requeue(conn: Connection, *given: Requeued) -> set[UUID]:
    return claims.requeue(conn, given)


# ── Requeue ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("outcome", "letter", "attempt", "failures", "error"),
    [
        (Retrying(30, WRONG, counts=True), "s", 1, 1, "no"),
        (Retrying(0, WRONG, counts=True), "r", 1, 1, "no"),
        (Retrying(30, None, counts=False), "s", 1, 0, None),
        (Retrying(30, WRONG, counts=False), "s", 1, 0, "no"),
        (HandedBack(0), "r", 0, 0, None),
        (HandedBack(1), "s", 0, 0, None),
    ],
)
def test_what_is_given_back_is_pending_again(
    conn: Connection, clock: Clock, outcome: Retrying | HandedBack, letter: str, attempt: int,
    failures: int, error: str | None,
) -> None:  # fmt: skip
    clock.stop(MOMENT)
    claimed = running(conn, rank=-3, payload=1)
    clock.advance(10)
    assert requeue(conn, back(claimed, outcome)) == {claimed.id}
    row = live(conn, claimed.id)
    assert (row.state, row.owner, row.runs, row.failures) == (letter, None, attempt, failures)
    assert row.run_at == MOMENT + timedelta(seconds=10 + outcome.delay)
    assert (row.error and row.error["message"], row.crashes, row.rank) == (error, 0, -3)
    assert state(conn, claimed.id) == "pending"


def test_a_snooze_keeps_the_error_of_the_last_failure(conn: Connection) -> None:
    requeue(conn, back(running(conn), Retrying(0, WRONG, counts=True)))
    claimed = claim_one(conn)
    requeue(conn, back(claimed, Retrying(0, None, counts=False)))
    assert live(conn, claimed.id).error["message"] == "no"


def test_the_next_claim_knows_what_was(conn: Connection) -> None:
    requeue(conn, back(running(conn), Retrying(0, WRONG, counts=True)))
    requeue(conn, back(claim_one(conn), HandedBack(0)))
    claimed = claim_one(conn)
    assert (claimed.runs, claimed.failures, claimed.crashes) == (2, 1, 0)


def test_workers_hear_of_what_is_given_back(conn: Connection, clock: Clock, ears: Ears) -> None:
    clock.stop(MOMENT)
    at = int(MOMENT.timestamp())
    add_many(conn, 4, rank=-2)
    a, b, c, d = claim(conn)
    ears.heard()
    later = [Retrying(60, None, counts=True), Retrying(30, None, counts=True)]
    requeue(conn, *[back(x, o) for x, o in zip((a, b), later, strict=True)])
    requeue(conn, back(c, HandedBack(0)), back(d, HandedBack(0)))
    assert ears.payloads() == [f"due:{at + 30}:q", "ready:-2:q"]


def test_only_the_holder_gives_back(conn: Connection) -> None:
    mine, lost = running(conn), running(conn)
    conn.execute("update conductor.live set token = token + 1 where id = %s", [lost.id])
    assert requeue(conn, back(mine, HandedBack(0)), back(lost, HandedBack(0))) == {mine.id}
    assert live(conn, lost.id).state == "x"
    assert verdict(conn, lost) == "stale"


def test_one_that_is_to_be_cancelled_is_not_given_back(conn: Connection) -> None:
    claimed, plain = running(conn), running(conn)
    executions.cancel(conn, claimed.id, "why")
    given = [back(c, Retrying(5, WRONG, counts=True)) for c in (claimed, plain)]
    assert requeue(conn, *given) == {plain.id}
    assert verdict(conn, claimed) == "cancelled"
    row = live(conn, claimed.id)
    assert (row.state, row.failures, row.error["message"]) == ("x", 0, "why")


def test_a_locked_row_does_not_hold_up_the_others(conn: Connection, other: Connection) -> None:
    add_many(conn, 10)
    claimed = claim(conn)
    with other.transaction():
        executions.cancel(other, claimed[5].id, None)
        held = requeue(conn, *[back(c, HandedBack(0)) for c in claimed])
    assert held == {c.id for c in claimed} - {claimed[5].id}


def test_delays_may_be_whole_and_broken_numbers(conn: Connection) -> None:
    add_many(conn, 2)
    a, b = claim(conn)
    given = [back(a, HandedBack(1)), back(b, Retrying(0.5, None, counts=True))]
    assert requeue(conn, *given) == {a.id, b.id}


def test_nothing_given_back_tells_nobody(conn: Connection, ears: Ears) -> None:
    assert requeue(conn) == set()
    assert ears.payloads() == []


# ── Promote, hasten ─────────────────────────────────────────────────────────────────────────


def test_only_the_due_of_the_queue_become_ready(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    first, second, third = (add(conn, delay=d) for d in (10, 20, 30))
    elsewhere = add(conn, queue="p", delay=10)
    assert claims.promote(conn, "q", 10) == Promoted(0, 10.0, MOMENT.timestamp() + 10)
    clock.advance(20)
    assert claims.promote(conn, "q", 10) == Promoted(2, 10.0, MOMENT.timestamp() + 30)
    assert [live(conn, i).state for i in (first, second, third, elsewhere)] == list("rrss")
    assert live(conn, first).run_at == MOMENT + timedelta(seconds=10)


def test_promotion_takes_the_most_overdue_first(conn: Connection, clock: Clock) -> None:
    ids = [add(conn, delay=d) for d in (30, 10, 20)]
    clock.advance(60)
    assert claims.promote(conn, "q", 2) == Promoted(2, None, None)
    assert [live(conn, i).state for i in ids] == ["s", "r", "r"]


def test_nothing_is_due_in_an_empty_queue(conn: Connection) -> None:
    assert claims.promote(conn, "q", 10) == Promoted(0, None, None)


def test_what_waits_is_promoted_when_its_deadline_has_come(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    waiting = add(conn)
    conn.execute(
        "update conductor.live set state = 'w', run_at = %s", [MOMENT + timedelta(seconds=5)]
    )
    assert claims.promote(conn, "q", 10).next_in == 5
    clock.advance(6)
    assert claims.promote(conn, "q", 10) == Promoted(1, None, None)
    assert live(conn, waiting).state == "r"


def test_of_promotions_at_once_each_takes_others(
    conn: Connection, other: Connection, clock: Clock
) -> None:
    add_many(conn, 5, delay=10)
    clock.advance(20)
    with conn.transaction():
        assert claims.promote(conn, "q", 2).promoted == 2
        assert claims.promote(other, "q", 10).promoted == 3


def test_retries_are_hastened_and_nothing_else(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    failed, snoozed, unserved, elsewhere = (
        running(conn, task=task, queue=queue)
        for task, queue in (("t", "q"), ("t", "q"), ("t", "q"), ("t", "q"))
    )
    requeue(
        conn,
        *[back(c, Retrying(60, WRONG, counts=True)) for c in (failed, unserved, elsewhere)],
        back(snoozed, Retrying(60, None, counts=False)),
    )
    conn.execute("update conductor.live set task = 'u' where id = %s", [unserved.id])
    conn.execute("update conductor.live set queue = 'p' where id = %s", [elsewhere.id])
    scheduled = add(conn, delay=60)
    assert executions.hasten(conn, ["q", "another"], ["t"]) == 1
    row = live(conn, failed.id)
    assert (row.state, row.run_at) == ("r", MOMENT)
    for each in (snoozed.id, unserved.id, elsewhere.id, scheduled):
        assert live(conn, each).state == "s"


# ── Reconcile ───────────────────────────────────────────────────────────────────────────────


def test_a_claim_whose_reply_was_lost_is_given_back(conn: Connection, clock: Clock) -> None:
    mine = uuid4()
    lost = running(conn, mine)
    known = running(conn, mine)
    elsewhere = running(conn, mine)
    conn.execute("update conductor.live set queue = 'p' where id = %s", [elsewhere.id])
    theirs = running(conn)
    now = clock.stop()
    assert claims.reconcile(conn, mine, "q", lambda: [known.token]) == 1
    row = live(conn, lost.id)
    assert (row.state, row.owner, row.runs, row.crashes) == ("r", None, 0, 0)
    assert row.run_at == now
    for each in (known, elsewhere, theirs):
        assert live(conn, each.id).state == "x"
    assert claim_one(conn).runs == 1


def test_a_lost_claim_that_is_to_be_cancelled_is_ended(conn: Connection) -> None:
    mine = uuid4()
    lost, plain = running(conn, mine), running(conn, mine)
    executions.cancel(conn, lost.id, "why")
    assert claims.reconcile(conn, mine, "q", list) == 2
    row = history(conn, lost.id)
    assert (row.state, row.error["message"]) == ("k", "why")
    assert live(conn, plain.id).state == "r"


def test_what_was_taken_back_or_left_has_no_token_by_which_an_end_could_be_recorded(
    conn: Connection,
) -> None:
    mine = join(conn)
    taken = running(conn, mine)
    assert claims.reconcile(conn, mine, "q", list) == 1
    assert live(conn, taken.id).token is None
    assert finish(conn, end(taken)).missing == [taken.id]
    assert verdict(conn, taken) == "stale"
    assert claim_one(conn, mine).id == taken.id
    fleet.leave(conn, mine)
    assert live(conn, taken.id).token is None


def test_a_claim_that_is_known_by_the_time_the_database_has_answered_is_not_given_back(
    conn: Connection,
) -> None:
    mine = uuid4()
    claimed = running(conn, mine)
    answers = iter([[], [claimed.token]])
    assert claims.reconcile(conn, mine, "q", lambda: next(answers)) == 0
    assert live(conn, claimed.id).state == "x"


def test_an_end_is_not_recorded_where_the_row_is_pending_with_its_token(conn: Connection) -> None:
    claimed = running(conn)
    requeue(conn, back(claimed, HandedBack(0)))
    assert finish(conn, end(claimed)).missing == [claimed.id]
    assert verdict(conn, claimed) == "released"
    assert live(conn, claimed.id).state == "r"


def test_there_is_mostly_nothing_to_reconcile(conn: Connection) -> None:
    assert claims.reconcile(conn, uuid4(), "q", lambda: [1, 2]) == 0


# ── Retry of the ended ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", [BROKEN, STOPPED])
def test_what_failed_or_was_cancelled_runs_again(
    conn: Connection, clock: Clock, ears: Ears, outcome: claims.Ending
) -> None:
    began = clock.stop(MOMENT)
    ended = finished(
        conn, outcome, payload=[1], metadata={"m": 1}, event={"name": "e"}, group="g", rank=-5,
        timeout=9, dedupe_key="k",
    )  # fmt: skip
    clock.advance(60)
    ears.heard()
    assert executions.retry(conn, ended)
    assert history(conn, ended) is None
    row = live(conn, ended)
    assert (row.state, row.failures, row.crashes, row.runs) == ("r", 0, 0, 1)
    assert (row.payload, row.metadata, row.event) == ([1], {"m": 1}, {"name": "e"})
    assert (row.group_key, row.rank, row.timeout, row.dedupe_key) == ("g", -5, 9, "k")
    assert (row.created_at, row.run_at) == (began, MOMENT + timedelta(seconds=60))
    assert ears.payloads() == ["ready:-5:q"]
    assert claim_one(conn).runs == 2


def test_a_retried_one_gives_its_dedupe_key_up_if_another_has_it(conn: Connection) -> None:
    ended = finished(conn, BROKEN, dedupe_key="k")
    add(conn, dedupe_key="k")
    assert executions.retry(conn, ended)
    assert live(conn, ended).dedupe_key is None


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_retried_one_waits_for_another_that_takes_its_dedupe_key_at_the_same_time(
    conn: Connection, other: Connection, database: Database, goes_on: bool
) -> None:
    ended = finished(conn, BROKEN, dedupe_key="k")
    with background() as start, database.connect("watch") as watcher:
        with conn.transaction(force_rollback=not goes_on):
            add(conn, dedupe_key="k")
            retried = start(executions.retry, other, ended)
            wait_until_blocked(watcher, other)
        assert retried.result(10)
    assert live(conn, ended).dedupe_key == (None if goes_on else "k")
    assert history(conn, ended) is None


def test_a_retry_that_has_to_give_its_key_up_leaves_the_callers_transaction_whole(
    conn: Connection, other: Connection, database: Database
) -> None:
    ended = finished(conn, BROKEN, dedupe_key="k")
    with background() as start, database.connect("watch") as watcher:

        def in_a_transaction() -> None:
            with other.transaction():
                add(other, payload="before")
                assert executions.retry(other, ended)

        with conn.transaction():
            add(conn, dedupe_key="k")
            done = start(in_a_transaction)
            wait_until_blocked(watcher, other)
        done.result(10)
    assert scalar(conn, "select count(*) from conductor.live where state = 'r'") == 3


def test_what_completed_or_is_not_over_or_expired_is_not_retried(
    conn: Connection, clock: Clock
) -> None:
    expired = finished(conn, BROKEN, keep=60)
    completed, pending = finished(conn, DONE), add(conn)
    clock.advance(120)
    for each in (completed, pending, expired, uuid4()):
        assert not executions.retry(conn, each)
    assert state(conn, completed) == "completed"


def test_of_retries_at_once_one_counts(database: Database, conn: Connection) -> None:
    ended = finished(conn, BROKEN)
    retried = at_once(database, *[lambda c: executions.retry(c, ended)] * 4)
    assert sorted(retried) == [False, False, False, True]
    assert live(conn, ended).state == "r"


def test_the_outcome_of_before_a_retry_is_not_taken_for_the_one_after(conn: Connection) -> None:
    first = running(conn)
    finish(conn, end(first, BROKEN))
    executions.retry(conn, first.id)
    assert verdict(conn, first) == "stale"
    second = claim_one(conn)
    assert finish(conn, end(first)).missing == [first.id]
    assert finish(conn, end(second)).missing == []


# ── Archive ─────────────────────────────────────────────────────────────────────────────────


def _archive(conn: Connection, *ids: UUID, **more: Any) -> int:
    row = conn.execute(
        "select conductor.archive(%s, %s, %s)",
        [list(ids), more.get("ending", "k"), more.get("reason")],
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_archive_moves_what_is_there_and_counts_it(conn: Connection) -> None:
    register(conn, "gone", retain_failed=0)
    enqueue(conn, *[spec() for _ in range(3)])
    kept = [c.id for c in claim(conn)]
    dropped = add(conn, "gone")
    assert _archive(conn, *kept, dropped, uuid4(), reason='{"message": "r"}') == 4
    assert _archive(conn, *kept) == 0
    assert [history(conn, i).state for i in kept] == ["k"] * 3
    assert [history(conn, i).error for i in kept] == [{"message": "r"}] * 3
    assert history(conn, dropped) is None
    assert live(conn, dropped) is None


def test_archive_keeps_the_error_there_is_when_it_is_given_none(conn: Connection) -> None:
    claimed = running(conn)
    requeue(conn, back(claimed, Retrying(0, WRONG, counts=True)))
    assert _archive(conn, claimed.id, ending="f") == 1
    row = history(conn, claimed.id)
    assert (row.state, row.error["message"], row.failures) == ("f", "no", 1)
