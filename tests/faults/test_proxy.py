"""The network that misbehaves does so as told, and only then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.faults.proxy import Proxy
from tests.support.sessions import background

Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    parts = conninfo_to_dict(database_url)
    host, port = str(parts["host"]), parts.get("port", 5432)
    with Proxy(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))) as made:
        yield made


@pytest.fixture
def connect(proxy: Proxy, database_url: str) -> Iterator[Connect]:
    made = []

    def begin(name: str = "any") -> psycopg.Connection[Any]:
        parts = {
            **conninfo_to_dict(database_url), "host": "127.0.0.1", "port": proxy.port,
            "sslmode": "disable", "gssencmode": "disable", "application_name": name,
        }  # fmt: skip
        made.append(psycopg.connect(**parts, autocommit=True, connect_timeout=5))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def answers(conn: psycopg.Connection[Any]) -> bool:
    return conn.execute("select 1").fetchone() == (1,)


def test_it_forwards(connect: Connect) -> None:
    assert answers(connect())


@pytest.mark.parametrize("mode", ["reset", "reset-mid-message", "half-close", "swallow"])
def test_a_fault_breaks_the_next_statement_and_not_the_next_connection(
    proxy: Proxy, connect: Connect, mode: str
) -> None:
    conn = connect()
    proxy.set(mode, times=1)
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select 1")
    assert proxy.injected == 1
    assert answers(connect())


def test_what_is_swallowed_was_carried_out(
    proxy: Proxy, connect: Connect, database_url: str
) -> None:
    conn = connect()
    conn.execute("create table seen (n int)")
    proxy.set("swallow", times=1)
    with pytest.raises(psycopg.OperationalError):
        conn.execute("insert into seen values (1)")
    with psycopg.connect(database_url) as direct:
        assert direct.execute("select count(*) from seen").fetchone() == (1,)


def test_what_is_reset_on_its_way_was_not_carried_out(
    proxy: Proxy, connect: Connect, database_url: str
) -> None:
    conn = connect()
    conn.execute("create table seen (n int)")
    proxy.set("reset", times=1)
    with pytest.raises(psycopg.OperationalError):
        conn.execute("insert into seen values (1)")
    with psycopg.connect(database_url) as direct:
        assert direct.execute("select count(*) from seen").fetchone() == (0,)


def test_a_fault_hits_only_connections_of_the_given_name(proxy: Proxy, connect: Connect) -> None:
    first, second = connect("a heartbeat"), connect("a worker")
    proxy.set("reset", names="heartbeat")
    assert answers(second)
    with pytest.raises(psycopg.OperationalError):
        first.execute("select 1")


def test_what_stalls_goes_on_when_the_stall_is_over(proxy: Proxy, connect: Connect) -> None:
    conn = connect()
    proxy.set("stall")
    with background() as start:
        answer = start(answers, conn)
        with pytest.raises(TimeoutError):
            answer.result(0.2)
        proxy.set("pass")
        assert answer.result(10)


def test_what_is_silent_stays_so_while_new_connections_pass(proxy: Proxy, connect: Connect) -> None:
    old = connect()
    proxy.set("stall")
    proxy.pass_new()
    assert answers(connect())
    with background() as start:
        answer = start(answers, old)
        with pytest.raises(TimeoutError):
            answer.result(0.2)
        assert proxy.drop_all() == 2
        with pytest.raises(psycopg.OperationalError):
            answer.result(10)


def test_a_delay_delays_the_reply(proxy: Proxy, connect: Connect) -> None:
    conn = connect()
    proxy.set("delay")
    began = time.monotonic()
    assert answers(conn)
    assert time.monotonic() - began >= 0.1


def test_a_closed_port_refuses_until_it_is_opened(proxy: Proxy, connect: Connect) -> None:
    conn = connect()
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError):
        connect()
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select 1")
    proxy.admit()
    assert answers(connect())


def test_a_mode_that_does_not_exist_is_an_error(proxy: Proxy) -> None:
    with pytest.raises(ValueError, match="no such mode"):
        proxy.set("explode")
