"""How executions come to be: conductor.enqueue, conductor.invoke, conductor.cancel."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest

from conductor_cli.store import executions
from conductor_cli.store.executions import Met
from tests.support.sessions import Ears, at_once, background, wait_until_blocked
from tests.support.store import (
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
    live,
    register,
    running,
    scalar,
    spec,
    state,
)

if TYPE_CHECKING:
    from conductor_cli.database import Connection, Database
    from tests.support.clock import Clock

DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"
MOMENT = datetime(2031, 5, 4, 12, tzinfo=UTC)


def _met(*pairs: tuple[dict[str, Any], dict[str, Any]]) -> list[Met]:
    return [Met(UUID(asked["id"]), UUID(met["id"])) for asked, met in pairs]


def _count(conn: Connection) -> int:
    return int(scalar(conn, "select count(*) from conductor.live"))


# ── Moments, ranks, columns ─────────────────────────────────────────────────────────────────


def test_what_is_due_is_ready_now(conn: Connection, clock: Clock) -> None:
    now = clock.stop()
    row = live(conn, add(conn))
    assert (row.state, row.run_at, row.created_at) == ("r", now, now)
    assert (row.runs, row.failures, row.crashes, row.flags) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("when", "expected", "letter"),
    [
        ({"delay": 60.5}, MOMENT + timedelta(seconds=60.5), "s"),
        ({"delay": 0}, MOMENT, "r"),
        ({"delay": -5}, MOMENT - timedelta(seconds=5), "r"),
        ({"run_at": MOMENT + timedelta(1)}, MOMENT + timedelta(1), "s"),
        ({"run_at": MOMENT}, MOMENT, "r"),
        ({"run_at": MOMENT - timedelta(1)}, MOMENT - timedelta(1), "r"),
        ({"run_at": "2031-05-04T14:00:01+02:00"}, MOMENT + timedelta(seconds=1), "s"),
    ],
)
def test_what_is_to_run_later_is_scheduled(
    conn: Connection, clock: Clock, when: dict[str, Any], expected: datetime, letter: bytes
) -> None:
    clock.stop(MOMENT)
    row = live(conn, add(conn, **when))
    assert (row.run_at, row.state) == (expected, letter)


def test_every_column_is_kept(conn: Connection) -> None:
    made = add(
        conn, "some.task", "some:queue", payload={"a": [1, None, "é"]}, rank=-7, timeout=1.5,
        dedupe_key="k", group="g", metadata={"m": 1}, event={"name": "e"},
    )  # fmt: skip
    row = live(conn, made)
    assert (row.task, row.queue, row.rank, row.timeout) == ("some.task", "some:queue", -7, 1.5)
    assert (row.dedupe_key, row.group_key) == ("k", "g")
    assert (row.payload, row.metadata, row.event) == (
        {"a": [1, None, "é"]}, {"m": 1}, {"name": "e"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "payload", [None, True, 0, -1.5e300, 2**70, "", "text \u2028 \U0001f600", [], {}, {"": {}}]
)
def test_any_json_is_a_payload(conn: Connection, payload: object) -> None:
    made = add(conn, payload=payload)
    assert json.loads(claim_one(conn).payload) == payload
    assert scalar(conn, "select payload from conductor.executions where id = %s", made) == payload


def test_a_payload_is_kept_as_it_was_written(conn: Connection) -> None:
    text = '{"b": 1,   "a": 1.10, "b": 2}'
    enqueue_text = f'[{{"id": "{uuid4()}", "task": "t", "queue": "q", "payload": {text}}}]'
    executions.enqueue(conn, enqueue_text, recheck=False)
    assert claim_one(conn).payload == text


def test_a_nul_is_refused_and_nothing_is_left(conn: Connection) -> None:
    bad = spec(task="t\0")
    with pytest.raises(psycopg.DataError):
        enqueue(conn, spec(), bad)
    assert _count(conn) == 0


def test_a_big_batch_keeps_its_order(conn: Connection) -> None:
    ids = add_many(conn, 3000, payload={"x": "y" * 50})
    assert _count(conn) == 3000
    assert [c.id for c in claim(conn, limit=3000)] == ids


def test_an_empty_batch_is_nothing(conn: Connection, ears: Ears) -> None:
    assert enqueue(conn) == []
    assert ears.payloads() == []


def test_a_rollback_leaves_nothing(conn: Connection, ears: Ears) -> None:
    with conn.transaction(force_rollback=True):
        made = add(conn)
        assert live(conn, made) is not None
    assert live(conn, made) is None
    assert ears.payloads() == []


# ── Sent twice ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", [None, "k"])
def test_what_is_sent_twice_is_there_once(conn: Connection, key: str | None) -> None:
    sent = [spec(dedupe_key=key and f"{key}{i}") for i in range(3)]
    assert enqueue(conn, *sent) == []
    assert enqueue(conn, *sent, recheck=True) == []
    assert enqueue(conn, *sent) == []
    assert _count(conn) == 3


def test_what_is_sent_again_while_it_runs_is_not_touched(conn: Connection) -> None:
    sent = spec(payload=1)
    enqueue(conn, sent)
    claimed = claim_one(conn)
    assert enqueue(conn, {**sent, "payload": 2}, recheck=True) == []
    row = live(conn, claimed.id)
    assert (row.state, row.token, row.payload) == ("x", claimed.token, 1)


def test_what_is_sent_again_while_it_ends_does_not_run_again(
    conn: Connection, database: Database
) -> None:
    sent = spec()
    assert enqueue(conn, sent) == []
    claimed = claim_one(conn)
    ending, again = database.connect("ending"), database.connect("again")
    with ending, again, background() as start:
        with ending.transaction():
            assert finish(ending, end(claimed)).missing == []
            meeting = start(enqueue, again, sent, recheck=True)
            wait_until_blocked(conn, again)
        assert meeting.result(10) == []
    assert _count(conn) == 0
    assert history(conn, claimed.id).state == "c"


@pytest.mark.parametrize("key", [None, "k"])
def test_what_is_sent_again_after_it_ended_does_not_run_again(
    conn: Connection, key: str | None
) -> None:
    sent, new = spec(dedupe_key=key), spec()
    enqueue(conn, sent)
    finish(conn, end(claim_one(conn)))
    assert enqueue(conn, sent, new, recheck=True) == []
    assert live(conn, UUID(sent["id"])) is None
    assert state(conn, UUID(sent["id"])) == "completed"
    assert state(conn, UUID(new["id"])) == "pending"


def test_the_rest_of_a_batch_that_was_there_in_part_is_made(conn: Connection) -> None:
    sent = [spec() for _ in range(4)]
    enqueue(conn, *sent[1:3])
    assert enqueue(conn, *sent, recheck=True) == []
    assert _count(conn) == 4


# ── Dedupe keys ─────────────────────────────────────────────────────────────────────────────


def test_a_second_one_of_a_key_meets_the_first(conn: Connection) -> None:
    first, second, third = (spec(dedupe_key="k", payload=i) for i in range(3))
    assert enqueue(conn, first) == []
    assert enqueue(conn, second, third) == _met((second, first), (third, first))
    assert _count(conn) == 1
    assert live(conn, UUID(first["id"])).payload == 0


def test_two_of_one_key_in_one_batch_are_one(conn: Connection) -> None:
    first, plain, second = spec(dedupe_key="k"), spec(), spec(dedupe_key="k")
    assert enqueue(conn, first, plain, second) == _met((second, first))
    assert _count(conn) == 2


@pytest.mark.parametrize("different", [{"task": "u"}, {"queue": "p"}, {"dedupe_key": "l"}])
def test_a_key_holds_for_one_task_in_one_queue(conn: Connection, different: dict[str, str]) -> None:
    add(conn, dedupe_key="k")
    add(conn, **{"dedupe_key": "k", **different})
    assert _count(conn) == 2


@pytest.mark.parametrize("meets", ["pending", "running"])
def test_a_key_is_taken_until_the_end(conn: Connection, meets: str) -> None:
    first, second, third = (spec(dedupe_key="k") for _ in range(3))
    enqueue(conn, first)
    claimed = claim(conn) if meets == "running" else []
    assert enqueue(conn, second) == _met((second, first))
    finish(conn, end((claimed or claim(conn))[0]))
    assert enqueue(conn, third) == []


def test_a_cancelled_one_gives_its_key_back(conn: Connection) -> None:
    executions.cancel(conn, add(conn, dedupe_key="k"), None)
    add(conn, dedupe_key="k")


def test_replace_gives_a_pending_one_new_content(conn: Connection, clock: Clock) -> None:
    now = clock.stop(MOMENT)
    first = add(conn, dedupe_key="k", payload=1, rank=5, timeout=9, group="a", metadata={"a": 1})
    second = spec(
        dedupe_key="k", on_duplicate="replace", payload=2, rank=-5, timeout=3, group="b",
        metadata={"b": 2}, delay=60,
    )  # fmt: skip
    assert enqueue(conn, second) == [Met(UUID(second["id"]), first)]
    row = live(conn, first)
    assert (row.payload, row.rank, row.timeout, row.group_key) == (2, -5, 3, "b")
    assert (row.metadata, row.state) == ({"b": 2}, "s")
    assert row.run_at == now + timedelta(seconds=60)


def test_of_replacements_in_one_batch_the_last_counts(conn: Connection) -> None:
    first = spec(dedupe_key="k", payload=0)
    others = [spec(dedupe_key="k", on_duplicate="replace", payload=i) for i in range(1, 30)]
    assert enqueue(conn, first, *others) == _met(*[(each, first) for each in others])
    assert live(conn, UUID(first["id"])).payload == 29


def test_replace_makes_a_scheduled_one_ready(conn: Connection, ears: Ears) -> None:
    first = add(conn, dedupe_key="k", delay=3600)
    ears.heard()
    enqueue(conn, spec(dedupe_key="k", on_duplicate="replace", rank=-3))
    assert live(conn, first).state == "r"
    assert ears.payloads() == ["ready:-3:q"]


def test_replace_makes_a_new_one_where_the_other_runs(conn: Connection, ears: Ears) -> None:
    first = running(conn, dedupe_key="k", payload=1)
    ears.heard()
    second = spec(dedupe_key="k", on_duplicate="replace", payload=2, rank=9)
    assert enqueue(conn, second) == []
    row = live(conn, first.id)
    assert (row.state, row.payload, row.rank, row.token) == ("x", 1, 0, first.token)
    new = live(conn, UUID(second["id"]))
    assert (new.state, new.payload, new.rank, new.dedupe_key) == ("r", 2, 9, "k")
    assert ears.payloads() == ["ready:9:q"]
    third = spec(dedupe_key="k", on_duplicate="replace", payload=3)
    assert enqueue(conn, third) == [Met(UUID(third["id"]), UUID(second["id"]))]
    assert live(conn, UUID(second["id"])).payload == 3
    finish(conn, end(first))
    assert _count(conn) == 1


def test_replace_makes_a_new_one_where_the_other_is_to_be_tried_again(conn: Connection) -> None:
    first = running(conn, dedupe_key="k", payload=1)
    conn.execute("update conductor.live set state = 's', failures = 1, owner = null, token = null")
    second = spec(dedupe_key="k", on_duplicate="replace", payload=2)
    assert enqueue(conn, second) == []
    assert (live(conn, first.id).payload, live(conn, UUID(second["id"])).payload) == (1, 2)


def test_of_two_replacements_at_once_where_the_other_runs_one_is_made(
    conn: Connection, other: Connection, database: Database
) -> None:
    first = running(conn, dedupe_key="k", payload=1)
    second = spec(dedupe_key="k", on_duplicate="replace", payload=2)
    third = spec(dedupe_key="k", on_duplicate="replace", payload=3)
    with background() as start, database.connect("watch") as watcher:
        with conn.transaction():
            assert enqueue(conn, second) == []
            call = start(enqueue, other, third)
            wait_until_blocked(watcher, other)
        assert call.result(10) == [Met(UUID(third["id"]), UUID(second["id"]))]
    assert (live(conn, first.id).payload, live(conn, UUID(second["id"])).payload) == (1, 3)
    assert _count(conn) == 2


@pytest.mark.parametrize("ended", [False, True])
def test_an_id_of_another_task_is_taken(conn: Connection, ended: bool) -> None:
    first = spec(task="one")
    enqueue(conn, first)
    if ended:
        finish(conn, end(claim(conn, tasks=["one"])[0]))
    again, another = {**first, "task": "one"}, {**first, "task": "another"}
    assert enqueue(conn, again, recheck=True) == []
    assert enqueue(conn, another, recheck=True) == [Met(UUID(first["id"]), None)]
    assert _count(conn) == (0 if ended else 1)


def test_from_sql_only_its_triggers_run_what_is_not_invocable(conn: Connection) -> None:
    register(conn, "t")
    conn.execute("update conductor.tasks set options = options || '{\"invocable\": false}'")
    for queue in (None, "q"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="only its triggers run it"):
            _invoke(conn, "t", queue=queue)
    assert _count(conn) == 0


def test_from_sql_a_group_is_refused_since_it_would_do_nothing(conn: Connection) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="would do nothing"):
        _invoke(conn, "t", queue="q", group="g")
    assert _count(conn) == 0


@pytest.mark.parametrize("on_duplicate", ["return", "raise", None])
def test_only_replace_changes_what_it_meets(conn: Connection, on_duplicate: str | None) -> None:
    first = add(conn, dedupe_key="k", payload=1)
    before = live(conn, first)
    second = spec(dedupe_key="k", on_duplicate=on_duplicate, payload=2, rank=9)
    assert enqueue(conn, second) == [Met(UUID(second["id"]), first)]
    assert live(conn, first) == before


@pytest.mark.parametrize("commits", [True, False])
def test_a_second_writer_of_a_key_waits_for_the_first(
    conn: Connection, other: Connection, database: Database, commits: bool
) -> None:
    first, second = spec(dedupe_key="k"), spec(dedupe_key="k")
    with background() as start, database.connect("watch") as watcher:
        with conn.transaction(force_rollback=not commits):
            enqueue(conn, first)
            call = start(enqueue, other, second)
            wait_until_blocked(watcher, other)
        assert call.result(10) == (_met((second, first)) if commits else [])
    assert _count(conn) == 1


def test_a_key_whose_execution_ends_meanwhile_is_free(
    conn: Connection, other: Connection, database: Database
) -> None:
    first, second = running(conn, dedupe_key="k"), spec(dedupe_key="k")
    with background() as start, database.connect("watch") as watcher:
        with conn.transaction():
            finish(conn, end(first))
            call = start(enqueue, other, second)
            wait_until_blocked(watcher, other)
        assert call.result(10) == []
    assert live(conn, UUID(second["id"])).state == "r"


def test_one_that_somebody_has_locked_is_met_without_waiting(
    conn: Connection, other: Connection
) -> None:
    first, second = running(conn, dedupe_key="k"), spec(dedupe_key="k")
    with conn.transaction():
        conn.execute("select from conductor.live where id = %s for update", [first.id])
        assert enqueue(other, second) == [Met(UUID(second["id"]), first.id)]


def test_a_key_that_passes_from_one_to_another_meanwhile_is_met(
    conn: Connection, other: Connection, database: Database
) -> None:
    """The one to be replaced ends and a new one takes the key, between the two looks at it."""
    first, second = add(conn, dedupe_key="k"), spec(dedupe_key="k")
    third = spec(dedupe_key="k", on_duplicate="replace", payload={"n": 3})
    with background() as start, database.connect("watch") as watcher:
        with conn.transaction():
            conn.execute("select from conductor.live where id = %s for update", [first])
            call = start(enqueue, other, third)
            wait_until_blocked(watcher, other)
            executions.cancel(conn, first, None)
            enqueue(conn, second)
        assert call.result(10) == _met((third, second))
    assert _count(conn) == 1
    assert live(conn, UUID(second["id"])).payload == {"n": 3}


def test_two_who_send_the_same_keys_in_opposite_order_do_not_wait_for_each_other(
    database: Database, conn: Connection
) -> None:
    before = scalar(conn, DEADLOCKS)

    def send(which: int, each: Connection) -> None:
        for n in range(12):
            specs = [spec(dedupe_key=f"{n}-{key}") for key in range(300)]
            enqueue(each, *(specs if which % 2 else reversed(specs)))

    at_once(database, *[partial(send, which) for which in range(4)])
    assert _count(conn) == 12 * 300
    assert scalar(conn, DEADLOCKS) == before


def test_rows_with_keys_stand_in_the_queue_in_the_order_in_which_they_were_sent(
    conn: Connection,
) -> None:
    specs = [spec(dedupe_key=key) for key in ("m", "z", "a", None, "Ä", "b")]
    enqueue(conn, *specs)
    rows = conn.execute("select id from conductor.live order by seq").fetchall()
    assert [str(row[0]) for row in rows] == [each["id"] for each in specs]


def test_many_writers_of_one_key_make_one(database: Database, conn: Connection) -> None:
    sent = [spec(dedupe_key="k") for _ in range(8)]
    met = at_once(database, *[lambda c, s=s: enqueue(c, s) for s in sent])
    assert _count(conn) == 1
    winner = scalar(conn, "select id from conductor.live")
    assert sorted(m.asked for each in met for m in each) == sorted(
        UUID(s["id"]) for s in sent if UUID(s["id"]) != winner
    )
    assert {m.met for each in met for m in each} == {winner}


# ── Notifications ───────────────────────────────────────────────────────────────────────────


def test_workers_hear_the_smallest_rank_or_the_first_moment_of_a_queue(
    conn: Connection, clock: Clock, ears: Ears
) -> None:
    clock.stop(MOMENT)
    at = int(MOMENT.timestamp())
    enqueue(
        conn,
        spec(rank=4), spec(rank=-4), spec(), spec(queue="a:b"),
        spec(delay=90.9), spec(delay=60.9), spec(delay=120), spec(queue="a:b", delay=5),
    )  # fmt: skip
    assert ears.payloads() == [
        f"due:{at + 5}:a:b", f"due:{at + 60}:q", "ready:-4:q", "ready:0:a:b",
    ]  # fmt: skip


def test_a_queue_is_told_once_per_transaction(conn: Connection, ears: Ears) -> None:
    with conn.transaction():
        for _ in range(5):
            add_many(conn, 20)
    assert ears.payloads() == ["ready:0:q"]


def test_nobody_is_told_of_what_was_there_already(conn: Connection, ears: Ears) -> None:
    sent = spec()
    enqueue(conn, sent)
    ears.heard()
    enqueue(conn, sent, recheck=True)
    assert ears.payloads() == []


# ── conductor.invoke ────────────────────────────────────────────────────────────────────────


def _invoke(conn: Connection, task: str | None, **named: Any) -> UUID:
    names = "".join(f', "{name}" => %({name})s' for name in named)
    row = conn.execute(
        f"select conductor.invoke(%(task)s{names})".encode(), {"task": task, **named}
    ).fetchone()
    assert row is not None
    found: UUID = row[0]
    return found


def test_invoke_takes_queue_and_priority_from_the_task(conn: Connection, ears: Ears) -> None:
    register(conn, "t", "somewhere", priority=6)
    made = _invoke(conn, "t")
    row = live(conn, made)
    assert (row.queue, row.rank, row.payload, row.state) == ("somewhere", -6, {}, "r")
    assert made.version == 7
    assert ears.payloads() == ["ready:-6:somewhere"]


def test_ids_grow_with_time(conn: Connection) -> None:
    made = [_invoke(conn, "t", queue="q") for _ in range(20)]
    milliseconds = [each.int >> 80 for each in made]
    assert milliseconds == sorted(milliseconds)
    assert len(set(made)) == 20
    assert abs(milliseconds[-1] / 1000 - datetime.now(UTC).timestamp()) < 60


def test_invoke_takes_everything_that_it_says(conn: Connection) -> None:
    made = _invoke(
        conn, "t", payload='{"a": 1}', queue="q", run_at=datetime(2090, 1, 1, tzinfo=UTC),
        priority=-9, dedupe_key="k", metadata='{"m": 1}',
    )  # fmt: skip
    row = live(conn, made)
    assert (row.payload, row.queue, row.rank, row.dedupe_key) == ({"a": 1}, "q", 9, "k")
    assert (row.metadata, row.state) == ({"m": 1}, "s")
    assert _invoke(conn, "t", queue="q", dedupe_key="k") == made


@pytest.mark.parametrize(
    ("payload", "expected"), [(None, {}), ("null", None), ("[1]", [1]), ('"x"', "x"), ("0", 0)]
)
def test_invoke_takes_any_payload(conn: Connection, payload: str | None, expected: object) -> None:
    assert live(conn, _invoke(conn, "t", queue="q", payload=payload)).payload == expected


def test_invoke_prefers_the_tasks_own_queue(conn: Connection) -> None:
    register(conn, "t", "elsewhere", home=False, priority=1)
    register(conn, "t", "home", priority=2)
    assert live(conn, _invoke(conn, "t")).queue == "home"
    row = live(conn, _invoke(conn, "t", queue="elsewhere"))
    assert (row.queue, row.rank) == ("elsewhere", -1)


def test_invoke_finds_a_task_that_is_served_in_another_queue_only(conn: Connection) -> None:
    register(conn, "t", "elsewhere", home=False)
    assert live(conn, _invoke(conn, "t")).queue == "elsewhere"


def test_a_queue_makes_an_unknown_task_known(conn: Connection) -> None:
    assert live(conn, _invoke(conn, "unknown", queue="q")).rank == 0


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"task": "nope"}, psycopg.errors.UndefinedObject, 'no task is named "nope"'),
        ({"task": None}, psycopg.errors.UndefinedObject, "no task is named"),
        ({"task": "two"}, psycopg.errors.AmbiguousParameter, "several queues"),
        ({"task": "a b", "queue": "q"}, psycopg.errors.InvalidParameterValue, "not a name"),
        ({"task": "t" * 201, "queue": "q"}, psycopg.errors.InvalidParameterValue, "not a name"),
        ({"task": "t\n", "queue": "q"}, psycopg.errors.InvalidParameterValue, "not a name"),
        ({"task": None, "queue": "q"}, psycopg.errors.InvalidParameterValue, "not a name"),
        ({"task": "t", "queue": ""}, psycopg.errors.InvalidParameterValue, "not a name"),
        ({"task": "t", "queue": "é"}, psycopg.errors.InvalidParameterValue, "not a name"),
        ({"task": "t", "queue": "q", "priority": 32768},
         psycopg.errors.NumericValueOutOfRange, "32768 is not between"),
        ({"task": "t", "queue": "q", "priority": -32768},
         psycopg.errors.NumericValueOutOfRange, "-32768 is not between"),
    ],
)  # fmt: skip
def test_invoke_says_what_is_wrong(
    conn: Connection, arguments: dict[str, Any], error: type[psycopg.Error], text: str
) -> None:
    conn.execute(
        "insert into conductor.tasks (queue, name, home, priority, max_attempts, max_crashes, "
        "options, edition, registered_at) select q, 'two', true, 0, 1, 1, '{}', '', now() "
        "from unnest('{a,b}'::text[]) q"
    )
    with pytest.raises(error, match=text):
        _invoke(conn, **arguments)
    assert _count(conn) == 0


def test_the_extreme_priorities_are_possible(conn: Connection) -> None:
    assert live(conn, _invoke(conn, "t", queue="q", priority=32767)).rank == -32767
    assert live(conn, _invoke(conn, "t", queue="q", priority=-32767)).rank == 32767


def test_a_trigger_invokes_in_its_transaction(conn: Connection, ears: Ears) -> None:
    conn.execute("""
        create table public.orders (id int);
        create function public.tell() returns trigger language plpgsql as $$
        begin
            perform conductor.invoke('ship', jsonb_build_object('id', new.id), 'q');
            return new;
        end $$;
        create trigger tell after insert on public.orders for each row execute function tell();
    """)
    with conn.transaction(force_rollback=True):
        conn.execute("insert into public.orders values (1)")
    conn.execute("insert into public.orders values (2), (3)")
    assert [c.payload for c in claim(conn, tasks=["ship"])] == ['{"id": 2}', '{"id": 3}']
    assert ears.payloads() == ["ready:0:q"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_invoke_works_at_every_isolation_level(conn: Connection, level: str) -> None:
    with conn.transaction():
        conn.execute(f"set transaction isolation level {level}".encode())
        first = _invoke(conn, "t", queue="q", dedupe_key="k")
        assert _invoke(conn, "t", queue="q", dedupe_key="k") == first


# ── conductor.cancel ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("when", [{}, {"delay": 60}])
def test_a_pending_one_is_cancelled_at_once(conn: Connection, when: dict[str, float]) -> None:
    made = add(conn, payload=1, metadata={"m": 1}, event={"name": "e"}, group="g", **when)
    assert executions.cancel(conn, made, "not needed")
    assert live(conn, made) is None
    row = history(conn, made)
    assert row.error == {"type": "Cancelled", "message": "not needed", "traceback": None}
    assert (row.state, row.result, row.payload, row.metadata) == ("k", None, 1, {"m": 1})
    assert (row.event, row.group_key, row.runs) == ({"name": "e"}, "g", 0)
    assert row.kept == 30 * 86400


@pytest.mark.parametrize("state", ["b", "w"])
def test_a_blocked_or_waiting_one_is_cancelled_at_once(conn: Connection, state: str) -> None:
    made = add(conn)
    conn.execute("update conductor.live set state = %s, run_at = null", [state])
    assert executions.cancel(conn, made, None)
    assert history(conn, made).state == "k"


@pytest.mark.parametrize(
    ("retain", "kept"),
    [(0, None), (60, 60), (None, None)],
)
def test_a_cancelled_one_is_kept_as_its_task_says(
    conn: Connection, retain: float | None, kept: float | None
) -> None:
    register(conn, retain_failed=retain)
    made = add(conn)
    assert executions.cancel(conn, made, None)
    row = history(conn, made)
    if retain == 0:
        assert row is None
    else:
        assert (row.kept, row.for_ever) == (kept, kept is None)


def test_a_running_one_is_only_asked(conn: Connection, database: Database) -> None:
    claimed = running(conn)
    owner = live(conn, claimed.id).owner
    with database.connect("server") as server:
        told = Ears(server, f"conductor_{owner.hex}")
        assert executions.cancel(conn, claimed.id, "stop")
        assert told.heard() == [(f"conductor_{owner.hex}", f"cancel:{claimed.id}")]
        assert not executions.cancel(conn, claimed.id, "again")
        assert told.heard() == []
    row = live(conn, claimed.id)
    assert (row.state, row.flags, row.error["message"]) == ("x", 1, "stop")
    assert state(conn, claimed.id) == "running"


def test_what_has_ended_or_never_was_is_not_cancelled(conn: Connection) -> None:
    assert not executions.cancel(conn, finished(conn, DONE), None)
    assert not executions.cancel(conn, finished(conn, STOPPED), None)
    assert not executions.cancel(conn, uuid4(), None)


def test_cancel_waits_for_who_holds_the_row_and_then_decides(
    conn: Connection, other: Connection, database: Database
) -> None:
    claimed = running(conn)
    with background() as start, database.connect("watch") as watcher:
        with conn.transaction():
            finish(conn, end(claimed))
            call = start(executions.cancel, other, claimed.id, None)
            wait_until_blocked(watcher, other)
        assert call.result(10) is False
    assert state(conn, claimed.id) == "completed"


def test_a_cancel_that_is_rolled_back_has_not_happened(conn: Connection) -> None:
    made = add(conn)
    with conn.transaction(force_rollback=True):
        assert executions.cancel(conn, made, None)
    assert state(conn, made) == "pending"
