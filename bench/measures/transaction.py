"""Transaction: what enqueueing adds to a transaction of the caller's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.measures.columns import Column, Table
from bench.meters import server_cpu
from bench.process import PeerProcess
from bench.stage import DATABASE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "transaction"
TABLES: Final = (
    Table(
        "one order",
        "Enqueue in the caller's transaction, which also inserts a row",
        (
            Column("rate", "transactions/s"),
            Column("alone", "without enqueue/s"),
            Column("added_us", "added µs", 1),
            Column("client_us", "client CPU µs", 1),
            Column("server_us", "server CPU µs", 1),
            Column("statements", "statements", 2),
            Column("count", "transactions"),
        ),
    ),
)
_TIMEOUT: Final = 60.0  # seconds
_TABLE: Final = """
    create table bench_orders (id bigint generated always as identity primary key, note text)
"""


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("one order", "default")], _transaction)


def _transaction(stage: Stage, peer: Peer, _: str, __: Settings) -> Mapping[str, float | None]:
    seconds = stage.plan.single_seconds
    with stage.fresh_database(peer) as (url, meter):
        with stage.postgres.connect(DATABASE) as conn:
            conn.execute(_TABLE)
        with PeerProcess(peer, url, "producer") as producer:
            producer.call("transact_for", _TIMEOUT, task="noop", seconds=0.05)
            alone = producer.call("transact_for", _TIMEOUT, task=None, seconds=seconds)
            before = meter.read()
            server = server_cpu(stage.postgres, without=(meter.pid,))
            done = producer.call("transact_for", _TIMEOUT, task="noop", seconds=seconds)
            server = server_cpu(stage.postgres, without=(meter.pid,)) - server
            statements = (meter.read() - before).statements
    count = done["count"]
    each, each_alone = done["seconds"] / count, alone["seconds"] / alone["count"]
    return {
        "rate": 1 / each,
        "alone": 1 / each_alone,
        "added_us": (each - each_alone) * 1e6,
        "client_us": done["cpu"] / count * 1e6,
        "server_us": server / count * 1e6,
        "statements": None if statements is None else statements / count,
        "count": count,
    }
