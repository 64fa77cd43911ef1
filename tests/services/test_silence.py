"""Servers whose network falls silent while every connection stays open."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from conductor_cli import Conductor, Orchestrator, State, WorkerConfig, database, holding, task
from tests.support.proxy import Proxy, between

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conductor_cli.config import Config


@task
def greet(name: str) -> str:
    return f"Hello, {name}!"


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with between(database_url) as made:
        yield made


@pytest.fixture
def serve(
    proxy: Proxy, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Orchestrator]]:
    """Starts a server behind the proxy that takes 2.5 seconds of silence for a lost connection."""
    monkeypatch.setattr(database, "GRACE", 2.5 - database.STATEMENT_TIMEOUT)
    made: list[Orchestrator] = []

    def start(*tasks: Any) -> Orchestrator:
        client = Conductor.create(proxy.url)
        config = WorkerConfig(poll_interval=0.5)
        made.append(
            Orchestrator.create(conductor=client, tasks=tasks, config=quick, default_worker=config)
        )
        made[-1].start(signals=False)
        return made[-1]

    yield start
    for server in made:
        proxy.go()
        server.stop()
        server.conductor.close()


def _wait_until_lost(heard: Any, *components: str) -> None:
    lost: set[object] = set()
    number = 0
    while not set(components) <= lost:
        number += 1
        lost.add(heard.wait("database.lost", number, timeout=30)["component"])


def test_a_silent_network_is_noticed_by_all_and_survived(
    proxy: Proxy, serve: Any, conductor: Conductor, heard: Any, eventually: Any
) -> None:
    server = serve(greet)
    heard.wait("listener.proven")
    conductor.wait(conductor.invoke(greet, {"name": "you"}), timeout=15)
    proxy.stall()
    server.job_coordinator.workers[0].holding.ready()
    _wait_until_lost(heard, "heartbeat", "worker.default.pump1", "listener")
    assert server.problems
    proxy.go()
    ids = conductor.invoke_many(greet, [{"name": str(n)} for n in range(20)])
    assert [conductor.wait(id, timeout=20) for id in ids] == [f"Hello, {n}!" for n in range(20)]
    eventually(lambda: not server.problems)
    heard.wait("listener.proven", 2)
    assert not server.stopped.done()


def test_connections_that_never_say_anything_again_are_replaced(
    proxy: Proxy, serve: Any, conductor: Conductor, heard: Any, eventually: Any
) -> None:
    server = serve(greet)
    heard.wait("listener.proven")
    proxy.stall_open()
    made = proxy.made
    ids = [conductor.invoke(greet, {"name": str(n)}) for n in range(5)]
    for id in ids:
        conductor.wait(id, timeout=20)
    heard.wait("listener.proven", 2)
    eventually(lambda: not server.problems)
    assert proxy.made >= made + 3  # heartbeat, listener, pump
    assert not server.stopped.done()


def test_a_result_that_was_on_its_way_is_recorded_once(
    proxy: Proxy, serve: Any, conductor: Conductor, heard: Any, eventually: Any
) -> None:
    runs, go_on = [], threading.Event()

    @task
    def held() -> str:
        runs.append(1)
        assert go_on.wait(30)
        return "done"

    serve(held)
    id = conductor.invoke(held)
    eventually(lambda: runs)
    proxy.stall()
    go_on.set()
    _wait_until_lost(heard, "worker.default.pump1")
    proxy.go()
    assert conductor.wait(id, timeout=20) == "done"
    found = conductor.get(id)
    assert found is not None
    assert (found.state, len(runs), found.runs) == (State.COMPLETED, 1, 1)


def test_a_claim_that_arrives_long_after_it_was_given_up_is_found(
    proxy: Proxy, serve: Any, conductor: Conductor, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "DOUBT", 0.2)
    monkeypatch.setattr(holding, "RECONCILE_LATER", 0.5)
    server = serve(greet)
    proxy.stall()
    server.job_coordinator.workers[0].holding.ready()
    _wait_until_lost(heard, "worker.default.pump1")
    proxy.go()
    id = conductor.invoke(greet, {"name": "you"}, delay=3600)
    with conductor.database.connection() as conn:
        conn.execute(
            "update conductor.live set state = 'x', owner = %s, token = 5, runs = 1",
            [server.info.id],
        )
    assert conductor.wait(id, timeout=20) == "Hello, you!"
    assert heard.count("executions.reconciled") == 1
