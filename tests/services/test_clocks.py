"""Clocks that jump: the database's own, and the daemon's, by which nothing is decided."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from conductor_cli import Config, scheduler, signals, task
from conductor_cli.sections import Coordinator
from conductor_cli.store import fleet
from tests.support.store import join

if TYPE_CHECKING:
    from conductor_cli import Conductor
    from conductor_cli.database import Connection
    from tests.support.clock import Clock


PATIENT: Final = Config(coordinator=Coordinator(heartbeat_interval=0.3, heartbeat_timeout=4.0))


@task
def echo(n: int) -> int:
    return n


def leaders(servers: list[Any]) -> int:
    return sum(server.info.is_leader for server in servers)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_jump_of_the_databases_clock_kills_nobody_and_moves_no_leadership(
    conductor: Conductor, clock: Clock, start: Any, heard: Any, eventually: Any, seconds: float
) -> None:
    servers = [start(echo, config=PATIENT) for _ in range(3)]
    eventually(lambda: leaders(servers) == 1)
    (leader,) = [server for server in servers if server.info.is_leader]
    terms = heard.count("leadership.gained")
    clock.advance(seconds)
    heard.wait("clock.jumped", count=3)
    assert conductor.wait(conductor.invoke(echo, {"n": 7}), timeout=10) == 7
    until = time.monotonic() + 5.0  # longer than anyone forbears
    while time.monotonic() < until:
        assert leaders(servers) <= 1
        time.sleep(0.02)
    assert leader.info.is_leader
    assert heard.count("leadership.gained") == terms
    assert heard.count("server.declared_dead") == heard.count("executions.rescued") == 0


def test_who_died_before_the_clock_was_set_back_is_found_out_all_the_same(
    conn: Connection, clock: Clock
) -> None:
    clock.advance(7200)
    dead = join(conn)
    fleet.beat(conn, dead, stopping=False, stands=True, term=None, lease=15)
    clock.advance(-3600)
    fleet.rescue(conn)
    clock.advance(16)
    fleet.rescue(conn)
    alive = join(conn)
    pulse = fleet.beat(conn, alive, stopping=False, stands=True, term=None, lease=15)
    assert pulse.term == 2
    assert not fleet.beat(conn, dead, stopping=False, stands=False, term=None, lease=15).known


def test_an_expired_lease_is_not_taken_beyond_the_moment_the_caller_trusts(
    conn: Connection, clock: Clock
) -> None:
    leader, other = join(conn), join(conn)
    given: dict[str, Any] = {"stopping": False, "stands": True, "term": None, "lease": 15.0}
    before = fleet.beat(conn, leader, **given)
    clock.advance(3600)
    assert fleet.beat(conn, other, **given, latest=before.now + 20).term is None
    assert fleet.beat(conn, other, **given, latest=before.now + 4000).term == 2


@pytest.mark.parametrize("days", [1, -1])
def test_a_daemon_whose_own_clock_is_a_day_off_decides_nothing_by_it(
    conductor: Conductor, start: Any, heard: Any, eventually: Any, monkeypatch: Any, days: int
) -> None:
    wrong = SimpleNamespace(
        time=lambda: time.time() + days * 86400, monotonic=time.monotonic, sleep=time.sleep
    )
    sane = start(echo)
    monkeypatch.setattr(signals, "time", wrong)
    monkeypatch.setattr(scheduler, "time", wrong)
    mad = start(echo)
    offset = heard.wait("clock.offset")
    assert float(str(offset["seconds"])) == pytest.approx(days * 86400, abs=60)
    later = conductor.invoke(echo, {"n": 2}, delay=0.5)
    assert conductor.wait(later, timeout=10) == 2
    heard.wait("listener.proven", count=2)
    assert heard.count("server.declared_dead") == heard.count("executions.rescued") == 0
    assert sane.info.is_running
    assert mad.info.is_running
    eventually(lambda: leaders([sane, mad]) == 1)
