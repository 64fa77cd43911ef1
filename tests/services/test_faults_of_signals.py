"""The listener and the heartbeat meet broken connections, nonsense and unlucky moments."""

from __future__ import annotations

import os
import resource
import threading
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from conductor_cli import Conductor, signals, task
from conductor_cli.database import Database, Listening
from conductor_cli.service import Deadline, Service
from conductor_cli.signals import Identity, Listener
from conductor_cli.store import fleet


def listener(database: Database, deaths: list[BaseException], heard: list[str]) -> Listener:
    return Listener(
        database, Identity(uuid4(), "1", "here", os.getpid(), ["default"]),
        interval=5.0, handle=heard.append, on_doubt=lambda: None,
        on_death=lambda _, error: deaths.append(error),
    )  # fmt: skip


@pytest.mark.parametrize(
    "nonsense", ["cancel:x", "cancel:", "ready:x:default", "due::default", "due:soon:default", ":"]
)
def test_a_notification_that_makes_no_sense_harms_nobody(
    conductor: Conductor, database_url: str, start: Any, heard: Any, nonsense: str
) -> None:
    @task
    def echo(n: int) -> int:
        return n

    start(echo)
    heard.wait("listener.proven")
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("select pg_notify('conductor', %s)", [nonsense])
    assert conductor.wait(conductor.invoke(echo, {"n": 7}), echo, timeout=10) == 7
    assert heard.count("service.died") == 0


def test_a_listener_whose_connection_breaks_while_it_begins_to_listen_tries_again(
    database_url: str, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[BaseException] = []
    heard: list[str] = []
    kills = iter([False, True, True, False])

    class Breaking(Listening):
        def __init__(self, database: Database, channels: Any) -> None:
            if next(kills, False):
                connect = database.connect

                def broken(name: str) -> Any:
                    conn = connect(name)
                    with psycopg.connect(database_url, autocommit=True) as other:
                        other.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
                    return conn

                monkeypatch.setattr(database, "connect", broken)
                try:
                    super().__init__(database, channels)
                finally:
                    monkeypatch.undo()
                    monkeypatch.setattr(signals, "Listening", Breaking)
            else:
                super().__init__(database, channels)

    monkeypatch.setattr(signals, "Listening", Breaking)
    listening = listener(Database(database_url), deaths, heard)
    listening.start()
    try:
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'conductor listener' and datname = current_database()"
            )

            def arrives() -> bool:
                conn.execute("notify conductor, 'hello'")
                return "hello" in heard

            eventually(arrives)
        assert deaths == []
    finally:
        listening.stop()
        assert listening.join(Deadline(5))


def test_a_listener_that_is_stopped_while_it_connects_does_not_wait_for_a_message(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, go_on = threading.Event(), threading.Event()

    class Slow(Listening):
        def __init__(self, database: Database, channels: Any) -> None:
            connecting.set()
            assert go_on.wait(10)
            super().__init__(database, channels)

    listening = listener(Database(database_url), [], [])
    listening.start()
    monkeypatch.setattr(signals, "Listening", Slow)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'conductor listener' and datname = current_database()"
        )
    assert connecting.wait(10)
    listening.stop()
    go_on.set()
    assert listening.join(Deadline(3))


def test_an_interrupt_after_the_end_writes_into_nobodys_file(database_url: str) -> None:
    listening = Listening(Database(database_url), ["conductor"])
    listening.close()
    read_end, write_end = os.pipe()  # takes the numbers that have become free
    os.set_blocking(read_end, False)
    listening.interrupt()
    with pytest.raises(BlockingIOError):
        os.read(read_end, 1)
    os.close(read_end)
    os.close(write_end)


def test_a_listener_works_beside_a_thousand_open_files(database_url: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("so many files may not be opened here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        listening = Listening(Database(database_url), ["conductor"])
        try:
            with psycopg.connect(database_url, autocommit=True) as conn:
                conn.execute("notify conductor, 'hello'")
            assert listening.receive(5.0) == ["hello"]
        finally:
            listening.close()
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_term_won_while_the_server_stopped_ends_when_it_leaves(database_url: str) -> None:
    id = uuid4()
    with psycopg.connect(database_url, autocommit=True) as conn:
        fleet.join(conn, id, timeout=15, version="1", hostname="h", pid=1, queues=["default"])
        won = fleet.beat(conn, id, stopping=False, stands=True, term=None, lease=15)
        assert won.term is not None
        conn.execute("listen conductor")
        fleet.leave(conn, id)
        assert [n.payload for n in conn.notifies(timeout=5, stop_after=1)] == ["leaderless"]
        next_one = uuid4()
        fleet.join(conn, next_one, timeout=15, version="1", hostname="h", pid=2, queues=["d"])
        pulse = fleet.beat(conn, next_one, stopping=False, stands=True, term=None, lease=15)
        assert pulse.term == won.term + 1


def test_a_service_whose_setup_and_teardown_both_fail_still_tells_why() -> None:
    class Broken(Service):
        def setup(self) -> None:
            raise ValueError("no setup")

        def teardown(self) -> None:
            raise ValueError("no teardown")

    asked: list[BaseException] = []

    def begin() -> None:
        try:
            Broken("broken").start()
        except BaseException as error:
            asked.append(error)

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    thread.join(5)
    assert [str(error) for error in asked] == ["no setup"]
