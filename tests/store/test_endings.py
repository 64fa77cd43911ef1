"""Two sessions: who ends while another suspends, cancels or emits; nobody is left waiting."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from conductor_cli.models import Flag, Park, Suspended
from conductor_cli.store import claims, endings, events, executions, ledger, reports
from conductor_cli.store.endings import Leaving
from conductor_cli.store.ledger import Child, Children, New
from tests.support.sessions import background, wait_until_blocked
from tests.support.store import (
    BROKEN,
    add,
    claim,
    claim_one,
    end,
    history,
    live,
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


def adopt(conn: Connection, parent: Claimed, *names: str, group: str | None = None) -> list[UUID]:
    """Create children that a parent waits for."""
    specs = [spec(parent_id=str(parent.id), flags=int(Flag.AWAITED)) for _ in names]
    ids = [UUID(each["id"]) for each in specs]
    born = Children(
        "c", [Child(n, "t", i) for n, i in zip(names, ids, strict=True)], json.dumps(specs),
        group, None, False, False,
    )  # fmt: skip
    done = ledger.adopt(conn, parent.id, parent.token, born, mark=True, again=False)
    assert done[0].held
    return ids


def suspend(conn: Connection, claimed: Claimed, wakes: int = 0) -> bool:
    leaving = Leaving(claimed.id, claimed.token, Suspended("it", Park.WAITS, None, wakes))
    return endings.suspend(conn, [leaving]) == {claimed.id}


def finish(conn: Connection, *claimed: Claimed, outcome: Any = None) -> set[UUID]:
    ended = [end(c, outcome) if outcome else end(c) for c in claimed]
    return {each.id for each in endings.finish(conn, ended)}


def entries(conn: Connection, id: UUID) -> dict[str, str]:
    rows = conn.execute(
        "select name, state::text from conductor.ledger where execution_id = %s", [id]
    )
    return dict(rows.fetchall())


def test_a_child_that_ends_after_its_parent_has_left_wakes_it(conn: Connection) -> None:
    parent = running(conn)
    adopt(conn, parent, "child")
    assert suspend(conn, parent)
    assert state(conn, parent.id) == "waiting"
    assert finish(conn, claim_one(conn))
    assert live(conn, parent.id).state == "r"
    assert entries(conn, parent.id) == {"child": "c"}


def test_a_child_that_ends_before_its_parent_has_left_keeps_it_ready(conn: Connection) -> None:
    parent = running(conn)
    adopt(conn, parent, "child")
    assert finish(conn, claim_one(conn))
    assert suspend(conn, parent)
    assert live(conn, parent.id).state == "r"


def test_a_parent_that_leaves_while_its_child_ends_is_left_for_later(
    conn: Connection, other: Connection
) -> None:
    parent = running(conn)
    adopt(conn, parent, "child")
    child = claim_one(conn)
    with other.transaction():
        assert finish(other, child)
        assert not suspend(conn, parent)
        assert verdict(conn, parent) == "flagged"
    assert suspend(conn, parent)
    assert live(conn, parent.id).state == "r"


def test_a_child_that_ends_while_its_parent_leaves_is_left_for_later(
    conn: Connection, other: Connection
) -> None:
    parent = running(conn)
    adopt(conn, parent, "child")
    child = claim_one(conn)
    with other.transaction():
        assert suspend(other, parent)
        assert finish(conn, child) == set()
        assert verdict(conn, child) == "flagged"
    assert finish(conn, child) == {child.id}
    assert live(conn, parent.id).state == "r"


def test_parent_and_child_may_end_in_one_batch(conn: Connection) -> None:
    parent = running(conn)
    adopt(conn, parent, "child")
    child = claim_one(conn)
    assert finish(conn, child, parent) == {child.id, parent.id}
    assert [state(conn, each.id) for each in (parent, child)] == ["completed"] * 2
    assert scalar(conn, "select count(*) from conductor.ledger") == 0


def test_the_plain_statement_leaves_alone_what_concerns_others(conn: Connection) -> None:
    parent = running(conn)
    adopt(conn, parent, "child")
    child = claim_one(conn)
    assert child.flags == Flag.AWAITED
    from tests.support.store import exchange

    assert exchange(conn, [end(child)], limit=0).missing == [child.id]
    assert verdict(conn, child) == "flagged"
    assert finish(conn, child)


def test_a_group_wakes_once_with_the_last_of_its_children(conn: Connection) -> None:
    parent = running(conn)
    adopt(conn, parent, "all[0]", "all[1]", "all[2]", group="all")
    assert suspend(conn, parent)
    first, second, third = claim(conn)
    finish(conn, first, second)
    assert (live(conn, parent.id).state, live(conn, parent.id).wakes) == ("w", 0)
    finish(conn, third)
    assert (live(conn, parent.id).state, live(conn, parent.id).wakes) == ("r", 1)
    assert entries(conn, parent.id)["all"] == "c"


def test_a_group_wakes_with_the_first_that_fails(conn: Connection) -> None:
    parent = running(conn)
    adopt(conn, parent, "all[0]", "all[1]", "all[2]", group="all")
    suspend(conn, parent)
    first, second, third = claim(conn)
    finish(conn, second, outcome=BROKEN)
    assert live(conn, parent.id).state == "r"
    finish(conn, first, outcome=BROKEN)
    finish(conn, third)
    assert scalar(conn, "select value from conductor.ledger where name = 'all'") == "all[1]"


def test_a_cancel_that_is_not_committed_stalls_nobody(conn: Connection, other: Connection) -> None:
    parent = running(conn)
    adopt(conn, parent, "child")
    child = claim_one(conn)
    suspend(conn, parent)
    apart = running(conn)
    with other.transaction(force_rollback=True):
        assert executions.cancel(other, parent.id, None)
        assert finish(conn, child, apart) == {apart.id}
    assert finish(conn, child) == {child.id}
    assert live(conn, parent.id).state == "r"


def test_cancels_of_parent_and_child_at_once_do_not_lock_each_other_out(
    database: Database, conn: Connection, other: Connection
) -> None:
    parent = running(conn)
    (child,) = adopt(conn, parent, "child")
    suspend(conn, parent)
    with background() as start, database.connect("third") as third:
        with other.transaction():
            other.execute("select from conductor.live where id = %s for update", [parent.id])
            ours = start(executions.cancel, third, child, None)
            wait_until_blocked(conn, third)
            assert executions.cancel(other, parent.id, "first")
        assert ours.result(20) is False
    assert (state(conn, parent.id), state(conn, child)) == ("cancelled", "cancelled")


def test_a_step_is_recorded_once_and_only_for_the_claim_that_stands(conn: Connection) -> None:
    claimed = running(conn)
    new = [New("a", "s", "c", value="1")]
    for _ in range(2):  # the reply to the first was lost
        assert ledger.record(conn, claimed.id, claimed.token, new, mark=True).held
    assert not ledger.record(conn, claimed.id, claimed.token + 1, new, mark=True).held
    again = [New("a", "s", "c", value="2")]
    assert ledger.record(conn, claimed.id, claimed.token, again, mark=False).held
    assert scalar(conn, "select value from conductor.ledger") == 1
    assert live(conn, claimed.id).flags == Flag.HAS_LEDGER


def test_a_step_is_not_recorded_while_a_rescue_takes_the_row(
    database: Database, conn: Connection, other: Connection
) -> None:
    claimed = running(conn)
    new = [New("a", "s", "c", value="1")]
    ledger.record(conn, claimed.id, claimed.token, [New("z", "s", "c", value="1")], mark=True)
    with background() as start, database.connect("third") as third:
        with other.transaction():
            other.execute("update conductor.live set token = null, state = 'r', owner = null")
            saved = start(ledger.record, third, claimed.id, claimed.token, new, mark=False)
            wait_until_blocked(conn, third)
        assert not saved.result(20).held
    assert entries(conn, claimed.id) == {"z": "c"}


def test_children_come_with_their_entries_and_only_once(conn: Connection) -> None:
    parent = running(conn)
    specs = json.dumps([spec(flags=4)])
    child = UUID(json.loads(specs)[0]["id"])
    born = Children("c", [Child("child", "t", child)], specs, None, 5.0, False, False)
    stale = ledger.adopt(conn, parent.id, parent.token + 1, born, mark=True, again=False)
    assert (stale[0].held, live(conn, child)) == (False, None)
    for again in (False, True):
        done = ledger.adopt(conn, parent.id, parent.token, born, mark=True, again=again)
        assert done[0].held
        assert done[0].until is not None
    assert finish(conn, claim_one(conn))
    ledger.adopt(conn, parent.id, parent.token, born, mark=False, again=True)
    assert (live(conn, child), history(conn, child).state) == (None, "c")
    assert entries(conn, parent.id) == {"child": "c"}


def test_an_event_is_told_to_nobody_who_came_later(conn: Connection, other: Connection) -> None:
    def register(claimed: Claimed) -> None:
        assert events.subscribe(
            conn, claimed.id, claimed.token, name="e", event="x", exact="{}", tests="{}",
            branch=False, mark=True,
        )  # fmt: skip

    early, late = running(conn), running(conn)
    register(early)
    with other.transaction():  # which begins before the second registers and ends after it
        events.emit(other, "x", '{"n": 1}')
        register(late)
    assert events.dispatch(conn, 10) == 1
    assert entries(conn, early.id) == {"e": "c"}
    assert entries(conn, late.id) == {"e": "c"}
    third = running(conn)
    events.emit(conn, "x", '{"n": 2}')
    register(third)
    assert events.dispatch(conn, 10) == 1
    assert entries(conn, third.id) == {"e": "p"}


def test_an_event_that_came_in_time_is_heard_after_the_deadline(conn: Connection) -> None:
    for emitted, expected in ((True, "c"), (False, "t")):
        claimed = running(conn)
        events.subscribe(
            conn, claimed.id, claimed.token, name="e", event="x", exact="{}", tests="{}",
            branch=False, mark=True,
        )  # fmt: skip
        events.wait(conn, claimed.id, claimed.token, name="e", seconds=0.05)
        if emitted:
            events.emit(conn, "x", "{}")
        conn.execute("select pg_sleep(0.1)")
        if not emitted:
            events.emit(conn, "x", "{}")
        ledger.give_up(conn, claimed.id, claimed.token, "e")
        assert entries(conn, claimed.id) == {"e": expected}
        events.dispatch(conn, 10)
        assert entries(conn, claimed.id) == {"e": expected}


def test_no_column_holds_what_means_nothing_in_another_cluster(conn: Connection) -> None:
    local = (
        "xid",
        "xid8",
        "pg_snapshot",
        "txid_snapshot",
        "oid",
        "pg_lsn",
        "tid",
        "cid",
        "regclass",
    )
    found = conn.execute(
        "select table_name, column_name from information_schema.columns"
        " where table_schema = 'conductor' and (udt_name = any (%s)"
        " or column_default ~ 'xact_id|txid|snapshot|lsn')",
        [list(local)],
    ).fetchall()
    assert found == []


def test_the_oldest_event_wins_even_when_another_dispatches_it(
    conn: Connection, other: Connection
) -> None:
    claimed = running(conn)
    events.subscribe(
        conn, claimed.id, claimed.token, name="e", event="x", exact="{}", tests="{}",
        branch=False, mark=True,
    )  # fmt: skip
    for n in (1, 2):
        events.emit(conn, "x", json.dumps({"n": n}))
    with other.transaction():
        other.execute("select from conductor.events order by seq limit 1 for update")
        assert events.dispatch(conn, 10) == 1
    assert scalar(conn, "select value ->> 'n' from conductor.ledger") == "1"
    assert events.dispatch(conn, 10) == 1


def test_an_event_waits_for_who_is_locked_and_starts_its_tasks_once(
    conn: Connection, other: Connection, clock: Clock
) -> None:
    conn.execute(
        "insert into conductor.triggers values ('t', 'triggered', 0, 'x', null, '{}', '{}')"
    )
    claimed = running(conn)
    events.subscribe(
        conn, claimed.id, claimed.token, name="e", event="x", exact="{}", tests="{}",
        branch=False, mark=True,
    )  # fmt: skip
    events.emit(conn, "x", "{}")
    with other.transaction():
        other.execute("select from conductor.live where id = %s for update", [claimed.id])
        assert events.dispatch(conn, 10) == 0
    assert events.dispatch(conn, 10) == 0  # it waits a moment, and lets others pass
    clock.advance(1.1)
    assert events.dispatch(conn, 10) == 1
    assert entries(conn, claimed.id) == {"e": "c"}
    assert scalar(conn, "select count(*) from conductor.live where queue = 'triggered'") == 1


def test_two_dispatchers_start_each_task_once(database: Database, conn: Connection) -> None:
    conn.execute(
        "insert into conductor.triggers values ('t', 'triggered', 0, 'x', null, '{}', '{}')"
    )
    for _ in range(200):
        events.emit(conn, "x", "{}")

    def work(_: int) -> int:
        with database.connect("dispatcher") as mine:
            return sum(iter(lambda: events.dispatch(mine, 7), 0))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 200
    assert scalar(conn, "select count(*) from conductor.live where queue = 'triggered'") == 200


@pytest.mark.parametrize("seed", range(20))
def test_however_they_meet_nobody_waits_for_ever(conn: Connection, seed: int) -> None:
    """Parents and children of three levels, whose moves come in an order by chance."""
    chance = random.Random(seed)
    roots = [add(conn) for _ in range(3)]
    depth = dict.fromkeys(roots, 0)
    running_now: list[Any] = []
    for _ in range(400):
        running_now += claim(conn, limit=chance.randint(0, 3))
        if not running_now:
            if scalar(conn, "select count(*) from conductor.live") == 0:
                break
            continue
        claimed = running_now.pop(chance.randrange(len(running_now)))
        known = entries(conn, claimed.id)
        wakes = live(conn, claimed.id).wakes
        if not known and depth.get(claimed.id, 0) < 2:
            for child in adopt(conn, claimed, *"ab", group="g"):
                depth[child] = depth.get(claimed.id, 0) + 1
            known = entries(conn, claimed.id)
        if chance.random() < 0.3:
            running_now += claim(conn, limit=1)
        if known.get("g") == "p":
            assert suspend(conn, claimed, wakes)
        else:
            assert finish(conn, claimed)
    assert scalar(conn, "select count(*) from conductor.live") == 0
    assert scalar(conn, "select count(*) from conductor.history where state = 'c'") == 3 * 7


def test_a_retry_brings_back_what_was_recorded(conn: Connection) -> None:
    claimed = running(conn)
    ledger.record(
        conn, claimed.id, claimed.token,
        [New("a", "s", "c", value='{"x": 1.50}'), New("b", "s", "f", error='{"type":"E"}')],
        mark=True,
    )  # fmt: skip
    finish(conn, claimed, outcome=BROKEN)
    assert executions.retry(conn, claimed.id)
    loaded = ledger.load(conn, claimed.id, 0)
    assert loaded is None
    again = claim_one(conn)
    loaded = ledger.load(conn, again.id, again.token)
    assert loaded is not None
    assert [(e.name, e.state, e.value) for e in loaded[1]] == [
        ("a", "c", '{"x": 1.50}'),
        ("b", "f", None),
    ]
    finish(conn, again, outcome=BROKEN)
    assert executions.retry(conn, claimed.id, restart=True)
    assert entries(conn, claimed.id) == {}
    assert claims.inspect(conn, [uuid4()], [1])


def test_a_timeline_tells_what_happened_while_it_lives_and_afterwards(conn: Connection) -> None:
    claimed = running(conn)
    new = [New("a", "s", "c", value="1"), New("b", "s", "f", error='{"message":"no"}')]
    ledger.record(conn, claimed.id, claimed.token, new, mark=True)
    adopt(conn, claimed, "child")
    assert suspend(conn, claimed)
    finish(conn, claim_one(conn))
    again = claim_one(conn)
    expected = [
        ("created", None), ("claimed", None), ("step", "a"), ("step failed", "b"),
        ("suspended", "it"), ("child", "child"), ("claimed", None),
    ]  # fmt: skip
    told = reports.timeline(conn, claimed.id)
    assert [(each.what, each.name) for each in told] == expected
    finish(conn, again, outcome=BROKEN)
    told = reports.timeline(conn, claimed.id)
    assert [(each.what, each.name) for each in told] == [*expected, ("failed", None)]
    assert [each.run for each in told if each.what == "claimed"] == [1, 2]
    assert told[-1].detail == "ValueError: no"
