"""On a large table each statement of the hot path reads by its index, and few rows.

Whatever the statistics say: of a table that was small when it was last analyzed, and of the
table as it is; with a plan for these parameters, and with the generic one, also where that was
made while the table was empty: a server that has been idle keeps such a plan until the table is
analyzed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest

from conductor_cli.database import Database
from conductor_cli.store import claims, fleet, reports
from tests.support.statements import Plan, all_statements, explain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor_cli.database import Connection
    from tests.support.postgres import Server

SERVER: Final = "00000000-0000-4000-8000-{:012}"
BATCH: Final = 100

# 200,000 rows: what a queue may have in the way of what is to be claimed, and others' work.
FILL: Final = """
    alter table conductor.live set (autovacuum_enabled = false);
    alter table conductor.history set (autovacuum_enabled = false);
    insert into conductor.live (id, created_at, rank, run_at, state, queue, task, payload)
    select conductor.uuid7(), now(), 0, now(), 'r', 'q', 't', '{}' from generate_series(1, 20);
    analyze conductor.live;
    analyze conductor.history;
    insert into conductor.live
        (id, created_at, rank, run_at, state, queue, task, payload, owner, token, failures)
    select conductor.uuid7(), now(), rank, now() + after * interval '1 second', state, queue, task,
        '{"some": "payload"}', owner::uuid, token, 0
    from (
        select -9 as rank, 3600 + n as after, 's'::"char" as state, 'q' as queue, 't' as task,
            null as owner, null::bigint as token from generate_series(1, 60000) n
        union all
        select -9, 3600 + n, 'w', 'q', 't', null, null from generate_series(1, 20000) n
        union all
        select -9, -n, 'b', 'q', 't', null, null from generate_series(1, 40000) n
        union all
        select -9, -n, 'r', 'p' || n % 10, 't', null, null from generate_series(1, 40000) n
        union all
        select -9, -n, 'r', 'q', 'unserved', null, null from generate_series(1, 30000) n
        union all
        select 0, -n, 'r', 'q', 't', null, null from generate_series(1, 9000) n
        union all
        select 0, -n, 's', 'q', 't', null, null from generate_series(1, 500) n
        union all
        select 0, -n, 'x', 'q', 't', owner, n
        from generate_series(1, 500) n,
            format('00000000-0000-4000-8000-%s', lpad((n % 5)::text, 12, '0')) owner
    ) made;
    insert into conductor.orchestrators
        (id, started_at, beat_at, timeout, version, hostname, pid, queues)
    select format('00000000-0000-4000-8000-%s', lpad(n::text, 12, '0'))::uuid, now(),
        now() + case when n = 1 then interval '-1 day' else interval '1 day' end, 15, '1', 'h', 1,
        '{q}'
    from generate_series(0, 4) n;
    insert into conductor.history (
        id, seq, token, run_at, created_at, finished_at, expires_at, runs, failures, crashes,
        rank, state, queue, task, payload)
    select conductor.uuid7(), n, n, now(), now() - n * interval '1 minute',
        now() - n * interval '1 minute', now() + keep, 1, 0, 0, 0,
        case when n % 20 = 0 then 'k' when n % 10 = 0 then 'f' else 'c' end::"char", 'q', 't', '{}'
    from generate_series(1, 20000) n,
        lateral (select case
            when n % 2 = 0 then (100 + n % 100) * interval '1 day'
            when n < 400 then interval '-5 days'
            else n % 30 * interval '1 day' end) k (keep);
