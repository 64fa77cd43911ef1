"""The pruner: what holds it up is told as what it is, and it comes back to it later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from conductor_cli import maintenance
from conductor_cli.maintenance import Pruner
from conductor_cli.store import fleet
from tests.support.store import DAY, finished, history

if TYPE_CHECKING:
    from conductor_cli import Conductor


@pytest.fixture
def pruner(conductor: Conductor, monkeypatch: pytest.MonkeyPatch) -> Pruner:
    def lost() -> None:
        raise AssertionError("the pool was thrown away")

    made = Pruner(conductor.database, on_death=lambda *_: None)
    monkeypatch.setattr(made, "recover", lost)
    return made


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.LockNotAvailable("lock"),
        psycopg.errors.QueryCanceled("time"),
        psycopg.errors.InsufficientPrivilege("right"),
    ],
)
def test_what_is_refused_is_no_lost_database_and_is_tried_ever_later(
    pruner: Pruner, error: Exception, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **_more: object) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(fleet, "prune", refuse)
        pauses = [(pruner.tick(), pruner.pause)[1] for _ in range(8)]
    assert pauses[:3] == [30, 60, 120]
    assert pauses[-1] == maintenance.PRUNE_LATER
    assert heard.count("service.hindered") == 8
    assert heard.count("database.lost") == 0
    pruner.tick()
    assert pruner.pause == maintenance.PRUNE_EVERY


def test_a_table_that_somebody_has_locked_holds_up_the_pruner_only(
    pruner: Pruner, conductor: Conductor, heard: Any
) -> None:
    with psycopg.connect(conductor.database.url) as other:
        other.execute("lock table conductor.history in access exclusive mode")
        pruner.tick()
    assert heard.count("service.hindered") == 1
    assert heard.count("database.lost") == 0


@pytest.mark.parametrize(("database_ahead", "server_ahead"), [(60, 0), (0, 60)])
def test_one_clock_that_is_set_forward_deletes_nothing_before_its_time(
    conductor: Conductor, database_ahead: int, server_ahead: int
) -> None:
    moment = datetime.now(UTC)
    with conductor.database.transaction() as conn:
        made = finished(conn, keep=7 * DAY)
        _set_clock(conn, database_ahead)
    ahead = timedelta(days=server_ahead)
    Pruner(conductor.database, on_death=lambda *_: None, clock=lambda: moment + ahead).tick()
    with conductor.database.transaction() as conn:
        assert history(conn, made) is not None


def test_a_cluster_that_was_down_for_long_catches_up(conductor: Conductor) -> None:
    moment = datetime.now(UTC) + timedelta(days=60)
    with conductor.database.transaction() as conn:
        made = finished(conn, keep=7 * DAY)
        _set_clock(conn, 60)
    Pruner(conductor.database, on_death=lambda *_: None, clock=lambda: moment).tick()
    with conductor.database.transaction() as conn:
        assert history(conn, made) is None


def _set_clock(conn: Any, days: int) -> None:
    conn.execute(
        "create or replace function conductor.now() returns timestamptz language sql stable "
        f"parallel safe return statement_timestamp() + interval '{days} days'"
    )


def test_batches_shrink_when_they_are_slow_and_grow_when_they_are_quick(
    pruner: Pruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def prune(_: object, limit: int, **_more: object) -> int:
        asked.append(limit)
        return limit

    monkeypatch.setattr(fleet, "prune", prune)
    monkeypatch.setattr(maintenance, "PRUNE_QUICK", 60.0)
    monkeypatch.setattr(maintenance, "PRUNE_SLOW", 60.0)
    for _ in range(20):
        pruner.tick()
    assert asked == sorted(asked)
    assert asked[-1] == maintenance.PRUNE_MOST
    monkeypatch.setattr(maintenance, "PRUNE_SLOW", -1.0)
    for _ in range(20):
        pruner.tick()
    assert asked[-1] == 1