"""


def crowd(conn: Connection) -> None:
    conn.execute(FILL.encode())


@pytest.fixture(params=["stale", "fresh"])
def crowded(postgres: Server, request: pytest.FixtureRequest) -> Iterator[Connection]:
    with postgres.migrated(crowd) as url, Database(url).connect("test") as opened:
        if request.param == "fresh":
            opened.execute("vacuum analyze conductor.live")
            opened.execute("analyze conductor.history")
        yield opened


@pytest.fixture(params=["custom", "generic"])
def planned(crowded: Connection, request: pytest.FixtureRequest) -> Connection:
    crowded.execute(f"set plan_cache_mode = force_{request.param}_plan".encode())
    return crowded


@pytest.fixture(params=["new", "vacuumed"])
def empty(postgres: Server, request: pytest.FixtureRequest) -> Iterator[Connection]:
    with postgres.migrated() as url, Database(url).connect("test") as opened:
        if request.param == "vacuumed":
            opened.execute("vacuum analyze")
        opened.execute("set plan_cache_mode = force_generic_plan")
        yield opened


LARGE: Final = ("live", "history", "ledger", "attempts", "events", "progress")
WORKING: Final = ("claims", "endings", "events", "executions", "fleet", "ledger")


def test_a_plan_made_while_there_was_nothing_will_do(empty: Connection) -> None:
    read_whole = {}
    for name, statement in all_statements().items():
        if name.startswith(tuple(f"store.{module}." for module in WORKING)):
            plan = explain(empty, statement, analyze=False)
            if whole := set().union(*(plan.whole(table) for table in LARGE)):
                read_whole[name] = whole
    assert read_whole == {"store.fleet.RESCUE": {"live_owner"}}  # all that runs, and nothing else


def _exchange(conn: Connection, *, ended: int, limit: int, beyond: bool = True) -> Plan:
    """End some of a server's and claim for it; ``beyond`` what it does not serve."""
    rows = conn.execute(
        "select id, token from conductor.live where state = 'x' and owner = %s limit %s",
        [SERVER.format(2), ended],
    ).fetchall()
    return explain(
        conn,
        claims.EXCHANGE,
        ids=[id for id, _ in rows],
        tokens=[token for _, token in rows],
        states=["c"] * ended,
        results=["1"] * ended,
        errors=[None] * ended,
        keeps=[86400.0] * ended,
        owner=UUID(SERVER.format(2)),
        token=7,
        queue="q",
        tasks=["t", "another", "third"],
        from_rank=0 if beyond else -32768,
        from_run_at=None,
        from_seq=0,
        limit=limit,
    )


def test_a_claim_reads_what_it_takes(planned: Connection) -> None:
    plan = _exchange(planned, ended=0, limit=BATCH)
    assert plan.indexes("live") == {"live_ready", "live_pkey", "Tid Scan"}
    assert plan.read("live") == 2 * BATCH
    assert plan.buffers < 30 * BATCH


def test_a_claim_alone_reads_what_it_takes(planned: Connection) -> None:
    plan = explain(
        planned, claims.CLAIM, owner=UUID(SERVER.format(2)), token=7, queue="q", tasks=["t"],
        from_rank=0, from_run_at=None, from_seq=0, limit=BATCH,
    )  # fmt: skip
    assert plan.indexes("live") == {"live_ready", "Tid Scan"}
    assert plan.read("live") == 2 * BATCH
    assert plan.buffers < 30 * BATCH


def test_an_exchange_reads_what_it_ends_and_takes(planned: Connection) -> None:
    plan = _exchange(planned, ended=BATCH, limit=BATCH)
    assert plan.indexes("live") == {"live_ready", "live_pkey", "Tid Scan"}
    assert plan.read("live") == 3 * BATCH
    assert plan.buffers < 60 * BATCH


def test_a_full_exchange_reads_what_it_ends(planned: Connection) -> None:
    """Batches are planned alike, whatever their size: the generic plan is made for any."""
    plan = _exchange(planned, ended=1, limit=0)
    assert plan.indexes("live") <= {"live_ready", "live_pkey", "Tid Scan"}
    assert plan.read("live") == 1
    assert plan.buffers < 200


def test_a_claim_without_a_place_walks_the_ready_index_of_its_queue(planned: Connection) -> None:
    plan = _exchange(planned, ended=0, limit=BATCH, beyond=False)
    assert plan.indexes("live") == {"live_ready", "live_pkey", "Tid Scan"}
    assert plan.read("live") <= 30000 + 2 * BATCH


def test_giving_back_reads_what_it_gives(planned: Connection) -> None:
    rows = planned.execute("select id, token from conductor.live where state = 'x' limit 100")
    ids, tokens = zip(*rows, strict=True)
    plan = explain(
        planned, claims.REQUEUE, ids=list(ids), tokens=list(tokens), delays=[5.0] * 100,
        failures=[1] * 100, uncounted=[0] * 100, errors=[None] * 100,
    )  # fmt: skip
    assert plan.indexes("live") == {"live_pkey"}
    assert plan.read("live") == 200


def test_promotion_reads_what_is_due(planned: Connection) -> None:
    plan = explain(planned, claims.PROMOTE, queue="q", limit=1000)
    assert plan.indexes("live") == {"live_due", "live_pkey"}
    assert plan.read("live") <= 2 * 500 + 1
    assert plan.buffers < 30 * 500


def test_rescue_reads_what_runs(planned: Connection) -> None:
    plan = explain(planned, fleet.RESCUE)
    assert plan.indexes("live") == {"live_owner", "live_pkey"}
    assert plan.read("live") <= 500 + 2 * 100
    assert plan.buffers < 60 * 100


def test_the_rescue_of_one_that_has_fallen_reads_what_runs(planned: Connection) -> None:
    plan = explain(planned, fleet.RESCUE, fallen=UUID(SERVER.format(2)))
    assert plan.indexes("live") <= {"live_owner", "live_pkey"}
    assert plan.read("live") <= 500 + 2 * 100


@pytest.mark.parametrize("statement", [fleet.BEAT, claims.UNKNOWN, claims.RECONCILE])
def test_a_server_reads_what_it_runs(planned: Connection, statement: Any) -> None:
    plan = explain(
        planned, statement, id=UUID(SERVER.format(2)), owner=UUID(SERVER.format(2)), queue="q",
        tokens=list(range(1, 600)), lost=list(range(600, 610)), stopping=False, stands=True,
        lease=15.0,
    )  # fmt: skip
    assert plan.indexes("live") <= {"live_owner", "live_pkey"}
    assert plan.read("live") <= 100


def test_pruning_reads_what_has_expired(planned: Connection) -> None:
    plan = explain(planned, fleet.PRUNE, limit=50, until=None)
    assert plan.indexes("history") == {"history_expires", "Tid Scan"}
    assert plan.read("history") == 100
    assert plan.buffers < 50 * 20


def test_pruning_reads_nothing_when_nothing_has_expired(planned: Connection) -> None:
    planned.execute("delete from conductor.history where expires_at < now()")
    planned.execute("analyze conductor.history")
    plan = explain(planned, fleet.PRUNE, limit=1000, until=None)
    assert plan.read("history") == 0
    assert plan.buffers < 200


@pytest.mark.parametrize("statement", [claims.INSPECT, reports.GET])
def test_ids_are_looked_up_by_their_indexes(planned: Connection, statement: Any) -> None:
    ids = [
        id
        for table in ("live", "history")
        for (id,) in planned.execute(f"select id from conductor.{table} limit 5".encode())
    ]
    plan = explain(planned, statement, ids=ids, tokens=list(range(10)))
    assert plan.indexes("live") == {"live_pkey"}
    assert "Seq Scan" not in plan.indexes("history")
    assert plan.read("live") <= 10
    assert plan.read("history") <= 10
    assert plan.buffers < 2000


@pytest.mark.parametrize("state", [None, "completed", "failed", "cancelled"])
def test_a_list_never_scans_history(planned: Connection, state: str | None) -> None:
    planned.execute("analyze conductor.history")
    plan = explain(planned, reports.LIST, limit=20, state=state)
    assert plan.read("history") <= 40 * 20 * 3
